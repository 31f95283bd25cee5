"""Pictures of what networks predict, beside the input and the truth."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped
from matplotlib.figure import Figure

from experiments.report.style import WIDTH

_TITLE = 0.35  # Inches above the first row.


def predictions(
    columns: Mapping[str, Shaped[np.ndarray, "examples height width channels"]],
) -> Figure:
    """Draws a row of images for every example.

    Args:
      columns: the images of all examples by the heading of their column, bytes or
        fractions, grey or in colour.

    Raises:
      ValueError: if the columns differ in their number of examples.
    """
    counts = {name: len(images) for name, images in columns.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"columns differ in their number of examples: {counts}")
    (count,) = set(counts.values())
    height, width = next(iter(columns.values())).shape[1:3]
    side = WIDTH / len(columns)
    size = WIDTH, count * side * height / width + _TITLE
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(count, len(columns), squeeze=False)
    for number, (name, images) in enumerate(columns.items()):
        axes[0, number].set_title(name, fontsize=8)
        for row, image in zip(axes[:, number], images, strict=True):
            row.imshow(np.squeeze(image, -1) if image.shape[-1] == 1 else image, "gray")
            row.set_axis_off()
    return figure
