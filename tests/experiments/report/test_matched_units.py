"""Pictures of merged units: the drawn values are the given ones."""

import io
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments.report import matched_units
from experiments.report.style import COLOURS


def _correlation(units: int, seed: int = 0) -> np.ndarray:
    return np.corrcoef(np.random.default_rng(seed).normal(size=(units, 30)))


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return file.getvalue()


def test_correlation_matrix_is_ordered_by_kind_then_correlation():
    correlation = np.eye(8)
    # Model A is units 0-3, B is 4-7. Merged: 0+5 (A-B), 1+6 (A-B), 2+3 (A-A), 4, 7.
    assignment = np.array([0, 1, 2, 2, 3, 0, 1, 4])
    for a, b, value in ((0, 5, 0.3), (1, 6, 0.9), (2, 3, 0.99)):
        correlation[a, b] = correlation[b, a] = value
    figure = matched_units.correlation_matrix(correlation, assignment, 2, "dense0")
    order = [1, 6, 0, 5, 2, 3, 4, 7]
    (image,) = figure.axes[0].images
    np.testing.assert_array_equal(image.get_array(), correlation[np.ix_(order, order)])
    assert image.get_clim() == (-1, 1)
    _, top, left, _ = figure.axes
    expected = [COLOURS[unit // 4] for unit in order]
    for strip in (top.images[0].get_array()[0], left.images[0].get_array()[:, 0]):
        assert [to_hex(colour).upper() for colour in strip] == expected
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["A-B", "A-A", "single"]
    assert "dense0" in top.get_title()
    assert _png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("num_models", [2, 3, 5])
def test_correlation_matrix_shows_every_unit_once(num_models):
    units = 6 * num_models
    correlation = _correlation(units)
    assignment = np.random.default_rng(1).permutation(np.arange(units) % 6)
    figure = matched_units.correlation_matrix(correlation, assignment, num_models, "x")
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(
        np.sort(drawn.sum(0)), np.sort(correlation.sum(0)), atol=1e-12
    )
    np.testing.assert_allclose(np.diag(drawn), 1)


def _bars(figure: Figure) -> dict[str, list[float]]:
    return {
        container.get_label(): [bar.get_width() for bar in container]
        for container in figure.axes[0].containers
    }


def test_merge_kinds_counts_merged_units():
    assignments = {
        "dense0": np.array([0, 1, 2, 2, 3, 0, 1, 4]),
        "dense1": np.array([0, 0, 0, 1, 1, 2, 2, 2]),
    }
    figure = matched_units.merge_kinds(assignments, 2)
    assert _bars(figure) == {
        "A-B": [2, 1],
        "A-A": [1, 1],
        "B-B": [0, 1],
        "single": [2, 0],
    }
    ends = np.cumsum(list(_bars(figure).values()), axis=0)
    starts = [[bar.get_x() for bar in part] for part in figure.axes[0].containers]
    np.testing.assert_array_equal(starts[1:], ends[:-1])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["dense0", "dense1"]


@pytest.mark.parametrize("num_models", [2, 3, 4, 6])
def test_merge_kinds_add_up_for_any_number_of_models_and_layers(num_models):
    rng = np.random.default_rng(0)
    assignments = {
        f"stage{layer}/block/inner": rng.permutation(np.arange(8 * num_models) % 10)
        for layer in range(32)
    }
    figure = matched_units.merge_kinds(assignments, num_models)
    bars = _bars(figure)
    np.testing.assert_array_equal(np.sum(list(bars.values()), axis=0), 10)
    styles = {
        (to_hex(container[0].get_facecolor()), container[0].get_hatch())
        for container in figure.axes[0].containers
    }
    assert len(bars) > 2
    assert num_models > 4 or len(styles) == len(bars)


def test_layer_labels_do_not_overlap():
    assignments = {f"stage{i}/block0/stream": np.arange(8) % 4 for i in range(40)}
    figure = matched_units.merge_kinds(assignments, 2)
    _png(figure)
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0


def test_matched_correlations_shows_each_merged_pair():
    correlation = _correlation(8)
    # Merged: 0+1+5 (one pair within, two across) and 2+6; the others are single.
    assignment = np.array([0, 0, 1, 2, 3, 0, 1, 4])
    figure = matched_units.matched_correlations(
        {"x": correlation}, {"x": assignment}, 2
    )
    upper, lower = figure.axes
    assert [text.get_text() for text in upper.get_legend().get_texts()] == [
        "across models (3 pairs)",
        "within a model (1 pairs)",
    ]
    across = correlation[[0, 1, 2], [5, 5, 6]]
    drawn = [line.get_xdata()[0] for line in lower.lines]
    np.testing.assert_allclose(drawn, [np.median(across), correlation[0, 1]])
    for polygon in upper.patches:
        # The outline of a histogram with bins of 0.05 whose parts add up to 100 %.
        x, y = polygon.get_xy().T
        area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
        assert area == pytest.approx(100 * 0.05)


def test_matched_correlations_of_pure_alignment_has_only_pairs_across():
    correlations = {f"l{i}": _correlation(12, i) for i in range(3)}
    assignments = {name: np.tile(np.arange(6), 2) for name in correlations}
    figure = matched_units.matched_correlations(correlations, assignments, 2)
    (text,) = figure.axes[0].get_legend().get_texts()
    assert text.get_text() == "across models (18 pairs)"
    assert _png(figure).startswith(b"\x89PNG")


def test_nothing_merged_is_still_a_picture():
    figure = matched_units.matched_correlations(
        {"x": np.eye(4)}, {"x": np.arange(4)}, 2
    )
    assert _png(figure).startswith(b"\x89PNG")


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"shape \(4, 4\), but 6 units"):
        matched_units.correlation_matrix(np.eye(4), np.arange(6), 2, "x")
    with pytest.raises(ValueError, match="does not fit 3 models"):
        matched_units.merge_kinds({"x": np.arange(8)}, 3)
    with pytest.raises(ValueError, match="empty"):
        matched_units.merge_kinds({"x": np.array([0, 2, 0, 2])}, 2)
    with pytest.raises(ValueError, match="no assignments"):
        matched_units.merge_kinds({}, 2)
    with pytest.raises(ValueError, match=r"\['x'\], but assignments of \['y'\]"):
        matched_units.matched_correlations({"x": np.eye(4)}, {"y": np.arange(4)}, 2)


def test_a_matrix_of_more_units_than_can_be_seen_is_averaged():
    for units, drawn in ((256, "none"), (257, "antialiased")):
        assignment = np.tile(np.arange(units), 2)
        figure = matched_units.correlation_matrix(np.eye(2 * units), assignment, 2, "x")
        (image,) = figure.axes[0].get_images()
        assert image.get_interpolation() == drawn
