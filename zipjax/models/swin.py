"""Swin transformer (Liu et al. 2021), as in timm.

Attention is within windows, which every second block shifts, and has a table of biases
for the relative positions within a window. Between stages, patches are merged four to
one.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from zipjax.models.declaration import Declaration
from zipjax.models.layers import Dense, attention, transformer_block
from zipjax.spec.entries import Fixed, Product
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import AnyArray

_EPSILON = 1e-5
_APART = -100.0
_TABLE = "relative_position_bias_table"


class WindowAttention(nn.Module):
    """Self-attention in windows of an image.

    Attributes:
      heads: number of heads.
      window: side of the windows.
      shift: how far the windows are moved down and right. They wrap around at the
        border, where a mask keeps patches apart that are not neighbours.
    """

    heads: int
    window: int
    shift: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width features"]
    ) -> Float[Array, "batch height width features"]:
        """Returns the heads' outputs, projected."""
        height, width = x.shape[1:3]
        bias = self._biases()
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
            bias = bias + _mask(height, width, self.window, self.shift)
        windows = tiles(x, self.window)
        tokens = windows.reshape(x.shape[0], -1, self.window**2, x.shape[-1])
        tokens = attention(tokens, self.heads, bias)
        return jnp.roll(
            untiled(tokens.reshape(windows.shape)),
            (self.shift, self.shift),
            axis=(1, 2),
        )

    def _biases(self) -> Float[Array, "1 heads tokens tokens"]:
        """Returns the biases of all pairs of positions in a window."""
        shape = ((2 * self.window - 1) ** 2, self.heads)
        table = self.param(_TABLE, nn.initializers.normal(0.02), shape)
        return jnp.moveaxis(table[_relative_positions(self.window)], -1, 0)[None]


def tiles(
    x: Shaped[AnyArray, "batch height width features"], side: int
) -> Shaped[AnyArray, "batch rows columns side side features"]:
    """Returns an image cut into squares.

    Raises:
      ValueError: if the squares do not fit.
    """
    batch, height, width, features = x.shape
    if height % side or width % side:
        raise ValueError(
            f"squares of {side}x{side} do not fit into {height}x{width} patches: "
            "change the window, or the size of the images"
        )
    x = x.reshape(batch, height // side, side, width // side, side, features)
    return x.swapaxes(2, 3)


def untiled(
    x: Float[AnyArray, "batch rows columns side side features"],
) -> Float[Array, "batch height width features"]:
    """Returns the image made of squares; the inverse of :func:`tiles`."""
    batch, rows, columns, side, _, features = x.shape
    return jnp.reshape(x.swapaxes(2, 3), (batch, rows * side, columns * side, features))


def _relative_positions(side: int) -> Int[np.ndarray, "tokens tokens"]:
    """Returns the row of the bias table for every pair of positions in a window."""
    positions = np.indices((side, side)).reshape(2, -1)
    rows, columns = positions[:, :, None] - positions[:, None, :] + side - 1
    return rows * (2 * side - 1) + columns


def _mask(
    height: int, width: int, side: int, shift: int
) -> Float[np.ndarray, "windows 1 tokens tokens"]:
    """Returns logit biases that separate patches brought together by wrapping alone."""

    def regions(length: int) -> Int[np.ndarray, "length"]:
        positions = np.arange(length)
        return 1 * (positions >= length - side) + (positions >= length - shift)

    image = 3 * regions(height)[:, None] + regions(width)
    windows = tiles(image[None, :, :, None], side)
    tokens = windows.reshape(-1, 1, side * side)
    apart = tokens[..., :, None] != tokens[..., None, :]
    return np.where(apart, _APART, 0.0).astype(np.float32)


class Block(nn.Module):
    """Attention and an MLP, each with a norm before it and a residual connection.

    Attributes:
      heads: number of heads.
      hidden: width of the MLP's hidden layer.
      window: side of the windows.
      shifted: whether they are shifted, by half of their side.
    """

    heads: int
    hidden: int
    window: int
    shifted: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width features"]
    ) -> Float[Array, "batch height width features"]:
        """Returns the residual stream after the block."""
        # One window that holds the whole image cannot be shifted.
        window = min(self.window, *x.shape[1:3])
        shift = window // 2 if self.shifted and window < min(x.shape[1:3]) else 0
        attend = WindowAttention(self.heads, window, shift, name="attn")
        return transformer_block(x, attend, hidden=self.hidden, epsilon=_EPSILON)


