"""Merge and unmerge matrices from an assignment (ZipIt!, Section 3)."""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Int

from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import Array

Assignments: TypeAlias = Mapping[str, Int[np.ndarray, "*_groups _total"]]
"""The merged unit of every unit, by perm; of nested perms, by merged group."""

_KEPT = 1 << 28  # Bytes of the matrices that are kept.


def merge_matrices(
    assignment: Int[np.ndarray, "total"], num_models: int
) -> tuple[Float[np.ndarray, "units total"], Float[np.ndarray, "total units"]]:
    """Returns M and U of an assignment, in float32 (float64 under x64).

    M averages the units that go to one merged unit; U copies a merged unit to each of
    them. The rows of M sum to 1, U is one-hot and M U = I, all exactly: the weights
    1/k are rounded to multiples of 2^-23 (2^-52) in such a way that they sum to 1.

    Args:
      assignment: for each of the N*n units the merged unit it goes to, ``[N*n]``.
      num_models: number of models N.

    Returns:
      M ``[units, N*n]`` and U ``[N*n, units]``.

    Raises:
      ValueError: if the assignment is not a vector of integers whose length N divides,
        or leaves a merged unit out.
    """
    assignment = _checked(assignment, num_models)
    used = assignment.max(initial=-1) + 1
    units = np.arange(assignment.size)
    weights = _equal_weights(assignment)
    unmerge = np.zeros((assignment.size, used), weights.dtype)
    unmerge[units, assignment] = 1
    merge = np.zeros((used, assignment.size), weights.dtype)
    merge[assignment, units] = weights
    return merge, unmerge


