"""Networks, run on the images of their tasks in batches."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import zipjax
from experiments.parents.tasks.suite import Scores, Suite, forwarded
from experiments.parents.train import Variables
from zipjax.merging.each import OneOrEach
from zipjax.positions import Positions
from zipjax.types import ApplyFn, Array

Model: TypeAlias = Variables | zipjax.Merged


@dataclasses.dataclass(frozen=True)
class Runner:
    """How networks are run on images in batches.

    Attributes:
      batch_size: number of images in a batch.
      ddof: of measured batch statistics; see :func:`zipjax.reset_batch_stats`.
      positions: that moments are collected from; see :func:`zipjax.collect_moments`.
    """

    batch_size: int
    ddof: int
    positions: Positions = "all"

    def inputs(self, suite: Suite) -> Iterable[Array]:
        """Returns batches of calibration images, to be read as often as needed."""
        return suite.inputs(self.batch_size)

    def calibrated(self, model: Any, suite: Suite, only: int | None = None) -> Any:
        """Returns a model with batch statistics of a suite's calibration images.

        Args:
          model: a merged model, or the variables of one network.
          suite: the tasks.
          only: the task that the model is a network of.
        """
        functions = functions_for(suite, only)
        if only is not None and len(suite.calibration) > 1:
            suite = suite.subset([only])
        return suite.calibrated(functions, model, self.batch_size, self.ddof)

    def evaluate(self, model: Model, suite: Suite, only: int | None = None) -> Scores:
        """Evaluates a model on the test examples of a suite."""
        functions = functions_for(suite, only)
        return suite.evaluate(functions, model, self.batch_size, only)


def functions_for(suite: Suite, only: int | None = None) -> OneOrEach[ApplyFn]:
    """Returns a model's function, or one per head.

    Args:
      suite: the tasks.
      only: the task that the model is a network of; None: it is merged.
    """
    return suite.functions if only is None else suite.tasks[only].apply_fn


def forward_of(
    functions: OneOrEach[ApplyFn], model: Model
) -> Callable[[Model, Any], Any]:
    """Returns a function of a model and images: the output, or one per head."""
    if isinstance(model, zipjax.Merged):
        return functools.partial(zipjax.apply, functions)
    return functools.partial(forwarded, functions)
