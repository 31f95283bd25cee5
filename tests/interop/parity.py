"""Our side of the parity tests, and what was recorded of PyTorch's.

Parameters are not recorded: both sides draw them from the names and shapes of the keys.
"""

import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.networks import images
from zipjax.models import deeplab, mlp, resnet, swin, taskonomy, vgg, vit

RECORDED = Path(__file__).parent / "recorded" / "parity.npz"
OUTPUTS = 5
DEPTHS = (1, 1, 1, 1)


class Shape(NamedTuple):
    """What a state dictionary holds at a key."""

    shape: tuple[int, ...]
    dtype: str


Shapes = dict[str, Shape]


class Ours(NamedTuple):
    """A small network of ``zipjax.models`` that PyTorch packages have as well.

    Attributes:
      model: the network.
      naming: the names that its state is written with.
      side: side of the images.
    """

    model: Any
    naming: str
    side: int = 32

    def images(self) -> np.ndarray:
        """Returns two images, channels last."""
        return images(2, (self.side, self.side, 3))


ENCODER = taskonomy.TaskonomyEncoder(width=1 / 8, depths=(2, 2, 3, 1))
SMALL = {
    "resnet-basic": Ours(resnet.ResNet(OUTPUTS, DEPTHS, resnet.basic), "torchvision"),
    "resnet-padded": Ours(
        resnet.ResNet20(OUTPUTS, 0.5, blocks=2, padded=True), "zipit", side=16
    ),
    "resnet-bottleneck": Ours(resnet.ResNet(OUTPUTS, DEPTHS), "torchvision"),
    "resnet-timm-group": Ours(resnet.ResNet(OUTPUTS, DEPTHS, groups=32), "torchvision"),
    "resnet-timm-deep": Ours(
        resnet.ResNet(OUTPUTS, DEPTHS, deep=True), "torchvision", side=36
    ),
    "vgg-batch": Ours(
        vgg.VGG(OUTPUTS, ((6,), (8, 9)), (12, 10), pool=3, batch_norm=True),
        "torchvision",
    ),
    "vgg": Ours(vgg.VGG(OUTPUTS, ((6,), (8,), (7,)), (12, 10)), "torchvision"),
    "vit-timm": Ours(vit.ViT(OUTPUTS, 24, 2, 3, patch=8), "timm"),
    "vit-timm-mean": Ours(
        vit.ViT(OUTPUTS, 24, 2, 3, patch=8, class_token=False), "timm"
    ),
    "vit-torchvision": Ours(
        vit.ViT(OUTPUTS, 24, 2, 3, patch=8, hidden=40), "torchvision"
    ),
    # The last stage is smaller than a window, and so is its table.
    "swin-timm": Ours(
        swin.Swin(OUTPUTS, 12, (2, 1, 1), (2, 3, 4), window=8, patch=2), "timm"
    ),
    "swin-torchvision": Ours(
        swin.Swin(OUTPUTS, 12, (2, 1), (2, 3), window=4, patch=2), "torchvision"
    ),
    "mlp": Ours(mlp.MLP((7, 6), OUTPUTS), "flatten", side=4),
    "taskonomy-dense": Ours(
        taskonomy.EncoderDecoder(
            ENCODER, taskonomy.DenseDecoder(3, 1 / 16, bounded=False)
        ),
        "visualpriors",
    ),
    "taskonomy-classes": Ours(
        taskonomy.EncoderDecoder(ENCODER, taskonomy.ClassDecoder(OUTPUTS, 11, side=3)),
        "visualpriors",
        side=48,
    ),
    "deeplab": Ours(deeplab.DeepLabV3(OUTPUTS, DEPTHS), "torchvision", side=20),
    "deeplab-auxiliary": Ours(
        deeplab.DeepLabV3(OUTPUTS, DEPTHS, auxiliary=True), "torchvision", side=16
    ),
}
# Names of the networks in tests.models.catalog.FULL, with those of their states.
FULL = {
    "resnet18": "torchvision",
    "resnet50": "torchvision",
    "resnet26d": "torchvision",
    "resnet50-group": "torchvision",
    "vgg16-batch": "torchvision",
    "vit-small": "timm",
    "vit-base": "torchvision",
    "swin-tiny": "timm",
    "taskonomy": "visualpriors",
    "deeplab50": "torchvision",
}


def draw_state(shapes: Shapes) -> dict[str, np.ndarray]:
    """Draws a state: no parameter, scale or statistic is left as it starts."""
    return {key: _draw(key, *shape) for key, shape in shapes.items()}


def _draw(key: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if not np.issubdtype(dtype, np.floating):
        return np.zeros(shape, dtype)  # Counters, and positions that are derived.
    weight = key.endswith("weight")
    if "running_var" in key or (weight and len(shape) == 1):
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    scale = math.sqrt(2 / math.prod(shape[1:])) if weight else 0.3
    return (scale * rng.normal(size=shape)).astype(dtype)


def is_position(key: str) -> bool:
    """Whether a key holds positions that a network derives from its sizes."""
    return key.endswith("relative_position_index")


def encode(shapes: Shapes) -> np.ndarray:
    """Returns shapes as text, one line per key: "conv1.weight 64x3x7x7 float32"."""
    lines = [
        f"{key} {'x'.join(map(str, shape.shape)) or 'scalar'} {shape.dtype}"
        for key, shape in shapes.items()
    ]
    return np.array(lines)


def decode(lines: np.ndarray) -> Shapes:
    """Returns the shapes that :func:`encode` wrote."""
    shapes = {}
    for line in lines:
        key, sizes, dtype = str(line).split()
        shape = () if sizes == "scalar" else tuple(map(int, sizes.split("x")))
        shapes[key] = Shape(shape, dtype)
    return shapes
