"""A network run over many batches at once, from one layer to the next."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from zipjax.program.layers import Layer, find_layers, left_kernels, live_values
from zipjax.program.program import Program, ValueId, compute_values, trace
from zipjax.program.signatures import Signature, abstract, signature_of
from zipjax.trees import path_leaves
from zipjax.types import ApplyFn, Array, Leaves, PyTree

Values: TypeAlias = list[Any]
Step: TypeAlias = Callable[[Leaves, Values], Values]


class TracedNetwork:
    """A function with parameters of given shapes: programs, layers, compiled steps.

    Batches with different signatures have programs of their own.
    """

    def __init__(self, apply_fn: ApplyFn, params_signature: Signature) -> None:
        self._apply_fn, self._params_signature = apply_fn, params_signature
        self._programs: dict[Signature, Program] = {}
        self._layers: dict[Signature, dict[str, Layer]] = {}
        self._steps: dict[Any, Step] = {}

    def program(self, signature: Signature) -> Program:
        """Returns the program for batches with a signature."""
        if signature not in self._programs:
            params, inputs = abstract(self._params_signature), abstract(signature)
            self._programs[signature] = trace(self._apply_fn, params, *inputs)
        return self._programs[signature]

    def layers(self, signature: Signature) -> dict[str, Layer]:
        """Returns the layers by kernel, in program order, for such batches."""
        if signature not in self._layers:
            self._layers[signature] = find_layers(self.program(signature))
        return self._layers[signature]

    def step(
        self,
        signature: Signature,
        known: tuple[ValueId, ...],
        wanted: tuple[ValueId, ...],
    ) -> Step:
        """Returns a compiled step that computes values from known ones."""
        place = signature, known, wanted
        if place not in self._steps:
            program = dataclasses.replace(self.program(signature), inputs=known)
            self._steps[place] = jax.jit(
                lambda leaves, values: compute_values(program, leaves, values, wanted)
            )
        return self._steps[place]


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


class Pass:
    """A model's values on all batches, at one place of its program.

    Only values that are read at this place or later are kept, on the host: JAX's device
    holds one batch at a time.

    Attributes:
      leaves: the model's parameters by path; those of later layers may be replaced.
    """

    def __init__(
        self, network: TracedNetwork, model: PyTree, data: Sequence[tuple[Any, ...]]
    ) -> None:
        self.leaves = path_leaves(model)
        self._network = network
        self._signatures = [signature_of(batch) for batch in data]
        self._values: list[Values] = [
            jax.device_get(jax.tree_util.tree_leaves(batch)) for batch in data
        ]
        signatures = dict.fromkeys(self._signatures)
        self._known = {
            signature: network.program(signature).inputs for signature in signatures
        }

    def __len__(self) -> int:
        return len(self._values)

    def layers(self, batch: int = 0) -> dict[str, Layer]:
        """Returns the layers by kernel, in program order, as a batch sees them."""
        return self._network.layers(self._signatures[batch])

    def left(self, layers: Iterable[Layer]) -> list[str]:
        """Returns the paths of all kernels that these layers do not cover."""
        return left_kernels(self._program, layers)

    def returns(self, kernel: str) -> bool:
        """Returns whether a layer's value is all that the network returns."""
        return self._program.outputs == (self.layers()[kernel].total,)

    def advance(self, kernel: str) -> None:
        """Runs all batches up to a layer, with the parameters as they are now."""
        wanted = {}
        for signature in self._known:
            number = self._network.layers(signature)[kernel].number
            wanted[signature] = live_values(self._network.program(signature), number)
        for batch, signature in enumerate(self._signatures):
            self._values[batch] = jax.device_get(self.read(batch, wanted[signature]))
        self._known = wanted

    def read(self, batch: int, wanted: tuple[ValueId, ...]) -> Values:
        """Computes values of a batch from those that are kept."""
        signature = self._signatures[batch]
        known = dict(zip(self._known[signature], self._values[batch], strict=True))
        if known.keys() >= set(wanted):
            return [known[value] for value in wanted]
        step = self._network.step(signature, self._known[signature], wanted)
        return step(self.leaves, self._values[batch])

    def value_after(self, layer: Layer, fill: float, leaves: Leaves) -> Array:
        """Returns a layer's value where its product is ``fill`` everywhere."""
        aval = self._program.avals[layer.equation.results[0]]
        probe = dataclasses.replace(self._program, inputs=layer.equation.results)
        filled = [jnp.full(aval.shape, fill, aval.dtype)]
        return compute_values(probe, leaves, filled, [layer.value])[0]

    @property
    def _program(self) -> Program:
        return self._network.program(self._signatures[0])
