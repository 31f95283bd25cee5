"""Tasks that classify the examples of one data set, CLIP-style.

Their networks output into the space of text embeddings, and so can be merged with their
last layers. What a merged network knows is asked of all tasks' examples together.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

import zipjax
from experiments.data.datasets import load_dataset
from experiments.data.splits import Dataset, Split, Track
from experiments.parents.architectures import build, inferred
from experiments.parents.tasks.suite import (
    Forward,
    Scores,
    Suite,
    Task,
    forwarded,
    process,
)
from experiments.parents.text_embeddings import load_class_embeddings
from experiments.results import letter
from zipjax.evaluation import LOGIT_SCALE
from zipjax.merging.each import OneOrEach
from zipjax.types import ApplyFn, Array

S = TypeVar("S", bound="ClassSuite")
_PRIMES = (2, 3, 5, 7)
_NOTES = {
    "split": "Every class belongs to one task, and a task is to classify images of its "
    "own classes. Joint: among the classes of all tasks.",
    "prime_odd": "Every image belongs to both tasks: whether the digit is prime (A), "
    "and whether it is odd (B). Joint: both predictions are right.",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """A classification of the examples of a data set, or of some of them.

    Attributes:
      numbers: for every label of the data set, the class within the task; -1 for labels
        that the task does not have.
      targets: the text embeddings of the classes.
    """

    numbers: Int[np.ndarray, "labels"]
    targets: Float[np.ndarray, "classes dim"]

    def of(self, split: Split) -> Split:
        """Returns the task's examples, labelled with the task's classes."""
        part = split.take(self.numbers[split.labels] >= 0)
        return dataclasses.replace(part, labels=self.numbers[part.labels])


def all_classes(embeddings: np.ndarray) -> Classes:
    """Returns the task of distinguishing all labels, given their embeddings."""
    return Classes(np.arange(len(embeddings)), embeddings)


def some_classes(classes: Sequence[int], embeddings: np.ndarray) -> Classes:
    """Returns the task of distinguishing some labels, given the embeddings of all."""
    numbers = np.full(len(embeddings), -1)
    numbers[list(classes)] = np.arange(len(classes))
    return Classes(numbers, embeddings[list(classes)])


def make_classes(
    name: str, num_tasks: int, embeddings: np.ndarray, encoder: str, key: jax.Array
) -> list[Classes]:
    """Returns the tasks that a config names.

    Args:
      name: "split": the classes are split at random into tasks of equal size (ZipIt!,
        Section 4); "prime_odd": whether a digit is prime, and whether it is odd
        (MuDSC, Section 4.3).
      num_tasks: number of tasks.
      embeddings: text embeddings of all labels ``[labels, dim]``.
      encoder: the text encoder.
      key: PRNG key of the split.

    Raises:
      ValueError: if the name is unknown, or does not fit the number of tasks.
    """
    if name == "split":
        split = split_classes(len(embeddings), num_tasks, key)
        return [some_classes(classes, embeddings) for classes in split]
    if name != "prime_odd" or num_tasks != 2 or len(embeddings) != 10:
        raise ValueError(
            f"there are no {num_tasks} tasks {name!r} on {len(embeddings)} labels: "
            "choose 'split', or 'prime_odd' with 2 tasks on the digits"
        )
    prime = np.isin(np.arange(10), _PRIMES).astype(int)
    return [
        Classes(numbers, load_class_embeddings(text, encoder)[1])
        for numbers, text in ((prime, "prime"), (np.arange(10) % 2, "odd"))
    ]


def split_classes(
    num_classes: int, num_tasks: int, key: jax.Array
) -> tuple[tuple[int, ...], ...]:
    """Splits the classes at random into tasks of equal size (ZipIt!, Section 4).

    Raises:
      ValueError: if the tasks cannot be of equal size.
    """
    if num_tasks < 1 or num_classes % num_tasks:
        raise ValueError(
            f"{num_classes} classes do not split into {num_tasks} tasks of equal size"
        )
    shuffled = np.asarray(jax.random.permutation(key, num_classes))
    tasks = np.sort(shuffled.reshape(num_tasks, -1), axis=1)
    return tuple(tuple(task) for task in tasks.tolist())


def by_label(
    tasks: Sequence[Classes],
) -> tuple[Float[np.ndarray, "labels dim"], list[list[int]]]:
    """Returns the embeddings of all labels, and the labels of every task.

    Labels that no task has get zeros.

    Raises:
      ValueError: if tasks share a label.
    """
    numbers = np.array([task.numbers for task in tasks])
    owners, labels = np.nonzero(numbers >= 0)
    if len(set(labels.tolist())) < len(labels):
        raise ValueError(
            f"the tasks have the labels {sorted(labels.tolist())}: they must share no "
            f"label, or have all {numbers.shape[1]} of them each"
        )
    embeddings = np.zeros((numbers.shape[1], tasks[0].targets.shape[1]))
    for task in tasks:
        embeddings[task.numbers >= 0] = task.targets[task.numbers[task.numbers >= 0]]
    return embeddings, [labels[owners == k].tolist() for k in range(len(tasks))]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cosines:
    """Outputs whose cosines with the text embeddings are the logits, times 100.

    Attributes:
      targets: the embeddings ``[classes, dim]``.
    """

    targets: Any

    metric: ClassVar[str] = "accuracy"
    outside: ClassVar[float] = 0.0

    def losses(self, outputs: Array, targets: Array) -> Array:
        """Returns the cross-entropies with the labels."""
        return cross_entropies(self._logits(outputs), targets)

    def figures(self, outputs: Array, targets: Array) -> dict[str, Array]:
        """Returns where the label has the largest logit."""
        return {"accuracy": self._logits(outputs).argmax(-1) == targets}

    def score(self, forward: Forward, batches: Iterable[tuple[Any, Any]]) -> float:
        """Returns the accuracy."""
        classes = [range(len(self.targets))]
        found = zipjax.evaluate(
            forward, batches, tasks=classes, class_embeddings=np.asarray(self.targets)
        )
        return found.joint

    def _logits(self, outputs: Array) -> Array:
        # Not unit_rows: it rounds differently, and recorded tables were trained so.
        # An output of zeros has no direction, and a norm no gradient there.
        nothing = (outputs * outputs).sum(1, keepdims=True) == 0
        lengths = jnp.linalg.norm(
            jnp.where(nothing, 1.0, outputs), axis=1, keepdims=True
        )
        return LOGIT_SCALE * (outputs / jnp.maximum(lengths, 1e-6)) @ self.targets.T


def cross_entropies(logits: Array, labels: Array) -> Float[Array, "*batch"]:
    """Returns the cross-entropy with its label of every example, or of every pixel."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassSuite(Suite):
    """Tasks that classify the examples of one data set.

    Attributes:
      classes: what each task distinguishes.
      test: the test examples of all tasks.
    """

    classes: tuple[Classes, ...]
    test: Split

    @classmethod
    def of(
        cls,
        classes: Sequence[Classes],
        train: Split,
        test: Split,
        calibration: Split,
        network: nn.Module,
        spec: zipjax.PermutationSpec,
    ) -> "ClassSuite":
        """Makes the tasks of one network.

        Args:
          classes: what each task distinguishes.
          train: training examples of all tasks.
          test: their test examples.
          calibration: training examples for moments, batch statistics and searches.
          network: the network that all tasks are trained with.
          spec: its permutation spec.
        """
        tasks = tuple(
            Task(
                f"Task {letter(number)}",
                own.of(train),
                own.of(test),
                Cosines(jnp.asarray(own.targets)),
                network,
                network.apply,
                spec,
            )
            for number, own in enumerate(classes)
        )
        return cls(tasks, (calibration,), tuple(classes), test)

    @property
    def shares_outputs(self) -> bool:
        """Whether merged networks have one output for all tasks: they have."""
        return True

    @property
    def whole(self) -> None:
        """Merges of everything include the last layer."""

    @property
    def shares_examples(self) -> bool:
        """Whether every example belongs to all tasks."""
        return bool((np.array([own.numbers for own in self.classes]) >= 0).all())

    def subset(self: S, numbers: Sequence[int]) -> S:
        """Returns the suite of some of the tasks, with their examples alone."""
        classes = tuple(self.classes[k] for k in numbers)
        known = np.any([own.numbers >= 0 for own in classes], axis=0)

        def of(split: Split) -> Split:
            return split if known.all() else split.take(known[split.labels])

        return dataclasses.replace(
            self,
            tasks=tuple(self.tasks[k] for k in numbers),
            calibration=tuple(map(of, self.calibration)),
            classes=classes,
            test=of(self.test),
        )

    def searching(self: S, images: int | None) -> S:
        """Returns the suite whose scores are those on so many calibration images."""
        found = self.calibrating(images)
        return found._tested_on(found.calibration[0])

    def testing(self: S, images: int | None) -> S:
        """Returns the suite with so many test images of all tasks, or all."""
        return self._tested_on(self.test.take(slice(images)))

    def _tested_on(self: S, test: Split) -> S:
        tasks = [
            dataclasses.replace(task, test=own.of(test))
            for task, own in zip(self.tasks, self.classes, strict=True)
        ]
        return dataclasses.replace(self, tasks=tuple(tasks), test=test)

    def evaluate(
        self,
        functions: OneOrEach[ApplyFn],
        model: Any,
        size: int,
        only: int | None = None,
    ) -> Scores:
        """Evaluates a model on the examples of all tasks; see :meth:`Suite.evaluate`.

        One output is compared with all tasks' embeddings, so that a network of one task
        is asked about all of them, too.
        """
        del only
        forward = functools.partial(forwarded, functions, model)
        if isinstance(model, zipjax.Merged):
            forward = functools.partial(zipjax.apply, functions, model)
        batches = self.test.batches(size, *process())
        if self.shares_examples:
            numbers = np.array([own.numbers for own in self.classes])
            found = zipjax.evaluate_tasks(
                forward,
                ((images, numbers[:, labels].T) for images, labels in batches),
                class_embeddings=[own.targets for own in self.classes],
            )
        else:
            embeddings, labels = by_label(self.classes)
            found = zipjax.evaluate(
                forward, batches, tasks=labels, class_embeddings=embeddings
            )
        return Scores(found.tasks, found.joint)

    def embeddings_by_label(self) -> tuple[np.ndarray, list[list[int]]]:
        """Returns the embeddings of all labels, and the labels of every task."""
        return by_label(self.classes)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassKind:
    """Suites of the classes of one data set: "split" and "prime_odd".

    A folder of trained networks also holds ``class_embeddings.npy``, the targets of all
    classes ``[classes, dim]``, and ``train_ids.json``, the numbers of the calibration
    images in the training set, in the order in which they are used.

    Attributes:
      config: the experiment's configuration.
      data: the data set.
      embeddings: the text embeddings of all classes ``[classes, dim]``.
      network: the network of all tasks.
      spec: its permutation spec.
    """

    config: Any
    data: Dataset
    embeddings: Float[np.ndarray, "classes dim"]
    network: nn.Module
    spec: zipjax.PermutationSpec

    @classmethod
    def of(cls, config: Any, track: Track) -> "ClassKind":
        """Opens the data set of a config, and builds its network."""
        data = opened(config, track)
        embeddings = _embeddings(config)
        sizes = config.network.to_dict()
        network, spec = build(config.model, sizes, embeddings.shape[1])
        if config.inferred:
            spec = inferred(network, data.train.example())
        return cls(config, data, embeddings, network, spec)

    @property
    def note(self) -> str:
        """What tables of these tasks show."""
        return _NOTES[self.config.tasks]

    def suite(self, key: jax.Array) -> ClassSuite:
        """Returns the tasks that a key draws, or those that the config lists."""
        config = self.config
        if config.classes:
            return self._suite(self._listed(self.embeddings))
        options = config.tasks, config.num_tasks, self.embeddings, config.text_encoder
        return self._suite(make_classes(*options, key))

    def everything(self) -> Task:
        """Returns the task of all classes."""
        return self._suite([all_classes(self.embeddings)]).tasks[0]

    def pretrained(self, folder: Path) -> ClassSuite:
        """Returns the tasks of the networks in a folder.

        Raises:
          ValueError: if an image that the folder names is not in the data set.
          OSError: if a file cannot be read.
        """
        numbers = json.loads((folder / "train_ids.json").read_text(encoding="utf-8"))
        count = self.config.calibration_images
        ids = [f"train_{number:05d}" for number in numbers[:count]]
        listed = self._listed(self.embeddings)
        return self._suite(listed, with_ids(self.data.train, ids))

    def _listed(self, embeddings: np.ndarray) -> list[Classes]:
        return [some_classes(own, embeddings) for own in self.config.classes]

    def _suite(
        self, classes: Sequence[Classes], calibration: Split | None = None
    ) -> ClassSuite:
        config, train = self.config, self.data.train
        images = calibration or train.take(slice(config.calibration_images))
        test = self.data.test.take(slice(config.test_images))
        what = images, self.network, self.spec
        return ClassSuite.of(classes, train, test, *what)