class PatchMerging(nn.Module):
    """Merges each two by two patches into one with twice the features."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width features"]
    ) -> Float[Array, "batch height2 width2 features2"]:
        """Returns an image with sides of half the length."""
        # timm's order of the four patches: column by column.
        squares = tiles(x, 2).swapaxes(3, 4)
        x = jnp.reshape(squares, (*squares.shape[:3], -1))
        x = nn.LayerNorm(epsilon=_EPSILON, name="norm")(x)
        return nn.Dense(x.shape[-1] // 2, use_bias=False, name="reduction")(x)


class Swin(nn.Module):
    """Patch embedding, stages of blocks, mean pooling and a linear head.

    Attributes:
      outputs: number of outputs.
      width: features of the first stage; each stage has twice those of the one before.
      depths: number of blocks of every stage.
      heads: number of heads of every stage.
      window: side of the windows.
      patch: side of the patches.
      expansion: width of the MLPs' hidden layer, as a multiple of the stage's.
    """

    outputs: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7
    patch: int = 4
    expansion: int = 4

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Returns the outputs; ``train`` makes no difference."""
        del train
        side = (self.patch, self.patch)
        x = nn.Conv(self.width, side, side, "VALID", name="patch_embed")(x)
        x = nn.LayerNorm(epsilon=_EPSILON, name="patch_norm")(x)
        stages = zip(self.depths, self.heads, strict=True)
        for stage, (depth, heads) in enumerate(stages):
            if stage > 0:
                x = PatchMerging(name=f"downsample_{stage}")(x)
            hidden = self.expansion * x.shape[-1]
            for block in range(depth):
                name = f"layers_{stage}_{block}"
                x = Block(heads, hidden, self.window, block % 2 == 1, name=name)(x)
        x = nn.LayerNorm(epsilon=_EPSILON, name="norm")(x)
        return Dense(self.outputs, name="head")(jnp.mean(x, axis=(1, 2)))


def swin_tiny(outputs: int = 1000) -> Swin:
    """Returns timm's Swin-T, for images of 224x224."""
    return Swin(outputs, width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24))


def spec(model: Swin) -> PermutationSpec:
    """Returns the declared permutation spec: one perm per stage, and four per block.

    The blocks of a stage write to its residual stream. The four perms of a block are
    its heads, to which the columns of the bias table belong; within each head, the
    features of Q and K, and those of V and the projection; and the hidden units of its
    MLP.
    """
    net = Declaration()
    stream = net.perm("stage0", model.width)
    net.conv("patch_embed", None, stream, bias=True)
    net.layer_norm("patch_norm", stream)
    stages = zip(model.depths, model.heads, strict=True)
    for stage, (depth, heads) in enumerate(stages):
        width = model.width * 2**stage
        if stage > 0:
            merged = Product((Fixed(4), stream))
            net.layer_norm(f"downsample_{stage}/norm", merged)
            stream = net.perm(f"stage{stage}", width)
            net.dense(f"downsample_{stage}/reduction", merged, stream, bias=False)
        for block in range(depth):
            net.transformer_block(
                f"layers_{stage}_{block}",
                stream,
                heads,
                width // heads,
                model.expansion * width,
                bias_table=_TABLE,
            )
    net.layer_norm("norm", stream)
    net.dense("head", stream, None)
    return net.spec()
