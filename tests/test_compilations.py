"""Nothing compiles twice for the same shapes: other parameters reuse every program."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import FlattenNet, flatten_spec, images, variables

NET, SPEC = FlattenNet(), flatten_spec(4)
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


def two_models(seed):
    """Two networks of the same shapes as for any other seed."""
    return [variables(NET, (4, 4, 3), seed + k) for k in range(2)]


def collect(models):
    device = jax.local_devices()[:1]
    return zipjax.collect_moments(NET.apply, models, SPEC, BATCHES, devices=device)


def zip_and_calibrate(models):
    moments = collect(models)
    recipe = zipjax.zipit(alpha=0.5)
    merged = zipjax.merge(models, SPEC, recipe, moments=moments)
    merged = zipjax.reset_batch_stats(NET.apply, merged, BATCHES)
    return merged


def merge(models):
    return zipjax.apply(NET.apply, zip_and_calibrate(models), X)


def partial(models):
    recipe = zipjax.zipit(alpha=0.5)
    options = {"moments": collect(models), "stop_at": "conv"}
    merged = zipjax.merge(models, SPEC, recipe, **options)
    return zipjax.apply(NET.apply, merged, X)


def match(models):
    recipe = zipjax.mudsc(0.5, schedule=zipjax.Schedule(sweeps=2))
    return zipjax.match(models, SPEC, recipe, moments=collect(models), key=KEY)


def search(models):
    grid = {"alpha": (0.3, 1.0)}
    moments = collect(models)

    def score(merged):
        return float(jnp.mean(zipjax.apply(NET.apply, merged, X)))

    return zipjax.search(models, SPEC, zipjax.zipit, grid, score, moments=moments)


def refit(models):
    embeddings = np.random.default_rng(len(models)).normal(size=(4, 3))
    outputs = zipjax.ensemble_target(embeddings, [[0, 1], [2, 3]])
    merged = zip_and_calibrate(models)
    return zipjax.refit(NET.apply, models, merged, BATCHES, outputs=outputs)


def refit_heads(models):
    merged = zipjax.merge(models, SPEC, zipjax.average(), stop_at="conv")
    return zipjax.refit(NET.apply, models, merged, BATCHES)


def repair(models):
    return zipjax.repair(NET.apply, models, zip_and_calibrate(models), BATCHES)


@pytest.mark.parametrize(
    "step", [merge, partial, match, search, refit, refit_heads, repair]
)
def test_other_parameters_of_the_same_shapes_compile_nothing(step):
    with compilations() as first:
        step(two_models(1))
    with compilations() as again:
        step(two_models(11))
    assert first
    assert not again


def test_other_assignments_are_other_origins_but_one_program():
    models = two_models(1)
    aligned = {perm: np.tile(np.arange(n), 2) for perm, n in SPEC.sizes.items()}
    turned = {
        perm: np.concatenate([np.arange(n), np.arange(n)[::-1]])
        for perm, n in SPEC.sizes.items()
    }
    one, other = (zipjax.merge_units(models, SPEC, x) for x in (aligned, turned))
    assert one.origin != other.origin
    zipjax.apply(NET.apply, one, X)
    with compilations() as again:
        zipjax.apply(NET.apply, other, X)
    assert not again
