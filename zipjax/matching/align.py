"""The matcher that permutes every model to fit the first."""

import numpy as np
from jaxtyping import Int64
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from zipjax.matching._inputs import check_similarity


def match_align(similarity: ArrayLike, num_models: int) -> Int64[np.ndarray, " units"]:
    """Align every model with the first by the best one-to-one matching of units.

    For each model i the permutation that maximises the sum of the similarities of
    matched units is found exactly (Hungarian method): the "Permute" baseline of ZipIt!
    (section 4) and the matching step of Git Re-Basin. Unit k of model 0 goes to merged
    unit k, with the unit of every other model that is matched to it.

    Args:
      similarity: ``[N*n, N*n]``, the larger the more alike. Only the rows of model 0
        against the columns of the others are read, so that it need not be symmetric.
      num_models: number of models, N.

    Returns:
      The assignment ``[N*n]``: a permutation of ``0..n-1`` for every model.

    Raises:
      ValueError: if ``similarity`` is not a square, finite matrix with the same number
        of units for each of at least two models.
    """
    matrix, units = check_similarity(similarity, num_models)
    assignment = np.tile(np.arange(units, dtype=np.int64), num_models)
    for first in range(units, len(matrix), units):
        block = matrix[:units, first : first + units]
        merged, unit = linear_sum_assignment(block, maximize=True)
        assignment[first + unit] = merged
    return assignment
