"""From nodes to entries: the declarative form of an axis."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from zipjax.entries import Axis, Entries, Entry, Fixed, Product, Sum, entry_size
from zipjax.tracing.groups import Axes
from zipjax.tracing.nodes import Cat, Choice, Fam, Node, factors, find, index_of, restrict

Name = Callable[[Node], str | None]
"""The name of a leaf; None for one that is fixed."""


class FamilyError(Exception):
    """A family whose index stands where an entry cannot refer to it."""

    def __init__(self, node: Node) -> None:
        super().__init__("a family without its index before it in the axis")
        self.node = node


def to_entries(axes: Axes, name: Name) -> Entries:
    """Returns the entries of an array's axes.

    Raises:
      FamilyError: if an axis is a family whose index is not an outer factor of it.
    """
    entries = (_entry(factors(node), name) for node in axes)
    return tuple(None if isinstance(e, Fixed) else e for e in entries)


def _entry(nodes: Sequence[Node], name: Name) -> Entry:
    for number, node in enumerate(nodes):
        before, behind = nodes[:number], nodes[number + 1 :]
        if isinstance(node.form, Cat) and any(_depends(n, node) for n in behind):
            outer = [_factor(other, name) for other in before]
            return _product([*outer, _distributed(node, behind, name)])
    return _product([_factor(node, name) for node in nodes])


def _distributed(node: Node, behind: Sequence[Node], name: Name) -> Entry:
    """Multiplies a concatenation out, for families behind it that depend on it."""
    assert isinstance(node.form, Cat)
    parts, start = [], 0
    for part in node.form.parts:
        choice = Choice(node, start, start + part.size, part)
        rest = [restrict(other, [choice]) for other in behind]
        parts.append(_entry([f for n in (part, *rest) for f in factors(n)], name))
        start += part.size
    return _sum(parts)


def _factor(node: Node, name: Name) -> Entry:
    match node.form:
        case Cat(parts):
            return _sum([_entry(factors(part), name) for part in parts])
        case Fam(_, _, members):
            first, *rest = (find(member) for member in members)
            if any(member is not first for member in rest):
                raise FamilyError(node)
            return _entry(factors(first), name)
    label = name(node)
    return Fixed(node.size) if label is None else Axis(label, "out")


def _depends(node: Node, index: Node) -> bool:
    match node.form:
        case Cat(parts):
            return any(_depends(f, index) for part in parts for f in factors(part))
        case Fam() as family:
            return index_of(family) is index or any(
                _depends(f, index) for m in family.members for f in factors(m)
            )
    return False


def _product(entries: Iterable[Entry]) -> Entry:
    out: list[Entry] = []
    for entry in _opened(entries, Product):
        if isinstance(entry, Fixed) and out and isinstance(out[-1], Fixed):
            out[-1] = Fixed(out[-1].size * entry.size)
        elif entry != Fixed(1):
            out.append(entry)
    return out[0] if len(out) == 1 else Product(tuple(out)) if out else Fixed(1)


def _sum(entries: Iterable[Entry]) -> Entry:
    out: list[Entry] = []
    for entry in _opened(entries, Sum):
        if isinstance(entry, Fixed) and out and isinstance(out[-1], Fixed):
            out[-1] = Fixed(out[-1].size + entry.size)
        else:
            out.append(entry)
    return out[0] if len(out) == 1 else Sum(tuple(out))


def _opened(entries: Iterable[Entry], kind: type) -> Iterable[Entry]:
    for entry in entries:
        if isinstance(entry, kind):
            yield from entry.factors if isinstance(entry, Product) else entry.parts
        else:
            yield entry


Place = tuple[int, int]
"""Where a leaf stands in an axis: position of its first element, and its stride."""


def map_leaves(
    entry: Entry,
    sizes: Mapping[str, int],
    function: Callable[[Axis, Place], Entry],
    place: Place = (0, 1),
) -> Entry:
    """Replaces every ``Axis`` of an entry by ``function(axis, place)``."""
    start, stride = place
    match entry:
        case Axis():
            return function(entry, place)
        case Product(children):
            new = []
            for child in reversed(children):
                new.append(map_leaves(child, sizes, function, (start, stride)))
                stride *= entry_size(child, sizes) or 1
            return _product(reversed(new))
        case Sum(children):
            new = []
            for child in children:
                new.append(map_leaves(child, sizes, function, (start, stride)))
                start += stride * (entry_size(child, sizes) or 1)
            return _sum(new)
    return entry


def leaf_at(entry: Entry, sizes: Mapping[str, int], place: Place) -> Axis | None:
    """Returns the leaf of another, possibly coarser entry of an axis at a place."""
    start, stride = place
    match entry:
        case Axis():
            return entry
        case Product(children):
            inner = 1
            for child in reversed(children):
                size = entry_size(child, sizes) or 1
                if inner <= stride < inner * size:
                    local = (start // inner) % size, stride // inner
                    return leaf_at(child, sizes, local)
                inner *= size
        case Sum(children):
            for child in children:
                size = entry_size(child, sizes) or 1
                if start < size:
                    return leaf_at(child, sizes, (start, stride))
                start -= size
    return None
