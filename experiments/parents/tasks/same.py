"""One task for all networks: they differ in their seeds alone (Git Re-Basin's setting).

Every network outputs the logits of all classes of one data set, so that all layers are
merged, and there is one score: the accuracy.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import zipjax
from experiments.data.splits import Dataset, Split, Track
from experiments.parents.architectures import build, inferred
from experiments.parents.tasks.classes import opened
from experiments.parents.tasks.logits import Logits
from experiments.parents.tasks.suite import Forward, Scores, Suite, Task
from zipjax.merging.each import OneOrEach
from zipjax.types import AnyArray, ApplyFn

S = TypeVar("S", bound="SameSuite")
_SCORE = "Accuracy"


@dataclasses.dataclass(frozen=True, eq=False)
class SameSuite(Suite):
    """The same task once for every network, with one score for all."""

    @property
    def headings(self) -> tuple[str, ...]:
        """The name of the one score."""
        return (_SCORE,)

    @property
    def shares_outputs(self) -> bool:
        """Whether merged networks have one output for all tasks: they have."""
        return True

    @property
    def whole(self) -> None:
        """Merges of everything include the last layer."""

    def columns(self, numbers: Sequence[int]) -> Sequence[int]:
        """Returns the place of the one score, whichever networks are merged."""
        del numbers
        return (0,)

    def searching(self: S, images: int | None) -> S:
        """Returns the suite whose scores are those on so many calibration images."""
        found = self.calibrating(images)
        return found._tested_on(found.calibration[0])

    def _tested_on(self: S, test: Split) -> S:
        tasks = [dataclasses.replace(task, test=test) for task in self.tasks]
        return dataclasses.replace(self, tasks=tuple(tasks))

    def forward(
        self, functions: OneOrEach[ApplyFn], model: Any, number: int
    ) -> Forward:
        """Returns what a model answers: with several heads, their mean probabilities.

        These are given as logarithms, which are logits like those of one head.
        """
        del number
        if not isinstance(model, zipjax.Merged) or not model.heads:
            return super().forward(functions, model, 0)

        def answer(inputs: Any) -> Any:
            return _mean_logits(zipjax.apply(functions, model, inputs))

        return answer

    def evaluate(
        self,
        functions: OneOrEach[ApplyFn],
        model: Any,
        size: int,
        only: int | None = None,
    ) -> Scores:
        """Evaluates a model on the test examples; see :meth:`Suite.evaluate`."""
        del only
        return Scores(super().evaluate(functions, model, size, 0).tasks[:1])

    def losses(self, model: Any, size: int) -> Float[np.ndarray, "tasks"]:
        """Returns the mean loss on the test examples; see :meth:`Suite.losses`."""
        return Suite.losses(self.subset([0]), model, size)


@jax.jit
def _mean_logits(
    outputs: list[Float[AnyArray, "batch classes"]],
) -> Float[AnyArray, "batch classes"]:
    """Returns the logarithms of the mean probabilities that several heads give."""
    every = jax.nn.log_softmax(jnp.stack(outputs))
    return jax.nn.logsumexp(every, axis=0) - np.log(len(outputs))


@dataclasses.dataclass(frozen=True, eq=False)
class SameKind:
    """Suites of one task: "same". A folder of trained networks holds nothing else.

    Attributes:
      config: the experiment's configuration.
      data: the data set.
      network: the network of all seeds.
      spec: its permutation spec.
    """

    config: Any
    data: Dataset
    network: nn.Module
    spec: zipjax.PermutationSpec

    @property
    def note(self) -> str:
        """What tables of this task show."""
        return (
            f"All networks do the same task, the {self.data.num_classes} classes of "
            f"{self.config.dataset}, and differ in their seeds. The ensemble answers "
            "with the mean of their probabilities."
        )

    @classmethod
    def of(cls, config: Any, track: Track) -> "SameKind":
        """Opens the data set of a config, and builds its network."""
        data = opened(config, track)
        network, spec = build(config.model, config.network.to_dict(), data.num_classes)
        if config.inferred:
            spec = inferred(network, data.train.example())
        return cls(config, data, network, spec)

    def suite(self, key: jax.Array) -> SameSuite:
        """Returns the task once for every network, the same for all keys."""
        del key
        return SameSuite((self.everything(),) * self.config.num_tasks, self._images())

    def everything(self) -> Task:
        """Returns the task."""
        train, test = self.data.train, self.data.test
        return Task(
            self.config.dataset,
            train,
            test.take(slice(self.config.test_images)),
            Logits(self.data.num_classes),
            self.network,
            self.network.apply,
            self.spec,
        )

    def pretrained(self, folder: Path) -> SameSuite:
        """Returns the task of the networks in a folder."""
        del folder
        return self.suite(jax.random.key(0))

    def _images(self) -> tuple[Split]:
        images = slice(self.config.calibration_images)
        return (self.data.train.take(images),)
