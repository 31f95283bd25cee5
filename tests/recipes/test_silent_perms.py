"""Perms whose activations cannot be read are matched by their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import images, randomise, relative_error


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def hypernetwork(params, x):
    """The kernel of the only layer on data is computed from parameters alone."""
    h = jnp.tanh(params["code"] @ params["w1"])
    h = jnp.tanh(h @ params["w2"])
    return jnp.tanh(x @ params["first"]) @ (h @ params["w3"])


SHAPES = {
    "code": shape(4, 5), "w1": shape(5, 7), "w2": shape(7, 6), "w3": shape(6, 3),
    "first": shape(3, 4),
}  # fmt: skip


def copies():
    params, x = randomise(SHAPES, 0), images(32, (3,))
    spec = zipjax.infer_spec(hypernetwork, params, x)
    planted = zipjax.random_permutations(spec, jax.random.key(1))
    models = [params, zipjax.permute_params(params, spec, planted)]
    return models, spec, planted, x


@pytest.mark.parametrize(
    "recipe", [zipjax.permute(), zipjax.zipit(), zipjax.mudsc(0.5)]
)
def test_they_are_found_by_their_weights(recipe, caplog):
    models, spec, planted, x = copies()
    moments = zipjax.collect_moments(hypernetwork, models, spec, [x])
    # Hidden units of the network on data are read; those before its kernel cannot be.
    assert set(spec.perms) == {"first", "code", "w1", "w2"}
    assert set(moments) == {"first"}
    assert "['code', 'w1', 'w2']" in caplog.text
    text = zipjax.explain(spec)
    assert text.count("no value that can be read: its weights alone match it") == 3
    merged = zipjax.merge(models, spec, recipe, moments=moments, key=jax.random.key(0))
    for perm in ("code", "w1", "w2"):
        first, second = np.split(merged.assignments[perm], 2)
        np.testing.assert_array_equal(second, first[planted[perm]])
    expected = hypernetwork(models[0], x)
    assert relative_error(hypernetwork(merged.params(), x), expected) < 1e-5


def test_moments_of_other_networks_may_not_lack_perms():
    models, spec, _, x = copies()
    moments = zipjax.collect_moments(hypernetwork, models, spec, [x])
    other = [models[0], models[0]]
    with pytest.raises(ValueError, match=r"moments are of other perms.*'w1'"):
        zipjax.merge(other, spec, zipjax.permute(), moments=moments)
