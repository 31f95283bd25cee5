"""Refitting, against least squares in numpy and functions that must stay."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
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
    relative_error,
    variables,
)
from tests.test_compilations import compilations
from zipjax.models import vit
from zipjax.trees import path_leaves

WIDTHS = (6, 8, 7, 3)
MODELS = [dense_params(WIDTHS, seed) for seed in (1, 2)]
SPEC = dense_spec(WIDTHS)
X = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
BATCHES = [X[:60], X[60:]]
# Pairs across the models, but also within them.
ASSIGNMENTS = {
    "h0": np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 1, 2, 3, 4, 5, 6]),
    "h1": np.array([*range(7), 3, 0, 1, 2, 6, 5, 4]),
}


def merge_matrix(assignment):
    one_hot = np.eye(assignment.max() + 1)[assignment].T
    return one_hot / one_hot.sum(1, keepdims=True)


def hidden(params, x):
    """Every layer's value before its ReLU, in float64."""
    values = []
    for layer in params["layers"]:
        x = np.maximum(x, 0) if values else x
        x = x @ np.float64(layer["w"]) + np.float64(layer["b"])
        values.append(x)
    return values


def least_squares(x, y, weights, ridge):
    """The ridge solution by numpy's lstsq on centred, extended equations."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    weight = np.sqrt(ridge * np.square(x).sum(0).mean())
    rows = np.concatenate([x, weight * np.eye(x.shape[1])])
    found = np.linalg.lstsq(rows, np.concatenate([y, weight * weights]))[0]
    return found, mean_y - mean_x @ found


def expected_refit(merged, ridge):
    both = [
        np.concatenate(v, 1) for v in zip(*(hidden(m, X) for m in MODELS), strict=True)
    ]
    mixes = [*map(merge_matrix, ASSIGNMENTS.values()), np.tile(np.eye(3) / 2, 2)]
    x, layers = np.float64(X), []
    for layer, value, mix in zip(merged["layers"], both, mixes, strict=True):
        x = np.maximum(x, 0) if layers else x
        w, b = least_squares(x, value @ mix.T, np.float64(layer["w"]), ridge)
        layers.append({"w": w, "b": b})
        x = x @ w + b
    return {"layers": layers}


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_without_sweeps_layers_solve_ridge_regressions(ridge):
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS)
    refit = zipjax.refit(dense_apply, MODELS, merged, BATCHES, ridge=ridge, sweeps=0)
    expected = path_leaves(expected_refit(merged.params(), ridge))
    for path, leaf in path_leaves(refit.params()).items():
        assert relative_error(leaf, expected[path]) < 1e-3, path


def without_biases(params, x):
    return jnp.square(x @ params["a"] + 0.3) @ params["b"] - 0.2


def test_without_biases_nothing_is_centred():
    models = [{"a": m["layers"][0]["w"], "b": m["layers"][1]["w"]} for m in MODELS]
    axes = {"a": (None, zipjax.Axis("h0", "out")), "b": (zipjax.Axis("h0", "in"), None)}
    spec = zipjax.PermutationSpec(axes, {"h0": zipjax.Perm(8)})
    assignments = {"h0": ASSIGNMENTS["h0"]}
    merged = zipjax.merge_units(models, spec, assignments)
    refit = zipjax.refit(without_biases, models, merged, BATCHES)
    mixes = [merge_matrix(ASSIGNMENTS["h0"]), np.tile(np.eye(7) / 2, 2)]
    x = np.asarray(X, np.float64)
    inputs = [x, x]
    for path, mix, offset in zip("ab", mixes, (0.3, -0.2), strict=True):
        values = [
            x @ np.asarray(m[path], np.float64) + offset
            for x, m in zip(inputs, models, strict=True)
        ]
        before = np.float64(merged.params()[path])
        gram = x.T @ x
        ridge = 1e-3 * np.trace(gram) / len(gram)
        wanted = x.T @ (np.concatenate(values, 1) @ mix.T - offset)
        w = np.linalg.solve(gram + ridge * np.eye(len(gram)), wanted + ridge * before)
        assert relative_error(refit.params()[path], w) < 1e-3
        x, inputs = np.square(x @ w + offset), [np.square(v) for v in values]


def test_sweeps_lower_the_error_behind_the_relu():
    # A stem that cannot reach its target: two models with inputs of their own.
    models = [jax.tree.map(jnp.array, m) for m in MODELS]
    merged = zipjax.merge_units(models, SPEC, ASSIGNMENTS)
    wide = [{"layers": [*m["layers"]]} for m in models]
    apply_fn = functools.partial(quadratic, MODELS[0])
    errors = []
    for sweeps in (0, 1, 8):
        refit = zipjax.refit(apply_fn, wide, merged, BATCHES, ridge=1e-6, sweeps=sweeps)
        values = [np.asarray(first(apply_fn, m)) for m in (*wide, refit.params())]
        target = np.concatenate(values[:2], 1) @ merge_matrix(ASSIGNMENTS["h1"]).T
        found = np.maximum(values[2], 0) - np.maximum(target, 0)
        errors.append(np.square(found).sum())
    assert errors[0] > errors[1] > errors[2]


def quadratic(_, params, x, *, after=3):
    first_layer, second, head = params["layers"]
    x = jnp.square(x @ first_layer["w"] + first_layer["b"])
    x = x @ second["w"] + second["b"]
    return x if after == 2 else jax.nn.relu(x) @ head["w"] + head["b"]


def first(apply_fn, params):
    return apply_fn(params, X, after=2)


def test_copies_of_one_network_stay_as_they_are():
    net, spec = FlattenNet(), flatten_spec(16)
    model = variables(net, (8, 8, 3), 1)
    copies = [model, model]
    assignments = {p: np.tile(np.arange(n), 2) for p, n in spec.sizes.items()}
    merged = zipjax.merge_units(copies, spec, assignments)
    x = images(40, (8, 8, 3))
    refit = zipjax.refit(net.apply, copies, merged, [x[:20], x[20:]])
    expected = np.asarray(net.apply(model, x))
    np.testing.assert_allclose(
        zipjax.apply(net.apply, refit, x), expected, atol=1e-3 * expected.std()
    )


def test_heads_are_refitted_to_their_own_models():
    moments = zipjax.collect_moments(dense_apply, MODELS, SPEC, BATCHES)
    assignments = zipjax.match(
        MODELS, SPEC, zipjax.zipit(), moments=moments, stop_at="h1"
    )
    merged = zipjax.merge_units(MODELS, SPEC, assignments, stop_at="h1")

    def errors(network):
        outputs = zipjax.apply(dense_apply, network, X)
        pairs = zip(outputs, MODELS, strict=True)
        return [np.square(y - dense_apply(m, X)).mean() for y, m in pairs]

    def refit(**options):
        return zipjax.refit(dense_apply, MODELS, merged, BATCHES, **options)

    plain, trunk, whole = errors(merged), errors(refit(heads=False)), errors(refit())
    for before, half, after in zip(plain, trunk, whole, strict=True):
        assert after < half < before


@pytest.mark.parametrize("stop_at", [None, "h1"])
def test_wider_layers_are_refitted_and_not_called_left(stop_at, caplog):
    moments = zipjax.collect_moments(dense_apply, MODELS, SPEC, BATCHES)
    recipe = zipjax.zipit(num_units={"h1": 2 * SPEC.sizes["h1"] - 1})
    merged = zipjax.merge(MODELS, SPEC, recipe, moments=moments, stop_at=stop_at)
    caplog.clear()
    refit = zipjax.refit(dense_apply, MODELS, merged, BATCHES)
    assert not caplog.records
    # The first layer reads what the models read: its solution is what was merged.
    for path in ("layers/1/w", "layers/2/w"):
        before, after = ((*x.heads, x.trunk) for x in (merged, refit))
        own = [path in part for part in before].index(True)
        assert relative_error(before[own][path], after[own][path]) > 1e-3


def test_heads_of_other_functions_are_refitted():
    """Those of one function, one of which returns a part of its outputs."""

    def first_two(params, x):
        return dense_apply(params, x)[:, :2]

    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS, stop_at="h1")
    one = zipjax.refit(dense_apply, MODELS, merged, BATCHES)
    each = zipjax.refit([dense_apply, first_two], MODELS, merged, BATCHES)
    for number in (0, 1):
        found, expected = each.params(number), one.params(number)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_functions_are_those_of_the_models():
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS)
    with pytest.raises(ValueError, match="3 functions for 2 models"):
        zipjax.refit([dense_apply] * 3, MODELS, merged, BATCHES)


def test_models_of_several_specs_are_refused():
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS, stop_at="h1")
    merged = dataclasses.replace(merged, spec=(SPEC, SPEC))
    with pytest.raises(ValueError, match="2 heads have specs of their own"):
        zipjax.refit(dense_apply, MODELS, merged, BATCHES)


def test_a_refit_needs_batches():
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS)
    with pytest.raises(ValueError, match="no batches"):
        zipjax.refit(dense_apply, MODELS, merged, [])


def test_the_models_must_be_those_of_the_merge():
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS)
    other = [dense_params((6, 8, 9, 3), seed) for seed in (1, 2)]
    with pytest.raises(ValueError, match="'layers/1/b' has size 9"):
        zipjax.refit(dense_apply, other, merged, BATCHES)
    with pytest.raises(ValueError, match="made from 2 models, but these are 3"):
        zipjax.refit(dense_apply, [*MODELS, MODELS[0]], merged, BATCHES)


VIT = vit.ViT(3, width=6, depth=1, heads=2, patch=4, hidden=5, class_token=False)
VIT_IMAGES = images(30, (8, 8, 1))


def pairs_within_and_across():
    """Assignments of two ViTs; heads are matched as a whole, the second's swapped."""
    rng = np.random.default_rng(0)
    sizes = {name: perm.size for name, perm in vit.spec(VIT).perms.items()}
    nested = [name for name in sizes if name.endswith(("/qk", "/vo"))]
    draw = {
        name: rng.permutation(np.tile(np.arange(n), 2)) for name, n in sizes.items()
    }
    draw |= {k: np.array([[0, 0, 0, 1, 2, 2], [2, 1, 0, 0, 2, 1]]) for k in nested}
    return draw | {"blocks_0/attn/heads": np.array([0, 1, 1, 0])}


