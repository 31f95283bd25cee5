"""One layer's least squares, from moments that are summed over the batches."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from zipjax.refitting.layers import Layer
from zipjax.refitting.passes import Pass
from zipjax.refitting.rows import (
    input_rows,
    kernel_matrix,
    matrix_kernel,
    output_rows,
)
from zipjax.stats import Moments
from zipjax.types import Array

Target = Callable[[list[Array]], Array]
"""Maps the models' rows behind a layer to what the merged layer shall return."""

Matrix = Float[np.ndarray, "inputs units"]
Vector = Float[np.ndarray, "units"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Batch:
    """What a layer is solved from, of one batch.

    Attributes:
      inputs: what the kernel is multiplied by; its rows, for a convolution many times
        as large, are made where they are needed.
      targets: what the layer shall return, ``[samples, units]``.
      rest: what is added behind the layer, likewise; None for nothing.
      layer: the layer, as this batch sees it.
    """

    inputs: Any
    targets: Any
    rest: Any
    layer: Layer = dataclasses.field(metadata={"static": True})

    def rows(self) -> Float[Array, "samples inputs"]:
        return _wide(input_rows(self.layer, jnp.asarray(self.inputs)))


@dataclasses.dataclass(frozen=True)
class Affine:
    """What stands behind a layer's product: slope * product + offset, by unit.

    ``step`` is what adding 1 to the bias adds to the offset; None without a bias.
    """

    slope: Vector
    offset: Vector
    step: Vector | None


@dataclasses.dataclass(frozen=True)
class _Equations:
    """Normal equations: moments of inputs and targets about (or, fixed, at) a point."""

    count: float
    mean: Float[np.ndarray, "inputs"]
    gram: Float[np.ndarray, "inputs inputs"]
    target: Vector
    cross: Matrix


def solve_layer(
    merged: Pass,
    models: Sequence[Pass],
    kernel: str,
    target: Target,
    *,
    ridge: float,
    sweeps: int,
) -> None:
    """Replaces a layer's kernel and bias in ``merged.leaves``.

    Layers whose slope or offset differs from sample to sample stay as they are.

    Args:
      merged: the merged network; it is run up to the layer.
      models: the models whose values make the target; likewise.
      kernel: the layer's kernel.
      target: maps the models' rows to the layer's target.
      ridge: see :func:`zipjax.refit`.
      sweeps: see :func:`zipjax.refit`.
    """
    layer = merged.layers()[kernel]
    for network in (merged, *models):
        network.advance(kernel)
    affine = measure_affine(merged, layer)
    if affine is None:
        return
    batches = [_read(merged, models, kernel, target, k) for k in range(len(merged))]
    before = kernel_matrix(layer, merged.leaves[kernel]) * affine.slope
    equations = _equations(batches, centred=affine.step is not None, affine=affine)
    factor = _factor(equations, ridge)
    weights, bias = _solution(equations, factor, before, affine)
    for _ in range(sweeps if layer.relu else 0):
        opened = _open_targets(batches, equations, weights, bias, affine)
        weights, bias = _solution(opened, factor, before, affine)
    _write(merged, layer, affine, weights, bias)


def _read(
    merged: Pass, models: Sequence[Pass], kernel: str, target: Target, batch: int
) -> _Batch:
    """Reads what a layer is solved from, of one batch, to the host."""
    layer = merged.layers(batch)[kernel]
    wanted = [layer.inputs] + ([] if layer.rest is None else [layer.rest])
    x, *added = merged.read(batch, tuple(wanted))
    totals = [m.read(batch, (m.layers(batch)[kernel].total,))[0] for m in models]
    targets, rest = jax.device_get(_targets(layer, target, totals, *added))
    return _Batch(jax.device_get(x), targets, rest, layer)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _targets(
    layer: Layer, target: Target, totals: list[Array], rest: Array | None = None
) -> tuple[Array, Array | None]:
    """Returns a batch's targets and what is added to them behind the layer."""
    wanted = target([_wide(output_rows(layer, value)) for value in totals])
    if rest is None:
        return wanted, None
    added = _wide(output_rows(layer, rest))
    return wanted - added, added


def measure_affine(merged: Pass, layer: Layer) -> Affine | None:
    """Measures what stands behind a layer; None if samples differ in it."""
    zero = _by_unit(layer, merged.behind(layer, 0.0, merged.leaves))
    one = _by_unit(layer, merged.behind(layer, 1.0, merged.leaves))
    if zero is None or one is None:
        return None
    # A unit without slope is dead whatever its kernel: it keeps it.
    slope = one - zero
    slope = np.where(np.abs(slope) > 1e-6 * np.abs(slope).max(), slope, 0.0)
    if layer.bias is None:
        return Affine(slope, zero, None)
    shifted = dict(merged.leaves)
    shifted[layer.bias] = shifted[layer.bias] + 1
    moved = _by_unit(layer, merged.behind(layer, 0.0, shifted))
    return None if moved is None else Affine(slope, zero, moved - zero)


def _by_unit(layer: Layer, value: Array) -> Vector | None:
    rows = output_rows(layer, np.asarray(value, np.float64))
    return rows[0] if (rows == rows[:1]).all() else None


def _equations(
    batches: Sequence[_Batch], *, centred: bool, affine: Affine
) -> _Equations:
    total: Moments | None = None
    for batch in batches:
        total = _update(total, batch)
    if total is None:
        raise ValueError("no batches: a refit needs at least one batch of inputs")
    size = total.mean.shape[0] - affine.offset.size
    count = float(total.count)
    mean = np.asarray(total.mean, np.float64) + np.asarray(total.mean_tail, np.float64)
    second = np.asarray(total.m2, np.float64)
    if not centred:
        mean[size:] -= affine.offset
        second = second + count * np.outer(mean, mean)
        mean = np.zeros_like(mean)
    return _Equations(
        count, mean[:size], second[:size, :size], mean[size:], second[:size, size:]
    )


@jax.jit
def _update(moments: Moments | None, batch: _Batch) -> Moments:
    samples = jnp.concatenate([batch.rows(), batch.targets], axis=1)
    return (moments or Moments.empty(samples.shape[1])).update(samples)


def _open_targets(
    batches: Sequence[_Batch],
    equations: _Equations,
    weights: Matrix,
    bias: Vector,
    affine: Affine,
) -> _Equations:
    """Returns the equations for targets that a ReLU leaves open."""
    shift = affine.offset if affine.step is None else np.zeros_like(bias)
    arrays = [np.float32(x) for x in (equations.mean, weights, bias, shift)]
    parts = [jax.device_get(_open(batch, *arrays)) for batch in batches]
    sums, crosses = (np.sum([np.float64(p[k]) for p in parts], axis=0) for k in (0, 1))
    target = sums / equations.count if affine.step is not None else 0 * sums
    return dataclasses.replace(equations, target=target, cross=crosses)


@jax.jit
def _open(
    batch: _Batch, mean: Array, weights: Array, bias: Array, shift: Array
) -> tuple[Array, Array]:
    """Where the target is not positive, any value that is not will do."""
    high = jax.lax.Precision.HIGHEST
    rows, rest = batch.rows(), 0 if batch.rest is None else batch.rest
    value = jnp.matmul(rows, weights, precision=high) + bias + rest
    wanted = batch.targets + rest
    target = jnp.where(wanted > 0, wanted, jnp.minimum(value, 0)) - rest - shift
    return target.sum(0), jnp.matmul((rows - mean).T, target, precision=high)


def _factor(equations: _Equations, ridge: float) -> tuple[Any, float]:
    """Returns the inverse of the ridged second moment, and the ridge's weight."""
    size = len(equations.gram)
    # Constant inputs alone leave nothing to solve for: any weight then keeps W*.
    weight = ridge * np.trace(equations.gram) / size or 1.0
    return np.linalg.inv(equations.gram + weight * np.eye(size)), weight


def _solution(
    equations: _Equations, factor: tuple[Any, float], before: Matrix, affine: Affine
) -> tuple[Matrix, Vector]:
    inverse, weight = factor
    weights = inverse @ (equations.cross + weight * before)
    if affine.step is None:
        return weights, affine.offset
    return weights, equations.target - equations.mean @ weights


def _write(
    merged: Pass, layer: Layer, affine: Affine, weights: Matrix, bias: Vector
) -> None:
    """Writes the solution into the kernel and the bias; dead units keep theirs."""
    alive = affine.slope != 0
    old = merged.leaves[layer.kernel]
    slope = np.where(alive, affine.slope, 1.0)
    kernel = np.where(alive, weights / slope, kernel_matrix(layer, old))
    merged.leaves[layer.kernel] = matrix_kernel(layer, kernel, old)
    if layer.bias is not None and affine.step is not None:
        moves = alive & (affine.step != 0)
        delta = (bias - affine.offset) / np.where(moves, affine.step, 1.0)
        path = layer.bias
        start = merged.leaves[path]
        change = np.where(moves, delta, 0.0).reshape(start.shape)
        merged.leaves[path] = jnp.asarray(
            np.asarray(start, np.float64) + change, start.dtype
        )


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
