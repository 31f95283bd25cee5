"""Moments: mean and covariance of units from a stream of samples.

With count n, mean m and centred second moment S = sum (x - m)(x - m)^T, two sets of
samples a and b combine (Chan, Golub, LeVeque 1979) with d = m_b - m_a into

    n = n_a + n_b,    m = m_a + d n_b / n,    S = S_a + S_b + d d^T n_a n_b / n,

so that batches, devices and hosts share one rule. S is never formed as a difference of
large numbers, and all sums are kept as unevaluated sums of two floats: a mean a
thousand times the deviation loses nothing in float32, and neither do ten million
updates (alone, S in float32 is 2e-2 off after as many single samples). The second part
of S takes as much memory as S: :func:`collect_moments` sums a few dozen batches without
it on the devices, and adds these sums in float64 on the host (`running.py`).

Units that are read in several places have a mean of their own in each; S is the sum
over all places. A unit's variance is thus what it varies within places, not by what it
differs from place to place.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zipjax.types import AnyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Sufficient statistics of the units of all models at one tap.

    Units of perms that are nested in an index (scanned layers) are compared within each
    of its elements alone: their moments have the elements as first axis of all arrays,
    and methods are for ``jax.vmap``.

    Attributes:
      count: number of samples, a scalar, rounded as a float; ``[places]`` where the
        units are read in several places.
      mean: the units' means ``[units]``, leading part; or ``[places, units]``.
      mean_tail: what rounding left out of ``mean``.
      m2: centred second moment ``[units, units]``: sum of (x - mean)(x - mean)^T.
      earlier: the moments in earlier places (of a residual stream, before later
        blocks), which tell units apart that are constant here; None if there are none.
      count_tail: what rounding left out of ``count``; None if nothing.
      m2_tail: what rounding left out of ``m2``; None if nothing.
      source: which models and spec they were collected for; None if unknown.
    """

    # Unannotated shapes: JAX also rebuilds pytrees of batched arrays and placeholders.
    count: Any
    mean: Any
    mean_tail: Any
    m2: Any
    earlier: "Moments | None" = None
    count_tail: Any = None
    m2_tail: Any = None
    source: str | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def empty(cls, units: int, source: str | None = None) -> "Moments":
        """Returns the moments of no samples, in float32 (float64 under x64)."""
        zeros = jnp.zeros(units, accumulator(jnp.float32))
        square = jnp.zeros((units, units), zeros.dtype)
        none = zeros.sum()
        return cls(none, zeros, zeros, square, None, none, square, source)

    @classmethod
    def of(
        cls,
        samples: Float[AnyArray, "*places samples units"],
        source: str | None = None,
    ) -> "Moments":
        """Returns the moments of samples, in float32 or better."""
        x = jnp.asarray(samples, accumulator(samples.dtype))
        shift = x.mean(-2)
        # Differences of neighbouring floats are exact, so the second mean sees what
        # the first one rounded away.
        offset = x - shift[..., None, :]
        tail = offset.mean(-2)
        centred = (offset - tail[..., None, :]).reshape(-1, x.shape[-1])
        m2 = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST)
        count = jnp.full(x.shape[:-2], x.shape[-2], x.dtype)
        return cls(count, *two_sum(shift, tail), m2, source=source)

    def update(self, samples: Float[AnyArray, "*places samples units"]) -> "Moments":
        """Returns the moments with these samples added, in float32 or better."""
        return self.merge(Moments.of(samples, self.source))

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets of samples together.

        Raises:
          ValueError: if the two were collected for different models, sizes or places.
        """
        if (self.source, self.mean.shape) != (other.source, other.mean.shape):
            raise ValueError(
                f"moments of {self.mean.shape[-1]} units of {self.source} and of "
                f"{other.mean.shape[-1]} units of {other.source} do not combine: "
                "collect both for the same models and spec"
            )
        count, count_tail = _long_sum(
            (self.count, other.count), (self.count_tail, other.count_tail)
        )
        share = (other.count / jnp.maximum(count, 1))[..., None]
        # In two parts: from no samples at all, the distance is the whole mean.
        lead, rest = two_sum(other.mean, -self.mean)
        rest = rest + (other.mean_tail - self.mean_tail)
        head, tail = two_sum(self.mean, lead * share)
        head, tail = two_sum(head, tail + (self.mean_tail + rest * share))
        delta = lead + rest
        spread = _outer(delta, delta * (self.count[..., None] * share))
        m2, m2_tail = _long_sum(
            (self.m2, other.m2, spread), (self.m2_tail, other.m2_tail)
        )
        earlier = None
        if self.earlier is not None and other.earlier is not None:
            earlier = self.earlier.merge(other.earlier)
        return Moments(count, head, tail, m2, earlier, count_tail, m2_tail, self.source)

    def rounded(self) -> "Moments":
        """Returns the moments without what rounding left out of counts and ``m2``."""
        before = self.earlier
        return dataclasses.replace(
            self,
            earlier=None if before is None else before.rounded(),
            count_tail=None,
            m2_tail=None,
        )

    def covariance(self) -> Float[Array, "units units"]:
        """Returns the covariance over the samples (divided by their count)."""
        return self.m2 / jnp.maximum(self.count.sum(), 1)

    def deviation(self) -> Float[Array, "units"]:
        """Returns the standard deviations; 0 for a unit that is constant.

        Constant means: to the rounding of a float of its size.
        """
        std = jnp.sqrt(jnp.maximum(jnp.diag(self.covariance()), 0))
        rounding = self._rounding().reshape(-1, std.shape[0]).max(0)
        return jnp.where(std > rounding, std, 0)

    def correlation(self) -> Float[Array, "units units"]:
        """Returns Pearson's correlations, in [-1, 1].

        Two units that are constant here have the correlation that they have in earlier
        places. Units that are constant everywhere have correlation 1 with those of the
        same constants (two dead units are one feature, and leave room for others when
        merged) and 0 with the others; never NaN.
        """
        # Other sources, the same shapes: one compiled program per size.
        return _correlation(_without_source(self.rounded()))

    def _rounding(self) -> Float[Array, "*places units"]:
        """Returns the deviation that rounding alone gives units with these means."""
        return 4 * jnp.finfo(self.mean.dtype).eps * jnp.abs(self.mean)

    def _constant(self) -> Bool[Array, "units"]:
        # One sample does not show that a unit is constant.
        return (self.deviation() == 0) & (self.count.sum() > 1)

    def _raw_correlation(self) -> Float[Array, "units units"]:
        """Returns the correlations, 0 for units that are constant here."""
        std = self.deviation()
        scale = jnp.where(std > 0, 1 / jnp.where(std > 0, std, 1), 0)
        # Scaling by rows, then by columns: the product of two tiny deviations
        # underflows where the quotient does not.
        raw = self.covariance() * scale[:, None] * scale[None, :]
        # Symmetric to the last bit, however the products above are fused.
        upper = jnp.triu(raw, 1)
        clipped = jnp.clip(upper + upper.T, -1, 1)
        return jnp.where(jnp.eye(std.shape[0], dtype=bool), 1.0, clipped)

    def _equal_means(self) -> Bool[Array, "units units"]:
        """Returns which units have the same mean, to rounding, in every place."""
        means = self.mean.reshape(-1, self.mean.shape[-1])
        rounding = self._rounding().reshape(means.shape)

        def within(equal: Any, place: Any) -> tuple[Any, None]:
            mean, spread = place
            gap = jnp.abs(mean[:, None] - mean)
            return equal & (gap <= jnp.maximum(spread[:, None], spread)), None

        # One place after the other: each takes as much memory as the covariance.
        everywhere = jnp.ones((means.shape[-1],) * 2, bool)
        return jax.lax.scan(within, everywhere, (means, rounding))[0]


@jax.jit
def _correlation(moments: Moments) -> Float[Array, "units units"]:
    constant, found = moments._constant(), moments._raw_correlation()
    pairs = constant[:, None] & constant
    same = moments._equal_means().astype(found.dtype)
    if moments.earlier is None:
        there = same
    else:
        before = moments.earlier
        still = before._constant()[:, None] & before._constant()
        there = _correlation(before) * jnp.where(still, same, 1)
    mixed = jnp.where(pairs, there, found)
    return jnp.where(jnp.eye(constant.shape[0], dtype=bool), 1.0, mixed)


def _without_source(moments: Moments) -> Moments:
    before = moments.earlier
    earlier = None if before is None else _without_source(before)
    return dataclasses.replace(moments, earlier=earlier, source=None)


def accumulator(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """At least float32, and float64 where the user enabled it."""
    return jnp.promote_types(dtype, jnp.zeros(()).dtype)


def _outer(
    a: Float[AnyArray, "*places units"], b: Float[AnyArray, "*places units"]
) -> Float[AnyArray, "units units"]:
    """Returns a b^T, summed over the places."""
    rows, columns = jnp.atleast_2d(a), jnp.atleast_2d(b)
    return jnp.matmul(rows.T, columns, precision=jax.lax.Precision.HIGHEST)


def _long_sum(
    parts: Sequence[AnyArray], tails: Sequence[AnyArray | None]
) -> tuple[AnyArray, AnyArray]:
    """Returns a sum and what rounding left out of it.

    Args:
      parts: what is added.
      tails: what rounding left out of some parts before; None if nothing.
    """
    total, rest = parts[0], jnp.zeros_like(parts[0])
    for tail in tails:
        rest = rest if tail is None else rest + tail
    for part in parts[1:]:
        total, error = two_sum(total, part)
        rest = rest + error
    return two_sum(total, rest)


def two_sum(
    a: Float[AnyArray, "*shape"], b: Float[AnyArray, "*shape"]
) -> tuple[Float[AnyArray, "*shape"], Float[AnyArray, "*shape"]]:
    """Returns a + b and its rounding error (Knuth)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)
