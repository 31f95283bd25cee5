"""A network run over many batches at once, from one layer to the next."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.program.layers import Layer, find_layers, live_values
from zipjax.program.program import Program, ValueId, evaluate, trace
from zipjax.trees import path_leaves
from zipjax.types import ApplyFn, Array, Leaves, PyTree

Values = list[Any]
Step = Callable[[Leaves, Values], Values]


class Network:
    """What models of the same shapes share: programs, layers, compiled steps."""

    def __init__(
        self, apply_fn: ApplyFn, model: PyTree, data: Sequence[tuple[Any, ...]]
    ) -> None:
        self.data = [jax.device_get(jax.tree_util.tree_leaves(x)) for x in data]
        self.kinds = [
            tuple((np.shape(x), jnp.result_type(x).name) for x in flat)
            for flat in self.data
        ]
        self.programs: dict[Any, Program] = {}
        for kind, arrays in zip(self.kinds, data, strict=True):
            if kind not in self.programs:
                self.programs[kind] = trace(apply_fn, model, *arrays)
        self.layers = {k: find_layers(p) for k, p in self.programs.items()}
        self._steps: dict[Any, Step] = {}

    def step(
        self, kind: Any, known: tuple[ValueId, ...], wanted: tuple[ValueId, ...]
    ) -> Step:
        """Returns a compiled step that computes values from known ones."""
        place = kind, known, wanted
        if place not in self._steps:
            program = dataclasses.replace(self.programs[kind], inputs=known)
            self._steps[place] = jax.jit(
                lambda leaves, values: evaluate(program, leaves, values, wanted)
            )
        return self._steps[place]


class Pass:
    """A model's values on all batches, at one place of its program.

    Only what is read at this place or later is kept, on the host: JAX's device sees one
    batch at a time.

    Attributes:
      leaves: the model's parameters by path; those of later layers may be replaced.
    """

    def __init__(self, network: Network, model: PyTree) -> None:
        self.leaves = path_leaves(model)
        self._network = network
        self._values: list[Values] = list(network.data)
        self._known = {k: p.inputs for k, p in network.programs.items()}

    def __len__(self) -> int:
        return len(self._values)

    def layers(self, batch: int = 0) -> dict[str, Layer]:
        """Returns the layers by kernel, in program order, as a batch sees them."""
        return self._network.layers[self._network.kinds[batch]]

    def returns(self, kernel: str) -> bool:
        """Returns whether a layer's value is all that the network returns."""
        return self._program.outputs == (self.layers()[kernel].total,)

    def advance(self, kernel: str) -> None:
        """Runs all batches up to a layer, with the parameters as they are now."""
        wanted = {
            kind: live_values(program, self._network.layers[kind][kernel].number)
            for kind, program in self._network.programs.items()
        }
        for batch, kind in enumerate(self._network.kinds):
            self._values[batch] = jax.device_get(self.read(batch, wanted[kind]))
        self._known = wanted

    def read(self, batch: int, wanted: tuple[ValueId, ...]) -> Values:
        """Computes values of a batch from those that are kept."""
        kind = self._network.kinds[batch]
        known = dict(zip(self._known[kind], self._values[batch], strict=True))
        if known.keys() >= set(wanted):
            return [known[value] for value in wanted]
        step = self._network.step(kind, self._known[kind], wanted)
        return step(self.leaves, self._values[batch])

    def behind(self, layer: Layer, fill: float, leaves: Leaves) -> Array:
        """Returns a layer's value where its product is ``fill`` everywhere."""
        aval = self._program.avals[layer.equation.results[0]]
        probe = dataclasses.replace(self._program, inputs=layer.equation.results)
        filled = [jnp.full(aval.shape, fill, aval.dtype)]
        return evaluate(probe, leaves, filled, [layer.value])[0]

    @property
    def _program(self) -> Program:
        return self._network.programs[self._network.kinds[0]]
