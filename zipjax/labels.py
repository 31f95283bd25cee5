"""What models are evaluated on: batches, tasks and embeddings of classes, checked."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from zipjax.arguments import shown


def labelled(batch: Any) -> tuple[Any, Any]:
    """Returns a batch's inputs and labels.

    Raises:
      ValueError: if the batch is no pair.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"a batch to evaluate is {shown(batch)}: pass pairs (inputs, labels), for "
            "instance ((b['image'], b['label']) for b in batches)"
        )
    return batch[0], batch[1]


def whole_labels(labels: Any, axes: str) -> np.ndarray:
    """Returns labels as integers.

    Args:
      labels: an array of numbers.
      axes: the names of its axes, such as "[batch, tasks]".

    Raises:
      ValueError: if the labels are no whole numbers or have more or fewer axes.
    """
    array = np.asarray(labels)
    numbers = array.dtype.kind in "biuf" and np.isfinite(array).all()
    fits = array.ndim == len(axes.split(","))
    if not fits or not numbers or (array != np.floor(array)).any():
        raise ValueError(
            f"labels are {array.dtype}{list(array.shape)}, such as "
            f"{array.ravel()[:4].tolist()}: pass classes as whole numbers {axes}"
        )
    return array.astype(np.int64)


def task_classes(
    tasks: Sequence[Sequence[int]], count: int | None = None
) -> list[np.ndarray]:
    """Returns every task's classes as integers.

    Args:
      tasks: every task's classes.
      count: how many classes have embeddings, if there are embeddings.

    Raises:
      ValueError: if there are no tasks, if one has no classes or what are no whole
        numbers from 0 on, if tasks share a class, or if a class has no embedding.
    """
    rows = [np.asarray(task) for task in tasks] if isinstance(tasks, Iterable) else []
    if not rows or not all(map(_are_classes, rows)):
        raise ValueError(
            f"tasks = {tasks}: give every task some classes, as whole numbers from 0 "
            "on, such as [[0, 1], [2, 3]]"
        )
    rows = [row.astype(np.int64) for row in rows]
    found, times = np.unique(np.concatenate(rows), return_counts=True)
    twice = found[times > 1].tolist()
    strange = [] if count is None else found[found >= count].tolist()
    if twice or strange:
        outside = f"classes {strange} outside of 0..{(count or 0) - 1}"
        raise ValueError(
            f"the tasks {[row.tolist() for row in rows]} have classes {twice} twice"
            f"{f' and {outside}' if strange else ''}: give every task classes of its "
            "own, numbered by the rows of class_embeddings if there are any"
        )
    return rows


def class_vectors(name: str, vectors: Any) -> np.ndarray:
    """Returns embeddings of classes ``[classes, dim]`` in float64.

    Raises:
      ValueError: if they are no vectors of finite real numbers.
    """
    array = real_array(vectors)
    if array is None or array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(
            f"{name} is {shown(vectors)}, which are no finite vectors [classes, dim]: "
            "pass the embeddings that the models were trained on"
        )
    return array


def real_array(values: Any) -> np.ndarray | None:
    """Returns numbers in float64; None for what are no real numbers."""
    try:
        array = np.asarray(values)
        return None if np.iscomplexobj(array) else array.astype(np.float64)
    except (TypeError, ValueError):
        return None


def _are_classes(task: np.ndarray) -> bool:
    if task.dtype.kind not in "iuf" or task.ndim != 1 or not task.size:
        return False
    return bool(np.isfinite(task).all() and (task == np.abs(np.floor(task))).all())
