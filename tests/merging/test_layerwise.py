"""Interpolation weights by path, against numpy."""

import jax
import numpy as np
import pytest

import zipjax
from tests.networks import dense_apply, dense_params, dense_spec, images, relative_error
from zipjax.merging.weights import interpolation_shares
from zipjax.trees import path_leaves

WIDTHS = (3, 6, 5, 4)
SPEC = dense_spec(WIDTHS)
MODELS = [dense_params(WIDTHS, seed) for seed in range(2)]
X = images(50, (3,))
PATHS = list(SPEC.entries)
ORDERS = {p: np.random.default_rng(n).permutation(n) for p, n in SPEC.sizes.items()}
ALIGNED = {p: np.concatenate([np.arange(len(x)), x]) for p, x in ORDERS.items()}


def shares(weights):
    found = interpolation_shares(weights, PATHS, 2)
    return {path: (row / 2).tolist() for path, row in found.items()}


@pytest.mark.parametrize(
    ("weights", "changed"),
    [
        ({"layers/2/w": (1, 0)}, {"layers/2/w": [1, 0]}),
        ({"layers/2": (1, 0)}, {"layers/2/w": [1, 0], "layers/2/b": [1, 0]}),
        ({"layers/2/": (1, 0)}, {"layers/2/w": [1, 0], "layers/2/b": [1, 0]}),
        ({"*/b": (0.25, 0.75)}, {f"layers/{k}/b": [0.25, 0.75] for k in range(3)}),
        ({"layers/[01]/w": (0, 1)}, {f"layers/{k}/w": [0, 1] for k in range(2)}),
        # The last key that matches counts.
        ({"*": (0, 1), "layers/1": (1, 0)},
         {p: [1, 0] if p.startswith("layers/1") else [0, 1] for p in PATHS}),
        ({"layers/1": (1, 0), "*": (0, 1)}, {p: [0, 1] for p in PATHS}),
        ({}, {}),
    ],
)  # fmt: skip
def test_keys_are_paths_folders_and_patterns(weights, changed):
    assert shares(weights) == {p: [0.5, 0.5] for p in PATHS} | changed


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"layer": (1, 0)}, r"'layer', which is no merged.*'layers/0/b'"),
        ({"layers/2": (1, 1)}, r"weights = \[1, 1\]"),
        ({"layers/2": (1, 0, 0)}, "of 2 models"),
    ],
)
def test_wrong_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        zipjax.merge(MODELS, SPEC, zipjax.average(), weights=weights)


def test_weights_by_path_interpolate_aligned_models():
    weights = {"*": (0.75, 0.25), "layers/1": (0.1, 0.9), "layers/2/w": (1, 0)}
    merged = zipjax.merge_units(MODELS, SPEC, ALIGNED, weights=weights)
    own = {f"layers/1/{x}": (0.1, 0.9) for x in "wb"} | {"layers/2/w": (1, 0)}
    # Unit j of the second model goes to merged unit ORDERS[j].
    inverse = {p: np.argsort(x) for p, x in ORDERS.items()}
    aligned = path_leaves(zipjax.permute_params(MODELS[1], SPEC, inverse))
    for path, leaf in path_leaves(MODELS[0]).items():
        a, b = own.get(path, (0.75, 0.25))
        expected = a * np.float64(leaf) + b * np.float64(aligned[path])
        assert relative_error(merged.trunk[path], expected) < 1e-6


def test_a_models_own_layer_is_kept():
    merged = zipjax.merge_units(MODELS, SPEC, ALIGNED, weights={"layers/1": (1, 0)})
    for name in ("w", "b"):
        own = MODELS[0]["layers"][1][name]
        np.testing.assert_allclose(merged.trunk[f"layers/1/{name}"], own, rtol=1e-6)


def test_only_merged_layers_have_weights():
    with pytest.raises(ValueError, match="'layers/2', which is no merged parameter"):
        zipjax.merge(
            MODELS, SPEC, zipjax.average(), stop_at="h1", weights={"layers/2": (1, 0)}
        )


def test_recipes_that_zip_take_no_weights():
    zipped = dict.fromkeys(SPEC.perms) | {
        p: np.arange(2 * n) // 2 for p, n in SPEC.sizes.items()
    }
    with pytest.raises(ValueError, match="weights need every merged unit"):
        zipjax.merge_units(MODELS, SPEC, zipped, weights={"*": (1, 0)})


def hidden(params):
    """Every hidden layer's values before its ReLU, in float64."""
    values, x = [], np.float64(X)
    for layer in params["layers"][:-1]:
        values.append(x @ np.float64(layer["w"]) + np.float64(layer["b"]))
        x = np.maximum(values[-1], 0)
    return values


def test_repair_and_the_origin_know_them(tmp_path):
    weights = {"layers/0": (1, 0), "layers/1": (0.25, 0.75)}
    merged = zipjax.merge_units(MODELS, SPEC, ALIGNED, weights=weights)
    again = zipjax.merge_units(MODELS, SPEC, ALIGNED, weights=dict(weights))
    assert merged.origin == again.origin
    assert hash(merged.origin) == hash(again.origin)
    assert merged.origin != zipjax.merge_units(MODELS, SPEC, ALIGNED).origin
    zipjax.save(tmp_path / "merged", merged)
    loaded = zipjax.load(tmp_path / "merged", like=MODELS[0])
    assert loaded.origin == merged.origin
    for model in (merged, loaded):
        repaired = zipjax.repair(dense_apply, MODELS, model, [X])
        parents = [hidden(MODELS[0]), hidden(MODELS[1])]
        pairs, found_in = [(1, 0), (0.25, 0.75)], hidden(repaired.params())
        for number, (perm, (a, b)) in enumerate(zip(ORDERS, pairs, strict=True)):
            found = found_in[number]
            first, second = (values[number] for values in parents)
            second = second[:, np.argsort(ORDERS[perm])]
            for statistic in (np.mean, np.std):
                wanted = a * statistic(first, axis=0) + b * statistic(second, axis=0)
                assert relative_error(statistic(found, axis=0), wanted) < 1e-5


def test_all_weight_on_one_model_gives_that_model():
    for calibrate in (None, zipjax.repair, zipjax.refit):
        merged = zipjax.merge_units(MODELS, SPEC, ALIGNED, weights={"*": (1, 0)})
        if calibrate is not None:
            merged = calibrate(dense_apply, MODELS, merged, [X])
        outputs = jax.device_get(dense_apply(merged.params(), X))
        assert relative_error(outputs, dense_apply(MODELS[0], X)) < 1e-4
