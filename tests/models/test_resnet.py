"""ResNet-20 and its declared spec."""

import jax
import jax.numpy as jnp
import pytest

import zipjax
from tests.networks import images, variables
from zipjax.models import resnet

CASES = [(10, 1.0), (5, 0.25), (512, 2.0), (3, 0.5), (100, 8.0)]


@pytest.mark.parametrize(("outputs", "width"), CASES)
def test_the_spec_fits_the_module(outputs, width):
    net = resnet.ResNet20(outputs, width)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    abstract = jax.eval_shape(net.init, jax.random.key(0), x)
    spec = resnet.spec(net)
    spec.validate(abstract)
    assert zipjax.PermutationSpec.declare(spec.entries, abstract) == spec
    assert abstract["params"]["linear"]["kernel"].shape == (64 * width, outputs)


def test_twelve_perms_in_depth_order():
    spec = resnet.spec(resnet.ResNet20(10, 0.5))
    assert spec.sizes == {
        **{f"layer1_{k}": 8 for k in range(3)},
        "stage1": 8,
        **{f"layer2_{k}": 16 for k in range(3)},
        "stage2": 16,
        **{f"layer3_{k}": 32 for k in range(3)},
        "stage3": 32,
    }
    assert list(spec.perms)[3::4] == ["stage1", "stage2", "stage3"]


@pytest.fixture(scope="module")
def small():
    net = resnet.ResNet20(3, 0.25)
    return net, variables(net, (8, 8, 3), 1)


def test_the_spec_is_verified(small, key):
    net, params = small
    x = images(4, (8, 8, 3))
    spec = resnet.spec(net)
    assert zipjax.verify_spec(net.apply, params, spec, x, key=key) < 5e-6


PRODUCED = zipjax.Axis("layer1_1", "out")


@pytest.mark.parametrize(
    ("path", "entries"),
    [
        ("params/layer2_0/shortcut_bn/scale", (None,)),
        ("batch_stats/layer3_1/bn1/mean", (None,)),
        ("batch_stats/bn1/var", (None,)),
        ("params/layer1_1/conv1/kernel", (None, None, None, PRODUCED)),
    ],
)
def test_leaving_out_one_axis_is_found(small, path, entries, key):
    net, params = small
    spec = resnet.spec(net)
    wrong = zipjax.PermutationSpec({**spec.entries, path: entries}, spec.perms)
    x = images(4, (8, 8, 3))
    with pytest.raises(zipjax.SpecError, match="changes the outputs"):
        zipjax.verify_spec(net.apply, params, wrong, x, key=key, trials=1)


def test_images_of_any_size_and_training_mode(small):
    net, params = small
    assert net.apply(params, images(2, (10, 12, 3))).shape == (2, 3)
    _, updates = jax.eval_shape(
        lambda: net.apply(
            params, images(2, (8, 8, 3)), train=True, mutable=["batch_stats"]
        )
    )
    assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(
        params["batch_stats"]
    )
