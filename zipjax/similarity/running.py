"""Moments while samples are added to them, on a device.

Between two batches a perm has its count, mean and centred second moment, as
:class:`zipjax.similarity.moments.Moments` has them, in float32 or better; no second
part of the large sum is kept. A sum of a few dozen batches loses nothing by that. The
sums of many batches, of devices and of hosts are added in float64, on the host.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from zipjax.similarity.gram import Tile, mirror, upper_tiles
from zipjax.similarity.moments import Moments, accumulator, two_sum
from zipjax.types import AnyArray, Array

_SOME = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Running:
    """Sufficient statistics of units that are read in one or several places.

    Of perms that are nested in an index, all arrays have its elements as first axis.

    Attributes:
      count: number of samples in every place, ``[places]``, of integers.
      mean: ``[places, units]``, leading part.
      mean_tail: what rounding left out of ``mean``.
      m2: centred second moment ``[rows, units]``, summed over the places. The rows are
        all units, of which only the upper triangle counts, or a panel of them.
    """

    count: Any
    mean: Any
    mean_tail: Any
    m2: Any


def nothing(
    parts: Sequence[Sequence[jax.ShapeDtypeStruct]], height: int | None = None
) -> Running:
    """Returns the moments of no samples, in numpy.

    Args:
      parts: shapes of the samples, ``[elements, places, samples, units]``, of every
        occurrence and model.
      height: number of rows of ``m2``; by default all units.
    """
    elements = parts[0][0].shape[0]
    places = sum(models[0].shape[1] for models in parts)
    units = sum(x.shape[-1] for x in parts[0])
    dtype = accumulator(parts[0][0].dtype)
    mean = np.zeros((elements, places, units), dtype)
    m2 = np.zeros((elements, height or units, units), dtype)
    return Running(np.zeros((elements, places), np.int32), mean, mean, m2)


def with_batch(
    old: Running,
    parts: Sequence[Sequence[Float[Array, "_places _samples _units"]]],
    start: Int[AnyArray, ""] | int,
    height: int | None = None,
) -> Running:
    """Returns the moments with a batch's samples added.

    Products of activations in half precision are taken in the device's default
    precision, which loses nothing that they have; those of others in their own.

    Args:
      old: the moments of all batches before.
      parts: the samples of every model, side by side; each part has places of its own.
      start: the first row of the panel, if only one is computed.
      height: number of its rows; None: the upper triangle is computed.
    """
    dtype, first, m2 = old.m2.dtype, 0, old.m2
    means = []
    for models in parts:
        own = slice(first, first + len(models[0]))
        before = Running(old.count[own], old.mean[own], old.mean_tail[own], None)
        mean, terms = _moved(before, [x.astype(dtype) for x in models])
        means.append(mean)
        precisions = _precision(models), *[jax.lax.Precision.HIGHEST] * 2
        for tiles in zip(*(_tiles(x, start, height) for x in terms), strict=True):
            rows, distance, excess = map(Tile.product, tiles, precisions)
            m2 = tiles[0].added(m2, rows + distance - excess)
        first += len(models[0])
    count, mean, tail = map(jnp.concatenate, zip(*means, strict=True))
    return Running(count, mean, tail, m2)


def combined(parts: Sequence[Running], start: int = 0) -> Running:
    """Returns the moments of all these samples together, in float64.

    Args:
      parts: moments on the host, for instance those of every device.
      start: the first row of ``m2``, if that is a panel.
    """
    if len(parts) == 1:
        return parts[0]
    count, mean = pooled_mean(parts)
    m2 = np.zeros(parts[0].m2.shape)
    with np.errstate(invalid="ignore"):  # Infinite moments are told by their perms.
        for part in parts:
            m2 += part.m2
            m2 += displacement(part, mean, start)
    return Running(count, mean, np.zeros_like(mean), m2)


def pooled_mean(parts: Sequence[Running]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the count and the mean of all samples, in int64 and float64."""
    counts = [np.asarray(part.count, np.int64) for part in parts]
    total = np.sum(counts, axis=0)
    weighted = [
        n[..., None] * _mean(part) for n, part in zip(counts, parts, strict=True)
    ]
    return total, np.sum(weighted, axis=0) / np.maximum(total, 1)[..., None]


def displacement(part: Running, mean: np.ndarray, start: int = 0) -> np.ndarray:
    """Returns what moving a part's mean to another one adds to its ``m2``."""
    delta = _mean(part) - mean
    weighted = np.asarray(part.count)[..., None] * delta
    panel = weighted[..., start : start + part.m2.shape[-2]]
    return np.swapaxes(panel, -1, -2) @ delta


