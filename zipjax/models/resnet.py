"""ResNet-20 for small images (He et al. 2016), as in the code of ZipIt! and MuDSC.

Its shortcuts between stages are 3x3 convolutions with BatchNorm.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from zipjax.entries import Axis, Entries
from zipjax.spec import Perm, PermutationSpec
from zipjax.types import AnyArray

# PyTorch's padding: "SAME" would pad strided convolutions on the other side.
_conv3x3 = functools.partial(
    nn.Conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)), use_bias=False
)


class Block(nn.Module):
    """Two 3x3 convolutions and a residual sum.

    Attributes:
      features: number of output channels.
      stride: stride of the first convolution and of the shortcut.
      shortcut: whether the shortcut is a convolution; else it is the identity.
    """

    features: int
    stride: int
    shortcut: bool

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width in"], train: bool
    ) -> Float[Array, "batch height2 width2 features"]:
        """Returns the block's output after its ReLU."""
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        stride = (self.stride, self.stride)
        y = _conv3x3(self.features, strides=stride, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = norm(name="bn2")(_conv3x3(self.features, name="conv2")(y))
        if self.shortcut:
            x = _conv3x3(self.features, strides=stride, name="shortcut_conv")(x)
            x = norm(name="shortcut_bn")(x)
        return nn.relu(x + y)


class ResNet20(nn.Module):
    """Three stages of three blocks, global average pooling and a linear head.

    Attributes:
      outputs: number of outputs.
      width: multiplies the stages' 16, 32 and 64 channels.
    """

    outputs: int
    width: float = 1.0

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of the three stages."""
        return tuple(int(self.width * base) for base in (16, 32, 64))

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Returns the outputs; ``train`` uses the statistics of the batch."""
        x = _conv3x3(self.features[0], name="conv1")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn1")(x))
        for name, stage, block in _blocks():
            first = block == 0 and stage > 0
            x = Block(self.features[stage], 2 if first else 1, first, name=name)(
                x, train
            )
        return nn.Dense(self.outputs, name="linear")(jnp.mean(x, axis=(1, 2)))


def spec(model: ResNet20) -> PermutationSpec:
    """Declares the permutation spec: 12 perms.

    One residual stream a stage, which the stage's blocks all write to, and one perm
    inside every block.
    """
    axes: dict[str, Entries] = {}
    perms: dict[str, Perm] = {}
    _declare_conv(axes, "conv1", "bn1", None, "stage1")
    for name, stage, block in _blocks():
        stream = f"stage{stage + 1}"
        first = block == 0 and stage > 0
        source = f"stage{stage}" if first else stream
        perms[stream] = perms[name] = Perm(model.features[stage])
        _declare_conv(axes, f"{name}/conv1", f"{name}/bn1", source, name)
        _declare_conv(axes, f"{name}/conv2", f"{name}/bn2", name, stream)
        if first:
            shortcut, norm = f"{name}/shortcut_conv", f"{name}/shortcut_bn"
            _declare_conv(axes, shortcut, norm, source, stream)
    axes["params/linear/kernel"] = (Axis("stage3", "in"), None)
    axes["params/linear/bias"] = (None,)
    return PermutationSpec(axes, perms)


def _blocks() -> list[tuple[str, int, int]]:
    """Names, stages and numbers of the blocks, from 0."""
    return [(f"layer{s + 1}_{b}", s, b) for s in range(3) for b in range(3)]


def _declare_conv(
    axes: dict[str, Entries], conv: str, norm: str, source: str | None, perm: str
) -> None:
    consumed = None if source is None else Axis(source, "in")
    axes[f"params/{conv}/kernel"] = (None, None, consumed, Axis(perm, "out"))
    for leaf in ("params/{}/scale", "params/{}/bias"):
        axes[leaf.format(norm)] = (Axis(perm, "out"),)
    for leaf in ("batch_stats/{}/mean", "batch_stats/{}/var"):
        axes[leaf.format(norm)] = (Axis(perm, "out"),)
