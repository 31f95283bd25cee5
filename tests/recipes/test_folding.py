"""One model, folded to narrower widths: its own units are zipped."""

import itertools

import jax
import numpy as np
import pytest

import zipjax
from tests.networks import dense_apply, dense_params, dense_spec, images, variables
from zipjax.models import mlp, resnet
from zipjax.trees import from_leaves, path_leaves

MLP = mlp.MLP((9, 7), 3)
RESNET = resnet.ResNet20(3, width=0.25, blocks=1)
NETWORKS = {
    "mlp": (MLP, mlp.spec(MLP), (2, 2)),
    "resnet": (RESNET, resnet.spec(RESNET), (8, 8, 3)),
}
RECIPES = {
    "zipit": zipjax.zipit,
    "weight_zip": zipjax.weight_zip,
    "mudsc": lambda **options: zipjax.mudsc(0.5, **options),
}


def widened(params, spec, share=0.3):
    """Doubles every unit; its outgoing weights are divided among the two."""
    found = {}
    for path, leaf in path_leaves(params).items():
        wide = np.asarray(leaf)
        for axis, entry in enumerate(spec.entries[path]):
            if entry is None:
                continue
            twice = [wide, wide]
            if entry.role == "in":
                twice = [share * wide, (1 - share) * wide]
            wide = np.concatenate(twice, axis)
        found[path] = wide
    return from_leaves(found, params)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_whose_units_were_doubled_folds_back_to_itself(name, recipe):
    net, spec, shape = NETWORKS[name]
    params, x = variables(net, shape, 0), images(40, shape)
    wide = widened(params, spec)
    expected = np.asarray(net.apply(params, x))
    own = spec.resize({perm: 2 * n for perm, n in spec.sizes.items()})
    np.testing.assert_allclose(net.apply(wide, x), expected, atol=1e-4)
    moments = zipjax.collect_moments(net.apply, [wide], own, [x], positions="all")
    folded = zipjax.merge(
        [wide],
        own,
        RECIPES[recipe](num_units=spec.sizes),
        moments=moments,
        key=jax.random.key(0),
    )
    assert jax.tree.map(np.shape, folded.params()) == jax.tree.map(np.shape, params)
    np.testing.assert_allclose(net.apply(folded.params(), x), expected, atol=1e-4)


def test_a_refit_brings_a_folded_network_nearer_to_the_model():
    widths = (6, 24, 20, 4)
    model, spec, x = dense_params(widths, 0), dense_spec(widths), images(300, (6,))
    half = {perm: n // 2 for perm, n in spec.sizes.items()}
    moments = zipjax.collect_moments(dense_apply, [model], spec, [x])
    folded = zipjax.merge([model], spec, zipjax.zipit(num_units=half), moments=moments)
    fitted = zipjax.refit(dense_apply, [model], folded, [x])
    fresh = images(300, (6,), 1)
    expected = dense_apply(model, fresh)

    def error(merged):
        gap = dense_apply(merged.params(), fresh) - expected
        return float(np.square(gap).mean() / np.var(expected))

    assert error(fitted) < 0.7 * error(folded)


def test_widths_of_one_model_can_be_allotted():
    widths = (6, 24, 20, 4)
    model, spec, x = dense_params(widths, 0), dense_spec(widths), images(300, (6,))
    moments = zipjax.collect_moments(dense_apply, [model], spec, [x])
    chosen = zipjax.allot_units(
        dense_apply, [model], spec, zipjax.zipit(), x, moments=moments, cost=0.5
    )
    assert all(chosen[perm] <= n for perm, n in spec.sizes.items())
    sizes = [6, *(chosen[perm] for perm in spec.perms), 4]
    products = sum(a * b for a, b in itertools.pairwise(sizes))
    full = 6 * 24 + 24 * 20 + 20 * 4
    assert 0.3 * full < products <= 0.5 * full


@pytest.mark.parametrize("recipe", [zipjax.average(), zipjax.zipit()])
def test_one_model_without_narrower_widths_is_an_error(recipe):
    model, spec = dense_params((3, 8, 2), 0), dense_spec((3, 8, 2))
    with pytest.raises(ValueError, match=r"there is one model, .*num_units"):
        zipjax.merge([model], spec, recipe)


def test_a_within_model_budget_that_is_too_small_is_an_error():
    model, spec, x = dense_params((3, 8, 2), 0), dense_spec((3, 8, 2)), images(9, (3,))
    moments = zipjax.collect_moments(dense_apply, [model], spec, [x])
    (perm,) = spec.perms
    recipe = zipjax.zipit(beta=0.5, num_units={perm: 4})
    with pytest.raises(ValueError, match=r"num_units=4 cannot be reached .* beta"):
        zipjax.merge([model], spec, recipe, moments=moments)
