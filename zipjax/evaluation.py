"""Joint and per-task accuracy of single, merged and multi-head models; scaled losses.

Outputs are either logits or CLIP-style: vectors in the space of text embeddings, where
the class with the largest cosine wins (Radford et al. 2021), so that models trained on
different classes share one output space.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from zipjax import hosts
from zipjax.arguments import is_number, shown
from zipjax.labels import (
    class_vectors,
    labelled,
    real_array,
    task_classes,
    whole_labels,
)
from zipjax.types import AnyArray, Array

LOGIT_SCALE = 100.0
"""CLIP's logit scale: logits are this times the cosine with a text embedding."""

Task = Sequence[int]
Scores = Float[np.ndarray, "batch classes"]
_Vectors = TypeVar("_Vectors", Array, np.ndarray)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Accuracies, as fractions.

    Attributes:
      joint: accuracy over the classes of all tasks; for tasks that share their
        examples, the fraction of examples that all tasks get right.
      tasks: every task's accuracy, on its own examples and among its own classes.
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
    one output per head, head k predicts the classes of task k, and the joint prediction
    is the class with the largest softmax probability in any head; the accuracy on task
    k is that of head k.

    For example, with four classes in two tasks and outputs that are logits:

    >>> batches = [(np.eye(4), np.array([0, 1, 3, 2]))]
    >>> evaluate(lambda inputs: inputs, batches, tasks=[[0, 1], [2, 3]])
    Evaluation(joint=0.5, tasks=(1.0, 0.0), count=4)

    Args:
      forward: maps inputs to the output ``[batch, dim]`` or to a list of one output per
        task; for a merged model ``functools.partial(zipjax.apply, apply_fn, merged)``.
      batches: pairs of inputs and integer labels ``[batch]``.
      tasks: every task's classes. Tasks share no class.
      class_embeddings: text embeddings of all classes, by label: logits are
        ``LOGIT_SCALE`` times the cosine. None for outputs that are logits: either one
        for every class, by label, or, for a head, one for each class of its task, in
        the task's order.

    Returns:
      The accuracies; under ``jax.distributed``, on the examples of all processes.

    Raises:
      ValueError: if tasks overlap or have no classes, a label belongs to no task, a
        task has no examples, the numbers of heads and of tasks or of outputs and of
        labels differ, or outputs or embeddings are not finite or have the wrong width.
    """
    vectors = None
    if class_embeddings is not None:
        vectors = class_vectors("class_embeddings", class_embeddings)
    groups = task_classes(tasks, None if vectors is None else len(vectors))
    classes = np.concatenate(groups)

    def scored() -> dict[str, np.ndarray]:
        sums = {"joint": np.zeros(1), "hits": np.zeros(len(groups))}
        sums["examples"] = np.zeros(len(groups))
        for inputs, batch_labels in map(labelled, batches):
            labels = whole_labels(batch_labels, "[batch]")
            _check_labels(labels, classes)
            outputs = _checked_outputs(forward(inputs), len(labels))
            scores = _task_scores(outputs, groups, vectors)
            joint = classes[np.concatenate(scores, axis=1).argmax(1)]
            sums["joint"] += (joint == labels).sum()
            for number, (task, score) in enumerate(zip(groups, scores, strict=True)):
                mine = np.isin(labels, task)
                predicted = task[score[mine].argmax(1)]
                sums["hits"][number] += (predicted == labels[mine]).sum()
                sums["examples"][number] += mine.sum()
        return sums

    sums = hosts.total(hosts.together(scored))
    examples = sums["examples"]
    if not examples.all():
        raise ValueError(
            f"the tasks have {examples.astype(int).tolist()} examples: every task "
            "needs examples of its classes"
        )
    count = int(examples.sum())
    shares = (sums["hits"] / examples).tolist()
    return Evaluation(float(sums["joint"][0]) / count, tuple(shares), count)


def evaluate_tasks(
    forward: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Int[AnyArray, "batch tasks"]]],
    *,
    class_embeddings: Sequence[Float[AnyArray, "_classes dim"]] | None = None,
) -> Evaluation:
    """Evaluates a model on tasks that share their examples (MuDSC, Section 4.3).

    Every example has one label for each task, such as whether a digit is prime and
    whether it is odd. With one output per head, head k predicts task k.

    >>> heads = [np.eye(2), np.eye(2)]
    >>> batches = [(heads, np.array([[0, 0], [1, 0]]))]
    >>> evaluate_tasks(lambda inputs: inputs, batches)
    Evaluation(joint=0.5, tasks=(1.0, 0.5), count=2)

    Args:
      forward: maps inputs to the output ``[batch, dim]`` or to a list of one output per
        task; see :func:`evaluate`.
      batches: pairs of inputs and integer labels, one column per task.
      class_embeddings: for every task, the text embeddings of its classes: the class
        with the largest cosine wins. None for outputs that are logits, with one head
        per task.

    Returns:
      The accuracies on all examples; the joint one is the fraction of examples that all
      tasks get right.

    Raises:
      ValueError: if there are no examples, the numbers of labels, embeddings and heads
        differ, labels are no classes, outputs or embeddings are not finite, or they
        differ in width.
    """
    vectors = None
    if class_embeddings is not None:
        vectors = [
            class_vectors(f"class_embeddings[{k}]", own)
            for k, own in enumerate(class_embeddings)
        ]

    def scored() -> dict[str, np.ndarray]:
        sums: dict[str, Any] = {"joint": 0, "hits": 0, "examples": 0}
        for inputs, batch_labels in map(labelled, batches):
            labels = whole_labels(batch_labels, "[batch, tasks]")
            found = _checked_outputs(forward(inputs), len(labels))
            outputs = _one_each(found, labels.shape[1], vectors)
            scores = [
                _scores(x, np.arange(x.shape[1] if own is None else len(own)), own)
                for x, own in outputs
            ]
            for column, score in zip(labels.T, scores, strict=True):
                _check_labels(column, np.arange(score.shape[1]))
            right = np.stack([x.argmax(1) for x in scores], axis=1) == labels
            sums["joint"] += right.all(1).sum()
            sums["hits"] = sums["hits"] + right.sum(0)
            sums["examples"] += len(right)
        return {name: np.atleast_1d(x) for name, x in sums.items()}

    sums = hosts.total(hosts.together(scored))
    count = int(sums["examples"][0])
    if not count:
        raise ValueError("no examples of any task: accuracies need at least one")
    shares = (sums["hits"] / count).tolist()
    return Evaluation(float(sums["joint"][0]) / count, tuple(shares), count)


def scaled_performance(loss: float, parent_loss: float, estimator_loss: float) -> float:
    """Returns where a loss lies between an average estimator's and a parent's.

    This compares tasks whose losses have different units (MuDSC, Eq. 9): 1 is as good
    as the parent, 0 no better than always answering the mean of the labels. Better than
    the parent is above 1, worse than the mean below 0. It holds for metrics that grow
    with quality as well, as long as all three are of one metric.

    >>> scaled_performance(0.25, parent_loss=0.125, estimator_loss=0.625)
    0.75

    Args:
      loss: of the model to judge, on the parent's task.
      parent_loss: of the parent that was trained on the task, L1 in the paper.
      estimator_loss: of the estimator that returns the mean of the training labels
        (for classes, their frequencies), L0 in the paper.

    Raises:
      ValueError: if a loss is no finite number, or the parent's equals the estimator's.
    """
    losses = {
        "loss": loss,
        "parent_loss": parent_loss,
        "estimator_loss": estimator_loss,
    }
    for name, value in losses.items():
        if not is_number(value) or not np.isfinite(value):
            raise ValueError(
                f"{name} is {shown(value)}: pass a finite number, the mean loss over "
                "the same examples for all three"
            )
    own, best, mean = map(float, losses.values())
    if best == mean:
        raise ValueError(
            f"parent_loss = estimator_loss = {best}: the parent learned nothing that "
            "could be kept, so there is no scale; train it for longer"
        )
    return (own - mean) / (best - mean)


def unit_rows(vectors: _Vectors) -> _Vectors:
    """Returns vectors of length 1 with the same directions.

    Args:
      vectors: ``[..., dim]``, of numpy or of JAX (traced ones, too). Zeros stay zeros.
    """
    lengths: Any = ((vectors**2).sum(-1, keepdims=True) + 1e-24) ** 0.5
    return vectors / lengths


def _one_each(
    outputs: Any, tasks: int, class_embeddings: Sequence[Any] | None
) -> list[tuple[Any, Any]]:
    """Returns, for every task, the output that predicts it and its embeddings."""
    targets = list(class_embeddings or [None] * tasks)
    if isinstance(outputs, (list, tuple)):
        heads = list(outputs)
    else:
        heads = [outputs] * (1 if class_embeddings is None else tasks)
    if not len(heads) == len(targets) == tasks:
        raise ValueError(
            f"there are labels of {tasks} tasks, but {len(heads)} outputs, and class "
            f"embeddings of {len(targets)}: give one head per task, or one output for "
            "all of them and every task's class embeddings"
        )
    return list(zip(heads, targets, strict=True))


def _task_scores(
    outputs: Any, tasks: Sequence[np.ndarray], class_embeddings: Any
) -> list[Scores]:
    """Returns every task's scores ``[batch, its classes]``, comparable across tasks."""
    if not isinstance(outputs, (list, tuple)):
        return [_scores(outputs, task, class_embeddings) for task in tasks]
    if len(outputs) != len(tasks):
        raise ValueError(
            f"the model has {len(outputs)} heads for {len(tasks)} tasks: head k "
            "predicts task k"
        )
    heads = zip(outputs, tasks, strict=True)
    return [
        softmax(_scores(output, task, class_embeddings), axis=1)
        for output, task in heads
    ]


