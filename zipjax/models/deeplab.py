"""DeepLabV3 (Chen et al. 2017), as in torchvision: a ResNet that labels every pixel.

The ResNet has dilations instead of strides in its last stages. Its parameters and perms
are those of the classifier of the same sizes, under the same names, so that the trunk
of a segmenter and that of a classifier can be merged. There is no dropout: it does
nothing in evaluation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zipjax.models.declaration import Declaration
from zipjax.models.layers import conv, norm
from zipjax.models.resnet import ResNetStages, bottleneck, declare_stages
from zipjax.spec.entries import Entry, Sum
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import AnyArray

Image = Float[AnyArray, "batch height width channels"]
Features = Float[Array, "batch height width features"]
Logits = Float[Array, "batch height width outputs"]


class DeepLabV3(ResNetStages):
    """A ResNet's stages, parallel convolutions of several dilations, and a head.

    The other attributes are those of :class:`~zipjax.models.resnet.ResNetStages`.

    Attributes:
      output_stride: by how much the ResNet shrinks the image.
      hidden: number of channels of the parallel convolutions and of the head.
      rates: dilations of the parallel 3x3 convolutions; those of the paper are for an
        output stride of 8, and half as large for 16.
      auxiliary: whether there is a second head, after the last stage but one.
    """

    output_stride: int = 8
    hidden: int = 256
    rates: tuple[int, ...] = (12, 24, 36)
    auxiliary: bool = False

    @property
    def auxiliary_hidden(self) -> int:
        """Channels of the second head: a quarter of those that it reads."""
        stages = {plan.stage: plan.body[-1].features for plan in self.plans}
        return stages[len(stages) - 1] // 4

    @nn.compact
    def __call__(self, x: Image, train: bool = False) -> Logits | dict[str, Logits]:
        """Returns the logits of all pixels; ``train`` uses the batch's statistics.

        With a second head they are the entry "out" of a dictionary, and those of that
        head are "aux".
        """
        *_, before, last = self.stages(x, train)
        y = self._layer(self._pyramid(last, train), self.hidden, 3, 1, "hidden", train)
        logits = _resized(conv(self.outputs, 1, bias=True, name="classifier")(y), x)
        if not self.auxiliary:
            return logits
        y = self._layer(before, self.auxiliary_hidden, 3, 1, "aux_hidden", train)
        y = conv(self.outputs, 1, bias=True, name="aux_classifier")(y)
        return {"out": logits, "aux": _resized(y, x)}

    def _pyramid(self, x: Image, train: bool) -> Features:
        """Returns features of several scales, projected to one image."""
        branches = [self._layer(x, self.hidden, 1, 1, "aspp0", train)]
        for number, rate in enumerate(self.rates, 1):
            name = f"aspp{number}"
            branches.append(self._layer(x, self.hidden, 3, rate, name, train))
        mean = jnp.mean(x, axis=(1, 2), keepdims=True)
        pooled = self._layer(mean, self.hidden, 1, 1, "aspp_pool", train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        joined = jnp.concatenate(branches, axis=-1)
        return self._layer(joined, self.hidden, 1, 1, "project", train)

    def _layer(
        self, x: Image, features: int, size: int, rate: int, name: str, train: bool
    ) -> Features:
        """Returns a convolution of an image, with its norm and its ReLU."""
        x = conv(features, size, dilation=rate, name=name)(x)
        return nn.relu(norm(self.groups, train=train, name=f"{name}_bn")(x))


def _resized(
    logits: Float[Array, "batch _height _width outputs"], like: Image
) -> Logits:
    """Returns logits for every pixel of an image, between pixels' centres linearly."""
    shape = (*like.shape[:3], logits.shape[-1])
    return jax.image.resize(logits, shape, "bilinear", antialias=False)


def deeplabv3_resnet50(
    outputs: int = 21, *, width: float = 1.0, auxiliary: bool = False
) -> DeepLabV3:
    """Returns torchvision's DeepLabV3 with a ResNet-50.

    Args:
      outputs: number of classes.
      width: multiplies the channels of the ResNet and of the head.
      auxiliary: whether there is a second head, as in the published parameters.
    """
    hidden = int(256 * width)
    return DeepLabV3(
        outputs, (3, 4, 6, 3), bottleneck, width, hidden=hidden, auxiliary=auxiliary
    )


def spec(model: DeepLabV3) -> PermutationSpec:
    """Returns the declared permutation spec: a ResNet's, and one perm per layer.

    The parallel convolutions are read as one image of their channels, one after the
    other.
    """
    net = Declaration(groups=model.groups)
    *_, before, last = declare_stages(net, "", model.stem, model.plans)
    numbers = range(len(model.rates) + 1)
    branches = [*(f"aspp{number}" for number in numbers), "aspp_pool"]
    joined = Sum(tuple(_declare(net, x, last, model.hidden) for x in branches))
    projected = _declare(net, "project", joined, model.hidden)
    hidden = _declare(net, "hidden", projected, model.hidden)
    net.conv("classifier", hidden, None, bias=True)
    if model.auxiliary:
        hidden = _declare(net, "aux_hidden", before, model.auxiliary_hidden)
        net.conv("aux_classifier", hidden, None, bias=True)
    return net.spec()


def _declare(net: Declaration, name: str, reads: Entry, features: int) -> Entry:
    """Declares a convolution with its norm, and returns its channels."""
    units = net.channels(name, features)
    net.conv(name, reads, units)
    net.norm(f"{name}_bn", units)
    return units