class ModelMatrices(Mapping[str, tuple[Array, Array]]):
    """M and U by perm, made when they are asked for; see :func:`model_matrices`.

    All of a large network's together can take more memory than its weights: those
    asked for last are kept, as far as they are small.
    """

    def __init__(self, targets: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        self._targets = dict(targets)
        self._kept: dict[str, tuple[Array, Array]] = {}

    def __getitem__(self, perm: str) -> tuple[Array, Array]:
        found = self._kept.pop(perm, None) or _dense(*self._targets[perm])
        self._kept[perm] = found
        while len(self._kept) > 1 and self._kept_bytes() > _KEPT:
            self._kept.pop(next(iter(self._kept)))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def widths(self) -> dict[str, int]:
        """Returns the number of merged units by perm."""
        return {perm: _width(merged) for perm, (merged, _) in self._targets.items()}

    def _kept_bytes(self) -> int:
        return sum(array.nbytes for pair in self._kept.values() for array in pair)


def _dense(
    merged: Int[np.ndarray, "models *groups n"],
    weights: Float[np.ndarray, "models *groups n"],
) -> tuple[Array, Array]:
    one_hot = merged[..., None] == np.arange(_width(merged))
    merge = np.swapaxes(one_hot * weights[..., None], -1, -2)
    # Unlike jnp.asarray, this compiles nothing.
    return jax.device_put((merge, one_hot.astype(merge.dtype)))


def _width(merged: Int[np.ndarray, "models *groups n"]) -> int:
    return int(merged.max()) + 1


def model_matrices(
    assignments: Assignments, spec: PermutationSpec, num_models: int
) -> ModelMatrices:
    """Returns M and U of every model and assigned perm.

    Args:
      assignments: ``{perm: assignment [*groups, N*n]}``. The groups of a nested perm
        are the merged ones: row k says where the units go of those groups of the
        models that were merged to group k, ``n`` units of each model.
      spec: the permutation spec, of the models or with merged widths.
      num_models: number of models N.

    Returns:
      ``{perm: (M [models, *groups, units, n], U [models, *groups, n, units])}``, where
      the groups are in each model's own order.
    """
    return ModelMatrices(
        {
            perm: unit_targets(assignments, spec, perm, num_models)
            for perm in assignments
        }
    )


def unit_targets(
    assignments: Assignments, spec: PermutationSpec, perm: str, num_models: int
) -> tuple[Int[np.ndarray, "models *groups n"], Float[np.ndarray, "models *groups n"]]:
    """Returns what M and U hold besides zeros: where units go, and with what weights.

    Args:
      assignments: as for :func:`model_matrices`.
      spec: the permutation spec.
      perm: the perm.
      num_models: number of models N.

    Returns:
      The merged unit that each unit goes to, and the unit's weight in its average; the
      groups are in each model's own order.

    Raises:
      ValueError: as :func:`merge_matrices`, or if merged groups have several widths.
    """
    table = [_checked(row, num_models) for row in _flat_rows(assignments[perm])]
    widths = {int(row.max()) + 1 for row in table}
    if len(widths) > 1:
        raise ValueError(
            f"the assignment of perm {perm!r} has {sorted(widths)} merged units in its "
            "groups: merged groups need one width"
        )
    rows = _assignment_rows(assignments, spec, perm, num_models)
    models = _model_numbers(rows)

    def of_models(values: list[np.ndarray]) -> np.ndarray:
        return np.stack(values).reshape(len(table), num_models, -1)[rows, models]

    return of_models(table), of_models([_equal_weights(row) for row in table])


def merged_units(
    assignments: Assignments, spec: PermutationSpec, perm: str, num_models: int
) -> Int[np.ndarray, "total"]:
    """Returns the merged unit of every unit of all groups, numbered group by group.

    Args:
      assignments: as for :func:`model_matrices`.
      spec: the permutation spec.
      perm: the perm.
      num_models: number of models N.

    Returns:
      ``[N * groups * n]``, in the order of the units of moments.
    """
    rows = _assignment_rows(assignments, spec, perm, num_models)
    table = _flat_rows(assignments[perm])
    units = table.reshape(len(table), num_models, -1)
    merged = rows[..., None] * (table.max() + 1) + units[rows, _model_numbers(rows)]
    return merged.reshape(-1)


def _checked(
    assignment: Int[np.ndarray, "total"], num_models: int
) -> Int[np.ndarray, "total"]:
    """Returns an assignment if it is one; see :func:`merge_matrices`."""
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
    return assignment


def _assignment_rows(
    assignments: Assignments, spec: PermutationSpec, perm: str, num_models: int
) -> Int[np.ndarray, "models *groups"]:
    """Returns for each model's groups the row of the assignment that is about them.

    Rows are those of :func:`_flat_rows`, one per combination of merged groups. For
    example, with two heads that the second model has in the other order, matched as
    ``assignments["heads"] == [0, 1, 1, 0]``, a perm within the heads has the rows
    ``[[0, 1], [1, 0]]``: row 0 is about head 0 of model 0 and head 1 of model 1. A
    perm without groups has the single row 0 for every model.
    """
    groups, sizes = spec.perms[perm].groups, spec.group_sizes(perm)
    models = np.arange(num_models).reshape(-1, *[1] * len(sizes))
    merged: dict[str, np.ndarray] = {}  # The merged group of each model's own group.
    for number, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        shape = [1] * (1 + len(sizes))
        shape[1 + number] = size
        own = np.arange(size).reshape(shape)
        if group in assignments:
            # A group that lies in others has an assignment for each merged one.
            outer = tuple(merged[name] for name in spec.perms[group].groups)
            own = assignments[group][(*outer, models * size + own)]
        merged[group] = own
    rows = np.zeros((num_models, *sizes), int)
    for group, size in zip(groups, sizes, strict=True):
        rows = rows * size + merged[group]
    return rows


def _model_numbers(rows: Int[np.ndarray, "models *groups"]) -> np.ndarray:
    """Returns each model's number, to index beside its rows."""
    return np.arange(len(rows)).reshape(-1, *[1] * (rows.ndim - 1))


def _flat_rows(
    assignment: Int[np.ndarray, "*groups total"],
) -> Int[np.ndarray, "rows total"]:
    """Returns an assignment as a table: one row per combination of merged groups."""
    return np.reshape(assignment, (-1, np.shape(assignment)[-1]))


def _equal_weights(
    assignment: Int[np.ndarray, "total"],
) -> Float[np.ndarray, "total"]:
    """Returns each unit's weight in its merged unit: 1/k up to rounding, with sum 1."""
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    # Weights are multiples of this: sums below 1 are then exact in any order.
    quantum = float(np.finfo(dtype).eps)
    one = round(1 / quantum)
    counts = np.bincount(assignment)
    order = np.argsort(assignment, kind="stable")
    ranks = np.empty_like(order)
    starts = np.cumsum(counts) - counts
    ranks[order] = np.arange(order.size) - np.repeat(starts, counts)
    # The first members take the quanta that do not divide.
    quanta = one // counts[assignment] + (ranks < (one % counts)[assignment])
    return (quanta * quantum).astype(dtype)
