"""The greedy matcher of ZipIt!, which may also merge units within a model."""

import operator

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import ArrayLike

from zipjax.matching.inputs import check_fraction, check_similarity, symmetric_copy
from zipjax.matching.zip_rules import (
    AcrossModels,
    Kind,
    LabelBudget,
    SinglePairs,
    ZipRule,
    most_pairs,
)

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
    overwrite: bool = False,
) -> Int64[np.ndarray, " units"]:
    """Returns the assignment that results from merging the most similar units first.

    This is the greedy matching of ZipIt! (Section 3): the two most similar units, of
    any models, are merged until ``num_units`` are left. It equals the reference
    implementation wherever that one does not drop units. Ties go to the pair that comes
    first by row, then by column.

    For example, with two models of two units, in which units 0 and 1 of the first model
    and units 2 and 3 of the second are the most similar:

    >>> pairs = np.kron(np.eye(2), np.ones((2, 2)))
    >>> match_zip(pairs, 2).tolist()
    [0, 0, 1, 1]

    *alpha*: the similarity of a merged unit with any other is the lower of its two
    units' similarities, times alpha. As in the reference, this holds for negative
    values too: a small alpha brings them closer to 0 and so *raises* them, and merged
    units may then be preferred to single ones. With ``alpha=0`` a merged unit is never
    merged again, so all merged units are singles or pairs.

    *beta*: units of one model may be merged with one another ``B = floor(beta *
    floor((N*n - num_units) / N))`` times for each model. A merged unit counts towards
    the model of its first unit alone, as in the reference. If ``B = 0``, no merged unit
    holds two units of one model.

    *One model*: with ``num_units`` below its width, its own units are merged with one
    another; that needs a beta that allows as many such merges.

    *Dead ends*: a merge after which ``num_units`` could no longer be reached is passed
    over in favour of the next best pair. If two units may not be merged, then neither
    may the merged units that they become part of, as in the reference. When no pair is
    left, such inherited bans are lifted, and the rules above decide alone. Neither
    happens with two models and ``alpha > 0``.

    Args:
      similarity: ``[N*n, N*n]``, symmetric, larger for more similar units. The diagonal
        is not read.
      num_models: number of models, N.
      alpha: in ``[0, 1]``, how readily a merged unit is merged again.
      beta: in ``[0, 1]``, the within-model budget.
      num_units: number of merged units; ``n``, the width of one model, if None.
      overwrite: whether the similarity, if it is float64, may be written to instead of
        a copy: for two models and ``alpha > 0`` this saves as much memory again.

    Returns:
      The assignment ``[N*n]``, onto ``0..num_units-1``.

    Raises:
      ValueError: if ``similarity`` is not a square, symmetric, finite matrix with the
        same number of units for each model, if a setting is outside its range, or if
        no sequence of merges that alpha and beta allow leads to ``num_units`` units.
    """
    matrix, units = check_similarity(similarity, num_models)
    alpha, beta = check_fraction("alpha", alpha), check_fraction("beta", beta)
    width = _check_width(num_units, units, num_models, alpha, beta)
    kinds = [1 << model for model in range(num_models)]
    needed = len(matrix) - width
    budget = _budget(needed, num_models, beta)
    if alpha == 0.0:
        rule: ZipRule = SinglePairs(kinds, units, budget, needed)
    elif budget:
        rule = LabelBudget(kinds, budget)
    else:
        rule = AcrossModels(kinds, units, width)
    # Sets of more than 63 models need Python's integers.
    unit_kinds = np.repeat(np.array(kinds, dtype=object), units)
    # Bans are only ever lifted elsewhere, which takes the similarity once more.
    spare = overwrite and num_models == 2 and alpha > 0.0
    merges = _merge_greedily(matrix, unit_kinds, rule, alpha, needed, overwrite=spare)
    return _assignment(merges, len(matrix))


