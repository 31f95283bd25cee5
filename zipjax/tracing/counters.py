"""Whole numbers that are known from the program alone, such as a loop's counter.

A loop over layers may index its stacked parameters by a counter, ``a[i]``, where others
pass them as rows of a scan. To see that iteration i reads layer i, and nothing else,
the numbers that positions are computed from are followed through the program.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from zipjax.program.program import Equation, Literal, Operand, Program, ValueId
from zipjax.tracing.nodes import Node, find

# Larger constants are no positions.
_LARGEST = 4096

_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative,
    "max": np.maximum, "min": np.minimum, "rem": np.fmod,
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal,
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "select_n": lambda which, *cases: np.choose(which, cases, mode="clip"),
    **dict.fromkeys(
        (
            "convert_element_type", "copy", "reshape", "squeeze", "expand_dims",
            "broadcast_in_dim", "stop_gradient",
        ),
        lambda x, *_: x,
    ),
}  # fmt: skip
# Of whole numbers these are bit by bit.
_LOGICAL: Mapping[str, Callable[..., Any]] = {
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
    """Known whole numbers: of a value, or of a value in every iteration of a scan.

    Attributes:
      values: the value as a vector; or, within a scan, the one number that it is in
        each iteration, in the order of the rows.
      loop: the axis of the iterations; None for a value that is always the same.
    """

    values: np.ndarray
    loop: Node | None = None

    def counts(self, axis: Node) -> bool:
        """Returns whether iteration i has the number i, along a whole axis."""
        same = np.array_equal(self.values, np.arange(axis.size))
        return self.loop is not None and same


def constant_numbers(array: Any) -> Numbers | None:
    """Returns the numbers in a constant; None unless they are few and whole."""
    dtype = array.dtype if hasattr(array, "dtype") else np.result_type(type(array))
    whole = dtype == np.bool_ or jnp.issubdtype(dtype, jnp.integer)
    if not whole or np.size(array) > _LARGEST:
        return None
    return Numbers(np.asarray(array, np.int64).reshape(-1))


def computed_numbers(
    eqn: Equation, operands: Sequence[Numbers | None], aval: Any
) -> Numbers | None:
    """Returns the numbers that an equation computes; None if they are not known.

    Args:
      eqn: the equation.
      operands: the numbers that it reads.
      aval: shape and dtype of its result.
    """
    size = math.prod(aval.shape)
    if eqn.primitive.name == "iota" and len(aval.shape) == 1 and size <= _LARGEST:
        return Numbers(np.arange(size))
    known = [numbers for numbers in operands if numbers is not None]
    loops = {id(find(x.loop)): find(x.loop) for x in known if x.loop is not None}
    complete = known and len(known) == len(operands) and size <= _LARGEST
    if not complete or len(loops) > 1 or (loops and size != 1):
        return None
    rules = {**_ELEMENTWISE, **(_LOGICAL if aval.dtype == np.bool_ else {})}
    rule = rules.get(eqn.primitive.name)
    loop = next(iter(loops.values()), None)
    if rule is None:
        return None
    with np.errstate(all="ignore"):
        values = np.asarray(rule(*(x.values for x in known)), np.int64)
    if aval.dtype == np.bool_:
        values = np.asarray(values != 0, np.int64)
    fits = values.size == (size if loop is None else loop.size)
    return Numbers(values, loop) if fits and _held(values, aval.dtype) else None


def _held(values: np.ndarray, dtype: Any) -> bool:
    """Returns whether a dtype holds these numbers: otherwise they would change."""
    if dtype == np.bool_:
        return True
    if not jnp.issubdtype(dtype, jnp.integer):
        return False
    bounds = jnp.iinfo(dtype)
    return bool(bounds.min <= values.min() and values.max() <= bounds.max)


def row_numbers(stacked: Numbers | None, loop: Node) -> Numbers | None:
    """Returns the numbers that the rows of a scan's input are."""
    if stacked is None or stacked.loop is not None or stacked.values.size != loop.size:
        return None
    return Numbers(stacked.values, loop)


def carried_numbers(
    body: Program,
    carried: ValueId,
    returned: Operand,
    start: Numbers | None,
    loop: Node,
    *,
    reverse: bool,
) -> Numbers | None:
    """Returns the numbers that a scan carries, if it adds a constant to them.

    Args:
      body: the scan's body.
      carried: the number within the body.
      returned: what the body returns in its place.
      start: the number before the first iteration.
      loop: the axis of the iterations, in the order of the rows.
      reverse: whether the last row comes first.
    """
    if start is None or start.loop is not None or start.values.size != 1:
        return None
    step = _step(body, carried, returned)
    if step is None:
        return None
    numbers = start.values + step * np.arange(loop.size)
    return Numbers(numbers[::-1] if reverse else numbers, loop)


def _step(body: Program, carried: ValueId, returned: Operand) -> int | None:
    """Returns the constant that a body adds to what it carries."""
    if returned == carried:
        return 0
    eqn = None if isinstance(returned, Literal) else body.producers().get(returned)
    if eqn is None or eqn.primitive.name != "add" or carried not in eqn.operands:
        return None
    constants = [x.value for x in eqn.operands if isinstance(x, Literal)]
    return int(constants[0]) if len(constants) == 1 else None
