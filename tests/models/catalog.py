"""The networks of ``zipjax.models`` with facts about their specs, derived by hand.

The number of perms:

* MLP, VGG: one for every layer but the last.
* ResNets: a residual stream for every stage; between the convolutions of every block
  one perm (basic) or two (bottleneck). The stem writes to the first stream, unless the
  first block has a shortcut convolution (bottlenecks widen at once): then it has its
  own, and a deep stem two more. Padded shortcuts leave one stream, which every stage
  but the first widens by a perm before and a perm after. GroupNorm turns every perm
  into two: the groups, and the units within a group.
* Transformers: one for every residual stream (each stage of Swin has its own); four for
  every block: the heads, within a head Q with K and V with the projection, the MLP.
* Taskonomy: the encoder's are a ResNet's. A decoder has one for every layer but the
  last, and the code is one if both its sides are there.
* DeepLabV3: a ResNet's; one for every parallel convolution and for the pooling, one for
  their projection and one for the head; one for a second head.

A partial zip may stop where no stream is open: after the stem, if it has its own perm,
and after every stage. A block of a ResNet has two or three layers, and one of a
transformer four: QKV, the projection and the MLP's two.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from zipjax.models import deeplab, mlp, resnet, swin, taskonomy, vgg, vit
from zipjax.spec.permutation_spec import PermutationSpec


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and what its spec must be like.

    Attributes:
      model: the module.
      declare: ``declare(model)`` returns the spec.
      side: side of its images.
      perms: number of perms.
      cuts: numbers of layers after which a partial zip may stop.
      layers: number of layers.
      parameters: number of parameters that its source publishes.
    """

    model: nn.Module
    declare: Callable[[Any], PermutationSpec]
    side: int
    perms: int
    cuts: tuple[int, ...]
    layers: int
    parameters: int | None = None

    @property
    def spec(self) -> PermutationSpec:
        """The declared spec."""
        return self.declare(self.model)

    @property
    def images(self) -> jax.ShapeDtypeStruct:
        """Shape of a batch."""
        return jax.ShapeDtypeStruct((2, self.side, self.side, 3), "float32")

    @property
    def shapes(self) -> Any:
        """The parameters' shapes, statistics included."""
        return jax.eval_shape(self.model.init, jax.random.key(0), self.images)


TINY_CLASSES = 3
TINY_ENCODER = taskonomy.TaskonomyEncoder(1 / 16, (1, 2, 1, 1), code=3)
TINY = {
    "mlp": Network(mlp.MLP((5, 4), TINY_CLASSES), mlp.spec, 3, 2, (1, 2), 3),
    "resnet20": Network(
        resnet.ResNet20(TINY_CLASSES, 0.25),
        resnet.spec, 8, 3 + 9, (7, 13, 19), 20,
    ),
    "resnet20-group": Network(
        resnet.ResNet20(TINY_CLASSES, 0.25, groups=2),
        resnet.spec, 8, 2 * (3 + 9), (7, 13, 19), 20,
    ),
    "resnet20-padded": Network(
        resnet.ResNet20(TINY_CLASSES, 0.25, blocks=1, padded=True),
        resnet.spec, 8, 1 + 2 * 2 + 3, (7,), 8,
    ),
    "basic": Network(
        resnet.ResNet(TINY_CLASSES, (2, 1), resnet.basic, width=1 / 16),
        resnet.spec, 16, 2 + 3, (5, 7), 8,
    ),
    "bottleneck": Network(
        resnet.ResNet(TINY_CLASSES, (1, 2), width=1 / 16),
        resnet.spec, 16, 1 + 2 + 2 * 3, (1, 4, 10), 11,
    ),
    "bottleneck-group": Network(
        resnet.ResNet(TINY_CLASSES, (1, 1), width=1 / 8, groups=4),
        resnet.spec, 16, 2 * (1 + 2 + 2 * 2), (1, 4, 7), 8,
    ),
    # An image of odd side comes before the pooling of a shortcut.
    "bottleneck-deep": Network(
        resnet.ResNet(TINY_CLASSES, (1, 1), width=1 / 16, deep=True),
        resnet.spec, 20, 3 + 2 + 2 * 2, (1, 2, 3, 6, 9), 10,
    ),
    "vgg": Network(
        vgg.VGG(TINY_CLASSES, ((4,), (5, 6)), (7, 8), pool=3),
        vgg.spec, 16, 3 + 2, (1, 2, 3, 4, 5), 6,
    ),
    "vgg-batch": Network(
        vgg.VGG(TINY_CLASSES, ((4,), (5, 6)), (7,), pool=1, batch_norm=True),
        vgg.spec, 8, 3 + 1, (1, 2, 3, 4), 5,
    ),
    "vit": Network(
        vit.ViT(TINY_CLASSES, width=12, depth=2, heads=3, patch=4, hidden=10),
        vit.spec, 8, 1 + 4 * 2, (1 + 4 * 2,), 10,
    ),
    "vit-mean": Network(
        vit.ViT(TINY_CLASSES, width=12, depth=2, heads=2, patch=4, class_token=False),
        vit.spec, 8, 1 + 4 * 2, (1 + 4 * 2,), 10,
    ),
    "swin": Network(
        swin.Swin(TINY_CLASSES, 6, depths=(2, 1), heads=(2, 3), window=2, patch=2),
        swin.spec, 8, 2 + 4 * 3, (9, 14), 15,
    ),
    # Images so small that one window holds them: it isn't shifted.
    "swin-one-window": Network(
        swin.Swin(TINY_CLASSES, 6, depths=(2,), heads=(2,), window=7, patch=2),
        swin.spec, 8, 1 + 4 * 2, (9,), 10,
    ),
    "taskonomy-encoder": Network(
        TINY_ENCODER, taskonomy.spec, 16, 1 + 4 + 2 * 5, (1, 4, 10, 13, 16), 17,
    ),
    "taskonomy-decoder": Network(
        taskonomy.DenseDecoder(2, 1 / 8),
        taskonomy.spec, 2, 13, tuple(range(1, 14)), 14,
    ),
    "taskonomy-classes": Network(
        taskonomy.ClassDecoder(2, 5, side=2), taskonomy.spec, 2, 1, (1,), 2,
    ),
    "taskonomy": Network(
        taskonomy.EncoderDecoder(TINY_ENCODER, taskonomy.ClassDecoder(2, 5, side=2)),
        taskonomy.spec, 32, 15 + 2, (1, 4, 10, 13, 16, 17, 18), 19,
    ),
    # The second head reads the last stage but one.
    "deeplab": Network(
        deeplab.DeepLabV3(
            TINY_CLASSES, (1, 1, 1), resnet.basic, 1 / 16, output_stride=4,
            hidden=5, rates=(1, 2), auxiliary=True,
        ),
        deeplab.spec, 16, 3 + 3 + 4 + 2 + 1, (3, 5, 7, 8, 9, 10), 11,
    ),
}  # fmt: skip