def _check_width(
    num_units: int | None, units: int, num_models: int, alpha: float, beta: float
) -> int:
    """Returns the number of merged units, after checking that it can be reached."""
    total = units * num_models
    width = units if num_units is None else operator.index(num_units)
    if not 1 <= width <= total:
        raise ValueError(
            f"num_units={width}, but {num_models} models of {units} units can be "
            f"merged into 1 to {total} units only: pass a number in that range, or "
            f"None for {units}"
        )

    def reachable(width: int) -> bool:
        budget = _budget(total - width, num_models, beta)
        if alpha == 0.0:
            singles = dict.fromkeys(range(num_models), units)
            return most_pairs(singles, dict.fromkeys(singles, budget)) >= total - width
        return width >= max(1, units - budget)

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
    """Returns how many of the merges needed may be within each model."""
    return int((needed // num_models) * beta + 1e-4)


def _merge_greedily(
    similarity: _Matrix,
    kinds: np.ndarray,
    rule: ZipRule,
    alpha: float,
    needed: int,
    *,
    overwrite: bool,
) -> list[tuple[int, int]]:
    """Returns the merges in order, each as (first unit, the unit merged into it)."""
    merges: list[tuple[int, int]] = []
    start = symmetric_copy(similarity, overwrite=overwrite)
    pairs = _open_pairs(start, kinds, rule, merges, alpha)
    while len(merges) < needed:
        best = pairs.best()
        if best is None and not overwrite:
            start = symmetric_copy(similarity)
            pairs = _open_pairs(start, kinds, rule, merges, alpha)
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
    rule: ZipRule,
    merges: list[tuple[int, int]],
    alpha: float,
) -> "_Pairs":
    """Returns the pairs of present units, except those that the rule refuses now.

    The similarity, which is that before all merges, is written to.
    """
    pairs = _Pairs(similarity)
    for i, j in merges:
        pairs.merge(i, j, alpha)
    present: list[Kind] = sorted(set(kinds) - {0})
    for a in present:
        refused = [b for b in present if not rule.admits(a, b)]
        if refused:
            pairs.forbid(kinds == a, np.isin(kinds, refused))
    return pairs


class _Pairs:
    """Pairs of units with their similarities; forbidden pairs have -inf.

    Every row's best entry is kept, so that a merge costs a few rows instead of the
    whole matrix. Where a row loses it, its value stays as an upper bound: the row is
    searched again only once no other row has a larger one. A merge writes the merged
    unit's row, but no columns, whose entries lie far apart in memory: a row takes them
    over when it is next read. The rows of units that are gone stay in place: ties are
    broken as in a matrix from which these rows were removed.

    Attributes:
      matrix: ``[N*n, N*n]`` similarities, symmetric where all rows are up to date.
      value: each row's largest entry, or an upper bound.
      column: the first column that holds it; -1 if the value may be above all entries.
      merged: ``[2, N*n]``, both units of every merge so far, the one that is gone last.
      count: number of merges so far.
      taken: how many of the merges each row has taken over.
    """

    def __init__(self, matrix: _Matrix):
        np.fill_diagonal(matrix, -np.inf)
        self.matrix = matrix
        self.column = matrix.argmax(axis=1)
        self.value = matrix[np.arange(len(matrix)), self.column]
        self.merged = np.empty((2, len(matrix)), dtype=np.int64)
        self.count = 0
        self.taken = np.zeros(len(matrix), dtype=np.int64)

    def best(self) -> tuple[int, int] | None:
        """Returns the first of the most similar pairs, lower unit first, if any."""
        while True:
            i = int(self.value.argmax())
            if self.value[i] == -np.inf:
                return None
            if self.column[i] >= 0:
                return i, int(self.column[i])
            self._search(i, self._row(i))

    def merge(self, i: int, j: int, alpha: float) -> None:
        """Merges unit j into unit i."""
        if alpha == 0.0:
            row = np.full(len(self.matrix), -np.inf)
        else:
            row = np.minimum(self._row(i), self._row(j)) * alpha
        row[[i, j]] = -np.inf
        self.matrix[i] = row
        self.merged[:, self.count] = i, j
        self.count += 1
        self.taken[i] = self.count
        self.value[j], self.column[j] = -np.inf, -1
        # alpha raises negative entries, so a merge may give a row a new best entry.
        gains = (row > self.value) | ((row == self.value) & (i <= self.column))
        self.column[(self.column == i) | (self.column == j)] = -1
        self.value[gains], self.column[gains] = row[gains], i
        self._search(i, row)

    def forbid(self, some: _Mask, others: _Mask) -> None:
        """Forbids all pairs of a unit of the first set with one of the second."""
        self.matrix[np.ix_(some, others)] = -np.inf
        self.matrix[np.ix_(others, some)] = -np.inf
        # Column -1 reads the last unit's mask and stays what it is.
        stale = (some & others[self.column]) | (others & some[self.column])
        self.column[stale] = -1

    def _search(self, i: int, row: _Vector) -> None:
        """Finds a row's best entry."""
        self.column[i] = row.argmax()
        self.value[i] = row[self.column[i]]

    def _row(self, i: int) -> _Vector:
        """Returns a row, after taking over the merges since it was last read."""
        since = slice(self.taken[i], self.count)
        merged, gone = self.merged[:, since]
        row = self.matrix[i]
        row[merged] = self.matrix[:, i][merged]
        row[gone] = -np.inf
        self.taken[i] = self.count
        return row


def _assignment(
    merges: list[tuple[int, int]], size: int
) -> Int64[np.ndarray, " units"]:
    """Returns the assignment, with merged units in the order of their first members."""
    merged = np.arange(size)
    # Backwards: i itself may have been merged into another unit later on.
    for i, j in reversed(merges):
        merged[j] = merged[i]
    return np.unique(merged, return_inverse=True)[1].astype(np.int64, copy=False)
