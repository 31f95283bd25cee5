"""Entries: what one axis of one parameter is tied to.

* ``None``: no perm (the network's inputs and outputs, kernel windows);
* ``Axis(perm, "out")``: *produced*: a merge multiplies this axis by M;
* ``Axis(perm, "in")``: *consumed*: a merge multiplies this axis by U;
* ``Product(factors)``: a row-major product of entries, such as the h*w*c inputs of a
  Dense layer after a flatten, ``Product((Fixed(h * w), Axis("conv", "in")))``;
* ``Sum(parts)``: a concatenation of entries, such as the inputs of a layer that reads
  two concatenated branches. ``Fixed(size)`` is a part or factor without a perm;
* ``Index(name, size)``: an axis without a perm whose elements nevertheless are groups
  of units, such as the layers of parameters that are stacked for a scan;
* ``Family(index, members)``: ``members[k]`` wherever axis number ``index`` of the same
  array, whose entry is a Sum, is in its part k. An example is the last axis of a fused
  QKV kernel ``[features, 3, heads, head_dim]``: Q and K share a perm, V has another.

``Axis``, ``Fixed``, ``Index`` and ``None`` are *atoms*; the others are *compounds*. For
permutations U = M^T and the role does not matter; for a zip it does.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, cast

from zipjax.arguments import is_whole

Role = Literal["out", "in"]


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis that holds the units of ``perm`` and produces or consumes them."""

    perm: str
    role: Role

    def __post_init__(self) -> None:
        if self.role not in ("out", "in"):
            raise ValueError(
                f"axis of perm {self.perm!r} has role {self.role!r}: the role is 'out' "
                "(produced) or 'in' (consumed)"
            )


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A part or factor of a compound axis that belongs to no perm."""

    size: int

    def __post_init__(self) -> None:
        _check_size(self)


@dataclasses.dataclass(frozen=True)
class Index:
    """An axis in a fixed order; perms may be nested in it, one for each element."""

    name: str
    size: int

    def __post_init__(self) -> None:
        _check_size(self)


@dataclasses.dataclass(frozen=True)
class Product:
    """A row-major product of entries, outermost first.

    >>> flattened = Product((Fixed(7 * 7), Axis("conv", "in")))
    >>> entry_size(flattened, {"conv": 512})
    25088
    """

    factors: tuple["Entry", ...]


@dataclasses.dataclass(frozen=True)
class Sum:
    """A concatenation of entries.

    >>> joined = Sum((Axis("left", "in"), Axis("right", "in")))
    >>> entry_size(joined, {"left": 10, "right": 6})
    16
    """

    parts: tuple["Entry", ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """An axis that has the entry ``members[k]`` within part k of another axis.

    Attributes:
      index: number of the other axis, whose entry is a Sum with as many parts.
      members: entries of equal size.
    """

    index: int
    members: tuple["Entry", ...]


Entry: TypeAlias = Axis | Fixed | Index | Product | Sum | Family | None
Entries: TypeAlias = tuple[Entry, ...]


def _check_size(entry: Fixed | Index) -> None:
    if not (is_whole(entry.size) and entry.size >= 0):
        raise ValueError(
            f"{entry} has no number of elements: sizes are whole numbers from 0 on"
        )


def part_entries(entries: Entries, part: Mapping[int, int]) -> Entries:
    """Returns the entries of a part of an array, as selected by constant indices.

    >>> family = Family(0, (Axis("a", "out"), Axis("b", "out")))
    >>> part_entries((Sum((Fixed(1), Fixed(1))), None, family), {0: 1})
    (None, Axis(perm='b', role='out'))

    Args:
      entries: those of the array.
      part: the position at every axis that is selected.
    """

    def member(entry: Entry) -> Entry:
        if not isinstance(entry, Family):
            return entry
        if entry.index not in part:
            before = sum(axis < entry.index for axis in part)
            return dataclasses.replace(entry, index=entry.index - before)
        index = entries[entry.index]
        parts = index.parts if isinstance(index, Sum) else ()
        ends = itertools.accumulate(entry_size(x, {}) or 1 for x in parts)
        number = sum(end <= part[entry.index] for end in ends)
        return entry.members[number]

    return tuple(member(x) for k, x in enumerate(entries) if k not in part)


def axes_of(entry: Entry) -> Iterator[Axis]:
    """Yields the ``Axis`` atoms of an entry from left to right."""
    match entry:
        case Axis():
            yield entry
        case Product(children) | Sum(children) | Family(_, children):
            for child in children:
                yield from axes_of(child)


def indices_of(entry: Entry) -> Iterator[Index]:
    """Yields the ``Index`` atoms of an entry from left to right."""
    match entry:
        case Index():
            yield entry
        case Product(children) | Sum(children) | Family(_, children):
            for child in children:
                yield from indices_of(child)


def atom_name(entry: Entry) -> str | None:
    """Returns the perm or the index that an atom belongs to."""
    match entry:
        case Axis():
            return entry.perm
        case Index():
            return entry.name
    return None


def entry_names(entries: Entries) -> list[str]:
    """Returns the names of the perms and indices of an array's axes, each once."""
    atoms = [x for e in entries for x in (*axes_of(e), *indices_of(e))]
    return list(dict.fromkeys(name for name in map(atom_name, atoms) if name))


