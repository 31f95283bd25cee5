"""What other libraries call the parameters of ``zipjax.models``: one table a network.

A naming is a list of rules (pattern, replacement), regular expressions that turn the
path of a parameter here, such as "params/layer1_0/conv1/kernel", into its key there,
"layer1.0.conv1.weight". All rules are applied, in order; "/" becomes "." at the end.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn

from zipjax.models import mlp, resnet, swin, vgg, vit
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import Shape

Rules = list[tuple[str, str]]
Shapes = Mapping[str, Shape]

_EVERYWHERE: Rules = [
    (r"^batch_stats/(.*)/(mean|var)$", r"\1/running_\2"),
    (r"^params/", ""),
    (r"/(kernel|scale)$", "/weight"),
]
# timm's: one nn.Sequential, ReLUs counted, and the last norm behind it.
_DEEP_STEM: Rules = [
    ("^conv1/", "conv1/0/"), ("^bn1/", "conv1/1/"),
    ("^conv2/", "conv1/3/"), ("^bn2/", "conv1/4/"),
    ("^conv3/", "conv1/6/"), ("^bn3/", "bn1/"),
]  # fmt: skip


def _nothing_flattened(model: nn.Module) -> tuple[str, int]:
    return "", 1


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How to convert the networks of one class.

    Attributes:
      spec: ``spec(model)`` declares the paths of all parameters.
      namings: ``namings(model)`` returns rules by library, the usual one first.
      image: ``image(model, shapes)`` returns the shape of an input for which the model
        has parameters of these shapes, given by path and with PyTorch's order of axes.
      flattened: ``flattened(model)`` returns the path of the Dense kernel that reads a
        flattened image, and the side of that image.
    """

    spec: Callable[[Any], PermutationSpec]
    namings: Callable[[Any], Mapping[str, Rules]]
    image: Callable[[Any, Shapes], Shape]
    flattened: Callable[[Any], tuple[str, int]] = _nothing_flattened


def _mlp(model: mlp.MLP) -> dict[str, Rules]:
    """Layers of an ``nn.Sequential``, ReLUs counted, with or without a Flatten."""
    layers = [*(f"dense_{number}" for number in range(len(model.hidden))), "head"]

    def numbered(first: int) -> Rules:
        return [(f"^{name}/", f"{first + 2 * k}/") for k, name in enumerate(layers)]

    return {"sequential": numbered(0), "flatten": numbered(1)}


def _resnet(model: resnet.ResNet20 | resnet.ResNet) -> dict[str, Rules]:
    blocks = (r"^layer(\d+)_(\d+)/", r"layer\1/\2/")
    deep = isinstance(model, resnet.ResNet) and model.deep
    first = 1 if deep else 0  # Of a deep one's shortcut, number 0 is the pooling.

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
    """Convolutions, norms, ReLUs and poolings are numbered through."""
    rules, number = [], 0
    for name, _ in model.convolutions:
        if name.endswith("_1") and name != "1_1":
            number += 1  # The pooling before it.
        rules.append((f"^conv{name}/", f"features/{number}/"))
        rules.append((f"^bn{name}/", f"features/{number + 1}/"))
        number += 3 if model.batch_norm else 2
    # A ReLU and a Dropout follow each hidden layer; a head alone has no number.
    layers = [*(f"fc{k + 1}" for k in range(len(model.hidden))), "head"]
    places = [f"/{3 * k}" for k in range(len(layers))] if model.hidden else [""]
    for name, place in zip(layers, places, strict=True):
        rules.append((f"^{name}/", f"classifier{place}/"))
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
        # The files to download have kept the names of before.
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
        # The authors' own, and timm's before 0.9: a stage ends with the merging.
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


def _mlp_image(model: mlp.MLP, shapes: Shapes) -> Shape:
    return (_channels(shapes, "dense_0" if model.hidden else "head"),)


def _resnet_image(model: resnet.ResNet20 | resnet.ResNet, shapes: Shapes) -> Shape:
    return (8, 8, _channels(shapes, "conv1"))


def _vgg_image(model: vgg.VGG, shapes: Shapes) -> Shape:
    side = 2 ** len(model.stages)
    return (side, side, _channels(shapes, "conv1_1"))


def _vit_image(model: vit.ViT, shapes: Shapes) -> Shape:
    # All patches in one row: their number is all that matters.
    patches = max(shapes["params/pos_embed"][1] - model.class_token, 1)
    return (model.patch, patches * model.patch, _channels(shapes, "patch_embed"))


def _swin_image(model: swin.Swin, shapes: Shapes) -> Shape:
    """The windows of small images are smaller, those of the last stage first."""
    last = len(model.depths) - 1
    rows = shapes[f"params/layers_{last}_0/attn/relative_position_bias_table"][0]
    window = min((math.isqrt(rows) + 1) // 2, model.window)
    side = model.patch * 2**last * max(window, 1)
    return (side, side, _channels(shapes, "patch_embed"))


def _channels(shapes: Shapes, layer: str) -> int:
    return shapes[f"params/{layer}/kernel"][1]


def _vgg_flattened(model: vgg.VGG) -> tuple[str, int]:
    return f"params/{'fc1' if model.hidden else 'head'}/kernel", model.pool


_ARCHITECTURES: dict[type[nn.Module], Architecture] = {
    mlp.MLP: Architecture(mlp.spec, _mlp, _mlp_image),
    resnet.ResNet20: Architecture(resnet.spec, _resnet, _resnet_image),
    resnet.ResNet: Architecture(resnet.spec, _resnet, _resnet_image),
    vgg.VGG: Architecture(vgg.spec, _vgg, _vgg_image, _vgg_flattened),
    vit.ViT: Architecture(vit.spec, _vit, _vit_image),
    swin.Swin: Architecture(swin.spec, _swin, _swin_image),
}


def keys(rules: Rules, paths: Iterable[str]) -> dict[str, str]:
    """Returns the key of every path."""

    def key(path: str) -> str:
        for pattern, replacement in [*_EVERYWHERE, *rules]:
            path = re.sub(pattern, replacement, path)
        return path.replace("/", ".")

    return {path: key(path) for path in paths}


def architecture(model: nn.Module) -> Architecture:
    """Returns how to convert a model.

    Raises:
      ValueError: if it is of no known class.
    """
    for known, found in _ARCHITECTURES.items():
        if isinstance(model, known):
            return found
    names = ", ".join(known.__name__ for known in _ARCHITECTURES)
    raise ValueError(
        f"no names are known for a {type(model).__name__}: pass a network of "
        f"zipjax.models ({names}), or convert the parameters by hand"
    )
