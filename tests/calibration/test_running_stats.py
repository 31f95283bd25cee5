"""Running statistics in every framework, shape and place, against numpy."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import images, relative_error
from zipjax.trees import path_leaves

X = (2 + 3 * images(60, (5, 4))).astype(np.float32)
BATCHES = [X[:20], X[20:]]
EPS = 1e-5


def averaged(values, batches=BATCHES):
    return np.average(values, axis=0, weights=[len(x) for x in batches])


def expected(batches, axes, ddof=0):
    """Averages over the samples of the batches' means and variances, in float64."""
    wide = [np.float64(x) for x in batches]
    mean = averaged([x.mean(axes, keepdims=True) for x in wide], batches)
    var = averaged([x.var(axes, keepdims=True, ddof=ddof) for x in wide], batches)
    return mean, var


# Shapes of the statistics of values [samples, 5, 4], and what they are taken over.
SHAPES = {
    (4,): (0, 1), (1, 4): (0, 1), (1, 1, 4): (0, 1), (5, 1): (0, 2), (1, 5, 1): (0, 2),
    (5, 4): (0,), (1,): (0, 1, 2), (): (0, 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_keep_their_shape(shape):
    def apply_fn(params, x):
        return (x - params["m"]) * jax.lax.rsqrt(params["v"] + EPS) * params["w"]

    params = {"m": jnp.zeros(shape), "v": jnp.ones(shape), "w": jnp.ones(4)}
    reset = zipjax.reset_batch_stats(apply_fn, params, BATCHES, ddof=1)
    mean, var = expected(BATCHES, SHAPES[shape])
    samples = X[:1].size * 20 / mean.size, X[:1].size * 40 / mean.size
    plain = [np.float64(x).var(SHAPES[shape], keepdims=True) for x in BATCHES]
    var = averaged([v * n / (n - 1) for v, n in zip(plain, samples, strict=True)])
    assert relative_error(reset["m"], mean.reshape(shape)) < 1e-6
    assert relative_error(reset["v"], var.reshape(shape)) < 1e-5
    np.testing.assert_array_equal(reset["w"], params["w"])


def test_transposed_statistics():
    def apply_fn(params, x):
        return (x - params["m"].T) / jnp.sqrt(params["v"].T + EPS) * params["w"]

    params = {"m": jnp.zeros((4, 5)), "v": jnp.ones((4, 5)), "w": jnp.ones(4)}
    reset = zipjax.reset_batch_stats(apply_fn, params, BATCHES)
    mean, var = expected(BATCHES, (0,))
    assert relative_error(reset["m"], mean[0].T) < 1e-6
    assert relative_error(reset["v"], var[0].T) < 1e-5


def check_normalised(apply_fn, params):
    """After the reset, the batch itself is normalised; other leaves are kept."""
    reset = zipjax.reset_batch_stats(apply_fn, params, [X])
    y = np.float64(apply_fn(reset, X))
    np.testing.assert_allclose(y.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1)), 1, rtol=1e-4)
    assert jax.tree.structure(reset) == jax.tree.structure(params)
    before, after = path_leaves(params), path_leaves(reset)
    changed = {p for p in before if not np.array_equal(before[p], after[p])}
    assert len(changed) == 2
    assert all(before[path].shape == after[path].shape for path in before)
    return changed


def test_haiku():
    net = hk.transform_with_state(lambda x, t: hk.BatchNorm(True, True, 0.9)(x, t))
    params, state = net.init(None, X, True)
    _, state = net.apply(params, state, None, X[:3] - 1, True)

    def apply_fn(variables, x, training=False):
        return net.apply(*variables, None, x, training)[0]

    changed = check_normalised(apply_fn, (params, state))
    assert {path.split("/")[-1] for path in changed} == {"average"}
    with pytest.raises(ValueError, match=r"mean_ema/average.*evaluation mode"):
        zipjax.reset_batch_stats(
            lambda v, x: apply_fn(v, x, True), (params, state), [X]
        )


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_equinox(mode):
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode=mode)
    axes = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
    _, state = jax.vmap(norm, **axes)(X[:3, 0] - 1, state)
    norm = eqx.nn.inference_mode(norm)

    def apply_fn(state, x):
        flat, _ = jax.vmap(norm, **axes)(x.reshape(-1, 4), state)
        return flat.reshape(x.shape)

    check_normalised(apply_fn, state)


