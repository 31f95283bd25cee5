"""Batches of inputs and labels to evaluate models on, checked."""

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
