"""The matcher that permutes the units of every model to fit those of the others."""

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from zipjax.matching.inputs import check_similarity, symmetric_copy

Reference: TypeAlias = Literal["first", "all"]

_Matrix = Float64[np.ndarray, "units units"]
_Members = Int64[np.ndarray, "models merged"]
"""Row i, column m: the unit of model i that is part of merged unit m."""

# Sums of similarities count as equal if they differ by less than this times their
# largest possible value, so that rounding alone never looks like a gain.
_ROUNDING = 1e-12


def match_align(
    similarity: ArrayLike, num_models: int, *, reference: Reference = "first"
) -> Int64[np.ndarray, " units"]:
    """Returns a permutation per model such that matched units are most similar.

    ``reference="first"`` aligns every model with model 0: for each, the permutation
    that maximises the sum of the similarities of matched units is found exactly
    (Hungarian method). This is the "Permute" baseline of ZipIt! (Section 4) and the
    matching step of Git Re-Basin.

    ``reference="all"`` maximises that sum over all pairs of models, so that the order
    of the models does not matter (ties aside). With more than two models this is
    NP-hard, and coordinate ascent is used: starting from the alignments with each model
    in turn, one model at a time is aligned with all others. The sum is at least that of
    ``"first"``, whichever model comes first. For two models the two are the same.

    Merged unit k consists of unit k of model 0 and the units that are matched to it.
    For example, with two models whose units are most similar in reverse order:

    >>> similarity = np.eye(6)[:, ::-1]
    >>> match_align(similarity, 2).tolist()
    [0, 1, 2, 2, 1, 0]

    Args:
      similarity: ``[N*n, N*n]``, larger for more similar units. With ``"first"`` only
        the rows of model 0 are read, so it need not be symmetric; with ``"all"`` it
        must be.
      num_models: number of models, N.
      reference: whether each model is aligned with the ``"first"`` or with ``"all"``.

    Returns:
      The assignment ``[N*n]``: a permutation of ``0..n-1`` for every model.

    Raises:
      ValueError: if ``similarity`` is not a square, finite (for ``"all"`` also
        symmetric) matrix with the same number of units for each model, or if
        ``reference`` is neither of the two.
    """
    matrix, units = check_similarity(similarity, num_models)
    if reference == "first":
        members = _aligned_with(0, matrix, num_models, units)
    elif reference == "all":
        members = _aligned_with_all(symmetric_copy(matrix), num_models, units)
    else:
        raise ValueError(
            f"reference={reference!r}, but models are aligned with the 'first' or with "
            "'all' others: pass one of these"
        )
    return _assignment(members)


def _aligned_with(model: int, matrix: _Matrix, num_models: int, units: int) -> _Members:
    """Returns every model's best alignment with the given one."""
    rows = matrix[model * units : (model + 1) * units]
    blocks = rows.reshape(units, num_models, units).swapaxes(0, 1)
    members = [linear_sum_assignment(block, maximize=True)[1] for block in blocks]
    members[model] = np.arange(units)
    return np.array(members, dtype=np.int64)


def _aligned_with_all(matrix: _Matrix, num_models: int, units: int) -> _Members:
    """Returns the best of the ascents from the alignments with each model."""
    starts = [_aligned_with(m, matrix, num_models, units) for m in range(num_models)]
    totals = [_star_total(start, model, matrix) for model, start in enumerate(starts)]
    # The order of the models must not matter, so similarities decide the order here.
    sweep = np.argsort(totals, kind="stable")
    ends = [_ascend(start, matrix, sweep) for start in starts]
    totals = [_total(end, matrix) for end in ends]
    # Rounding must not decide between equal ends: the first of them wins.
    best = max(totals) - _tolerance(matrix) * num_models
    return next(end for end, total in zip(ends, totals, strict=True) if total >= best)


def _ascend(
    members: _Members, matrix: _Matrix, sweep: Int64[np.ndarray, " models"]
) -> _Members:
    """Aligns one model after another with all others until nothing changes."""
    members = members.copy()
    unchanged = 0
    tolerance = _tolerance(matrix)
    while unchanged < len(sweep):
        for model in sweep.tolist():
            gains = _similarity_with_others(model, members, matrix)
            merged, units = linear_sum_assignment(gains, maximize=True)
            gain = gains[merged, units].sum() - gains[merged, members[model]].sum()
            unchanged = 0 if gain > tolerance else unchanged + 1
            if gain > tolerance:
                members[model] = units
    return members


def _similarity_with_others(
    model: int, members: _Members, matrix: _Matrix
) -> Float64[np.ndarray, "merged merged"]:
    """Returns how similar a model's units are to every merged unit without the model.

    The similarity ``[merged unit, unit]`` is a sum over the other models.
    """
    num_models, units = members.shape
    columns = matrix[:, model * units : (model + 1) * units]
    total = np.zeros((units, units))
    for other in range(num_models):
        if other != model:
            total += columns[other * units + members[other]]
    return total


def _total(members: _Members, matrix: _Matrix) -> float:
    """Returns the sum of matched units' similarities over all pairs of models."""
    num_models, units = members.shape
    unit = members + units * np.arange(num_models)[:, None]
    first, second = np.triu_indices(num_models, 1)
    return float(matrix[unit[first], unit[second]].sum())


def _star_total(members: _Members, model: int, matrix: _Matrix) -> float:
    """Returns the sum of matched units' similarities over the pairs with one model."""
    num_models, units = members.shape
    unit = members + units * np.arange(num_models)[:, None]
    others = np.delete(unit, model, axis=0)
    return float(matrix[unit[model], others].sum())


def _tolerance(matrix: _Matrix) -> float:
    return _ROUNDING * len(matrix) * float(np.abs(matrix).max())


def _assignment(members: _Members) -> Int64[np.ndarray, " units"]:
    """Returns the assignment, with merged units numbered by their unit of model 0."""
    merged = np.argsort(members, axis=1)
    return members[0][merged].reshape(-1).astype(np.int64, copy=False)
