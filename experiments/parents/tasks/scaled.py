"""Objectives of tasks whose losses have units of their own (MuDSC, Eq. 9).

Their metric is where a loss lies between that of an average estimator, 0, and that of
the network that was trained on the task, 1.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.colors import to_rgb

import zipjax
from experiments.parents.tasks.classes import cross_entropies
from experiments.parents.tasks.suite import Forward
from experiments.report.style import colour_of
from zipjax import hosts
from zipjax.types import AnyArray, Array

Colours: TypeAlias = Float[np.ndarray, "batch height width 3"]
"""Images, as fractions of red, green and blue."""


@runtime_checkable
class Measure(Protocol):
    """How outputs are compared with targets; hashable, as static data of a step."""

    def losses(self, outputs: Array, targets: Array) -> Float[Array, "batch"]:
        """Returns the loss of every example that networks are trained with."""
        ...

    def errors(self, outputs: Array, targets: Array) -> Float[Array, "batch"]:
        """Returns the error of every example that models are compared by."""
        ...

    def answer(self, targets: Iterable[np.ndarray]) -> Float[np.ndarray, "*output"]:
        """Returns the output of the average estimator, the same for all inputs.

        Args:
          targets: those of the training examples, in batches.
        """
        ...

    def drawn(self, values: AnyArray) -> Colours:
        """Returns an image of every dense target."""
        ...

    def decided(self, outputs: Array) -> Array:
        """Returns outputs as targets."""
        ...


@dataclasses.dataclass(frozen=True)
class Distance:
    """The mean absolute error over pixels and channels, of targets that are numbers.

    Attributes:
      low: the least target.
      high: the largest.
    """

    low: float = 0.0
    high: float = 1.0

    def losses(self, outputs: Array, targets: Array) -> Float[Array, "batch"]:
        """Returns the mean absolute error of every example."""
        return _per_example(jnp.abs(outputs - targets))

    def errors(self, outputs: Array, targets: Array) -> Float[Array, "batch"]:
        """Returns the mean absolute error of every example."""
        return self.losses(outputs, targets)

    def answer(self, targets: Iterable[np.ndarray]) -> Float[np.ndarray, "*output"]:
        """Returns the mean target, pixel by pixel."""
        total, count = _summed(targets, np.asarray)
        return total / count

    def drawn(self, values: AnyArray) -> Colours:
        """Returns images between 0 and 1, in colour if values have three channels."""
        images = (np.asarray(values) - self.low) / (self.high - self.low)
        return np.broadcast_to(np.clip(images, 0, 1), (*images.shape[:3], 3))

    def decided(self, outputs: Array) -> Array:
        """Returns the outputs, which are values."""
        return outputs


@dataclasses.dataclass(frozen=True)
class Categories:
    """Logits of classes, of images or of their pixels.

    Attributes:
      classes: number of classes.
      counted: whether models are compared by their rate of errors, as MuDSC does for
        pixels, not by the cross-entropy that they are trained with.
    """

    classes: int
    counted: bool

    def losses(self, outputs: Array, targets: Array) -> Float[Array, "batch"]:
        """Returns the mean cross-entropy of every example."""
        return _per_example(cross_entropies(outputs, targets))

    def errors(self, outputs: Array, targets: Array) -> Float[Array, "batch"]:
        """Returns the cross-entropy, or the rate of errors, of every example."""
        if not self.counted:
            return self.losses(outputs, targets)
        return _per_example((outputs.argmax(-1) != targets).astype(jnp.float32))

    def answer(self, targets: Iterable[np.ndarray]) -> Float[np.ndarray, "*output"]:
        """Returns the logarithms of the classes' frequencies, pixel by pixel.

        Every class counts as seen once more (Laplace's rule): none is impossible.
        """
        identity = np.eye(self.classes)
        seen, count = _summed(targets, lambda labels: identity[labels])
        return np.log((seen + 1) / (count + self.classes))

    def drawn(self, values: AnyArray) -> Colours:
        """Returns classes of pixels in colours of their own."""
        known = [to_rgb(colour_of(number)) for number in range(self.classes)]
        return np.array(known)[np.asarray(values)]

    def decided(self, outputs: Array) -> Array:
        """Returns the classes with the largest logits."""
        return outputs.argmax(-1)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Mean errors on one set of examples.

    Attributes:
      parent: of the network that was trained on the task.
      estimator: of the average estimator.
      shuffled: of the network's outputs for other examples of a batch. It is no larger
        than ``parent`` if the network ignores its inputs.
    """

    parent: float
    estimator: float
    shuffled: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled:
    """An objective whose metric is the scaled performance.

    Attributes:
      measure: how outputs are compared with targets.
      scale: what is 1 and what is 0; None before the task's network is trained.
    """

    measure: Measure = dataclasses.field(metadata={"static": True})
    scale: Scale | None = dataclasses.field(default=None, metadata={"static": True})

    metric: ClassVar[str] = "scaled performance"
    outside: ClassVar[float] = 0.0

    def losses(self, outputs: Array, targets: Array) -> Float[Array, "batch"]:
        """Returns the loss of every example."""
        return self.measure.losses(outputs, targets)

    def figures(self, outputs: Array, targets: Array) -> dict[str, Array]:
        """Returns the error of every example."""
        return {"error": self.measure.errors(outputs, targets)}

    def score(self, forward: Forward, batches: Iterable[tuple[Any, Any]]) -> float:
        """Returns the scaled performance.

        Raises:
          ValueError: if there is no scale.
        """
        if self.scale is None:
            raise ValueError(
                "scaled performance without a scale: make the tasks' suite with "
                "Suite.scaled, which runs the networks that were trained on them"
            )
        scale = self.scale.parent, self.scale.estimator
        return zipjax.scaled_performance(self.error(forward, batches), *scale)

    def error(self, forward: Forward, batches: Iterable[tuple[Any, Any]]) -> float:
        """Returns the mean error on batches of inputs and targets, of all processes."""

        def summed() -> dict[str, np.ndarray]:
            total, count = 0.0, 0
            for inputs, targets in batches:
                errors = self.measure.errors(forward(inputs), jnp.asarray(targets))
                total += float(np.sum(np.asarray(errors), dtype=np.float64))
                count += len(targets)
            return {"total": np.array([total]), "count": np.array([float(count)])}

        sums = hosts.total(hosts.together(summed))
        return float(sums["total"][0] / sums["count"][0])

    def scaled(
        self,
        forward: Forward,
        examples: Callable[[], Iterable[tuple[Any, Any]]],
        targets: Iterable[np.ndarray],
    ) -> "Scaled":
        """Returns the objective with its scale.

        Args:
          forward: the network that was trained on the task.
          examples: yields batches of the examples that models will be compared on.
          targets: those of the training examples, in batches.
        """
        answer = jnp.asarray(self.measure.answer(targets), jnp.float32)
        estimator = functools.partial(_always, answer)
        models = forward, estimator, lambda inputs: jnp.roll(forward(inputs), 1, 0)
        errors = (self.error(own, examples()) for own in models)
        return dataclasses.replace(self, scale=Scale(*errors))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledImages(Scaled):
    """A scaled objective whose targets are images, and can be drawn."""

    def drawn_targets(self, targets: AnyArray) -> Colours:
        """Returns an image of every target, fractions of red, green and blue."""
        return self.measure.drawn(targets)

    def drawn_outputs(self, outputs: Array) -> Colours:
        """Returns an image of every output, in the colours of the targets."""
        return self.measure.drawn(self.measure.decided(outputs))


def _always(answer: Array, inputs: Any) -> Array:
    return jnp.broadcast_to(answer, (len(inputs), *answer.shape))


def _per_example(values: Array) -> Float[Array, "batch"]:
    return values.reshape(len(values), -1).mean(1)


def _summed(
    batches: Iterable[np.ndarray], value: Callable[[np.ndarray], np.ndarray]
) -> tuple[Float[np.ndarray, "*output"], int]:
    """Returns the sum over all examples, in float64, and their number."""
    total, count = np.zeros(()), 0
    for batch in batches:
        total = total + value(batch).sum(0, dtype=np.float64)
        count += len(batch)
    return total, count
