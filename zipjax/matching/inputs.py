"""Checks that the matchers share."""

import itertools
import operator

import numpy as np
from jaxtyping import Float, Float64
from numpy.typing import ArrayLike

from zipjax.arguments import is_number

# Float32 sums taken in two orders differ by far less; a one-sided matrix by far more.
_SYMMETRY_TOLERANCE = 1e-4
# Side of the tiles that are transposed one at a time, so that they fit into the cache.
_TILE = 128
_PADDING = 8


def check_num_models(size: int, num_models: int) -> int:
    """Returns the number of units of each model.

    Args:
      size: number of units of all models together.
      num_models: number of models, N.

    Returns:
      ``n = size / num_models``.

    Raises:
      ValueError: if there is no model or no unit, or if N does not divide the number
        of units.
    """
    if num_models < 1:
        raise ValueError(
            f"num_models={num_models}, but a match needs a model: pass the number of "
            "models whose units the similarity holds"
        )
    if size == 0 or size % num_models:
        raise ValueError(
            f"similarity holds {size} units, which num_models={num_models} models "
            "cannot share equally: pass the units of all models, the same number of "
            "each, or correct num_models"
        )
    return size // num_models


def check_similarity(
    similarity: ArrayLike, num_models: int, name: str = "similarity"
) -> tuple[Float64[np.ndarray, "units units"], int]:
    """Returns the similarity as float64 and the number of units of each model.

    Args:
      similarity: ``[N*n, N*n]``.
      num_models: number of models, N.
      name: the similarity's name in error messages.

    Returns:
      The matrix and ``n``. The matrix may be the caller's array: do not write to it.

    Raises:
      ValueError: if it is not a square matrix of finite real numbers with the same
        number of units for every model.
    """
    matrix = np.asarray(similarity)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"{name} has shape {matrix.shape}, but a square matrix [N*n, N*n] is "
            "needed: pass the similarity of every unit of all models with every other"
        )
    units = check_num_models(matrix.shape[0], operator.index(num_models))
    if np.iscomplexobj(matrix):
        raise ValueError(
            f"{name} has dtype {matrix.dtype}, but real numbers are needed: pass "
            "its real part or its magnitude"
        )
    matrix = matrix.astype(np.float64, copy=False)
    bad = matrix.size - np.count_nonzero(np.isfinite(matrix))
    if bad:
        raise ValueError(
            f"{name} has {bad} of {matrix.size} entries that are NaN or infinite: "
            "give units without variance a finite similarity, such as 0"
        )
    return matrix, units


def asymmetry(matrix: Float[np.ndarray, "*elements units units"]) -> float:
    """Returns how much a matrix differs from its transpose at most.

    Args:
      matrix: one matrix or several.

    Returns:
      The largest difference of two mirrored entries; NaN if one is NaN.
    """
    tiles, gaps = range(0, matrix.shape[-1], _TILE), [0.0]
    for i, j in itertools.combinations_with_replacement(tiles, 2):
        rows, columns = slice(i, i + _TILE), slice(j, j + _TILE)
        mirrored = matrix[..., columns, rows].copy().swapaxes(-1, -2)
        gaps.append(np.abs(matrix[..., rows, columns] - mirrored).max())
    return float(np.max(gaps))


def symmetric_copy(
    matrix: Float64[np.ndarray, "units units"], *, overwrite: bool = False
) -> Float64[np.ndarray, "units units"]:
    """Returns a copy that is symmetric to the last bit and may be written to.

    Args:
      matrix: ``[N*n, N*n]``, symmetric up to rounding.
      overwrite: whether the copy may take the matrix's own memory.

    Returns:
      The mean of the matrix and its transpose: the matrix itself if it is symmetric.

    Raises:
      ValueError: if it is not symmetric up to rounding.
    """
    size, gap = len(matrix), asymmetry(matrix)
    scale = float(max(matrix.max(), -matrix.min())) if gap else 0.0
    if gap > _SYMMETRY_TOLERANCE * scale:
        raise ValueError(
            f"similarity and its transpose differ by up to {gap:.3g} (its largest "
            f"entry is {scale:.3g}), but a symmetric matrix is needed: pass "
            "(similarity + similarity.T) / 2"
        )
    if overwrite and matrix.flags.writeable:
        copy = matrix
    else:
        # Padded: reading columns is slow if rows are a power of two apart.
        copy = np.empty((size, size + _PADDING))[:, :size]
        copy[:] = matrix
    for i in range(0, size if gap else 0, _TILE):
        rows = slice(i, i + _TILE)
        for j in range(i, size, _TILE):
            columns = slice(j, j + _TILE)
            copy[rows, columns] = (copy[rows, columns] + copy[columns, rows].T) * 0.5
            copy[columns, rows] = copy[rows, columns].T
    return copy


def check_fraction(name: str, value: float) -> float:
    """Returns a setting, after checking that it is between 0 and 1.

    Args:
      name: the setting's name in error messages.
      value: the setting.

    Returns:
      The setting as a float.

    Raises:
      ValueError: if it is no number, outside ``[0, 1]`` or NaN.
    """
    if not is_number(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} = {value!r} must lie in [0, 1]: pass a fraction")
    return float(value)
