"""From a network that nobody declared to a merged one, on real data."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zipjax
from experiments.data.datasets import load_dataset
from experiments.parents.tasks.classes import split_classes

KEY = jax.random.key(0)
TASKS = split_classes(10, 2, KEY)


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.LayerNorm()(nn.Conv(16, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = x + nn.Conv(16, (1, 1))(nn.relu(nn.Conv(24, (3, 3))(x)))
        x = nn.relu(nn.Dense(48)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def train(net, images, labels, key):
    """A network that knows the classes of one task, among the logits of all ten."""
    optimizer = optax.adam(3e-3)

    def loss(params, x, y):
        logits = net.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(state, order):
        params, moments = state
        grads = jax.grad(loss)(params, images[order], labels[order])
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, updates), moments), None

    params = net.init(key, images[:1])
    order = jax.random.randint(key, (150, 64), 0, len(labels))
    run = jax.jit(functools.partial(jax.lax.scan, step))
    return run((params, optimizer.init(params)), order)[0][0]


@pytest.fixture(scope="module")
def trained():
    digits, net = load_dataset("digits"), Cnn()
    models = []
    for key, task in zip(jax.random.split(KEY), TASKS, strict=True):
        mine = digits.train.take(np.isin(digits.train.labels, task))
        arrays = map(jnp.asarray, mine.read(np.arange(len(mine))))
        models.append(train(net, *arrays, key))
    return net, models, digits


def test_a_network_nobody_declared_merges_by_zipit(trained):
    net, models, digits = trained
    batches = [images for images, _ in digits.train.batches(449)]
    spec = zipjax.infer_spec(net.apply, models[0], batches[0][:2])
    # By hand: the stream, the hidden convolution and the hidden layer.
    assert sorted(spec.sizes.values()) == [16, 24, 48]
    zipjax.verify_spec(net.apply, models[0], spec, batches[0][:8], key=KEY)
    moments = zipjax.collect_moments(net.apply, models, spec, batches)

    def accuracy(recipe, stop_at=None):
        merged = zipjax.merge(models, spec, recipe, moments=moments, stop_at=stop_at)
        forward = functools.partial(zipjax.apply, net.apply, merged)
        return zipjax.evaluate(forward, digits.test.batches(450), tasks=TASKS).average

    average = accuracy(zipjax.average())
    zipit = zipjax.zipit(alpha=0.3, beta=0.5)
    partial = [accuracy(zipit, cut.number) for cut in spec.cuts]
    assert accuracy(zipit) > average + 0.1
    assert min(partial) > average + 0.1
    assert partial[0] > 0.9
    assert accuracy(zipit, 0) == pytest.approx(
        np.mean([evaluate_alone(net, m, digits, k) for k, m in enumerate(models)])
    )


def evaluate_alone(net, params, digits, number):
    scores = zipjax.evaluate(
        functools.partial(net.apply, params), digits.test.batches(450), tasks=TASKS
    )
    return scores.tasks[number]
