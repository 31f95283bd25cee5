"""Similarities of the concatenated units of all models, for the matchers.

Activations are compared by their correlation (ZipIt!, Section 3), weights by all
parameters that touch a unit (Git Re-Basin, Section 3.2; MuDSC, Eq. 6), or both by the
blend of MuDSC's Eq. 4.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from zipjax.merging.matrices import Assignments
from zipjax.similarity.gram import gram
from zipjax.similarity.moments import Moments
from zipjax.similarity.weight_rows import CHUNK, Rows, weight_rows
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import Array, Leaves

Metric = Literal["correlation", "cosine", "inner"]
# Entries that are summed at once: few, since large temporary arrays cost page faults.
_ENTRIES = 2**15

UnitSimilarity = Float[np.ndarray, "*elements units units"]


@dataclasses.dataclass(frozen=True)
class Similarity:
    """How units are compared when they are matched.

    Attributes:
      balance: weight of the weight space, in [0, 1]: 0 compares activations only, 1
        weights only (MuDSC, Eq. 4, where it is called alpha).
      metric: how weights are compared: by their "correlation", their "cosine", or
        their "inner" product, which is what Git Re-Basin maximises.
      swapped: which matrix brings a unit's weights into the merged space of the other
        perms that they touch. True is MuDSC's reference: M on consumed and U on
        produced axes, the opposite of how weights are merged. False is U on consumed
        and M on produced ones. For permutations the two are the same.
      statistics: whether the running statistics of BatchNorms count as weights. They
        describe activations, which helps an alignment by weights alone, but their
        scale drowns everything else in a zip.

    Raises:
      ValueError: if the balance lies outside [0, 1] or the metric is unknown, or if
        inner products, which have no scale, are to be blended.
    """

    balance: float
    metric: Metric = "correlation"
    swapped: bool = True
    statistics: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance = {self.balance} must lie in [0, 1]")
        if self.metric not in ("correlation", "cosine", "inner"):
            raise ValueError(
                f"metric = {self.metric!r} is unknown: choose 'correlation', 'cosine' "
                "or 'inner'"
            )
        if self.metric == "inner" and self.balance < 1:
            raise ValueError(
                f"inner products have no scale to blend with balance {self.balance}: "
                "choose the metric 'correlation' or 'cosine'"
            )


def activation_similarity(moments: Moments) -> UnitSimilarity:
    """Returns the correlations of the units' activations, on the host.

    Args:
      moments: the moments of a perm.

    Returns:
      ``[N*n, N*n]`` in the precision of the moments; of a perm nested in indices one
      such matrix for each element.
    """
    if np.ndim(moments.m2) == 2:
        return np.asarray(moments.correlation())
    return np.asarray(jax.lax.map(Moments.correlation, moments))


def weight_similarity(
    models: Sequence[Leaves],
    spec: PermutationSpec,
    perm: str,
    assignments: Assignments,
    *,
    metric: Metric = "correlation",
    swapped: bool = True,
    once: bool = False,
) -> UnitSimilarity | None:
    """Compares all parameters that touch the units of a perm (MuDSC, Eq. 6).

    A unit is represented by the concatenation of its part of every parameter, whose
    other axes are brought into the merged space of the other perms. A parameter with
    units of a perm that is nested in this one is compared there.

    Args:
      models: every model's parameters by path: those that count.
      spec: the permutation spec.
      perm: the perm.
      assignments: how the perms are matched now, of all that are.
      metric: how weights are compared.
      swapped: see :class:`Similarity`.
      once: divide a parameter among its merged axes, so that it counts once in the sum
        over all perms.

    Returns:
      ``[N*n, N*n]`` in float32 or better on the host, of the units of all groups of
      all models; of a perm nested in indices, one such matrix for each of their
      elements. None if no parameter is compared here.
    """
    rows = weight_rows(models, spec, perm, assignments, swapped=swapped, once=once)
    if not rows:
        return None
    compared = WeightSpace.of(rows, metric).similarity()
    return compared[0] if spec.elements(perm) is None else compared


@dataclasses.dataclass(frozen=True)
class WeightSpace:
    """Units as vectors whose inner products are their similarities.

    Attributes:
      rows: the units are the columns of these chunks; see :func:`weight_rows`.
      metric: how units are compared.
      constant: in every element the units without variance, of which only the means
        are compared, and their similarities.
    """

    rows: list[Rows]
    metric: Metric
    constant: list[tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, rows: list[Rows], metric: Metric) -> "WeightSpace":
        """Centres and scales units as the metric asks for.

        Args:
          rows: at least one chunk, which is changed in place.
          metric: how units are compared.
        """
        if metric == "inner":
            return cls(rows, metric, [])
        mean, count = _total(rows), sum(chunk.shape[1] for chunk in rows)
        mean *= (metric == "correlation") / count
        for chunk in rows:
            chunk -= mean[:, None].astype(chunk.dtype)
        norm = np.sqrt(_total(np.square(part) for part in _parts(rows)))
        # Units that are constant to rounding, as in Moments.deviation.
        rounding = 4 * np.finfo(rows[0].dtype).eps * np.abs(mean)
        fixed = norm <= rounding * count**0.5
        scale = np.where(fixed, 0, 1 / np.where(fixed, 1, norm))
        for chunk in rows:
            chunk *= scale[:, None].astype(chunk.dtype)
        # One row does not show that a unit is constant.
        alike = metric == "correlation" and count > 1
        constant = [
            _equal_means(np.flatnonzero(own), *values)
            for own, *values in zip(fixed & alike, mean, rounding, strict=True)
        ]
        return cls(rows, metric, constant)

    def similarity(self) -> Float[np.ndarray, "elements units units"]:
        """Returns the similarities of all units."""
        found = [_product(list(parts)) for parts in zip(*self.rows, strict=True)]
        for own, (units, equal) in zip(found, self.constant, strict=False):
            np.clip(own, -1, 1, out=own)
            if self.metric == "correlation":
                own[np.ix_(units, units)] = equal
                np.fill_diagonal(own, 1)
        return np.stack(found) if len(found) > 1 else found[0][None]

    def matched(self, merged: Int[np.ndarray, "elements units"]) -> float:
        """Returns the sum of the similarities of units that were merged.

        Unlike all similarities it costs no more than the rows: the sum over the pairs
        in a merged unit is half of |sum of its vectors|^2 - sum of their |vector|^2.

        Args:
          merged: the merged unit that each unit went to.
        """
        units = merged.shape[1]
        ones = np.ones(units, self.rows[0].dtype)
        sums = [sparse.csr_array((ones, (own, np.arange(units)))) for own in merged]
        total = sum(
            _pair_products(samples, own)
            for part in _parts(self.rows)
            for samples, own in zip(part, sums, strict=True)
        )
        for own, (units, equal) in zip(merged, self.constant, strict=False):
            total += matched_similarity(equal, own[units])[0] if units.size else 0
        return float(total)


def matched_similarity(
    similarity: Float[np.ndarray, "units units"], merged: Int[np.ndarray, "units"]
) -> tuple[float, int]:
    """Sums the similarities of units that were merged with each other.

    Args:
      similarity: symmetric.
      merged: the merged unit that each unit went to.

    Returns:
      The sum over all pairs and their number.
    """
    order = np.argsort(merged, kind="stable")
    places, total, pairs = merged[order], 0.0, 0
    for gap in range(1, int(np.bincount(merged).max())):
        first = np.flatnonzero(places[gap:] == places[:-gap])
        chosen = similarity[order[first], order[first + gap]]
        total, pairs = total + chosen.sum(dtype=np.float64), pairs + first.size
    return float(total), pairs


def _total(chunks: Iterable[Rows]) -> Float[np.ndarray, "elements units"]:
    """Returns the sums over all rows, in float64."""
    return functools.reduce(np.add, (x.sum(1, dtype=np.float64) for x in chunks))


def _parts(chunks: Iterable[Rows]) -> Iterator[Rows]:
    """Yields all rows, a few at a time."""
    for chunk in chunks:
        step = max(1, _ENTRIES // chunk.shape[2])
        for first in range(0, chunk.shape[1], step):
            yield chunk[:, first : first + step]


def _equal_means(
    units: Int[np.ndarray, "constant"],
    mean: Float[np.ndarray, "units"],
    rounding: Float[np.ndarray, "units"],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns units and their correlations: 1 if their means are equal to rounding."""
    own, spread = mean[units], rounding[units]
    gap = np.abs(own[:, None] - own)
    equal = gap <= np.maximum(spread[:, None], spread)
    return units, equal.astype(np.float32)


