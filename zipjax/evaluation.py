"""Joint and per-task accuracy of single, merged and multi-head models.

Heads are either classifiers (logits) or CLIP-style: outputs in the space of text
embeddings, of which the class with the largest cosine wins (Radford et al. 2021), so
that models trained on different classes share one output space.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from zipjax.types import AnyArray

_SCALE = 100.0  # CLIP's logit scale.
Task = Sequence[int]
Scores = Float[np.ndarray, "batch classes"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Accuracies, as fractions.

    Attributes:
      joint: over the classes of all tasks; if these share their examples, how often
        all tasks are right about an example.
      tasks: of every task, on its examples and among its classes only.
      count: number of examples.
    """

    joint: float
    tasks: tuple[float, ...]
    count: int

    @property
    def average(self) -> float:
        """The mean of the tasks' accuracies."""
        return float(np.mean(self.tasks))


def evaluate(
    forward: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Int[AnyArray, "batch"]]],
    *,
    tasks: Sequence[Task],
    class_embeddings: Float[AnyArray, "classes dim"] | None = None,
) -> Evaluation:
    """Evaluates a model on examples of all tasks.

    With one output, the joint prediction is the best of the classes of all tasks. With
    one output a head, head k predicts the classes of task k and the heads' softmax
    probabilities are compared; accuracy on task k is that of head k.

    Args:
      forward: maps inputs to the output ``[batch, dim]`` or a list of one output a
        task; for a merged model ``functools.partial(zipjax.apply, apply_fn, merged)``.
      batches: pairs of inputs and integer labels ``[batch]``.
      tasks: every task's classes. Tasks share no class.
      class_embeddings: text embeddings of all classes, by label: logits are 100 times
        the cosine. None for outputs that are logits: either one for every class, by
        label, or, of a head, one for each class of its task in the task's order.

    Returns:
      The accuracies.

    Raises:
      ValueError: if tasks overlap, a label belongs to no task, a task has no examples,
        the number of heads is not that of the tasks, or outputs have another width.
    """
    classes = _all_classes(tasks)
    joint_hits, count = 0, 0
    hits, totals = np.zeros(len(tasks)), np.zeros(len(tasks))
    for inputs, batch_labels in batches:
        labels = np.asarray(batch_labels)
        _check_labels(labels, classes)
        scores = _task_scores(forward(inputs), tasks, class_embeddings)
        joint = classes[np.concatenate(scores, axis=1).argmax(1)]
        joint_hits += int((joint == labels).sum())
        count += labels.size
        for number, (task, score) in enumerate(zip(tasks, scores, strict=True)):
            mine = np.isin(labels, task)
            predicted = np.asarray(task)[score[mine].argmax(1)]
            hits[number] += (predicted == labels[mine]).sum()
            totals[number] += mine.sum()
    if not totals.all():
        raise ValueError(
            f"the tasks have {totals.astype(int).tolist()} examples: every task needs "
            "examples of its classes"
        )
    return Evaluation(joint_hits / count, tuple((hits / totals).tolist()), count)


def evaluate_tasks(
    forward: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Int[AnyArray, "batch tasks"]]],
    *,
    class_embeddings: Sequence[Float[AnyArray, "_classes dim"]] | None = None,
) -> Evaluation:
    """Evaluates a model on tasks that share their examples (MuDSC, Section 4.3).

    Every example has a label of every task, such as whether a digit is prime and
    whether it is odd. With one output a head, head k predicts task k.

    Args:
      forward: maps inputs to the output ``[batch, dim]`` or a list of one output a
        task; see :func:`evaluate`.
      batches: pairs of inputs and integer labels, one column a task.
      class_embeddings: for every task the text embeddings of its classes: the class
        with the largest cosine wins. None for outputs that are logits of one head a
        task.

    Returns:
      The accuracies on all examples; the joint one is the fraction of examples about
      which all tasks are right.

    Raises:
      ValueError: if there are no examples, or the numbers of labels, of embeddings and
        of heads differ, or outputs have another width than the embeddings.
    """
    every: list[np.ndarray] = []
    for inputs, batch_labels in batches:
        labels = np.asarray(batch_labels)
        outputs = _one_each(forward(inputs), labels.shape[1], class_embeddings)
        scores = [
            np.asarray(output)
            if targets is None
            else _scores(output, range(len(targets)), targets)
            for output, targets in outputs
        ]
        predicted = np.stack([score.argmax(1) for score in scores], axis=1)
        every.append(predicted == labels)
    right = np.concatenate(every) if every else np.empty((0, 0))
    if not right.size:
        raise ValueError("no examples of any task: accuracies need at least one")
    return Evaluation(
        float(right.all(1).mean()), tuple(right.mean(0).tolist()), len(right)
    )


def _one_each(
    outputs: Any, tasks: int, class_embeddings: Sequence[Any] | None
) -> list[tuple[Any, Any]]:
    """Returns for every task the output that predicts it, and its embeddings."""
    targets = list(class_embeddings or [None] * tasks)
    if isinstance(outputs, (list, tuple)):
        heads = list(outputs)
    else:
        heads = [outputs] * (1 if class_embeddings is None else tasks)
    if not len(heads) == len(targets) == tasks:
        raise ValueError(
            f"labels of {tasks} tasks, but {len(heads)} outputs and class embeddings "
            f"of {len(targets)}: give one head a task, or one output for all of them "
            "and every task's class embeddings"
        )
    return list(zip(heads, targets, strict=True))


def _task_scores(
    outputs: Any, tasks: Sequence[Task], class_embeddings: Any
) -> list[Scores]:
    """Returns every task's scores ``[batch, its classes]``, comparable among tasks."""
    if not isinstance(outputs, (list, tuple)):
        return [_scores(outputs, task, class_embeddings) for task in tasks]
    if len(outputs) != len(tasks):
        raise ValueError(
            f"the model has {len(outputs)} heads for {len(tasks)} tasks: head k "
            "predicts task k"
        )
    heads = zip(outputs, tasks, strict=True)
    return [_softmax(_scores(out, task, class_embeddings)) for out, task in heads]


def _scores(output: Any, task: Task, class_embeddings: Any) -> Scores:
    """Returns the logits of a task's classes."""
    output = np.asarray(output, np.float64)
    index = np.asarray(task)
    if class_embeddings is not None:
        targets = np.asarray(class_embeddings, np.float64)
        if output.shape[1:] != targets.shape[1:]:
            raise ValueError(
                f"outputs of shape {list(output.shape)} and class embeddings of shape "
                f"{list(targets.shape)} are not of one space"
            )
        return _SCALE * _normalised(output) @ _normalised(targets[index]).T
    if output.shape[1] == index.size:
        return output
    if output.shape[1] <= index.max():
        raise ValueError(
            f"outputs of shape {list(output.shape)} are no logits of the classes "
            f"{index.tolist()}: either one for each of these, or one for every label"
        )
    return output[:, index]


def _all_classes(tasks: Sequence[Task]) -> np.ndarray:
    classes = np.concatenate([np.asarray(task, int) for task in tasks])
    if np.unique(classes).size != classes.size:
        raise ValueError(f"the tasks {[list(t) for t in tasks]} share classes")
    return classes


def _check_labels(labels: np.ndarray, classes: np.ndarray) -> None:
    strange = np.setdiff1d(labels, classes)
    if strange.size:
        raise ValueError(
            f"the labels {strange.tolist()} belong to none of the tasks, whose classes "
            f"are {sorted(classes.tolist())}: filter the batches"
        )


def _normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
