"""Vision transformers: ways to write attention, and what is built on them."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.zoo.case import Case, linen, normal

HEADS, HEAD_DIM = 4, 6
WIDTH = 20
Qkv = tuple[jax.Array, jax.Array, jax.Array]


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention over ``[batch, tokens, heads, head_dim]``, heads merged."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    out = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)
    return out.reshape(*out.shape[:2], -1)


def timm(x: jax.Array) -> Qkv:
    """(3, heads, head_dim), as in timm: reshape, permute, unbind."""
    y = nn.Dense(3 * HEADS * HEAD_DIM, name="qkv")(x)
    y = y.reshape(*x.shape[:2], 3, HEADS, HEAD_DIM)
    q, k, v = jnp.moveaxis(y, 2, 0)
    return q, k, v


def split(x: jax.Array) -> Qkv:
    """Three thirds of the axis, each of them (heads, head_dim)."""
    y = nn.Dense(3 * HEADS * HEAD_DIM, name="qkv")(x)
    q, k, v = (
        part.reshape(*x.shape[:2], HEADS, HEAD_DIM) for part in jnp.split(y, 3, -1)
    )
    return q, k, v


def heads_first(x: jax.Array) -> Qkv:
    """(heads, 3, head_dim)."""
    y = nn.Dense(3 * HEADS * HEAD_DIM, name="qkv")(x)
    y = y.reshape(*x.shape[:2], HEADS, 3, HEAD_DIM)
    return y[..., 0, :], y[..., 1, :], y[..., 2, :]


def heads_first_split(x: jax.Array) -> Qkv:
    """(heads, 3 * head_dim), as in GPT-NeoX."""
    y = nn.Dense(3 * HEADS * HEAD_DIM, name="qkv")(x)
    y = y.reshape(*x.shape[:2], HEADS, 3 * HEAD_DIM)
    q, k, v = jnp.split(y, 3, axis=-1)
    return q, k, v


def general(x: jax.Array) -> Qkv:
    """A kernel [width, 3, heads, head_dim]."""
    y = nn.DenseGeneral((3, HEADS, HEAD_DIM), name="qkv")(x)
    return y[:, :, 0], y[:, :, 1], y[:, :, 2]


def stacked(x: jax.Array) -> Qkv:
    """A kernel [width, heads, head_dim, 3]."""
    y = nn.DenseGeneral((HEADS, HEAD_DIM, 3), name="qkv")(x)
    return y[..., 0], y[..., 1], y[..., 2]


def interleaved(x: jax.Array) -> Qkv:
    """(heads, head_dim, 3) in one axis."""
    y = nn.Dense(3 * HEADS * HEAD_DIM, name="qkv")(x)
    y = y.reshape(*x.shape[:2], HEADS, HEAD_DIM, 3)
    return y[..., 0], y[..., 1], y[..., 2]


class FusedAttention(nn.Module):
    qkv: Callable[[jax.Array], Qkv]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(x.shape[-1], name="out")(attend(*self.qkv(x)))


class EinsumAttention(nn.Module):
    """A kernel [3, width, heads, head_dim] in one einsum."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        shape = (3, x.shape[-1], HEADS, HEAD_DIM)
        y = jnp.einsum("btc,schd->sbthd", x, self.param("qkv", init, shape))
        return nn.Dense(x.shape[-1], name="out")(attend(*y))


def linen_attention() -> nn.Module:
    return nn.MultiHeadDotProductAttention(HEADS, qkv_features=HEADS * HEAD_DIM)


class ViT(nn.Module):
    """Three blocks; the first token or the mean of all goes to the head."""

    attention: Callable[[], nn.Module]
    cls: bool = True
    learned_positions: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(WIDTH, (4, 4), strides=4)(x)
        x = x.reshape(x.shape[0], -1, WIDTH)
        zeros = nn.initializers.zeros
        if self.cls:
            token = self.param("cls", zeros, (1, 1, WIDTH))
            x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        if self.learned_positions:
            x = x + self.param("positions", zeros, (1, *x.shape[1:]))
        else:
            angles = jnp.arange(x.shape[1])[:, None] / 7.0 ** jnp.arange(WIDTH)
            x = x + jnp.sin(angles)
        for _ in range(3):
            x = x + self.attention()(nn.LayerNorm()(x))
            y = nn.gelu(nn.Dense(28)(nn.LayerNorm()(x)))
            x = x + nn.Dense(WIDTH)(y)
        x = nn.LayerNorm()(x)
        return nn.Dense(3)(x[:, 0] if self.cls else x.mean(1))


