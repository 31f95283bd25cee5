"""Values of a traced network that are parameters in another layout or dtype."""

import dataclasses
from typing import Any

import jax
import numpy as np

from zipjax.program.program import Equation, Literal, Operand, Program, ValueId
from zipjax.types import AnyArray, Array

Axes = tuple[int | None, ...]
"""For every axis of a value, the number of the parameter's axis; None for neither."""
Part = tuple[tuple[int, int], ...]
"""A part of a stack: ``(axis, position)`` for every axis with a fixed position."""

_SAME_SHAPE = {"convert_element_type", "copy", "reduce_precision"}


@dataclasses.dataclass(frozen=True)
class ParameterView:
    """A value that is a parameter in another layout.

    Attributes:
      path: the parameter.
      axes: for every axis of the value, the number of the parameter's axis; None if the
        parameter is broadcast along it. A bias ``[8]`` broadcast to ``[1, 4, 8]`` has
        the axes ``(None, None, 0)``.
      part: the part that was selected by constant indices, as by ``w[0]``; empty if the
        value is the whole parameter.
    """

    path: str
    axes: Axes
    part: Part = ()


def parameter_views(program: Program) -> dict[ValueId, ParameterView]:
    """Returns all views, found by following parameters through layout changes."""
    views = {
        number: ParameterView(path, tuple(range(len(program.avals[number].shape))))
        for path, number in program.params.items()
    }
    for eqn in program.equations:
        source = eqn.operands[0] if eqn.operands else None
        if isinstance(source, ValueId) and source in views and len(eqn.results) == 1:
            view = views[source]
            axes = relayout(eqn, view.axes, program)
            if axes is not None:
                # Of axes of size 1 that are dropped, the only element is selected.
                lost = {x for x in view.axes if x is not None} - {*axes}
                part = tuple(sorted([*view.part, *((axis, 0) for axis in lost)]))
                views[eqn.results[0]] = ParameterView(view.path, axes, part)
            elif selected := _selected(eqn, view, program):
                views[eqn.results[0]] = selected
    return views


def selected_part(leaf: AnyArray, part: Part) -> AnyArray:
    """Returns a part of a parameter, without the axes at which it is selected."""
    return leaf[_index(part)]


def replaced_part(leaf: AnyArray, part: Part, new: AnyArray) -> Array:
    """Returns a parameter with a part replaced; on the host, where nothing compiles."""
    whole = np.array(leaf)
    whole[_index(part)] = new
    return jax.device_put(whole)


def _index(part: Part) -> tuple[Any, ...]:
    chosen = dict(part)
    count = max(chosen, default=-1) + 1
    return tuple(chosen.get(k, slice(None)) for k in range(count))


def _selected(
    eqn: Equation, view: ParameterView, program: Program
) -> ParameterView | None:
    """Returns the result of a slice that selects elements of some axes."""
    if eqn.primitive.name != "slice":
        return None
    before, after = (_shape(x, program) for x in (eqn.operands[0], eqn.results[0]))
    cut = [k for k, (n, m) in enumerate(zip(before, after, strict=True)) if n != m]
    starts, part = eqn.params["start_indices"], dict(view.part)
    for k in cut:
        if after[k] != 1 or (axis := view.axes[k]) is None:
            return None
        part[axis] = starts[k]
    axes = tuple(None if k in cut else axis for k, axis in enumerate(view.axes))
    return ParameterView(view.path, axes, tuple(sorted(part.items())))


def relayout(eqn: Equation, axes: Axes, program: Program) -> Axes | None:
    """Returns the axes of a layout change's result; None for any other equation.

    Args:
      eqn: the equation.
      axes: those of its operand.
      program: the program that it belongs to.
    """
    name, params = eqn.primitive.name, eqn.params
    shape = program.avals[eqn.results[0]].shape
    if name in _SAME_SHAPE:
        return axes
    if name == "transpose":
        return tuple(axes[k] for k in params["permutation"])
    if name == "broadcast_in_dim":
        before = _shape(eqn.operands[0], program)
        # An axis of size 1 that is repeated is no longer the parameter's.
        placed = {
            k: axis
            for k, axis, size in zip(
                params["broadcast_dimensions"], axes, before, strict=True
            )
            if size == shape[k]
        }
        return tuple(placed.get(k) for k in range(len(shape)))
    if name in ("reshape", "squeeze", "expand_dims"):
        before = _shape(eqn.operands[0], program)
        return _match_ones(before, shape, axes)
    return None


def _match_ones(before: tuple, after: tuple, axes: Axes) -> Axes | None:
    """Returns ``axes`` after a reshape that only adds or drops axes of size 1."""
    kept = [axis for axis, size in zip(axes, before, strict=True) if size != 1]
    if [n for n in before if n != 1] != [n for n in after if n != 1]:
        return None
    rest = iter(kept)
    return tuple(None if size == 1 else next(rest) for size in after)


def _shape(operand: Operand, program: Program) -> tuple[int, ...]:
    if isinstance(operand, Literal):
        return tuple(getattr(operand.value, "shape", ()))
    return tuple(program.avals[operand].shape)
