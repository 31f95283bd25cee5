"""Losses and scores on lines between two networks (Git Re-Basin, REPAIR)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.report.style import WIDTH, colour_of


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """What is measured at the points of a line, in the mean over the tasks.

    Attributes:
      losses: the loss at every point.
      scores: the score at every point, 1 if it is perfect.
    """

    losses: Float[np.ndarray, "points"]
    scores: Float[np.ndarray, "points"]


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """The line from one network to another.

    Attributes:
      name: how the other one's units are ordered.
      fractions: how far along the line the points lie.
      interpolated: with the batch statistics of the line.
      reset: with batch statistics measured again; without BatchNorm, the same.
    """

    name: str
    fractions: Float[np.ndarray, "points"]
    interpolated: Curve
    reset: Curve


def barrier_curves(lines: Sequence[Line]) -> Figure:
    """Draws the loss and the score along every line.

    Args:
      lines: between the same two networks, at least one.

    Returns:
      The figure: the loss above, the score below, one colour for each line; dashed with
      batch statistics measured again.

    Raises:
      ValueError: if there are no lines.
    """
    if not lines:
        raise ValueError("no lines to draw")
    figure = Figure(figsize=(WIDTH, 6.0), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for number, line in enumerate(lines):
        curves = {"": (line.interpolated, "-"), ", reset": (line.reset, "--")}
        for suffix, (curve, dash) in curves.items():
            style = {"color": colour_of(number), "ls": dash, "marker": ".", "ms": 5}
            label = f"{line.name}{suffix}"
            panels[0].plot(line.fractions, curve.losses, label=label, **style)
            panels[1].plot(line.fractions, 100 * curve.scores, **style)
    panels[0].set(ylabel="loss")
    panels[1].set(ylabel="score (%)", xlabel="place on the line (0: A, 1: B)")
    for panel in panels:
        panel.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside lower center", frameon=False, ncols=len(lines))
    return figure