def rename(entry: Entry, names: Mapping[str, str]) -> Entry:
    """Returns an entry with its perms and indices renamed."""

    def renamed(atom: Axis | Index) -> Entry:
        if isinstance(atom, Axis):
            return Axis(names[atom.perm], atom.role)
        return Index(names[atom.name], atom.size)

    return replace_atoms(entry, renamed)


def replace_atoms(entry: Entry, function: Callable[[Axis | Index], Entry]) -> Entry:
    """Returns an entry with each ``Axis`` and ``Index`` in it replaced."""
    match entry:
        case Axis() | Index():
            return function(entry)
        case Product(children):
            return Product(tuple(replace_atoms(x, function) for x in children))
        case Sum(children):
            return Sum(tuple(replace_atoms(x, function) for x in children))
        case Family(index, children):
            return Family(index, tuple(replace_atoms(x, function) for x in children))
    return entry


def atom_blocks(entries: Entries) -> Iterator[Entries]:
    """Yields the atoms of each block of an array; see :mod:`zipjax.spec.blocks`."""
    for number, entry in enumerate(entries):
        if isinstance(entry, Sum):
            for k, part in enumerate(entry.parts):
                inside = [select_member(other, number, k) for other in entries]
                inside[number] = part
                yield from atom_blocks(tuple(inside))
            return
    for number, entry in enumerate(entries):
        if isinstance(entry, Product):
            opened = (*entries[:number], *entry.factors, *entries[number + 1 :])
            yield from atom_blocks(opened)
            return
    yield entries


def select_member(entry: Entry, index: int, part: int) -> Entry:
    """Returns what an entry becomes within one part of axis number ``index``."""
    match entry:
        case Product(children):
            return Product(tuple(select_member(x, index, part) for x in children))
        case Sum(children):
            return Sum(tuple(select_member(x, index, part) for x in children))
        case Family(number, members) if number == index:
            return members[part]
    return entry


def entry_size(entry: Entry, sizes: Mapping[str, int]) -> int | None:
    """Returns the number of elements along an axis, or None if it is unknown."""
    match entry:
        case None:
            return None
        case Axis():
            return sizes.get(entry.perm)
        case Fixed() | Index():
            return entry.size
        case Family():
            return entry_size(entry.members[0], sizes)
        case Product(children) | Sum(children):
            parts = [entry_size(child, sizes) for child in children]
            if any(size is None for size in parts):
                return None
            known = cast(list[int], parts)
            return math.prod(known) if isinstance(entry, Product) else sum(known)


def entry_to_json(entry: Entry) -> Any:
    """Returns an entry as JSON data; :func:`entry_from_json` reads it back."""
    match entry:
        case None:
            return None
        case Axis():
            return {"perm": entry.perm, "role": entry.role}
        case Fixed():
            return {"fixed": entry.size}
        case Index():
            return {"index": entry.name, "size": entry.size}
        case Product():
            return {"product": [entry_to_json(child) for child in entry.factors]}
        case Sum():
            return {"sum": [entry_to_json(child) for child in entry.parts]}
        case Family():
            members = [entry_to_json(child) for child in entry.members]
            return {"family": members, "index": entry.index}


def entry_from_json(data: Any) -> Entry:
    """Reads what :func:`entry_to_json` wrote.

    Raises:
      ValueError: if ``data`` is not an entry.
    """
    match data:
        case None:
            return None
        case {"perm": str(perm), "role": role}:
            return Axis(perm, role)
        case {"fixed": int(size)}:
            return Fixed(size)
        case {"index": str(name), "size": int(size)}:
            return Index(name, size)
        case {"product": list(children)}:
            return Product(tuple(entry_from_json(child) for child in children))
        case {"sum": list(children)}:
            return Sum(tuple(entry_from_json(child) for child in children))
        case {"family": list(children), "index": int(index)}:
            return Family(index, tuple(entry_from_json(child) for child in children))
    raise ValueError(
        f"{data!r} is not an entry of a permutation spec: read what to_json wrote"
    )
