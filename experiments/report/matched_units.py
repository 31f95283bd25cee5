"""Pictures of a merge: which units were merged, and how they correlate.

Models are lettered A, B, C, ...
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mpl_toolkits.axes_grid1 import make_axes_locatable
from numpy.typing import ArrayLike

from experiments.report.style import COLOURS, DARK, GREY, HATCHES, WIDTH, colour_of
from experiments.results import letter

_SINGLE = "single"
_MOST_PIXELS = 512


def correlation_matrix(
    correlation: ArrayLike, assignment: ArrayLike, num_models: int, title: str
) -> Figure:
    """Draws the correlations of all models' units, in the order of the merge.

    Args:
      correlation: of the concatenated units, ``[N*n, N*n]``.
      assignment: the merged unit that each unit goes to, ``[N*n]``.
      num_models: number of models, N.
      title: the figure's title, for instance the perm's name.

    Returns:
      The figure; a strip at the top and the left has the colour of each unit's model.

    Raises:
      ValueError: if the arguments' sizes do not fit.
    """
    order = _merged_order(correlation, assignment, num_models)
    figure = Figure(figsize=(WIDTH, 5.8), layout="tight")
    axes = figure.add_subplot()
    image = axes.imshow(
        np.asarray(correlation)[np.ix_(order, order)],
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        # One pixel a unit, if that is not more than can be seen.
        interpolation="none" if len(order) <= _MOST_PIXELS else "antialiased",
    )
    axes.set(xticks=[], yticks=[])
    divider = make_axes_locatable(axes)
    models = order * num_models // len(order)
    top = _draw_margin(divider.append_axes("top", "3%", pad=0.05), models[None])
    left = _draw_margin(divider.append_axes("left", "3%", pad=0.05), models[:, None])
    kinds = _unit_kinds(assignment, num_models)
    _mark_kinds(axes, left, [kinds[unit] for unit in np.asarray(assignment)[order]])
    bar = figure.colorbar(image, cax=divider.append_axes("right", "4%", pad=0.1))
    bar.set_label("correlation of two units' activations")
    patches = [
        Patch(color=colour_of(model), label=f"unit of model {letter(model)}")
        for model in range(num_models)
    ]
    legend = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "frameon": False}
    axes.legend(handles=patches, ncols=4, **legend)
    top.set_title(f"{title}\n{len(order)} units in the order of the merge")
    return figure


def merge_kinds(assignments: Mapping[str, ArrayLike], num_models: int) -> Figure:
    """Draws how many merged units there are of each kind, one bar per layer.

    Args:
      assignments: for every perm the merged unit that each unit goes to, ``[N*n]``.
      num_models: number of models, N.

    Returns:
      The figure; a bar's parts add up to the number of merged units of its layer.

    Raises:
      ValueError: if there is no layer or an assignment does not fit ``num_models``.
    """
    if not assignments:
        raise ValueError("no assignments to draw")
    layers = [_unit_kinds(a, num_models) for a in assignments.values()]
    height = 1.5 + 0.26 * len(layers)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    start = np.zeros(len(layers), int)
    for kind, style in _kind_styles(set().union(*layers), num_models).items():
        counts = np.array([layer.count(kind) for layer in layers])
        axes.barh(range(len(counts)), counts, left=start, label=kind, **style)
        start += counts
    _label_layers(axes, assignments)
    axes.set(xlabel="merged units", title="Which models' units were merged")
    axes.set_xlim(0, 1.02 * start.max())
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure


def matched_correlations(
    correlations: Mapping[str, ArrayLike],
    assignments: Mapping[str, ArrayLike],
    num_models: int,
) -> Figure:
    """Draws the correlations of all pairs of units that were merged together.

    Args:
      correlations: of the concatenated units of every perm, ``[N*n, N*n]``.
      assignments: the merged unit that each unit goes to, ``[N*n]``.
      num_models: number of models, N.

    Returns:
      The figure: a histogram over all layers, and below it each layer's quartiles.

    Raises:
      ValueError: if the two name different layers, or sizes do not fit.
    """
    if not assignments or set(correlations) != set(assignments):
        raise ValueError(
            f"correlations of {sorted(correlations)}, "
            f"but assignments of {sorted(assignments)}"
        )
    layers = [
        _matched_pairs(correlations[name], assignments[name], num_models)
        for name in assignments
    ]
    figure = Figure(figsize=(WIDTH, 4.6 + 0.24 * len(layers)), layout="constrained")
    upper, lower = figure.subplots(
        2, 1, sharex=True, height_ratios=[3, 0.6 + 0.24 * len(layers)]
    )
    across, within = zip(*layers, strict=True)
    for kind, pairs, colour, offset in (
        ("across models", across, COLOURS[2], -0.15),
        ("within a model", within, COLOURS[3], 0.15),
    ):
        _draw_histogram(upper, np.concatenate(pairs), kind, colour)
        _draw_quartiles(lower, pairs, colour, offset)
    upper.set(title="Correlation of units merged together", ylabel="share of pairs (%)")
    if upper.patches:
        upper.legend(frameon=False)
    _label_layers(lower, assignments)
    least = min((values.min() for values in across + within if values.size), default=0)
    lower.set_xlim(min(-0.25, np.floor(4 * least) / 4) - 0.02, 1.02)
    lower.set_xlabel("correlation (below: each layer's median and quartiles)")
    return figure


def _merged_order(
    correlation: ArrayLike, assignment: ArrayLike, num_models: int
) -> np.ndarray:
    """Orders units by kind of merge, then from high to low mean correlation."""
    labels = _checked(assignment, num_models)
    matrix = _checked_correlation(correlation, labels)
    one_hot = np.eye(labels.max() + 1)[labels]
    size = one_hot.sum(0)
    # Without the diagonal: a unit's correlation with itself says nothing.
    total = np.einsum("iu,ij,ju->u", one_hot, matrix, one_hot, optimize=True)
    own = one_hot.T @ np.diag(matrix)
    mean = (total - own) / np.maximum(size * (size - 1), 1)
    kinds = _unit_kinds(labels, num_models)
    place = [(_kind_rank(kind), -mean[unit], unit) for unit, kind in enumerate(kinds)]
    return np.array(sorted(range(len(labels)), key=lambda i: (place[labels[i]], i)))


def _unit_kinds(assignment: ArrayLike, num_models: int) -> list[str]:
    """Returns for each merged unit the models that its units come from, as a name."""
    labels = _checked(assignment, num_models)
    members: list[list[int]] = [[] for _ in range(labels.max() + 1)]
    for unit, label in enumerate(labels):
        members[label].append(unit * num_models // len(labels))
    return [_kind(models) for models in members]


def _matched_pairs(
    correlation: ArrayLike, assignment: ArrayLike, num_models: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the correlations of merged pairs, across models and within one."""
    labels = _checked(assignment, num_models)
    matrix = _checked_correlation(correlation, labels)
    model = np.arange(len(labels)) // (len(labels) // num_models)
    merged = np.triu(labels[:, None] == labels, k=1)
    across = model[:, None] != model
    return matrix[merged & across], matrix[merged & ~across]


