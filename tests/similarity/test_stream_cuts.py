"""Moments for a zip that stops inside a residual stream."""

import jax
import numpy as np
import pytest

import zipjax
from tests.networks import dense_apply, dense_params, dense_spec, images
from tests.streams import (
    INPUTS,
    WIDTH,
    after_blocks,
    copy_of,
    stream_apply,
    stream_params,
)

X = images(50, (INPUTS,))
MODELS = [stream_params(seed) for seed in range(2)]
SPEC = zipjax.infer_spec(stream_apply, MODELS[0], X)
DEVICES = jax.local_devices()[:1]


def collect(models=MODELS, stop_at=None):
    return zipjax.collect_moments(
        stream_apply, models, SPEC, [X], stop_at=stop_at, devices=DEVICES
    )


def start(params):
    return X @ params["embed"]


def after_one(params):
    return after_blocks({"blocks": params["blocks"][:1]}, start(params))


def check(moments, values):
    """Compares moments with those of both models' values, in float64."""
    units = np.concatenate([np.float64(x) for x in values], axis=1)
    centred = units - units.mean(0)
    np.testing.assert_allclose(
        np.squeeze(moments.mean), units.mean(0), rtol=1e-4, atol=1e-5
    )
    found = np.squeeze(moments.m2)
    np.testing.assert_allclose(found, centred.T @ centred, rtol=1e-3, atol=1e-3)


def test_a_stream_is_read_where_the_trunk_ends_and_before():
    moments = collect(stop_at=2)
    assert list(moments) == list(SPEC.stop(2).perms)
    check(moments["embed"], [after_one(model) for model in MODELS])
    check(moments["embed"].earlier, [start(model) for model in MODELS])
    # At the first cut, nothing lies before it.
    first = collect(stop_at=1)
    assert list(first) == ["embed"]
    check(first["embed"], [start(model) for model in MODELS])
    assert first["embed"].earlier is None


def test_units_that_are_exchanged_after_the_cut_are_matched_before_it():
    """Units 0 and 1 of the second model's stream swap roles in its last blocks."""
    model = MODELS[0]
    swap = np.array([1, 0, *range(2, WIDTH)])
    last = [
        {"up": {**block["up"], "w": block["up"]["w"][swap]}, "down": block["down"]}
        for block in model["blocks"][1:]
    ]
    big = {"down": {"w": 30 * last[0]["down"]["w"][:, swap]}, "up": last[0]["up"]}
    other = {**model, "blocks": [model["blocks"][0], big, *last[1:]]}
    copy, wanted = copy_of(other, SPEC)
    models = [model, copy]
    recipe, moments = zipjax.permute(), collect(models, 2)
    found = zipjax.match(models, SPEC, recipe, moments=moments, stop_at=2)
    for perm, assignment in found.items():
        np.testing.assert_array_equal(assignment, wanted[perm])
    merged = zipjax.merge_units(models, SPEC, found, stop_at=2)
    for output, own in zip(zipjax.apply(stream_apply, merged, X), models, strict=True):
        np.testing.assert_allclose(output, stream_apply(own, X), rtol=1e-3, atol=1e-3)


def test_such_moments_are_for_one_stop():
    moments = collect(stop_at=2)
    assert {m.source for m in moments.values()} == {
        f"{zipjax.source_of(MODELS, SPEC)}, up to cut 2"
    }
    for stop_at in (None, 1, 3):
        with pytest.raises(
            ValueError, match=r"other perms|collected for .* cut 2, but"
        ):
            zipjax.merge(
                MODELS, SPEC, zipjax.permute(), moments=moments, stop_at=stop_at
            )
    # Those without a stop are for any.
    zipjax.match(MODELS, SPEC, zipjax.permute(), moments=collect(), stop_at=2)
    with pytest.raises(ValueError, match="stop_at = 0 zips nothing"):
        collect(stop_at=0)


def test_a_closed_cut_leaves_out_what_lies_behind_it():
    widths = (3, 6, 5, 4)
    models = [dense_params(widths, seed) for seed in range(2)]
    spec, x = dense_spec(widths), images(40, (3,))
    moments = zipjax.collect_moments(
        dense_apply, models, spec, [x], stop_at="h0", devices=DEVICES
    )
    assert list(moments) == ["h0"]
    hidden = [m["layers"][0] for m in models]
    check(moments["h0"], [np.maximum(x @ h["w"] + h["b"], 0) for h in hidden])


def test_different_heads_read_a_common_stream_alike():
    def other_apply(params, x):
        x = after_blocks(params, x @ params["embed"])
        return x[::2].repeat(3, axis=0) @ params["out"]

    other = {name: leaf for name, leaf in MODELS[1].items() if name != "head"}
    other["out"] = images(WIDTH, (2,), 5)
    functions, models = [stream_apply, other_apply], [MODELS[0], other]
    specs = [SPEC, zipjax.infer_spec(other_apply, other, X)]
    moments = zipjax.collect_moments(
        functions, models, specs, [X], stop_at=2, devices=DEVICES
    )
    check(moments["embed"], [after_one(model) for model in models])
