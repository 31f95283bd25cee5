"""Equinox: ``eqx.partition`` gives the parameters, ``eqx.combine`` the function."""

import equinox as eqx
import jax

import zipjax

x = jax.random.normal(jax.random.key(0), (8, 5))
nets = [eqx.nn.MLP(5, 3, 8, 2, key=jax.random.key(seed)) for seed in (1, 2)]
_, static = eqx.partition(nets[0], eqx.is_inexact_array)
models = [eqx.filter(net, eqx.is_inexact_array) for net in nets]
apply_fn = lambda params, x: jax.vmap(eqx.combine(params, static))(x)  # noqa: E731

spec = zipjax.infer_spec(apply_fn, models[0], x)
moments = zipjax.collect_moments(apply_fn, models, spec, [x])
merged = zipjax.merge(models, spec, zipjax.zipit(), moments=moments)
outputs = zipjax.apply(apply_fn, merged, x)
