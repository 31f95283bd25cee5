"""Pictures of what iterates, of what is searched, and of losses on a plane."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

import zipjax
from experiments.plane import Landscape
from experiments.plots import COLOURS, WIDTH
from experiments.results import letter

_CORNERS = ("A", "B, permuted", "ZipIt!")
_LEAST_LOSS = 1e-3  # Lower ones are all drawn as this.


def objective_curves(sweeps: Mapping[str, Sequence[zipjax.Sweep]]) -> Figure:
    """Draws the objective of every sweep of coordinate descent, relative to its best.

    Args:
      sweeps: the sweeps of every method by its title, from the start on.

    Returns:
      The figure. Methods compare different things, so that each one's objective is
      drawn as a share of the best that it reached, which a ring marks.

    Raises:
      ValueError: if there are no sweeps.
    """
    if not sweeps or not all(sweeps.values()):
        raise ValueError("no sweeps to draw")
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (title, found), colour in zip(sweeps.items(), COLOURS, strict=False):
        values = np.array([sweep.objective for sweep in found])
        best = int(values.argmax())
        label = f"{title} ({values[best]:.3g})"
        numbers = [sweep.number for sweep in found]
        axes.plot(numbers, values / values[best], ".-", color=colour, label=label)
        axes.plot(numbers[best], 1, "o", mfc="none", ms=9, color=colour)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="sweep (0: the start)", ylabel="share of the best objective")
    axes.legend(frameon=False)
    return figure


def search_curves(searches: Mapping[str, Sequence[zipjax.Search]]) -> Figure:
    """Draws scores against the first searched setting, a line for each of the others.

    Args:
      searches: the searches of every method by its title, one a seed. All are over the
        same settings.

    Returns:
      The figure: thin lines for the seeds, a thick one for their mean, a ring at the
      best of every seed.

    Raises:
      ValueError: if there are no searches.
    """
    if not searches:
        raise ValueError("no searches to draw")
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    name = next(iter(next(iter(searches.values()))[0].best.settings))
    colours = itertools.cycle(COLOURS)
    for title, found in searches.items():
        best = [search.best for search in found]
        for others, numbers in _lines(found[0], name).items():
            trials = [[search.trials[k] for k in numbers] for search in found]
            values = [trial.settings[name] for trial in trials[0]]
            scores = 100 * np.array([[t.score for t in line] for line in trials])
            colour = next(colours)
            axes.plot(values, scores.T, color=colour, lw=0.7, alpha=0.5)
            label = ", ".join([title, *others])
            axes.plot(values, scores.mean(0), color=colour, lw=2.2, label=label)
            for trial in (t for line in trials for t in line if t in best):
                place = trial.settings[name], 100 * trial.score
                axes.plot(*place, "o", mfc="none", c=colour)
    axes.set(xlabel=name, ylabel="training accuracy,\naverage of the tasks (%)")
    axes.legend(frameon=False)
    return figure


def _lines(search: zipjax.Search, name: str) -> dict[tuple[str, ...], list[int]]:
    """Groups the numbers of trials that differ in one setting alone."""
    lines: dict[tuple[str, ...], list[int]] = {}
    for number, trial in enumerate(search.trials):
        others = [f"{k} = {v:g}" for k, v in trial.settings.items() if k != name]
        lines.setdefault(tuple(others), []).append(number)
    return lines


def loss_contours(landscape: Landscape) -> Figure:
    """Draws every task's loss on a plane through two networks and their zip.

    Args:
      landscape: the losses.

    Returns:
      The figure, one panel a task; all have the same colours, in steps of one factor.
    """
    losses = np.maximum(landscape.losses, _LEAST_LOSS)
    top = max(losses.max(), 2 * losses.min())
    levels = np.geomspace(losses.min(), top, 15)
    # Panels as high as equal scales make them, with room for titles and colours.
    height = 1.3 + 0.9 * WIDTH / len(losses) * np.ptp(landscape.y) / np.ptp(landscape.x)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(losses), sharex=True, sharey=True, squeeze=False)[0]
    colours = {"norm": LogNorm(levels[0], levels[-1]), "cmap": "viridis_r"}
    for number, (axes, task) in enumerate(zip(panels, losses, strict=True)):
        axes.contourf(landscape.x, landscape.y, task, levels, **colours)
        _mark_corners(axes, landscape.corners)
        axes.set(title=f"Loss of task {letter(number)}", aspect="equal")
    bar = figure.colorbar(
        ScalarMappable(**colours), ax=panels, location="bottom", aspect=40
    )
    bar.set_label("cross-entropy")
    bar.set_ticks(levels[::2], labels=[f"{level:.2g}" for level in levels[::2]])
    bar.ax.minorticks_off()
    return figure


def _mark_corners(axes: Axes, corners: np.ndarray) -> None:
    """Marks and names model A, permuted model B and their zip."""
    outline = [withStroke(linewidth=2.5, foreground="white")]
    axes.plot(*corners[[0, 1]].T, color="black", ls="--", lw=1)
    for name, place, drop in zip(_CORNERS, corners, (-9, -9, 9), strict=True):
        axes.plot(*place, "o", color="black", mec="white", ms=6)
        axes.annotate(
            name,
            place,
            (0, drop),
            textcoords="offset points",
            ha="center",
            va="top" if drop < 0 else "bottom",
            path_effects=outline,
        )
