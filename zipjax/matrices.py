"""Merge and unmerge matrices from an assignment (ZipIt!, Section 3)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from zipjax.types import Array

# Weights are multiples of this: sums of float32 below 1 are then exact in any order.
_QUANTUM = 2.0**-23


def merge_matrices(
    assignment: Int[np.ndarray, "total"], num_models: int
) -> tuple[Float[np.ndarray, "units total"], Float[np.ndarray, "total units"]]:
    """Returns M and U of an assignment, in float32.

    M averages the units that go to one merged unit; U copies a merged unit to each of
    them. The rows of M sum to 1, U is one-hot and M U = I, all exactly: the weights
    1/k are rounded to multiples of 2^-23 in such a way that they sum to 1.

    Args:
      assignment: for each of the N*n units the merged unit it goes to, ``[N*n]``.
      num_models: number of models N.

    Returns:
      M ``[units, N*n]`` and U ``[N*n, units]``.

    Raises:
      ValueError: if the assignment is no vector of integers whose length N divides, or
        leaves a merged unit out.
    """
    assignment = np.asarray(assignment)
    if (
        assignment.ndim != 1
        or not np.issubdtype(assignment.dtype, np.integer)
        or num_models < 1
        or assignment.size % num_models
    ):
        raise ValueError(
            f"an assignment is a vector of N*n integers, got {assignment.dtype} of "
            f"shape {list(assignment.shape)} for N = {num_models} models"
        )
    used = np.unique(assignment)
    if not np.array_equal(used, np.arange(used.size)):
        raise ValueError(
            f"an assignment numbers the merged units from 0 without gaps, but it uses "
            f"{used.tolist()}"
        )
    unmerge = np.zeros((assignment.size, used.size), np.float32)
    unmerge[np.arange(assignment.size), assignment] = 1
    merge = np.zeros((used.size, assignment.size), np.float32)
    for unit in used:
        (members,) = np.nonzero(assignment == unit)
        merge[unit, members] = _equal_weights(members.size)
    return merge, unmerge


def model_matrices(
    assignment: Int[np.ndarray, "total"], num_models: int
) -> tuple[Float[Array, "models units n"], Float[Array, "models n units"]]:
    """Returns the blocks M_i and U_i of every model, stacked."""
    merge, unmerge = merge_matrices(assignment, num_models)
    units = merge.shape[0]
    blocks = merge.reshape(units, num_models, -1).transpose(1, 0, 2)
    return jnp.asarray(blocks), jnp.asarray(unmerge.reshape(num_models, -1, units))


def _equal_weights(count: int) -> Float[np.ndarray, "count"]:
    """Returns k weights that are 1/k up to 2^-23 and sum to exactly 1."""
    quanta = np.full(count, int(1 / _QUANTUM) // count)
    quanta[: int(1 / _QUANTUM) % count] += 1
    return (quanta * _QUANTUM).astype(np.float32)
