"""From nodes to entries: the declarative form of an axis."""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from zipjax.spec.entries import (
    Axis,
    Entries,
    Entry,
    Family,
    Fixed,
    Product,
    Sum,
    entry_size,
)
from zipjax.tracing.nesting import Axes
from zipjax.tracing.nodes import (
    Cat,
    Choice,
    Fam,
    Node,
    Piece,
    factors,
    find,
    index_of,
    product,
    restrict,
)

Name = Callable[[Node], str | None]
"""The name of an atom; None for one that is fixed."""


class FamilyError(Exception):
    """A family whose index stands where an entry cannot refer to it."""

    def __init__(self, node: Node) -> None:
        super().__init__("a family needs its index outside of it")
        self.node = node


def to_entries(axes: Axes, name: Name) -> Entries:
    """Returns the entries of an array's axes.

    Raises:
      FamilyError: if an axis holds a family whose index is neither an outer factor of
        it nor the outermost factor of another axis.
    """
    for number, node in enumerate(axes):
        first, *rest = factors(node) or [node]
        others = [other for k, other in enumerate(axes) if k != number]
        if isinstance(first.form, Cat) and any(_holds(x, first) for x in others):
            return _with_families(axes, number, first, rest, name)
    return tuple(_entry(factors(node), name) for node in axes)


def _with_families(
    axes: Axes, number: int, index: Node, rest: Sequence[Node], name: Name
) -> Entries:
    """Converts an array of which axis ``number`` selects members in other axes."""
    pieces = list(_pieces(index))
    rows = []
    for piece in pieces:
        inside = [restrict(node, piece.choices) for node in axes]
        inner = [restrict(node, piece.choices) for node in rest]
        inside[number] = product([piece.node, *inner])
        rows.append([_entry(factors(node), name) for node in inside])
    columns = [tuple(column) for column in zip(*rows, strict=True)]
    return tuple(
        Sum(column)
        if k == number
        else column[0]
        if all(entry == column[0] for entry in column)
        else Family(number, column)
        for k, column in enumerate(columns)
    )


def _pieces(node: Node, choices: tuple[Choice, ...] = ()) -> Iterator[Piece]:
    """Yields the innermost parts of a concatenation."""
    if not isinstance(node.form, Cat):
        yield Piece(node, choices)
        return
    start = 0
    for part in map(find, node.form.parts):
        choice = Choice(node, start, start + part.size, part)
        yield from _pieces(part, (*choices, choice))
        start += part.size


def simplified(entries: Entries) -> Entries:
    """Joins fixed parts, except in the axes that families refer to."""
    kept = {family.index for entry in entries for family in _families(entry)}
    return tuple(
        entry if number in kept else _plain(_simple(entry))
        for number, entry in enumerate(entries)
    )


def _families(entry: Entry) -> Iterator[Family]:
    match entry:
        case Family(_, children):
            yield entry
            for child in children:
                yield from _families(child)
        case Product(children) | Sum(children):
            for child in children:
                yield from _families(child)


def _plain(entry: Entry) -> Entry:
    return None if isinstance(entry, Fixed) else entry


def _simple(entry: Entry) -> Entry:
    match entry:
        case Product(children):
            return _product(map(_simple, children))
        case Sum(children):
            return _sum(map(_simple, children))
    return entry


def _entry(nodes: Sequence[Node], name: Name) -> Entry:
    for number, node in enumerate(nodes):
        before, behind = nodes[:number], nodes[number + 1 :]
        if isinstance(node.form, Cat) and any(_holds(n, node) for n in behind):
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


def _holds(node: Node, index: Node) -> bool:
    """Returns whether an axis holds a family that ``index`` selects members of."""
    return any(
        (isinstance(f.form, Cat) and any(_holds(part, index) for part in f.form.parts))
        or (
            isinstance(f.form, Fam)
            and (
                index_of(f.form) is index
                or any(_holds(member, index) for member in f.form.members)
            )
        )
        for f in factors(node)
    )


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
        match entry:
            case Product(children) | Sum(children) if isinstance(entry, kind):
                yield from children
            case _:
                yield entry


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an atom stands in an array.

    Attributes:
      axis: number of the axis.
      start: position of the atom's first element along the axis.
      stride: number of elements between two of the atom's.
      index: position along the axis that selects a family's member, if there is one.
    """

    axis: int
    start: int = 0
    stride: int = 1
    index: int = 0


def map_axes(
    entries: Entries, sizes: Mapping[str, int], function: Callable[[Axis, Place], Entry]
) -> Entries:
    """Replaces every ``Axis`` of an array's entries by ``function(axis, place)``."""

    def visit(entry: Entry, place: Place) -> Entry:
        start, stride = place.start, place.stride
        new = []
        match entry:
            case Axis():
                return function(entry, place)
            case Product(children):
                for child in reversed(children):
                    new.append(visit(child, _at(place, start, stride)))
                    stride *= entry_size(child, sizes) or 1
                return Product(tuple(reversed(new)))
            case Sum(children):
                for child in children:
                    new.append(visit(child, _at(place, start, stride)))
                    start += stride * (entry_size(child, sizes) or 1)
                return Sum(tuple(new))
            case Family(number, members):
                starts = part_starts(entries[number], sizes)
                for child, index in zip(members, starts, strict=True):
                    new.append(visit(child, dataclasses.replace(place, index=index)))
                return Family(number, tuple(new))
        return entry

    return tuple(visit(entry, Place(number)) for number, entry in enumerate(entries))


def _at(place: Place, start: int, stride: int) -> Place:
    return dataclasses.replace(place, start=start, stride=stride)


def part_starts(entry: Entry, sizes: Mapping[str, int]) -> list[int]:
    """Returns the positions at which the parts of a sum start."""
    parts = entry.parts if isinstance(entry, Sum) else (entry,)
    ends = itertools.accumulate(entry_size(part, sizes) or 1 for part in parts)
    return [0, *ends][:-1]


def axis_at(entries: Entries, sizes: Mapping[str, int], place: Place) -> Axis | None:
    """Returns the atom of other, possibly coarser entries at a place."""

    def visit(entry: Entry, start: int, stride: int) -> Axis | None:
        match entry:
            case Axis():
                return entry
            case Product(children):
                inner = 1
                for child in reversed(children):
                    size = entry_size(child, sizes) or 1
                    if inner <= stride < inner * size:
                        return visit(child, start // inner % size, stride // inner)
                    inner *= size
            case Sum(children):
                starts = part_starts(entry, sizes)
                k = bisect.bisect(starts, start) - 1
                return visit(children[k], start - starts[k], stride)
            case Family(number, members):
                starts = part_starts(entries[number], sizes)
                return visit(
                    members[bisect.bisect(starts, place.index) - 1], start, stride
                )
        return None

    return visit(entries[place.axis], place.start, place.stride)
