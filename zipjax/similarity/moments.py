"""Moments: mean and covariance of units from a stream of samples.

With count n, mean m and centred second moment S = sum (x - m)(x - m)^T, two sets of
samples a and b combine (Chan, Golub, LeVeque 1979) with d = m_b - m_a into

    n = n_a + n_b,    m = m_a + d n_b / n,    S = S_a + S_b + d d^T n_a n_b / n,

so that batches, devices and hosts share one rule. S is never formed as a difference of
large numbers, and the mean is kept as an unevaluated sum of two floats: a mean a
thousand times the deviation loses nothing in float32.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zipjax.types import AnyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Sufficient statistics of the units of all models at one tap.

    Attributes:
      count: number of samples, a scalar (exact to 2^24, then as float32).
      mean: the units' means ``[units]``, leading part.
      mean_tail: what rounding left out of ``mean``.
      m2: centred second moment ``[units, units]``: sum of (x - mean)(x - mean)^T.
      source: which models and spec they were collected for; None if unknown.
    """

    # Unannotated shapes: JAX also rebuilds pytrees of batched arrays and placeholders.
    count: Any
    mean: Any
    mean_tail: Any
    m2: Any
    source: str | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def empty(cls, units: int, source: str | None = None) -> "Moments":
        """Returns the moments of no samples, in float32 (float64 under x64)."""
        zeros = jnp.zeros(units, _accumulator(jnp.float32))
        return cls(
            zeros.sum(), zeros, zeros, jnp.zeros((units, units), zeros.dtype), source
        )

    def update(self, samples: Float[AnyArray, "samples units"]) -> "Moments":
        """Returns the moments with these samples added, in float32 or better."""
        x = jnp.asarray(samples, _accumulator(samples.dtype))
        shift = x.mean(0)
        # Differences of neighbouring floats are exact, so the second mean sees what
        # the first one rounded away.
        offset = x - shift
        tail = offset.mean(0)
        centred = offset - tail
        m2 = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST)
        count = jnp.asarray(x.shape[0], x.dtype)
        return self.merge(Moments(count, *_two_sum(shift, tail), m2, self.source))

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets of samples together.

        Raises:
          ValueError: if the two were collected for different models or sizes.
        """
        if (self.source, self.mean.shape) != (other.source, other.mean.shape):
            raise ValueError(
                f"moments of {self.mean.shape[-1]} units of {self.source} and of "
                f"{other.mean.shape[-1]} units of {other.source} do not combine: "
                "collect both for the same models and spec"
            )
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1)
        # In two parts: from no samples at all, the distance is the whole mean.
        lead, rest = _two_sum(other.mean, -self.mean)
        rest = rest + (other.mean_tail - self.mean_tail)
        head, tail = _two_sum(self.mean, lead * share)
        head, tail = _two_sum(head, tail + (self.mean_tail + rest * share))
        delta = lead + rest
        spread = jnp.outer(delta, delta) * (self.count * share)
        m2 = self.m2 + other.m2 + spread
        return Moments(count, head, tail, m2, self.source)

    def covariance(self) -> Float[Array, "units units"]:
        """Returns the covariance over the samples (divided by their count)."""
        return self.m2 / jnp.maximum(self.count, 1)

    def deviation(self) -> Float[Array, "units"]:
        """Returns the standard deviations; 0 for a unit that is constant.

        Constant means: to the rounding of a float of its size.
        """
        std = jnp.sqrt(jnp.maximum(jnp.diag(self.covariance()), 0))
        return jnp.where(std > self._rounding(), std, 0)

    def correlation(self) -> Float[Array, "units units"]:
        """Returns Pearson's correlations, in [-1, 1].

        A constant unit has correlation 1 with those of the same constant (two dead
        units are one feature, and leave room for others when merged) and 0 with the
        others; never NaN.
        """
        # Other sources, the same shapes: one compiled program per size.
        return dataclasses.replace(self, source=None)._correlation()

    @jax.jit
    def _correlation(self) -> Float[Array, "units units"]:
        std = self.deviation()
        scale = jnp.where(std > 0, 1 / jnp.where(std > 0, std, 1), 0)
        # Scaling by rows, then by columns: the product of two tiny deviations
        # underflows where the quotient does not.
        raw = self.covariance() * scale[:, None] * scale[None, :]
        # Symmetric to the last bit, however the products above are fused.
        upper = jnp.triu(raw, 1)
        clipped = jnp.clip(upper + upper.T, -1, 1)
        gap = jnp.abs(self.mean[:, None] - self.mean)
        rounding = self._rounding()
        equal = gap <= jnp.maximum(rounding[:, None], rounding)
        # One sample does not show that a unit is constant.
        same = equal & (std == 0)[:, None] & (std == 0) & (self.count > 1)
        return jnp.where(same | jnp.eye(std.shape[0], dtype=bool), 1.0, clipped)

    def _rounding(self) -> Float[Array, "units"]:
        """Returns the deviation that rounding alone gives units with these means."""
        return 4 * jnp.finfo(self.mean.dtype).eps * jnp.abs(self.mean)


def _accumulator(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """At least float32, and float64 where the user enabled it."""
    return jnp.promote_types(dtype, jnp.zeros(()).dtype)


def _two_sum(
    a: Float[AnyArray, "units"], b: Float[AnyArray, "units"]
) -> tuple[Float[AnyArray, "units"], Float[AnyArray, "units"]]:
    """Returns a + b and its rounding error (Knuth)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)
