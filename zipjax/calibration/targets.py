"""Targets of the layers and outputs that a refit solves for.

A target is a pytree that can be called: it maps the models' rows ``[samples, units]``
after a layer to the rows that the merged layer should return. Its arrays are data and
the rest is static, so that targets of equal shapes share a compiled program.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from zipjax.arguments import check_number
from zipjax.evaluation import LOGIT_SCALE, unit_rows
from zipjax.labels import class_vectors, task_classes
from zipjax.merging.weights import Matrices, merge_leaf, numbered
from zipjax.spec.entries import Entries
from zipjax.spec.permutation_spec import Perm
from zipjax.types import AnyArray, Array

Target = Callable[[list[Array]], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MergedTarget:
    """The target of a zipped layer: the models' values, merged as its bias would be.

    Attributes:
      matrices: M and U of the layer's perms.
      shares: N times the models' interpolation weights, ``[models]``.
      entries: the kernel's entries on its produced axes, None on the others.
      perms: ``(name, Perm)`` of every perm among these.
      shape: the kernel's shape, with size 1 on its consumed axes.
    """

    matrices: Matrices
    shares: Any
    entries: Entries = dataclasses.field(metadata={"static": True})
    perms: tuple[tuple[str, Perm], ...] = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, rows: list[Array]) -> Array:
        """Returns the merged rows ``[samples, units]``."""
        samples = jnp.stack(rows, axis=1)  # [samples, models, units]
        opened = samples.reshape(-1, len(rows), *self.shape)
        return jax.vmap(self._merged)(opened)

    def _merged(self, values: Array) -> Array:
        """Merges one sample's values ``[models, *shape]``."""
        perms, matrices = dict(self.perms), self.matrices
        merged = merge_leaf(values, self.entries, perms, matrices, self.shares)
        return merged.reshape(-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EnsembleTarget:
    """The predictions of an ensemble of CLIP-style models, as one output.

    Attributes:
      directions: every task's class embeddings with length 1, ``[classes, dim]``.
      sharpness: the power of the probabilities.
    """

    directions: tuple[Any, ...]
    sharpness: Any

    def __call__(self, outputs: list[Array]) -> Array:
        """Returns the target ``[samples, dim]`` of the models' outputs."""
        if len(outputs) != len(self.directions):
            raise ValueError(
                f"{len(outputs)} models have outputs, but there are "
                f"{len(self.directions)} tasks: name one task per model"
            )
        widths = [y.shape[1] for y in outputs]
        if {*widths} != {own.shape[1] for own in self.directions}:
            raise ValueError(
                f"the models' outputs have widths {widths}, but class embeddings have "
                f"{self.directions[0].shape[1]}: pass the embeddings that the models "
                "were trained on"
            )
        powers = [
            jax.nn.softmax(LOGIT_SCALE * unit_rows(y) @ own.T) ** self.sharpness
            for y, own in zip(outputs, self.directions, strict=True)
        ]
        weights = jnp.concatenate(powers, axis=1)
        weights = weights / weights.sum(1, keepdims=True)
        lengths = [jnp.linalg.norm(y, axis=1, keepdims=True) for y in outputs]
        mixed = weights @ jnp.concatenate(self.directions)
        return mixed * sum(lengths[1:], lengths[0]) / len(lengths)


def ensemble_target(
    class_embeddings: Float[AnyArray, "classes dim"],
    tasks: Sequence[Sequence[int]],
    *,
    sharpness: float = 8.0,
) -> Target:
    """Returns a target that makes one output predict what the ensemble predicts.

    Every CLIP-style model gives probabilities to its task's classes, softmax(100 cos)
    as in :func:`zipjax.evaluate`. Raised to the power ``sharpness`` and normalised over
    all tasks, they weight the class embeddings. No labels are used, and a model that is
    unsure, because the example belongs to another task, has little weight. The target
    is as long as the models' outputs are on average.

    Args:
      class_embeddings: text embeddings of all classes, by label.
      tasks: every model's classes, in the order of the models.
      sharpness: the power; the larger, the closer to the ensemble's best class.

    Returns:
      A target for ``zipjax.refit(..., outputs=...)``.

    Raises:
      ValueError: if embeddings are not finite, tasks overlap or name a class that there
        is none of, or if the sharpness is no positive number.
    """
    vectors = class_vectors("class_embeddings", class_embeddings)
    groups = task_classes(tasks, len(vectors))
    positive = "a positive number, such as 8"
    check_number("sharpness", sharpness, lambda x: 0 < x < np.inf, positive)
    directions = unit_rows(vectors)
    own = tuple(jnp.asarray(directions[classes]) for classes in groups)
    return EnsembleTarget(own, sharpness)


def merged_target(
    matrices: Matrices,
    shares: Any,
    entries: Entries,
    perms: Mapping[str, Perm],
    shape: tuple[int, ...],
) -> MergedTarget:
    """Returns the target of a zipped layer, with perms numbered as they come.

    So layers that are alike have equal static data.

    Args:
      matrices: M and U by perm; may have those of other layers.
      shares: see :class:`MergedTarget`.
      entries: see :class:`MergedTarget`.
      perms: the spec's perms.
      shape: see :class:`MergedTarget`.
    """
    merged, tied = numbered(entries, perms, matrices)
    return MergedTarget(merged, shares, *tied, shape)


def as_target(function: Target) -> Target:
    """Returns a target that is a pytree, of any function of the models' rows."""
    if jax.tree_util.all_leaves([function]):
        return jax.tree_util.Partial(function)
    return function


def first_rows(rows: list[Array]) -> Array:
    """The target of a layer that is fitted to its own model."""
    return rows[0]
