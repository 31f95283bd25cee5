"""Other libraries' names for the parameters of ``zipjax.models``, network by network.

A naming is a list of rules (pattern, replacement): regular expressions that turn the
path of a parameter here, such as "params/layer1_0/conv1/kernel", into its key there,
"layer1.0.conv1.weight". All rules are applied, in order; finally "/" becomes ".".
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn

from zipjax.models import deeplab, mlp, resnet, swin, taskonomy, vgg, vit
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import Shape

Rules = list[tuple[str, str]]
ParamShapes = Mapping[str, Shape]

_EVERYWHERE: Rules = [
    (r"^batch_stats/(.*)/(mean|var)$", r"\1/running_\2"),
    (r"^params/", ""),
    (r"/(kernel|scale)$", "/weight"),
]
# timm's deep stem: an nn.Sequential, in which ReLUs count, followed by the last norm.
_DEEP_STEM: Rules = [
    ("^conv1/", "conv1/0/"), ("^bn1/", "conv1/1/"),
    ("^conv2/", "conv1/3/"), ("^bn2/", "conv1/4/"),
    ("^conv3/", "conv1/6/"), ("^bn3/", "bn1/"),
]  # fmt: skip


def _nothing_flattened(model: nn.Module) -> tuple[str, int]:
    return "", 1


@dataclasses.dataclass(frozen=True)
class Conversion:
    """How to convert the parameters of one class of networks.

    Attributes:
      spec: ``spec(model)`` returns a permutation spec, which has all parameters' paths.
      namings: ``namings(model)`` returns rules by library, the usual one first.
      image: ``image(model, shapes)`` returns the shape of an input for which the model
        has parameters of these shapes, given by path and with PyTorch's order of axes.
      flattened: ``flattened(model)`` returns the path of the Dense kernel that reads a
        flattened image, and the side of that image.
    """

    spec: Callable[[Any], PermutationSpec]
    namings: Callable[[Any], Mapping[str, Rules]]
    image: Callable[[Any, ParamShapes], Shape]
    flattened: Callable[[Any], tuple[str, int]] = _nothing_flattened


def _mlp(model: mlp.MLP) -> dict[str, Rules]:
    """Returns the names of an ``nn.Sequential``, with or without a Flatten first."""
    layers = [*(f"dense_{number}" for number in range(len(model.hidden))), "head"]

    def numbered(first: int) -> Rules:
        return [(f"^{name}/", f"{first + 2 * k}/") for k, name in enumerate(layers)]

    return {"sequential": numbered(0), "flatten": numbered(1)}


def _resnet(model: resnet.ResNet20 | resnet.ResNetStages) -> dict[str, Rules]:
    blocks = (r"^layer(\d+)_(\d+)/", r"layer\1/\2/")
    deep = isinstance(model, resnet.ResNetStages) and model.deep
    first = 1 if deep else 0  # A deep network's shortcut has the pooling as number 0.

    def named(shortcut: str, head: str) -> Rules:
        return [
            blocks,
            *(_DEEP_STEM if deep else []),
            ("shortcut_conv", f"{shortcut}/{first}"),
            ("shortcut_bn", f"{shortcut}/{first + 1}"),
            ("^(linear|fc)/", f"{head}/"),
        ]

    zipit = {"zipit": named("shortcut", "linear")}
    torchvision = {"torchvision": named("downsample", "fc")}
    if isinstance(model, resnet.ResNet20):
        return zipit | torchvision
    return torchvision | zipit


def _vgg(model: vgg.VGG) -> dict[str, Rules]:
    """Returns names in which convolutions, norms, ReLUs and poolings are numbered."""
    rules, number = [], 0
    for name, _ in model.convolutions:
        if name.endswith("_1") and name != "1_1":
            number += 1  # The pooling before the stage.
        rules.append((f"^conv{name}/", f"features/{number}/"))
        rules.append((f"^bn{name}/", f"features/{number + 1}/"))
        number += 3 if model.batch_norm else 2
    # Each hidden layer is followed by a ReLU and a Dropout; a lone head has no number.
    layers = [*(f"fc{k + 1}" for k in range(len(model.hidden))), "head"]
    numbers = [f"/{3 * k}" for k in range(len(layers))] if model.hidden else [""]
    for name, suffix in zip(layers, numbers, strict=True):
        rules.append((f"^{name}/", f"classifier{suffix}/"))
    return {"torchvision": rules}


def _vit(model: vit.ViT) -> dict[str, Rules]:
    timm = [
        (r"^blocks_(\d+)/", r"blocks/\1/"),
        ("^patch_embed/", "patch_embed/proj/"),
        *([] if model.class_token else [("^norm/", "fc_norm/")]),
    ]
    torchvision = [
        (r"^blocks_(\d+)/", r"encoder/layers/encoder_layer_\1/"),
        ("^patch_embed/", "conv_proj/"),
        ("^cls_token$", "class_token"),
        ("^pos_embed$", "encoder/pos_embedding"),
        ("/norm([12])/", r"/ln_\1/"),
        ("/attn/qkv/", "/self_attention/in_proj_"),
        ("/attn/proj/", "/self_attention/out_proj/"),
        ("^norm/", "encoder/ln/"),
        ("^head/", "heads/head/"),
    ]
    return {
        "timm": timm,
        "torchvision": [*torchvision, ("/fc1/", "/0/"), ("/fc2/", "/3/")],
        # The files to download still have the former names.
        "torchvision 0.12": [*torchvision, (r"/fc([12])/", r"/linear_\1/")],
    }


def _swin(model: swin.Swin) -> dict[str, Rules]:
    later = range(1, len(model.depths))
    common = [
        (r"^layers_(\d+)_(\d+)/", r"layers/\1/blocks/\2/"),
        ("^patch_embed/", "patch_embed/proj/"),
        ("^patch_norm/", "patch_embed/norm/"),
    ]
    return {
        "timm": [
            *common,
            (r"^downsample_(\d+)/", r"layers/\1/downsample/"),
            ("^head/", "head/fc/"),
        ],
        # Those of the authors and of timm before 0.9: a stage ends with the merging.
        "microsoft": [
            *common,
            *((f"^downsample_{k}/", f"layers/{k - 1}/downsample/") for k in later),
        ],
        "torchvision": [
            *((f"^layers_{k}_", f"features/{2 * k + 1}/") for k in [0, *later]),
            *((f"^downsample_{k}/", f"features/{2 * k}/") for k in later),
            ("^patch_embed/", "features/0/0/"),
            ("^patch_norm/", "features/0/2/"),
            ("/fc1/", "/0/"),
            ("/fc2/", "/3/"),
        ],
    }


def _deeplab(model: deeplab.DeepLabV3) -> dict[str, Rules]:
    """Returns names in which the heads' layers, ReLUs and Dropouts are numbered."""
    pool = len(model.rates) + 1
    heads = [
        ("^(aux_)?classifier/", r"\1classifier/4/"),
        (r"^aspp(\d+)/", r"classifier/0/convs/\1/0/"),
        (r"^aspp(\d+)_bn/", r"classifier/0/convs/\1/1/"),
        # The pooling before them counts.
        ("^aspp_pool/", f"classifier/0/convs/{pool}/1/"),
        ("^aspp_pool_bn/", f"classifier/0/convs/{pool}/2/"),
        ("^project/", "classifier/0/project/0/"),
        ("^project_bn/", "classifier/0/project/1/"),
        ("^hidden/", "classifier/1/"),
        ("^hidden_bn/", "classifier/2/"),
        ("^aux_hidden/", "aux_classifier/0/"),
        ("^aux_hidden_bn/", "aux_classifier/1/"),
    ]
    trunk = ("^(?!classifier/|aux_classifier/)", "backbone/")
    return {"torchvision": [*_resnet(model)["torchvision"], *heads, trunk]}


