"""The plane through A, permuted B and their zip, and the losses on it."""

import jax
import numpy as np
import pytest

import zipjax
from experiments.report import contours, plane
from experiments.report.plane import Landscape, Plane
from tests.networks import randomise
from zipjax import Axis, Moments, Perm
from zipjax.models import mlp

PLAIN = mlp.spec(mlp.MLP((7, 6), 3))
SIZES = {
    "params/dense_0/kernel": (5, 7),
    "params/dense_0/bias": (7,),
    "params/dense_1/kernel": (7, 6),
    "params/dense_1/bias": (6,),
    "params/head/kernel": (6, 3),
    "params/head/bias": (3,),
}
HEADS = zipjax.PermutationSpec(
    {
        "params/kernel": (None, Axis("head", "out"), Axis("unit", "out")),
        "params/w": (Axis("head", "in"), Axis("unit", "in"), None),
    },
    {"head": Perm(3), "unit": Perm(4, ("head",))},
)


def like(sizes):
    tree = {}
    for path, shape in sizes.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = np.zeros(shape, np.float32)
    return tree


# How the networks are computed, in numpy; the last value is the output.
def plain(model, x):
    values = [x]
    for name in ("dense_0", "dense_1", "head"):
        layer = model["params"][name]
        values.append(values[-1] @ layer["kernel"] + layer["bias"])
        values[-1] = np.maximum(values[-1], 0) if name != "head" else values[-1]
    return values[1:]


def with_heads(model, x):
    units = np.maximum(np.einsum("bi,ihn->bhn", x, model["params"]["kernel"]), 0)
    return units, units, np.einsum("bhn,hno->bo", units, model["params"]["w"])


NETWORKS = {
    "plain": (PLAIN, plain, like(SIZES)),
    "heads": (
        HEADS,
        with_heads,
        like({"params/kernel": (5, 3, 4), "params/w": (3, 4, 2)}),
    ),
}


def inputs():
    return np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)


def moments_of(spec, forward, models):
    """Moments by perm; of the heads those of their units' means."""
    values = [forward(model, inputs())[:-1] for model in models]
    found = {}
    for perm, *units in zip(spec.perms, *values, strict=True):
        if spec.perms.get("unit") and perm == "head":
            units = [unit.mean(-1) for unit in units]
        rows = np.concatenate([u.reshape(len(u), -1) for u in units], axis=1)
        found[perm] = Moments.empty(rows.shape[1]).update(rows)
    return found


def params(model):
    leaves = jax.tree_util.tree_leaves(model["params"])
    return np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)


@pytest.fixture(scope="module", params=NETWORKS)
def setting(request):
    """Two networks, their zip and the corners."""
    spec, forward, sizes = NETWORKS[request.param]
    models = [randomise(sizes, seed) for seed in (1, 2)]
    moments = moments_of(spec, forward, models)
    zipped = zipjax.match(models, spec, zipjax.zipit(), moments=moments)
    merged = zipjax.merge_units(models, spec, zipped).params()
    return forward, [*models, merged], plane.corners(models, spec, moments, zipped)


def test_corners_are_the_functions_of_a_b_and_the_zip(setting):
    forward, models, corners = setting
    for corner, model in zip(corners, models, strict=True):
        outputs, expected = (forward(x, inputs())[-1] for x in (corner, model))
        np.testing.assert_allclose(outputs, expected, atol=1e-5)
    # Units do move, or nothing was tested.
    for corner, model in zip(corners[1:], models[1:], strict=True):
        assert np.abs(params(corner) - params(model)).max() > 0.1


def test_units_in_order_are_closer_to_those_of_a(setting):
    _, models, corners = setting
    a = params(models[0])
    for corner, model in zip(corners[1:], models[1:], strict=True):
        assert np.linalg.norm(params(corner) - a) < np.linalg.norm(params(model) - a)


def test_corners_are_where_their_coordinates_say(setting):
    *_, corners = setting
    laid = Plane.through(corners)
    for place, corner in zip(laid.corners, corners, strict=True):
        np.testing.assert_allclose(params(laid.at(*place)), params(corner), atol=1e-6)
    flat = np.stack([params(corner) for corner in corners])
    distances = np.linalg.norm(flat[:, None] - flat, axis=-1)
    drawn = np.linalg.norm(laid.corners[:, None] - laid.corners, axis=-1)
    np.testing.assert_allclose(drawn, distances, rtol=1e-6)
    x, y = laid.grid(4)
    assert x[0] < laid.corners[:, 0].min() < laid.corners[:, 0].max() < x[-1]
    assert y[0] < laid.corners[:, 1].min() < laid.corners[:, 1].max() < y[-1]


