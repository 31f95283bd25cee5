"""Rules of single primitives: what they keep free, and that it is a symmetry."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap

from zipjax import explain, verify_spec
from zipjax.tracing.infer import infer_spec

Params = dict[str, Any]


def stacked(hidden: jax.Array, p: Params) -> jax.Array:
    return jnp.stack([hidden, jnp.tanh(hidden)], axis=1).mean(1)


def rotated_pairs(hidden: jax.Array, p: Params) -> jax.Array:
    """Turns pairs of units: the pairs are a perm, the two units of a pair are not."""
    even, odd = jnp.unstack(hidden.reshape(-1, hidden.shape[-1] // 2, 2), axis=-1)
    return jnp.stack([-odd, even], axis=-1).reshape(hidden.shape)


def unstacked(hidden: jax.Array, p: Params) -> jax.Array:
    first, second = jnp.unstack(hidden.reshape(-1, 2, hidden.shape[-1] // 2), axis=1)
    return jnp.concatenate([jnp.tanh(first), second], axis=-1)


def without_elements(hidden: jax.Array, p: Params) -> jax.Array:
    nothing = jnp.zeros((0, 2, 4)).reshape(0, hidden.shape[-1])
    return jnp.concatenate([hidden, nothing])


def with_empty_parts(hidden: jax.Array, p: Params) -> jax.Array:
    nothing, first, second = jnp.split(hidden, [0, 3], axis=-1)
    return jnp.concatenate([first, hidden[:, 2:2], jnp.tanh(second), nothing], axis=-1)


def scattered(hidden: jax.Array, p: Params) -> jax.Array:
    return jnp.zeros_like(hidden).at[jnp.asarray([1, 0, 2, 1])].max(hidden)


def ragged(hidden: jax.Array, p: Params) -> jax.Array:
    sizes = jnp.asarray([1, 3])
    return jax.lax.ragged_dot(jnp.tanh(hidden), p["experts"], sizes)


def fourier(hidden: jax.Array, p: Params) -> jax.Array:
    return jnp.fft.fft(hidden, axis=0).real


@custom_vmap
def doubled(x: jax.Array) -> jax.Array:
    return 2 * x


@doubled.def_vmap
def _doubled(size: int, batched: list[bool], x: jax.Array) -> tuple[jax.Array, bool]:
    return 2 * x, batched[0]


def called(hidden: jax.Array, p: Params) -> jax.Array:
    named = checkpoint_name(doubled(hidden), "hidden")
    return jax.lax.composite(jnp.tanh, name="zipjax.tanh")(named)


@pytest.mark.parametrize(
    ("middle", "perms"),
    [
        (stacked, 1),
        (rotated_pairs, 1),
        (unstacked, 2),
        (without_elements, 1),
        (with_empty_parts, 2),
        (scattered, 1),
        (ragged, 2),
        (fourier, 1),
        (called, 1),
    ],
)
def test_units_around_a_primitive(middle: Callable, perms: int) -> None:
    rng = np.random.default_rng(0)
    shapes = {"first": (5, 8), "experts": (2, 8, 8), "last": (8, 3)}
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    if middle is not ragged:
        del params["experts"]
    x = rng.normal(size=(4, 5)).astype(np.float32)

    def apply_fn(p: Params, x: jax.Array) -> jax.Array:
        return jax.nn.tanh(middle(x @ p["first"], p)) @ p["last"]

    spec = infer_spec(apply_fn, params, x)
    assert len(spec.perms) == perms, explain(spec)
    verify_spec(apply_fn, params, spec, x, key=jax.random.key(0))
