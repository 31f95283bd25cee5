"""REPAIR: parents' statistics in numpy, and functions that must stay."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import zipjax
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
from zipjax.trees import path_leaves

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
        x = np.matmul(np.float64(x), np.float64(layer["w"])) + np.float64(layer["b"])
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
    repaired = zipjax.repair(dense_apply, MODELS, merged, [X])
    check_mlp(repaired.params(), MODELS, ASSIGNMENTS, X)
    with pytest.raises(AssertionError):
        check_mlp(merged.params(), MODELS, ASSIGNMENTS, X, tolerance=0.05)
    for name in ("w", "b"):
        before, after = (net.params()["layers"][-1] for net in (merged, repaired))
        np.testing.assert_array_equal(after[name], before[name])


def test_samples_count_alike_in_batches_of_any_size():
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS)
    repaired = zipjax.repair(dense_apply, MODELS, merged, [X[:1], X[1:]])
    parents = np.concatenate([hidden(model, X)[0] for model in MODELS], axis=1)
    wanted = averaged(ASSIGNMENTS["h0"], parents.mean(0))
    found = hidden(repaired.params(), X)[0]
    assert relative_error(found.mean(0), wanted) < 1e-5


def test_averaging_shrinks_deviations_and_repair_brings_them_back():
    widths = (20, 40, 40, 40, 4)
    models = [dense_params(widths, seed) for seed in range(3)]
    x = images(400, (20,))
    merged = zipjax.merge(models, dense_spec(widths), zipjax.average())
    repaired = zipjax.repair(
        dense_apply, models, merged, [{"x": x[:200]}, {"x": x[200:]}],
        inputs_of=lambda batch: batch["x"],
    )  # fmt: skip

    def deviations(params):
        return np.array([values.std(0).mean() for values in hidden(params, x)])

    parents = np.mean([deviations(model) for model in models], axis=0)
    lost = deviations(merged.params()) / parents
    assert (np.diff(lost) < 0).all()
    assert lost[-1] < 0.4
    np.testing.assert_allclose(deviations(repaired.params()) / parents, 1, atol=0.05)


def gained(params, x):
    """The same trunk, with more after it."""
    return dense_apply({"layers": params["layers"]}, x) * params["gain"]


def test_a_partial_zip_keeps_its_heads():
    # The second model is another function.
    models = [MODELS[0], {**MODELS[1], "gain": np.full(3, 2, np.float32)}]
    specs = [
        SPEC,
        zipjax.PermutationSpec({**SPEC.entries, "gain": (None,)}, SPEC.perms),
    ]
    assignments = {name: ASSIGNMENTS[name] for name in ("h0", "h1")}
    merged = zipjax.merge_units(models, specs, assignments, stop_at="h1")
    functions = [dense_apply, gained]
    repaired = zipjax.repair(functions, models, merged, [X])
    for head in range(2):
        check_mlp(repaired.params(head), MODELS, assignments, X)
    assert all(
        jax.tree.leaves(jax.tree.map(np.array_equal, repaired.heads, merged.heads))
    )


def test_an_ensemble_stays():
    merged = zipjax.merge(MODELS, SPEC, zipjax.average(), stop_at=0)
    repaired = zipjax.repair(dense_apply, MODELS, merged, [X])
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, repaired, merged)))


@pytest.mark.parametrize("weights", [(1, 0), (0.25, 0.75)])
def test_unequal_weights_weight_the_statistics_too(weights):
    orders = {name: np.arange(n)[::-1] for name, n in SPEC.sizes.items()}
    copy = zipjax.permute_params(MODELS[0], SPEC, orders)
    # Unit j of the copy is unit n - 1 - j of the model.
    assignments = {p: np.concatenate([np.sort(x), x]) for p, x in orders.items()}
    merged = zipjax.merge_units([MODELS[0], copy], SPEC, assignments, weights=weights)
    repaired = zipjax.repair(dense_apply, [MODELS[0], copy], merged, [X])
    expected = dense_apply(MODELS[0], X)
    assert relative_error(dense_apply(repaired.params(), X), expected) < 1e-5


def test_weights_of_one_model_give_that_model():
    assignments = {name: np.tile(np.arange(n), 2) for name, n in SPEC.sizes.items()}
    merged = zipjax.merge_units(MODELS, SPEC, assignments, weights=(1, 0))
    repaired = zipjax.repair(dense_apply, MODELS, merged, [X])
    expected = dense_apply(MODELS[0], X)
    assert relative_error(dense_apply(repaired.params(), X), expected) < 1e-5


def test_dead_units_stay_dead():
    models = [jax.tree.map(np.array, model) for model in MODELS]
    # All that the first merged unit is made of, and a whole layer.
    models[0]["layers"][0]["w"][:, :2] = 0
    for model in models:
        model["layers"][1]["w"][:] = 0
    merged = zipjax.merge_units(models, SPEC, ASSIGNMENTS)
    repaired = zipjax.repair(dense_apply, models, merged, [X])
    for leaf in jax.tree.leaves(repaired):
        assert np.isfinite(leaf).all()
    first, second, _ = hidden(repaired.params(), X)
    assert (first.std(0) == 0).tolist() == [True] + 7 * [False]
    assert not second.std(0).any()
    constants = np.concatenate([model["layers"][1]["b"] for model in models])
    wanted = averaged(ASSIGNMENTS["h1"], constants)
    np.testing.assert_allclose(second[0], wanted, rtol=1e-5)


# Networks whose layers have norms and residual sums after them, and units in groups.
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


def matched(spec):
    """Units of two models, some merged within a model; groups are matched in pairs."""
    found, rng = {}, np.random.default_rng(0)
    outer = {group for perm in spec.perms.values() for group in perm.groups}
    for perm, size in spec.sizes.items():
        pairs = perm in outer or perm.endswith("/qk")
        own = [*range(size)] if pairs else [0, *range(size - 1)]
        count = spec.units(perm) // size
        rows = [[*own, *rng.permutation(size)] for _ in range(count)]
        found[perm] = np.reshape(rows, (*spec.group_sizes(perm), 2 * size))
    return found


def in_groups(assignments, outer, inner):
    """Where the units of both models go, group by group, counted by hand."""
    groups, rows = assignments[outer], assignments[inner]
    count, size = len(groups) // 2, rows.shape[1] // 2
    return np.array(
        [
            groups[k] * size + rows[groups[k], k // count * size + unit]
            for k in range(2 * count)
            for unit in range(size)
        ]
    )


def units_of_layers(name, given):
    """The merged units of the units after every repaired layer, in both models."""
    if name == "groups":
        first, second, inner, more = (
            in_groups(given, f"{perm}/groups", perm)
            for perm in ("stage1", "stage2", "layer1_0", "layer2_0")
        )
        return {
            "conv1": first, "layer1_0/conv1": inner, "layer1_0/conv2": first,
            "layer2_0/conv1": more, "layer2_0/conv2": second,
            "layer2_0/shortcut_conv": second,
        }  # fmt: skip
    stream, heads = given["stream"], "blocks_0/attn/heads"
    qk, vo = (in_groups(given, heads, f"blocks_0/attn/{x}") for x in ("qk", "vo"))
    # Q, K and V follow each other, in either model.
    parts = [x.reshape(2, -1) + 6 * k for k, x in enumerate((qk, qk, vo))]
    return {
        "patch_embed": stream, "blocks_0/attn/qkv": np.concatenate(parts, 1).ravel(),
        "blocks_0/attn/proj": stream, "blocks_0/mlp/fc1": given["blocks_0/mlp"],
        "blocks_0/mlp/fc2": stream,
    }  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def recorded(net, params, x):
    return net.apply(params, x, capture_intermediates=True)[1]["intermediates"]


def layer_outputs(net, params, x):
    """All layers' outputs by name, ``[samples, units]``, as Flax records them."""
    return {
        path.removesuffix("/__call__/0"): np.float64(y).reshape(-1, y.shape[-1])
        for path, y in path_leaves(recorded(net, params, x)).items()
    }