def _pair_products(
    samples: Float[np.ndarray, "samples units"], sums: sparse.csr_array
) -> float:
    """Returns the sum of the inner products of units that were merged.

    Args:
      samples: the units.
      sums: ``[merged, units]``, adds up the units of every merged one.
    """
    x = samples.T
    merged = np.square(sums @ x).sum(dtype=np.float64)
    return (merged - np.square(x).sum(dtype=np.float64)) / 2


def _product(
    parts: list[Float[np.ndarray, "_samples units"]],
) -> Float[np.ndarray, "units units"]:
    """Returns the sum of x^T x, where it is computed fastest, as a new array."""
    if jax.default_backend() == "cpu":
        # BLAS, too, computes every product once, and compiles nothing.
        total = parts[0].T @ parts[0]
        for x in parts[1:]:
            total += x.T @ x
        return total
    return device_product(parts)


def device_product(
    parts: list[Float[np.ndarray, "_samples units"]],
) -> Float[np.ndarray, "units units"]:
    """Returns the sum of x^T x, computed by JAX in one program for each width."""
    units = parts[0].shape[-1]
    total = jnp.zeros((units, units), parts[0].dtype)
    for x in parts:
        total = _added(total, np.pad(x, ((0, CHUNK - len(x)), (0, 0))))
    return np.array(total)


@jax.jit(donate_argnums=0)
def _added(total: Array, rows: Array) -> Array:
    return total + gram(rows)
