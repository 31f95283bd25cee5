"""Convolutional networks, small: width 8 or so, a few blocks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.zoo.case import Case, linen, normal

Norm = Callable[..., Callable[[jax.Array], jax.Array]]

batch_norm = functools.partial(nn.BatchNorm, use_running_average=True)
group_norm = functools.partial(nn.GroupNorm, num_groups=4)
eight_groups = functools.partial(nn.GroupNorm, num_groups=8)
pairs_norm = functools.partial(nn.GroupNorm, num_groups=None, group_size=2)


def no_norm() -> Callable[[jax.Array], jax.Array]:
    return lambda x: x


class MLP(nn.Module):
    features: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.features[:-1]:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.features[-1])(x)


class VGG(nn.Module):
    """Two convolutions and two Dense layers after a flatten."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in (6, 8):
            x = nn.relu(nn.Conv(size, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(10)(x))
        x = nn.relu(nn.Dense(12)(x))
        return nn.Dense(3)(x)


class ResNet(nn.Module):
    """Three stages of three blocks, as ResNet-20, or of fewer."""

    norm: Norm
    blocks: int = 3
    width: int = 8
    padded: bool = False
    preactivated: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (3, 3))(x)
        if not self.preactivated:
            x = nn.relu(self.norm()(x))
        for stage in range(3):
            features = self.width * 2**stage
            for number in range(self.blocks):
                stride = 2 if number == 0 and stage > 0 else 1
                block = self._preactivated if self.preactivated else self._block
                x = block(x, features, stride)
        if self.preactivated:
            x = nn.relu(self.norm()(x))
        return nn.Dense(5)(x.mean((1, 2)))

    def _block(self, x: jax.Array, features: int, stride: int) -> jax.Array:
        y = nn.Conv(features, (3, 3), strides=stride, use_bias=False)(x)
        y = nn.relu(self.norm()(y))
        y = self.norm()(nn.Conv(features, (3, 3), use_bias=False)(y))
        return nn.relu(y + self._shortcut(x, features, stride))

    def _preactivated(self, x: jax.Array, features: int, stride: int) -> jax.Array:
        y = nn.relu(self.norm()(x))
        y = nn.Conv(features, (3, 3), strides=stride)(y)
        y = nn.Conv(features, (3, 3))(nn.relu(self.norm()(y)))
        return y + self._shortcut(x, features, stride)

    def _shortcut(self, x: jax.Array, features: int, stride: int) -> jax.Array:
        if x.shape[-1] == features:
            return x
        if not self.padded:
            return nn.Conv(features, (1, 1), strides=stride)(x)
        side = (features - x.shape[-1]) // 2
        return jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (side, side)))


class ResNeXt(nn.Module):
    """Two bottleneck blocks whose middle convolution has 4 groups."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(12, (3, 3))(x))
        for _ in range(2):
            y = nn.relu(batch_norm()(nn.Conv(16, (1, 1))(x)))
            y = nn.Conv(16, (3, 3), feature_group_count=4)(y)
            y = nn.relu(batch_norm()(y))
            x = nn.relu(x + batch_norm()(nn.Conv(12, (1, 1))(y)))
        return nn.Dense(3)(x.mean((1, 2)))


class DenseNet(nn.Module):
    """A block of three layers that each read all before them."""

    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(8, (3, 3))(x)
        for _ in range(3):
            y = nn.Conv(4, (3, 3))(nn.relu(self.norm()(x)))
            x = jnp.concatenate([x, y], axis=-1)
        return nn.Dense(3)(nn.relu(self.norm()(x)).mean((1, 2)))


class MobileNet(nn.Module):
    """Inverted bottlenecks with depthwise convolutions and squeeze-excite."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(batch_norm()(nn.Conv(8, (3, 3))(x)))
        for size in (8, 12):
            y = nn.hard_swish(batch_norm()(nn.Conv(16, (1, 1))(x)))
            y = nn.Conv(16, (3, 3), feature_group_count=16)(y)
            y = nn.hard_swish(batch_norm()(y))
            gate = nn.relu(nn.Dense(6)(y.mean((1, 2))))
            y = y * nn.sigmoid(nn.Dense(16)(gate))[:, None, None]
            y = batch_norm()(nn.Conv(size, (1, 1))(y))
            x = x + y if x.shape == y.shape else y
        x = nn.hard_swish(nn.Conv(20, (1, 1))(x))
        return nn.Dense(3)(x.mean((1, 2)))