@pytest.mark.parametrize(
    ("name", "head", "means"), [("vit", "head", True), ("groups", "fc", False)]
)
def test_layers_before_norms_and_sums(name, head, means):
    net, spec, shape = network(name)
    models = [variables(net, shape, seed) for seed in (1, 2)]
    assignments = matched(spec)
    merged = zipjax.merge_units(models, spec, assignments)
    x = images(10, shape)
    repaired = zipjax.repair(net.apply, models, merged, [x])
    *parents, found = (
        layer_outputs(net, params, x) for params in (*models, repaired.params())
    )
    places = units_of_layers(name, assignments)
    kernels = {path for path in merged.trunk if path.endswith("/kernel")}
    assert kernels == {f"params/{layer}/kernel" for layer in (*places, head)}
    for layer, units in places.items():
        # A convolution without bias is only scaled: its means go along.
        for statistic in (np.std, np.mean)[: 1 + means]:
            both = np.concatenate([statistic(y[layer], axis=0) for y in parents])
            wanted = averaged(units, both)
            assert relative_error(statistic(found[layer], axis=0), wanted) < 1e-4, layer


def test_batch_norm_as_reset_batch_stats_has_it():
    net, spec, shape = network("batch")
    x = images(200, shape)
    models = [
        zipjax.reset_batch_stats(net.apply, variables(net, shape, seed), [x])
        for seed in (1, 2)
    ]
    assignments = {"conv": np.array([0, 1, 2, 3, 2, 0, 3, 1])}
    merged = zipjax.merge_units(models, spec, assignments, stop_at="conv")
    repaired = zipjax.repair(net.apply, models, merged, [x])
    reset = zipjax.reset_batch_stats(net.apply, merged, [x])
    outputs = [
        np.stack(zipjax.apply(net.apply, m, x)) for m in (repaired, reset, merged)
    ]
    assert relative_error(outputs[0], outputs[1]) < 0.01
    assert relative_error(outputs[2], outputs[1]) > 0.1
    for path in ("batch_stats/norm/mean", "batch_stats/norm/var"):
        np.testing.assert_array_equal(repaired.trunk[path], merged.trunk[path])


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
    repaired = zipjax.repair(net.apply, [model, copy], merged, [x[:10], x[10:]])
    for path, leaf in path_leaves(model).items():
        assert relative_error(repaired.trunk[path], leaf) < 1e-4, path