def opened(config: Any, track: Track) -> Dataset:
    """Opens a config's data set: as many examples, normalised as the config says."""
    data = load_dataset(
        config.dataset, config.data_dir, workers=config.workers, track=track
    )
    if config.examples is not None:
        data = data.first(config.examples)
    return data.normalised_by(config.pixels.mean, config.pixels.std)


def _embeddings(config: Any) -> Float[np.ndarray, "classes dim"]:
    """Returns the text embeddings of all classes: a folder's own, or shipped ones."""
    if config.checkpoints is not None:
        return np.load(Path(config.checkpoints) / "class_embeddings.npy")
    names = config.class_names or config.dataset
    return load_class_embeddings(names, config.text_encoder)[1]


def with_ids(split: Split, ids: list[str]) -> Split:
    """Returns the examples of these ids, in their order.

    Raises:
      ValueError: if there are none of some.
    """
    known = [] if split.ids is None else split.ids.tolist()
    places = {name: number for number, name in enumerate(known)}
    if missing := [name for name in ids if name not in places]:
        raise ValueError(
            f"train_ids.json names {len(missing)} images that are not among the "
            f"{len(places)} ids of the dataset, such as {missing[0]!r}: load the "
            "dataset that the networks were calibrated with"
        )
    return split.take(np.array([places[name] for name in ids], int))
