"""Vision transformer (Dosovitskiy et al. 2021), as in timm.

It has learned positions, pre-norm blocks, Q, K and V from one Dense layer, and the
exact GELU.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from zipjax.models.declaration import Declaration
from zipjax.models.layers import Dense, attention, transformer_block
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import AnyArray

_EPSILON = 1e-6


class Attention(nn.Module):
    """Self-attention over all tokens.

    Attributes:
      heads: number of heads.
    """

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens features"]
    ) -> Float[Array, "batch tokens features"]:
        """Returns the heads' outputs, projected."""
        return attention(x, self.heads)


class Block(nn.Module):
    """Attention and an MLP, each with a norm before it and a residual connection.

    Attributes:
      heads: number of heads.
      hidden: width of the MLP's hidden layer.
    """

    heads: int
    hidden: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens features"]
    ) -> Float[Array, "batch tokens features"]:
        """Returns the residual stream after the block."""
        attend = Attention(self.heads, name="attn")
        return transformer_block(x, attend, hidden=self.hidden, epsilon=_EPSILON)


class ViT(nn.Module):
    """Patch embedding, blocks, and a linear head on a class token or on the mean.

    Attributes:
      outputs: number of outputs.
      width: features of the residual stream.
      depth: number of blocks.
      heads: number of heads of every block.
      patch: side of the patches.
      hidden: width of the MLPs' hidden layer; by default four times the stream's.
      class_token: whether the head reads a token of its own, in front of the patches;
        otherwise it reads the mean of the patches.
    """

    outputs: int
    width: int
    depth: int
    heads: int
    patch: int = 16
    hidden: int | None = None
    class_token: bool = True

    @property
    def mlp_width(self) -> int:
        """Width of the MLPs' hidden layer."""
        return self.hidden or 4 * self.width

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Returns the outputs; ``train`` makes no difference."""
        del train
        x = self._embed(x)
        for number in range(self.depth):
            x = Block(self.heads, self.mlp_width, name=f"blocks_{number}")(x)
        # The norm acts on each token, so a token may be selected before it. timm takes
        # the mean before it as well, and then calls this norm ``fc_norm``.
        x = x[:, 0] if self.class_token else jnp.mean(x, axis=1)
        x = nn.LayerNorm(epsilon=_EPSILON, name="norm")(x)
        return Dense(self.outputs, name="head")(x)

    def _embed(
        self, x: Float[AnyArray, "batch height width channels"]
    ) -> Float[Array, "batch tokens features"]:
        """Returns the embedded patches, row by row, with their positions."""
        side = (self.patch, self.patch)
        patches = nn.Conv(self.width, side, side, "VALID", name="patch_embed")(x)
        tokens = jnp.reshape(patches, (x.shape[0], -1, self.width))
        normal = nn.initializers.normal(0.02)
        if self.class_token:
            token = self.param("cls_token", normal, (1, 1, self.width))
            token = jnp.tile(token, (x.shape[0], 1, 1))
            tokens = jnp.concatenate([token, tokens], axis=1)
        return tokens + self.param("pos_embed", normal, (1, *tokens.shape[1:]))


def vit_small(outputs: int = 1000, *, patch: int = 16) -> ViT:
    """Returns timm's ViT-S."""
    return ViT(outputs, width=384, depth=12, heads=6, patch=patch)


def vit_base(outputs: int = 1000, *, patch: int = 16) -> ViT:
    """Returns timm's ViT-B."""
    return ViT(outputs, width=768, depth=12, heads=12, patch=patch)


def spec(model: ViT) -> PermutationSpec:
    """Returns the declared permutation spec: one perm, and four per block.

    All blocks write to one residual stream, which is one perm.
    The four perms of a block are its heads; within each head, the features of Q and K,
    and those of V and the projection; and the hidden units of its MLP.
    """
    net = Declaration()
    stream = net.perm("stream", model.width)
    net.conv("patch_embed", None, stream, bias=True)
    if model.class_token:
        net.param("cls_token", None, None, stream)
    net.param("pos_embed", None, None, stream)
    for name in (f"blocks_{number}" for number in range(model.depth)):
        net.transformer_block(
            name, stream, model.heads, model.width // model.heads, model.mlp_width
        )
    net.layer_norm("norm", stream)
    net.dense("head", stream, None)
    return net.spec()