def test_networks_are_projected_to_their_principal_components(setting):
    *_, corners = setting
    rng = np.random.default_rng(0)
    networks = [
        jax.tree_util.tree_map(lambda x: x + 0.1 * rng.normal(size=x.shape), corner)
        for corner in (*corners, corners[1], corners[2])
    ]
    laid = Plane.close_to(networks)
    flat = np.stack([params(network) for network in networks])
    spread = np.cov(laid.corners.T)
    # The plane has all that the two largest components have, and nothing else.
    centred = flat - flat.mean(0)
    largest = np.linalg.svd(centred, compute_uv=False)[:2] ** 2 / (len(flat) - 1)
    np.testing.assert_allclose(np.linalg.eigvalsh(spread)[::-1], largest, rtol=1e-6)
    assert laid.corners[0].tolist() == [0, 0]
    assert laid.corners[1, 0] > 0
    # What a point lacks of its network is perpendicular to the plane.
    for place, network in zip(laid.corners, networks, strict=True):
        rest = params(network) - params(laid.at(*place))
        np.testing.assert_allclose(laid.axes @ rest, 0, atol=1e-5)
    middle = jax.tree_util.tree_map(lambda x, y: (np.asarray(x) + y) / 2, *networks[:2])
    assert Plane.close_to([networks[0], networks[1], middle]) is None


def test_three_networks_on_a_line_span_no_plane(setting):
    _, (a, b, _), _ = setting
    middle = jax.tree_util.tree_map(lambda x, y: (np.asarray(x) + y) / 2, a, b)
    assert Plane.through([a, b, middle]) is None
    assert Plane.through([a, a, a]) is None
    assert Landscape.of(Plane.through([a, b, middle]), params, 3) is None


def test_a_permuted_copy_lies_on_its_original(key):
    spec, forward, sizes = NETWORKS["plain"]
    a = randomise(sizes, 1)
    copy = zipjax.permute_params(a, spec, zipjax.random_permutations(spec, key))
    moments = moments_of(spec, forward, [a, copy])
    zipped = zipjax.match([a, copy], spec, zipjax.zipit(), moments=moments)
    _, b, merged = plane.corners([a, copy], spec, moments, zipped)
    np.testing.assert_array_equal(params(b), params(a))
    # The zip's own numbers are others; in A's order it is A once more.
    np.testing.assert_allclose(params(merged), params(a), atol=1e-6)


def test_merged_units_are_numbered_as_most_of_their_units():
    aligned = np.array([[0, 1, 2, 2, 0, 1], [0, 1, 2, 0, 1, 2]])
    # Row 0: A0 with its partner, A1 with A2, and B's two others.
    zipped = np.array([[2, 0, 0, 1, 2, 1], [1, 2, 0, 1, 2, 0]])
    ordered = plane.in_order(zipped, aligned)
    assert ordered[0].tolist() in ([0, 1, 1, 2, 0, 2], [0, 2, 2, 1, 0, 1])
    assert ordered[1].tolist() == [0, 1, 2, 0, 1, 2]


def test_a_landscape_has_the_losses_of_the_networks_at_its_points(setting):
    *_, corners = setting
    laid = Plane.through(corners)
    origin = params(corners[0])

    def losses(model):
        shift = params(model) - origin
        return np.array([shift @ laid.axes[0], shift @ laid.axes[1], 1.0])

    found = Landscape.of(Plane.through(corners), losses, 3)
    assert found.losses.shape == (3, 3, 3)
    np.testing.assert_allclose(found.losses[0, 1], found.x, atol=1e-4)
    np.testing.assert_allclose(found.losses[1, :, 1], found.y, atol=1e-4)


@pytest.mark.parametrize("losses", [[[0.1, 1], [5, 2]], [[0.0, 0], [0, 0]]])
def test_every_task_has_a_panel_with_all_corners(losses):
    places = np.array([[0, 0], [4, 0], [2, 1.0]])
    losses = np.stack([np.array(losses), np.array(losses).T])
    drawn = Landscape(np.array([-1, 5.0]), np.array([-1, 2.0]), losses, places)
    figure = contours.loss_contours(drawn)
    figure.draw_without_rendering()
    a, b, bar = figure.axes
    assert [a.get_title(), b.get_title()] == ["Loss of task A", "Loss of task B"]
    for panel in (a, b):
        assert [text.get_text() for text in panel.texts] == [
            "A",
            "B, permuted",
            "ZipIt!",
        ]
        np.testing.assert_array_equal([text.xy for text in panel.texts], places)
    assert "cross-entropy" in bar.get_xlabel()
