"""Kernels in other layouts are repaired and refitted; those that are left are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import images, relative_error
from zipjax.trees import path_leaves

X = images(80, (6,))
ASSIGNMENT = np.array([0, 0, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 7, 7])
GRID = np.linspace(-2, 2, 5, dtype=np.float32)


def basis(x):
    return jnp.exp(-((x[..., None] - GRID) ** 2))


def transposed(params, x):
    """As in GPT-2: kernels are [out, in]."""
    hidden = jax.nn.relu(x @ params["w"].T + params["b"])
    return hidden @ params["head"].transpose()


def kan(params, x):
    hidden = jnp.einsum("bik,oik->bo", basis(x), params["w"]) + params["b"]
    return jnp.einsum("bik,iko->bo", basis(hidden), params["head"])


def by_input(params, x):
    products = jnp.einsum("bik,oik->bio", basis(x), params["w"])
    return jax.nn.relu(products.sum(1) + params["b"]) @ params["head"]


def twice(params, x):
    hidden = jax.nn.relu(x @ params["w"][0] + params["b"]) + x @ params["w"][0]
    return hidden @ params["head"]


def normalised(params, x):
    kernel = params["w"] / jnp.linalg.norm(params["w"], axis=0)
    return jax.nn.relu(x @ kernel + params["b"]) @ params["head"]


def summed(params, x):
    hidden = (x[..., None] * params["w"]).sum(-2) + params["b"]
    return jax.nn.relu(hidden) @ params["head"]


def looped(params, x):
    def step(carry, _):
        return jax.nn.relu(x @ params["w"] + params["b"]) + carry / 2, None

    start = jnp.zeros((len(x), 8))
    return jax.lax.scan(step, start, None, length=2)[0] @ params["head"]


OUT, IN = zipjax.Axis("h", "out"), zipjax.Axis("h", "in")
HEAD = {"b": (OUT,), "head": (IN, None)}
REPAIRED = {
    "transposed": (transposed, {"w": (8, 6), "head": (3, 8)},
                   {"w": (OUT, None), "b": (OUT,), "head": (None, IN)}),
    "kan": (kan, {"w": (8, 6, 5), "head": (8, 5, 3)},
            {"w": (OUT, None, None), "b": (OUT,), "head": (IN, None, None)}),
}  # fmt: skip
LEFT = {
    "twice": (twice, {"w": (2, 6, 8)}, {"w": (None, None, OUT), **HEAD}),
    "normalised": (normalised, {"w": (6, 8)}, {"w": (None, OUT), **HEAD}),
    "summed": (summed, {"w": (6, 8)}, {"w": (None, OUT), **HEAD}),
    "looped": (looped, {"w": (6, 8)}, {"w": (None, OUT), **HEAD}),
    "by_input": (by_input, {"w": (8, 6, 5)}, {"w": (OUT, None, None), **HEAD}),
}


def merged_network(name):
    apply_fn, shapes, entries = (REPAIRED | LEFT)[name]
    shapes = {"b": (8,), "head": (8, 3), **shapes}
    rng = np.random.default_rng(0)
    models = [
        {k: rng.normal(size=s).astype(np.float32) / 2 for k, s in shapes.items()}
        for _ in range(2)
    ]
    spec = zipjax.PermutationSpec(entries, {"h": zipjax.Perm(8)})
    merged = zipjax.merge_units(models, spec, {"h": ASSIGNMENT})
    return apply_fn, models, merged


def hidden_units(name, params):
    """The hidden layer's values before its nonlinearity, in float64."""
    kernel, x = np.float64(params["w"]), np.float64(X)
    if name == "transposed":
        return x @ kernel.T + params["b"]
    bumps = np.exp(-((x[..., None] - GRID) ** 2))
    return np.tensordot(bumps, kernel, ((1, 2), (1, 2))) + params["b"]


@pytest.mark.parametrize("name", REPAIRED)
def test_kernels_in_other_layouts_are_repaired(name, caplog):
    apply_fn, models, merged = merged_network(name)
    repaired = zipjax.repair(apply_fn, models, merged, [X])
    assert not caplog.records
    parents = np.concatenate([hidden_units(name, model) for model in models], axis=1)
    found = hidden_units(name, repaired.params())
    for statistic in (np.mean, np.std):
        per_unit = statistic(parents, axis=0)
        wanted = [per_unit[k == ASSIGNMENT].mean() for k in range(8)]
        assert relative_error(statistic(found, axis=0), wanted) < 1e-5
    before = hidden_units(name, merged.params())
    assert relative_error(before.std(0), found.std(0)) > 0.05


