"""The matcher of plain weight averaging."""

import numpy as np
from jaxtyping import Int64
from numpy.typing import ArrayLike

from zipjax.matching.inputs import check_similarity


def match_identity(
    similarity: ArrayLike, num_models: int
) -> Int64[np.ndarray, " units"]:
    """Returns the assignment of unit k of every model to merged unit k.

    >>> match_identity(np.zeros((6, 6)), 2).tolist()
    [0, 1, 2, 0, 1, 2]

    Args:
      similarity: ``[N*n, N*n]``; only its size matters.
      num_models: number of models, N.

    Returns:
      The assignment ``[N*n]``: ``0..n-1``, N times over.

    Raises:
      ValueError: if ``similarity`` is not a square, finite matrix with the same number
        of units for each model.
    """
    _, units = check_similarity(similarity, num_models)
    return np.tile(np.arange(units, dtype=np.int64), num_models)
