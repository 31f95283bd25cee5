"""Taps: the value of a traced network at which a perm's activations are read.

The tap of a perm is the input of the last parameter that consumes it: after the ReLU
and after the residual sum. A global pooling right before that parameter is stepped
over, as in the reference implementations of both papers.
"""

import dataclasses
from collections.abc import Mapping

from zipjax.entries import Entries, leaf_axes
from zipjax.program import Equation, Literal, Operand, Program, ValueId
from zipjax.spec import PermutationSpec

_SAME_SHAPE = {"convert_element_type", "copy", "reduce_precision"}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min"}
_WINDOWS = {"reduce_window_sum", "reduce_window_max", "reduce_window"}


@dataclasses.dataclass(frozen=True)
class Tap:
    """A value of a program with the entries of its axes (None: samples)."""

    value: ValueId
    entries: Entries


@dataclasses.dataclass(frozen=True)
class ParameterView:
    """A value that is a parameter but for its layout.

    Attributes:
      path: the parameter.
      axes: for every axis of the value, that of the parameter, or None (broadcast).
    """

    path: str
    axes: tuple[int | None, ...]


def find_taps(program: Program, spec: PermutationSpec) -> dict[str, Tap]:
    """Finds the tap of every perm.

    Raises:
      ValueError: if a perm is consumed by no matrix product or convolution that can
        be followed to its parameter.
    """
    views = parameter_views(program)
    producers = program.producers()
    taps: dict[str, Tap] = {}
    for eqn in program.equations:
        for tap in _consumed(eqn, views, program, spec):
            for axis in (a for entry in tap.entries for a in leaf_axes(entry)):
                taps[axis.perm] = tap
    missing = [perm for perm in spec.perms if perm not in taps]
    if missing:
        consumers = {p: [m[0] for m in spec.members(p)] for p in missing}
        raise ValueError(
            f"no tap was found for the perms {missing}: none of their members "
            f"{consumers} is the operand of a matrix product or convolution that "
            "consumes it. Check the roles in the spec against the function"
        )
    return {p: _before_pooling(taps[p], producers, program) for p in spec.perms}


def parameter_views(program: Program) -> dict[ValueId, ParameterView]:
    """Follows parameters through changes of layout and dtype."""
    views = {
        number: ParameterView(path, tuple(range(len(program.avals[number].shape))))
        for path, number in program.params.items()
    }
    for eqn in program.equations:
        source = eqn.operands[0] if eqn.operands else None
        if isinstance(source, ValueId) and source in views and len(eqn.results) == 1:
            axes = _relayout(eqn, views[source].axes, program)
            if axes is not None:
                views[eqn.results[0]] = ParameterView(views[source].path, axes)
    return views


def _relayout(
    eqn: Equation, axes: tuple[int | None, ...], program: Program
) -> tuple[int | None, ...] | None:
    """Returns the axes of the result of a layout change; None for anything else."""
    name, params = eqn.primitive.name, eqn.params
    shape = program.avals[eqn.results[0]].shape
    if name in _SAME_SHAPE:
        return axes
    if name == "transpose":
        return tuple(axes[k] for k in params["permutation"])
    if name == "broadcast_in_dim":
        placed = dict(zip(params["broadcast_dimensions"], axes, strict=True))
        return tuple(placed.get(k) for k in range(len(shape)))
    if name in ("reshape", "squeeze", "expand_dims"):
        before = _shape(eqn.operands[0], program)
        return _match_ones(before, shape, axes)
    return None


def _match_ones(before: tuple, after: tuple, axes: tuple) -> tuple | None:
    """Carries ``axes`` through a reshape that only adds or drops axes of size 1."""
    kept = [axis for axis, size in zip(axes, before, strict=True) if size != 1]
    if [n for n in before if n != 1] != [n for n in after if n != 1]:
        return None
    rest = iter(kept)
    return tuple(None if size == 1 else next(rest) for size in after)


def _consumed(
    eqn: Equation,
    views: Mapping[ValueId, ParameterView],
    program: Program,
    spec: PermutationSpec,
) -> list[Tap]:
    """Lists what an equation consumes through a parameter."""
    taps = []
    for number, operand in enumerate(eqn.operands[:2]):
        other = eqn.operands[1 - number] if len(eqn.operands) == 2 else None
        if not isinstance(operand, ValueId) or not isinstance(other, ValueId):
            continue
        if operand not in views:
            continue
        view = views[operand]
        entries: list = [None] * len(_shape(other, program))
        for mine, theirs in _contracted(eqn, number):
            axis = view.axes[mine]
            entry = None if axis is None else spec.axes[view.path][axis]
            if any(leaf.role == "in" for leaf in leaf_axes(entry)):
                entries[theirs] = entry
        if any(entries):
            taps.append(Tap(other, tuple(entries)))
    return taps


def _contracted(eqn: Equation, number: int) -> list[tuple[int, int]]:
    """Pairs the contracted axes of operand ``number`` with those of the other one."""
    if eqn.primitive.name == "dot_general":
        contract, _ = eqn.params["dimension_numbers"]
        return list(zip(contract[number], contract[1 - number], strict=True))
    if eqn.primitive.name == "conv_general_dilated" and number == 1:
        layout = eqn.params["dimension_numbers"]
        return [(layout.rhs_spec[1], layout.lhs_spec[1])]
    return []


def _before_pooling(
    tap: Tap, producers: Mapping[ValueId, Equation], program: Program
) -> Tap:
    """Steps back over reductions that keep the unit axis."""
    found, current = tap, tap
    while (eqn := producers.get(current.value)) is not None:
        step = _step_back(eqn, current, program)
        if step is None:
            break
        current = step
        if eqn.primitive.name in _REDUCTIONS | _WINDOWS:
            found = current
    return found


def _step_back(eqn: Equation, tap: Tap, program: Program) -> Tap | None:
    """Returns the operand of a reduction, scaling or layout change as a tap."""
    name, source = eqn.primitive.name, eqn.operands[0]
    if not isinstance(source, ValueId):
        return None
    shape, entries = _shape(source, program), tap.entries
    if name in _SAME_SHAPE or (name in ("div", "mul") and _scalar(eqn.operands[1])):
        return Tap(source, entries) if len(shape) == len(entries) else None
    if name in _REDUCTIONS:
        rest = iter(entries)
        dropped = eqn.params["axes"]
        return Tap(
            source,
            tuple(None if k in dropped else next(rest) for k in range(len(shape))),
        )
    if name in _WINDOWS:
        after = program.avals[tap.value].shape
        pooled = [k for k in range(len(shape)) if shape[k] != after[k]]
        glob = all(after[k] == 1 and entries[k] is None for k in pooled)
        return Tap(source, entries) if glob else None
    if name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim"):
        back = _match_ones(program.avals[tap.value].shape, shape, entries)
        return None if back is None else Tap(source, back)
    return None


def _scalar(operand: Operand) -> bool:
    return isinstance(operand, Literal)


def _shape(operand: Operand, program: Program) -> tuple[int, ...]:
    if isinstance(operand, Literal):
        return tuple(getattr(operand.value, "shape", ()))
    return tuple(program.avals[operand].shape)
