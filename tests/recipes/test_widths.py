"""Allotted widths, against networks for which they can be told by hand."""

import jax
import numpy as np
import pytest

import zipjax
from tests.networks import dense_apply, dense_params, dense_spec, images
from tests.streams import INPUTS, stream_apply, stream_params
from zipjax.models import resnet
from zipjax.recipes.widths import _loss

WIDTHS = (6, 8, 8, 3)
SPEC = dense_spec(WIDTHS)
X = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
ONE = 6 * 8 + 8 * 8 + 8 * 3  # Multiplications of one model.


def half_shared():
    """Two models with the same first layer and second layers of their own."""
    one, two = (dense_params(WIDTHS, seed) for seed in (1, 2))
    return [one, {"layers": [one["layers"][0], *two["layers"][1:]]}]


MODELS = half_shared()
MOMENTS = zipjax.collect_moments(dense_apply, MODELS, SPEC, [X])


def allot(*, beta=1.0, **options):
    recipe = zipjax.zipit(alpha=0.5, beta=beta)
    return zipjax.allot_units(
        dense_apply, MODELS, SPEC, recipe, X[:2], moments=MOMENTS, **options
    )


def multiplications(merged):
    sizes = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(merged.params())
        if "'w'" in str(path)
    ]
    return sum(sizes)


def test_units_that_are_there_twice_go_first():
    # 16 units of two kinds of layers: the first is the other's copy, and costs nothing.
    least = 6 * 8 + 8 * 16 + 16 * 3
    assert allot(cost=least / ONE, steps=1) == {"h0": 8, "h1": 16}
    assert allot(cost=2 * least / ONE, steps=1) == {"h0": 16, "h1": 16}
    assert allot(steps=1, smallest=1.0) == {"h0": 8, "h1": 8}


@pytest.mark.parametrize("cost", [0.5, 1.0, 1.3, 2.0])
def test_merged_networks_cost_what_they_may(cost):
    widths = allot(cost=cost, smallest=0.25)
    recipe = zipjax.zipit(alpha=0.5, beta=1.0, num_units=widths)
    merged = zipjax.merge(MODELS, SPEC, recipe, moments=MOMENTS)
    assert 0.8 * cost * ONE < multiplications(merged) <= cost * ONE
    outputs = zipjax.apply(dense_apply, merged, X)
    assert outputs.shape == (400, 3)


def test_widths_are_those_that_the_recipe_reaches():
    # Without merges within a model, 8 units of either are 8 merged ones at least.
    assert allot(beta=0.0) == {"h0": 8, "h1": 8}
    with pytest.raises(ValueError, match="raise cost"):
        allot(beta=0.0, cost=0.9)


def test_heads_cost_as_often_as_there_are_models():
    # Behind the cut nothing is zipped: 8 * 8 + 8 * 3 in either model.
    after = 2 * (8 * 8 + 8 * 3)
    widths = allot(cost=(after + 6 * 8) / ONE, stop_at="h0", steps=1)
    assert widths == {"h0": 8}
    with pytest.raises(ValueError, match=r"least widths .*'h0': 4.*raise cost"):
        allot(cost=0.9, stop_at="h0")


def test_the_loss_is_the_variance_within_merged_units():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    x = (x - x.mean(0)) / x.std(0)
    assignment = np.array([0, 1, 0, 2, 1, 0])
    means = np.stack([x[:, assignment == k].mean(1) for k in range(3)], 1)
    within = np.square(x - means[:, assignment]).mean(0).sum()
    assert _loss(np.corrcoef(x.T), assignment) == pytest.approx(within / 6)


def test_moments_of_other_models_are_refused():
    foreign = zipjax.collect_moments(dense_apply, MODELS[::-1], SPEC, [X])
    with pytest.raises(ValueError, match="were collected for"):
        zipjax.allot_units(
            dense_apply, MODELS, SPEC, zipjax.zipit(), X[:2], moments=foreign
        )


def test_groups_and_units_in_groups_are_not_resized():
    spec = resnet.spec(resnet.ResNet20(10, 0.5, groups=2, blocks=1))
    assert not any(map(spec.is_plain, spec.perms))
    assert all(map(SPEC.is_plain, SPEC.perms))


def test_paired_perms_keep_their_widths():
    widths = (6, 8, 8, 8, 3)
    spec = dense_spec(widths)
    spec = zipjax.PermutationSpec(spec.entries, spec.perms, paired=(("h0", "h2"),))
    models = [dense_params(widths, seed) for seed in (1, 2)]
    moments = zipjax.collect_moments(dense_apply, models, spec, [X])
    found = zipjax.allot_units(
        dense_apply, models, spec, zipjax.zipit(), X[:2], moments=moments, cost=1.3
    )
    assert set(found) == {"h1"}
    assert found["h1"] > 8


def test_heads_after_a_cut_inside_a_stream_keep_their_widths():
    models, x = [stream_params(seed) for seed in range(2)], images(60, (INPUTS,))
    spec = zipjax.infer_spec(stream_apply, models[0], x)
    moments = zipjax.collect_moments(stream_apply, models, spec, [x], stop_at=2)
    one = 4 * 6 + 3 * 2 * 6 * 5 + 6 * 3
    heads = 2 * (2 * 2 * 6 * 5 + 6 * 3)

    def allot(multiplications):
        return zipjax.allot_units(
            stream_apply,
            models,
            spec,
            zipjax.zipit(alpha=0.5),
            x[:2],
            moments=moments,
            cost=multiplications / one,
            stop_at=2,
            steps=1,
            smallest=1.0,
        )

    wide = 4 * 12 + 2 * 12 * 10 + heads
    assert allot(wide + 0.5) == {"embed": 12, "blocks/0/up": 10}
    narrow = 4 * 6 + 2 * 6 * 5 + heads
    assert allot(narrow + 0.5) == {"embed": 6, "blocks/0/up": 5}
    with pytest.raises(ValueError, match="the least widths"):
        allot(narrow - 0.5)


@pytest.mark.parametrize(
    "options",
    [
        *({"cost": np.nan}, {"cost": -1.0}, {"cost": "1"}),
        *({"smallest": np.nan}, {"steps": 0}, {"steps": 2.5}),
    ],
    ids=str,
)
def test_budgets_are_positive_numbers(options, untyped):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} = {value!r}: pass a positive"):
        allot(**options)
