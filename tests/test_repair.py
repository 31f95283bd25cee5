"""REPAIR: parents' statistics in numpy, and functions that must stay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.models.catalog import TINY
from tests.networks import (
    FlattenNet,
    dense_apply,
    dense_params,
    dense_spec,
    flatten_spec,
    images,
    random_permutations,
    relative_error,
    variables,
)
from zipjax.models import resnet, vit
from zipjax.trees import from_leaves, path_leaves

WIDTHS = (6, 8, 7, 5, 3)
MODELS = [dense_params(WIDTHS, seed) for seed in (1, 2)]
SPEC = dense_spec(WIDTHS)
X = images(120, (6,))
# Pairs across the models, but also within them, and a unit alone.
ASSIGNMENTS = {
    "h0": np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 1, 2, 3, 4, 5, 6]),
    "h1": np.array([*range(7), 3, 0, 1, 2, 6, 5, 7]),
    "h2": np.array([0, 1, 2, 3, 3, 4, 2, 1, 0, 0]),
}


def hidden(params, x):
    """Every hidden layer's values before its ReLU, in float64."""
    values = []
    for layer in params["layers"][:-1]:
        x = np.maximum(x, 0) if values else x
        x = np.float64(x) @ np.float64(layer["w"]) + np.float64(layer["b"])
        values.append(x)
    return values


def averaged(assignment, statistic):
    """A statistic of all models' units, averaged over those of each merged unit."""
    return np.array(
        [statistic[assignment == k].mean() for k in range(assignment.max() + 1)]
    )


def check_mlp(params, models, assignments, x, tolerance=1e-5):
    per_model = [hidden(model, x) for model in models]
    names = sorted(assignments)
    for number, name in enumerate(names):
        parents = np.concatenate([values[number] for values in per_model], axis=1)
        found = hidden(params, x)[number]
        for statistic in (np.mean, np.std):
            wanted = averaged(assignments[name], statistic(parents, axis=0))
            assert relative_error(statistic(found, axis=0), wanted) < tolerance


def test_units_get_their_parents_statistics():
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS)
    repaired = zipjax.repair(dense_apply, MODELS, merged, ASSIGNMENTS, [X])
    check_mlp(repaired.params(), MODELS, ASSIGNMENTS, X)
    with pytest.raises(AssertionError):
        check_mlp(merged.params(), MODELS, ASSIGNMENTS, X, tolerance=0.05)
    for name in ("w", "b"):
        before, after = (net.params()["layers"][-1] for net in (merged, repaired))
        np.testing.assert_array_equal(after[name], before[name])


def test_averaging_shrinks_deviations_and_repair_brings_them_back():
    widths = (20, 40, 40, 40, 4)
    models = [dense_params(widths, seed) for seed in range(3)]
    x = images(400, (20,))
    merged = zipjax.merge(models, dense_spec(widths), zipjax.average())
    assignments = {f"h{k}": np.tile(np.arange(40), 3) for k in range(3)}
    repaired = zipjax.repair(
        dense_apply, models, merged, assignments, [{"x": x[:200]}, {"x": x[200:]}],
        inputs=lambda batch: batch["x"],
    )  # fmt: skip

    def deviations(params):
        return np.array([values.std(0).mean() for values in hidden(params, x)])

    parents = np.mean([deviations(model) for model in models], axis=0)
    lost = deviations(merged.params()) / parents
    assert (np.diff(lost) < 0).all()
    assert lost[-1] < 0.4
    np.testing.assert_allclose(deviations(repaired.params()) / parents, 1, atol=0.05)


def test_a_partial_zip_keeps_its_heads():
    assignments = {name: ASSIGNMENTS[name] for name in ("h0", "h1")}
    merged = zipjax.merge_units(MODELS, SPEC, assignments, stop_at="h1")
    for functions in (dense_apply, [dense_apply, dense_apply]):
        repaired = zipjax.repair(functions, MODELS, merged, assignments, [X])
        check_mlp(repaired.params(1), MODELS, assignments, X)
        same = jax.tree.map(np.array_equal, repaired.heads, merged.heads)
        assert all(jax.tree.leaves(same))


def test_an_ensemble_stays():
    merged = zipjax.merge(MODELS, SPEC, zipjax.average(), stop_at=0)
    repaired = zipjax.repair(dense_apply, MODELS, merged, {}, [X])
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, repaired, merged)))


def test_dead_units_stay_dead():
    models = [jax.tree.map(np.array, model) for model in MODELS]
    for model in models:
        model["layers"][0]["w"][:, 0] = 0
        model["layers"][1]["w"][:, :] = 0
    assignments = {
        f"h{k}": np.tile(np.arange(width), 2) for k, width in enumerate(WIDTHS[1:-1])
    }
    merged = zipjax.merge_units(models, SPEC, assignments)
    repaired = zipjax.repair(dense_apply, models, merged, assignments, [X])
    for leaf in jax.tree.leaves(repaired):
        assert np.isfinite(leaf).all()
    first, second, _ = hidden(repaired.params(), X)
    assert not first[:, 0].std()
    assert not second.std(0).any()
    means = [model["layers"][1]["b"] for model in models]
    np.testing.assert_allclose(second[0], np.mean(means, axis=0), rtol=1e-5)


# Networks whose layers have norms and residual sums behind them, and units in groups.
NETWORKS = {
    "batch": (FlattenNet(), flatten_spec(16), (8, 8, 3)),
    "vit": (vit.ViT(3, 6, 1, 2, 4, 5), None, (8, 8, 3)),
    "groups": (resnet.ResNet(3, (1, 1), resnet.basic, 1 / 16, groups=2), None,
               (8, 8, 3)),
}  # fmt: skip
SPECS = {vit.ViT: vit.spec, resnet.ResNet: resnet.spec}


def network(name):
    net, spec, shape = NETWORKS[name]
    return net, spec or SPECS[type(net)](net), shape


def matched(spec, seed):
    """An assignment of model 1's units, groups included, to other ones of model 0."""
    found = {}
    rng = np.random.default_rng(seed)
    for perm, size in spec.sizes.items():
        rows = [
            [*range(size), *rng.permutation(size)]
            for _ in range(spec.units(perm) // size)
        ]
        found[perm] = np.reshape(rows, (*spec.group_sizes(perm), 2 * size))
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_merged_with_its_permuted_copy_stays(name):
    net, spec, shape = network(name)
    model = variables(net, shape, 1)
    drawn = random_permutations(spec, 3)
    drawn = {
        perm: np.broadcast_to(order, (*spec.group_sizes(perm), order.size))
        for perm, order in drawn.items()
    }
    copy = zipjax.permute_params(model, spec, drawn)
    # Unit j of the copy is unit drawn[j] of the model.
    assignments = {
        perm: np.concatenate(
            [np.broadcast_to(np.arange(order.shape[-1]), order.shape), order], axis=-1
        )
        for perm, order in drawn.items()
    }
    merged = zipjax.merge_units([model, copy], spec, assignments)
    x = images(20, shape)
    repaired = zipjax.repair(
        net.apply, [model, copy], merged, assignments, [x[:10], x[10:]]
    )
    for path, leaf in path_leaves(model).items():
        assert relative_error(repaired.trunk[path], leaf) < 1e-4, path
