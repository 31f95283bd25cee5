"""The greedy matcher of ZipIt!, which may also merge units within a model."""

import operator

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import ArrayLike

from zipjax.matching.inputs import check_fraction, check_similarity, symmetric_copy
from zipjax.matching.zip_rules import AcrossModels, Kind, LabelBudget, Rule, SinglePairs

_Matrix = Float64[np.ndarray, "units units"]
_Vector = Float64[np.ndarray, " units"]
_Mask = Bool[np.ndarray, " units"]


def match_zip(
    similarity: ArrayLike,
    num_models: int,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    num_units: int | None = None,
) -> Int64[np.ndarray, " units"]:
    """Merge the two most similar units, of any models, until ``num_units`` are left.

    The greedy matching of ZipIt! (section 3), equal to its reference implementation
    wherever that one does not drop units. Ties go to the pair that comes first by row,
    then by column.

    *alpha*: the similarity of a merged unit with each other one is the lower of its two
    units' similarities, times alpha. As in the reference this holds for negative values
    too: a small alpha brings them closer to 0 and so *raises* them, which makes a
    merged unit preferable to single ones of similarity below that. With ``alpha=0`` a
    merged unit is never matched again, so that merged units are singles and pairs.

    *beta*: every model may be merged within itself ``B = floor(beta * floor((N*n -
    num_units) / N))`` times. A merged unit counts towards the model of its first unit
    alone, as in the reference. If ``B = 0``, no merged unit holds two units of one
    model.

    *Dead ends*: a merge after which ``num_units`` could no longer be reached is passed
    over in favour of the next best pair. Two units that may not be merged also keep
    apart the merged units that they are part of, as in the reference. Where this leaves
    no pair, it is forgotten, and the rule above decides on merged units as they are.
    Neither occurs with two models and ``alpha > 0``.

    Args:
      similarity: ``[N*n, N*n]``, symmetric, the larger the more alike. The diagonal is
        not read.
      num_models: number of models, N.
      alpha: in ``[0, 1]``, how readily a merged unit is matched again.
      beta: in ``[0, 1]``, the within-model budget.
      num_units: number of merged units; ``n``, the width of one model, if None.

    Returns:
      The assignment ``[N*n]``, onto ``0..num_units-1``.

    Raises:
      ValueError: if ``similarity`` is not a square, symmetric, finite matrix with the
        same number of units for each of at least two models, if a setting lies outside
        its range, or if no sequence of merges that alpha and beta allow leaves
        ``num_units`` units.
    """
    matrix, units = check_similarity(similarity, num_models)
    alpha, beta = check_fraction("alpha", alpha), check_fraction("beta", beta)
    width = _check_width(num_units, units, num_models, alpha, beta)
    kinds = [1 << model for model in range(num_models)]
    needed = len(matrix) - width
    budget = _budget(needed, num_models, beta)
    if alpha == 0.0:
        rule: Rule = SinglePairs(kinds, units, budget, needed)
    elif budget:
        rule = LabelBudget(kinds, budget)
    else:
        rule = AcrossModels(kinds, units, width)
    # Sets of more than 63 models need Python's integers.
    unit_kinds = np.repeat(np.array(kinds, dtype=object), units)
    merges = _merge_greedily(matrix, unit_kinds, rule, alpha, needed)
    return _assignment(merges, len(matrix))


def _check_width(
    num_units: int | None, units: int, num_models: int, alpha: float, beta: float
) -> int:
    """Return the number of merged units, if it can be reached."""
    total = units * num_models
    width = units if num_units is None else operator.index(num_units)
    if not 1 <= width <= total:
        raise ValueError(
            f"num_units={width}, but {num_models} models of {units} units can be "
            f"merged into 1 to {total} units only: pass a number in that range, or "
            f"None for {units}"
        )

    def reachable(width: int) -> bool:
        if alpha == 0.0:
            return width >= total - total // 2
        return width >= max(1, units - _budget(total - width, num_models, beta))

    smallest = next(w for w in range(width, total + 1) if reachable(w))
    if smallest > width:
        raise ValueError(
            f"num_units={width} cannot be reached from {num_models} models of {units} "
            f"units with alpha={alpha} and beta={beta}: the smallest width that can is "
            f"{smallest}. Pass num_units={smallest} or more, or raise "
            f"{'alpha above 0' if alpha == 0.0 else 'beta'}"
        )
    return width


