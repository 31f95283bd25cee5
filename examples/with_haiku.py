"""Haiku: a transformed function."""

import haiku as hk
import jax

import zipjax

x = jax.random.normal(jax.random.key(0), (8, 5))
net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([7, 9, 3])(x)))
models = [net.init(jax.random.key(seed), x) for seed in (1, 2)]

spec = zipjax.infer_spec(net.apply, models[0], x)
moments = zipjax.collect_moments(net.apply, models, spec, [x])
merged = zipjax.merge(models, spec, zipjax.zipit(), moments=moments)
outputs = zipjax.apply(net.apply, merged, x)
