"""Taps: the values of a program at which the units of perms are read.

Any value on which a perm lies can be its tap. In order of preference, these are

1. the input of the last parameter that consumes the perm (of a residual stream, after
   the last sum), as in the reference implementations of both papers;
2. both operands of the last product of two data values that consumes it (queries and
   keys);
3. the last data value that it lies on, from the last one backwards.

The first of these that is *clean* is taken: no other perm's units lie along its axes.
Models have those in different orders, so that sample i of one model would not be
sample i of another. For example, the output of grouped-query attention has the query
heads as an axis: its units are read in the values V instead. If no value is clean, the
first is taken, and the other perms' units are averaged over (see
:func:`zipjax.spec.blocks.unit_samples`).

Reductions right before a tap, such as a global average pooling, are skipped: the tap is
the value that they reduce. A perm that several parameters consume, such as a residual
stream, has *earlier* taps, too: the inputs of the others. They tell units apart that
are dead at the last one.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping

from zipjax.program.boundaries import boundary_value
from zipjax.program.parameter_views import parameter_views
from zipjax.program.program import Equation, Literal, Program, ValueId
from zipjax.spec.depth import Boundary
from zipjax.spec.entries import (
    Axis,
    Entries,
    Entry,
    Index,
    atom_blocks,
    atom_name,
)
from zipjax.spec.permutation_spec import Perm, PermutationSpec
from zipjax.tracing.ledger import Contraction
from zipjax.tracing.node_entries import (
    FamilyError,
    Place,
    atom_at,
    map_axes,
    simplified,
    to_entries,
)
from zipjax.tracing.nodes import Node, atoms, find
from zipjax.tracing.reading import Reading
from zipjax.types import Shape

_LAYOUT = {
    "convert_element_type", "copy", "reduce_precision", "reshape", "squeeze",
    "transpose", "stop_gradient",
}  # fmt: skip
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min"}
_WINDOWS = {"reduce_window_sum", "reduce_window_max", "reduce_window"}


@dataclasses.dataclass(frozen=True)
class Tap:
    """A value of a program with the entries of its axes, None for samples.

    Attributes:
      value: the value; within scans, of all iterations.
      entries: one entry per axis.
      loops: how many of the first axes are iterations of scans.
    """

    value: ValueId
    entries: Entries
    loops: int = 0


@dataclasses.dataclass(frozen=True)
class Reads:
    """Where a perm's units are read.

    Attributes:
      last: the perm's tap; of a product of data values both operands.
      earlier: the inputs of the parameters that consume the perm before.
    """

    last: tuple[Tap, ...]
    earlier: tuple[Tap, ...] = ()


Taps = dict[str, Reads]
"""Where the units of every perm are read, by name; perms without a tap are left out."""


def find_taps(
    program: Program,
    spec: PermutationSpec,
    perms: Collection[str] | None = None,
    boundary: Boundary | None = None,
) -> Taps:
    """Returns the taps of a spec's perms.

    A perm has none if it lies on parameters only, or on values of loops that are not
    scans, such as a ``while``.

    Args:
      program: the traced function.
      spec: its spec, inferred or declared.
      perms: the perms of a trunk. The taps are then within it, or, failing that, at the
        first consumer after it. By default all perms, at their last consumers.
      boundary: where the trunk ends, if that is inside a stream: the stream's tap.
    """
    reading = Reading(program)
    end = None if perms is None else _last_use(program, spec, perms)
    if boundary is not None:
        fits = functools.partial(boundary.fits, sizes=spec.sizes)
        end = boundary_value(program, boundary.trunk, boundary.shared, fits)
    names, counts = _names_in(reading, spec), spec.indices
    inside = boundary is not None
    taps = read_taps(reading, names, spec.perms, counts, end, inside=inside)
    wanted = spec.perms if perms is None else perms
    return {perm: taps[perm] for perm in spec.perms if perm in wanted and perm in taps}


def read_taps(
    reading: Reading,
    names: Mapping[Node, str],
    perms: Mapping[str, Perm],
    indices: Mapping[str, int],
    end: ValueId | None = None,
    *,
    inside: bool = False,
) -> Taps:
    """Returns the taps of perms, given by the atoms that belong to them.

    Args:
      reading: a reading of a program.
      names: the perm, or the index, of every atom that belongs to one.
      perms: the perms by name.
      indices: number of elements of every index.
      end: the last value of a trunk, if the taps must be those of the trunk.
      inside: whether it lies inside a stream, whose tap it is.
    """
    finder = _Finder(reading, names, perms, indices, end, inside=inside)
    found = {perm: finder.reads(perm) for perm in perms}
    return {perm: reads for perm, reads in found.items() if reads is not None}


def _last_use(
    program: Program, spec: PermutationSpec, perms: Collection[str]
) -> ValueId:
    """Returns the last value that is computed from a parameter that produces perms."""
    trunk = {m[0] for perm in perms for m in spec.members(perm) if m[2].role == "out"}
    views = parameter_views(program)
    inside = {number for number, view in views.items() if view.path in trunk}
    # Values are numbered in the order in which they are computed.
    return max(
        eqn.results[0]
        for eqn in program.equations
        if inside.intersection(x for x in eqn.operands if isinstance(x, ValueId))
    )


class _Finder:
    """Finds the taps of perms in one reading; the attributes are as in `read_taps`."""

    def __init__(
        self,
        reading: Reading,
        names: Mapping[Node, str],
        perms: Mapping[str, Perm],
        indices: Mapping[str, int],
        end: ValueId | None,
        *,
        inside: bool,
    ) -> None:
        self._reading, self._names, self._perms = reading, names, perms
        self._indices, self._end, self._inside = indices, end, inside
        self._producers = reading.program.all_producers()

    def reads(self, perm: str) -> Reads | None:
        """Returns where a perm is read; None if it lies on no readable value."""
        by_parameter = self._up_to_end(self._consumed[False].get(perm, ()), perm)
        by_data = self._up_to_end(self._consumed[True].get(perm, ()), perm)
        ends = [places[-1] for places in (by_parameter, by_data) if places]
        held = ((value,) for value in self._holders(perm))
        fallback: tuple[Tap, ...] = ()
        for place in itertools.chain(ends, held):
            taps = self._taps(perm, self._before_reductions(perm, place))
            if taps and all(self._clean(perm, tap) for tap in taps):
                return Reads(taps, self._earlier(perm, taps, by_parameter[:-1]))
            fallback = fallback or taps
        return Reads(fallback) if fallback else None

    @functools.cached_property
    def _consumed(self) -> dict[bool, dict[str, list[tuple[ValueId, ...]]]]:
        """The data operands of the products that consume each perm, in program order.

        In ``x @ w1 @ w2``, the units between the two layers are consumed by ``w2``, and
        the operand is ``x @ w1``. In ``q @ k.T`` both ``q`` and ``k`` are operands.
        True holds the products of two data values, False those with a parameter.
        """
        found: dict[bool, dict[str, list[tuple[ValueId, ...]]]] = {True: {}, False: {}}
        for pair in self._reading.ledger.contractions:
            operands = _data_operands(pair)
            if operands and all(x in self._reading.values for x in operands):
                both = pair.left_data and pair.right_data
                axis = pair.left if pair.left_data else pair.right
                for name in self._perms_on((axis,)):
                    found[both].setdefault(name, []).append(operands)
        return found

    def _up_to_end(
        self, places: Iterable[tuple[ValueId, ...]], perm: str
    ) -> list[tuple[ValueId, ...]]:
        """Returns the places within the trunk, or else the first one after it."""
        found, end = list(places), self._end
        if end is None:
            return found
        within = [x for x in found if max(x) <= end]
        if self._inside and perm in self._perms_on(self._reading.values[end].axes):
            return [*(x for x in within if x != (end,)), (end,)]
        return within or found[:1]

    def _holders(self, perm: str) -> Iterator[ValueId]:
        """Yields the data values that a perm lies on, the last one first."""
        found = self._held.get(perm, [])
        end = self._end
        inside = found if end is None else [x for x in found if x <= end]
        yield from reversed(inside or found[:1])

    @functools.cached_property
    def _held(self) -> dict[str, list[ValueId]]:
        held: dict[str, list[ValueId]] = {}
        for number, value in sorted(self._reading.values.items()):
            for name in self._perms_on(value.axes) if value.data else ():
                held.setdefault(name, []).append(number)
        return held

    def _perms_on(self, axes: Iterable[Node]) -> set[str]:
        found = (self._names.get(find(x), "") for axis in axes for x in atoms(axis))
        return {name for name in found if name in self._perms}

    def _taps(self, perm: str, values: Iterable[ValueId]) -> tuple[Tap, ...]:
        """Returns values as taps; none if a perm's units cannot be told in them."""
        try:
            taps = tuple(self._tap(value) for value in values)
        except FamilyError:
            return ()
        return taps if all(self._complete(perm, tap) for tap in taps) else ()

    def _tap(self, value: ValueId) -> Tap:
        known, indices = self._reading.values[value], self._indices

        def name_index(axis: Axis, _: Place) -> Entry:
            size = indices.get(axis.perm)
            return axis if size is None else Index(axis.perm, size)

        entries = simplified(to_entries(known.axes, self._names.get))
        sizes = {name: perm.size for name, perm in self._perms.items()}
        entries = map_axes(entries, {**sizes, **indices}, name_index)
        return Tap(value, entries, known.loops)

    def _complete(self, perm: str, tap: Tap) -> bool:
        """Returns whether the groups of a perm are wherever its units are."""
        groups = self._perms[perm].groups
        blocks = [set(map(atom_name, block)) for block in atom_blocks(tap.entries)]
        here = [block for block in blocks if perm in block]
        return bool(here) and all(block.issuperset(groups) for block in here)

    def _clean(self, perm: str, tap: Tap) -> bool:
        """Returns whether the samples of a perm's units are no units themselves."""
        groups = self._perms[perm].groups
        for block in atom_blocks(tap.entries):
            here = [x.perm for x in block if isinstance(x, Axis)]
            if perm in here and [x for x in here if x not in groups] != [perm]:
                return False
        return True

    def _earlier(
        self, perm: str, last: tuple[Tap, ...], places: list[tuple[ValueId, ...]]
    ) -> tuple[Tap, ...]:
        values = [self._before_reductions(perm, place)[0] for place in places]
        taken = {tap.value for tap in last}
        distinct = [x for x in dict.fromkeys(values) if x not in taken]
        taps = [tap for value in distinct for tap in self._taps(perm, (value,))]
        return tuple(tap for tap in taps if self._clean(perm, tap))

    def _before_reductions(
        self, perm: str, values: tuple[ValueId, ...]
    ) -> tuple[ValueId, ...]:
        """Returns the values that were reduced to these, or these themselves."""
        return tuple(self._before_reduction(perm, value) for value in values)

    def _before_reduction(self, perm: str, value: ValueId) -> ValueId:
        found = value
        for eqn in _steps_back(self._producers, value):
            source = eqn.operands[0]
            if isinstance(source, Literal) or not _may_follow_tap(self._reading, eqn):
                break
            if perm not in self._perms_on(self._reading.values[source].axes):
                break
            if eqn.primitive.name in _REDUCTIONS | _WINDOWS:
                found = source
        return found