def test_transposed_kernels_are_refitted_as_plain_ones():
    _, models, merged = merged_network("transposed")
    refit = zipjax.refit(transposed, models, merged, [X])

    def plain(params, x):
        return jax.nn.relu(x @ params["w"] + params["b"]) @ params["head"]

    def turned(model):
        return {k: np.asarray(leaf).T for k, leaf in model.items()}

    entries = {"w": (None, OUT), "b": (OUT,), "head": (IN, None)}
    spec = zipjax.PermutationSpec(entries, {"h": zipjax.Perm(8)})
    models = [turned(model) for model in models]
    other = zipjax.merge_units(models, spec, {"h": ASSIGNMENT})
    expected = zipjax.refit(plain, models, other, [X])
    for path, leaf in turned(refit.params()).items():
        assert relative_error(leaf, expected.trunk[path]) < 1e-4
    assert relative_error(expected.trunk["head"], other.trunk["head"]) > 0.01


@pytest.mark.parametrize("calibrate", [zipjax.repair, zipjax.refit])
@pytest.mark.parametrize("name", LEFT)
def test_kernels_that_are_left_are_named(name, calibrate, caplog):
    apply_fn, models, merged = merged_network(name)
    calibrated = calibrate(apply_fn, models, merged, [X])
    (record,) = caplog.records
    assert f"{calibrate.__name__} leaves ['w'] as they are" in record.message
    np.testing.assert_array_equal(calibrated.trunk["w"], merged.trunk["w"])


# Layers that are stacked, and read by constant indices.


def stack(params, x):
    x = x @ params["embed"]
    for k in range(3):
        own = jax.tree.map(lambda leaf, k=k: leaf[k], params["blocks"])
        x = x + jax.nn.relu(x @ own["up"] + own["b"]) @ own["down"].T
    return x @ params["head"]


def unrolled(params, x):
    x = x @ params["embed"]
    for own in params["blocks"]:
        x = x + jax.nn.relu(x @ own["up"] + own["b"]) @ own["down"].T
    return x @ params["head"]


def unstacked(params):
    blocks = [
        jax.tree.map(lambda leaf, k=k: leaf[k], params["blocks"]) for k in range(3)
    ]
    return {**params, "blocks": blocks}


def stacks(count):
    rng = np.random.default_rng(0)
    shapes = {"up": (3, 5, 8), "b": (3, 8), "down": (3, 5, 8)}

    def draw(shape):
        return rng.normal(size=shape).astype(np.float32) / 2

    return [
        {"blocks": {k: draw(s) for k, s in shapes.items()},
         "embed": draw((6, 5)), "head": draw((5, 3))}
        for _ in range(count)
    ]  # fmt: skip


def calibrated(calibrate, apply_fn, models):
    """Parameters before and after a calibration, merged by the same assignments."""
    spec = zipjax.infer_spec(apply_fn, models[0], X)
    sizes = sorted(spec.sizes.items(), key=lambda item: (item[1], item[0]))
    assert [size for _, size in sizes] == [5, 8, 8, 8]
    rng = np.random.default_rng(1)
    assignments = {
        perm: np.concatenate([np.arange(n), rng.permutation(n)]) for perm, n in sizes
    }
    merged = zipjax.merge_units(models, spec, assignments)
    return merged.params(), calibrate(apply_fn, models, merged, [X]).params()


@pytest.mark.parametrize("calibrate", [zipjax.repair, zipjax.refit])
def test_stacked_layers_are_calibrated_as_unrolled_ones(calibrate, caplog):
    before, found = calibrated(calibrate, stack, stacks(2))
    _, wanted = calibrated(calibrate, unrolled, [unstacked(x) for x in stacks(2)])
    assert not caplog.records
    changed = path_leaves(unstacked(found))
    for path, leaf in path_leaves(wanted).items():
        assert relative_error(changed[path], leaf) < 1e-4, path
    for name in ("up", "down", "b"):
        for k in range(3):
            new, old = found["blocks"][name][k], before["blocks"][name][k]
            assert relative_error(new, old) > 1e-3
