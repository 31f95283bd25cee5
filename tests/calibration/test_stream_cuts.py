"""Statistics, repair and refit of models that are cut inside a residual stream."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import zipjax
from tests.networks import images, relative_error
from tests.streams import (
    INPUTS,
    apart,
    copy_of,
    stream_apply,
    stream_params,
    upto,
)
from tests.zoo import convnets
from zipjax.trees import path_leaves

X = images(60, (INPUTS,))
MODELS = [stream_params(seed) for seed in range(2)]
SPEC = zipjax.infer_spec(stream_apply, MODELS[0], X)
NORMED = [stream_params(seed, norm=True) for seed in range(2)]
NORM_SPEC = zipjax.infer_spec(stream_apply, NORMED[0], X)


def errors(merged):
    """Every head's mean squared error to its own model."""
    outputs = zipjax.apply(stream_apply, merged, X)
    expected = [stream_apply(model, X) for model in MODELS]
    pairs = zip(outputs, expected, strict=True)
    return np.array([np.mean((a - b) ** 2) for a, b in pairs])


def test_statistics_are_the_models_own_before_and_after_the_cut():
    cut = NORM_SPEC.stop("after blocks/1/down/w")
    assignments = apart(NORM_SPEC, cut, 2)
    merged = zipjax.merge_units(NORMED, NORM_SPEC, assignments, stop_at=cut.number)
    reset = zipjax.reset_batch_stats(stream_apply, merged, [X[:30], X[30:]])
    own = [
        path_leaves(zipjax.reset_batch_stats(stream_apply, m, [X[:30], X[30:]]))
        for m in NORMED
    ]
    for number in range(3):
        for name in ("mean", "var"):
            path = f"norms/{number}/{name}"
            expected = [leaves[path] for leaves in own]
            if number < 2:
                found = reset.trunk[path]
                np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-4)
            else:
                found = [head[path] for head in reset.heads]
                np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert set(reset.trunk) == cut.boundary.trunk


def test_a_resnet_cut_inside_a_stage_keeps_its_function_when_it_is_reset():
    case = convnets.CASES["resnet-batch-padded"]()
    forward = jax.jit(case.apply_fn)
    # Statistics of these images, so that a reset changes no function.
    model = zipjax.reset_batch_stats(case.apply_fn, case.params, [case.inputs])
    spec = zipjax.infer_spec(case.apply_fn, model, *case.inputs)
    copy, assignments = copy_of(model, spec)
    cut = spec.stop(2)
    assert cut.boundary is not None
    merged = zipjax.merge_units(
        [model, copy], spec, upto(assignments, cut), stop_at=cut.number
    )
    stats = {p: 0 * x for p, x in merged.trunk.items() if p.startswith("batch_stats")}
    assert stats
    spoilt = dataclasses.replace(merged, trunk={**merged.trunk, **stats})
    reset = zipjax.reset_batch_stats(case.apply_fn, spoilt, [case.inputs])
    expected = forward(model, *case.inputs)
    for output in zipjax.apply(case.apply_fn, reset, *case.inputs):
        assert relative_error(output, expected) < 1e-4


@pytest.mark.parametrize("calibrate", [zipjax.repair, zipjax.refit])
def test_copies_need_no_calibration(calibrate):
    copy, assignments = copy_of(MODELS[0], SPEC)
    models, cut = [MODELS[0], copy], SPEC.stop(3)
    merged = zipjax.merge_units(
        models, SPEC, upto(assignments, cut), stop_at=cut.number
    )
    found = calibrate(stream_apply, models, merged, [X])
    for output in zipjax.apply(stream_apply, found, X):
        assert relative_error(output, stream_apply(MODELS[0], X)) < 1e-3


def test_repaired_units_have_the_mean_statistics_of_the_models():
    merged = zipjax.merge(MODELS, SPEC, zipjax.average(), stop_at=2)
    repaired = zipjax.repair(stream_apply, MODELS, merged, [X])

    def hidden(leaves):
        x = X @ np.asarray(leaves["embed"])
        return x @ np.asarray(leaves["blocks/0/up/w"]) + leaves["blocks/0/up/b"]

    parents = [hidden(path_leaves(model)) for model in MODELS]
    for statistic in (np.mean, np.std):
        expected = np.mean([statistic(y, 0) for y in parents], axis=0)
        np.testing.assert_allclose(statistic(hidden(repaired.trunk), 0), expected, 1e-4)
        assert np.abs(statistic(hidden(merged.trunk), 0) - expected).max() > 0.01
    for before, after in zip(merged.heads, repaired.heads, strict=True):
        assert before.keys() == after.keys()
        for path, leaf in before.items():
            np.testing.assert_array_equal(after[path], leaf)


def test_a_refit_brings_every_head_closer_to_its_model():
    merged = zipjax.merge(MODELS, SPEC, zipjax.average(), stop_at=2)
    trunk = zipjax.refit(stream_apply, MODELS, merged, [X], heads=False)
    for before, after in zip(merged.heads, trunk.heads, strict=True):
        for path, leaf in before.items():
            np.testing.assert_array_equal(after[path], leaf)
    assert any((trunk.trunk[p] != merged.trunk[p]).any() for p in merged.trunk)
    whole = zipjax.refit(stream_apply, MODELS, merged, [X])
    assert (errors(whole) < 0.5 * errors(merged)).all()
    assert (errors(whole) < errors(trunk)).all()


def test_heads_are_evaluated_on_their_own_tasks():
    copy, assignments = copy_of(MODELS[0], SPEC)
    models, cut = [MODELS[0], copy], SPEC.stop(2)
    merged = zipjax.merge_units(
        models, SPEC, upto(assignments, cut), stop_at=cut.number
    )
    right = np.argmax(stream_apply(MODELS[0], X), axis=1)
    labels = np.stack([right, (right + 1) % 3], axis=1)
    forward = functools.partial(zipjax.apply, stream_apply, merged)
    found = zipjax.evaluate_tasks(forward, [(X, labels)])
    assert found.tasks == (1.0, 0.0)
