"""Taskonomy's networks: sizes, layers by hand, and encoders merged before decoders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import (
    collect,
    images,
    permuted_copies,
    relative_error,
    variables,
)
from zipjax.models import taskonomy
from zipjax.trees import from_leaves, path_leaves

ENCODER = taskonomy.TaskonomyEncoder(1 / 16, (1, 1, 1, 1), code=3)
DENSE = taskonomy.EncoderDecoder(ENCODER, taskonomy.DenseDecoder(2, 1 / 16))
CLASSES = taskonomy.EncoderDecoder(ENCODER, taskonomy.ClassDecoder(4, 6, side=2))
SHAPE = (32, 32, 3)


@pytest.mark.parametrize(("side", "code"), [(256, 16), (64, 4), (40, 3), (23, 2)])
def test_a_code_is_a_sixteenth_of_an_image(side, code):
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    found, _ = jax.eval_shape(
        taskonomy.TaskonomyEncoder().init_with_output, jax.random.key(0), x
    )
    # Rounded up, but for the pooling: its windows start inside the image.
    assert found.shape == (1, code, code, 8)


def test_every_stage_shrinks_in_its_last_block_or_not_at_all():
    encoder = taskonomy.TaskonomyEncoder()
    strides = [plan.stride for plan in encoder.plans]
    assert strides == [1, 1, 2, 1, 1, 1, 2, *(1,) * 6, *(1,) * 3]
    projected = [plan.shortcut is not None for plan in encoder.plans]
    assert [k for k, own in enumerate(projected) if own] == [0, 3, 7, 13]
    # A stage's only block does both.
    assert ENCODER.plans[0].stride == ENCODER.plans[0].shortcut.stride == 2


def test_a_transposed_layer_adds_up_what_its_kernel_spreads():
    decoder = taskonomy.DenseDecoder(1, 1 / 16)
    params = variables(decoder, (3, 4, 2), 0)
    apply = jax.jit(functools.partial(decoder.apply, capture_intermediates=True))
    outputs, state = apply(params, images(2, (3, 4, 2)))
    layers = state["intermediates"]
    after = np.asarray(layers["bn7"]["__call__"][0], np.float64)
    read = np.where(after > 0, after, 0.2 * after)
    kernel = np.asarray(params["params"]["deconv8"]["kernel"], np.float64)
    full = np.zeros((2, 2 * 3 + 1, 2 * 4 + 1, kernel.shape[2]))
    for row in range(3):
        for column in range(3):
            spread = read @ kernel[row, column].T
            full[:, row : row + 6 : 2, column : column + 8 : 2] += spread
    found = layers["deconv8"]["__call__"][0]
    assert relative_error(found, full[:, :-1, :-1]) < 1e-5
    assert outputs.shape == (2, 16 * 3, 16 * 4, 1)
    last = layers["decoder_output"]["__call__"][0]
    np.testing.assert_allclose(outputs, np.tanh(last), atol=1e-6)
    free = taskonomy.DenseDecoder(1, 1 / 16, bounded=False)
    found = jax.jit(free.apply)(params, images(2, (3, 4, 2)))
    assert relative_error(found, last) < 1e-6


def test_a_class_decoder_reads_codes_of_its_side():
    with pytest.raises(ValueError, match=r"code is 3x2.* side is 2.*32x32 pixels"):
        variables(CLASSES, (48, 32, 3), 0)


def with_encoder(params, other):
    """Returns parameters with another network's encoder."""
    leaves = path_leaves(params)
    common = {p: x for p, x in path_leaves(other).items() if "/encoder/" in p}
    return from_leaves({p: common.get(p, x) for p, x in leaves.items()}, params)


@pytest.fixture(scope="module")
def pair():
    """Networks for two tasks with one encoder, but for the order of its units."""
    dense, classes = (
        variables(net, SHAPE, k) for k, net in enumerate((DENSE, CLASSES))
    )
    spec = taskonomy.spec(CLASSES)
    _, classes = permuted_copies(with_encoder(classes, dense), spec, 2)
    return [dense, classes]


FUNCTIONS = [DENSE.apply, CLASSES.apply]
SPECS = [taskonomy.spec(DENSE), taskonomy.spec(CLASSES)]


@pytest.mark.parametrize("stop_at", [None, "encoder/stage4"], ids=["code", "before"])
def test_encoders_of_two_tasks_are_zipped(pair, stop_at):
    x = images(64, SHAPE)
    # Their code is common, and so is everything before.
    moments = collect(FUNCTIONS, pair, SPECS, x)
    assert list(moments) == [p for p in SPECS[0].perms if p.startswith("encoder/")]
    recipe = zipjax.zipit(beta=0.0)
    merged = zipjax.merge(pair, SPECS, recipe, moments=moments, stop_at=stop_at)
    heads = jax.jit(functools.partial(zipjax.apply, FUNCTIONS))(merged, x[:8])
    for function, params, head in zip(FUNCTIONS, pair, heads, strict=True):
        assert relative_error(head, jax.jit(function)(params, x[:8])) < 1e-3
    inside = {path.split("/")[1] for path in merged.trunk}
    assert inside == {"encoder"}
    compressed = any("compress" in path for path in merged.trunk)
    assert compressed == (stop_at is None)


def test_no_layer_of_a_narrow_decoder_has_fewer_channels_than_the_least():
    decoder = taskonomy.DenseDecoder(1, 1 / 16, least=6)
    widths = [64, 64, 32, 16, 16, 8, 6, 6, 6, 6, 6, 6, 6]
    assert list(decoder.layers.values()) == widths
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), np.zeros((1, 2, 2, 3)))
    assert shapes["params"]["deconv14"]["kernel"].shape[2:] == (6, 6)
