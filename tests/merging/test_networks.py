"""Networks: checked once, with everything that follows from models and specs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import dense_apply, dense_params, dense_spec, images
from zipjax.merging import networks as networks_module
from zipjax.merging.networks import Networks

WIDTHS = (3, 6, 5, 4)
SPEC = dense_spec(WIDTHS)
MODELS = [dense_params(WIDTHS, seed) for seed in range(2)]
HIDDEN = {f"layers/{k}/{name}" for k in (0, 1) for name in ("w", "b")}


def test_no_stop_is_everything_and_a_stop_is_a_trunk():
    whole = Networks.of(MODELS, SPEC)
    assert (whole.stop_at, whole.perms) == (None, ("h0", "h1"))
    assert whole.trunk == set(SPEC.entries)
    for stop_at in ("h1", 2):
        stopped = Networks.of(MODELS, SPEC, stop_at)
        assert (stopped.stop_at, stopped.perms) == (2, ("h0", "h1"))
        assert stopped.trunk == HIDDEN
    nothing = whole.stopping_at(0)
    assert (nothing.perms, nothing.trunk) == ((), frozenset())
    assert nothing.stopping_at(None).trunk == whole.trunk


def test_outputs_of_other_shapes_are_not_in_common():
    other = dense_params((3, 6, 5, 9), 1)
    found = Networks.of([MODELS[0], other], SPEC)
    assert (found.stop_at, found.trunk) == (2, HIDDEN)


def test_the_fingerprint_is_computed_once(monkeypatch):
    moments = zipjax.collect_moments(dense_apply, MODELS, SPEC, [images(20, (3,))])
    calls, original = [], networks_module.fingerprint

    def counted(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(networks_module, "fingerprint", counted)
    grid = {"alpha": (0.3, 1.0), "stop_at": (1, 2, None)}
    zipjax.search(MODELS, SPEC, zipjax.zipit, grid, lambda _: 0.0, moments=moments)
    assert len(calls) == 1


def test_models_are_checked_together():
    with pytest.raises(ValueError, match="there are no models: pass a sequence"):
        Networks.of([], SPEC)
    with pytest.raises(ValueError, match="3 specs for 2 models"):
        Networks.of(MODELS, [SPEC] * 3)


def test_a_merged_model_keeps_how_it_was_made():
    assignments = {"h0": np.array([0, 0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5])}
    merged = zipjax.merge_units(MODELS, SPEC, assignments, stop_at="h0")
    assert merged.origin is not None
    assert (merged.origin.spec, merged.origin.num_models) == (SPEC, 2)
    assert (merged.origin.stop_at, merged.origin.weights) == (1, None)
    np.testing.assert_array_equal(merged.assignments["h0"], assignments["h0"])
    assignments["h0"][:] = 0  # The caller's array is not the model's.
    assert merged.assignments["h0"].max() == 5
    parents = Networks.parents_of(merged, MODELS)
    assert (parents.stop_at, parents.trunk) == (1, frozenset(merged.trunk))
    assert len(repr(merged)) < 100


def test_origins_are_equal_by_content():
    permuted = zipjax.merge(MODELS, SPEC, zipjax.average(), weights=(0.25, 0.75))
    again = zipjax.merge(MODELS, SPEC, zipjax.average(), weights=(0.25, 0.75))
    assert permuted.origin == again.origin
    assert hash(permuted.origin) == hash(again.origin)
    assert permuted.origin != zipjax.merge(MODELS, SPEC, zipjax.average()).origin


def test_a_model_of_unknown_origin_says_so():
    merged = zipjax.merge(MODELS, SPEC, zipjax.average())
    unknown = dataclasses.replace(merged, origin=None)
    with pytest.raises(ValueError, match="does not know how it was made"):
        _ = unknown.assignments
    x = jnp.ones((1, 3))
    np.testing.assert_array_equal(
        zipjax.apply(dense_apply, unknown, x), zipjax.apply(dense_apply, merged, x)
    )
