"""Values of a traced network that are parameters in another layout or dtype."""

import dataclasses

from zipjax.program.program import Equation, Literal, Operand, Program, ValueId

_SAME_SHAPE = {"convert_element_type", "copy", "reduce_precision"}


@dataclasses.dataclass(frozen=True)
class ParameterView:
    """A value that is a parameter in another layout.

    Attributes:
      path: the parameter.
      axes: for every axis of the value, the number of the parameter's axis; None if the
        parameter is broadcast along it. A bias ``[8]`` broadcast to ``[1, 4, 8]`` has
        the axes ``(None, None, 0)``.
    """

    path: str
    axes: tuple[int | None, ...]


def parameter_views(program: Program) -> dict[ValueId, ParameterView]:
    """Returns all views, found by following parameters through layout changes."""
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
    """Returns the axes of a layout change's result; None for any other equation."""
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
