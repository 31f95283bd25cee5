"""Intersection over union and pixel accuracy of models that label every pixel."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer

from zipjax import hosts
from zipjax.arguments import is_whole, shown
from zipjax.labels import labelled, whole_labels
from zipjax.types import AnyArray

Confusion = Int[np.ndarray, "classes classes"]


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """How well a model labels pixels, as fractions.

    Attributes:
      mean_iou: mean intersection over union of the classes that occur, in the truth or
        among the predictions; see :func:`mean_iou`.
      classes: the intersection over union of every class; NaN for one that occurs in
        neither.
      accuracy: share of the pixels whose class is right.
      count: number of pixels, without those to ignore.
    """

    mean_iou: float
    classes: tuple[float, ...]
    accuracy: float
    count: int


def evaluate_segmentation(
    forward: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Integer[AnyArray, "batch height width"]]],
    *,
    num_classes: int,
    ignore: int | None = 255,
) -> Segmentation:
    """Evaluates a model that gives logits for every pixel.

    Pixels of all batches are counted in one confusion matrix, from which intersection
    over union is computed once: it is not averaged over images.

    For example, with one row of three pixels, the last of which is labelled wrongly:

    >>> logits = np.eye(2)[[0, 0, 1]].reshape(1, 1, 3, 2)
    >>> batches = [(logits, np.array([[[0, 0, 0]]]))]
    >>> found = evaluate_segmentation(lambda x: x, batches, num_classes=2)
    >>> found.classes, round(found.accuracy, 3)
    ((0.6666666666666666, 0.0), 0.667)

    Args:
      forward: maps inputs to logits ``[batch, height, width, num_classes]``; of a model
        with several heads, those of one.
      batches: pairs of inputs and masks, integer classes ``[batch, height, width]``.
      num_classes: number of classes.
      ignore: the label of pixels that do not count, whatever is predicted there; None
        if all count.

    Returns:
      Fractions over all pixels; under ``jax.distributed``, over those of all processes.

    Raises:
      ValueError: if no pixel counts, a label is no class, or outputs are not finite or
        have another shape than masks and classes ask for.
    """
    if not is_whole(num_classes) or num_classes < 1:
        raise ValueError(f"num_classes is {shown(num_classes)}: pass a whole number")

    def counted() -> dict[str, np.ndarray]:
        confusion = np.zeros((num_classes, num_classes), np.int64)
        for inputs, masks in map(labelled, batches):
            labels = whole_labels(masks, "[batch, height, width]")
            outputs = _checked_logits(forward(inputs), labels.shape, num_classes)
            predicted, counts = outputs.argmax(-1), labels != ignore
            confusion += _confusion(labels[counts], predicted[counts], num_classes)
        return {"confusion": confusion}

    confusion = hosts.total(hosts.together(counted))["confusion"]
    mean, count = mean_iou(confusion), int(confusion.sum())
    right = int(np.trace(confusion))
    return Segmentation(mean, tuple(_ious(confusion).tolist()), right / count, count)


def mean_iou(confusion: Int[AnyArray, "classes classes"]) -> float:
    """Returns the mean intersection over union of the classes of a confusion matrix.

    Intersection over union of a class is its pixels that are found, divided by those
    that it has or that are taken for it. A class that occurs neither in the truth nor
    among the predictions has none, and is left out of the mean.

    >>> mean_iou(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))  # of 3/4 and 2/3
    0.7083333333333333

    Args:
      confusion: numbers of pixels, by true class and by predicted class.

    Raises:
      ValueError: if these are no counts in a square matrix, or all of them are 0.
    """
    counts = np.asarray(confusion)
    square = counts.ndim == 2 and counts.shape[0] == counts.shape[1]
    if not square or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(
            f"confusion is {shown(confusion)}: pass numbers of pixels [classes, "
            "classes], by true and by predicted class"
        )
    if not counts.any():
        raise ValueError("no pixel has a class: masks need pixels that are not ignored")
    return float(np.nanmean(_ious(counts)))


def _ious(confusion: Confusion) -> Float[np.ndarray, "classes"]:
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def _confusion(
    labels: Int[np.ndarray, "pixels"], predicted: Int[np.ndarray, "pixels"], size: int
) -> Confusion:
    strange = np.setdiff1d(labels, np.arange(size))
    if strange.size:
        raise ValueError(
            f"the labels {strange.tolist()[:8]} are no classes from 0 to {size - 1}: "
            "pass the number of classes of the masks, and the label to ignore"
        )
    pairs = np.bincount(labels * size + predicted, minlength=size * size)
    return pairs.reshape(size, size)


def _checked_logits(
    outputs: Any, masks: tuple[int, ...], classes: int
) -> Float[np.ndarray, "batch height width classes"]:
    """Returns logits for masks of this shape, after checking them."""
    try:
        array = np.asarray(outputs)
        finite = np.isfinite(array)
    except (TypeError, ValueError):
        raise ValueError(
            f"forward returned {shown(outputs)}: return one array [batch, height, "
            "width, classes], for instance lambda x: apply_fn(params, x)['out']"
        ) from None
    if array.shape != (*masks, classes):
        raise ValueError(
            f"masks of shape {list(masks)} and {classes} classes need outputs of shape "
            f"{[*masks, classes]}, not {list(array.shape)}: resize the logits to the "
            "masks, with the classes last"
        )
    if bad := (~finite.all((1, 2, 3))).sum():
        raise ValueError(
            f"the outputs of {bad} of {len(array)} images are NaN or infinite, so that "
            "they predict nothing: check the model's parameters and the inputs"
        )
    return array
