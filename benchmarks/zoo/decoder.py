"""A decoder in Linen, as deep as one likes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

VOCABULARY, WIDTH = 11, 16


def causal_softmax(logits: jax.Array) -> jax.Array:
    """Returns attention to the tokens so far, from logits [..., queries, keys]."""
    length = logits.shape[-1]
    mask = jnp.tril(jnp.ones((length, length), bool))
    return jax.nn.softmax(jnp.where(mask, logits, -1e9))


class Llama(nn.Module):
    """Blocks of RMSNorm, grouped-query attention and SwiGLU."""

    blocks: int = 2
    rotary: bool = True
    key_heads: int = 2
    query_norm: bool = False
    fused: bool = False

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH)(ids)
        for _ in range(self.blocks):
            x = x + self._attention(nn.RMSNorm()(x))
            x = x + self._glu(nn.RMSNorm()(x))
        return nn.Dense(VOCABULARY, use_bias=False)(nn.RMSNorm()(x))

    def _attention(self, x: jax.Array) -> jax.Array:
        heads, keys = 4, self.key_heads
        q = nn.DenseGeneral((heads, 6), use_bias=False)(x)
        k = nn.DenseGeneral((keys, 6), use_bias=False)(x)
        v = nn.DenseGeneral((keys, 6), use_bias=False)(x)
        if self.query_norm:
            q, k = nn.RMSNorm()(q), nn.RMSNorm()(k)
        if self.rotary:
            q, k = _rotated(q), _rotated(k)
        k, v = (jnp.repeat(y, heads // keys, axis=2) for y in (k, v))
        weights = causal_softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return nn.DenseGeneral(WIDTH, (-2, -1), use_bias=False)(y)

    def _glu(self, x: jax.Array) -> jax.Array:
        if self.fused:
            gate, up = jnp.split(nn.Dense(2 * 20, use_bias=False)(x), 2, axis=-1)
        else:
            gate = nn.Dense(20, use_bias=False)(x)
            up = nn.Dense(20, use_bias=False)(x)
        return nn.Dense(WIDTH, use_bias=False)(nn.silu(gate) * up)


def _rotated(x: jax.Array) -> jax.Array:
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] / 100.0 ** (jnp.arange(half) / half)
    angle = jnp.concatenate([angle, angle], -1)[:, None]
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * jnp.cos(angle) + turned * jnp.sin(angle)
