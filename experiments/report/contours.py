"""Pictures of losses on a plane of networks."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from experiments.report.plane import Landscape
from experiments.report.style import MARKERS, WIDTH
from experiments.results import letter

_LEAST_LOSS = 1e-3  # Lower losses are drawn as this one.
_NAMED = 3  # So many networks have their names beside them; zips of more, a legend.


def loss_contours(landscape: Landscape, *, mean: bool = False) -> Figure:
    """Draws every task's loss on a plane of networks.

    Args:
      landscape: the losses.
      mean: whether to draw the tasks' mean loss, too.

    Returns:
      The figure, one panel per task, all with the same logarithmic colours.
    """
    losses = np.maximum(landscape.losses, _LEAST_LOSS)
    titles = [f"Loss of task {letter(number)}" for number in range(len(losses))]
    if mean:
        losses = np.concatenate([losses.mean(0, keepdims=True), losses])
        titles.insert(0, "Mean loss")
    levels = np.geomspace(losses.min(), max(losses.max(), 2 * losses.min()), 15)
    # As high as equal scales make the panels, with room for titles and colours.
    ratio = np.ptp(landscape.y) / np.ptp(landscape.x)
    several = len(landscape.names) > _NAMED
    height = 1.3 + 0.9 * WIDTH / len(losses) * ratio + 0.5 * several
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(losses), sharex=True, sharey=True, squeeze=False)[0]
    style = {"norm": LogNorm(levels[0], levels[-1]), "cmap": "viridis_r"}
    shades = [
        axes.contourf(landscape.x, landscape.y, task, levels, **style)
        for axes, task in zip(panels, losses, strict=True)
    ]
    for title, axes in zip(titles, panels, strict=True):
        _mark_networks(axes, landscape)
        axes.set(title=title, aspect="equal")
    if several:
        handles, names = panels[0].get_legend_handles_labels()
        style = {"loc": "outside upper center", "frameon": False, "ncols": len(names)}
        figure.legend(handles, names, **style)
    bar = figure.colorbar(shades[0], ax=panels, location="bottom", aspect=40)
    bar.set_label("cross-entropy")
    bar.set_ticks(levels[::2], labels=[f"{level:.2g}" for level in levels[::2]])
    bar.ax.minorticks_off()
    return figure


def _mark_networks(axes: Axes, landscape: Landscape) -> None:
    """Marks the two networks and their zips, and names the networks.

    A single zip is named, too; several, which may lie close together, have markers.
    """
    corners, names = landscape.corners, landscape.names
    axes.plot(*corners[:2].T, color="black", ls="--", lw=1)
    axes.plot(*corners[:2].T, "o", color="black", mec="white", ms=6)
    zips = list(zip(names[2:], corners[2:], strict=True))
    marks = MARKERS[1:] if len(zips) > 1 else MARKERS
    for (name, place), marker in zip(zips, marks, strict=False):
        style = {"color": "black", "mec": "white", "ms": 8, "label": name, "ls": ""}
        axes.plot(*place, marker=marker, **style)
    for name, place in [
        *zip(names[:2], corners, strict=False),
        *zips * (len(zips) < 2),
    ]:
        # Names go to the side where there are fewer networks.
        shift, va = (9, "bottom") if place[1] > corners[:, 1].mean() else (-9, "top")
        axes.annotate(
            name,
            place,
            (0, shift),
            textcoords="offset points",
            ha="center",
            va=va,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