def as_moments(last: Running, earlier: Running | None, source: str | None) -> Moments:
    """Returns finished moments, in float32 (float64 under x64).

    Args:
      last: in the perm's last places, with all rows.
      earlier: in earlier places, if there are any.
      source: which models and spec they are of.
    """
    dtype = accumulator(jnp.float32)
    with np.errstate(over="ignore"):  # Infinite moments are told by their perms.
        m2 = np.array(last.m2, dtype)
    mirror(m2)
    mean = _mean(last).astype(dtype)
    tail = (_mean(last) - mean).astype(dtype)
    count = np.asarray(last.count).astype(dtype)
    if count.shape[-1] == 1:
        count, mean, tail = count[..., 0], mean[..., 0, :], tail[..., 0, :]
    arrays = [jnp.asarray(x) for x in (count, mean, tail, m2)]
    before = None if earlier is None else as_moments(earlier, None, None)
    return Moments(*arrays, earlier=before, source=source)


def _mean(part: Running) -> np.ndarray:
    """Returns the mean in float64."""
    return np.asarray(part.mean, np.float64) + np.asarray(part.mean_tail, np.float64)


def _moved(
    old: Running, models: Sequence[Float[AnyArray, "places samples _units"]]
) -> tuple[tuple[AnyArray, ...], list[Sequence[AnyArray]]]:
    """Returns the new count, mean and its tail, and what is added to the second moment.

    That are the products of the samples about a mean of some, and of the distance that
    the batch moves the mean by, less those of the mean of the samples: three lists with
    the rows of every model.
    """
    samples = models[0].shape[1]
    # About a mean of some, differences of neighbouring floats are exact, so that the
    # mean of all loses nothing where units vary little about a large one.
    shifts = [_shift(x) for x in models]
    rows = [x - shift[:, None] for x, shift in zip(models, shifts, strict=True)]
    shift = jnp.concatenate(shifts, axis=-1)
    tail = jnp.concatenate([_mean_sample(x) for x in rows], axis=-1)
    count = old.count + samples
    share = (samples / count.astype(tail.dtype))[:, None]
    # In two parts: from no samples at all, the distance is the whole mean.
    lead, rest = two_sum(shift, -old.mean)
    rest = rest + (tail - old.mean_tail)
    head, low = two_sum(old.mean, lead * share)
    head, low = two_sum(head, low + (old.mean_tail + rest * share))
    apart, own = old.count * share[:, 0], jnp.full_like(share[:, 0], samples)
    moves = _weighted(jnp.sqrt(jnp.stack([apart, own])), (lead + rest, tail))
    edges = list(itertools.accumulate(x.shape[-1] for x in models))[:-1]
    means = [jnp.split(x, edges, -1) for x in moves]
    flat = [x.reshape(-1, x.shape[-1]) for x in rows]
    return (count, head, low), [flat, *means]


def _shift(x: Float[AnyArray, "places samples units"]) -> Array:
    """Returns a mean of some samples, which is exact where units are constant."""
    some = x[:, :: max(x.shape[1] // _SOME, 1)]
    return jnp.asarray(some[:, 0] + (some - some[:, :1]).mean(1))


def _weighted(
    weights: Float[Array, "parts places"], parts: Sequence[Float[Array, "places units"]]
) -> Sequence[Array]:
    """Returns the rows of some arrays times their weights, as `_mean_sample` does."""
    diagonal, rows = jnp.diag(weights.reshape(-1)), jnp.concatenate(parts)
    made = jnp.matmul(diagonal, rows, precision=jax.lax.Precision.HIGHEST)
    return jnp.split(made, len(parts))


def _mean_sample(x: Float[AnyArray, "places samples units"]) -> Array:
    """Returns the mean over samples.

    As a product: what the samples are computed from is then computed once, for this and
    for the second moment. For a sum, XLA computes it again.
    """
    ones = jnp.ones((1, x.shape[1]), x.dtype)
    return jnp.matmul(ones, x, precision=jax.lax.Precision.HIGHEST)[:, 0] / x.shape[1]


def _tiles(
    blocks: Sequence[AnyArray], start: AnyArray | int, height: int | None
) -> Iterator[Tile]:
    """Yields the parts of a second moment that are computed."""
    if height is None:
        yield from upper_tiles(blocks)
    else:
        x = jnp.concatenate(blocks, axis=-1)
        yield Tile(0, 0, jax.lax.dynamic_slice_in_dim(x, start, height, axis=1), x)


def _precision(parts: Sequence[Array]) -> jax.lax.Precision:
    half = all(jnp.finfo(part.dtype).bits < 32 for part in parts)
    return jax.lax.Precision.DEFAULT if half else jax.lax.Precision.HIGHEST
