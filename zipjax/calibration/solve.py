"""One layer's least squares, from moments that are summed over the batches."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve

from zipjax.calibration.passes import Pass
from zipjax.calibration.targets import Target
from zipjax.program.layers import Layer
from zipjax.program.rows import (
    input_rows,
    kernel_matrix,
    matrix_kernel,
    multiply,
    output_rows,
)
from zipjax.types import Array

Matrix = Float[np.ndarray, "inputs units"]
Vector = Float[np.ndarray, "units"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Batch:
    """The inputs and targets of a layer, of one batch.

    Attributes:
      inputs: the values that the kernel multiplies.
      targets: the values that the layer should return, ``[samples, units]``.
      rest: the values that are added after the layer, ``[samples, units]``, or None.
      layer: the layer, as this batch sees it.
    """

    inputs: Any
    targets: Any
    rest: Any
    layer: Layer = dataclasses.field(metadata={"static": True})

    def rows(self) -> Float[Array, "samples inputs"]:
        return input_rows(self.layer, _wide(jnp.asarray(self.inputs)))

    def product(self, kernel: Array) -> Float[Array, "samples units"]:
        y = multiply(self.layer, _wide(jnp.asarray(self.inputs)), kernel)
        return output_rows(self.layer, y)

    def times(self, targets: Float[Array, "samples units"]) -> Array:
        """Returns the sum of inputs times targets, as a kernel."""
        like = jax.ShapeDtypeStruct(self.layer.shape, targets.dtype)
        return jax.linear_transpose(self.product, like)(targets)[0]


@dataclasses.dataclass(frozen=True)
class Affine:
    """The operations after a layer's product: slope * product + offset, by unit.

    ``step`` is how much the offset grows when 1 is added to the bias; None without one.
    """

    slope: Vector
    offset: Vector
    step: Vector | None


@dataclasses.dataclass(frozen=True)
class _Equations:
    """Normal equations: centred moments of the inputs x and the targets y.

    Without a bias nothing is centred: ``mean`` is 0 and ``target`` the fixed offset.

    Attributes:
      count: number of samples n.
      mean: the mean of x.
      gram: sum of (x - mean)(x - mean)^T.
      target: the mean of y.
      cross: sum of (x - mean)(y - point)^T, for any constant point.
    """

    count: float
    mean: Float[np.ndarray, "inputs"]
    gram: Float[np.ndarray, "inputs inputs"]
    target: Vector
    cross: Matrix

    def with_targets(
        self, layer: Layer, point: Vector, total: Vector, products: Any
    ) -> "_Equations":
        """Returns the equations for other targets.

        Args:
          layer: the layer.
          point: a constant that is subtracted from the targets.
          total: sum of the targets less the point.
          products: sum of inputs times the targets less the point, as a kernel.
        """
        cross = kernel_matrix(layer, products) - np.outer(self.mean, total)
        target = point + total / self.count
        return dataclasses.replace(self, target=target, cross=cross)


def solve_layer(
    merged: Pass,
    models: Sequence[Pass],
    name: str,
    target: Target,
    *,
    ridge: float,
    sweeps: int,
) -> bool:
    """Replaces a layer's kernel and bias in ``merged.leaves``.

    Layers whose slope or offset differs from sample to sample stay as they are.

    Args:
      merged: the merged network; it is run up to the layer.
      models: the models whose values make the target; they are run up to it, too.
      name: the layer's name.
      target: maps the models' rows to the layer's target; a pytree.
      ridge: see :func:`zipjax.refit`.
      sweeps: see :func:`zipjax.refit`.

    Returns:
      Whether they were replaced.
    """
    layer = merged.layers()[name]
    for network in (merged, *models):
        network.advance(name)
    affine = measure_affine(merged, layer)
    if affine is None:
        return False
    batches = [_read(merged, models, name, target, k) for k in range(len(merged))]
    before = kernel_matrix(layer, layer.own_kernel(merged.leaves)) * affine.slope
    equations = _equations(batches, affine)
    factor = _factor(equations, ridge)
    weights, bias = _solution(equations, factor, before, affine)
    for _ in range(sweeps if layer.relu else 0):
        opened = _open_targets(batches, equations, weights, bias, affine)
        weights, bias = _solution(opened, factor, before, affine)
    _write(merged, layer, affine, weights, bias)
    return True


def _read(
    merged: Pass, models: Sequence[Pass], name: str, target: Target, batch: int
) -> _Batch:
    """Reads the inputs and targets of a layer, of one batch, to the host."""
    layer = merged.layers(batch)[name]
    wanted = [layer.inputs] + ([] if layer.rest is None else [layer.rest])
    x, *added = merged.read(batch, tuple(wanted))
    totals = [m.read(batch, (m.layers(batch)[name].total,))[0] for m in models]
    targets, rest = jax.device_get(_targets(layer, target, totals, *added))
    return _Batch(jax.device_get(x), targets, rest, layer)


@functools.partial(jax.jit, static_argnums=0)
def _targets(
    layer: Layer, target: Target, totals: list[Array], rest: Array | None = None
) -> tuple[Array, Array | None]:
    """Returns a batch's targets, and the values that are added after the layer."""
    wanted = target([_wide(output_rows(layer, value)) for value in totals])
    if rest is None:
        return wanted, None
    added = _wide(output_rows(layer, rest))
    return wanted - added, added


