"""Layers, members and steps that are stacked: loops over layers, ensembles, graphs."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.zoo.case import Case, linen, normal, random_params, tokens
from benchmarks.zoo.decoder import VOCABULARY, Llama

LAYERS = 3


class Encoder(nn.Module):
    """A ViT as in big_vision: scanned blocks that also return all that they compute.

    Attributes:
      scanned: whether the blocks are under ``nn.scan``, or called one by one.
      deep: whether the outputs of all blocks are read, rather than that of the last.
    """

    scanned: bool = True
    deep: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(16, name="embedding")(x)
        block = nn.remat(EncoderBlock) if self.remat else EncoderBlock
        if self.scanned:
            axes, rngs = {"params": 0}, {"params": True}
            blocks = nn.scan(block, variable_axes=axes, split_rngs=rngs, length=LAYERS)
            x, stacked = blocks(name="blocks")(x, None)
            layers = [jax.tree.map(lambda y, k=k: y[k], stacked) for k in range(LAYERS)]
        else:
            layers = []
            for k in range(LAYERS):
                x, found = block(name=f"blocks_{k}")(x, None)
                layers.append(found)
        if self.deep:
            x = sum(layer["+mlp"] for layer in layers)
        return nn.Dense(3, name="head")(
            Probe(name="pool")(nn.LayerNorm(name="norm")(x))
        )


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, dict[str, jax.Array]]:
        out = {}
        attention = nn.MultiHeadDotProductAttention(
            2, qkv_features=12, name="attention"
        )
        out["sa"] = attention(nn.LayerNorm(name="norm1")(x))
        x = out["+sa"] = x + out["sa"]
        y = nn.gelu(nn.Dense(20, name="up")(nn.LayerNorm(name="norm2")(x)))
        out["mlp"] = nn.Dense(16, name="down")(y)
        x = out["+mlp"] = x + out["mlp"]
        return x, out


class Probe(nn.Module):
    """Attention pooling with a learned query, and a residual MLP."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.xavier_uniform()
        probe = self.param("probe", init, (1, 1, x.shape[-1]))
        probe = jnp.tile(probe, (x.shape[0], 1, 1))
        x = nn.MultiHeadDotProductAttention(2, qkv_features=12, name="attention")(
            probe, x
        )
        y = nn.gelu(nn.Dense(14, name="up")(nn.LayerNorm(name="norm")(x)))
        return (x + nn.Dense(x.shape[-1], name="down")(y))[:, 0]


class Decoder(nn.Module):
    """Blocks of grouped-query attention and SwiGLU, under ``nn.scan`` or not."""

    scanned: bool = True
    remat: bool = True

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embed = nn.Embed(VOCABULARY, 16, name="embedding")
        x = embed(ids)
        block = nn.remat(DecoderBlock) if self.remat else DecoderBlock
        if self.scanned:
            axes, rngs = {"params": 0}, {"params": True}
            blocks = nn.scan(block, variable_axes=axes, split_rngs=rngs, length=LAYERS)
            x, _ = blocks(name="blocks")(x, None)
        else:
            for k in range(LAYERS):
                x, _ = block(name=f"blocks_{k}")(x, None)
        return embed.attend(nn.RMSNorm(name="norm")(x))


class DecoderBlock(Llama):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        x = x + self._attention(nn.RMSNorm()(x))
        return x + self._glu(nn.RMSNorm()(x)), None


class Controller(nn.Module):
    """A Dense layer before a recurrent one whose state is reset, as in PPO."""

    @nn.compact
    def __call__(self, x: jax.Array, resets: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(12)(x))

        def step(cell: nn.Module, carry: jax.Array, row: Any) -> Any:
            inputs, reset = row
            carry = jnp.where(reset[:, None], jnp.zeros_like(carry), carry)
            return cell(carry, inputs)

        scan = nn.scan(
            step, variable_broadcast="params", split_rngs={"params": False},
            in_axes=1, out_axes=1,
        )  # fmt: skip
        start = jnp.zeros((x.shape[0], 10))
        _, x = scan(nn.GRUCell(10), start, (x, resets))
        return nn.Dense(3)(x[:, -1])


def residual(x: jax.Array, up: jax.Array, bias: jax.Array, down: Any) -> jax.Array:
    return x + jnp.tanh(x @ up + bias) @ down


def looped(params: Any, x: jax.Array) -> jax.Array:
    """Stacked layers, indexed by a counter."""

    def body(k: jax.Array, x: jax.Array) -> jax.Array:
        return residual(x, *(params[name][k] for name in ("up", "bias", "down")))

    x = jax.lax.fori_loop(0, LAYERS, body, x @ params["first"])
    return x @ params["last"]


