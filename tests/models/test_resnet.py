"""ResNet-20 and its declared spec."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import zipjax
from tests.networks import images, relative_error, variables
from zipjax.interop.torch import from_flax
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


def convolved(x, kernel, stride):
    """A 3x3 convolution of images with channels first, in float64."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("bihwyx,oiyx->bohw", windows[:, :, ::stride, ::stride], kernel)


def normalised(x, state, name):
    mean, var, scale, bias = (
        state[f"{name}.{part}"][:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def padded_resnet(state, x, blocks):
    """He et al.'s network for CIFAR, from a state dictionary, in numpy."""
    x = convolved(x, state["conv1.weight"], 1)
    x = np.maximum(normalised(x, state, "bn1"), 0)
    for stage in (1, 2, 3):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = convolved(x, state[f"{name}.conv1.weight"], stride)
            y = np.maximum(normalised(y, state, f"{name}.bn1"), 0)
            y = convolved(y, state[f"{name}.conv2.weight"], 1)
            y = normalised(y, state, f"{name}.bn2")
            shortcut = np.zeros_like(y)
            first = (y.shape[1] - x.shape[1]) // 2
            shortcut[:, first : first + x.shape[1]] = x[:, :, ::stride, ::stride]
            x = np.maximum(y + shortcut, 0)
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def test_padded_shortcuts_add_zeros_on_both_sides():
    net = resnet.ResNet20(3, 0.25, blocks=2, padded=True)
    params, x = variables(net, (9, 8, 3), 3), images(2, (9, 8, 3))
    state = {k: v.astype(np.float64) for k, v in from_flax(net, params).items()}
    expected = padded_resnet(state, x.transpose(0, 3, 1, 2).astype(np.float64), 2)
    assert relative_error(net.apply(params, x), expected) < 1e-5


def test_one_stream_runs_through_padded_stages():
    spec = resnet.spec(resnet.ResNet20(10, padded=True))
    streams = {name: size for name, size in spec.sizes.items() if "stage" in name}
    assert streams == {
        **{"stage1": 16, "stage2/before": 8, "stage2/after": 8},
        **{"stage3/before": 16, "stage3/after": 16},
    }
    sides = "stage3/before", "stage2/before", "stage1", "stage2/after", "stage3/after"
    produced = zipjax.Sum(tuple(zipjax.Axis(perm, "out") for perm in sides))
    assert spec.entries["params/layer3_2/bn2/scale"] == (produced,)


def rewired(widths):
    """A padded network, its merge with a permuted copy, and a batch."""
    net, x = resnet.ResNet20(3, 0.25, blocks=1, padded=True), images(4, (8, 8, 3))
    spec, params = resnet.spec(net), variables(net, (8, 8, 3), 3)
    # Unit k goes to merged unit k; the last ones stay apart where there is room.
    assignments = {}
    for perm, size in spec.sizes.items():
        apart = widths.get(perm, size) - size
        own = np.arange(size)
        assignments[perm] = np.append(own, np.where(own < apart, size + own, own))
    return net, params, spec, assignments, x


PADS = ("stage2/before", "stage2/after")


@pytest.mark.parametrize("added", [(1, 1), (2, 2)])
def test_padded_networks_widen_alike_on_both_sides(added):
    widths = {perm: 2 + more for perm, more in zip(PADS, added, strict=True)}
    net, params, spec, assignments, x = rewired(widths)
    merged = zipjax.merge_units([params, params], spec, assignments)
    assert {perm: merged.spec.sizes[perm] for perm in PADS} == widths
    expected = net.apply(params, x)
    assert relative_error(net.apply(merged.params(), x), expected) < 1e-5


@pytest.mark.parametrize("added", [(0, 2), (2, 1)])
def test_padded_networks_that_widen_on_one_side_are_refused(added):
    widths = {perm: 2 + more for perm, more in zip(PADS, added, strict=True)}
    _, params, spec, assignments, _ = rewired(widths)
    before, after = widths.values()
    message = (
        rf"'stage2/before' and 'stage2/after' would have {before} and {after} units "
        rf"instead of 2 and 2.*'stage2/after': {before}\}}"
    )
    models = [params, params]
    with pytest.raises(ValueError, match=message):
        zipjax.merge_units(models, spec, assignments)
    recipe = zipjax.weight_zip(num_units=widths)
    with pytest.raises(ValueError, match=message):
        zipjax.match(models, spec, recipe, key=jax.random.key(0))
    # The pairs are not lost on the way.
    again = zipjax.PermutationSpec.from_json(spec.to_json())
    assert again == spec
    assert spec.only(spec.perms).paired == spec.paired
    with pytest.raises(ValueError, match=message):
        again.resize(widths)


def test_widths_that_differ_by_an_odd_number_are_padded_more_behind():
    net = resnet.ResNet20(3, 0.07, blocks=1, padded=True)  # 1, 2 and 4 channels.
    spec = resnet.spec(net)
    # The only one is no unit: with more, some would come before.
    assert not any(perm.startswith("stage2") for perm in spec.sizes)
    assert spec.entries["params/layer2_0/bn2/scale"][0].parts[-1] == zipjax.Fixed(1)
    spec.validate(jax.eval_shape(lambda: variables(net, (8, 8, 3), 0)))


def test_padded_shortcuts_and_groups_have_no_declared_spec():
    with pytest.raises(ValueError, match=r"groups = 2 .*zipjax.infer_spec"):
        resnet.spec(resnet.ResNet20(3, 0.25, groups=2, padded=True))
