"""Taps of perms, from the axes of all values of a reading.

The tap of a perm is the input of the last parameter that consumes it, or, where it is
consumed by another value only (queries by keys), the two of them.
Reductions right before it, such as a global average pooling, are stepped over.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping

from zipjax.program.parameter_views import parameter_views
from zipjax.program.program import Equation, Literal, Program, ValueId
from zipjax.spec.entries import Axis, Entries, Entry
from zipjax.spec.permutation_spec import PermutationSpec
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

_LAYOUT = {
    "convert_element_type", "copy", "reduce_precision", "reshape", "squeeze",
    "transpose", "stop_gradient",
}  # fmt: skip
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min"}
_WINDOWS = {"reduce_window_sum", "reduce_window_max", "reduce_window"}


@dataclasses.dataclass(frozen=True)
class Tap:
    """A value of a program with the entries of its axes (None: samples)."""

    value: ValueId
    entries: Entries


Taps = dict[str, tuple[Tap, ...]]
"""The taps of every perm: one, or both operands of a product of two values."""


def find_taps(
    program: Program, spec: PermutationSpec, perms: Collection[str] | None = None
) -> Taps:
    """Finds the taps of a spec's perms.

    Args:
      program: the traced function.
      spec: its spec, inferred or declared.
      perms: the perms of a trunk, which other functions have, too. They are read where
        all of these read them: as long as the trunk is computed, or else by the first
        parameter behind it. By default all perms, wherever they are read last.

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
    """Finds the taps of the perms that atoms of a reading belong to.

    Args:
      reading: a reading of a program.
      names: the atoms' perms.
      end: the last value of the trunk, if it counts where that ends.
    """
    places = {
        **_places(reading, end, mixed=True),
        **_places(reading, end, mixed=False),
    }
    producers = reading.program.producers()
    taps = {}
    for atom, operands in places.items():
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
    """Returns the last value that is computed from a producer of the perms."""
    trunk = {m[0] for perm in perms for m in spec.members(perm) if m[2].role == "out"}
    views = parameter_views(program)
    inside = {number for number, view in views.items() if view.path in trunk}
    # Values are numbered in the order in which they are computed.
    return max(
        eqn.results[0]
        for eqn in program.equations
        if inside.intersection(x for x in eqn.operands if isinstance(x, ValueId))
    )


def _places(
    reading: Reading, end: ValueId | None, *, mixed: bool
) -> dict[Node, tuple[ValueId, ...]]:
    """Returns the values as which each atom is last consumed.

    Args:
      reading: a reading of the program.
      end: a value behind which only the first one counts.
      mixed: whether by another value that depends on data; else by a parameter.
    """
    found: dict[Node, tuple[ValueId, ...]] = {}
    for pair in reading.ledger.contractions:
        if pair.equation is None or mixed != (pair.left_data and pair.right_data):
            continue
        sides = [k for k, data in enumerate((pair.left_data, pair.right_data)) if data]
        operands = [pair.equation.operands[k] for k in sides]
        values = tuple(dict.fromkeys(x for x in operands if not isinstance(x, Literal)))
        behind = end is not None and pair.equation.results[0] > end
        for atom in atoms((pair.left, pair.right)[sides[0]]) if values else ():
            if not (behind and find(atom) in found):
                found[find(atom)] = values
    return found


def _before_reductions(
    reading: Reading, producers: Mapping[ValueId, Equation], atom: Node, value: ValueId
) -> ValueId:
    found = value
    for eqn in _steps_back(producers, value):
        source = eqn.operands[0]
        if isinstance(source, Literal) or not _steps(reading, eqn):
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
    while (eqn := producers.get(value)) is not None:
        yield eqn
        source = eqn.operands[0] if eqn.operands else Literal(None)
        if isinstance(source, Literal):
            return
        value = source


def _steps(reading: Reading, eqn: Equation) -> bool:
    """Returns whether an equation may stand between a perm's tap and its consumer."""
    name = eqn.primitive.name
    if name in ("div", "mul"):
        other = eqn.operands[1]
        return isinstance(other, Literal) or not reading.values[other].axes
    if name == "broadcast_in_dim":
        # Axes of size 1 that keepdims leaves behind; repetition is more than layout.
        sizes = [math.prod(reading.program.avals[n].shape) for n in _ends(eqn)]
        return sizes[0] == sizes[-1]
    if name in _WINDOWS:
        before, after = (reading.program.avals[n].shape for n in _ends(eqn))
        # Only a global pooling: others are part of the network between its layers.
        return all(a == b or a == 1 for a, b in zip(after, before, strict=True))
    return name in _LAYOUT | _REDUCTIONS


def _ends(eqn: Equation) -> list[ValueId]:
    sources = [x for x in eqn.operands[:1] if not isinstance(x, Literal)]
    return [*sources, eqn.results[0]]


def _names_in(reading: Reading, spec: PermutationSpec) -> dict[Node, str]:
    """Finds the perm of a spec that each atom of a reading belongs to."""
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
