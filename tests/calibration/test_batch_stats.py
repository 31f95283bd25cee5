"""The reset of BatchNorm statistics, against Flax's own training mode and numpy."""

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
from zipjax.models import resnet
from zipjax.trees import path_leaves

SHAPE = (8, 8, 3)
X = images(40, SHAPE)
BATCHES = [X[:16], X[16:32], X[32:]]


@functools.partial(jax.jit, static_argnums=(0, 3))
def flax_stats(net, params, batch, momentum):
    """The statistics that training mode measures on one batch."""
    # Running statistics of 0 leave the batch's own share, exactly.
    zeros = jax.tree.map(jnp.zeros_like, params["batch_stats"])
    blank = {"params": params["params"], "batch_stats": zeros}
    _, updates = net.apply(blank, batch, train=True, mutable=["batch_stats"])
    return jax.tree.map(lambda x: x / (1 - momentum), updates["batch_stats"])


def expected_stats(net, params, batches, momentum):
    stats = [flax_stats(net, params, batch, momentum) for batch in batches]
    sizes = list(map(len, batches))
    mean = jax.tree.map(lambda *x: np.average(np.float64(x), 0, sizes), *stats)
    return path_leaves({"batch_stats": mean})


def is_stat(path):
    return path.startswith("batch_stats")


def check_heads(reset, merged, net, momentum, batches=BATCHES):
    """Every head's statistics are those that Flax would measure for it."""
    for head in range(merged.num_outputs):
        before = path_leaves(merged.params(head))
        after = path_leaves(reset.params(head))
        expected = expected_stats(net, merged.params(head), batches, momentum)
        assert set(filter(is_stat, after)) == set(expected)
        for path, stat in expected.items():
            assert relative_error(after[path], stat) < 2e-5, path
            assert relative_error(before[path], stat) > 1e-3, path
        for path in set(after) - set(expected):
            np.testing.assert_array_equal(after[path], before[path])


FLATTEN = FlattenNet()
FLATTEN_MODELS = [variables(FLATTEN, SHAPE, seed) for seed in (1, 2)]
FLATTEN_SPEC = flatten_spec(16)


def flatten_merged(stop_at=None):
    return zipjax.merge(FLATTEN_MODELS, FLATTEN_SPEC, zipjax.average(), stop_at=stop_at)


@pytest.mark.parametrize("stop_at", [None, 0, 1])
def test_one_norm(stop_at):
    merged = flatten_merged(stop_at)
    reset = zipjax.reset_batch_stats(FLATTEN.apply, merged, iter(BATCHES))
    check_heads(reset, merged, FLATTEN, momentum=0)


@pytest.mark.parametrize("stop_at", [None, "stage2"])
def test_resnet20(stop_at):
    net = resnet.ResNet20(3, 0.25)
    models = [variables(net, SHAPE, seed) for seed in (1, 2)]
    merged = zipjax.merge(models, resnet.spec(net), zipjax.average(), stop_at=stop_at)
    # Batches of one size: every shape is another compilation.
    batches = [X[:20], X[20:]]
    reset = zipjax.reset_batch_stats(net.apply, merged, batches)
    assert reset.num_outputs == (1 if stop_at is None else 2)
    check_heads(reset, merged, net, momentum=0.99, batches=batches)


def conv_output(params, x):
    _, record = FLATTEN.apply(params, x, capture_intermediates=True)
    output = record["intermediates"]["conv"]["__call__"][0]
    return np.asarray(output, np.float64).reshape(-1, 4)


@pytest.mark.parametrize("ddof", [0, 1])
def test_statistics_are_averages_over_the_batches(ddof):
    # Samples count alike, whatever the size of their batch.
    batches = [X[:3], X[3:37], X[37:38]]
    params = FLATTEN_MODELS[0]
    reset = zipjax.reset_batch_stats(FLATTEN.apply, params, batches, ddof=ddof)
    units = [conv_output(params, x) for x in batches]
    stats = reset["batch_stats"]["norm"]
    sizes = [len(u) for u in units]
    means = np.average([u.mean(0) for u in units], 0, sizes)
    variances = np.average([u.var(0, ddof=ddof) for u in units], 0, sizes)
    assert relative_error(stats["mean"], means) < 1e-5
    assert relative_error(stats["var"], variances) < 1e-5


def test_a_reset_model_is_in_evaluation_mode():
    reset = zipjax.reset_batch_stats(FLATTEN.apply, flatten_merged(), BATCHES)
    whole = zipjax.apply(FLATTEN.apply, reset, X)
    alone = zipjax.apply(FLATTEN.apply, reset, X[:1])
    # An example's output does not depend on the others of its batch.
    np.testing.assert_allclose(whole[:1], alone, rtol=1e-5)
    again = zipjax.apply(FLATTEN.apply, reset, X)
    np.testing.assert_array_equal(whole, again)


def test_the_model_given_stays_as_it_was():
    merged = flatten_merged(1)
    before = jax.tree.map(np.array, merged)
    reset = zipjax.reset_batch_stats(FLATTEN.apply, merged, BATCHES)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, merged, before)))
    assert jax.tree.structure(reset) == jax.tree.structure(merged)
    dtypes = jax.tree.map(lambda a, b: a.dtype == b.dtype, reset, merged)
    assert all(jax.tree.leaves(dtypes))


