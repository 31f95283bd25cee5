"""Targets of a merged model's outputs."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from zipjax.types import AnyArray, Array

_SCALE = 100.0  # CLIP's logit scale.


def ensemble_target(
    class_embeddings: Float[AnyArray, "classes dim"],
    tasks: Sequence[Sequence[int]],
    *,
    sharpness: float = 8.0,
) -> Callable[[list[Array]], Array]:
    """Returns what the ensemble of CLIP-style models would answer, as one output.

    Every model gives probabilities to its task's classes, softmax(100 cos) as in
    :func:`zipjax.evaluate`. To the power of ``sharpness`` and normalised over all tasks
    they weight the class embeddings: no labels are used, and a model that is unsure,
    because the example is none of its task's, has no say. The target is as long as the
    models' outputs are on average.

    Args:
      class_embeddings: text embeddings of all classes, by label.
      tasks: every model's classes, in the order of the models.
      sharpness: the power; the larger, the closer to the ensemble's best class.

    Returns:
      A target for ``zipjax.refit(..., outputs=...)``.
    """
    directions = jnp.asarray(_unit(np.asarray(class_embeddings, np.float32)))
    classes = [np.asarray(task) for task in tasks]

    def target(outputs: list[Array]) -> Array:
        if len(outputs) != len(classes):
            raise ValueError(
                f"{len(outputs)} models have outputs, but there are {len(classes)} "
                "tasks: name one task a model"
            )
        powers = [
            jax.nn.softmax(_SCALE * _unit(y) @ directions[task].T) ** sharpness
            for y, task in zip(outputs, classes, strict=True)
        ]
        weights = jnp.concatenate(powers, axis=1)
        weights = weights / weights.sum(1, keepdims=True)
        lengths = [jnp.linalg.norm(y, axis=1, keepdims=True) for y in outputs]
        mixed = weights @ directions[np.concatenate(classes)]
        return mixed * sum(lengths[1:], lengths[0]) / len(lengths)

    return target


def _unit(vectors: AnyArray) -> AnyArray:
    """Returns rows of length 1; rows of zeros stay."""
    return vectors / ((vectors**2).sum(1, keepdims=True) + 1e-12) ** 0.5
