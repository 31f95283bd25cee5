"""The picture of accuracy against depth."""

import itertools
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report.style import GREY, MARKERS, WIDTH, colour_of
from experiments.results import (
    AS_TRAINED,
    ENSEMBLE,
    Mean,
    Result,
    Summary,
    is_model,
    summarise,
)

# About how many letters of a legend fit into the width, and how many a mark takes.
_LEGEND_LETTERS, _LEGEND_MARK = 80, 8
# For so many lines of a legend there is room; each further one takes so many inches.
_LEGEND_LINES, _LEGEND_LINE = 4, 0.22


def accuracy_against_depth(results: Iterable[Result], total_layers: int) -> Figure:
    """Draws joint accuracy, if there is one, and the average of the tasks' scores.

    Methods with ``layers`` are a line that starts at the ensemble, where no layer is
    zipped; the ensemble and the single models are levels to compare with, and every
    other method is a full merge. These are drawn side by side at the right end, on
    grey. Bars show the standard deviation over seeds.

    Args:
      results: one result per method and seed.
      total_layers: number of layers of the network, where the axis ends.

    Returns:
      The figure, with a panel for each of the two.

    Raises:
      ValueError: if there are no results or their seeds do not match.
    """
    # The levels to compare with are the networks that were merged.
    rows = [row for row in summarise(results) if AS_TRAINED not in row.method]
    if not rows:
        raise ValueError("no results to draw")
    title = "Average of the tasks" if len(rows[0].tasks) > 1 else "Test examples"
    panels = {title: [_Point.of(r, r.average) for r in rows]}
    joint = [_Point.of(r, r.joint) for r in rows if r.joint is not None]
    if joint:
        panels = {"Joint: classes of all tasks": joint, **panels}
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)
    for panel, (title, points) in zip(axes.flat, panels.items(), strict=True):
        _draw_accuracy(panel, points, total_layers)
        panel.set(title=title, ylabel="accuracy (%)" if joint else "score (%)")
    panel = axes[-1, 0]
    panel.set_xlabel(f"zipped layers of {total_layers} (0: the ensemble)")
    handles, labels = panel.get_legend_handles_labels()
    columns = max(1, _LEGEND_LETTERS // (max(map(len, labels)) + _LEGEND_MARK))
    # A long legend takes its height from the page, not from the panels.
    lines = math.ceil(len(labels) / columns)
    height = 3.6 * len(panels) + _LEGEND_LINE * max(lines - _LEGEND_LINES, 0)
    figure.set_figheight(height)
    style = {"loc": "outside lower center", "frameon": False}
    figure.legend(handles, labels, ncols=columns, **style)
    return figure


class _Point(NamedTuple):
    """A method's accuracy in percent."""

    method: str
    layers: int | None
    mean: float
    std: float

    @classmethod
    def of(cls, row: Summary, accuracy: Mean) -> "_Point":
        return cls(row.method, row.layers, 100 * accuracy.mean, 100 * accuracy.std)


def _draw_accuracy(axes: Axes, points: list[_Point], total_layers: int) -> None:
    ensemble = [point for point in points if point.method == ENSEMBLE]
    models = [point for point in points if is_model(point.method)]
    _draw_levels(axes, ensemble, models)
    colours = map(colour_of, itertools.count(len(models)))
    markers = itertools.cycle(MARKERS)
    for name, zipped in _zips(points).items():
        line = sorted([(0, p.mean, p.std) for p in ensemble] + zipped)
        _draw_points(axes, line, name, color=next(colours), marker=next(markers))
    full = [p for p in points if p.layers is None and p not in models + ensemble]
    end = (1.03 + 0.03 * len(full)) * total_layers
    if full:
        axes.axvspan(1.015 * total_layers, end, color=GREY, alpha=0.15, lw=0)
    for number, point in enumerate(full, start=1):
        # Side by side after the last layer, where bars do not hide each other.
        place = [(total_layers * (1 + 0.03 * number), point.mean, point.std)]
        style = {"color": next(colours), "marker": next(markers), "ls": ""}
        _draw_points(axes, place, point.method, **style)
    axes.set_xlim(-0.03 * total_layers, end)
    ticks = MaxNLocator(integer=True, steps=[1, 2, 5, 10]).tick_values(0, total_layers)
    axes.set_xticks([tick for tick in ticks if 0 <= tick <= total_layers])
    axes.grid(axis="y", alpha=0.25)


def _draw_levels(axes: Axes, ensemble: list[_Point], models: list[_Point]) -> None:
    """Draws the accuracies to compare with as horizontal lines."""
    for point in ensemble:
        axes.axhline(point.mean, color="black", ls="--", lw=1.2, label=point.method)
    for index, point in enumerate(models):
        # Alternating dashes, so that lines at one height are all seen.
        dashes = (3 * index, (3, 3 * max(1, len(models) - 1)))
        style = {"color": colour_of(index), "ls": dashes}
        axes.axhline(point.mean, label=point.method, **style)


def _zips(points: list[_Point]) -> dict[str, list[tuple[int, float, float]]]:
    """Collects the points of each zip: "ZipIt! 7/20" and "ZipIt! full" are one line."""
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for point in points:
        if point.layers is not None and point.method != ENSEMBLE:
            name = re.sub(r"\s+(full|\d+/\d+)$", "", point.method)
            lines.setdefault(name, []).append((point.layers, point.mean, point.std))
    return lines


def _draw_points(axes: Axes, points: list[tuple], label: str, **style: Any) -> None:
    layers, means, stds = zip(*points, strict=True)
    # Bars of length 0 would look like a measured deviation.
    spread = stds if any(stds) else None
    axes.errorbar(layers, means, yerr=spread, label=label, capsize=3, ms=6, **style)
