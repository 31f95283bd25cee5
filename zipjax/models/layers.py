"""Layers that several networks share, with PyTorch's padding and epsilons."""

import typing
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zipjax.types import AnyArray


class _Resizable:
    """Accepts parameters of any width.

    Flax refuses parameters whose shape differs from what the layer would create. But a
    merged network may have more or fewer units than its parents (``num_units``).
    """

    def param(self: Any, name: str, init_fn: Callable[..., Any], *args: Any) -> Any:
        """Returns a given parameter unmodified, or creates a new one."""
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        return nn.Module.param(self, name, init_fn, *args)


@typing.no_type_check
class Conv(_Resizable, nn.Conv):
    """A convolution as wide as its parameters."""


@typing.no_type_check
class Dense(_Resizable, nn.Dense):
    """A linear layer as wide as its parameters."""


@typing.no_type_check
class ConvTranspose(_Resizable, nn.ConvTranspose):
    """A transposed convolution as wide as its parameters."""


def conv(
    features: int,
    size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    bias: bool = False,
    name: str,
) -> nn.Conv:
    """Returns a square convolution of odd size.

    It pads as PyTorch does: "SAME" would pad strided convolutions on the other side.
    """
    reach = dilation * (size // 2)
    return Conv(
        features,
        kernel_size=(size, size),
        strides=(stride, stride),
        padding=((reach, reach), (reach, reach)),
        kernel_dilation=dilation,
        use_bias=bias,
        name=name,
    )


def norm(
    groups: int | None, *, train: bool, name: str
) -> Callable[[Float[AnyArray, "*batch units"]], Float[Array, "*batch units"]]:
    """Returns a GroupNorm with the given number of groups, or for None a BatchNorm."""
    if groups is None:
        return nn.BatchNorm(use_running_average=not train, epsilon=1e-5, name=name)
    return nn.GroupNorm(num_groups=groups, epsilon=1e-5, name=name)


def attention(
    x: Float[AnyArray, "*batch tokens features"],
    heads: int,
    bias: Float[AnyArray, "..."] | float = 0.0,
) -> Float[Array, "*batch tokens features"]:
    """Returns self-attention with Q, K and V from one Dense layer, as in timm.

    To be called from a compact method, whose module gets the layers ``qkv`` and
    ``proj``.

    Args:
      x: tokens.
      heads: number of heads.
      bias: added to the logits ``[*batch, heads, tokens, tokens]``.

    Returns:
      The projected mixture of values.

    Raises:
      ValueError: if the features cannot be divided among the heads.
    """
    features = x.shape[-1]
    if features % heads:
        raise ValueError(
            f"{features} features do not divide into {heads} heads: choose a divisor"
        )
    fused = nn.Dense(3 * features, name="qkv")(x)
    fused = fused.reshape(*x.shape[:-1], 3, heads, features // heads)
    q, k, v = jnp.moveaxis(fused, -3, 0)
    logits = jnp.einsum("...qhd,...khd->...hqk", q, k) * (features // heads) ** -0.5
    weights = jax.nn.softmax(logits + bias)
    mixed = jnp.einsum("...hqk,...khd->...qhd", weights, v)
    return nn.Dense(features, name="proj")(mixed.reshape(x.shape))


class FeedForward(nn.Module):
    """The two Dense layers of a transformer block, with the exact GELU.

    Attributes:
      hidden: width of the hidden layer.
    """

    hidden: int

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*batch features"]
    ) -> Float[Array, "*batch features"]:
        """Returns features of the same shape."""
        hidden = nn.gelu(Dense(self.hidden, name="fc1")(x), approximate=False)
        return nn.Dense(x.shape[-1], name="fc2")(hidden)


def transformer_block(
    x: Float[Array, "*batch features"],
    attend: nn.Module,
    *,
    hidden: int,
    epsilon: float,
) -> Float[Array, "*batch features"]:
    """Returns a residual stream after attention and an MLP, each with a norm before it.

    To be called from a compact method, whose module gets the layers ``norm1``,
    ``norm2`` and ``mlp``.

    Args:
      x: the residual stream.
      attend: the attention.
      hidden: width of the MLP's hidden layer.
      epsilon: epsilon of the norms.

    Returns:
      The residual stream after the block.
    """
    x = x + attend(nn.LayerNorm(epsilon=epsilon, name="norm1")(x))
    y = nn.LayerNorm(epsilon=epsilon, name="norm2")(x)
    return x + FeedForward(hidden, name="mlp")(y)
