"""DeepLabV3: its dilations, and one trunk with a classifier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import (
    collect,
    flops,
    images,
    permuted_copies,
    relative_error,
    variables,
)
from zipjax.models import deeplab, resnet
from zipjax.trees import from_leaves, path_leaves

SIZES = {"depths": (1, 1, 2), "body": resnet.bottleneck, "width": 1 / 16}
SEGMENTER = deeplab.DeepLabV3(3, **SIZES, output_stride=4, hidden=5, rates=(1, 2))
CLASSIFIER = resnet.ResNet(4, **SIZES, output_stride=4)
STRIDED = resnet.ResNet(4, **SIZES)
SHAPE = (24, 32, 3)


def test_images_of_any_size_get_a_label_for_every_pixel():
    net = deeplab.deeplabv3_resnet50(11, width=1 / 8)
    x = jax.ShapeDtypeStruct((2, 96, 128, 3), jnp.float32)
    found, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert found.shape == (2, 96, 128, 11)
    both = net.clone(auxiliary=True)
    found, _ = jax.eval_shape(both.init_with_output, jax.random.key(0), x)
    assert {name: y.shape for name, y in found.items()} == {
        "out": (2, 96, 128, 11),
        "aux": (2, 96, 128, 11),
    }


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [
        (32, [1, 1, 2, 1, 2, 1, 2, 1], [1] * 8),
        (16, [1, 1, 2, 1, 2, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 2]),
        (8, [1, 1, 2, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 2, 2, 4]),
        (4, [1] * 8, [1, 1, 1, 2, 2, 4, 4, 8]),
    ],
)
@pytest.mark.parametrize("body", [resnet.basic, resnet.bottleneck])
def test_stages_have_dilations_instead_of_strides(
    output_stride, strides, dilations, body
):
    net = resnet.ResNet(2, (2, 2, 2, 2), body, output_stride=output_stride)
    assert [plan.stride for plan in net.plans] == strides
    middle = [plan.body[-2].dilation for plan in net.plans]
    assert middle == dilations
    assert resnet.spec(net) == resnet.spec(resnet.ResNet(2, (2, 2, 2, 2), body))


@pytest.mark.parametrize("output_stride", [2, 12, 0, -8])
def test_an_output_stride_that_no_halving_reaches(output_stride):
    with pytest.raises(ValueError, match=f"output_stride = {output_stride} "):
        _ = resnet.ResNet(2, (1, 1), output_stride=output_stride).plans


@pytest.mark.parametrize("body", [resnet.basic, resnet.bottleneck])
def test_dilated_stages_compute_strided_ones_and_what_is_between(body):
    strided = resnet.ResNet(2, (1, 2, 2), body, 1 / 16)
    dilated = strided.clone(output_stride=4)
    params, x = variables(strided, (32, 32, 3), 0), images(2, (32, 32, 3))

    def last(net):
        apply = jax.jit(functools.partial(net.apply, capture_intermediates=True))
        _, state = apply(params, x)
        return np.asarray(state["intermediates"]["layer3_1"]["__call__"][0])

    coarse, fine = last(strided), last(dilated)
    assert (coarse.shape[1], fine.shape[1]) == (2, 8)
    assert relative_error(fine[:, ::4, ::4], coarse) < 1e-5


def test_logits_are_interpolated_between_the_centres_of_pixels():
    coarse = jnp.asarray(images(1, (2, 3, 1)))
    found = np.asarray(deeplab._resized(coarse, jnp.zeros((1, 4, 6, 3))))[0, :, :, 0]
    # Of twice as many pixels, each lies a quarter of the way to the next centre.
    rows = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    columns = np.array(
        [[1, 0, 0], [0.75, 0.25, 0], [0.25, 0.75, 0],
         [0, 0.75, 0.25], [0, 0.25, 0.75], [0, 0, 1]]
    )  # fmt: skip
    expected = rows @ np.asarray(coarse)[0, :, :, 0] @ columns.T
    np.testing.assert_allclose(found, expected, atol=1e-6)


FUNCTIONS = [SEGMENTER.apply, CLASSIFIER.apply]
SPECS = [deeplab.spec(SEGMENTER), resnet.spec(CLASSIFIER)]


def test_the_backbones_perms_and_shapes_are_the_classifiers():
    segmenter, classifier = SPECS
    common = {**classifier.perms}
    assert {name: segmenter.perms[name] for name in common} == common
    shapes = [
        {path: leaf.shape for path, leaf in path_leaves(params).items()}
        for params in (variables(SEGMENTER, SHAPE, 0), variables(STRIDED, SHAPE, 0))
    ]
    trunk = {path for path in shapes[1] if "/fc/" not in path}
    assert {path: shapes[0][path] for path in trunk} == {
        path: shapes[1][path] for path in trunk
    }


@pytest.fixture(scope="module")
def pair():
    """A segmenter, and a classifier with its trunk, but for the order of units."""
    segmenter = variables(SEGMENTER, SHAPE, 0)
    classifier = path_leaves(variables(CLASSIFIER, SHAPE, 1))
    own = {p: x for p, x in classifier.items() if "/fc/" in p}
    trunk = path_leaves(segmenter)
    like = variables(CLASSIFIER, SHAPE, 1)
    mixed = from_leaves({p: own.get(p, trunk.get(p)) for p in classifier}, like)
    return [segmenter, permuted_copies(mixed, SPECS[1], 2)[1]]


def test_a_segmenter_and_a_classifier_share_a_trunk(pair):
    x = images(32, SHAPE)
    moments = collect(FUNCTIONS, pair, SPECS, x)
    assert list(moments) == list(SPECS[1].perms)
    recipe = zipjax.zipit(beta=0.0)
    merged = zipjax.merge(pair, SPECS, recipe, moments=moments)
    assert {path for path in merged.trunk if "/fc/" in path or "aspp" in path} == set()
    assert any("layer3_1/conv3" in path for path in merged.trunk)
    whole = jax.jit(functools.partial(zipjax.apply, FUNCTIONS))
    heads = whole(merged, x)
    expected = [jax.jit(f)(p, x) for f, p in zip(FUNCTIONS, pair, strict=True)]
    for found, wanted in zip(heads, expected, strict=True):
        assert relative_error(found, wanted) < 1e-4
    # The trunk is computed once: all costs less than the two networks.
    alone = [flops(f, p, x) for f, p in zip(FUNCTIONS, pair, strict=True)]
    assert flops(whole, merged, x) < 1.05 * alone[0] < sum(alone)
    labels, classes = (np.asarray(y).argmax(-1) for y in expected)
    scored = zipjax.evaluate_segmentation(
        lambda x: whole(merged, x)[0], [(x, labels)], num_classes=3
    )
    assert scored.accuracy > 0.999
    found = zipjax.evaluate(
        lambda x: whole(merged, x)[1], [(x, classes)], tasks=[[0, 1, 2, 3]]
    )
    assert found.joint > 0.9


def test_a_strided_classifier_is_merged_by_weights_only(pair):
    functions = [SEGMENTER.apply, STRIDED.apply]
    merged = zipjax.merge(pair, SPECS, zipjax.average())
    apply = functools.partial(zipjax.apply, functions)
    pixels, classes = jax.eval_shape(apply, merged, images(2, SHAPE))
    assert (pixels.shape, classes.shape) == ((2, 24, 32, 3), (2, 4))
    with pytest.raises(ValueError, match="are read at positions"):
        collect(functions, pair, SPECS, images(4, SHAPE))
