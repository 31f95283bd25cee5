"""Tasks, each with its examples and objective, and the suites that they make."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import zipjax
from experiments.data.splits import Split
from zipjax.merging.each import OneOrEach, one_or_each
from zipjax.merging.merged import functions_of, with_leaves
from zipjax.merging.shared_trunk import common_stop
from zipjax.trees import path_leaves, running_stats
from zipjax.types import AnyArray, ApplyFn, Array

S = TypeVar("S", bound="Suite")
Forward = Callable[[Any], Any]
"""Maps a batch of inputs to a network's outputs."""


@runtime_checkable
class Objective(Protocol):
    """What a network's outputs mean: a pytree, whose arrays are data of the step."""

    metric: ClassVar[str]
    """What `score` measures, in a word or two."""

    outside: ClassVar[float]
    """The value of dense targets outside of an image."""

    def losses(self, outputs: Array, targets: Array) -> Float[Array, "batch"]:
        """Returns the loss of every example."""
        ...

    def figures(self, outputs: Array, targets: Array) -> dict[str, Array]:
        """Returns other figures for the log of the training, ``[batch]`` each."""
        ...

    def score(self, forward: Forward, batches: Iterable[tuple[Any, AnyArray]]) -> float:
        """Returns the metric on all batches of inputs and targets, 1 if all is right.

        A metric that compares with the task's own network is 1 where it does as well.
        """
        ...


@runtime_checkable
class Drawable(Protocol):
    """An objective whose targets and outputs can be drawn, as images in colour."""

    def drawn_targets(
        self, targets: AnyArray
    ) -> Float[np.ndarray, "batch height width 3"]:
        """Returns an image of every target, fractions of red, green and blue."""
        ...

    def drawn_outputs(
        self, outputs: Array
    ) -> Float[np.ndarray, "batch height width 3"]:
        """Returns an image of every output, in the colours of the targets."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What one network learns.

    Attributes:
      name: its name in tables.
      train: its training examples.
      test: its test examples.
      objective: what the outputs mean.
      network: the network that is trained, with the outputs of the task.
      apply_fn: its function, which those of other tasks may share.
      spec: the permutation spec of that function.
    """

    name: str
    train: Split
    test: Split
    objective: Objective
    network: nn.Module
    apply_fn: ApplyFn
    spec: zipjax.PermutationSpec


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well a model does its tasks.

    Attributes:
      tasks: the metric of each; None for those that it was not asked about.
      joint: the accuracy among the classes of all tasks, where they have one.
    """

    tasks: tuple[float | None, ...]
    joint: float | None = None

    @property
    def average(self) -> float:
        """The mean over the tasks that it was asked about."""
        known = [score for score in self.tasks if score is not None]
        return sum(known) / len(known)


@dataclasses.dataclass(frozen=True, eq=False)
class Suite:
    """Tasks whose networks are merged with each other.

    Every task has examples of its own, and a model is asked about those of a task with
    that task's head.

    Attributes:
      tasks: the tasks.
      calibration: training examples whose images the moments, batch statistics and
        refits are computed from: those of all tasks in one, or one split per task.
      calibration_tasks: the numbers of the tasks whose splits these are, except where
        a head is measured on its own task's; () for all.
    """

    tasks: tuple[Task, ...]
    calibration: tuple[Split, ...]
    calibration_tasks: tuple[int, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def headings(self) -> tuple[str, ...]:
        """The tasks' names, with what is measured where that is no accuracy."""
        return tuple(
            task.name + ("" if metric == "accuracy" else f", {metric}")
            for task in self.tasks
            for metric in [task.objective.metric]
        )

    def columns(self, numbers: Sequence[int]) -> Sequence[int]:
        """Returns which of the headings the scores of some tasks' merges belong to."""
        return numbers

    @property
    def spec(self) -> zipjax.PermutationSpec:
        """The first network's spec."""
        return self.tasks[0].spec

    @property
    def functions(self) -> OneOrEach[ApplyFn]:
        """The networks' functions, or the one of all."""
        return one_or_each([task.apply_fn for task in self.tasks])

    @property
    def specs(self) -> OneOrEach[zipjax.PermutationSpec]:
        """The networks' specs, or the one of all."""
        return one_or_each([task.spec for task in self.tasks])

    @property
    def cuts(self) -> tuple[zipjax.Cut, ...]:
        """The places where merges may stop, up to that of merges of everything."""
        return tuple(self.spec.cuts[: self.whole])

    @property
    def measured(self) -> tuple[Split, ...]:
        """The splits that moments and the batch statistics of a trunk come from."""
        chosen = self.calibration_tasks or range(len(self.calibration))
        return tuple(self.calibration[k] for k in chosen)

    @property
    def shares_outputs(self) -> bool:
        """Whether merged networks have one output for all tasks."""
        return False

    @property
    def whole(self) -> int | None:
        """The number of the cut where merges of everything stop: before the heads.

        None if there are no heads.
        """
        specs = [task.spec for task in self.tasks]
        same = isinstance(one_or_each(specs), zipjax.PermutationSpec)
        return len(self.spec.cuts) if same else common_stop(specs, None)

    @property
    def layers(self) -> int:
        """The number of layers that merges of everything have in common."""
        return (
            self.spec.layers
            if self.whole is None
            else self.spec.stop(self.whole).layers
        )

    def subset(self: S, numbers: Sequence[int]) -> S:
        """Returns the suite of some of the tasks.

        If none of these is among ``calibration_tasks``, all of them are.
        """
        tasks = tuple(self.tasks[k] for k in numbers)
        shared = len(self.calibration) == 1
        own = self.calibration if shared else [self.calibration[k] for k in numbers]
        places = (numbers.index(k) for k in self.calibration_tasks if k in numbers)
        return dataclasses.replace(
            self,
            tasks=tasks,
            calibration=tuple(own),
            calibration_tasks=tuple(places),
        )

    def calibrating(self: S, images: int | None) -> S:
        """Returns the suite with so many of its calibration images, or all."""
        own = _shared_out(self.calibration, images)
        return dataclasses.replace(self, calibration=own)

    def searching(self: S, images: int | None) -> S:
        """Returns the suite whose scores are those on so many calibration images."""
        found = self.calibrating(images)
        tasks = [
            dataclasses.replace(task, test=split)
            for task, split in zip(found.tasks, found.calibration, strict=True)
        ]
        return dataclasses.replace(found, tasks=tuple(tasks))

    def testing(self: S, images: int | None) -> S:
        """Returns the suite with so many test images (of each task), or all."""
        tasks = [
            dataclasses.replace(task, test=task.test.take(slice(images)))
            for task in self.tasks
        ]
        return dataclasses.replace(self, tasks=tuple(tasks))

    def scaled(self: S, models: Sequence[Any], size: int) -> S:
        """Returns the suite whose metrics know how well the tasks' own networks do.

        Args:
          models: the variables of every task's network.
          size: number of images in a batch.
        """
        del models, size
        return self

    def inputs(self, size: int) -> "Mixed":
        """Returns batches of ``measured``.

        Args:
          size: number of images in a batch.
        """
        return Mixed(self.measured, size)

    def forward(
        self, functions: OneOrEach[ApplyFn], model: Any, number: int
    ) -> Forward:
        """Returns what a model answers about a task; see :meth:`evaluate`."""
        heads = functions_of(functions, model)
        call, variables = heads[number % len(heads)]
        return functools.partial(forwarded, call, variables)

    def evaluate(
        self,
        functions: OneOrEach[ApplyFn],
        model: Any,
        size: int,
        only: int | None = None,
    ) -> Scores:
        """Evaluates a model on the test examples.

        Args:
          functions: the model's function, or one per head.
          model: its variables, or a merged model with one head per task.
          size: number of images in a batch.
          only: the one task that the model is a network of; None: it does all.
        """
        asked = range(len(self.tasks)) if only is None else [only]
        scores: list[float | None] = [None] * len(self.tasks)
        for number in asked:
            task, forward = self.tasks[number], self.forward(functions, model, number)
            batches = task.test.batches(size, *process())
            scores[number] = task.objective.score(forward, batches)
        return Scores(tuple(scores))

    def losses(self, model: Any, size: int) -> Float[np.ndarray, "tasks"]:
        """Returns the mean loss of each task on its test examples.

        Args:
          model: variables of a network that does all tasks.
          size: number of images in a batch.
        """
        found = []
        for task in self.tasks:
            total = 0.0
            for images, targets in task.test.batches(size):
                outputs = forwarded(task.apply_fn, model, images)
                losses = task.objective.losses(outputs, jnp.asarray(targets))
                total += float(np.sum(np.asarray(losses), dtype=np.float64))
            found.append(total / len(task.test))
        return np.array(found)

    def calibrated(self, functions: Any, model: Any, size: int, ddof: int) -> Any:
        """Returns a model with batch statistics of its calibration images.

        Those of a head are measured on its own task's images, after the trunk, if the
        task has any.
        """
        model = zipjax.reset_batch_stats(functions, model, self.inputs(size), ddof=ddof)
        heads = model.heads if isinstance(model, zipjax.Merged) else ()
        if not heads or len(self.calibration) == 1:
            return model
        found = []
        for head, (call, variables), split in zip(
            heads,
            functions_of(functions, model),
            self.calibration,
            strict=True,
        ):
            pairs = running_stats(head)
            if pairs:
                options = {"stats": lambda _, own=pairs: own, "ddof": ddof}
                inputs = Mixed([split], size)
                variables = zipjax.reset_batch_stats(call, variables, inputs, **options)
            found.append(path_leaves(variables))
        return with_leaves(model, found)


