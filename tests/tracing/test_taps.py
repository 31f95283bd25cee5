"""Taps: where a perm's activations are read, against activations made by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import (
    FlattenNet,
    dense_apply,
    dense_params,
    dense_spec,
    flatten_spec,
    images,
    randomise,
    relative_error,
    variables,
)
from tests.zoo.stacks import CASES
from zipjax import (
    Axis,
    Perm,
    PermutationSpec,
    Sum,
    collect_moments,
    infer_spec,
    merge,
    permute,
    permute_params,
    random_permutations,
    zipit,
)
from zipjax.program.program import trace
from zipjax.similarity.activations import activations
from zipjax.tracing.taps import find_taps


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def relu(x):
    return np.maximum(x, 0)


def units(apply_fn, params, spec, *inputs):
    """Units at the last consumers, ``[samples, units]``."""
    found = activations(apply_fn, params, spec, inputs)
    return {perm: stacked(read.last) for perm, read in found.items()}


def stacked(places):
    return np.concatenate([np.reshape(x, (-1, x.shape[-1])) for x in places])


def test_taps_are_behind_the_relu():
    widths = (3, 5, 4, 2)
    params, x = dense_params(widths, 0), images(7, (3,))
    first, second, _ = (
        {k: np.asarray(v, np.float64) for k, v in layer.items()}
        for layer in params["layers"]
    )
    h0 = relu(x @ first["w"] + first["b"])
    h1 = relu(h0 @ second["w"] + second["b"])
    found = units(dense_apply, params, dense_spec(widths), x)
    np.testing.assert_allclose(found["h0"], h0, atol=1e-6)
    np.testing.assert_allclose(found["h1"], h1, atol=1e-6)


STREAM_OUT, STREAM_IN = Axis("s", "out"), Axis("s", "in")
RESIDUAL = PermutationSpec(
    {
        "embed": (None, STREAM_OUT),
        "up": (STREAM_IN, Axis("h", "out")),
        "down": (Axis("h", "in"), STREAM_OUT),
        "head": (STREAM_IN, None),
    },
    {"s": Perm(4), "h": Perm(6)},
)


def residual(params, x):
    x = x @ params["embed"]
    y = jax.nn.relu(x @ params["up"])
    return jnp.tanh(x + y @ params["down"]) @ params["head"]


def test_the_tap_of_a_stream_is_behind_the_last_residual_sum():
    like = {"embed": shape(3, 4), "up": shape(4, 6), "down": shape(6, 4)}
    params = randomise(like | {"head": shape(4, 2)}, 0)
    x = images(5, (3,))
    w = {name: np.asarray(value, np.float64) for name, value in params.items()}
    stream = x @ w["embed"]
    hidden = relu(stream @ w["up"])
    found = units(residual, params, RESIDUAL, x)
    np.testing.assert_allclose(found["h"], hidden, atol=1e-6)
    last = np.tanh(stream + hidden @ w["down"])
    np.testing.assert_allclose(found["s"], last, atol=1e-6)
    # Its earlier consumer reads it before the sum; the hidden units have but one.
    read = activations(residual, params, RESIDUAL, (x,))
    np.testing.assert_allclose(stacked(read["s"].earlier), stream, atol=1e-6)
    assert read["h"].earlier == []


def global_mean(x):
    return jnp.mean(x, axis=(1, 2))


def global_max(x):
    return x.max((1, 2))


def mean_kept(x):
    return x.mean((1, 2), keepdims=True).reshape(x.shape[0], -1)


def mean_in_two_steps(x):
    return x.mean(1).mean(1)


def windowed(pool):
    return lambda x: pool(x, x.shape[1:3]).reshape(x.shape[0], -1)


def mean_in_half_precision(x):
    return jnp.mean(x.astype(jnp.bfloat16), (1, 2)).astype(jnp.float32)


POOLINGS = {
    f.__name__: f
    for f in (
        global_mean,
        global_max,
        mean_kept,
        mean_in_two_steps,
        mean_in_half_precision,
    )
} | {"avg_pool": windowed(nn.avg_pool), "max_pool": windowed(nn.max_pool)}

POOLED = PermutationSpec(
    {
        "conv": (None, None, None, Axis("c", "out")),
        "head": (Axis("c", "in"), None),
    },
    {"c": Perm(5)},
)


def conv(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, layout)


@pytest.fixture(scope="module")
def pooled_case():
    params = randomise({"conv": shape(1, 1, 3, 5), "head": shape(5, 2)}, 0)
    x = images(4, (2, 3, 3))
    # A 1x1 convolution is a product at every position.
    expected = relu(x.reshape(-1, 3) @ np.asarray(params["conv"], np.float64)[0, 0])
    return params, x, expected


@pytest.mark.parametrize("name", POOLINGS)
def test_the_tap_is_before_a_global_pooling(pooled_case, name):
    params, x, expected = pooled_case
    pool = POOLINGS[name]

    def apply_fn(params, x):
        return pool(jax.nn.relu(conv(x, params["conv"]))) @ params["head"]

    found = units(apply_fn, params, POOLED, x)["c"]
    assert found.dtype == np.float32
    rounding = 2.0**-8 if "half" in name else 0
    np.testing.assert_allclose(found, expected, rounding, atol=1e-6)


def test_what_lies_behind_a_pooling_is_not_stepped_over(pooled_case):
    # Only a pooling right before the consumer is.
    params, x, expected = pooled_case

    def apply_fn(params, x):
        pooled = jnp.mean(conv(x, params["conv"]), axis=(1, 2))
        return jnp.tanh(pooled) @ params["head"]

    linear = x.reshape(-1, 3) @ np.asarray(params["conv"], np.float64)[0, 0]
    pooled = np.tanh(linear.reshape(4, 6, 5).mean(1))
    np.testing.assert_allclose(
        units(apply_fn, params, POOLED, x)["c"], pooled, atol=1e-6
    )
    assert expected.shape != pooled.shape


@pytest.mark.parametrize("pool", [nn.avg_pool, nn.max_pool])
def test_a_local_pooling_is_not_stepped_over(pool):
    spec = PermutationSpec(
        {
            "first": (None, None, None, Axis("c", "out")),
            "second": (None, None, Axis("c", "in"), None),
        },
        {"c": Perm(5)},
    )
    like = {"first": shape(1, 1, 3, 5), "second": shape(3, 3, 5, 2)}
    params, x = randomise(like, 0), images(4, (4, 6, 3))

    def apply_fn(params, x):
        x = pool(jax.nn.relu(conv(x, params["first"])), (2, 2), (2, 2))
        return conv(x, params["second"])

    windows = relu(x @ np.asarray(params["first"], np.float64)[0, 0])
    windows = windows.reshape(4, 2, 2, 3, 2, 5)
    reduced = windows.max((2, 4)) if pool is nn.max_pool else windows.mean((2, 4))
    found = units(apply_fn, params, spec, x)["c"]
    np.testing.assert_allclose(found, reduced.reshape(-1, 5), atol=1e-6)


FLATTEN = flatten_spec(positions=2 * 3)


def flatten_activations(net, params, x):
    """Both perms' activations, from Flax's own record of the layers' outputs."""
    _, record = net.apply(params, x, capture_intermediates=True)
    layers = record["intermediates"]
    normed = relu(np.asarray(layers["norm"]["__call__"][0], np.float32))
    count, height, width, channels = normed.shape
    windows = normed.reshape(count, height // 2, 2, width // 2, 2, channels)
    hidden = np.asarray(layers["hidden"]["__call__"][0], np.float32)
    return windows.max((2, 4)).reshape(-1, channels), relu(hidden)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_flatten_is_opened(dtype):
    # In bfloat16 the parameters are cast on their way to the product.
    net = FlattenNet(dtype)
    params, x = variables(net, (4, 6, 3), 1), images(5, (4, 6, 3))
    found = units(net.apply, params, FLATTEN, x)
    conv, hidden = flatten_activations(net, params, x)
    assert found["conv"].dtype == found["hidden"].dtype == (dtype or jnp.float32)
    # Positions are the samples; conv's tap is after the local pooling.
    np.testing.assert_allclose(found["conv"].astype(np.float32), conv, atol=1e-6)
    np.testing.assert_allclose(found["hidden"].astype(np.float32), hidden, atol=1e-6)


def test_parts_of_a_concatenation_are_tapped_apart():
    spec = PermutationSpec(
        {
            "a": (None, Axis("a", "out")),
            "b": (None, Axis("b", "out")),
            "head": (Sum((Axis("a", "in"), Axis("b", "in"))), None),
        },
        {"a": Perm(2), "b": Perm(5)},
    )

    def apply_fn(params, x):
        parts = [x @ params["a"], jnp.sin(x @ params["b"])]
        return jnp.concatenate(parts, axis=1) @ params["head"]

    params = randomise({"a": shape(3, 2), "b": shape(3, 5), "head": shape(7, 1)}, 0)
    x = images(6, (3,))
    found = units(apply_fn, params, spec, x)
    np.testing.assert_allclose(found["a"], x @ params["a"], atol=1e-6)
    np.testing.assert_allclose(found["b"], np.sin(x @ params["b"]), atol=1e-6)


LAYOUTS = {
    "transposed": lambda w, x: x @ w.T.T,
    "kernel first": lambda w, x: (w.T @ x.T).T,
    "einsum": lambda w, x: jnp.einsum("io,bi->bo", w, x),
    "einsum of more axes": lambda w, x: jnp.einsum("bti,io->bto", x[:, None], w)[:, 0],
    "cast": lambda w, x: (x.astype(jnp.float16) @ w.astype(jnp.float16)) * 1.0,
    "1x1 convolution": lambda w, x: conv(x[:, None, None], w[None, None])[:, 0, 0],
    "jit and remat": jax.jit(jax.checkpoint(lambda w, x: x @ w)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_parameters_are_followed_through_changes_of_layout(name):
    spec = PermutationSpec(
        {"w": (None, Axis("h", "out")), "head": (Axis("h", "in"), None)},
        {"h": Perm(5)},
    )
    params = randomise({"w": shape(3, 5), "head": shape(5, 2)}, 0)
    x = images(4, (3,))

    def apply_fn(params, x):
        return LAYOUTS[name](params["head"], jnp.tanh(x @ params["w"]))

    found = units(apply_fn, params, spec, x)["h"]
    expected = np.tanh(x @ np.asarray(params["w"]))
    assert relative_error(found, expected) < (1e-3 if name == "cast" else 1e-6)


def test_a_perm_that_no_product_consumes_is_read_where_it_lies():
    spec = PermutationSpec(
        {"w": (None, Axis("h", "out")), "scale": (Axis("h", "in"),)}, {"h": Perm(5)}
    )
    params, x = randomise({"w": shape(3, 5), "scale": shape(5)}, 0), images(4, (3,))

    def apply_fn(params, x):
        return (x @ params["w"]) * params["scale"]

    found = units(apply_fn, params, spec, x)["h"]
    np.testing.assert_allclose(found, apply_fn(params, x), atol=1e-6)


def test_a_perm_of_parameters_alone_has_no_tap():
    spec = PermutationSpec(
        {"v": (None, Axis("h", "out")), "w": (Axis("h", "in"), None)}, {"h": Perm(5)}
    )
    program = trace(
        lambda p, x: x * (p["v"] @ p["w"]), {"v": shape(1, 5), "w": shape(5, 3)}, X
    )
    assert find_taps(program, spec) == {}


X = shape(2, 3)


def grouped_attention(params, x):
    """Two value heads, each read by three query heads; sums instead of softmax."""
    values = jnp.einsum("btc,chd->bthd", x, params["value"])
    queries = jnp.einsum("btc,chg->bthg", x, params["query"])
    read = jnp.einsum("bthg,bshd->bthgd", queries, values)
    return jnp.einsum("bthgd,hgdc->btc", jnp.tanh(read), params["out"])


def test_units_beside_those_of_another_perm_are_read_elsewhere():
    shapes = {
        "value": shape(4, 2, 5),
        "query": shape(4, 2, 3),
        "out": shape(2, 3, 5, 4),
    }
    params, x = randomise(shapes, 0), images(6, (3, 4))
    spec = infer_spec(grouped_attention, params, x)
    heads, inner, group = spec.perms
    assert spec.sizes == {heads: 2, inner: 5, group: 3}
    found = units(grouped_attention, params, spec, x)
    # Where they are consumed lie three queries for each, in an order of their own.
    values = np.einsum("btc,chd->bthd", x, np.asarray(params["value"], np.float64))
    np.testing.assert_allclose(found[inner], values.reshape(-1, 10), atol=1e-5)
    queries = np.einsum("btc,chg->bthg", x, np.asarray(params["query"], np.float64))
    np.testing.assert_allclose(found[group], queries.reshape(-1, 6), atol=1e-5)


def token_mixing_moments(seed):
    case = CASES["token-mixing"]()
    order = np.random.default_rng(seed).permutation(6)
    w, o = np.asarray(case.params["w"]), np.asarray(case.params["o"])
    copy = {**case.params, "w": w[:, order], "o": o[order]}
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    x = images(64, (4, 5))
    moments = collect_moments(case.apply_fn, [case.params, copy], spec, [x])
    return case, spec, x, moments


def test_units_whose_only_samples_are_other_units_are_averaged_over_these():
    """Token mixing: the hidden units, of which only channels are permuted here."""
    case, _, x, moments = token_mixing_moments(0)
    w, u = (np.asarray(case.params[k], np.float64) for k in ("w", "u"))
    t = relu(np.einsum("btc,th->bch", x @ w, u))
    mean, square = t.mean(1), np.sqrt((t**2).mean(1))
    centred = np.concatenate([mean - mean.mean(0), square - square.mean(0)])
    covariance = centred.T @ centred / len(centred)
    deviation = np.sqrt(np.diag(covariance))
    expected = covariance / np.outer(deviation, deviation)
    found = np.asarray(moments["u"].correlation())
    np.testing.assert_allclose(found, np.tile(expected, (2, 2)), atol=1e-5)
    np.testing.assert_allclose(np.diag(found[:7, 7:]), 1, atol=1e-6)


def fading(params, x):
    """A stream of which the last layer sees half the units only."""
    x = x @ params["embed"]
    x = x + jnp.tanh(x @ params["up"]) @ params["down"]
    return jax.nn.relu(x + params["bias"]) @ params["head"]


def test_units_that_are_dead_at_the_end_of_a_stream_are_matched_by_what_came_before():
    like = {"embed": shape(3, 8), "up": shape(8, 6), "down": shape(6, 8)}
    params = randomise(like | {"bias": shape(8), "head": shape(8, 2)}, 0)
    params["bias"] = np.float32([0, 0, 0, 0, -99, -99, -99, -99])
    x = images(64, (3,))
    spec = infer_spec(fading, params, x)
    planted = random_permutations(spec, jax.random.key(2))
    models = [params, permute_params(params, spec, planted)]
    moments = collect_moments(fading, models, spec, [x])
    assert (moments["embed"].deviation() == 0).sum() == 2 * 4
    for recipe in (permute(), zipit()):
        merged = merge(models, spec, recipe, moments=moments)
        assert relative_error(fading(merged.params(), x), fading(params, x)) < 1e-5