_Taskonomy = (
    taskonomy.TaskonomyEncoder
    | taskonomy.DenseDecoder
    | taskonomy.ClassDecoder
    | taskonomy.EncoderDecoder
)


def _taskonomy(model: _Taskonomy) -> dict[str, Rules]:
    """Returns the names of visualpriors, in which paddings and croppings count."""
    rules = [
        (r"(^|/)layer(\d+)_(\d+)/", r"\1layer\2/\3/"),
        ("/shortcut_conv/", "/downsample/0/"),
        ("/shortcut_bn/", "/downsample/1/"),
    ]
    pair = isinstance(model, taskonomy.EncoderDecoder)
    decoder, inside = (model.decoder, "decoder/") if pair else (model, "")
    if isinstance(decoder, taskonomy.DenseDecoder):
        for name in decoder.layers:
            layer, norm = (1, 3) if taskonomy.is_transposed(name) else (0, 1)
            after = taskonomy.norm_of(name)
            rules.append((f"^{inside}{name}/", f"{inside}{name}/{layer}/"))
            rules.append((f"^{inside}{after}/", f"{inside}{name}/{norm}/"))
        last = f"{inside}decoder_output/"
        rules.append((f"^{last}", f"{last}0/"))
    return {"visualpriors": rules}


def _mlp_image(model: mlp.MLP, shapes: ParamShapes) -> Shape:
    return (_channels(shapes, "dense_0" if model.hidden else "head"),)


