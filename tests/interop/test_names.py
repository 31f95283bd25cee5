"""Names and layouts, without PyTorch: round trips, known keys, errors."""

import re

import flax.linen as nn
import jax
import numpy as np
import pytest

import zipjax
from tests.models.catalog import FULL, TINY
from tests.networks import randomise, variables
from zipjax.interop.torch import from_flax, load_state_dict, to_flax
from zipjax.models import deeplab, mlp, resnet, swin, taskonomy, vgg, vit
from zipjax.trees import nested, path_leaves

LIBRARIES = {
    mlp.MLP: ("sequential", "flatten"),
    resnet.ResNet20: ("zipit", "torchvision"),
    resnet.ResNet: ("torchvision", "zipit"),
    vgg.VGG: ("torchvision",),
    vit.ViT: ("timm", "torchvision", "torchvision 0.12"),
    swin.Swin: ("timm", "microsoft", "torchvision"),
    deeplab.DeepLabV3: ("torchvision",),
    taskonomy.TaskonomyEncoder: ("visualpriors",),
    taskonomy.DenseDecoder: ("visualpriors",),
    taskonomy.ClassDecoder: ("visualpriors",),
    taskonomy.EncoderDecoder: ("visualpriors",),
}
CASES = [
    pytest.param(network, naming, id=f"{name}-{naming}")
    for name, network in TINY.items()
    for naming in LIBRARIES[type(network.model)]
]
NET = resnet.ResNet20(outputs=3, width=0.25)


@pytest.fixture
def state():
    return from_flax(NET, variables(NET, (8, 8, 3), 0))


@pytest.mark.parametrize(("network", "naming"), CASES)
def test_there_and_back_is_the_identity(network, naming):
    expected = randomise(network.shapes, 0)
    state = from_flax(network.model, expected, naming=naming)
    found = to_flax(network.model, state)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for path, leaf in path_leaves(expected).items():
        np.testing.assert_array_equal(path_leaves(found)[path], leaf)
    again = from_flax(network.model, found, naming=naming)
    assert list(again) == list(state)
    for key, value in state.items():
        assert value.flags.c_contiguous
        assert value.flags.writeable
        np.testing.assert_array_equal(again[key], value)
    if naming == LIBRARIES[type(network.model)][0]:
        assert list(from_flax(network.model, found)) == list(state)
    counted = {key: state[key] for key in state if key.endswith("tracked")}
    assert {v.dtype.name for v in counted.values()} <= {"int64"}
    assert len(counted) == sum(key.endswith("running_mean") for key in state)


