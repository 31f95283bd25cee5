"""Decoders, encoder-decoders, experts, recurrent networks and loops."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.zoo.case import Case, linen, normal, random_params, tokens
from benchmarks.zoo.decoder import VOCABULARY, WIDTH, Llama, causal_softmax


class GPT2(nn.Module):
    """Two blocks; the embedding is the head too."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embed = nn.Embed(VOCABULARY, WIDTH)
        positions = nn.Embed(ids.shape[1], WIDTH, name="positions")
        x = embed(ids) + positions(jnp.arange(ids.shape[1]))
        for _ in range(2):
            y = nn.LayerNorm()(x)
            y = nn.Dense(3 * 4 * 5, name=f"qkv{_}")(y)
            q, k, v = (p.reshape(*p.shape[:2], 4, 5) for p in jnp.split(y, 3, -1))
            logits = causal_softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
            y = jnp.einsum("bhqk,bkhd->bqhd", logits, v)
            x = x + nn.Dense(WIDTH)(y.reshape(*y.shape[:2], -1))
            x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(24)(nn.LayerNorm()(x))))
        return embed.attend(nn.LayerNorm()(x))


class EncoderDecoder(nn.Module):
    """An encoder block, and a decoder block with cross attention."""

    @nn.compact
    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH)(source)
        x = x + nn.MultiHeadDotProductAttention(4, qkv_features=24)(nn.LayerNorm()(x))
        x = x + nn.Dense(WIDTH)(nn.relu(nn.Dense(24)(nn.LayerNorm()(x))))
        memory = nn.LayerNorm()(x)
        y = nn.Embed(VOCABULARY, 12)(target)
        mask = nn.make_causal_mask(target)
        attention = nn.MultiHeadDotProductAttention(4, qkv_features=24)
        y = y + attention(nn.LayerNorm()(y), mask=mask)
        attention = nn.MultiHeadDotProductAttention(2, qkv_features=10)
        y = y + attention(nn.LayerNorm()(y), memory)
        y = y + nn.Dense(12)(nn.relu(nn.Dense(24)(nn.LayerNorm()(y))))
        return nn.Dense(VOCABULARY)(nn.LayerNorm()(y))


class Experts(nn.Module):
    """A dense mixture of experts between two Dense layers."""

    top: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        x = nn.Dense(WIDTH)(x)
        gates = jax.nn.softmax(nn.Dense(5, name="router")(x))
        if self.top:
            kept, numbers = jax.lax.top_k(gates, self.top)
            gates = (jax.nn.one_hot(numbers, 5) * kept[..., None]).sum(-2)
        up = self.param("up", init, (5, WIDTH, 12))
        down = self.param("down", init, (5, 12, WIDTH))
        y = nn.relu(jnp.einsum("bd,edf->bef", x, up))
        x = x + jnp.einsum("be,bef,efd->bd", gates, y, down)
        return nn.Dense(3)(x)


class Recurrent(nn.Module):
    """An embedding, a recurrent cell under scan, and a head."""

    cell: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, 6)(ids)
        x = nn.RNN(self.cell(10))(x)
        return nn.Dense(3)(x[:, -1])


class FusedLSTM(nn.Module):
    """An LSTM whose four gates are one kernel, under ``lax.scan``."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        x = nn.Embed(VOCABULARY, 6)(ids)
        kernel = self.param("kernel", init, (6, 40))
        recurrent = self.param("recurrent", init, (10, 40))
        bias = self.param("bias", nn.initializers.zeros, (40,))

        def step(carry: Any, row: jax.Array) -> Any:
            c, h = carry
            gates = row @ kernel + h @ recurrent + bias
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), None

        zeros = jnp.zeros((ids.shape[0], 10))
        (_, h), _ = jax.lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
        return nn.Dense(3)(h)


class Block(nn.Module):
    """A transformer block in the form that ``nn.scan`` takes."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        attention = nn.MultiHeadDotProductAttention(4, qkv_features=20)
        x = x + attention(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(24)(nn.LayerNorm()(x)))), None


class ScannedViT(nn.Module):
    """Three blocks under ``nn.scan`` with stacked parameters."""

    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(WIDTH)(x)
        block = nn.remat(Block) if self.remat else Block
        axes, rngs = {"params": 0}, {"params": True}
        blocks = nn.scan(block, variable_axes=axes, split_rngs=rngs, length=3)
        x, _ = blocks()(x, None)
        return nn.Dense(3)(nn.LayerNorm()(x).mean(1))


def _looped(params: Any, x: jax.Array) -> jax.Array:
    """A residual layer, shared by iterations and branches."""
    x = x @ params["first"]

    def body(_: int, h: jax.Array) -> jax.Array:
        return h + jnp.tanh(h @ params["shared"])

    x = jax.lax.fori_loop(0, 3, body, x)
    x = jax.lax.while_loop(lambda h: (h**2).mean() < 0.1, lambda h: 2 * h, x)
    x = jax.lax.cond(x.sum() > 0, jnp.sin, lambda h: h * params["scale"], x)
    return x @ params["last"]


def _loop_case() -> Case:
    shapes = {"first": (4, 8), "shared": (8, 8), "scale": (8,), "last": (8, 3)}
    structs = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    return Case(_looped, random_params(structs), (normal(2, 4),), 1)


IDS = tokens(2, 7, vocabulary=VOCABULARY)


def _case(model: nn.Module, perms: int, *inputs: Any) -> Callable[[], Case]:
    return lambda: linen(model, inputs, perms)


CASES: dict[str, Callable[[], Case]] = {
    # The stream is that of the embedding; four perms per block.
    "gpt2-tied": _case(GPT2(), 9, IDS),
    # A stream; for each block key heads, queries of a key head, V and O, and the GLU.
    "llama-rotary": _case(Llama(), 9, IDS),
    # The same, and Q and K within a head.
    "llama": _case(Llama(rotary=False), 11, IDS),
    "llama-query-norm": _case(Llama(rotary=False, query_norm=True), 11, IDS),
    # One key head: no perm of key heads.
    "multi-query": _case(Llama(rotary=False, key_heads=1), 9, IDS),
    "llama-fused-glu": _case(Llama(rotary=False, fused=True), 11, IDS),
    # Two streams; three attentions of three perms and two MLPs.
    "encoder-decoder": _case(EncoderDecoder(), 13, IDS, IDS[:, :5]),
    # The stream, the experts, the units of an expert.
    "experts": _case(Experts(), 3, normal(4, 5)),
    # Which experts are the top ones depends on their numbers where two are equal.
    "experts-top-2": _case(Experts(top=2), 2, normal(4, 5)),
    # The embedding and the state.
    "lstm": _case(Recurrent(nn.LSTMCell), 2, IDS),
    "gru": _case(Recurrent(nn.GRUCell), 2, IDS),
    "lstm-fused": _case(FusedLSTM(), 2, IDS),
    # The stream, and the four perms of a block.
    "scan": _case(ScannedViT(), 5, normal(2, 6, 5)),
    "scan-remat": _case(ScannedViT(remat=True), 5, normal(2, 6, 5)),
    "loops": _loop_case,
}
