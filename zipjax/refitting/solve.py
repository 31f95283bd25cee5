"""One layer's least squares, from moments that are summed over the batches."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


class _Rows(NamedTuple):
    """A batch's samples: inputs, targets and what is added behind the layer."""

    inputs: Float[Array, "samples inputs"]
    targets: Float[Array, "samples units"]
    rest: Float[Array, "samples units"]


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
    samples: int,
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
      samples: see :func:`zipjax.refit`.
    """
    layer = merged.layers()[kernel]
    for network in (merged, *models):
        network.advance(kernel)
    affine = measure_affine(merged, layer)
    if affine is None:
        return
    rows = _read_rows(merged, models, kernel, target, samples)
    before = kernel_matrix(layer, merged.leaves[kernel]) * affine.slope
    equations = _equations(rows, centred=affine.step is not None, affine=affine)
    factor = _factor(equations, ridge)
    weights, bias = _solution(equations, factor, before, affine)
    for _ in range(sweeps if layer.relu else 0):
        opened = _open_targets(rows, equations, weights, bias, affine)
        weights, bias = _solution(opened, factor, before, affine)
    _write(merged, layer, affine, weights, bias)


def _read_rows(
    merged: Pass, models: Sequence[Pass], kernel: str, target: Target, samples: int
) -> list[_Rows]:
    """Reads at most ``samples`` rows of a layer, spread evenly over the batches."""
    count = -(-samples // len(merged))
    found = []
    for batch in range(len(merged)):
        layer = merged.layers(batch)[kernel]
        rest = () if layer.rest is None else (layer.rest,)
        x, *added = merged.read(batch, (layer.inputs, *rest))
        totals = [m.read(batch, (m.layers(batch)[kernel].total,))[0] for m in models]
        width = kernel_matrix(layer, merged.leaves[kernel]).shape[1]
        number = totals[0].size // width
        # Neighbouring positions tell much the same: a random part of them is enough.
        chosen = np.random.default_rng(batch).permutation(number)[:count]
        found.append(_cut(layer, target, x, added, totals, np.sort(chosen)))
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cut(
    layer: Layer,
    target: Target,
    x: Array,
    rest: list[Array],
    totals: list[Array],
    chosen: Array,
) -> _Rows:
    wanted = target([_wide(output_rows(layer, value)[chosen]) for value in totals])
    added = jnp.zeros_like(wanted)
    if rest:
        added = _wide(output_rows(layer, rest[0])[chosen])
    return _Rows(_wide(input_rows(layer, x)[chosen]), wanted - added, added)


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


def _equations(rows: Sequence[_Rows], *, centred: bool, affine: Affine) -> _Equations:
    total: Moments | None = None
    for batch in rows:
        empty = Moments.empty(batch.inputs.shape[1] + batch.targets.shape[1])
        total = _update(total or empty, batch)
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
def _update(moments: Moments, rows: _Rows) -> Moments:
    return moments.update(jnp.concatenate([rows.inputs, rows.targets], axis=1))


def _open_targets(
    rows: Sequence[_Rows],
    equations: _Equations,
    weights: Matrix,
    bias: Vector,
    affine: Affine,
) -> _Equations:
    """Returns the equations for targets that a ReLU leaves open."""
    shift = affine.offset if affine.step is None else np.zeros_like(bias)
    arrays = [
        jnp.asarray(x, jnp.float32) for x in (equations.mean, weights, bias, shift)
    ]
    parts = [jax.device_get(_open(batch, *arrays)) for batch in rows]
    sums, crosses = (np.sum([np.float64(p[k]) for p in parts], axis=0) for k in (0, 1))
    target = sums / equations.count if affine.step is not None else 0 * sums
    return dataclasses.replace(equations, target=target, cross=crosses)


@jax.jit
def _open(
    rows: _Rows, mean: Array, weights: Array, bias: Array, shift: Array
) -> tuple[Array, Array]:
    """Where the target is not positive, any value that is not will do."""
    high = jax.lax.Precision.HIGHEST
    value = jnp.matmul(rows.inputs, weights, precision=high) + bias + rows.rest
    wanted = rows.targets + rows.rest
    target = jnp.where(wanted > 0, wanted, jnp.minimum(value, 0)) - rows.rest - shift
    centred = rows.inputs - mean
    return target.sum(0), jnp.matmul(centred.T, target, precision=high)


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