# Some keys of files that are published, from each part of the network.
KNOWN = {
    ("resnet20", "zipit"): (
        "bn1.running_var", "layer1.2.conv2.weight", "layer2.0.shortcut.0.weight",
        "layer3.0.shortcut.1.num_batches_tracked", "linear.bias",
    ),
    ("resnet20-padded", "zipit"): (
        "conv1.weight", "layer2.0.bn2.running_var", "layer3.2.conv2.weight",
        "linear.weight",
    ),
    ("resnet50", "torchvision"): (
        "conv1.weight", "layer1.0.downsample.0.weight", "layer3.5.bn3.running_mean",
        "layer4.0.downsample.1.bias", "fc.weight",
    ),
    ("resnet26d", "torchvision"): (
        "conv1.0.weight", "conv1.1.running_mean", "conv1.3.weight", "conv1.4.bias",
        "conv1.6.weight", "bn1.weight", "layer1.0.downsample.1.weight",
        "layer2.0.downsample.2.running_var", "layer4.1.conv3.weight",
    ),
    ("vit-small", "timm"): (
        "cls_token", "pos_embed", "patch_embed.proj.bias", "blocks.11.norm1.weight",
        "blocks.0.attn.qkv.bias", "blocks.0.attn.proj.weight", "blocks.1.mlp.fc2.bias",
        "norm.bias", "head.weight",
    ),
    ("vit-base", "torchvision"): (
        "class_token", "conv_proj.weight", "encoder.pos_embedding",
        "encoder.layers.encoder_layer_11.ln_1.weight",
        "encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
        "encoder.layers.encoder_layer_0.self_attention.in_proj_bias",
        "encoder.layers.encoder_layer_0.self_attention.out_proj.bias",
        "encoder.layers.encoder_layer_0.mlp.3.weight", "encoder.ln.bias",
        "heads.head.weight",
    ),
    ("vit-base", "torchvision 0.12"): (
        "encoder.layers.encoder_layer_0.mlp.linear_1.weight",
    ),
    ("swin-tiny", "timm"): (
        "patch_embed.norm.weight", "layers.1.downsample.reduction.weight",
        "layers.2.blocks.5.attn.relative_position_bias_table", "head.fc.weight",
    ),
    ("swin-tiny", "microsoft"): (
        "patch_embed.proj.weight", "layers.0.downsample.norm.bias",
        "layers.2.downsample.reduction.weight", "layers.3.blocks.1.mlp.fc1.weight",
        "norm.weight", "head.bias",
    ),
    ("swin-tiny", "torchvision"): (
        "features.0.0.weight", "features.0.2.weight", "features.1.1.attn.qkv.weight",
        "features.2.reduction.weight", "features.6.norm.weight",
        "features.7.1.mlp.3.bias", "head.bias",
    ),
    ("vgg16-batch", "torchvision"): (
        "features.0.weight", "features.1.running_mean", "features.40.bias",
        "features.41.running_var", "classifier.0.weight", "classifier.6.bias",
    ),
    ("vgg16", "torchvision"): ("features.0.bias", "features.28.weight"),
    ("taskonomy", "visualpriors"): (
        "encoder.conv1.weight", "encoder.bn1.running_mean",
        "encoder.layer1.0.downsample.0.weight", "encoder.layer1.2.conv2.weight",
        "encoder.layer3.5.bn3.bias", "encoder.layer4.0.downsample.1.weight",
        "encoder.compress1.weight", "encoder.compress_bn.running_var",
        "decoder.conv2.0.weight", "decoder.conv2.1.running_mean",
        "decoder.deconv8.1.weight", "decoder.deconv8.3.num_batches_tracked",
        "decoder.conv13.1.bias", "decoder.deconv14.3.weight",
        "decoder.decoder_output.0.weight", "decoder.decoder_output.0.bias",
    ),
    ("deeplab50", "torchvision"): (
        "backbone.conv1.weight", "backbone.layer4.0.downsample.1.running_var",
        "classifier.0.convs.0.0.weight", "classifier.0.convs.3.1.bias",
        "classifier.0.convs.4.1.weight", "classifier.0.convs.4.2.running_mean",
        "classifier.0.project.0.weight", "classifier.0.project.1.bias",
        "classifier.1.weight", "classifier.2.running_var", "classifier.4.bias",
        "aux_classifier.0.weight", "aux_classifier.1.bias", "aux_classifier.4.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "naming"), KNOWN)
def test_keys_of_published_files_are_among_those_written(name, naming):
    network = FULL[name]
    leaves = {p: np.zeros((1,) * len(axes)) for p, axes in network.spec.entries.items()}
    if name.startswith("vgg"):
        leaves["params/fc1/kernel"] = np.zeros((7 * 7, 1))
    state = from_flax(network.model, nested(leaves), naming=naming)
    assert not set(KNOWN[name, naming]) - set(state)


@pytest.mark.parametrize(
    "decoder",
    [taskonomy.DenseDecoder(2, 1 / 16), taskonomy.ClassDecoder(2, 5, side=1)],
    ids=["dense", "classes"],
)
def test_taskonomys_files_hold_an_encoder_or_a_decoder(decoder):
    encoder = taskonomy.TaskonomyEncoder(1 / 16, (1, 1, 1, 1), code=3)
    pair = taskonomy.EncoderDecoder(encoder, decoder)
    both = variables(pair, (16, 16, 3), 0)
    parts = {"encoder": encoder, "decoder": decoder}
    state = {
        f"{name}.{key}": value
        for name, part in parts.items()
        for key, value in from_flax(
            part, {kind: values[name] for kind, values in both.items()}
        ).items()
    }
    again = from_flax(pair, to_flax(pair, state))
    assert set(again) == set(from_flax(pair, both)) == set(state)
    for path, leaf in path_leaves(to_flax(pair, state)).items():
        np.testing.assert_array_equal(leaf, path_leaves(both)[path])


def test_a_flattened_image_is_reordered_from_channels_first():
    model = vgg.VGG(2, ((3,),), hidden=(4,), pool=2)
    state = from_flax(model, variables(model, (8, 8, 3), 0))
    kernel = np.arange(4 * 3 * 2 * 2, dtype=np.float32)
    state["classifier.0.weight"] = kernel.reshape(4, 3 * 2 * 2)
    found = to_flax(model, state)["params"]["fc1"]["kernel"]
    torch_image = np.zeros((3, 2, 2), np.float32)
    torch_image[2, 0, 1] = 1  # Channel 2 at the top right.
    row = state["classifier.0.weight"] @ torch_image.reshape(-1)
    flax_image = torch_image.transpose(1, 2, 0)
    np.testing.assert_array_equal(flax_image.reshape(-1) @ found, row)


def test_the_shared_checkpoints_go_both_ways(shared):
    path = shared / "checkpoints" / "cifar10_5v5" / "model_a.safetensors"
    pytest.importorskip("safetensors", reason="needs the extra [torch]")
    model, state = resnet.ResNet20(384, width=2.0), load_state_dict(path)
    again = from_flax(model, to_flax(model, state))
    assert set(again) == set(state)
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(again[key], value)


def test_merged_networks_of_other_widths_go_back():
    net = vgg.VGG(2, ((4,), (3,)), hidden=(5,), pool=2, batch_norm=True)
    models = [variables(net, (8, 8, 3), seed) for seed in (0, 1)]
    # Eight units to six, six to two, ten to seven.
    widths = {"conv1_1": (8, 6), "conv2_1": (6, 2), "fc1": (10, 7)}
    assignments = {perm: np.arange(n) % m for perm, (n, m) in widths.items()}
    merged = zipjax.merge_units(models, vgg.spec(net), assignments).params()
    state = from_flax(net, merged)
    assert state["features.4.weight"].shape == (2, 6, 3, 3)
    assert state["classifier.0.weight"].shape == (7, 2 * 2 * 2)
    wide = vgg.VGG(2, ((6,), (2,)), hidden=(7,), pool=2, batch_norm=True)
    for path, leaf in path_leaves(to_flax(wide, state)).items():
        np.testing.assert_array_equal(leaf, path_leaves(merged)[path])
    with pytest.raises(
        ValueError, match=r"'features.0.weight' has shape \[6, 3, 3, 3\]"
    ):
        to_flax(net, state)


@pytest.mark.parametrize("library", ["timm", "ZipIt"])
def test_unknown_namings_are_refused(library):
    with pytest.raises(ValueError, match=f"'{library}'.*'zipit', 'torchvision'"):
        from_flax(NET, variables(NET, (8, 8, 3), 0), naming=library)


def test_all_keys_that_differ_are_in_the_message(state):
    del state["layer1.0.conv1.weight"], state["linear.bias"]
    state |= {"extra.weight": np.zeros(2), "extra.bias": np.zeros(2)}
    wanted = (
        "zipit: missing ['layer1.0.conv1.weight', 'linear.bias']; "
        "unexpected ['extra.bias', 'extra.weight']"
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        to_flax(NET, state)


def test_the_difference_is_to_the_names_of_the_nearest_library(state):
    other = from_flax(NET, to_flax(NET, state), naming="torchvision")
    other["fc.scale"] = other.pop("fc.bias")
    with pytest.raises(ValueError, match=r"of torchvision: missing \['fc.bias'\]"):
        to_flax(NET, other)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (
            "linear.weight",
            (3, 17),
            r"\[3, 17\].*'params/linear/kernel' needs \[3, 16\]",
        ),
        ("conv1.weight", (8, 3, 3, 3), r"\[8, 3, 3, 3\].* needs \[4, 3, 3, 3\]"),
        ("conv1.weight", (4, 27), r"\[4, 27\], but 4 axes"),
        ("bn1.running_var", (), r"\[\], but 1 axes"),
    ],
)
def test_other_shapes_are_refused_with_the_key_and_both_shapes(
    state, key, shape, message
):
    state[key] = np.zeros(shape)
    with pytest.raises(ValueError, match=f"'{key}' has shape {message}"):
        to_flax(NET, state)


def test_a_flattened_image_of_another_size_is_refused():
    net = vgg.VGG(2, ((4,),), hidden=(5,), pool=2)
    state = from_flax(net, variables(net, (8, 8, 3), 0))
    state["classifier.0.weight"] = np.zeros((5, 15))
    with pytest.raises(ValueError, match=r"\[5, 15\].* needs \[5, 16\]"):
        to_flax(net, state)


def test_a_table_of_another_window_is_refused():
    net = TINY["swin"].model
    state = from_flax(net, randomise(TINY["swin"].shapes, 0))
    for key in state:
        if key.endswith("table"):
            state[key] = np.zeros((25, state[key].shape[1]))
    with pytest.raises(
        ValueError, match=r"table' has shape \[25, 2\].* needs \[9, 2\]"
    ):
        to_flax(net, state)


def test_buffers_are_ignored(state):
    expected = path_leaves(to_flax(NET, state))
    state = {key: value for key, value in state.items() if "tracked" not in key}
    state |= {"layer1.0.attn_mask": np.zeros(2), "relative_position_index": np.ones(1)}
    for path, leaf in path_leaves(to_flax(NET, state)).items():
        np.testing.assert_array_equal(leaf, expected[path])


@pytest.mark.parametrize(
    "wrap",
    [
        "module.{}",
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "module.module.{}",
    ],
)
def test_prefixes_of_wrapped_modules_are_ignored(state, wrap):
    expected = path_leaves(to_flax(NET, state))
    wrapped = {wrap.format(key): value for key, value in state.items()}
    # As torch.optim.swa_utils.AveragedModel counts.
    wrapped["n_averaged"] = np.zeros((), np.int64)
    for path, leaf in path_leaves(to_flax(NET, wrapped)).items():
        np.testing.assert_array_equal(leaf, expected[path])


def test_compiled_parts_are_unwrapped(state):
    expected = path_leaves(to_flax(NET, state))
    wrapped = {
        re.sub(r"^(layer1\.0|bn1)\.", r"\1._orig_mod.", key): value
        for key, value in state.items()
    }
    assert set(wrapped) != set(state)
    for path, leaf in path_leaves(to_flax(NET, wrapped)).items():
        np.testing.assert_array_equal(leaf, expected[path])


def test_two_networks_in_one_dictionary_are_refused(state):
    both = state | {f"module.{key}": value for key, value in state.items()}
    with pytest.raises(ValueError, match=r"'module\.\S+' is .* there is another"):
        to_flax(NET, both)


def test_variables_of_another_network_are_refused(state):
    params = {"params": to_flax(NET, state)["params"]}
    with pytest.raises(ValueError, match=r"ResNet20: missing.*batch_stats/\* \(42"):
        from_flax(NET, params)
    group = resnet.ResNet20(outputs=3, width=0.25, groups=2)
    params["params"]["conv1"]["kernel"] = np.zeros((3, 3))
    with pytest.raises(ValueError, match=r"'params/conv1/kernel' has shape \[3, 3\]"):
        from_flax(group, params)


def test_other_modules_are_refused():
    with pytest.raises(ValueError, match=r"Dense.*zipjax.models \(MLP, ResNet20"):
        to_flax(nn.Dense(3), {})


@pytest.mark.parametrize(
    ("value", "message"), [([0.0], "a list"), ("text", "a str"), (3, "a int")]
)
def test_values_that_are_no_tensors_are_refused(state, value, message):
    with pytest.raises(ValueError, match=f"'epoch' in .* is {message}, not a tensor"):
        to_flax(NET, state | {"epoch": value})
