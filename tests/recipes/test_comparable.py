"""What cannot be compared is refused: no units, or weights that hold NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import dense_apply, dense_params, dense_spec, images
from zipjax import SpecError
from zipjax.trees import path_leaves

WIDTHS = (3, 6, 5, 4)
X = images(20, (3,))
MODELS = [dense_params(WIDTHS, seed) for seed in range(2)]
SPEC = dense_spec(WIDTHS)


def returning_all(params, x):
    hidden = [x]
    for layer in params["layers"]:
        hidden.append(jax.nn.relu(hidden[-1] @ layer["w"] + layer["b"]))
    return hidden


NONE = zipjax.infer_spec(returning_all, MODELS[0], X)


def test_a_spec_without_perms_is_refused(key):
    assert not NONE.perms
    with pytest.raises(SpecError, match=r"no perms.*outputs only"):
        zipjax.collect_moments(returning_all, MODELS, NONE, [X])
    for recipe in (zipjax.permute(), zipjax.git_rebasin(), zipjax.mudsc(0.5)):
        with pytest.raises(SpecError, match="no perms"):
            zipjax.merge(MODELS, NONE, recipe, moments={}, key=key)
    with pytest.raises(SpecError, match="no perms"):
        zipjax.match_sequential(returning_all, MODELS, NONE, zipjax.zipit(), [X])


def test_an_average_and_an_ensemble_need_no_perms():
    merged = zipjax.merge(MODELS, NONE, zipjax.average())
    first, second = map(path_leaves, MODELS)
    for path, leaf in merged.trunk.items():
        wanted = (np.float64(first[path]) + second[path]) / 2
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6, atol=1e-7)
    ensemble = zipjax.merge(MODELS, NONE, zipjax.permute(), moments={}, stop_at=0)
    assert not ensemble.trunk


def broken():
    other = jax.tree.map(np.array, MODELS[1])
    other["layers"][1]["w"][2, 3] = np.nan
    return [MODELS[0], other]


def test_weights_that_are_not_finite_are_named(key):
    message = r"\['layers/1/w'\] of model 1 are not finite"
    with pytest.raises(ValueError, match=message):
        zipjax.collect_moments(dense_apply, broken(), SPEC, [X])
    for recipe in (zipjax.git_rebasin(), zipjax.weight_zip()):
        with pytest.raises(ValueError, match=message):
            zipjax.merge(broken(), SPEC, recipe, key=key)


def test_activations_that_overflow_are_said_to():
    huge = [jax.tree.map(lambda x: x * 1e20, model) for model in MODELS]
    with pytest.raises(ValueError, match=r"not finite in the models \[0, 1\].*overfl"):
        zipjax.collect_moments(dense_apply, huge, SPEC, [X])


@pytest.mark.parametrize("calibrate", [zipjax.refit, zipjax.repair])
def test_calibration_names_weights_that_are_not_finite(calibrate):
    merged = zipjax.merge(MODELS, SPEC, zipjax.average())
    message = r"\['layers/1/w'\] of model 1 are not finite"
    with pytest.raises(ValueError, match=message):
        calibrate(dense_apply, broken(), merged, [X])


# Adapters, whose rank is a perm of their own, and models of other widths.


def adapted(params, x):
    kernel = params["w"] + params["lora_a"] @ params["lora_b"]
    return jnp.tanh(x @ kernel) @ params["out"]


def with_rank(rank, width=8):
    shapes = {"w": (3, width), "lora_a": (3, rank), "lora_b": (rank, width)}
    return {k: np.ones(s, np.float32) for k, s in {**shapes, "out": (width, 2)}.items()}


def test_adapters_of_other_ranks_are_refused():
    spec = zipjax.infer_spec(adapted, with_rank(2), X)
    message = r"'lora_a' has the shapes \[\[3, 2\], \[3, 4\]\].*product to the weights"
    with pytest.raises(ValueError, match=message):
        zipjax.merge([with_rank(2), with_rank(4)], spec, zipjax.average())


def test_other_widths_are_refused_with_a_way_out():
    other = dense_params((3, 6, 7, 4), 1)
    message = r"'layers/1/b' has the shapes \[\[5\], \[7\]\].*one width.*stop the zip"
    for call in (zipjax.merge, zipjax.match):
        with pytest.raises(ValueError, match=message):
            call([MODELS[0], other], SPEC, zipjax.average())
    with pytest.raises(ValueError, match=message):
        zipjax.collect_moments(dense_apply, [MODELS[0], other], SPEC, [X])
    # The way out: the first layer alone is shared.
    specs = [SPEC, dense_spec((3, 6, 7, 4))]
    merged = zipjax.merge([MODELS[0], other], specs, zipjax.average(), stop_at="h0")
    assert set(merged.trunk) == {"layers/0/w", "layers/0/b"}
    for k, model in enumerate((MODELS[0], other)):
        head = merged.params(k)
        np.testing.assert_array_equal(head["layers"][2]["w"], model["layers"][2]["w"])
