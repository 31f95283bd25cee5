"""Residual networks (He et al. 2016): ResNet-20 for small images, others for ImageNet.

ResNet-20 is the network in the code of ZipIt! and MuDSC, with 3x3 convolutions as
shortcuts between stages, or that of the original paper, whose shortcuts have no
parameters. ResNet-18, -26 and -50 are those of torchvision and timm: the
shortcuts are 1x1, and a bottleneck has its stride in the 3x3 convolution. All of them
have BatchNorm or, as MuDSC's ResNets with group structure do, GroupNorm (Wu and He
2018), whose layers are named like those of BatchNorm, as in timm.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from zipjax.models.declaration import Declaration
from zipjax.models.layers import Dense, conv, norm
from zipjax.spec.entries import Entry, Fixed, Sum
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import AnyArray


class Convolution(NamedTuple):
    """A square convolution.

    Attributes:
      features: number of output channels.
      size: side of the kernel.
      stride: distance of its places in the image.
      dilation: distance of the pixels that it reads at a place.
    """

    features: int
    size: int
    stride: int = 1
    dilation: int = 1


Body = Callable[[int, int, int, int], tuple[Convolution, ...]]
"""The convolutions of a block: see the arguments of :func:`basic`."""


def basic(
    features: int, stride: int, before: int = 1, after: int = 1
) -> tuple[Convolution, ...]:
    """Returns two 3x3 convolutions.

    Args:
      features: number of output channels.
      stride: of the block.
      before: dilation of the convolutions up to the one that has the stride.
      after: dilation of those that follow. It is larger where a stride was replaced,
        so that they read the pixels that the stride would have left.
    """
    return Convolution(features, 3, stride, before), Convolution(features, 3, 1, after)


def bottleneck(
    features: int, stride: int, before: int = 1, after: int = 1
) -> tuple[Convolution, ...]:
    """Returns 1x1, 3x3 and 1x1 convolutions; the last has four times the features.

    See :func:`basic`; after the stride nothing is dilated.
    """
    del after
    middle = Convolution(features, 3, stride, before)
    return Convolution(features, 1), middle, Convolution(4 * features, 1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The layers of one residual block.

    Attributes:
      name: the block's name, "layer<stage>_<block>" as in PyTorch.
      stage: number of its stage, from 1.
      body: its convolutions.
      shortcut: the convolution in its shortcut. None: there is none, and the shortcut
        skips what the block's stride skips and pads its channels with zeros, as many
        before them as after.
      pool: side and stride of the average pooling before the shortcut's convolution.
    """

    name: str
    stage: int
    body: tuple[Convolution, ...]
    shortcut: Convolution | None
    pool: int = 1

    @property
    def features(self) -> int:
        """Number of channels after the block."""
        return self.body[-1].features

    @property
    def stride(self) -> int:
        """By how much the block shrinks the image."""
        return math.prod(convolution.stride for convolution in self.body)


