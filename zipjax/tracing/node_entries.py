"""From nodes to entries: trees of axes in the declarative form of a spec."""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from zipjax.spec.entries import (
    Axis,
    Entries,
    Entry,
    Family,
    Fixed,
    Index,
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

NameOf = Callable[[Node], str | None]
"""Returns the name of an atom's perm; None for an atom without a perm."""


class FamilyError(Exception):
    """A family with its index in a place that an entry cannot refer to."""

    def __init__(self, node: Node) -> None:
        super().__init__("a family's index is neither before it nor in another axis")
        self.node = node


def to_entries(axes: Axes, name: NameOf) -> Entries:
    """Returns the entries of an array's axes, all with the role "out".

    Args:
      axes: the array's axes.
      name: the perm of every atom.

    Raises:
      FamilyError: if an axis holds a family whose index is neither an outer factor of
        it nor the outermost factor of another axis.
    """
    for number, node in enumerate(axes):
        first, *rest = factors(node) or [node]
        others = [other for k, other in enumerate(axes) if k != number]
        if isinstance(first.form, Cat) and any(_holds(x, first) for x in others):
            return _with_families(axes, number, first, rest, name)
    return tuple(_product_entry(factors(node), name) for node in axes)


def _with_families(
    axes: Axes, number: int, index: Node, rest: Sequence[Node], name: NameOf
) -> Entries:
    """Returns the entries of an array with families that one of its axes selects.

    Args:
      axes: the array's axes.
      number: the axis that selects, whose entry becomes a sum.
      index: its outermost factor, a concatenation.
      rest: its other factors.
      name: the perm of every atom.
    """
    rows = []
    for piece in _pieces(index):
        inside = [restrict(node, piece.choices) for node in axes]
        inner = [restrict(node, piece.choices) for node in rest]
        inside[number] = product([piece.node, *inner])
        rows.append([_product_entry(factors(node), name) for node in inside])
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
    """Yields the innermost parts of a concatenation, from left to right."""
    if not isinstance(node.form, Cat):
        yield Piece(node, choices)
        return
    start = 0
    for part in map(find, node.form.parts):
        choice = Choice(node, start, start + part.size, part)
        yield from _pieces(part, (*choices, choice))
        start += part.size


def simplified(entries: Entries) -> Entries:
    """Returns entries with adjacent fixed parts joined, where no family needs them."""
    kept = {family.index for entry in entries for family in _families(entry)}
    return tuple(
        entry if number in kept else _none_if_fixed(_simple(entry))
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


def _none_if_fixed(entry: Entry) -> Entry:
    return None if isinstance(entry, Fixed) else entry


def _simple(entry: Entry) -> Entry:
    match entry:
        case Product(children):
            return _joined_product(map(_simple, children))
        case Sum(children):
            return _joined_sum(map(_simple, children))
    return entry


def _product_entry(nodes: Sequence[Node], name: NameOf) -> Entry:
    """Returns the entry of the product of ``nodes``, none of which is a product."""
    for number, node in enumerate(nodes):
        before, after = nodes[:number], nodes[number + 1 :]
        if isinstance(node.form, Cat) and any(_holds(n, node) for n in after):
            outer = [_factor_entry(other, name) for other in before]
            return _joined_product([*outer, _distributed(node, after, name)])
    return _joined_product([_factor_entry(node, name) for node in nodes])


def _distributed(node: Node, after: Sequence[Node], name: NameOf) -> Entry:
    """Returns the entry of a concatenation times the factors after it, as a sum.

    The families among these factors thereby become one of their members in each part.
    """
    assert isinstance(node.form, Cat)
    parts, start = [], 0
    for part in node.form.parts:
        choice = Choice(node, start, start + part.size, part)
        rest = [restrict(other, [choice]) for other in after]
        inside = [factor for n in (part, *rest) for factor in factors(n)]
        parts.append(_product_entry(inside, name))
        start += part.size
    return _joined_sum(parts)


def _factor_entry(node: Node, name: NameOf) -> Entry:
    match node.form:
        case Cat(parts):
            return _joined_sum([_product_entry(factors(part), name) for part in parts])
        case Fam(_, _, members):
            first, *rest = (find(member) for member in members)
            if any(member is not first for member in rest):
                raise FamilyError(node)
            return _product_entry(factors(first), name)
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


def _joined_product(entries: Iterable[Entry]) -> Entry:
    """Returns a product without nested products and with adjacent sizes multiplied."""
    out: list[Entry] = []
    for entry in _opened(entries, Product):
        if isinstance(entry, Fixed) and out and isinstance(out[-1], Fixed):
            out[-1] = Fixed(out[-1].size * entry.size)
        elif entry != Fixed(1):
            out.append(entry)
    return out[0] if len(out) == 1 else Product(tuple(out)) if out else Fixed(1)


def _joined_sum(entries: Iterable[Entry]) -> Entry:
    """Returns a sum without nested sums and with adjacent sizes added."""
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
    """Where an atom is in an array.

    For example, 8 channels in an axis of 4 * 8 elements, positions first, are at start
    0 with stride 1; the 4 positions are at start 0 with stride 8.

    Attributes:
      axis: number of the axis.
      start: position of the atom's first element along the axis.
      stride: distance between neighbouring elements of the atom along the axis.
      index: within a family, the position along the selecting axis that its member is
        selected at.
    """

    axis: int
    start: int = 0
    stride: int = 1
    index: int = 0


def map_axes(
    entries: Entries, sizes: Mapping[str, int], function: Callable[[Axis, Place], Entry]
) -> Entries:
    """Returns entries with every ``Axis`` replaced by ``function(axis, place)``.

    Args:
      entries: one entry per axis of an array.
      sizes: number of units of every perm in them.
      function: maps an ``Axis`` and its place to another entry of the same size.
    """

    def visit(entry: Entry, place: Place) -> Entry:
        match entry:
            case Axis():
                return function(entry, place)
            case Product(children):
                strides = [place.stride * n for n in _strides(children, sizes)]
                there = [dataclasses.replace(place, stride=n) for n in strides]
                return Product(tuple(map(visit, children, there)))
            case Sum(parts):
                starts = [place.start + place.stride * n for n in _starts(entry, sizes)]
                there = [dataclasses.replace(place, start=n) for n in starts]
                return Sum(tuple(map(visit, parts, there)))
            case Family(number, members):
                starts = _starts(entries[number], sizes)
                there = [dataclasses.replace(place, index=n) for n in starts]
                return Family(number, tuple(map(visit, members, there)))
        return entry

    return tuple(visit(entry, Place(number)) for number, entry in enumerate(entries))


def atom_at(
    entries: Entries, sizes: Mapping[str, int], place: Place
) -> Axis | Index | None:
    """Returns the perm's or index' atom at a place of an array; None if neither is.

    The entries may be coarser than those that the place was found in.

    >>> inputs = (Product((Fixed(4), Axis("channels", "in"))),)
    >>> atom_at(inputs, {"channels": 8}, Place(axis=0, stride=1))
    Axis(perm='channels', role='in')
    >>> atom_at(inputs, {"channels": 8}, Place(axis=0, stride=8)) is None
    True

    Args:
      entries: one entry per axis of the array.
      sizes: number of units of every perm in them.
      place: where to look.
    """

    def visit(entry: Entry, start: int, stride: int) -> Axis | Index | None:
        match entry:
            case Axis() | Index():
                return entry
            case Product(children):
                strides = _strides(children, sizes)
                for child, own in zip(children, strides, strict=True):
                    size = _known_size(child, sizes)
                    if own <= stride < own * size:
                        return visit(child, start // own % size, stride // own)
            case Sum(parts):
                starts = _starts(entry, sizes)
                k = bisect.bisect(starts, start) - 1
                return visit(parts[k], start - starts[k], stride)
            case Family(number, members):
                k = bisect.bisect(_starts(entries[number], sizes), place.index) - 1
                return visit(members[k], start, stride)
        return None

    return visit(entries[place.axis], place.start, place.stride)


def _strides(factors: Entries, sizes: Mapping[str, int]) -> list[int]:
    """Returns the strides of a product's factors: ``[w * c, c, 1]`` for h, w and c."""
    known = [_known_size(factor, sizes) for factor in factors]
    return [math.prod(known[k + 1 :]) for k in range(len(known))]


def _starts(entry: Entry, sizes: Mapping[str, int]) -> list[int]:
    """Returns the positions at which the parts of a sum start, the first one at 0."""
    parts = entry.parts if isinstance(entry, Sum) else (entry,)
    ahead = [_known_size(part, sizes) for part in parts[:-1]]
    return list(itertools.accumulate(ahead, initial=0))


def _known_size(entry: Entry, sizes: Mapping[str, int]) -> int:
    return entry_size(entry, sizes) or 1
