"""The line between two networks, against sums of their parameters in float64."""

import numpy as np
import pytest

import zipjax
from tests.networks import randomise
from zipjax import Axis, Perm, PermutationSpec
from zipjax.trees import path_leaves

OUT, IN = Axis("hidden", "out"), Axis("hidden", "in")
SPEC = PermutationSpec(
    {
        "params/first/kernel": (None, OUT),
        "params/bn/scale": (OUT,),
        "params/last/kernel": (IN, None),
        "batch_stats/bn/mean": (OUT,),
        "batch_stats/bn/var": (OUT,),
    },
    {"hidden": Perm(4)},
)
LIKE = {
    "params": {
        "first": {"kernel": np.zeros((3, 4), np.float32)},
        "bn": {"scale": np.zeros(4, np.float32)},
        "last": {"kernel": np.zeros((4, 2), np.float32)},
    },
    "batch_stats": {"bn": {x: np.zeros(4, np.float32) for x in ("mean", "var")}},
}
FRACTIONS = (0.0, 0.3, 1.0, 1.25)
# Unit k of B goes to unit MOVED[k] of A.
MOVED = np.array([2, 0, 3, 1])


@pytest.fixture(scope="module")
def models():
    return [randomise(LIKE, seed) for seed in (1, 2)]


def assigned(moved):
    return {"hidden": np.concatenate([np.arange(4), moved])}


def in_order_of_a(leaf, entries):
    """B's units where A's are that they go to, by hand."""
    leaf = np.asarray(leaf, np.float64)
    for axis, entry in enumerate(entries):
        if entry is not None:
            found = np.zeros_like(leaf)
            for unit, place in enumerate(MOVED):
                rows = np.moveaxis(found, axis, 0), np.moveaxis(leaf, axis, 0)
                rows[0][place] = rows[1][unit]
            leaf = found
    return leaf


@pytest.mark.parametrize("moves", [False, True])
def test_points_are_sums_of_a_and_b_in_the_order_of_a(models, moves):
    aligned = assigned(MOVED if moves else np.arange(4))
    if not moves:
        expected = zipjax.match(models, SPEC, zipjax.average())
        np.testing.assert_array_equal(expected["hidden"], aligned["hidden"])
    first, second = map(path_leaves, models)
    points = list(zipjax.interpolate(models, SPEC, aligned, FRACTIONS))
    assert len(points) == len(FRACTIONS)
    for fraction, point in zip(FRACTIONS, points, strict=True):
        found = path_leaves(point.params())
        assert set(found) == set(SPEC.entries)
        for path, entries in SPEC.entries.items():
            a, b = np.asarray(first[path], np.float64), np.asarray(second[path])
            b = in_order_of_a(b, entries) if moves else b.astype(np.float64)
            wanted = a + fraction * (b - a)
            np.testing.assert_allclose(found[path], wanted, rtol=1e-6, atol=1e-6)


def test_the_line_to_a_permuted_copy_is_one_point(models):
    moved = {"hidden": np.argsort(MOVED)}
    copy = zipjax.permute_params(models[0], SPEC, moved)
    kernels = [x["params"]["first"]["kernel"] for x in (models[0], copy)]
    assert np.abs(np.subtract(*kernels)).max() > 0.1
    back = assigned(np.argsort(MOVED))
    for point in zipjax.interpolate([models[0], copy], SPEC, back, [0.2, 0.5, 1]):
        found = path_leaves(point.params())
        for path, leaf in path_leaves(models[0]).items():
            np.testing.assert_allclose(found[path], leaf, rtol=1e-6)


def test_points_are_made_one_at_a_time(models):
    points = zipjax.interpolate(models, SPEC, assigned(MOVED), np.linspace(0, 1, 3))
    assert next(points).origin.weights == (1, 0)
    assert next(points).origin.weights == (0.5, 0.5)


@pytest.mark.parametrize(
    "fractions", [[0.5, float("nan")], ["half"], [None], 0.5, "0.5"]
)
def test_fractions_are_numbers(models, fractions):
    with pytest.raises(ValueError, match=r"fractions is .*numpy.linspace"):
        zipjax.interpolate(models, SPEC, assigned(MOVED), fractions)


def test_a_line_goes_through_two_networks(models):
    with pytest.raises(ValueError, match="through 2 networks, but there are 3 models"):
        zipjax.interpolate([*models, models[0]], SPEC, assigned(MOVED), [0.5])


def test_zips_are_no_ends_of_a_line(models):
    zipped = {"hidden": np.array([0, 0, 1, 2, 1, 2, 3, 3])}
    with pytest.raises(ValueError, match="use a recipe that aligns"):
        list(zipjax.interpolate(models, SPEC, zipped, [0.5]))
