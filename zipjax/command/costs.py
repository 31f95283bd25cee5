"""The memory that a merge needs, foretold from shapes."""

import dataclasses
from collections.abc import Sequence

from zipjax.command.matching import moment_bytes, moment_parts
from zipjax.command.settings import Settings
from zipjax.command.terminal import megabytes
from zipjax.recipes.presets import Recipe
from zipjax.similarity.costs import pass_bytes, passes
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import path_leaves
from zipjax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a merge takes; activations and compiled programs are not counted.

    Attributes:
      models: of all models.
      merged: of the merged model, as large as one of them.
      moments: of all moments: on the host in the end, and meanwhile on every device.
      batches: of the inputs.
      passes: how often the batches are read for moments.
    """

    models: int
    merged: int
    moments: int
    batches: int
    passes: int

    @property
    def peak(self) -> int:
        """The most at one time: moments and the merged model follow each other."""
        return self.models + self.batches + self.moments + self.merged

    def text(self) -> str:
        """Returns a line for people."""
        again = f" in {self.passes} passes" if self.passes > 1 else ""
        return (
            f"models {megabytes(self.models)}, moments {megabytes(self.moments)}"
            f"{again}, merged {megabytes(self.merged)}, inputs "
            f"{megabytes(self.batches)}: about {megabytes(self.peak)} and the "
            "activations of a batch"
        )


def needed_memory(
    models: Sequence[PyTree],
    spec: PermutationSpec,
    recipe: Recipe,
    batches: Sequence[Sequence[object]],
    settings: Settings,
) -> Memory:
    """Returns the memory that a merge takes."""
    sizes = [sum(_bytes(x) for x in path_leaves(model).values()) for model in models]
    count, moments, number = len(models), 0, 0
    if recipe.compares_activations and spec.perms:
        for part in moment_parts(spec, count, recipe, settings):
            shapes = _shapes(spec, count, part)
            plan = passes(shapes, settings.memory_limit)
            held = max(pass_bytes(own, shapes) for own in plan)
            moments = max(moments, moment_bytes(spec, count, part) + held)
            number += len(plan)
    inputs = sum(_bytes(x) for batch in batches for x in batch)
    return Memory(sum(sizes), max(sizes), moments, inputs, number)


def _shapes(
    spec: PermutationSpec, count: int, perms: Sequence[str]
) -> dict[str, tuple[int, int]]:
    return {
        perm: (spec.elements(perm) or 1, count * spec.units(perm)) for perm in perms
    }


def _bytes(array: object) -> int:
    return int(getattr(array, "nbytes", 0))
