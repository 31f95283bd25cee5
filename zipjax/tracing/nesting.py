"""Nesting: which perms are nested in which, from what was seen together.

A perm may differ for each element of another axis, its *parent*, if wherever its units
appear, the parent's appear too, exactly once. The units of a GroupNorm group, the
features of an attention head, those of an expert, and those of a layer under scan all
follow from this one rule. Occurring together is not being aligned: operations that mix
the positions of an axis log the axes that stay aligned as additional arrays
(:mod:`zipjax.tracing.ledger`).
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence

from zipjax.tracing.nodes import Cat, Fam, Node, Prod, Reason, find, index_of, member_at
from zipjax.tracing.refining import collapse

Axes = tuple[Node, ...]
Cell = list[Node]


def cells(axes: Sequence[Node]) -> tuple[list[Cell], list[Node]]:
    """Expands an array into cells: blocks whose axes are products of atoms.

    For example, the axes ``[Cat(a, b), c, Fam(..., (x, y))]``, where the first axis is
    the family's index, expand into the cells ``[a, c, x]`` and ``[b, c, y]``.

    Args:
      axes: the array's axes.

    Returns:
      The atoms of each cell, without those of size 1, and the *orphans*: the families
      whose index does not occur exactly once in the array, so that nothing selects one
      of their members.
    """
    orphans: dict[int, Node] = {}
    return list(_expand(axes, [], [], {}, orphans)), list(orphans.values())


def _expand(
    axes: Sequence[Node],
    families: Sequence[Node],
    cell: Cell,
    starts: Mapping[int, int | None],
    orphans: dict[int, Node],
) -> Iterator[Cell]:
    """Yields the cells of an array of which the first axes are expanded already.

    Args:
      axes: the axes that are left.
      families: families met so far; they wait until all their indices are known.
      cell: the atoms found so far.
      starts: where the part that this cell takes of each concatenation, by id, starts;
        None for a concatenation that occurs more than once.
      orphans: collects the families without an index, by id.
    """
    if not axes:
        members = [m for node in families for m in _selected(node, starts, orphans)]
        if members:
            yield from _expand(members, [], cell, starts, orphans)
        else:
            yield cell
        return
    node, rest = find(axes[0]), axes[1:]
    match node.form:
        case None:
            found = [*cell, node] if node.size > 1 else cell
            yield from _expand(rest, families, found, starts, orphans)
        case Prod(children):
            yield from _expand([*children, *rest], families, cell, starts, orphans)
        case Fam():
            yield from _expand(rest, [*families, node], cell, starts, orphans)
        case Cat(parts):
            start = 0
            for part in parts:
                chosen = {**starts, id(node): None if id(node) in starts else start}
                yield from _expand([part, *rest], families, cell, chosen, orphans)
                start += part.size


def _selected(
    node: Node, starts: Mapping[int, int | None], orphans: dict[int, Node]
) -> list[Node]:
    """Returns the member of a family that a cell takes; of an orphan, all of them."""
    family = node.form
    assert isinstance(family, Fam)
    index = index_of(family)
    start = None if index is None else starts.get(id(index))
    if start is None:
        orphans[id(node)] = node
        return list(family.members)
    return [member_at(family, start)]


def distinct(events: Iterable[Axes]) -> list[Axes]:
    """Returns the arrays without repetitions, each with its axes of size above 1."""
    seen = {tuple(id(node) for node in axes): axes for axes in map(_roots, events)}
    return list(seen.values())


def _roots(axes: Axes) -> Axes:
    return tuple(root for root in map(find, axes) if root.size > 1)


def settle(events: Sequence[Axes]) -> None:
    """Ties the members of every family that appears without its index."""
    lost = Reason("a family's index was reduced or tied elsewhere")
    while True:
        orphans = [o for axes in distinct(events) for o in cells(axes)[1]]
        if not orphans:
            return
        for orphan in orphans:
            if isinstance(find(orphan).form, Fam):
                collapse(orphan, lost)


def only_with(atom: Node, other: Node, events: Sequence[Axes]) -> bool:
    """Returns whether ``other`` occurs exactly once in every cell that holds ``atom``.

    Args:
      atom: an atom.
      other: another atom.
      events: the axes of all arrays seen so far.
    """
    for number in dict.fromkeys(atom.events):
        found, orphans = cells(events[number])
        if orphans:
            return False
        for cell in found:
            roots = [find(node) for node in cell]
            if atom in roots and roots.count(other) != 1:
                return False
    return True


def find_parents(events: Iterable[Axes]) -> Mapping[Node, list[Node]]:
    """Returns the parents of every atom, outermost first.

    Args:
      events: the axes of all arrays that were seen.
    """
    common: dict[Node, set[Node]] = {}  # The atoms once in every cell of the key's.
    order: dict[Node, int] = {}  # By first occurrence.
    for axes in distinct(events):
        for cell in cells(axes)[0]:
            counts = collections.Counter(cell)
            once = {atom for atom, count in counts.items() if count == 1}
            for atom in counts:
                order.setdefault(atom, len(order))
                others = once - {atom}
                common[atom] = common[atom] & others if atom in common else others
    parents: dict[Node, list[Node]] = {}
    for atom, found in common.items():
        # Of two atoms that always occur together, the outer one is the parent.
        kept = [p for p in found if atom not in common[p] or order[p] < order[atom]]
        parents[atom] = kept
    for atom, found in parents.items():
        parents[atom] = sorted(found, key=lambda p: (len(parents[p]), order[p]))
    return parents