def measure_affine(merged: Pass, layer: Layer) -> Affine | None:
    """Measures the operations after a layer; None if they differ between samples."""
    zero = _by_unit(layer, merged.value_after(layer, 0.0, merged.leaves))
    one = _by_unit(layer, merged.value_after(layer, 1.0, merged.leaves))
    if zero is None or one is None:
        return None
    # A unit without slope is dead with any kernel: it keeps its own.
    slope = one - zero
    slope = np.where(np.abs(slope) > 1e-6 * np.abs(slope).max(), slope, 0.0)
    if layer.bias is None:
        return Affine(slope, zero, None)
    kernel, bias = layer.own_kernel(merged.leaves), layer.own_bias(merged.leaves)
    shifted = layer.replaced(merged.leaves, kernel, bias + 1)
    moved = _by_unit(layer, merged.value_after(layer, 0.0, shifted))
    return None if moved is None else Affine(slope, zero, moved - zero)


def _by_unit(layer: Layer, value: Array) -> Vector | None:
    rows = output_rows(layer, np.asarray(value, np.float64))
    return rows[0] if (rows == rows[:1]).all() else None


def _equations(batches: Sequence[_Batch], affine: Affine) -> _Equations:
    """Sums the moments of all batches into normal equations.

    A batch is summed in float32 about constants close to the means, x0 of the inputs
    and y0 of the targets, so that no precision is lost; the sums over batches are
    taken on the host, in float64, and moved to the means there.
    """
    layer = batches[0].layer
    x0, y0 = _first_means(batches[0])
    y0 = y0 if affine.step is not None else affine.offset
    shifts = x0, y0.astype(x0.dtype)
    x_total, xx_total, y_total, xy_total = _total(
        _shifted_moments(batch, *shifts) for batch in batches
    )
    count = float(sum(len(batch.targets) for batch in batches))
    mean = x0 + x_total / count
    gram = xx_total - np.outer(x_total, x_total) / count
    if affine.step is None:
        # Without a bias the fit goes through the offset: moments about 0.
        gram = gram + count * np.outer(mean, mean)
        mean = np.zeros_like(mean)
    empty = np.zeros((mean.size, y0.size))
    inputs = _Equations(count, mean, gram, y0.astype(np.float64), empty)
    return inputs.with_targets(layer, y0, y_total, xy_total)


def _first_means(batch: _Batch) -> tuple[np.ndarray, np.ndarray]:
    """Returns the means of a batch's inputs ``[inputs]`` and targets ``[units]``."""
    kernel, targets = jax.device_get(_means(batch))
    inputs = kernel_matrix(batch.layer, kernel)[:, 0]  # Its columns are equal.
    return inputs.astype(kernel.dtype), targets


