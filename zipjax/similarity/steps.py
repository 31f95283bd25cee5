"""One batch's step: activations are read, sampled, and added to running moments."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zipjax.merging.each import OneOrEach, each
from zipjax.positions import positions_of
from zipjax.program.signatures import Signature, abstract, signature_of
from zipjax.similarity.activations import activations, traced_taps
from zipjax.similarity.running import Running, nothing, with_batch
from zipjax.spec.depth import Boundary
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import ApplyFn, Array, PyTree

# Of a batch in an earlier place: enough to see whether units vary.
_FEW = 64

Sums = dict[str, tuple[Running, ...]]
"""By perm: the moments in its last places, and in earlier ones if there are any."""

Samples = list[list[Array]]
"""Of every occurrence, each model's ``[elements, places, samples, units]``."""


@dataclasses.dataclass(frozen=True)
class BatchStep:
    """What is read of a batch; hashable, as it selects the compiled program.

    Attributes:
      functions: the models' functions, or the one of all.
      specs: their specs, or the one of all.
      perms: the perms of a trunk; None for all.
      ends: where every model's trunk ends inside a stream.
      positions: the number of samples that are read of a batch; None for all.
      only: the perms to read.
      height: number of rows of a panel; see :class:`zipjax.similarity.costs.PassPlan`.
      by_rows: whether second moments are sharded by rows: then all of a row's products
        are computed where the row is, those of a pair of units twice.
    """

    functions: OneOrEach[ApplyFn]
    specs: OneOrEach[PermutationSpec]
    perms: tuple[str, ...] | None
    ends: tuple[Boundary | None, ...]
    positions: int | None
    only: tuple[str, ...] = ()
    height: int | None = None
    by_rows: bool = False

    def trace(self, models: Sequence[PyTree], inputs: tuple[Any, ...]) -> None:
        """Traces the models outside of compiled functions, which find the result."""
        shapes = signature_of(inputs)
        for function, spec, end, model in zip(*self._each(), models, strict=True):
            traced_taps(function, spec, self.perms, end, signature_of(model), shapes)

    def add(
        self,
        sums: Sums,
        models: Sequence[PyTree],
        inputs: tuple[Any, ...],
        key: Array,
        start: Any,
    ) -> Sums:
        """Returns the sums with a batch added.

        Args:
          sums: of all batches before.
          models: parameter pytrees.
          inputs: the batch.
          key: PRNG key of the positions.
          start: the first row of the panel.
        """

        def add_one(old: Running, parts: Sequence[Sequence[Array]]) -> Running:
            height = len(old.m2) if self.by_rows else self.height
            return with_batch(old, parts, start, height)

        def add_all(perm: str, old: Running, parts: Samples) -> Running:
            if self._nested(perm):
                return jax.vmap(add_one)(old, parts)
            return add_one(old, [[x[0] for x in models] for models in parts])

        return {
            perm: tuple(
                add_all(perm, old, parts)
                for old, parts in zip(sums[perm], kinds, strict=True)
            )
            for perm, kinds in self.samples(models, inputs, key).items()
        }

    def empty(self, models: Sequence[PyTree], inputs: tuple[Any, ...]) -> Sums:
        """Returns the sums of no samples, in numpy."""
        shapes = _shapes(self, signature_of(list(models)), signature_of(inputs))

        def zeros(perm: str, parts: Any) -> Running:
            found = nothing(parts, self.height)
            if self._nested(perm):
                return found
            return jax.tree_util.tree_map(lambda x: x[0], found)

        return {
            perm: tuple(zeros(perm, parts) for parts in kinds)
            for perm, kinds in shapes.items()
        }

    def _nested(self, perm: str) -> bool:
        """Returns whether the perm's moments have an axis of elements."""
        return self._each()[1][0].elements(perm) is not None

    def _each(self) -> tuple[Sequence[Any], ...]:
        count = len(self.ends)
        functions = each(self.functions, count, "functions")
        return functions, each(self.specs, count, "specs"), self.ends

    def samples(
        self, models: Sequence[PyTree], inputs: tuple[Any, ...], key: Array
    ) -> dict[str, list[Samples]]:
        """Returns every perm's samples, of the last places first."""
        # One after the other: stacked, convolutions become grouped ones, and slower.
        found = [
            activations(function, model, spec, inputs, self.perms, end, self.only)
            for function, spec, end, model in zip(*self._each(), models, strict=True)
        ]
        samples = {}
        for number, perm in enumerate(found[0]):
            read = [own[perm] for own in found]
            _check_alike(perm, [(*own.last, *own.earlier) for own in read])
            own_key = jax.random.fold_in(key, number)
            last = self._sampled([own.last for own in read], own_key, 1)
            places = sum(x.shape[1] for x in read[0].earlier)
            before = self._sampled([own.earlier for own in read], own_key, places)
            samples[perm] = [_joined(last), *([before] if before else [])]
        return samples

    def _sampled(
        self, read: Sequence[Sequence[Array]], key: Array, share: int
    ) -> Samples:
        """Returns every occurrence's samples, of each model.

        Args:
          read: every model's arrays.
          key: PRNG key.
          share: in how many places together as many samples are read as in one.
        """
        found = []
        for number, parts in enumerate(zip(*read, strict=True)):
            samples = parts[0].shape[2]
            most = samples if self.positions is None else min(self.positions, samples)
            count = min(most, max(most // share, _FEW))
            if count < samples:
                own_key = jax.random.fold_in(key, number)
                places = positions_of(jax.random.uniform(own_key, (count,)), samples)
                parts = [x[:, :, places] for x in parts]
            found.append(list(parts))
        return found


@functools.lru_cache(maxsize=32)
def _shapes(
    step: BatchStep, models: Signature, inputs: Signature
) -> dict[str, list[Samples]]:
    """Returns the shapes of a batch's samples, kept between calls."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(step.samples, abstract(models), abstract(inputs), key)


def _joined(parts: Samples) -> Samples:
    """Returns occurrences in one place each as samples of the same place."""
    if len(parts) > 1 and all(models[0].shape[1] == 1 for models in parts):
        return [[jnp.concatenate(own, axis=2) for own in zip(*parts, strict=True)]]
    return parts


def _check_alike(perm: str, read: Sequence[Sequence[Array]]) -> None:
    shapes = {tuple(x.shape[:-1] for x in own) for own in read}
    if len(shapes) > 1:
        raise ValueError(
            f"the units of perm {perm!r} are read at positions of the shapes "
            f"{sorted(shapes)} of one batch in the models: their functions do not read "
            "them alike. Let every head read the trunk's output, and resize after its "
            "first layer"
        )