def process() -> tuple[int, int]:
    """Returns this process's number, and the number of processes."""
    return jax.process_index(), jax.process_count()


@functools.partial(jax.jit, static_argnums=0)
def forwarded(function: ApplyFn, variables: Any, inputs: Any) -> Any:
    """Runs a network; compiled once for equal shapes."""
    return function(variables, inputs)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Batches of normalised images of several splits, of several processes a share.

    They are read whenever they are asked for: images that are not in memory stay where
    they are. Images of one shape are mixed: every batch has as many of each split.
    Others are in batches of their own, which take turns.

    Attributes:
      splits: the splits.
      size: number of images in a batch.
    """

    splits: Sequence[Split]
    size: int

    def __iter__(self) -> Iterator[Array]:
        streams = [split.batches(self._each_size, *process()) for split in self.splits]
        for parts in itertools.zip_longest(*streams):
            images = [part[0] for part in parts if part is not None]
            if len({image.shape[1:] for image in images}) == 1 < len(images):
                yield jnp.concatenate(images)
            else:
                yield from images

    def __length_hint__(self) -> int:
        number, count = process()
        batches = (math.ceil(len(split) / self._each_size) for split in self.splits)
        turns = [max(-(-(own - number) // count), 0) for own in batches]
        shapes = {split.example().shape for split in self.splits}
        return max(turns) if len(shapes) == 1 else sum(turns)

    @property
    def _each_size(self) -> int:
        return max(self.size // len(self.splits), 1)


def _shared_out(splits: Sequence[Split], images: int | None) -> tuple[Split, ...]:
    """Returns the first images, as many of each split, or all."""
    if images is None:
        return tuple(splits)
    return tuple(split.take(slice(images // len(splits))) for split in splits)