def _plans(
    features: Sequence[int],
    depths: Sequence[int],
    body: Body,
    shortcut: int | None,
    halvings: int,
) -> list[Plan]:
    """Returns the blocks of all stages.

    Each stage but the first halves the image, or, after so many halvings, doubles the
    dilation of what follows its first block's stride.

    Args:
      features: number of features of every stage.
      depths: number of blocks of every stage.
      body: returns the convolutions of a block.
      shortcut: kernel size of the shortcuts that change the shape; None: these have no
        convolutions.
      halvings: how many stages at most halve the image.
    """
    plans, channels = [], features[0]
    for stage, depth in enumerate(depths):
        first = 2 if 0 < stage <= halvings else 1
        later = 2 ** max(stage - halvings, 0)
        for block in range(depth):
            stride = first if block == 0 else 1
            before = max(later // 2, 1) if block == 0 else later
            convolutions = body(features[stage], stride, before, later)
            changed = stride > 1 or convolutions[-1].features != channels
            channels = convolutions[-1].features
            across = None
            if changed and shortcut is not None:
                across = Convolution(channels, shortcut, stride)
            plans.append(
                Plan(f"layer{stage + 1}_{block}", stage + 1, convolutions, across)
            )
    return plans


def chain(
    x: Float[AnyArray, "batch height width in"],
    convolutions: Sequence[Convolution],
    groups: int | None,
    train: bool,
) -> Float[Array, "batch height2 width2 out"]:
    """Applies convolutions, each with its norm, and ReLU between each two of them.

    To be called from a compact method, whose module gets the layers.

    Args:
      x: images.
      convolutions: the convolutions.
      groups: number of groups of GroupNorm; None for BatchNorm.
      train: whether to use the statistics of the batch.
    """
    for number, (features, size, stride, dilation) in enumerate(convolutions, 1):
        x = nn.relu(x) if number > 1 else x
        name = f"conv{number}"
        x = conv(features, size, stride=stride, dilation=dilation, name=name)(x)
        x = norm(groups, train=train, name=f"bn{number}")(x)
    return jnp.asarray(x)


class Block(nn.Module):
    """Convolutions, a shortcut and the residual sum.

    Attributes:
      plan: the block's convolutions.
      groups: number of groups of GroupNorm; None for BatchNorm.
    """

    plan: Plan
    groups: int | None

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width in"], train: bool
    ) -> Float[Array, "batch height2 width2 out"]:
        """Returns the block's output after its ReLU."""
        y = chain(x, self.plan.body, self.groups, train)
        if self.plan.shortcut is not None:
            features, size, stride, _ = self.plan.shortcut
            if self.plan.pool > 1:
                pool = (self.plan.pool, self.plan.pool)
                x = nn.avg_pool(x, pool, pool, "SAME", count_include_pad=False)
            x = conv(features, size, stride=stride, name="shortcut_conv")(x)
            x = norm(self.groups, train=train, name="shortcut_bn")(x)
        elif self.plan.stride > 1:
            x = x[:, :: self.plan.stride, :: self.plan.stride]
        if x.shape[-1] != y.shape[-1]:
            x = jnp.pad(x, ((0, 0),) * 3 + (_sides(y.shape[-1] - x.shape[-1]),))
        return nn.relu(x + y)


def _sides(channels: int) -> tuple[int, int]:
    """Returns how many of the added channels come before the others, and after."""
    return channels // 2, channels - channels // 2


class ResNet20(nn.Module):
    """Three stages of blocks, global average pooling and a linear head.

    Attributes:
      outputs: number of outputs.
      width: multiplies the stages' 16, 32 and 64 channels.
      groups: number of groups of GroupNorm; None for BatchNorm.
      blocks: number of blocks of every stage: n of them make 6n + 2 layers, and 3 of
        them ResNet-20 (He et al. 2016, Section 4.2).
      padded: whether shortcuts between stages have no parameters, but every second
        position and channels padded with zeros (option A there), not convolutions.
        Merged to other widths, as many units must be added before as after: merges
        by the declared spec are held to that, those by an inferred one are not.
    """

    outputs: int
    width: float = 1.0
    groups: int | None = None
    blocks: int = 3
    padded: bool = False

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of the three stages."""
        return tuple(int(self.width * base) for base in (16, 32, 64))

    @property
    def stem(self) -> tuple[Convolution, ...]:
        """The convolution before the blocks."""
        return (Convolution(self.features[0], 3),)

    @property
    def plans(self) -> list[Plan]:
        """The blocks."""
        depths, shortcut = (self.blocks,) * 3, None if self.padded else 3
        return _plans(self.features, depths, basic, shortcut, halvings=2)

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Returns the outputs; ``train`` uses the statistics of the batch."""
        x = nn.relu(chain(x, self.stem, self.groups, train))
        for plan in self.plans:
            x = Block(plan, self.groups, name=plan.name)(x, train)
        return Dense(self.outputs, name="linear")(jnp.mean(x, axis=(1, 2)))


