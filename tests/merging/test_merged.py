"""Merged models: pytrees, their parameters and what they cost."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import (
    dense_apply,
    dense_params,
    dense_spec,
    flops,
    images,
    relative_error,
    variables,
)
from zipjax.models import resnet

WIDTHS = (3, 6, 5, 4)
SPEC = dense_spec(WIDTHS)
MODELS = [dense_params(WIDTHS, seed) for seed in range(3)]
X = images(7, (3,))


def averaged(stop_at, models=MODELS, spec=SPEC):
    return zipjax.merge(models, spec, zipjax.average(), stop_at=stop_at)


@pytest.mark.parametrize("stop_at", [None, 0, 1, 2])
def test_a_merged_model_is_a_pytree_of_its_arrays(stop_at):
    merged = averaged(stop_at)
    doubled = jax.tree.map(lambda x: 2 * x, merged)
    assert isinstance(doubled, zipjax.Merged)
    assert doubled.spec == merged.spec
    for ours, theirs in zip(
        jax.tree.leaves(doubled), jax.tree.leaves(merged), strict=True
    ):
        np.testing.assert_array_equal(ours, 2 * theirs)
    back = jax.jit(lambda m: m)(merged)
    assert jax.tree.structure(back) == jax.tree.structure(merged)


@pytest.mark.parametrize(("stop_at", "count"), [(None, 1), (0, 3), (1, 3), (2, 3)])
def test_params_have_the_structure_of_the_models(stop_at, count):
    merged = averaged(stop_at)
    assert merged.num_outputs == count
    for head in range(count):
        params = merged.params(head)
        assert jax.tree.structure(params) == jax.tree.structure(MODELS[0])
        shapes = jax.tree.map(jnp.shape, params)
        assert shapes == jax.tree.map(jnp.shape, MODELS[0])
    for strange in (count, -1):
        with pytest.raises(ValueError, match=f"head {strange} does not .* has {count}"):
            merged.params(strange)


@pytest.mark.parametrize("stop_at", [None, 0, 1, 2])
def test_apply_is_the_function_of_every_heads_parameters(stop_at):
    merged = averaged(stop_at)
    outputs = zipjax.apply(dense_apply, merged, X)
    if stop_at is None:
        outputs = [outputs]
    else:
        assert isinstance(outputs, list)
        assert len(outputs) == 3
    for head, output in enumerate(outputs):
        expected = dense_apply(merged.params(head), X)
        assert relative_error(output, expected) < 1e-6


def test_apply_takes_several_inputs_and_pytree_outputs():
    def apply_fn(params, x, extra):
        return {"y": dense_apply(params, x) + extra["a"], "x": x}

    merged = averaged(1)
    outputs = zipjax.apply(apply_fn, merged, X, {"a": 2.0})
    for head, output in enumerate(outputs):
        expected = dense_apply(merged.params(head), X) + 2
        assert relative_error(output["y"], expected) < 1e-6
        np.testing.assert_array_equal(output["x"], X)


def test_a_merged_model_can_be_differentiated_within_jit():
    @jax.jit
    def loss(merged):
        return sum(y.sum() for y in zipjax.apply(dense_apply, merged, X))

    gradient = jax.grad(loss)(averaged(2))
    # The sum of the last bias over the batch, for each head.
    for head in gradient.heads:
        np.testing.assert_allclose(head["layers/2/b"], np.full(4, 7.0))


def test_a_merged_model_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        averaged(1).trunk = {}


def merged_flops(apply_fn, merged, x):
    return flops(lambda m, x: zipjax.apply(apply_fn, m, x), merged, x)


def layer_flops(batch):
    """A product, its bias and the ReLU between layers, counted by hand."""
    pairs = itertools.pairwise(WIDTHS)
    counts = [2 * batch * n * m + batch * m for n, m in pairs]
    hidden = [batch * m for m in WIDTHS[1:-1]]
    return [a + b for a, b in zip(counts, [*hidden, 0], strict=True)]


@pytest.mark.parametrize("stop_at", [0, 1, 2])
@pytest.mark.parametrize("count", [2, 3])
def test_mlp_costs_its_trunk_and_its_heads(stop_at, count):
    layers = layer_flops(batch=7)
    assert flops(dense_apply, MODELS[0], X) == sum(layers)
    merged = averaged(stop_at, MODELS[:count])
    expected = sum(layers[:stop_at]) + count * sum(layers[stop_at:])
    assert merged_flops(dense_apply, merged, X) == expected


def test_a_merged_mlp_costs_one_model():
    assert merged_flops(dense_apply, averaged(None), X) == sum(layer_flops(batch=7))


NET = resnet.ResNet20(3, 0.25)
IMAGES = images(2, (8, 8, 3))


@pytest.fixture(scope="module")
def whole():
    """Variables of a ResNet-20, as shapes, and what the network costs."""
    params = jax.eval_shape(lambda: variables(NET, (8, 8, 3), 0))
    return params, flops(NET.apply, params, IMAGES)


def resnet_trunk(stage):
    """The network up to the end of a stage; the last one with its pooling."""

    def apply_fn(params, x):
        _, record = NET.apply(params, x, capture_intermediates=True)
        y = record["intermediates"][f"layer{stage}_2"]["__call__"][0]
        return y.mean((1, 2)) if stage == 3 else y

    return apply_fn


def merged_resnet_flops(params, stop_at):
    def merge(models):
        return averaged(stop_at, models, resnet.spec(NET))

    # The cost depends on shapes only.
    return merged_flops(NET.apply, jax.eval_shape(merge, [params] * 2), IMAGES)


@pytest.mark.parametrize("stop_at", [0, 1, 2, 3])
def test_resnet20_costs_its_trunk_and_its_heads(whole, stop_at):
    params, cost = whole
    trunk = flops(resnet_trunk(stop_at), params, IMAGES) if stop_at else 0
    assert trunk < cost
    assert merged_resnet_flops(params, stop_at) == trunk + 2 * (cost - trunk)


def test_a_merged_resnet20_costs_one_model(whole):
    params, cost = whole
    assert merged_resnet_flops(params, None) == cost