class Mixer(nn.Module):
    """Two blocks of token mixing and channel mixing."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(WIDTH, (4, 4), strides=4)(x)
        x = x.reshape(x.shape[0], -1, WIDTH)
        for _ in range(2):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            y = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(10)(y)))
            x = x + y.swapaxes(1, 2)
            y = nn.gelu(nn.Dense(28)(nn.LayerNorm()(x)))
            x = x + nn.Dense(WIDTH)(y)
        return nn.Dense(3)(nn.LayerNorm()(x).mean(1))


class WindowAttention(nn.Module):
    """Attention in windows with a table of relative position biases."""

    heads: int
    window: int
    shift: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, features = x.shape
        size, heads = self.window, self.heads
        rows, columns = height // size, width // size
        x = jnp.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.reshape(batch, rows, size, columns, size, features)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size, features)
        y = nn.Dense(3 * features, name="qkv")(x)
        y = y.reshape(*x.shape[:2], 3, heads, features // heads)
        q, k, v = jnp.moveaxis(y, 2, 0)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) + self._biases()
        if self.shift:
            mask = self._mask(height, width)
            logits = logits.reshape(batch, -1, heads, size**2, size**2) + mask
            logits = logits.reshape(-1, heads, size**2, size**2)
        out = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)
        out = nn.Dense(features, name="out")(out.reshape(x.shape))
        out = out.reshape(batch, rows, columns, size, size, features)
        out = out.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, features)
        return jnp.roll(out, (self.shift, self.shift), (1, 2))

    def _biases(self) -> jax.Array:
        size = self.window
        shape = ((2 * size - 1) ** 2, self.heads)
        table = self.param("table", nn.initializers.zeros, shape)
        place = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size)), -1)
        place = place.reshape(-1, 2)
        distance = place[:, None] - place[None] + size - 1
        index = distance[..., 0] * (2 * size - 1) + distance[..., 1]
        biases = table[index.reshape(-1)].reshape(size**2, size**2, self.heads)
        return biases.transpose(2, 0, 1)[None]

    def _mask(self, height: int, width: int) -> jax.Array:
        size = self.window
        spans = (slice(0, -size), slice(-size, -self.shift), slice(-self.shift, None))
        regions = jnp.zeros((height, width))
        for i, rows in enumerate(spans):
            for j, columns in enumerate(spans):
                regions = regions.at[rows, columns].set(3 * i + j)
        regions = regions.reshape(height // size, size, width // size, size)
        regions = regions.transpose(0, 2, 1, 3).reshape(-1, size**2)
        apart = regions[:, None] != regions[:, :, None]
        return jnp.where(apart, -100.0, 0.0)[:, None]


class Swin(nn.Module):
    """Stages of blocks with shifted windows, patch merging between them."""

    depths: tuple[int, ...] = (2, 2)
    width: int = 12
    patch: int = 2
    window: int = 2
    head_dim: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        patch = (self.patch, self.patch)
        x = nn.LayerNorm()(nn.Conv(self.width, patch, strides=patch)(x))
        for stage, depth in enumerate(self.depths):
            features = self.width * 2**stage
            if stage:
                batch, height, width, old = x.shape
                x = x.reshape(batch, height // 2, 2, width // 2, 2, old)
                x = x.transpose(0, 1, 3, 4, 2, 5)
                x = x.reshape(batch, height // 2, width // 2, 4 * old)
                x = nn.Dense(features, use_bias=False)(nn.LayerNorm()(x))
            for block in range(depth):
                shift = block % 2 * (self.window // 2)
                heads = features // self.head_dim
                attention = WindowAttention(heads, self.window, shift)
                x = x + attention(nn.LayerNorm()(x))
                y = nn.gelu(nn.Dense(2 * features)(nn.LayerNorm()(x)))
                x = x + nn.Dense(features)(y)
        return nn.Dense(3)(nn.LayerNorm()(x).mean((1, 2)))


IMAGE = (2, 8, 8, 3)


def _case(model: nn.Module, perms: int) -> Callable[[], Case]:
    return lambda: linen(model, (normal(*IMAGE),), perms)


_LAYOUTS = (timm, split, heads_first, heads_first_split, general, stacked)

# One stream; for each block the heads, Q and K in a head, V and O in a head, the MLP.
CASES: dict[str, Callable[[], Case]] = {
    "vit-linen-cls": _case(ViT(linen_attention), 13),
    "vit-linen-mean": _case(ViT(linen_attention, cls=False), 13),
    **{
        f"vit-{layout.__name__}": _case(ViT(lambda f=layout: FusedAttention(f)), 13)
        for layout in _LAYOUTS
    },
    "vit-einsum": _case(ViT(EinsumAttention), 13),
    # No entry tells a family from the index inside it in the same axis: Q, K, V tied.
    "vit-interleaved": _case(ViT(lambda: FusedAttention(interleaved)), 10),
    # Fixed positions freeze the stream.
    "vit-sincos": _case(ViT(linen_attention, learned_positions=False), 12),
    # A stream, and for each block the hidden units of tokens and of channels.
    "mixer": _case(Mixer(), 5),
    # Two streams, and four per block as in a ViT.
    "swin": _case(Swin(), 18),
}
