"""Flax NNX: ``nnx.split`` gives the parameters, ``nnx.merge`` the function."""

import jax
from flax import nnx

import zipjax

x = jax.random.normal(jax.random.key(0), (8, 5))
nets = [
    nnx.Sequential(nnx.Linear(5, 7, rngs=rngs), nnx.relu, nnx.Linear(7, 3, rngs=rngs))
    for rngs in (nnx.Rngs(1), nnx.Rngs(2))
]
graph, _ = nnx.split(nets[0], nnx.Param)
models = [nnx.state(net, nnx.Param) for net in nets]
apply_fn = lambda params, x: nnx.merge(graph, params)(x)  # noqa: E731

spec = zipjax.infer_spec(apply_fn, models[0], x)
moments = zipjax.collect_moments(apply_fn, models, spec, [x])
merged = zipjax.merge(models, spec, zipjax.zipit(), moments=moments)
outputs = zipjax.apply(apply_fn, merged, x)