FULL = {
    "resnet20": Network(
        resnet.ResNet20(10), resnet.spec, 32, 3 + 9, (7, 13, 19), 20,
    ),
    "resnet20-padded": Network(
        resnet.ResNet20(10, padded=True),
        resnet.spec, 32, 1 + 2 * 2 + 9, (19,), 20, 269_722,
    ),
    "resnet20-x2-group": Network(
        resnet.ResNet20(384, 2.0, groups=8), resnet.spec, 32, 24, (7, 13, 19), 20,
    ),
    "resnet18": Network(
        resnet.resnet18(), resnet.spec, 224, 4 + 8, (5, 9, 13, 17), 18, 11_689_512,
    ),
    "resnet26": Network(
        resnet.resnet26(), resnet.spec, 224,
        1 + 4 + 2 * 8, (1, 7, 13, 19, 25), 26, 15_995_176,
    ),
    "resnet26d": Network(
        resnet.resnet26(deep=True), resnet.spec, 224,
        3 + 4 + 2 * 8, (1, 2, 3, 9, 15, 21, 27), 28, 16_014_408,
    ),
    "resnet50": Network(
        resnet.resnet50(), resnet.spec, 224,
        1 + 4 + 2 * 16, (1, 10, 22, 40, 49), 50, 25_557_032,
    ),
    "resnet50-group": Network(
        resnet.resnet50(groups=32), resnet.spec, 224,
        2 * (1 + 4 + 2 * 16), (1, 10, 22, 40, 49), 50, 25_557_032,
    ),
    "vgg11": Network(
        vgg.vgg11(), vgg.spec, 224, 8 + 2, tuple(range(1, 11)), 11, 132_863_336,
    ),
    "vgg16": Network(
        vgg.vgg16(), vgg.spec, 224, 13 + 2, tuple(range(1, 16)), 16, 138_357_544,
    ),
    "vgg16-batch": Network(
        vgg.vgg16(batch_norm=True), vgg.spec, 224,
        13 + 2, tuple(range(1, 16)), 16, 138_365_992,
    ),
    "vit-small": Network(
        vit.vit_small(), vit.spec, 224, 1 + 4 * 12, (49,), 50, 22_050_664,
    ),
    "vit-base": Network(
        vit.vit_base(), vit.spec, 224, 1 + 4 * 12, (49,), 50, 86_567_656,
    ),
    "swin-tiny": Network(
        swin.swin_tiny(), swin.spec, 224,
        4 + 4 * (2 + 2 + 6 + 2), (9, 18, 43, 52), 53, 28_288_354,
    ),
    "taskonomy": Network(
        taskonomy.EncoderDecoder(
            taskonomy.TaskonomyEncoder(), taskonomy.DenseDecoder(3)
        ),
        taskonomy.spec, 256,
        1 + 4 + 2 * 16 + 1 + 13, (1, 10, 22, 40, *range(49, 64)), 64,
    ),
    "deeplab50": Network(
        deeplab.deeplabv3_resnet50(auxiliary=True), deeplab.spec, 64,
        1 + 4 + 2 * 16 + 7 + 1, (1, 10, 22, 40, 49, 50, 51, 52), 53, 42_004_074,
    ),
}  # fmt: skip

ALL = {
    **{f"tiny-{name}": network for name, network in TINY.items()},
    **{f"full-{name}": network for name, network in FULL.items()},
}