def taken(params: Any, x: jax.Array) -> jax.Array:
    """The same with ``take``, and a counter that is scanned."""

    def body(x: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
        own = (jnp.take(params[name], k, 0) for name in ("up", "bias", "down"))
        return residual(x, *own), None

    x, _ = jax.lax.scan(body, x @ params["first"], jnp.arange(LAYERS))
    return x @ params["last"]


def critics(params: Any, x: jax.Array) -> jax.Array:
    """The smaller of two critics' values, computed by ``vmap``."""

    def critic(own: Any, x: jax.Array) -> jax.Array:
        h = nn.relu(x @ own["w1"] + own["b1"])
        return nn.tanh(h @ own["w2"]) @ own["w3"]

    return jax.vmap(critic, (0, None))(params, x).min(0)


def ensemble(params: Any, x: jax.Array) -> jax.Array:
    """All members' outputs, computed by ``vmap``."""
    return jax.vmap(lambda own, x: jnp.tanh(x @ own["w1"]) @ own["w2"], (0, None))(
        params, x
    )


def token_mixing(params: Any, x: jax.Array) -> jax.Array:
    """Token mixing alone: units of tokens are only seen beside channels."""
    t = nn.relu(jnp.einsum("btc,th->bch", x @ params["w"], params["u"]))
    return jnp.einsum("bch,ht->btc", t, params["v"]).mean(1) @ params["o"]


SENDERS, RECEIVERS = np.array([0, 1, 2, 3, 4, 0, 2]), np.array([1, 2, 3, 4, 0, 2, 4])


def graph_net(params: Any, nodes: jax.Array, edges: jax.Array) -> jax.Array:
    """A graph network in the style of jraph: edges, nodes, and a global readout."""

    def mlp(own: Any, *parts: jax.Array) -> jax.Array:
        return nn.tanh(nn.tanh(jnp.concatenate(parts, -1) @ own["w1"]) @ own["w2"])

    def one(nodes: jax.Array, edges: jax.Array) -> jax.Array:
        edges = mlp(params["edge"], edges, nodes[SENDERS], nodes[RECEIVERS])
        received = jax.ops.segment_sum(edges, RECEIVERS, len(nodes))
        nodes = mlp(params["node"], nodes, received)
        return jnp.concatenate([nodes.sum(0), edges.sum(0)]) @ params["out"]

    return jax.vmap(one)(nodes, edges)


def _plain(
    function: Callable[..., Any], perms: int, shapes: Any, *inputs: Any
) -> Callable[[], Case]:
    def make() -> Case:
        structs = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        params = jax.tree.map(jnp.asarray, random_params(structs))
        return Case(function, params, inputs, perms)

    return make


IDS = tokens(2, 6, vocabulary=VOCABULARY)
PATCHES = normal(2, 5, 6)
_STACK = {
    "first": (4, 8), "up": (LAYERS, 8, 10), "bias": (LAYERS, 10),
    "down": (LAYERS, 10, 8), "last": (8, 3),
}  # fmt: skip


def _case(model: nn.Module, perms: int, *inputs: Any) -> Callable[[], Case]:
    return lambda: linen(model, inputs, perms)


CASES: dict[str, Callable[[], Case]] = {
    # The stream; heads, Q and K, V and O, and the MLP of a block, of every layer one;
    # the pooling's query, its stream, its heads, Q and K, V and O, and its MLP.
    "scan-encoder": _case(Encoder(), 5 + 6, PATCHES),
    "scan-encoder-remat": _case(Encoder(remat=True), 5 + 6, PATCHES),
    "unrolled-encoder": _case(Encoder(scanned=False), 1 + 3 * 4 + 6, PATCHES),
    # The stream; key heads, the queries of one, V and O, and the GLU.
    "scan-decoder": _case(Decoder(), 5, IDS),
    "unrolled-decoder": _case(Decoder(scanned=False), 1 + 3 * 4, IDS),
    # What the recurrent layer reads, and its state.
    "controller": _case(Controller(), 2, normal(2, 7, 5), normal(2, 7) > 0.5),
    # The stream and the hidden units of every layer.
    "fori-indexed": _plain(looped, 2, _STACK, normal(2, 4)),
    "scan-taken": _plain(taken, 2, _STACK, normal(2, 4)),
    # The hidden units of every member.
    "critics": _plain(
        critics,
        2,
        {"w1": (2, 4, 8), "b1": (2, 8), "w2": (2, 8, 9), "w3": (2, 9)},
        normal(2, 4),
    ),
    "ensemble": _plain(ensemble, 1, {"w1": (3, 4, 8), "w2": (3, 8, 2)}, normal(2, 4)),
    # Channels and the hidden units of tokens.
    "token-mixing": _plain(
        token_mixing,
        2,
        {"w": (5, 6), "u": (4, 7), "v": (7, 4), "o": (6, 3)},
        normal(2, 4, 5),
    ),
    # Hidden units and features of edges and of nodes.
    "graph-net": _plain(
        graph_net,
        4,
        {
            "edge": {"w1": (3 + 2 * 4, 10), "w2": (10, 6)},
            "node": {"w1": (4 + 6, 12), "w2": (12, 8)},
            "out": (8 + 6, 3),
        },
        normal(2, 5, 4),
        normal(2, 7, 3),
    ),
}
