"""A network, run on images in batches."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax

import zipjax
from experiments.data.splits import Split
from experiments.parents import tasks
from experiments.parents.tasks import Task
from experiments.parents.train import Variables
from zipjax.positions import Positions

Model: TypeAlias = Variables | zipjax.Merged


@dataclasses.dataclass(frozen=True)
class Runner:
    """A network, run on images in batches.

    Attributes:
      apply_fn: the network.
      batch_size: number of images in a batch.
      ddof: of measured batch statistics; see :func:`zipjax.reset_batch_stats`.
      positions: that moments are collected from; see :func:`zipjax.collect_moments`.
    """

    apply_fn: Callable[..., Any]
    batch_size: int
    ddof: int
    positions: Positions = "all"

    def batches(self, images: Split) -> Iterator[jax.Array]:
        """Yields normalised images: of several processes, each has its own share."""
        share = jax.process_index(), jax.process_count()
        return (batch for batch, _ in images.batches(self.batch_size, *share))

    def calibrated(self, model: Any, images: Split) -> Any:
        """Returns a model with batch statistics that are measured on these images."""
        return zipjax.reset_batch_stats(
            self.apply_fn, model, self.batches(images), ddof=self.ddof
        )

    def forward(self, model: Model) -> Callable[..., Any]:
        """Returns a function of a model and images: the output, or one per head."""
        if isinstance(model, zipjax.Merged):
            return functools.partial(zipjax.apply, self.apply_fn)
        return jax.jit(self.apply_fn)

    def evaluate(
        self, model: Model, split: Split, chosen: Sequence[Task]
    ) -> zipjax.Evaluation:
        """Evaluates a model on the examples of all tasks."""
        forward = functools.partial(self.forward(model), model)
        return tasks.evaluate_split(forward, split, chosen, self.batch_size)