def merged_qkv(values, assignments):
    """The models' queries, keys and values, averaged head by head as they match.

    Keys are added where queries are averaged: their products are what counts.
    """
    both = np.stack([np.float64(v).reshape(-1, 3, 2, 3) for v in values])
    out = np.zeros(both.shape[1:])
    for part, name in enumerate(("qk", "qk", "vo")):
        for head, row in enumerate(assignments[f"blocks_0/attn/{name}"]):
            for unit in range(3):
                members = [
                    both[model, :, part, head if model == 0 else 1 - head, j]
                    for model, j in np.argwhere(row.reshape(2, 3) == unit)
                ]
                total = np.sum(members, axis=0)
                share = 1 / 2 if part == 1 else 1 / len(members)
                out[:, part, head, unit] = total * share
    return out.reshape(len(out), -1)


@jax.jit
def recorded(params):
    return VIT.apply(params, VIT_IMAGES, capture_intermediates=True)[1]


def attention_values(params):
    """What the fused layer reads and returns, as Flax records it."""
    seen = path_leaves(recorded(params)["intermediates"]["blocks_0"])
    values = (seen[f"{layer}/__call__/0"] for layer in ("norm1", "attn/qkv"))
    return [np.float64(value).reshape(-1, value.shape[-1]) for value in values]


