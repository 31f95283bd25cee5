"""VGG (Simonyan and Zisserman 2015), as in torchvision, with or without BatchNorm.

Images are NHWC here, so the flatten after the convolutions is in the order (height,
width, channel). PyTorch's order is (channel, height, width), so the inputs of its first
Dense kernel need reordering. There is no dropout: it does nothing in evaluation.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zipjax.models.declaration import Declaration
from zipjax.models.layers import Dense, conv, norm
from zipjax.spec.entries import Fixed, Product
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import AnyArray


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each followed by max pooling, and three Dense layers.

    Attributes:
      outputs: number of outputs.
      stages: for every stage, the numbers of channels of its convolutions.
      hidden: widths of the Dense layers before the last.
      pool: side of the image that is flattened, after adaptive average pooling.
      batch_norm: whether every convolution is followed by BatchNorm.
    """

    outputs: int
    stages: tuple[tuple[int, ...], ...]
    hidden: tuple[int, ...] = (4096, 4096)
    pool: int = 7
    batch_norm: bool = False

    @property
    def convolutions(self) -> list[tuple[str, int]]:
        """Names "<stage>_<convolution>", counted from 1 as in the paper; channels."""
        return [
            (f"{stage}_{number}", features)
            for stage, channels in enumerate(self.stages, 1)
            for number, features in enumerate(channels, 1)
        ]

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Returns the outputs; ``train`` uses the statistics of the batch."""
        for number, features in self.convolutions:
            if number.endswith("_1") and number != "1_1":
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = conv(features, 3, bias=True, name=f"conv{number}")(x)
            if self.batch_norm:
                x = norm(None, train=train, name=f"bn{number}")(x)
            x = nn.relu(x)
        x = adaptive_avg_pool(nn.max_pool(x, (2, 2), (2, 2)), self.pool)
        x = x.reshape(x.shape[0], -1)
        for number, width in enumerate(self.hidden, 1):
            x = nn.relu(Dense(width, name=f"fc{number}")(x))
        return nn.Dense(self.outputs, name="head")(x)


def adaptive_avg_pool(
    x: Float[AnyArray, "batch height width channels"], size: int
) -> Float[Array, "batch size size channels"]:
    """Returns a square image of the given side, averaged over windows.

    Window k of n reaches from floor(k h / n) to ceil((k + 1) h / n), as in PyTorch.
    """
    rows, columns = (_windows(length, size) for length in x.shape[1:3])
    return jnp.einsum("bhwc,ph,qw->bpqc", x, rows, columns)


def _windows(length: int, size: int) -> Float[np.ndarray, "size length"]:
    rows, k = np.arange(length), np.arange(size)[:, None]
    inside = (rows >= k * length // size) & (rows < -(-(k + 1) * length // size))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def vgg11(outputs: int = 1000, *, batch_norm: bool = False) -> VGG:
    """Returns torchvision's VGG-11."""
    stages = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    return VGG(outputs, stages, batch_norm=batch_norm)


def vgg16(outputs: int = 1000, *, batch_norm: bool = False) -> VGG:
    """Returns torchvision's VGG-16."""
    stages = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
    return VGG(outputs, stages, batch_norm=batch_norm)


def spec(model: VGG) -> PermutationSpec:
    """Returns the declared permutation spec: one perm for every layer but the last.

    After the flatten, every channel occurs at all positions of the pooled image.
    """
    net, x = Declaration(), None
    for number, features in model.convolutions:
        reads, x = x, net.perm(f"conv{number}", features)
        net.conv(f"conv{number}", reads, x, bias=True)
        if model.batch_norm:
            net.norm(f"bn{number}", x)
    if model.pool > 1 and x is not None:
        x = Product((Fixed(model.pool**2), x))
    for number, width in enumerate(model.hidden, 1):
        reads, x = x, net.perm(f"fc{number}", width)
        net.dense(f"fc{number}", reads, x)
    net.dense("head", x, None)
    return net.spec()
