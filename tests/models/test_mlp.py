"""The MLP and its declared spec."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import images, variables
from zipjax.models import mlp
from zipjax.trees import path_leaves

CASES = [((5,), 2, (4,)), ((7, 3, 6), 4, (2, 3, 3)), ((1, 8), 1, (5,))]


@pytest.mark.parametrize(("hidden", "outputs", "shape"), CASES)
def test_the_spec_fits_the_module(hidden, outputs, shape):
    net = mlp.MLP(hidden, outputs)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    abstract = jax.eval_shape(net.init, jax.random.key(0), x)
    spec = mlp.spec(net)
    spec.validate(abstract)
    assert tuple(spec.sizes.values()) == hidden
    declared = zipjax.PermutationSpec.declare(spec.entries, abstract)
    assert declared == spec


@pytest.mark.parametrize(("hidden", "outputs", "shape"), CASES)
def test_the_spec_is_verified(hidden, outputs, shape, key):
    net = mlp.MLP(hidden, outputs)
    params = variables(net, shape, 0)
    x = images(9, shape)
    assert zipjax.verify_spec(net.apply, params, mlp.spec(net), x, key=key) < 1e-6


def test_the_forward_pass_is_that_of_numpy():
    net = mlp.MLP((7, 6), 3)
    params, x = variables(net, (2, 2), 0), images(5, (2, 2))
    leaves = {p: np.asarray(w, np.float64) for p, w in path_leaves(params).items()}
    y = x.reshape(5, 4)
    for name in ("dense_0", "dense_1"):
        w, b = leaves[f"params/{name}/kernel"], leaves[f"params/{name}/bias"]
        y = np.maximum(y @ w + b, 0)
    y = y @ leaves["params/head/kernel"] + leaves["params/head/bias"]
    np.testing.assert_allclose(net.apply(params, x), y, rtol=1e-5, atol=1e-6)


def test_a_spec_of_another_network_does_not_fit():
    params = variables(mlp.MLP((7, 6), 3), (4,), 0)
    with pytest.raises(ValueError, match="other widths"):
        mlp.spec(mlp.MLP((7, 5), 3)).validate(params)
    with pytest.raises(ValueError, match="params/dense_1/kernel"):
        mlp.spec(mlp.MLP((7,), 3)).validate(params)
