"""Pairs of units, merged one by one (MuDSC, Figure 1)."""

import dataclasses

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.report.style import WIDTH


@dataclasses.dataclass(frozen=True)
class UnitPairs:
    """Units of two networks, and what their mean does in a merged network.

    Attributes:
      perm: the units' perm.
      weights: correlation of the two units' weights.
      activations: correlation of their activations.
      kept: the smaller of the correlations that the merged unit's activations have with
        theirs.
    """

    perm: str
    weights: Float[np.ndarray, "pairs"]
    activations: Float[np.ndarray, "pairs"]
    kept: Float[np.ndarray, "pairs"]


def merged_pairs(pairs: UnitPairs) -> Figure:
    """Draws how alike pairs of units are in weights and activations, and merged.

    Args:
      pairs: the pairs.

    Returns:
      The figure: one point for each pair, whose colour says how much of both units the
      merged one keeps; a star on the pair of which it keeps most.
    """
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    axes = figure.add_subplot()
    # The best are drawn last, where others do not hide them.
    order = np.argsort(pairs.kept)
    shown = axes.scatter(
        pairs.weights[order],
        pairs.activations[order],
        c=pairs.kept[order],
        s=9,
        cmap="viridis",
        vmax=1,
        rasterized=True,  # There may be thousands.
    )
    best = order[-1]
    axes.plot(
        pairs.weights[best],
        pairs.activations[best],
        "*",
        ms=18,
        color="tab:red",
        mec="white",
        label="best merged unit",
    )
    axes.set(
        xlabel="correlation of weights",
        ylabel="correlation of activations",
        title=f"Units of {pairs.perm}, merged in pairs",
    )
    axes.legend(loc="lower right", frameon=False)
    bar = figure.colorbar(shown, ax=axes)
    bar.set_label("correlation of the merged unit with its parents (the smaller)")
    return figure