def test_queries_keys_and_values_of_one_kernel():
    models = [variables(VIT, (8, 8, 1), seed) for seed in (1, 2)]
    assignments = pairs_within_and_across()
    merged = zipjax.merge_units(models, vit.spec(VIT), assignments)
    refit = zipjax.refit(VIT.apply, models, merged, [VIT_IMAGES])
    targets = [attention_values(model)[1] for model in models]
    before, after = (
        network.params()["params"]["blocks_0"]["attn"]["qkv"]
        for network in (merged, refit)
    )
    kernel, bias = least_squares(
        attention_values(refit.params())[0],
        merged_qkv(targets, assignments),
        np.float64(before["kernel"]),
        1e-3,
    )
    assert relative_error(after["kernel"], kernel) < 1e-3
    assert relative_error(after["bias"], bias) < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        *({"ridge": np.nan}, {"ridge": -1e-3}, {"ridge": "1"}),
        *({"sweeps": -1}, {"sweeps": 1.5}, {"sweeps": None}),
    ],
    ids=str,
)
def test_settings_that_solve_nothing_are_refused(options, untyped):
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS)
    ((name, value),) = options.items()
    with pytest.raises(
        ValueError, match=rf"{name} = {value!r}: .*(finite|whole) number"
    ):
        zipjax.refit(dense_apply, MODELS, merged, BATCHES, **options)


