"""What networks cost: multiplications of data by kernels, at any widths."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from zipjax.merging.networks import Networks
from zipjax.program.layers import find_layers
from zipjax.program.program import trace
from zipjax.program.rows import kernel_axes
from zipjax.spec.entries import Entries, axes_of, entry_size
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import ApplyFn, PyTree


class Kernel(NamedTuple):
    """A kernel: its axes, and how often each of its numbers is multiplied."""

    entries: Entries
    shape: tuple[int, ...]
    uses: int

    @property
    def perms(self) -> set[str]:
        """The perms that it reads or writes."""
        return {axis.perm for entry in self.entries for axis in axes_of(entry)}

    def price(self, sizes: Mapping[str, int]) -> int:
        """Returns the multiplications at these widths."""
        found = [entry_size(entry, sizes) for entry in self.entries]
        shape = [
            own if n is None else n for own, n in zip(self.shape, found, strict=True)
        ]
        return self.uses * math.prod(shape)


def find_kernels(
    apply_fn: ApplyFn, model: PyTree, spec: PermutationSpec, inputs: Sequence[PyTree]
) -> dict[str, Kernel]:
    """Finds a model's kernels by path."""
    program = trace(apply_fn, model, *inputs)
    found = {}
    for path, layer in find_layers(program).items():
        if layer.part:
            continue  # A stack's layers cannot differ in width.
        produced = math.prod(layer.shape[k] for k in kernel_axes(layer)[1])
        values = math.prod(program.avals[layer.equation.results[0]].shape)
        found[path] = Kernel(spec.entries[path], layer.shape, values // produced)
    return found


def merged_kernel(kernel: Kernel, path: str, networks: Networks) -> Kernel:
    """Returns a kernel as the merged model uses it: those of heads once per model."""
    if path in networks.trunk:
        return kernel
    own = kernel._replace(uses=len(networks) * kernel.uses)
    # After a cut inside a stream, heads keep their models' widths.
    return (
        own._replace(entries=(None,) * len(own.shape)) if networks.boundaries else own
    )


def total_price(kernels: Iterable[Kernel], sizes: Mapping[str, int]) -> int:
    """Returns the multiplications of kernels at these widths."""
    return sum(kernel.price(sizes) for kernel in kernels)
