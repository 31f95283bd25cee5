"""Flax Linen: ``module.apply`` is the function, its variables are the parameters."""

import flax.linen as nn
import jax

import zipjax

x = jax.random.normal(jax.random.key(0), (8, 5))
net = nn.Sequential([nn.Dense(7), nn.relu, nn.Dense(9), nn.relu, nn.Dense(3)])
models = [net.init(jax.random.key(seed), x) for seed in (1, 2)]

spec = zipjax.infer_spec(net.apply, models[0], x)
moments = zipjax.collect_moments(net.apply, models, spec, [x])
merged = zipjax.merge(models, spec, zipjax.zipit(), moments=moments)
outputs = zipjax.apply(net.apply, merged, x)