def test_resetting_twice_measures_the_same():
    once = zipjax.reset_batch_stats(FLATTEN.apply, flatten_merged(), BATCHES)
    twice = zipjax.reset_batch_stats(FLATTEN.apply, once, BATCHES)
    for ours, theirs in zip(jax.tree.leaves(twice), jax.tree.leaves(once), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_inputs_selects_from_a_batch():
    merged = flatten_merged()
    batches = [{"image": x, "label": np.arange(len(x))} for x in BATCHES]
    reset = zipjax.reset_batch_stats(
        FLATTEN.apply, merged, batches, inputs_of=lambda batch: batch["image"]
    )
    check_heads(reset, merged, FLATTEN, momentum=0)


def test_other_frameworks_name_their_statistics():
    def apply_fn(params, x):
        x = (x - params["center"]) / jnp.sqrt(params["spread"] + 1e-5)
        return x @ params["w"]

    params = {"center": jnp.zeros(3), "spread": jnp.ones(3), "w": jnp.ones((3, 2))}
    x = 5 + 3 * images(50, (3,))
    reset = zipjax.reset_batch_stats(
        apply_fn, params, [x], stats=lambda paths: [("center", "spread")]
    )
    assert relative_error(reset["center"], np.float64(x).mean(0)) < 1e-6
    assert relative_error(reset["spread"], np.float64(x).var(0)) < 1e-5


@pytest.mark.parametrize("stop_at", [None, 1])
def test_models_without_batch_norm_are_returned_unchanged(stop_at):
    widths = (3, 4, 2)
    models = [dense_params(widths, seed) for seed in range(2)]
    merged = zipjax.merge(models, dense_spec(widths), zipjax.average(), stop_at=stop_at)
    reset = zipjax.reset_batch_stats(dense_apply, merged, [images(5, (3,))])
    assert jax.tree.structure(reset) == jax.tree.structure(merged)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, reset, merged)))


NAN = np.where(np.arange(3) == 1, np.nan, X[:4])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches"),
        (iter(()), "no batches"),
        ([X[:4], X[:0]], r"batch 1 has inputs of shapes \[\(0, 8, 8, 3\)\]"),
        ([X[:4], NAN], "batch 1 holds NaN"),
    ],
    ids=["none", "exhausted", "empty", "NaN"],
)
def test_bad_batches(batches, message):
    with pytest.raises(ValueError, match=message):
        zipjax.reset_batch_stats(FLATTEN.apply, flatten_merged(), batches)


def normed(params, x):
    return (x - params["mean"]) / jnp.sqrt(params["var"] + 1e-5) @ params["w"]


NORMED = {"mean": jnp.zeros(3), "var": jnp.ones(3), "w": jnp.ones((3, 2))}


def test_a_last_batch_of_one_sample_counts_as_one_sample():
    x = 5 + 3 * images(1025, (3,))
    batches = [x[k : k + 256] for k in range(0, 1025, 256)]
    reset = zipjax.reset_batch_stats(normed, NORMED, batches)
    wide = np.float64(x)
    assert relative_error(reset["mean"], wide.mean(0)) < 1e-5
    within = sum(np.float64(b).var(0) * len(b) for b in batches) / 1025
    assert relative_error(reset["var"], within) < 1e-5
    assert 0.98 < (reset["var"] / wide.var(0)).min() <= 1.001


@pytest.mark.parametrize("ddof", [99, np.nan, -1])
def test_only_the_two_usual_divisors_are_known(ddof):
    with pytest.raises(ValueError, match=r"ddof = .*: pass 0, or 1"):
        zipjax.reset_batch_stats(normed, NORMED, [images(4, (3,))], ddof=ddof)


def test_one_sample_has_no_unbiased_variance():
    batches = [images(4, (3,)), images(1, (3,))]
    with pytest.raises(ValueError, match=r"1 sample for the variance 'var'.*ddof=0"):
        zipjax.reset_batch_stats(normed, NORMED, batches, ddof=1)


def test_training_mode_is_refused():
    def training(params, x):
        return FLATTEN.apply(params, x, train=True, mutable=["batch_stats"])[0]

    with pytest.raises(ValueError, match=r"'batch_stats/norm/mean'.*evaluation mode"):
        zipjax.reset_batch_stats(training, flatten_merged(), BATCHES)


def test_statistics_are_measured_in_the_users_precision():
    """In float32, a variance of 1e-6 about a mean of 1000 is lost."""
    x = np.random.default_rng(0).normal(1000, 1e-3, (50, 4))

    def apply_fn(params, x):
        return (x - params["mean"]) * jax.lax.rsqrt(params["var"] + 1e-5)

    with jax.enable_x64(True):
        params = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
        reset = zipjax.reset_batch_stats(apply_fn, params, [x])
        np.testing.assert_allclose(reset["mean"], x.mean(0), rtol=1e-15)
        np.testing.assert_allclose(reset["var"], x.var(0), rtol=1e-9)
