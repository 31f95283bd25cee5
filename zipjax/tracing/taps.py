"""Taps: the values of a program at which the units of perms are read.

The tap of a perm is the input of the last parameter that consumes it. A perm that is
consumed by another value only (queries by keys) has two taps, both operands of that
product. Reductions right before a tap, such as a global average pooling, are skipped:
the tap is the value that they reduce.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Mapping

from zipjax.program.parameter_views import parameter_views
from zipjax.program.program import Equation, Literal, Program, ValueId
from zipjax.spec.entries import Axis, Entries, Entry
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.tracing.ledger import Contraction
from zipjax.tracing.node_entries import (
    FamilyError,
    Place,
    axis_at,
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
    """A value of a program with the entries of its axes, None for samples."""

    value: ValueId
    entries: Entries


Taps = dict[str, tuple[Tap, ...]]
"""The taps of every perm, by name: one, or both operands of a product of values."""


def find_taps(
    program: Program, spec: PermutationSpec, perms: Collection[str] | None = None
) -> Taps:
    """Returns the taps of a spec's perms.

    Args:
      program: the traced function.
      spec: its spec, inferred or declared.
      perms: the perms of a trunk that several functions share. To be the same in all of
        them, the taps are then within the trunk, or, failing that, at the first
        consumer after it. By default all perms, at their last consumers.

    Raises:
      ValueError: for perms that no product outside of loops consumes.
    """
    reading = Reading(program)
    end = None if perms is None else _last_use(program, spec, perms)
    taps = read_taps(reading, _names_in(reading, spec), end)
    wanted = [perm for perm in spec.perms if perms is None or perm in perms]
    missing = [perm for perm in wanted if perm not in taps]
    if missing:
        consumers = {p: [m[0] for m in spec.members(p)] for p in missing}
        raise ValueError(
            f"no tap was found for the perms {missing}: none of their members "
            f"{consumers} is the operand of a matrix product or convolution that "
            "consumes it, outside of loops. Check the roles in the spec against the "
            "function; unroll loops over layers"
        )
    return {perm: taps[perm] for perm in wanted}


def read_taps(
    reading: Reading, names: Mapping[Node, str], end: ValueId | None = None
) -> Taps:
    """Returns the taps of perms, given by the atoms that belong to them.

    Args:
      reading: a reading of a program.
      names: the perm of every atom that belongs to one.
      end: the last value of a trunk, if the taps must be those of the trunk.
    """
    # Consumers that are parameters take precedence.
    consumed = {
        **_last_consumed(reading, end, by_data=True),
        **_last_consumed(reading, end, by_data=False),
    }
    producers = reading.program.producers()
    taps = {}
    for atom, operands in consumed.items():
        if atom in names:
            before = [_before_reductions(reading, producers, atom, x) for x in operands]
            try:
                taps[names[atom]] = tuple(
                    Tap(x, simplified(to_entries(reading.values[x].axes, names.get)))
                    for x in before
                )
            except FamilyError:
                continue
    return taps


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


def _last_consumed(
    reading: Reading, end: ValueId | None, *, by_data: bool
) -> dict[Node, tuple[ValueId, ...]]:
    """Returns, for each atom, the data operands of the product that consumes it last.

    In ``x @ w1 @ w2``, the units between the two layers are consumed by ``w2``, and the
    operand is ``x @ w1``. In ``q @ k.T`` both ``q`` and ``k`` are operands.

    Args:
      reading: a reading of the program.
      end: the last value of a trunk. Products after it count only for atoms that no
        product before them consumes, and of these the first one counts.
      by_data: whether to look at products of two values that depend on data, or else at
        products of one such value and a parameter.
    """
    found: dict[Node, tuple[ValueId, ...]] = {}
    for pair in reading.ledger.contractions:
        operands = _data_operands(pair)
        both = pair.left_data and pair.right_data
        if pair.equation is None or both != by_data or not operands:
            continue
        after_end = end is not None and pair.equation.results[0] > end
        axis = pair.left if pair.left_data else pair.right
        for atom in map(find, atoms(axis)):
            if not (after_end and atom in found):
                found[atom] = operands
    return found


def _data_operands(pair: Contraction) -> tuple[ValueId, ...]:
    """Returns the operands of a contraction that depend on data, each once."""
    if pair.equation is None:
        return ()
    data = (pair.left_data, pair.right_data)
    operands = itertools.compress(pair.equation.operands, data)
    return tuple(dict.fromkeys(x for x in operands if not isinstance(x, Literal)))


def _before_reductions(
    reading: Reading, producers: Mapping[ValueId, Equation], atom: Node, value: ValueId
) -> ValueId:
    """Returns the value that was reduced to ``value``, or ``value`` itself."""
    found = value
    for eqn in _steps_back(producers, value):
        source = eqn.operands[0]
        if isinstance(source, Literal) or not _may_follow_tap(reading, eqn):
            break
        axes = reading.values[source].axes
        if atom not in {find(node) for axis in axes for node in atoms(axis)}:
            break
        if eqn.primitive.name in _REDUCTIONS | _WINDOWS:
            found = source
    return found


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
        return isinstance(other, Literal) or not reading.values[other].axes
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
    """Returns the perm of a spec that each atom of a reading belongs to."""
    raw, numbers = reading.raw_entries()
    sizes = {number: atom.size for atom, number in numbers.items()}
    perms: dict[str, str] = {}
    for path, entries in raw.items():

        def note(axis: Axis, place: Place, path: str = path) -> Entry:
            there = axis_at(spec.entries[path], spec.sizes, place)
            if there is not None and sizes[axis.perm] == spec.sizes[there.perm]:
                perms.setdefault(axis.perm, there.perm)
            return axis

        map_axes(entries, sizes, note)
    return {atom: perms[number] for atom, number in numbers.items() if number in perms}