def deep(depth):
    """Dense networks with equal hidden layers, and everything to merge them."""
    widths = (6, *[8] * depth, 3)
    models = [dense_params(widths, seed) for seed in (1, 2)]
    spec = dense_spec(widths)
    return models, zipjax.merge(models, spec, zipjax.average())


def leaves_of(merged):
    return path_leaves(merged.params())


# 2,000 bytes hold the values of three batches of one network: the rest is run again.
@pytest.mark.parametrize("limit", [1, 2000, 10**6])
def test_what_is_computed_again_is_the_same(limit):
    models, merged = deep(3)
    batches = [X[k::6] for k in range(6)]
    kept = zipjax.refit(dense_apply, models, merged, batches, memory_limit=None)
    again = zipjax.refit(dense_apply, models, merged, batches, memory_limit=limit)
    for path, leaf in leaves_of(kept).items():
        np.testing.assert_array_equal(leaves_of(again)[path], leaf, path)


def test_positions_are_drawn_with_the_key():
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS)
    texts = [X.reshape(4, 30, 6)]

    def refitted(seed, positions="few"):
        options = {"key": jax.random.key(seed), "positions": positions}
        found = zipjax.refit(dense_apply, MODELS, merged, texts, **options)
        return found.params()["layers"][1]["w"]

    one, same, other = (refitted(seed, 40) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert relative_error(other, one) > 1e-3
    # There are fewer tokens than "few", so that it reads them all.
    every = refitted(0)
    np.testing.assert_array_equal(every, refitted(1, "all"))
    rows = zipjax.refit(dense_apply, MODELS, merged, [X]).params()["layers"][1]["w"]
    np.testing.assert_allclose(every, rows, atol=1e-5)


@pytest.mark.parametrize("positions", [0, -1, 1.5, True, "some"], ids=str)
def test_positions_are_a_number_of_samples(positions, untyped):
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS)
    with pytest.raises(ValueError, match=r"positions = .* 'few' or 'all'"):
        zipjax.refit(dense_apply, MODELS, merged, BATCHES, positions=positions)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "1 GiB"], ids=str)
def test_a_limit_is_a_number_of_bytes(limit, untyped):
    merged = zipjax.merge_units(MODELS, SPEC, ASSIGNMENTS)
    with pytest.raises(ValueError, match=r"memory_limit = .* such as .*2\*\*30"):
        zipjax.refit(dense_apply, MODELS, merged, BATCHES, memory_limit=limit)


def test_several_devices_give_what_one_gives(monkeypatch):
    net, spec = FlattenNet(), flatten_spec(16)
    models = [variables(net, (8, 8, 3), seed) for seed in (1, 2)]
    merged = zipjax.merge(models, spec, zipjax.average())
    x = images(44, (8, 8, 3))
    several, one = [], []
    assert len(jax.local_devices()) > 1
    for found in (several, one):
        # With a large ridge, so that rounding is not magnified.
        refit = zipjax.refit(net.apply, models, merged, [x], ridge=1.0)
        found += leaves_of(refit).items()
        monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    for (path, a), (_, b) in zip(several, one, strict=True):
        assert relative_error(a, b) < 1e-5, path


def test_equal_layers_share_their_programs():
    counts = []
    for depth in (3, 6):
        models, merged = deep(depth)
        jax.clear_caches()
        with compilations() as seen:
            zipjax.refit(dense_apply, models, merged, BATCHES)
        counts.append(len(seen))
    assert counts[0] == counts[1] > 0
