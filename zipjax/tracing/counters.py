"""Whole numbers that are known from the program alone, such as a loop's counter.

A loop over layers may index its stacked parameters by a counter, ``a[i]``, where others
pass them as rows of a scan. To see that iteration i reads layer i, and nothing else,
the numbers that positions are computed from are followed through the program.
"""

import dataclasses
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
    "max": np.maximum, "min": np.minimum, "rem": np.fmod, "sign": np.sign,
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal, "and": np.logical_and, "or": np.logical_or,
    "not": np.logical_not, "clamp": lambda low, x, high: np.clip(x, low, high),
    "select_n": lambda which, *cases: np.choose(which, cases, mode="clip"),
}  # fmt: skip
_UNCHANGED = {
    "convert_element_type", "copy", "reshape", "squeeze", "expand_dims",
    "broadcast_in_dim", "stop_gradient",
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
    eqn: Equation, operands: Sequence[Numbers | None], size: int
) -> Numbers | None:
    """Returns the numbers that an equation computes; None if they are not known.

    Args:
      eqn: the equation.
      operands: the numbers that it reads.
      size: number of elements of its result.
    """
    name = eqn.primitive.name
    if name == "iota":
        return Numbers(np.arange(size)) if len(eqn.params["shape"]) == 1 else None
    known = [numbers for numbers in operands if numbers is not None]
    if not known or len(known) < len(operands) or size > _LARGEST:
        return None
    loops = {id(find(x.loop)): find(x.loop) for x in known if x.loop is not None}
    if len(loops) > 1 or (loops and size != 1):
        return None
    loop = next(iter(loops.values()), None)
    if name in _UNCHANGED and (loop is not None or known[0].values.size == size):
        return Numbers(known[0].values, loop)
    if name in _ELEMENTWISE:
        return Numbers(np.asarray(_ELEMENTWISE[name](*(x.values for x in known))), loop)
    return None


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