def _resnet_image(model: nn.Module, shapes: ParamShapes) -> Shape:
    return (8, 8, _channels(shapes, "conv1"))


def _vgg_image(model: vgg.VGG, shapes: ParamShapes) -> Shape:
    side = 2 ** len(model.stages)
    return (side, side, _channels(shapes, "conv1_1"))


def _vit_image(model: vit.ViT, shapes: ParamShapes) -> Shape:
    # All patches in one row, since only their number matters.
    patches = max(shapes["params/pos_embed"][1] - model.class_token, 1)
    return (model.patch, patches * model.patch, _channels(shapes, "patch_embed"))


def _swin_image(model: swin.Swin, shapes: ParamShapes) -> Shape:
    """Returns the smallest image that gives the last stage's windows their size."""
    last = len(model.depths) - 1
    rows = shapes[f"params/layers_{last}_0/attn/relative_position_bias_table"][0]
    window = min((math.isqrt(rows) + 1) // 2, model.window)
    side = model.patch * 2**last * max(window, 1)
    return (side, side, _channels(shapes, "patch_embed"))


def _taskonomy_image(model: _Taskonomy, shapes: ParamShapes) -> Shape:
    """Returns an image, or for a decoder alone the code of one."""
    if isinstance(model, taskonomy.ClassDecoder):
        return (model.side, model.side, _channels(shapes, "fc0") // model.side**2)
    if isinstance(model, taskonomy.DenseDecoder):
        return (1, 1, _channels(shapes, "conv2"))
    if isinstance(model, taskonomy.TaskonomyEncoder):
        return (taskonomy.SHRINKAGE,) * 2 + (_channels(shapes, "conv1"),)
    of_classes = isinstance(model.decoder, taskonomy.ClassDecoder)
    side = taskonomy.SHRINKAGE * (model.decoder.side if of_classes else 1)
    return (side, side, _channels(shapes, "encoder/conv1"))


def _channels(shapes: ParamShapes, layer: str) -> int:
    return shapes[f"params/{layer}/kernel"][1]


def _vgg_flattened(model: vgg.VGG) -> tuple[str, int]:
    return f"params/{'fc1' if model.hidden else 'head'}/kernel", model.pool


_CONVERSIONS: dict[type[nn.Module], Conversion] = {
    mlp.MLP: Conversion(mlp.spec, _mlp, _mlp_image),
    resnet.ResNet20: Conversion(resnet.spec, _resnet, _resnet_image),
    resnet.ResNet: Conversion(resnet.spec, _resnet, _resnet_image),
    vgg.VGG: Conversion(vgg.spec, _vgg, _vgg_image, _vgg_flattened),
    vit.ViT: Conversion(vit.spec, _vit, _vit_image),
    swin.Swin: Conversion(swin.spec, _swin, _swin_image),
    deeplab.DeepLabV3: Conversion(deeplab.spec, _deeplab, _resnet_image),
    **dict.fromkeys(
        _Taskonomy.__args__,
        Conversion(taskonomy.spec, _taskonomy, _taskonomy_image),
    ),
}


def keys(rules: Rules, paths: Iterable[str]) -> dict[str, str]:
    """Returns the key of every path, made by the rules of a naming."""

    def key(path: str) -> str:
        for pattern, replacement in [*_EVERYWHERE, *rules]:
            path = re.sub(pattern, replacement, path)
        return path.replace("/", ".")

    return {path: key(path) for path in paths}


def conversion(model: nn.Module) -> Conversion:
    """Returns how to convert a model's parameters.

    Raises:
      ValueError: if the model's class is unknown.
    """
    for known, found in _CONVERSIONS.items():
        if isinstance(model, known):
            return found
    names = ", ".join(known.__name__ for known in _CONVERSIONS)
    raise ValueError(
        f"no names are known for a {type(model).__name__}: pass a network of "
        f"zipjax.models ({names}), or convert the parameters by hand"
    )