def _budget(needed: int, num_models: int, beta: float) -> int:
    """Merges allowed within each model, of those needed in all."""
    return int((needed // num_models) * beta + 1e-4)


def _merge_greedily(
    similarity: _Matrix,
    kinds: np.ndarray,
    rule: Rule,
    alpha: float,
    needed: int,
) -> list[tuple[int, int]]:
    """Return the merges in order, each as (first unit, the unit merged into it)."""
    merges: list[tuple[int, int]] = []
    pairs = _open_pairs(similarity, kinds, rule, merges, alpha)
    while len(merges) < needed:
        best = pairs.best()
        if best is None:
            pairs = _open_pairs(similarity, kinds, rule, merges, alpha)
            best = pairs.best()
        if best is None:
            raise RuntimeError(f"no pair left after {len(merges)} of {needed} merges")
        i, j = best
        a, b = kinds[i], kinds[j]
        if not rule.admits(a, b):
            pairs.forbid(kinds == a, kinds == b)
            continue
        merges.append(best)
        pairs.merge(i, j, alpha)
        kinds[i], kinds[j] = rule.merge(a, b), 0
        if a == b and not rule.admits(a, a):
            pairs.forbid(kinds == a, kinds == a)
    return merges


def _open_pairs(
    similarity: _Matrix,
    kinds: np.ndarray,
    rule: Rule,
    merges: list[tuple[int, int]],
    alpha: float,
) -> "_Pairs":
    """Return the pairs of present units, all but those that the rule refuses now."""
    current = symmetric_copy(similarity)
    for i, j in merges:
        _store(current, i, j, _merged_row(current, i, j, alpha))
    present: list[Kind] = sorted(set(kinds) - {0})
    for a in present:
        refused = [b for b in present if not rule.admits(a, b)]
        if refused:
            current[np.ix_(kinds == a, np.isin(kinds, refused))] = -np.inf
    return _Pairs(current)


def _merged_row(matrix: _Matrix, i: int, j: int, alpha: float) -> _Vector:
    """Similarity of all units with the merged unit of i and j."""
    if alpha == 0.0:
        return np.full(len(matrix), -np.inf)
    row = np.minimum(matrix[i], matrix[j]) * alpha
    row[[i, j]] = -np.inf
    return row


def _store(matrix: _Matrix, i: int, j: int, row: _Vector) -> None:
    """Put the merged unit in i's place and leave nothing in j's."""
    matrix[i] = matrix[:, i] = row
    matrix[j] = matrix[:, j] = -np.inf


class _Pairs:
    """Pairs of units by similarity, -inf being forbidden.

    Every row's best entry is kept, so that a merge costs a few rows instead of the
    whole matrix. Rows stay in place when units go: the order of ties is then that of a
    matrix from which they were cut out.

    Attributes:
      matrix: ``[N*n, N*n]`` similarities, symmetric.
      value: each row's largest entry.
      column: the first column that has it; -1 in a row of forbidden pairs only.
    """

    def __init__(self, matrix: _Matrix):
        np.fill_diagonal(matrix, -np.inf)
        self.matrix = matrix
        self.value = np.empty(len(matrix))
        self.column = np.empty(len(matrix), dtype=np.int64)
        self._rescan(slice(None))

    def best(self) -> tuple[int, int] | None:
        """The first of the most similar pairs, lower unit first, if any is allowed."""
        i = int(self.value.argmax())
        j = int(self.column[i])
        return None if j < 0 else (i, j)

    def merge(self, i: int, j: int, alpha: float) -> None:
        """Merge unit j into unit i."""
        row = _merged_row(self.matrix, i, j, alpha)
        _store(self.matrix, i, j, row)
        self.value[j], self.column[j] = -np.inf, -1
        # alpha raises negative entries, so that a row may gain a new best by a merge.
        gains = (row > self.value) | ((row == self.value) & (i <= self.column))
        loses = ((self.column == i) | (self.column == j)) & ~gains
        self.value[gains], self.column[gains] = row[gains], i
        self._rescan(np.flatnonzero(loses))

    def forbid(self, some: _Mask, others: _Mask) -> None:
        """Forbid all pairs of one of some units with one of others."""
        self.matrix[np.ix_(some, others)] = -np.inf
        self.matrix[np.ix_(others, some)] = -np.inf
        # Column -1 reads the last unit's mask: a needless rescan at worst.
        stale = (some & others[self.column]) | (others & some[self.column])
        self._rescan(np.flatnonzero(stale))

    def _rescan(self, rows: slice | Int64[np.ndarray, " rows"]) -> None:
        entries = self.matrix[rows]
        column = entries.argmax(axis=1)
        value = np.take_along_axis(entries, column[:, None], axis=1)[:, 0]
        self.value[rows] = value
        self.column[rows] = np.where(np.isneginf(value), -1, column)


def _assignment(
    merges: list[tuple[int, int]], size: int
) -> Int64[np.ndarray, " units"]:
    """Number the merged units in the order of their smallest member."""
    merged = np.arange(size)
    # Backwards, since i may be merged into another unit only after it took in j.
    for i, j in reversed(merges):
        merged[j] = merged[i]
    return np.unique(merged, return_inverse=True)[1].astype(np.int64, copy=False)