def _scores(
    output: np.ndarray, index: np.ndarray, targets: np.ndarray | None
) -> Scores:
    """Returns the logits of a task's classes, given the embeddings of all, if any."""
    if targets is not None:
        if output.shape[1:] != targets.shape[1:]:
            raise ValueError(
                f"outputs of shape {list(output.shape)} and class embeddings of shape "
                f"{list(targets.shape)} are not in one space: pass the embeddings that "
                "the models were trained on"
            )
        return LOGIT_SCALE * unit_rows(output) @ unit_rows(targets[index]).T
    if output.shape[1] == index.size:
        return output
    if output.shape[1] <= index.max():
        raise ValueError(
            f"outputs of shape {list(output.shape)} are not logits of the classes "
            f"{index.tolist()}: give one for each of these, or one for every label"
        )
    return output[:, index]


def _checked_outputs(outputs: Any, examples: int) -> Any:
    """Returns one output or one per head, in float64, after checking them."""
    if isinstance(outputs, (list, tuple)):
        return [_checked_outputs(output, examples) for output in outputs]
    array = real_array(outputs)
    if array is None:
        raise ValueError(
            f"forward returned {shown(outputs)} as an output: return an array [batch, "
            "dim] of real numbers, or a list of one per head, and nothing else, for "
            "instance lambda x: apply_fn(params, x)['logits']"
        )
    if array.ndim != 2 or len(array) != examples:
        raise ValueError(
            f"there are labels of {examples} examples, but an output of shape "
            f"{list(array.shape)}: give every example one row of outputs and one label"
        )
    if bad := (~np.isfinite(array).all(1)).sum():
        raise ValueError(
            f"the outputs of {bad} of {examples} examples are NaN or infinite, so that "
            "they predict nothing: check the model's parameters and the inputs"
        )
    return array


def _check_labels(labels: np.ndarray, classes: np.ndarray) -> None:
    strange = np.setdiff1d(labels, classes)
    if strange.size:
        raise ValueError(
            f"the labels {strange.tolist()[:8]} belong to none of the tasks, whose "
            f"classes are {sorted(classes.tolist())}: remove their examples from the "
            "batches"
        )