def test_two_norms_one_after_the_other():
    """Every norm sees what the norms before it make of the batch."""

    def norm(own, x):
        return (x - own["m"]) / jnp.sqrt(own["v"] + EPS) * own["scale"]

    def apply_fn(params, x):
        return norm(params["b"], jnp.tanh(norm(params["a"], x)))

    own = {"m": jnp.zeros(4), "v": jnp.ones(4), "scale": jnp.arange(1.0, 5.0)}
    reset = zipjax.reset_batch_stats(apply_fn, {"a": own, "b": own}, [X])
    mean, var = expected([X], (0, 1))
    hidden = np.tanh((X - mean) / np.sqrt(var + EPS) * np.arange(1, 5))
    mean, var = expected([hidden], (0, 1))
    assert relative_error(reset["b"]["m"], mean[0, 0]) < 1e-4
    assert relative_error(reset["b"]["v"], var[0, 0]) < 1e-4


def without_mean(params, x):
    return x / jnp.sqrt(params["v"] + EPS)


def scanned(params, x):
    def step(carry, own):
        return (carry - own["mean"]) / jnp.sqrt(own["var"] + EPS), None

    x = (x - params["mean"]) / jnp.sqrt(params["var"] + EPS)
    return jax.lax.scan(step, x, params["loop"])[0]


def scanned_by_other_names(params, x):
    def step(carry, own):
        return (carry - own["m"]) * jax.lax.rsqrt(own["v"] + EPS), None

    return jax.lax.scan(step, x, params["loop"])[0]


def branched(params, x):
    def norm(x):
        return (x - params["m"]) * jax.lax.rsqrt(params["v"] + EPS)

    return jax.lax.cond(x.sum() > 0, norm, lambda x: x, x)


STACK = {"m": jnp.zeros((3, 4)), "v": jnp.ones((3, 4))}
ONE = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
OVERLOOKED = {
    "no mean": (without_mean, {"v": jnp.ones(4)}, r"\['v'\]"),
    "in a scan": (scanned, ONE | {"loop": jax.tree.map(lambda x: x[None], ONE)},
                  r"\['loop/mean', 'loop/var'\]"),
    "in a scan, unnamed": (scanned_by_other_names, {"loop": STACK}, r"\['loop/v'\]"),
    "in a branch": (branched, {k: x[0] for k, x in STACK.items()}, r"\['v'\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERLOOKED)
def test_norms_that_cannot_be_reset_are_refused(name):
    apply_fn, params, paths = OVERLOOKED[name]
    message = rf"{paths} look like running statistics.*stats=lambda"
    with pytest.raises(ValueError, match=message):
        zipjax.reset_batch_stats(apply_fn, params, [X])


def test_statistics_that_are_named_may_be_a_part():
    def pairs(paths):
        return [(path, path.replace("mean", "var")) for path in paths if path == "mean"]

    params = OVERLOOKED["in a scan"][1]
    reset = zipjax.reset_batch_stats(scanned, params, [X], stats=pairs)
    mean, var = expected([X], (0, 1))
    assert relative_error(reset["mean"], mean[0, 0]) < 1e-6
    assert relative_error(reset["var"], var[0, 0]) < 1e-5
    np.testing.assert_array_equal(reset["loop"]["mean"], params["loop"]["mean"])
    with pytest.raises(ValueError, match="'loop/mean' is subtracted from nothing"):
        zipjax.reset_batch_stats(
            scanned, params, [X], stats=lambda _: [("loop/mean", "loop/var")]
        )


def test_statistics_that_are_not_read_stay():
    """An auxiliary head's, for instance, in a function that does not return it."""

    def apply_fn(params, x):
        return (x - params["mean"]) / jnp.sqrt(params["var"] + EPS)

    params = ONE | {"auxiliary": ONE}
    reset = zipjax.reset_batch_stats(apply_fn, params, [X])
    assert relative_error(reset["mean"], expected([X], (0, 1))[0][0, 0]) < 1e-6
    np.testing.assert_array_equal(reset["auxiliary"]["var"], ONE["var"])
