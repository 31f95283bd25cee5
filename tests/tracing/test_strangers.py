"""What models of others do that no model of ours does, reduced to a few lines."""

import jax
import jax.numpy as jnp
import numpy as np

import zipjax
from benchmarks.zoo.case import normal
from tests.networks import relative_error


def spectral(params, x):
    """A Fourier layer: units are multiplied by complex weights, given as two parts."""
    modes = jnp.fft.rfft(x @ params["lift"], axis=1)
    modes = modes @ params["real"] + 1j * (modes @ params["imaginary"])
    return jnp.fft.irfft(modes, axis=1) @ params["project"]


def test_complex_activations_are_compared_by_both_of_their_parts():
    rng = np.random.default_rng(0)
    shapes = {"lift": (3, 6), "real": (6, 7), "imaginary": (6, 7), "project": (7, 2)}
    params = {k: np.float32(rng.normal(size=s)) for k, s in shapes.items()}
    x = normal(8, 10, 3)
    spec = zipjax.infer_spec(spectral, params, x)
    assert sorted(spec.sizes.values()) == [6, 7]
    planted = zipjax.random_permutations(spec, jax.random.key(1))
    models = [params, zipjax.permute_params(params, spec, planted)]
    device = jax.local_devices()[:1]
    moments = zipjax.collect_moments(spectral, models, spec, [x], devices=device)
    lifted = np.fft.rfft(np.float64(x) @ params["lift"], axis=1).reshape(-1, 6)
    expected = np.corrcoef(np.concatenate([lifted.real, lifted.imag]).T)
    (lift,) = (perm for perm, size in spec.sizes.items() if size == 6)
    found = zipjax.activation_similarity(moments[lift])[:6, :6]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for recipe in (zipjax.permute(), zipjax.zipit()):
        merged = zipjax.merge(models, spec, recipe, moments=moments)
        assert relative_error(spectral(merged.params(), x), spectral(params, x)) < 1e-4