def _total(parts: Iterable[tuple[Array, ...]]) -> list[Any]:
    """Returns sums over the batches, taken on the host, in float64."""
    total: list[Any] = []
    for part in parts:
        wide = [np.asarray(x, np.float64) for x in part]
        total = [a + b for a, b in zip(total, wide, strict=True)] if total else wide
    return total


@jax.jit
def _means(batch: _Batch) -> tuple[Array, Array]:
    """Returns means of the inputs, as a kernel of equal columns, and of the targets."""
    ones = jnp.ones_like(batch.targets) / len(batch.targets)
    return batch.times(ones), batch.targets.mean(0)


@jax.jit
def _shifted_moments(batch: _Batch, x0: Array, y0: Array) -> tuple[Array, ...]:
    """Returns the sums of x, x x^T, y and x y^T about two constants.

    The last one has the shape of the kernel, and x in it is not shifted.
    """
    x, y = batch.rows() - x0, batch.targets - y0
    gram = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
    return x.sum(0), gram, y.sum(0), batch.times(y)


def _open_targets(
    batches: Sequence[_Batch],
    equations: _Equations,
    weights: Matrix,
    bias: Vector,
    affine: Affine,
) -> _Equations:
    """Returns the equations for the targets that a ReLU leaves open."""
    layer = batches[0].layer
    point = equations.target if affine.step is not None else affine.offset
    like = jax.ShapeDtypeStruct(layer.shape, jnp.float32)
    arrays = matrix_kernel(layer, weights, like), np.float32(bias), np.float32(point)
    sums = _total(_open(batch, *arrays) for batch in batches)
    return equations.with_targets(layer, point, *sums)


@jax.jit
def _open(
    batch: _Batch, kernel: Array, bias: Array, point: Array
) -> tuple[Array, Array]:
    """Sums open targets: where one is not positive, any value that is not will do."""
    rest = 0 if batch.rest is None else batch.rest
    value, wanted = batch.product(kernel) + bias + rest, batch.targets + rest
    opened = jnp.where(wanted > 0, wanted, jnp.minimum(value, 0)) - rest - point
    return opened.sum(0), batch.times(opened)


def _factor(equations: _Equations, ridge: float) -> tuple[Any, float]:
    """Returns the ridged second moment's Cholesky factor, and the ridge's weight."""
    size = len(equations.gram)
    # Constant inputs alone leave nothing to solve for: any weight then keeps W*.
    weight = ridge * np.trace(equations.gram) / size or 1.0
    return cho_factor(equations.gram + weight * np.eye(size)), weight


def _solution(
    equations: _Equations, factor: tuple[Any, float], before: Matrix, affine: Affine
) -> tuple[Matrix, Vector]:
    cholesky, weight = factor
    weights = cho_solve(cholesky, equations.cross + weight * before)
    if affine.step is None:
        return weights, affine.offset
    return weights, equations.target - equations.mean @ weights


def _write(
    merged: Pass, layer: Layer, affine: Affine, weights: Matrix, bias: Vector
) -> None:
    """Writes the solution into the kernel and the bias; dead units keep theirs."""
    alive = affine.slope != 0
    old = layer.own_kernel(merged.leaves)
    slope = np.where(alive, affine.slope, 1.0)
    kernel = np.where(alive, weights / slope, kernel_matrix(layer, old))
    shifted = None
    if layer.bias is not None and affine.step is not None:
        moves = alive & (affine.step != 0)
        delta = (bias - affine.offset) / np.where(moves, affine.step, 1.0)
        start = layer.own_bias(merged.leaves)
        change = np.where(moves, delta, 0.0).reshape(start.shape)
        shifted = np.asarray(start, np.float64) + change
    new = matrix_kernel(layer, kernel, old)
    merged.leaves = layer.replaced(merged.leaves, new, shifted)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
