"""Matching cut by cut, in networks merged up to the cut before."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import (
    FlattenNet,
    dense_params,
    dense_spec,
    flatten_spec,
    images,
    random_permutations,
    variables,
)
from tests.streams import INPUTS, copy_of, stream_apply, stream_params

WIDTHS = (6, 12, 10, 8, 3)
SPEC = dense_spec(WIDTHS)
MODELS = [dense_params(WIDTHS, seed) for seed in range(2)]
BATCHES = [images(150, (6,), 1), images(150, (6,), 2)]
DEVICES = jax.local_devices()[:1]


def dense_apply(params, x):
    *hidden, head = params["layers"]
    for layer in hidden:
        x = jnp.tanh(x @ layer["w"] + layer["b"])  # No unit is dead, nor alike.
    return x @ head["w"] + head["b"]


def sequential(models, recipe, **options):
    return zipjax.match_sequential(
        dense_apply, models, SPEC, recipe, BATCHES, devices=DEVICES, **options
    )


def shifted(merged):
    """Stands for a calibration: changes the prefix in a way that is easily redone."""
    trunk = {p: x + 2.0 * p.endswith("/b") for p, x in merged.trunk.items()}
    return dataclasses.replace(merged, trunk=trunk)


def expected(models, *, num_units=None, shift=0.0, **options):
    """The same in numpy: layer by layer, the mean of what is merged to a unit."""
    count = len(models)
    features = np.concatenate(BATCHES).astype(np.float64)
    sources = [np.arange(features.shape[1])] * count
    found = {}
    for k in range(len(WIDTHS) - 2):
        layers = [model["layers"][k] for model in models]
        units = [
            features[:, own] @ layer["w"] + layer["b"]
            for own, layer in zip(sources, layers, strict=True)
        ]
        values = np.concatenate(units, 1)
        correlation = np.corrcoef(np.tanh(values), rowvar=False)
        width = (num_units or {}).get(f"h{k}", WIDTHS[k + 1])
        assignment = zipjax.match_zip(correlation, count, num_units=width, **options)
        found[f"h{k}"] = assignment
        merged = [values[:, assignment == u].mean(1) for u in range(width)]
        features = np.tanh(np.stack(merged, 1) + shift)
        sources = np.split(assignment, count)
    return found


def check_equal(found, wanted):
    assert list(found) == list(wanted)
    for perm, assignment in wanted.items():
        np.testing.assert_array_equal(found[perm], assignment, err_msg=perm)


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.5, "beta": 0.5}, {"num_units": {"h1": 13, "h2": 6}}],
)
def test_units_are_compared_behind_the_merged_prefix(options):
    found = sequential(MODELS, zipjax.zipit(**options))
    check_equal(found, expected(MODELS, **options))


def test_the_models_own_activations_give_other_assignments():
    """Otherwise the tests above could not fail."""
    moments = zipjax.collect_moments(
        dense_apply, MODELS, SPEC, BATCHES, devices=DEVICES
    )
    plain = zipjax.match(MODELS, SPEC, zipjax.zipit(), moments=moments)
    wanted = expected(MODELS)
    np.testing.assert_array_equal(plain["h0"], wanted["h0"])
    for perm in ("h1", "h2"):
        assert (plain[perm] != wanted[perm]).any()


def test_the_prefix_is_calibrated_before_it_is_read():
    prefixes = []

    def calibrate(merged):
        prefixes.append(merged)
        return shifted(merged)

    found = sequential(MODELS, zipjax.zipit(), calibrate=calibrate)
    wanted = expected(MODELS, shift=2.0)
    check_equal(found, wanted)
    assert (wanted["h2"] != expected(MODELS)["h2"]).any()
    assert [set(m.trunk) for m in prefixes] == [SPEC.trunk(1), SPEC.trunk(2)]
    # What is merged for good is the models' own parameters, not calibrated ones.
    np.testing.assert_allclose(
        prefixes[1].trunk["layers/0/b"], prefixes[0].trunk["layers/0/b"]
    )


@pytest.mark.parametrize(("stop_at", "count"), [(0, 0), (2, 2), ("h1", 2), (None, 3)])
def test_a_stop_leaves_out_what_lies_behind(stop_at, count):
    found = sequential(MODELS, zipjax.zipit(), stop_at=stop_at)
    check_equal(found, dict(list(expected(MODELS).items())[:count]))


@pytest.mark.parametrize("recipe", [zipjax.permute(), zipjax.zipit(beta=0.5)])
def test_permuted_copies_are_put_in_order(recipe):
    net, shape = FlattenNet(), (4, 4, 3)
    spec, model = flatten_spec(4), variables(net, shape, 2)
    orders = random_permutations(spec, 1)
    batches = [images(40, shape)]

    def calibrate(merged):
        return zipjax.reset_batch_stats(net.apply, merged, batches)

    # Statistics of these batches, so that calibration changes no function.
    model = zipjax.reset_batch_stats(net.apply, model, batches)
    models = [model, zipjax.permute_params(model, spec, orders)]
    found = zipjax.match_sequential(
        net.apply, models, spec, recipe, batches, calibrate=calibrate, devices=DEVICES
    )
    for perm, order in orders.items():
        first, second = np.split(found[perm], 2)
        np.testing.assert_array_equal(np.sort(first), np.arange(order.size))
        np.testing.assert_array_equal(second, first[order])


@pytest.mark.parametrize("stop_at", [3, None])
def test_streams_are_matched_block_by_block(stop_at):
    """The stream at its first cut, then the units of a block at every further one."""
    model, batches = stream_params(0), [images(90, (INPUTS,))]
    spec = zipjax.infer_spec(stream_apply, model, batches[0])
    copy, wanted = copy_of(model, spec, seed=1)
    prefixes = []

    def calibrate(merged):
        prefixes.append(merged)
        return merged

    found = zipjax.match_sequential(
        stream_apply,
        [model, copy],
        spec,
        zipjax.permute(),
        batches,
        stop_at=stop_at,
        calibrate=calibrate,
        devices=DEVICES,
    )
    last = stop_at or len(spec.cuts)
    assert list(found) == list(spec.stop(last).perms)
    for perm, assignment in found.items():
        np.testing.assert_array_equal(assignment, wanted[perm])
    assert [set(m.trunk) for m in prefixes] == [spec.trunk(k) for k in range(1, last)]


def test_models_of_several_specs_share_their_prefix():
    """The second has one layer less: their trunk ends before."""
    short = dense_params((6, 12, 10, 3), 1)
    specs = [SPEC, dense_spec((6, 12, 10, 3))]
    models = [MODELS[0], short]
    found = zipjax.match_sequential(
        dense_apply, models, specs, zipjax.zipit(), BATCHES, devices=DEVICES
    )
    assert list(found) == ["h0", "h1"]
    # Layers that are as deep and as wide are the same in a network with one more.
    longer = {"layers": [*short["layers"][:2], *MODELS[1]["layers"][2:]]}
    check_equal(found, dict(list(expected([MODELS[0], longer]).items())[:2]))


def test_a_merged_model_counts_as_one():
    pair = {k: v for k, v in expected(MODELS).items() if k == "h0"}
    merged = zipjax.merge_units(MODELS, SPEC, pair, stop_at=1)
    found = sequential([merged, MODELS[0]], zipjax.zipit(), stop_at=1)
    wanted = expected([merged.params(0), MODELS[0]])
    check_equal(found, {"h0": wanted["h0"]})


@pytest.mark.parametrize(
    ("recipe", "batches", "message"),
    [
        (zipjax.git_rebasin(), BATCHES, "'git_rebasin' compares weights, in a random"),
        (zipjax.mudsc(0.5), BATCHES, "'mudsc_zip' compares weights, in a random order"),
        (zipjax.average(), BATCHES, "'average' compares nothing"),
        (zipjax.zipit(), iter(BATCHES), "batches are an iterator (list_iterator)"),
        (zipjax.zipit(), [], "no batches"),
        (zipjax.zipit(num_units={"h7": 3}), BATCHES, "perms that are not zipped"),
    ],
)
def test_what_does_not_fit_is_refused(recipe, batches, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        zipjax.match_sequential(dense_apply, MODELS, SPEC, recipe, batches)