class ResNetStages(nn.Module):
    """Four stages of blocks after a stem that shrinks the image to a quarter.

    What :class:`ResNet` and networks with other heads have in common.

    Attributes:
      outputs: number of outputs.
      depths: number of blocks of every stage.
      body: ``basic`` or ``bottleneck``.
      width: multiplies the stages' 64, 128, 256 and 512 channels.
      groups: number of groups of GroupNorm; None for BatchNorm.
      deep: whether to use the variant with the letter "d" in timm's names (He et al.
        2019): three 3x3 convolutions in the stem instead of a 7x7 one, and average
        pooling before a shortcut's convolution instead of its stride.
      output_stride: by how much the image may shrink: a power of 2 from 4 on. Stages
        that would shrink it further have dilations instead of strides, as with
        torchvision's ``replace_stride_with_dilation``; the parameters are the same.
    """

    outputs: int
    depths: tuple[int, ...]
    body: Body = bottleneck
    width: float = 1.0
    groups: int | None = None
    deep: bool = False
    output_stride: int = 32

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of the stages, four times as many between bottlenecks."""
        return tuple(int(self.width * base) for base in (64, 128, 256, 512))

    @property
    def stem(self) -> tuple[Convolution, ...]:
        """The convolutions before the blocks."""
        last = self.features[0]
        if not self.deep:
            return (Convolution(last, 7, 2),)
        half = last // 2
        return Convolution(half, 3, 2), Convolution(half, 3), Convolution(last, 3)

    @property
    def plans(self) -> list[Plan]:
        """The blocks."""
        halvings = self.output_stride.bit_length() - 3
        if halvings < 0 or self.output_stride != 4 * 2**halvings:
            raise ValueError(
                f"output_stride = {self.output_stride} cannot be reached by halving: "
                "pass a power of 2 from 4 on, such as 8, 16 or 32"
            )
        plans = _plans(self.features, self.depths, self.body, 1, halvings)
        return [_pooled(plan) for plan in plans] if self.deep else plans

    def stages(
        self, x: Float[AnyArray, "batch height width channels"], train: bool
    ) -> list[Float[Array, "batch _height _width _channels"]]:
        """Returns the outputs of all stages; to be called from a compact method."""
        x = nn.relu(chain(x, self.stem, self.groups, train))
        padding: Any = ((1, 1), (1, 1))  # Flax declares a str, but accepts pairs.
        x = nn.max_pool(x, (3, 3), (2, 2), padding)
        outputs: dict[int, Array] = {}
        for plan in self.plans:
            x = Block(plan, self.groups, name=plan.name)(x, train)
            outputs[plan.stage] = x
        return list(outputs.values())


class ResNet(ResNetStages):
    """A ResNet's stages, global average pooling and a linear head.

    The attributes are those of :class:`ResNetStages`.
    """

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Returns the outputs; ``train`` uses the statistics of the batch."""
        x = self.stages(x, train)[-1]
        return Dense(self.outputs, name="fc")(jnp.mean(x, axis=(1, 2)))


def _pooled(plan: Plan) -> Plan:
    if plan.shortcut is None:
        return plan
    shortcut = plan.shortcut._replace(stride=1)
    return dataclasses.replace(plan, shortcut=shortcut, pool=plan.shortcut.stride)


def resnet18(
    outputs: int = 1000, *, width: float = 1.0, groups: int | None = None
) -> ResNet:
    """Returns torchvision's ResNet-18."""
    return ResNet(outputs, (2, 2, 2, 2), basic, width, groups)


def resnet26(
    outputs: int = 1000,
    *,
    width: float = 1.0,
    groups: int | None = None,
    deep: bool = False,
) -> ResNet:
    """Returns timm's ResNet-26, or with ``deep`` its ResNet-26d."""
    return ResNet(outputs, (2, 2, 2, 2), bottleneck, width, groups, deep)


