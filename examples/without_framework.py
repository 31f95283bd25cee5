"""A plain function over a dictionary."""

import jax
import jax.numpy as jnp

import zipjax

x = jax.random.normal(jax.random.key(0), (8, 5))


def apply_fn(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


models = [
    {"w": jax.random.normal(key, (5, 7)), "v": jax.random.normal(key, (7, 3))}
    for key in jax.random.split(jax.random.key(1), 2)
]
spec = zipjax.infer_spec(apply_fn, models[0], x)
moments = zipjax.collect_moments(apply_fn, models, spec, [x])
merged = zipjax.merge(models, spec, zipjax.zipit(), moments=moments)
outputs = zipjax.apply(apply_fn, merged, x)
