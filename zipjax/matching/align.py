"""The matcher that permutes every model to fit the others."""

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

# Sums of similarities are compared up to this times their largest possible value, so
# that rounding alone never looks like a gain.
_ROUNDING = 1e-12


def match_align(
    similarity: ArrayLike, num_models: int, *, reference: Reference = "first"
) -> Int64[np.ndarray, " units"]:
    """Permute the units of every model so that matched units are most alike.

    ``reference="first"`` aligns every model with model 0: for each, the permutation
    that maximises the sum of the similarities of matched units is found exactly
    (Hungarian method). This is the "Permute" baseline of ZipIt! (section 4) and the
    matching step of Git Re-Basin.

    ``reference="all"`` maximises that sum over all pairs of models, so that the order
    of the models does not matter (ties aside). With more than two models this is
    NP-hard; here it is coordinate ascent, one model at a time being aligned with all
    others, from the alignments with each of the models in turn. The sum is at least
    that of ``"first"``, whichever model comes first. For two models both are the same.

    Unit k of model 0 goes to merged unit k, with the units that are matched to it.

    Args:
      similarity: ``[N*n, N*n]``, the larger the more alike. With ``"first"`` only the
        rows of model 0 against the columns of the others are read, so that it need not
        be symmetric; with ``"all"`` it must be.
      num_models: number of models, N.
      reference: ``"first"`` or ``"all"``: which models each one is aligned with.

    Returns:
      The assignment ``[N*n]``: a permutation of ``0..n-1`` for every model.

    Raises:
      ValueError: if ``similarity`` is not a square, finite (for ``"all"`` also
        symmetric) matrix with the same number of units for each of at least two
        models, or if ``reference`` is neither of the two.
    """
    matrix, units = check_similarity(similarity, num_models)
    if reference == "first":
        members = _aligned_with(0, matrix, num_models, units)
    elif reference == "all":
        members = _aligned_with_all(symmetric_copy(matrix), num_models, units)
    else:
        raise ValueError(
            f"reference={reference!r}, but a model is aligned with the 'first' or with "
            "'all' others: pass one of these"
        )
    return _assignment(members)


def _aligned_with(model: int, matrix: _Matrix, num_models: int, units: int) -> _Members:
    """Every model's best alignment with one of them."""
    rows = matrix[model * units : (model + 1) * units]
    blocks = rows.reshape(units, num_models, units).swapaxes(0, 1)
    members = [linear_sum_assignment(block, maximize=True)[1] for block in blocks]
    members[model] = np.arange(units)
    return np.array(members, dtype=np.int64)


def _aligned_with_all(matrix: _Matrix, num_models: int, units: int) -> _Members:
    """The best of the ascents that start from each model as the reference."""
    starts = [_aligned_with(m, matrix, num_models, units) for m in range(num_models)]
    totals = [_star_total(start, model, matrix) for model, start in enumerate(starts)]
    # Any order would do that follows from the similarities, not from the numbering.
    sweep = np.argsort(totals, kind="stable")
    ends = [_ascend(start, matrix, sweep) for start in starts]
    totals = [_total(end, matrix) for end in ends]
    # Rounding must not decide between starts that end alike: the first then wins.
    best = max(totals) - _tolerance(matrix) * num_models
    return next(end for end, total in zip(ends, totals, strict=True) if total >= best)


def _ascend(
    members: _Members, matrix: _Matrix, sweep: Int64[np.ndarray, " models"]
) -> _Members:
    """Align one model after the other with all others until nothing changes."""
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
    """Sum over all other models of each unit's similarity with every merged unit."""
    num_models, units = members.shape
    columns = matrix[:, model * units : (model + 1) * units]
    total = np.zeros((units, units))
    for other in range(num_models):
        if other != model:
            total += columns[other * units + members[other]]
    return total


def _total(members: _Members, matrix: _Matrix) -> float:
    """Sum of the similarities of matched units over all pairs of models."""
    num_models, units = members.shape
    unit = members + units * np.arange(num_models)[:, None]
    first, second = np.triu_indices(num_models, 1)
    return float(matrix[unit[first], unit[second]].sum())


def _star_total(members: _Members, model: int, matrix: _Matrix) -> float:
    """Sum of the similarities of matched units over the pairs with one model."""
    num_models, units = members.shape
    unit = members + units * np.arange(num_models)[:, None]
    others = np.delete(unit, model, axis=0)
    return float(matrix[unit[model], others].sum())


def _tolerance(matrix: _Matrix) -> float:
    return _ROUNDING * len(matrix) * float(np.abs(matrix).max())


def _assignment(members: _Members) -> Int64[np.ndarray, " units"]:
    """Number merged units by the unit of model 0 in them."""
    merged = np.argsort(members, axis=1)
    return members[0][merged].reshape(-1).astype(np.int64, copy=False)
