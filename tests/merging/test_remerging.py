"""Merging merged models again, and interpolation weights."""

import jax
import numpy as np
import pytest

import zipjax
from tests.networks import (
    collect,
    dense_apply,
    dense_params,
    dense_spec,
    images,
    permuted_copies,
    random_permutations,
    relative_error,
)
from zipjax.trees import path_leaves

WIDTHS = (3, 6, 5, 4)
SPEC = dense_spec(WIDTHS)
MODELS = [dense_params(WIDTHS, seed) for seed in range(3)]
COPIES = permuted_copies(MODELS[0], SPEC, 3)
X = images(60, (3,))


def merge(models, recipe, **options):
    moments = collect(dense_apply, models, SPEC, X)
    return zipjax.merge(models, SPEC, recipe, moments=moments, **options)


def mean_of(leaves, weights):
    """The weighted mean of one parameter, in float64."""
    return sum(
        w * np.asarray(x, np.float64) for w, x in zip(weights, leaves, strict=True)
    )


def check_mean(params, models, weights):
    for path, leaf in path_leaves(params).items():
        expected = mean_of([path_leaves(model)[path] for model in models], weights)
        np.testing.assert_allclose(leaf, expected, 1e-5, 1e-6, err_msg=path)


RECIPES = {"permute": zipjax.permute(), "zipit": zipjax.zipit(beta=0)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_permuted_copies_merged_one_by_one_are_the_model(recipe):
    pair = merge(COPIES[:2], RECIPES[recipe])
    options = {"weights": (2 / 3, 1 / 3)} if recipe == "permute" else {}
    merged = merge([pair, COPIES[2]], RECIPES[recipe], **options)
    expected = dense_apply(COPIES[0], X)
    assert relative_error(zipjax.apply(dense_apply, merged, X), expected) < 1e-5


def test_a_weighted_second_merge_is_the_merge_of_all():
    pair = zipjax.merge(MODELS[:2], SPEC, zipjax.average())
    merged = zipjax.merge(
        [pair, MODELS[2]], SPEC, zipjax.average(), weights=(2 / 3, 1 / 3)
    )
    check_mean(merged.params(), MODELS, (1 / 3, 1 / 3, 1 / 3))


@pytest.fixture(scope="module")
def headed():
    """Two copies, merged up to their outputs but for these, and a third one."""
    pair = merge(COPIES[:2], zipjax.permute(), stop_at=2)
    assert pair.num_outputs == 2
    return [pair, COPIES[2]], collect(dense_apply, [pair, COPIES[2]], SPEC, X)


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_all_heads_are_kept(headed, stop_at):
    models, moments = headed
    recipe = zipjax.permute()
    merged = zipjax.merge(models, SPEC, recipe, moments=moments, stop_at=stop_at)
    outputs = zipjax.apply(dense_apply, merged, X)
    assert len(outputs) == 3
    # Copies of one model: what every head computes is what the model does.
    for output in outputs:
        assert relative_error(output, dense_apply(COPIES[0], X)) < 1e-5
    assert set(merged.trunk) == {
        f"layers/{k}/{x}" for k in range(stop_at) for x in "bw"
    }


def test_every_head_is_that_of_its_own_model():
    """A merged model's heads keep its own merged layers after the second cut."""
    pair = zipjax.merge(MODELS[:2], SPEC, zipjax.average(), stop_at=2)
    for models, order in (
        ([pair, MODELS[2]], (0, 1, 2)),
        ([MODELS[2], pair], (2, 0, 1)),
    ):
        merged = zipjax.merge(models, SPEC, zipjax.average(), stop_at=1)
        for head, number in zip(merged.heads, order, strict=True):
            last = MODELS[number]["layers"][2]["w"]
            np.testing.assert_array_equal(head["layers/2/w"], last)
            before = MODELS[2:] if number == 2 else MODELS[:2]
            expected = np.mean([m["layers"][1]["w"] for m in before], axis=0)
            np.testing.assert_allclose(head["layers/1/w"], expected, 1e-5, 1e-6)


@pytest.mark.parametrize("stop_at", [2, None])
def test_a_zip_beyond_the_first_ones_end_is_refused(stop_at):
    pair = zipjax.merge(MODELS[:2], SPEC, zipjax.average(), stop_at=1)
    with pytest.raises(ValueError, match=r"model 1 .*'layers/1/w'.* stop it where"):
        zipjax.merge([MODELS[2], pair], SPEC, zipjax.average(), stop_at=stop_at)


WEIGHTS = (0.5, 0.2, 0.3)


def test_weighted_averages():
    merged = zipjax.merge(MODELS, SPEC, zipjax.average(), weights=WEIGHTS)
    check_mean(merged.params(), MODELS, WEIGHTS)


def test_weights_count_in_the_trunk_only():
    merged = zipjax.merge(MODELS, SPEC, zipjax.average(), stop_at=1, weights=WEIGHTS)
    for path, leaf in merged.trunk.items():
        own = [path_leaves(model)[path] for model in MODELS]
        np.testing.assert_allclose(leaf, mean_of(own, WEIGHTS), 1e-5, 1e-6)
    for head, model in zip(merged.heads, MODELS, strict=True):
        np.testing.assert_array_equal(head["layers/2/w"], model["layers"][2]["w"])


def test_weights_of_aligned_models_go_to_the_units_that_were_matched():
    """Noisy copies: aligned by known permutations, then averaged in numpy."""
    rng = np.random.default_rng(0)
    noisy = [
        jax.tree.map(lambda x: x + 0.01 * rng.normal(size=x.shape), MODELS[0])
        for _ in range(3)
    ]
    noisy = [jax.tree.map(lambda x: x.astype(np.float32), model) for model in noisy]
    drawn = [random_permutations(SPEC, seed) for seed in (1, 2)]
    models = [
        noisy[0],
        *(
            zipjax.permute_params(model, SPEC, own)
            for model, own in zip(noisy[1:], drawn, strict=True)
        ),
    ]
    merged = merge(models, zipjax.permute(), weights=WEIGHTS)
    check_mean(merged.params(), noisy, WEIGHTS)


@pytest.mark.parametrize(
    "weights", [(0.5, 0.5), (0.5, 0.5, 0.5), (1.0,), (0.25, 0.25, 0.25, 0.25)], ids=str
)
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="not interpolation weights of 3 models"):
        zipjax.merge(MODELS, SPEC, zipjax.average(), weights=weights)


def test_weights_of_zips_are_refused():
    """A zip that merges two units of one model, and one that keeps a unit alone."""
    moments = collect(dense_apply, MODELS[:2], SPEC, X)
    options = {"moments": moments, "weights": (0.6, 0.4)}
    for recipe in (zipjax.zipit(), zipjax.zipit(num_units={"h0": 7})):
        with pytest.raises(ValueError, match=r"perm 'h\d' some take .* that aligns"):
            zipjax.merge(MODELS[:2], SPEC, recipe, **options)
