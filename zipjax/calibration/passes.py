"""A network run over many batches at once, from one layer to the next."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.batches import replicated, spread
from zipjax.program.canonical import Fragment, Keyed, fragment, run_fragment
from zipjax.program.layers import Layer, find_layers, left_kernels, places
from zipjax.program.program import Program, ValueId, trace
from zipjax.program.rows import output_unit_axes
from zipjax.program.signatures import Signature, abstract, signature_of
from zipjax.trees import path_leaves
from zipjax.types import ApplyFn, Array, Leaves, PyTree

Values: TypeAlias = Mapping[ValueId, Any]


class TracedBatch(NamedTuple):
    """The program for batches of one signature.

    Attributes:
      program: the program.
      layers: its layers by kernel, in program order.
      places: what is known at its start, then before and after every layer.
    """

    program: Program
    layers: dict[str, Layer]
    places: list[tuple[ValueId, ...]]

    def place(self, kernel: str, *, after: bool) -> int:
        """Returns the number of the place before or after a layer."""
        return 1 + 2 * list(self.layers).index(kernel) + after

    def kept_bytes(self, place: int) -> int:
        """Returns the size of what is known at a place; inputs exist in any case."""
        computed = set(self.places[place]).difference(self.program.inputs)
        avals = (self.program.avals[value] for value in computed)
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in avals)


class TracedNetwork:
    """A function with parameters of given shapes: its programs and their parts.

    Batches with different signatures have programs of their own.
    """

    def __init__(self, apply_fn: ApplyFn, params_signature: Signature) -> None:
        self._apply_fn, self._params_signature = apply_fn, params_signature
        self._batches: dict[Signature, TracedBatch] = {}
        self._fragments: dict[Any, Fragment] = {}

    def batch(self, signature: Signature) -> TracedBatch:
        """Returns the program for batches with a signature."""
        if signature not in self._batches:
            params, inputs = abstract(self._params_signature), abstract(signature)
            program = trace(self._apply_fn, params, *inputs)
            layers = find_layers(program)
            found = TracedBatch(program, layers, places(program, layers.values()))
            self._batches[signature] = found
        return self._batches[signature]

    def fragment(
        self,
        signature: Signature,
        known: tuple[ValueId, ...],
        wanted: tuple[ValueId, ...],
    ) -> Fragment:
        """Returns the part of the program that computes values from known ones."""
        ends = signature, known, wanted
        if ends not in self._fragments:
            program = self.batch(signature).program
            self._fragments[ends] = fragment(program, known, wanted)
        return self._fragments[ends]


def traced_network(apply_fn: ApplyFn, params: PyTree) -> TracedNetwork:
    """Returns the traced network of a function, kept between calls.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``; must be hashable.
      params: parameter pytree; only its structure, shapes and dtypes matter.
    """
    return _traced_network(apply_fn, signature_of(params))


@functools.lru_cache(maxsize=16)
def _traced_network(apply_fn: ApplyFn, params_signature: Signature) -> TracedNetwork:
    return TracedNetwork(apply_fn, params_signature)


def on_host(tree: PyTree) -> PyTree:
    """Returns copies of arrays on the host.

    JAX's own arrays would scatter what is kept among what is soon freed, and the
    process would need twice the memory.
    """
    return jax.tree_util.tree_map(np.array, jax.device_get(tree))


class Budget:
    """The host's memory for values between layers, in bytes, shared by passes."""

    def __init__(self, limit: float = math.inf) -> None:
        self._left = limit

    def exchange(self, old: int, new: int) -> bool:
        """Gives back old bytes for new ones; returns False if there are too few."""
        fits = new <= self._left + old
        if fits:
            self._left += old - new
        return fits


class _Kept(NamedTuple):
    """What is kept of a batch: the values that are known at one place."""

    place: int
    values: Values


