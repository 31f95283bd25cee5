"""Nothing compiles twice for the same shapes: other parameters reuse every program."""

import contextlib

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
    variables,
)

SPEC = flatten_spec(4)
X = images(40, (4, 4, 3))
BATCHES = [X[:20], X[20:]]
KEY = jax.random.key(0)


@contextlib.contextmanager
def compilations():
    """Counts what XLA compiles, in a list with one element each."""
    seen = []

    def listen(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            seen.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def net():
    """A network that no other test has compiled."""
    return type("OwnNet", (FlattenNet,), {})()


def two_models(net, seed):
    """Two networks of the same shapes as for any other seed."""
    return [variables(net, (4, 4, 3), seed + k) for k in range(2)]


def collect(net, models):
    device = jax.local_devices()[:1]
    return zipjax.collect_moments(net.apply, models, SPEC, BATCHES, devices=device)


def zip_and_calibrate(net, models):
    moments = collect(net, models)
    recipe = zipjax.zipit(alpha=0.5)
    merged = zipjax.merge(models, SPEC, recipe, moments=moments)
    merged = zipjax.reset_batch_stats(net.apply, merged, BATCHES)
    return merged


def merge(net, models):
    return zipjax.apply(net.apply, zip_and_calibrate(net, models), X)


def partial(net, models):
    recipe = zipjax.zipit(alpha=0.5)
    options = {"moments": collect(net, models), "stop_at": "conv"}
    merged = zipjax.merge(models, SPEC, recipe, **options)
    return zipjax.apply(net.apply, merged, X)


def match(net, models):
    recipe = zipjax.mudsc(0.5, schedule=zipjax.Schedule(sweeps=2))
    return zipjax.match(models, SPEC, recipe, moments=collect(net, models), key=KEY)


def search(net, models):
    grid = {"alpha": (0.3, 1.0)}
    moments = collect(net, models)

    def score(merged):
        return float(jnp.mean(zipjax.apply(net.apply, merged, X)))

    return zipjax.search(models, SPEC, zipjax.zipit, grid, score, moments=moments)


def refit(net, models):
    embeddings = np.random.default_rng(len(models)).normal(size=(4, 3))
    outputs = zipjax.ensemble_target(embeddings, [[0, 1], [2, 3]])
    merged = zip_and_calibrate(net, models)
    return zipjax.refit(net.apply, models, merged, BATCHES, outputs=outputs)


def refit_heads(net, models):
    merged = zipjax.merge(models, SPEC, zipjax.average(), stop_at="conv")
    return zipjax.refit(net.apply, models, merged, BATCHES)


def repair(net, models):
    return zipjax.repair(net.apply, models, zip_and_calibrate(net, models), BATCHES)


@pytest.mark.parametrize(
    "step", [merge, partial, match, search, refit, refit_heads, repair]
)
def test_other_parameters_of_the_same_shapes_compile_nothing(net, step):
    one, other = two_models(net, 1), two_models(net, 11)
    with compilations() as first:
        step(net, one)
    with compilations() as again:
        step(net, other)
    assert first
    assert not again


def test_other_assignments_are_other_origins_but_one_program(net):
    models = two_models(net, 1)
    aligned = {perm: np.tile(np.arange(n), 2) for perm, n in SPEC.sizes.items()}
    turned = {
        perm: np.concatenate([np.arange(n), np.arange(n)[::-1]])
        for perm, n in SPEC.sizes.items()
    }
    one, other = (zipjax.merge_units(models, SPEC, x) for x in (aligned, turned))
    assert one.origin != other.origin
    with compilations() as first:
        zipjax.apply(net.apply, one, X)
    assert first
    with compilations() as again:
        zipjax.apply(net.apply, other, X)
    assert not again


WIDTHS = (3, 6, 8, 6, 8, 6, 2)
EQUAL = (3, 7, 7, 7, 7, 7, 2)


def test_weights_of_any_shapes_are_compared_without_compiling_them():
    # Seven shapes of kernels and biases: none of them has a program of its own.
    models = [dense_params(WIDTHS, seed) for seed in range(2)]
    spec = dense_spec(WIDTHS)
    recipe = zipjax.weight_zip(schedule=zipjax.Schedule(sweeps=3, patience=3))
    with compilations() as seen:
        zipjax.match(models, spec, recipe, key=KEY)
    # The order of a sweep.
    assert len(seen) <= 1


def test_blended_similarities_compile_one_program_for_each_width():
    models = [dense_params(WIDTHS, seed) for seed in range(2)]
    spec, x = dense_spec(WIDTHS), images(30, (3,))
    moments = zipjax.collect_moments(dense_apply, models, spec, [x])
    recipe = zipjax.mudsc(0.5, schedule=zipjax.Schedule(sweeps=3, patience=3))
    jax.clear_caches()
    with compilations() as seen:
        zipjax.match(models, spec, recipe, moments=moments, key=KEY)
    # Correlations of 2 * 6 and 2 * 8 activations, and the order of a sweep.
    assert len(seen) <= 3


def equal_layers(seed):
    """Six layers, four of which have the same shapes."""
    return dense_params(EQUAL, seed)


def test_equal_shapes_with_alike_entries_share_a_program():
    models, spec = [equal_layers(seed) for seed in range(2)], dense_spec(EQUAL)
    aligned = zipjax.match(models, spec, zipjax.average())
    jax.clear_caches()
    with compilations() as seen:
        zipjax.merge_units(models, spec, aligned)
    # Kernels and biases of the first, the inner and the last layer; inner and first
    # biases are alike.
    assert len(seen) <= 5


@pytest.mark.parametrize("stop_at", [None, 3])
def test_the_second_merge_of_an_architecture_compiles_nothing(stop_at):
    spec, options = dense_spec(EQUAL), {"stop_at": stop_at, "key": KEY}
    models, others = ([equal_layers(seed + k) for k in range(2)] for seed in (1, 5))
    first, *recipes = zipjax.average(), zipjax.git_rebasin(), zipjax.weight_zip()
    zipjax.merge(models, spec, first, **options)
    for recipe in recipes:
        found = zipjax.match(others, spec, recipe, **options)
        with compilations() as again:
            zipjax.merge_units(others, spec, found, stop_at=stop_at)
        assert not again


def test_permuting_compiles_nothing(net):
    model = variables(net, (4, 4, 3), 0)
    with compilations() as seen:
        order = zipjax.random_permutations(SPEC, KEY)
        zipjax.permute_params(model, SPEC, order)
    assert not seen