def scaled(params, x):
    """A bias before a unit is switched off."""
    return ((x @ params["w"] + params["b"]) * params["gain"]) @ params["head"]


def test_biases_behind_which_the_value_is_scaled():
    rng = np.random.default_rng(0)
    shapes = {"w": (6, 4), "b": (4,), "gain": (4,), "head": (4, 2)}
    models = [
        {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
        for _ in range(2)
    ]
    for model in models:
        model["gain"][1] = 0
    out = zipjax.Axis("h", "out")
    axes = {"w": (None, out), "b": (out,), "gain": (out,),
            "head": (zipjax.Axis("h", "in"), None)}  # fmt: skip
    spec = zipjax.PermutationSpec(axes, {"h": zipjax.Perm(4)})
    assignments = {"h": np.array([0, 1, 2, 3, 2, 1, 3, 0])}
    merged = zipjax.merge_units(models, spec, assignments)
    repaired = zipjax.repair(scaled, models, merged, [X]).params()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(repaired))
    before = [
        (X @ np.float64(m["w"]) + m["b"]) * m["gain"] for m in (*models, repaired)
    ]
    for statistic in (np.mean, np.std):
        both = np.concatenate([statistic(y, axis=0) for y in before[:2]])
        wanted = averaged(assignments["h"], both)
        assert relative_error(statistic(before[2], axis=0), wanted) < 1e-5


def wrong(name):
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS)
    good = {"models": MODELS, "merged": merged, "batches": [X]}
    other = [dense_params((6, 8, 7, 9, 3), seed) for seed in (1, 2)]
    broken = jax.tree.map(lambda leaf: leaf * np.nan, MODELS[1])
    bad = {
        "no batches": {"batches": iter(())},
        "NaN data": {"batches": [X, X * np.nan]},
        "no origin": {"merged": dataclasses.replace(merged, origin=None)},
        "models": {"models": other},
        "one model": {"models": MODELS[:1]},
        "NaN model": {"models": [MODELS[0], broken]},
    }
    return good | bad[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no batches", "no batches"),
        ("NaN data", "batch 1 holds NaN"),
        ("no origin", "does not know how it was made"),
        ("models", r"'layers/2/b' has size 9"),
        ("one model", "made from 2 models, but these are 1"),
        ("NaN model", r"'layers/0/w', .* of model 1 are not finite"),
    ],
)
def test_wrong_input(name, message):
    with pytest.raises(ValueError, match=message):
        zipjax.repair(dense_apply, **wrong(name))