class Pass:
    """A model run over all batches, up to one place of its program.

    Of every batch the values at that place are kept on the host. If they do not fit
    into the budget, those at the last place that did are, and what follows is computed
    again whenever it is read. JAX's devices hold one batch at a time.

    Attributes:
      leaves: the model's parameters by path; those of later layers may be replaced.
    """

    def __init__(
        self,
        network: TracedNetwork,
        model: PyTree,
        data: Sequence[tuple[Any, ...]],
        budget: Budget | None = None,
    ) -> None:
        self.leaves: Leaves = path_leaves(model)
        self._network, self._budget = network, budget or Budget()
        self._batches = [network.batch(signature_of(batch)) for batch in data]
        self._signatures = [signature_of(batch) for batch in data]
        self._end: tuple[str, bool] | None = None
        self._copies: dict[str, tuple[Any, Any]] = {}
        self._kept: list[_Kept] = []
        for own, batch in zip(self._batches, data, strict=True):
            inputs = jax.device_get(jax.tree_util.tree_leaves(batch))
            known = dict(zip(own.program.inputs, inputs, strict=True))
            self._kept.append(_Kept(0, known))

    def __len__(self) -> int:
        return len(self._kept)

    def layers(self, batch: int = 0) -> dict[str, Layer]:
        """Returns the layers by kernel, in program order, as a batch sees them."""
        return self._batches[batch].layers

    def shape(self, batch: int, value: ValueId) -> tuple[int, ...]:
        """Returns a value's shape in a batch."""
        return tuple(self._batches[batch].program.avals[value].shape)

    def left(self, layers: Iterable[Layer]) -> list[str]:
        """Returns the paths of all kernels that these layers do not cover."""
        return left_kernels(self._program, layers)

    def returns(self, kernel: str) -> bool:
        """Returns whether a layer's value is all that the network returns."""
        return self._program.outputs == (self.layers()[kernel].total,)

    def advance(self, kernel: str, *, after: bool = False) -> None:
        """Runs all batches up to a layer, with the parameters as they are now.

        Args:
          kernel: the layer's name; no earlier layer's parameters may change any more.
          after: whether to go through the layer, up to its ``total``.
        """
        self._end = kernel, after
        for number, own in enumerate(self._batches):
            old, new = self._kept[number].place, own.place(kernel, after=after)
            if self._budget.exchange(own.kept_bytes(old), own.kept_bytes(new)):
                values = on_host(self._known(number))
                self._kept[number] = _Kept(new, values)

    def read(self, batch: int, wanted: tuple[ValueId, ...]) -> list[Any]:
        """Returns values of a batch, computed from those that are known."""
        found = self._computed(batch, self._known(batch), wanted)
        return [found[value] for value in wanted]

    def probe(self, layer: Layer, fill: float, leaves: Leaves) -> tuple[Array, Array]:
        """Returns a layer's value where its product is ``fill`` everywhere.

        Args:
          layer: the layer, of the first batch.
          fill: the product.
          leaves: the parameters by path.

        Returns:
          The value's first row ``[units]``, and whether all others are equal to it.
        """
        (product,) = layer.equation.results
        aval = self._program.avals[product]
        ends = self._signatures[0], (product,), (layer.value,)
        after = self._network.fragment(*ends)
        given = after.arguments(leaves, {product: None})
        filled = aval.shape, aval.dtype
        units = tuple(output_unit_axes(layer, len(aval.shape)))
        return _probe(after.program, units, filled, fill, given)

    @property
    def _program(self) -> Program:
        return self._batches[0].program

    def _known(self, batch: int) -> Values:
        """Returns what is known of a batch where the pass is now."""
        own, (place, values) = self._batches[batch], self._kept[batch]
        if self._end is not None:
            name, after = self._end
            for known in own.places[place + 1 : own.place(name, after=after) + 1]:
                values = self._computed(batch, values, known)
        return values

    def _computed(
        self, batch: int, values: Values, wanted: tuple[ValueId, ...]
    ) -> Values:
        """Returns wanted values, as they are or computed from others."""
        missing = tuple(value for value in wanted if value not in values)
        if missing:
            ends = self._signatures[batch], tuple(values), missing
            part = self._network.fragment(*ends)
            leaves = {path: self._copied(path) for path in part.paths.values()}
            given = {number: spread(x) for number, x in values.items()}
            found = run_fragment(part.program, part.arguments(leaves, given))
            values = {**values, **dict(zip(missing, found, strict=True))}
        return {value: values[value] for value in wanted}

    def _copied(self, path: str) -> Any:
        """Returns a parameter on all devices; it is copied when it has changed."""
        leaf, (source, copy) = self.leaves[path], self._copies.get(path, (None, None))
        if source is not leaf:
            copy = replicated(leaf)
            self._copies[path] = leaf, copy
        return copy


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _probe(
    after: Keyed[Program],
    units: tuple[int, ...],
    aval: tuple[tuple[int, ...], Any],
    fill: float,
    arguments: list[Any],
) -> tuple[Array, Array]:
    """Runs the operations after a product, which is the argument that is None."""
    product = jnp.full(aval[0], fill, aval[1])
    given = [product if x is None else x for x in arguments]
    (value,) = run_fragment(after, given)
    first = value[tuple(slice(None if k in units else 1) for k in range(value.ndim))]
    return first.reshape(-1), (value == first).all()
