"""Group structure: which perms are nested in which, from what was seen together.

A perm may differ for each value of another axis, its *parent*, if wherever its units
appear, the parent's appear too, exactly once. Units in a GroupNorm group, features of
an attention head, of an expert, of a layer under scan: all follow from this one rule.
Operations that mix positions of an axis log what stays aligned in them as additional
arrays (:mod:`zipjax.tracing.ledger`), for occurring together is not being aligned.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence

from zipjax.tracing.nodes import Cat, Fam, Node, Prod, Reason, find, index_of, member_at
from zipjax.tracing.refining import collapse

Axes = tuple[Node, ...]
Cell = list[Node]


def cells(axes: Sequence[Node]) -> tuple[list[Cell], list[Node]]:
    """Expands an array into blocks without concatenations and families.

    Returns:
      For each block the atoms that its axes are products of, and the families whose
      index the array does not have exactly once.
    """
    out: list[Cell] = []
    orphans: dict[int, Node] = {}
    chosen: dict[int, int | None] = {}

    def expand(todo: list[Node], waiting: list[Node], cell: Cell) -> None:
        if not todo:
            ready = [member for f in waiting for member in selected(f)]
            if ready:
                expand(ready, [], cell)
            else:
                out.append(cell)
            return
        node, rest = find(todo[0]), todo[1:]
        match node.form:
            case None:
                expand(rest, waiting, [*cell, node] if node.size > 1 else cell)
            case Prod(children):
                expand([*children, *rest], waiting, cell)
            case Fam():
                expand(rest, [*waiting, node], cell)
            case Cat(parts):
                before, start = chosen.get(id(node), -1), 0
                for part in parts:
                    chosen[id(node)] = start if before == -1 else None
                    expand([part, *rest], waiting, cell)
                    start += part.size
                chosen[id(node)] = before

    def selected(node: Node) -> list[Node]:
        family = node.form
        assert isinstance(family, Fam)
        index = index_of(family)
        position = None if index is None else chosen.get(id(index))
        if position is None or position < 0:
            orphans[id(node)] = node
            return list(family.members)
        return [member_at(family, position)]

    expand(list(axes), [], [])
    return out, list(orphans.values())


def distinct(events: Iterable[Axes]) -> list[Axes]:
    """Returns the arrays that differ in their axes."""
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
    """Returns whether ``other`` is exactly once in every block that holds ``atom``."""
    for number in dict.fromkeys(atom.events):
        blocks, orphans = cells(events[number])
        if orphans:
            return False
        for cell in blocks:
            roots = [find(node) for node in cell]
            if atom in roots and roots.count(other) != 1:
                return False
    return True


def find_parents(events: Iterable[Axes]) -> Mapping[Node, list[Node]]:
    """Returns the parents of every atom, outermost first."""
    common: dict[Node, set[Node]] = {}
    order: dict[Node, int] = {}
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
        # Of two atoms that are always together the outer one counts as the parent.
        kept = [p for p in found if atom not in common[p] or order[p] < order[atom]]
        parents[atom] = kept
    for atom, found in parents.items():
        parents[atom] = sorted(found, key=lambda p: (len(parents[p]), order[p]))
    return parents
