"""Tasks that give every pixel a class (ZipIt!, Section 4: DeepLabV3 on PASCAL VOC)."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer
from matplotlib.colors import hsv_to_rgb

import zipjax
from experiments.parents.tasks.classes import cross_entropies
from experiments.parents.tasks.suite import Forward
from zipjax.types import AnyArray, Array

# Hues that are this far apart never come back, and stay apart however many there are.
_HUE_STEP = (5**0.5 - 1) / 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PixelLogits:
    """Outputs ``[batch, height, width, classes]`` that are the logits of pixels.

    Attributes:
      classes: number of classes.
      unlabelled: the value of a mask's pixels that have none. These count nowhere, and
        neither do those outside of an image.
    """

    classes: int = dataclasses.field(metadata={"static": True})
    unlabelled: int = dataclasses.field(metadata={"static": True})

    metric: ClassVar[str] = "mIoU"
    outside: ClassVar[float] = 255.0  # No class: masks are of bytes.

    def losses(self, outputs: Array, targets: Array) -> Array:
        """Returns every image's mean cross-entropy over its labelled pixels."""
        known = self._known(targets)
        labels = jnp.where(known, targets, 0).astype(int)
        return _over_pixels(cross_entropies(outputs, labels), known)

    def figures(self, outputs: Array, targets: Array) -> dict[str, Array]:
        """Returns every image's share of labelled pixels whose class is right."""
        right = outputs.argmax(-1) == targets
        return {"accuracy": _over_pixels(right, self._known(targets))}

    def score(self, forward: Forward, batches: Iterable[tuple[Any, Any]]) -> float:
        """Returns the mean intersection over union."""
        found = zipjax.evaluate_segmentation(
            forward, batches, num_classes=self.classes, ignore=self.unlabelled
        )
        return found.mean_iou

    def drawn_targets(
        self, targets: Integer[AnyArray, "batch height width"]
    ) -> Float[np.ndarray, "batch height width 3"]:
        """Returns masks in one colour per class; unlabelled pixels are black."""
        masks = np.asarray(targets)
        known = masks != self.unlabelled
        return _colours(self.classes)[np.where(known, masks, 0)] * known[..., None]

    def drawn_outputs(
        self, outputs: Float[AnyArray, "batch height width classes"]
    ) -> Float[np.ndarray, "batch height width 3"]:
        """Returns the predicted classes in their colours."""
        return _colours(self.classes)[np.asarray(outputs).argmax(-1)]

    def _known(
        self, targets: Integer[Array, "batch height width"]
    ) -> Bool[Array, "batch height width"]:
        return (targets != self.unlabelled) & (targets != self.outside)


def _over_pixels(
    values: Array, known: Bool[Array, "batch height width"]
) -> Float[Array, "batch"]:
    """Returns every image's mean over known pixels; 0 if it has none."""
    total = jnp.where(known, values, 0).sum((1, 2))
    return total / jnp.maximum(known.sum((1, 2)), 1)


def _colours(count: int) -> Float[np.ndarray, "classes 3"]:
    """Returns colours that differ in hue and lightness from one to the next."""
    numbers = np.arange(count)
    hues = numbers * _HUE_STEP % 1
    return hsv_to_rgb(
        np.stack([hues, 0.85 - numbers % 2 * 0.4, 1 - numbers % 3 / 4], 1)
    )