class ConvNeXt(nn.Module):
    """Depthwise 7x7, LayerNorm, MLP and layer scale; one downsampling."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm()(nn.Conv(8, (2, 2), strides=2)(x))
        for features in (8, 12):
            if x.shape[-1] != features:
                x = nn.Conv(features, (2, 2), strides=2)(nn.LayerNorm()(x))
            y = nn.Conv(features, (7, 7), feature_group_count=features)(x)
            y = nn.gelu(nn.Dense(4 * features)(nn.LayerNorm()(y)))
            y = nn.Dense(features)(y)
            scale = self.param(f"scale{features}", nn.initializers.ones, (features,))
            x = x + scale * y
        return nn.Dense(3)(nn.LayerNorm()(x.mean((1, 2))))


class UNet(nn.Module):
    """Two levels, skips by concatenation, transposed convolutions."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        skips = []
        for size in (6, 8):
            x = nn.relu(nn.Conv(size, (3, 3))(x))
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(10, (3, 3))(x))
        for size, skip in zip((8, 6), reversed(skips), strict=True):
            x = nn.ConvTranspose(size, (2, 2), strides=(2, 2))(x)
            x = jnp.concatenate([skip, x], axis=-1)
            x = nn.relu(nn.Conv(size, (3, 3))(x))
        return nn.Conv(2, (1, 1))(x)


class DeepLab(nn.Module):
    """A backbone of two convolutions and an ASPP head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape
        x = nn.relu(batch_norm()(nn.Conv(6, (3, 3), strides=2)(x)))
        low = nn.relu(batch_norm()(nn.Conv(8, (3, 3), strides=2)(x)))
        branches = [nn.relu(batch_norm()(nn.Conv(5, (1, 1))(low)))]
        for rate in (2, 3):
            y = nn.Conv(5, (3, 3), kernel_dilation=rate)(low)
            branches.append(nn.relu(batch_norm()(y)))
        pooled = nn.relu(nn.Conv(5, (1, 1))(low.mean((1, 2), keepdims=True)))
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        y = nn.relu(nn.Conv(7, (1, 1))(jnp.concatenate(branches, axis=-1)))
        y = jax.image.resize(y, (*x.shape[:3], 7), "bilinear")
        x = nn.relu(nn.Conv(4, (1, 1))(x))
        y = nn.relu(nn.Conv(9, (3, 3))(jnp.concatenate([y, x], axis=-1)))
        y = jax.image.resize(nn.Conv(3, (1, 1))(y), (*shape[:3], 3), "bilinear")
        return y


class Autoencoder(nn.Module):
    """Convolutions down, Dense code, and up again after an unflatten."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        code = nn.Dense(5)(x.reshape(x.shape[0], -1))
        y = nn.relu(nn.Dense(x.shape[1] * x.shape[2] * 8)(code)).reshape(x.shape)
        y = nn.relu(nn.ConvTranspose(6, (3, 3), strides=(2, 2))(y))
        return nn.ConvTranspose(1, (3, 3), strides=(2, 2))(y)


IMAGE = (2, 16, 16, 3)


def _case(model: nn.Module, perms: int, shape: Any = IMAGE) -> Callable[[], Case]:
    return lambda: linen(model, (normal(*shape),), perms)


CASES: dict[str, Callable[[], Case]] = {
    "mlp": _case(MLP((7, 9, 3)), 2, (4, 5)),
    # Two convolutions, two hidden layers; the flattened axis is (h, w, c).
    "vgg": _case(VGG(), 4, (2, 8, 8, 3)),
    # Three streams, and one perm per block.
    "resnet-batch": _case(ResNet(batch_norm, blocks=2), 9),
    "resnet-layer": _case(ResNet(nn.LayerNorm, blocks=1), 6),
    "resnet-none": _case(ResNet(no_norm, blocks=1), 6),
    # The same six, each of them groups of units.
    "resnet-group": _case(ResNet(group_norm, blocks=1), 12),
    # Three blocks of two; for the stream see the test of ResNet-20.
    "resnet-group-padded": _case(
        ResNet(eight_groups, blocks=1, width=16, padded=True), 18
    ),
    # The streams are pad + (pad + C + pad) + pad: five parts, and three blocks.
    "resnet-batch-padded": _case(ResNet(batch_norm, blocks=1, padded=True), 8),
    "resnet-none-padded": _case(ResNet(no_norm, blocks=1, padded=True), 8),
    "resnet-preactivated": _case(ResNet(batch_norm, blocks=1, preactivated=True), 6),
    # A stream; for each block the groups, the inputs and the outputs of a group.
    "resnext": _case(ResNeXt(), 7),
    # The first convolution and three layers.
    "densenet-batch": _case(DenseNet(batch_norm), 4),
    # The same four, each of them groups of two units.
    "densenet-group": _case(DenseNet(pairs_norm), 8),
    # Two streams, and for each block the expansion and the squeeze; the last layer.
    "mobilenet": _case(MobileNet(), 7),
    # Two streams and two MLPs.
    "convnext": _case(ConvNeXt(), 4),
    # Three down, and for each level up the transposed and the plain convolution.
    "unet": _case(UNet(), 7),
    # Two of the backbone, four branches, their projection, the skip, the last layer.
    "deeplab": _case(DeepLab(), 9),
    # Two down, the code, the unflattened channels (h, w, c), one up.
    "autoencoder": _case(Autoencoder(), 5, (2, 8, 8, 1)),
}
