"""Tasks: the classifications that the networks are trained on."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

import zipjax
from experiments.data.splits import Split
from experiments.parents.text_embeddings import load_class_embeddings

_PRIMES = (2, 3, 5, 7)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A classification of the examples of a dataset, or of some of them.

    Attributes:
      classes: for every label of the dataset, the class within the task; -1 for labels
        that the task does not have.
      targets: the text embeddings of the classes.
    """

    classes: Int[np.ndarray, "labels"]
    targets: Float[np.ndarray, "classes dim"]

    def of(self, split: Split) -> Split:
        """Returns the task's examples, labelled with the task's classes."""
        part = split.take(self.classes[split.labels] >= 0)
        return dataclasses.replace(part, labels=self.classes[part.labels])


def all_classes(embeddings: np.ndarray) -> Task:
    """Makes the task of distinguishing all labels, given their embeddings."""
    return Task(np.arange(len(embeddings)), embeddings)


def some_classes(classes: Sequence[int], embeddings: np.ndarray) -> Task:
    """Makes the task of distinguishing some labels, given the embeddings of all."""
    numbers = np.full(len(embeddings), -1)
    numbers[list(classes)] = np.arange(len(classes))
    return Task(numbers, embeddings[list(classes)])


def make_tasks(
    name: str, num_tasks: int, embeddings: np.ndarray, encoder: str, key: jax.Array
) -> list[Task]:
    """Makes the tasks that a config names.

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
        Task(numbers, load_class_embeddings(text, encoder)[1])
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


def evaluate_split(
    forward: Callable, split: Split, tasks: Sequence[Task], batch_size: int
) -> zipjax.Evaluation:
    """Evaluates a model on the examples of a split; processes share these.

    Args:
      forward: maps images to the output, or to one output per head.
      split: the examples of all tasks.
      tasks: the tasks, which share no examples or all of them.
      batch_size: number of images in a batch.

    Raises:
      ValueError: if tasks share some examples but not all.
    """
    classes = np.array([task.classes for task in tasks])
    share = jax.process_index(), jax.process_count()
    batches = split.batches(batch_size, *share)
    if (classes >= 0).all():
        return zipjax.evaluate_tasks(
            forward,
            ((images, classes[:, labels].T) for images, labels in batches),
            class_embeddings=[task.targets for task in tasks],
        )
    embeddings, labels = by_label(tasks)
    return zipjax.evaluate(forward, batches, tasks=labels, class_embeddings=embeddings)


def by_label(
    tasks: Sequence[Task],
) -> tuple[Float[np.ndarray, "labels dim"], list[list[int]]]:
    """Returns the embeddings of all labels, and the labels of every task.

    Raises:
      ValueError: if not every label belongs to one task.
    """
    classes = np.array([task.classes for task in tasks])
    owners, labels = np.nonzero(classes >= 0)
    if sorted(labels) != list(range(classes.shape[1])):
        raise ValueError(
            f"the tasks have the labels {sorted(labels.tolist())}: they must have "
            f"every label once, or each task all {classes.shape[1]} of them"
        )
    embeddings = np.empty((classes.shape[1], tasks[0].targets.shape[1]))
    for task in tasks:
        embeddings[task.classes >= 0] = task.targets[task.classes[task.classes >= 0]]
    return embeddings, [labels[owners == k].tolist() for k in range(len(tasks))]