def _data_operands(pair: Contraction) -> tuple[ValueId, ...]:
    """Returns the operands of a contraction that depend on data, each once."""
    data = (pair.left_data, pair.right_data)
    operands = itertools.compress(pair.equation.operands, data)
    return tuple(dict.fromkeys(x for x in operands if not isinstance(x, Literal)))


def _steps_back(
    producers: Mapping[ValueId, Equation], value: ValueId
) -> Iterator[Equation]:
    """Yields the equations that lead to a value, from the last back along operand 0."""
    while (eqn := producers.get(value)) is not None:
        yield eqn
        source = eqn.operands[0] if eqn.operands else Literal(None)
        if isinstance(source, Literal):
            return
        value = source


def _may_follow_tap(reading: Reading, eqn: Equation) -> bool:
    """Returns whether an equation may come between a perm's tap and its consumer."""
    name = eqn.primitive.name
    if name in ("div", "mul"):
        other = eqn.operands[1]
        return isinstance(other, Literal) or not reading.program.avals[other].shape
    if name == "broadcast_in_dim":
        # keepdims adds axes of size 1; repetition would be more than a layout change.
        before, after = _shapes(reading, eqn)
        return math.prod(before) == math.prod(after)
    if name in _WINDOWS:
        before, after = _shapes(reading, eqn)
        # Global pooling only: other pooling is part of the network between layers.
        return all(a == b or a == 1 for a, b in zip(after, before, strict=True))
    return name in _LAYOUT | _REDUCTIONS


def _shapes(reading: Reading, eqn: Equation) -> tuple[Shape, Shape]:
    """Returns the shapes of an equation's first operand, a value, and of its result."""
    source, result = eqn.operands[0], eqn.results[0]
    assert not isinstance(source, Literal)
    avals = reading.program.avals
    return tuple(avals[source].shape), tuple(avals[result].shape)


def _names_in(reading: Reading, spec: PermutationSpec) -> dict[Node, str]:
    """Returns the perm or index of a spec that each atom of a reading belongs to."""
    raw, numbers = reading.raw_entries()
    sizes = {number: atom.size for atom, number in numbers.items()}
    wanted, found = {**spec.sizes, **spec.indices}, {}
    for path, entries in raw.items():

        def note(axis: Axis, place: Place, path: str = path) -> Entry:
            name = atom_name(atom_at(spec.entries[path], spec.sizes, place))
            if name is not None and sizes[axis.perm] == wanted[name]:
                found.setdefault(axis.perm, name)
            return axis

        map_axes(entries, sizes, note)
    return {atom: found[number] for atom, number in numbers.items() if number in found}
