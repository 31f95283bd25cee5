"""The samples of a layer that a refit reads: rows of its inputs and of its target."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from zipjax.batches import spread
from zipjax.calibration.passes import Pass, on_host
from zipjax.calibration.targets import Target
from zipjax.positions import Positions, positions_of
from zipjax.program.canonical import Keyed, keyed_layer
from zipjax.program.layers import Layer
from zipjax.program.rows import input_rows, kernel_axes, output_rows, sample_shape
from zipjax.types import Array

FEW_SAMPLES, SAMPLES_PER_INPUT = 2**16, 64
"""With ``positions="few"``, a layer has at least so many samples, and at least so many
for each of its inputs, if there are as many."""

# Rows that are made at once take no more bytes than this.
_MOST_BYTES = 1 << 26


class Rows(NamedTuple):
    """Some samples of a layer.

    Attributes:
      x: what the kernel multiplies, ``[samples, inputs]``.
      wanted: the target ``[samples, units]``.
      rest: what is added after the layer, ``[samples, units]``, if anything is.
    """

    x: Any
    wanted: Any
    rest: list[Any]


class Sampling(NamedTuple):
    """How samples are chosen.

    Attributes:
      positions: see :func:`zipjax.refit`.
      seed: of the positions.
      kept: how many bytes of rows are kept between sweeps, at most.
    """

    positions: Positions
    seed: Sequence[int]
    kept: float


class LayerSamples:
    """One layer's samples in all batches, which can be read several times.

    If sweeps will read them again and their rows are few enough, these are kept on the
    host; otherwise they are made again from the networks' values.
    """

    def __init__(
        self,
        merged: Pass,
        models: Sequence[Pass],
        name: str,
        target: Target,
        sampling: Sampling,
    ) -> None:
        self._merged, self._models, self._name = merged, models, name
        self._target, self._sampling = target, sampling
        self._kept: list[Rows] = []

    def moments(
        self, function: Callable[..., Any], *given: Any, keep: bool
    ) -> Iterator[Any]:
        """Yields a function of the rows of some samples after the other.

        Args:
          function: maps ``Rows`` and what is given to a pytree of arrays; static in
            compiled programs.
          *given: arrays.
          keep: whether rows will be read again.
        """
        if self._kept:
            for rows in self._kept:
                yield _moments(function, spread(rows), *given)
            return
        keep = keep and self._size() <= self._sampling.kept
        for rows in self._read():
            if keep:
                self._kept.append(on_host(rows))
            yield _moments(function, rows, *given)

    def _read(self) -> Iterator[Rows]:
        """Yields the rows of some samples after the other."""
        for number in range(len(self._merged)):
            layer = self._layer(self._merged, number)
            added = () if layer.rest is None else (layer.rest,)
            x, *rest = self._merged.read(number, (layer.inputs, *added))
            totals = [
                model.read(number, (self._layer(model, number).total,))[0]
                for model in self._models
            ]
            values = jax.tree_util.tree_map(spread, (x, rest, totals))
            keyed = keyed_layer(layer)
            for chosen in self._chosen(number):
                yield _rows(keyed, self._target, *values, spread(chosen))

    def _size(self) -> int:
        """Returns the size of all rows in bytes."""
        layer = self._layer(self._merged, 0)
        units = 1 if layer.rest is None else 2
        columns = _num_inputs(layer) + units * _num_units(layer)
        batches = range(len(self._merged))
        rows = sum(self._shape(number)[0] * self._count(number) for number in batches)
        return 4 * columns * rows

    def _layer(self, network: Pass, batch: int) -> Layer:
        return network.layers(batch)[self._name]

    def _shape(self, batch: int) -> tuple[int, int]:
        """Returns how many examples a batch has, and positions in each."""
        layer = self._layer(self._merged, batch)
        return sample_shape(layer, self._merged.shape(batch, layer.total))

    def _chosen(self, batch: int) -> Iterable[Int[Any, "examples positions"]]:
        """Yields the positions that are read of a batch, some of them at a time."""
        examples, positions = self._shape(batch)
        count = self._count(batch)
        layer = self._layer(self._merged, batch)
        if count == positions:
            chosen = np.broadcast_to(np.arange(count), (examples, count))
        else:
            place = layer.number, batch, jax.process_index()
            rng = np.random.default_rng([*self._sampling.seed, *place])
            chosen = positions_of(rng.random((examples, count)), positions)
        row = examples * 4 * _num_inputs(layer)
        parts = min(math.ceil(count * row / _MOST_BYTES), count)
        return np.array_split(chosen, parts, axis=1)

    @functools.cached_property
    def _examples(self) -> int:
        """The number of examples of all batches, and about that of all processes."""
        own = sum(self._shape(number)[0] for number in range(len(self._merged)))
        return own * jax.process_count()

    def _count(self, batch: int) -> int:
        """Returns how many positions of every example of a batch are read."""
        examples, positions = self._shape(batch)
        wanted = self._sampling.positions
        if wanted == "all":
            return positions
        if wanted == "few":
            inputs = _num_inputs(self._layer(self._merged, batch))
            wanted = max(FEW_SAMPLES, SAMPLES_PER_INPUT * inputs)
            examples = self._examples
        return min(positions, math.ceil(wanted / examples))


def _num_inputs(layer: Layer) -> int:
    return math.prod(layer.shape[k] for k in kernel_axes(layer)[0])


def _num_units(layer: Layer) -> int:
    return math.prod(layer.shape[k] for k in kernel_axes(layer)[1])


@functools.partial(jax.jit, static_argnums=0)
def _rows(
    keyed: Keyed[Layer],
    target: Target,
    inputs: Any,
    rest: list[Any],
    totals: list[Any],
    chosen: Array,
) -> Rows:
    """Returns a batch's rows at the chosen positions.

    Args:
      keyed: the layer.
      target: maps the models' rows to the layer's target.
      inputs: what the kernel multiplies.
      rest: what is added after the layer, if anything is.
      totals: the models' values after the layer.
      chosen: positions of every example.
    """
    layer = keyed.value

    def outputs(y: Any) -> Array:
        return _wide(output_rows(layer, jnp.asarray(y), chosen))

    x = _wide(input_rows(layer, jnp.asarray(inputs), chosen))
    return Rows(x, target([outputs(y) for y in totals]), [outputs(y) for y in rest])


@functools.partial(jax.jit, static_argnums=0)
def _moments(function: Callable[..., Any], rows: Rows, *given: Any) -> Any:
    # A program of its own, so that rows that are made again give the same to a bit.
    return function(rows, *given)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