def _draw_margin(margin: Axes, models: np.ndarray) -> Axes:
    """Draws a strip with the colour of each unit's model beside a matrix."""
    colours = [[to_rgb(colour_of(model)) for model in line] for line in models.tolist()]
    margin.imshow(np.array(colours), aspect="auto", interpolation="nearest")
    margin.set(xticks=[], yticks=[])
    return margin


def _mark_kinds(axes: Axes, margin: Axes, kinds: list[str]) -> None:
    """Draws lines between kinds of merged units, and names the kinds that have room."""
    end, places, names = 0, [], []
    for kind, run in itertools.groupby(kinds):
        start, end = end, end + len(list(run))
        if end < len(kinds):
            axes.axhline(end - 0.5, color=DARK, lw=0.6)
            axes.axvline(end - 0.5, color=DARK, lw=0.6)
        if end - start >= 0.035 * len(kinds):
            places.append((start + end - 1) / 2)
            names.append(kind)
    margin.set_yticks(places, names)
    margin.tick_params(length=0)


def _draw_histogram(axes: Axes, values: np.ndarray, kind: str, colour: str) -> None:
    if values.size:
        axes.hist(
            # Rounding may leave a correlation just outside [-1, 1].
            np.clip(values, -1, 1),
            bins=np.linspace(-1, 1, 41).tolist(),
            weights=np.full(values.size, 100 / values.size),
            histtype="stepfilled",
            facecolor=(colour, 0.35),
            edgecolor=colour,
            label=f"{kind} ({values.size} pairs)",
        )


def _draw_quartiles(
    axes: Axes, layers: Sequence[np.ndarray], colour: str, offset: float
) -> None:
    for layer, values in enumerate(layers):
        if values.size:
            low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
            axes.hlines(layer + offset, low, high, color=colour, lw=2)
            axes.plot(median, layer + offset, "o", color=colour, ms=4)


def _label_layers(axes: Axes, names: Iterable[str]) -> None:
    labels = list(names)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _kind(models: list[int]) -> str:
    if len(models) == 1:
        return _SINGLE
    distinct = sorted(set(models))
    return "-".join(map(letter, distinct if len(distinct) > 1 else distinct * 2))


def _kind_rank(kind: str) -> tuple[bool, int, str]:
    """Sorts kinds: those of most models first, single units last."""
    return kind == _SINGLE, -len(set(kind.split("-"))), kind


def _kind_styles(kinds: Iterable[str], num_models: int) -> dict[str, dict[str, Any]]:
    """Gives kinds within a model its colour, the others the colours that are left."""
    own = {f"{letter(i)}-{letter(i)}": colour_of(i) for i in range(num_models)}
    own[_SINGLE] = GREY
    styles: dict[str, dict[str, Any]] = {}
    for index, kind in enumerate(sorted(kinds, key=_kind_rank), start=num_models):
        hatch = "" if kind in own else HATCHES[index // len(COLOURS) % len(HATCHES)]
        colour = own.get(kind, colour_of(index))
        styles[kind] = {"color": colour, "hatch": hatch, "edgecolor": "white"}
    return styles


def _checked(assignment: ArrayLike, num_models: int) -> np.ndarray:
    labels = np.asarray(assignment)
    if labels.ndim != 1 or not labels.size or num_models < 1:
        raise ValueError(
            f"an assignment of shape {labels.shape} for {num_models} models: it must "
            "be a vector with one entry per unit of all models"
        )
    if len(labels) % num_models or set(labels) != set(range(labels.max() + 1)):
        raise ValueError(
            f"an assignment of {len(labels)} units to {labels.max() + 1} merged ones "
            f"does not fit {num_models} models of the same width, or leaves a merged "
            "unit empty"
        )
    return labels


def _checked_correlation(correlation: ArrayLike, labels: np.ndarray) -> np.ndarray:
    matrix = np.asarray(correlation)
    if matrix.shape != (len(labels), len(labels)):
        raise ValueError(
            f"a correlation matrix of shape {matrix.shape}, but {len(labels)} units "
            "are assigned"
        )
    return matrix
