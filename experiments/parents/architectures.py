"""The networks that a config can name, each with its declared permutation spec."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

import zipjax
from experiments.data.splits import LABEL
from zipjax.models import deeplab, mlp, resnet, swin, taskonomy, vit


class Architecture(NamedTuple):
    """A kind of network.

    Attributes:
      make: makes the network from its sizes.
      spec: makes the permutation spec of a network.
      smallest: the smallest sizes that it works with.
      classifier: of networks that label every pixel, makes the classifier with the
        same backbone; None: the network is a classifier itself.
    """

    make: Callable[..., nn.Module]
    spec: Callable[[Any], zipjax.PermutationSpec]
    smallest: Mapping[str, Any]
    classifier: Callable[[Any], nn.Module] | None = None


_BODIES = {"basic": resnet.basic, "bottleneck": resnet.bottleneck}


def _deeplab(
    outputs: int,
    *,
    depths: tuple[int, ...],
    body: str = "bottleneck",
    width: float = 1.0,
    groups: int | None = None,
    output_stride: int = 8,
    hidden: int = 256,
    rates: tuple[int, ...] = (12, 24, 36),
) -> deeplab.DeepLabV3:
    """Makes a segmenter, whose kind of residual blocks has a name."""
    backbone = depths, _BODIES[body], width, groups, False, output_stride
    return deeplab.DeepLabV3(outputs, *backbone, hidden, rates)


def _backbones_classifier(network: deeplab.DeepLabV3) -> resnet.ResNet:
    """Makes the classifier whose backbone is a segmenter's, dilations included."""
    backbone = network.depths, network.body, network.width, network.groups
    return resnet.ResNet(
        network.outputs, *backbone, network.deep, network.output_stride
    )


def _resnet_spec(
    network: deeplab.DeepLabV3 | resnet.ResNet,
) -> zipjax.PermutationSpec:
    if isinstance(network, deeplab.DeepLabV3):
        return deeplab.spec(network)
    return resnet.spec(network)


def _resnet50(
    outputs: int,
    *,
    depths: tuple[int, ...] = (3, 4, 6, 3),
    width: float = 1.0,
    groups: int | None = None,
) -> resnet.ResNet:
    """Makes a ResNet-50, or one of the same blocks with other depths."""
    return resnet.ResNet(outputs, depths, width=width, groups=groups)


def _encoder_decoder(
    outputs: int,
    *,
    decoder: str = "dense",
    side: int = 16,
    width: float = 1.0,
    depths: tuple[int, ...] = (3, 4, 6, 3),
    code: int = 8,
    decoder_width: float = 1.0,
    decoder_least: int = 1,
    hidden: int = 2048,
) -> taskonomy.EncoderDecoder:
    """Makes Taskonomy's network for a task.

    Args:
      outputs: number of channels or classes.
      decoder: "dense" for images between -1 and 1, "logits" for classes of pixels,
        "classes" for classes of images.
      side: side of the code, that of the image divided by 16.
      width: of the encoder.
      depths: of its stages.
      code: its channels.
      decoder_width: of decoders of images.
      decoder_least: the fewest channels of these decoders' layers.
      hidden: the hidden width of decoders of classes.
    """
    encoder = taskonomy.TaskonomyEncoder(width, depths, code)
    if decoder == "classes":
        classes = taskonomy.ClassDecoder(outputs, hidden, side)
        return taskonomy.EncoderDecoder(encoder, classes)
    bounded = decoder == "dense"
    dense = taskonomy.DenseDecoder(outputs, decoder_width, bounded, decoder_least)
    return taskonomy.EncoderDecoder(encoder, dense)


ARCHITECTURES = {
    "mlp": Architecture(mlp.MLP, mlp.spec, {"hidden": (8, 8)}),
    "resnet20": Architecture(
        resnet.ResNet20, resnet.spec, {"width": 0.25, "groups": 2, "blocks": 1}
    ),
    "resnet50": Architecture(
        _resnet50, resnet.spec, {"depths": (1, 1), "width": 1 / 16, "groups": 2}
    ),
    "vit": Architecture(vit.ViT, vit.spec, {"width": 8, "depth": 1, "heads": 2}),
    "swin": Architecture(
        swin.Swin, swin.spec, {"width": 8, "depths": (1, 1), "heads": (2, 2)}
    ),
    "deeplab": Architecture(
        _deeplab,
        _resnet_spec,
        {"depths": (1, 1), "width": 1 / 16, "groups": 2, "hidden": 4, "rates": (1,)},
        _backbones_classifier,
    ),
    "taskonomy": Architecture(
        _encoder_decoder,
        taskonomy.spec,
        {
            "width": 1 / 16,
            "depths": (1, 1),
            "code": 2,
            "decoder_width": 1 / 16,
            "decoder_least": 1,
            "hidden": 4,
        },
    ),
}


def architecture(name: str) -> Architecture:
    """Looks up a network.

    Raises:
      ValueError: if there is no network of that name.
    """
    if name not in ARCHITECTURES:
        known = sorted(ARCHITECTURES)
        raise ValueError(f"model {name!r} is unknown: choose among {known}")
    return ARCHITECTURES[name]


def smallest(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the smallest sizes of a network that has the parts of a given one.

    Raises:
      ValueError: if there is no network of that name.
    """
    chosen = architecture(name)
    known = inspect.signature(chosen.make).parameters
    sizes = {**{k: known[k].default for k in chosen.smallest}, **options}
    least = {k: v for k, v in chosen.smallest.items() if sizes[k] is not None}
    return {**options, **least}


def build(
    name: str, options: Mapping[str, Any], outputs: int, target: str = LABEL
) -> tuple[nn.Module, zipjax.PermutationSpec]:
    """Makes a network and its spec.

    Args:
      name: a key of ``ARCHITECTURES``.
      options: the network's sizes, such as ``{"width": 2}``.
      outputs: number of outputs.
      target: what it predicts: "label", or "mask" for the classes of pixels.

    Returns:
      The network, whose ``apply`` takes variables and images, and its spec.

    Raises:
      ValueError: if there is no network of that name, or none that labels pixels.
    """
    chosen = architecture(name)
    network = chosen.make(outputs=outputs, **options)
    if target == LABEL and chosen.classifier is not None:
        network = chosen.classifier(network)
    elif target != LABEL and chosen.classifier is None:
        raise ValueError(
            f"model {name!r} classifies whole images, so that it has no {target!r}: "
            f"choose among {segmenters()}"
        )
    network = _first_equal(network)
    return network, chosen.spec(network)


def segmenters() -> list[str]:
    """Returns the names of the networks that can label every pixel."""
    return sorted(name for name, x in ARCHITECTURES.items() if x.classifier is not None)


def inferred(network: nn.Module, images: Any) -> zipjax.PermutationSpec:
    """Infers a network's spec.

    Args:
      network: the network.
      images: a batch of its inputs.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    return zipjax.infer_spec(network.apply, shapes, images)


@functools.cache
def _first_equal(network: nn.Module) -> nn.Module:
    """Returns the first of equal networks, so that its methods are compiled once."""
    return network
