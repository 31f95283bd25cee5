"""Pictures of losses on a plane of networks."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from experiments.report.plane import Landscape
from experiments.report.style import WIDTH
from experiments.results import letter

_CORNERS = ("A", "B, permuted", "ZipIt!")
_LEAST_LOSS = 1e-3  # Lower losses are drawn as this one.


def loss_contours(landscape: Landscape) -> Figure:
    """Draws every task's loss on a plane through two networks and their zip.

    Args:
      landscape: the losses.

    Returns:
      The figure, one panel per task, all with the same logarithmic colours.
    """
    losses = np.maximum(landscape.losses, _LEAST_LOSS)
    levels = np.geomspace(losses.min(), max(losses.max(), 2 * losses.min()), 15)
    # As high as equal scales make the panels, with room for titles and colours.
    ratio = np.ptp(landscape.y) / np.ptp(landscape.x)
    height = 1.3 + 0.9 * WIDTH / len(losses) * ratio
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(losses), sharex=True, sharey=True, squeeze=False)[0]
    style = {"norm": LogNorm(levels[0], levels[-1]), "cmap": "viridis_r"}
    shades = [
        axes.contourf(landscape.x, landscape.y, task, levels, **style)
        for axes, task in zip(panels, losses, strict=True)
    ]
    for number, axes in enumerate(panels):
        _mark_corners(axes, landscape.corners)
        axes.set(title=f"Loss of task {letter(number)}", aspect="equal")
    bar = figure.colorbar(shades[0], ax=panels, location="bottom", aspect=40)
    bar.set_label("cross-entropy")
    bar.set_ticks(levels[::2], labels=[f"{level:.2g}" for level in levels[::2]])
    bar.ax.minorticks_off()
    return figure


def _mark_corners(axes: Axes, corners: np.ndarray) -> None:
    """Marks and names model A, permuted model B and their zip."""
    outline = [withStroke(linewidth=2.5, foreground="white")]
    axes.plot(*corners[:2].T, color="black", ls="--", lw=1)
    axes.plot(*corners.T, "o", color="black", mec="white", ms=6)
    # The zip's name goes above its point, the others' below theirs, where it is empty.
    styles = ((-9, "top"), (-9, "top"), (9, "bottom"))
    for name, place, (shift, va) in zip(_CORNERS, corners, styles, strict=True):
        axes.annotate(
            name,
            place,
            (0, shift),
            textcoords="offset points",
            ha="center",
            va=va,
            path_effects=outline,
        )