def resnet50(
    outputs: int = 1000, *, width: float = 1.0, groups: int | None = None
) -> ResNet:
    """Returns ResNet-50 (v1.5); ResNet-50-GN has 32 groups."""
    return ResNet(outputs, (3, 4, 6, 3), bottleneck, width, groups)


def spec(model: ResNet20 | ResNet) -> PermutationSpec:
    """Returns the declared permutation spec.

    Every stage has one residual stream, to which its blocks write; every block has a
    perm between each two of its convolutions. The stem writes to the first stream, or,
    if the first block has a convolution in its shortcut, to a perm of its own. Thus
    ResNet-20 has 12 perms, and twice as many with GroupNorm. Padded, it has 14: one
    stream runs through all stages, and each stage adds a perm on either side of it;
    the two are paired.

    Raises:
      ValueError: if padded shortcuts meet GroupNorm, whose groups span several of these
        perms.
    """
    if isinstance(model, ResNet20) and model.padded and model.groups is not None:
        raise ValueError(
            f"groups = {model.groups} of GroupNorm span perms that padded shortcuts "
            "keep apart, which no declared spec covers: pass groups=None or "
            "padded=False, or use zipjax.infer_spec"
        )
    net = Declaration(groups=model.groups)
    stream = declare_stages(net, "", model.stem, model.plans)[-1]
    net.dense("linear" if isinstance(model, ResNet20) else "fc", stream, None)
    return net.spec()


def declare_stages(
    net: Declaration, path: str, stem: Sequence[Convolution], plans: Sequence[Plan]
) -> list[Entry]:
    """Declares a stem and blocks.

    Args:
      net: the declaration.
      path: what the names of all layers and perms start with.
      stem: the convolutions before the blocks.
      plans: the blocks.

    Returns:
      The residual stream of every stage.
    """
    opened = plans[0].shortcut is not None
    stream = net.channels(f"{path}{'stem' if opened else 'stage1'}", stem[-1].features)
    _declare_chain(net, path, stem, None, stream)
    channels = stem[-1].features
    streams: dict[int, Entry] = {}
    for plan in plans:
        before, stage = stream, f"{path}stage{plan.stage}"
        if plan.shortcut is not None:
            stream = net.channels(stage, plan.features)
        elif plan.features != channels:
            stream = _padded(net, stage, stream, plan.features - channels)
        channels = plan.features
        block = f"{path}{plan.name}/"
        _declare_chain(net, block, plan.body, before, stream)
        if plan.shortcut is not None:
            net.conv(f"{block}shortcut_conv", before, stream)
            net.norm(f"{block}shortcut_bn", stream)
        streams[plan.stage] = stream
    return list(streams.values())


def _padded(net: Declaration, stage: str, stream: Entry, channels: int) -> Sum:
    """Returns a stream between the channels that padding adds, a perm on each side."""
    own = stream.parts if isinstance(stream, Sum) else (stream,)
    before, after = _sides(channels)
    if not before:  # The only channel: with more, some would come before.
        return Sum((*own, Fixed(after)))
    names = f"{stage}/before", f"{stage}/after"
    net.paired.append(names)
    return Sum((net.channels(names[0], before), *own, net.channels(names[1], after)))


def _declare_chain(
    net: Declaration,
    path: str,
    convolutions: Sequence[Convolution],
    reads: Entry,
    writes: Entry,
) -> None:
    """Declares convolutions with their norms, and a perm between each two of them."""
    for number, convolution in enumerate(convolutions, 1):
        units = writes
        if number < len(convolutions):
            alone = len(convolutions) == 2
            name = path.removesuffix("/") if alone else f"{path}conv{number}"
            units = net.channels(name, convolution.features)
        net.conv(f"{path}conv{number}", reads, units)
        net.norm(f"{path}bn{number}", units)
        reads = units
