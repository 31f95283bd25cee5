"""Cuts inside streams, as inferred from functions: by hand for every block."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.zoo.case import linen, normal
from tests.networks import images
from tests.streams import BLOCKS, CUTS, INPUTS, stream_apply, stream_params
from tests.zoo import convnets, sequences, vits
from zipjax import PermutationSpec, infer_spec
from zipjax.spec.entries import axes_of
from zipjax.trees import path_leaves

X = images(5, (INPUTS,))
PARAMS = stream_params(0)
SPEC = infer_spec(stream_apply, PARAMS, X)


def test_every_block_of_a_stream_ends_at_a_cut():
    assert [cut.layers for cut in SPEC.cuts] == CUTS
    assert [cut.boundary is None for cut in SPEC.cuts] == [False] * BLOCKS + [True]
    kernels = ["embed", "blocks/0/down/w", "blocks/1/down/w"]
    assert [cut.name for cut in SPEC.cuts] == [
        *(f"after {p}" for p in kernels),
        "embed",
    ]
    assert [cut.number for cut in SPEC.cuts] == [1, 2, 3, 4]
    for number, cut in enumerate(SPEC.cuts):
        inner = [f"blocks/{k}/up" for k in range(min(number, BLOCKS))]
        assert set(cut.perms) == {"embed", *inner}
        assert cut.perm == "embed"
        trunk = {
            p for p in path_leaves(PARAMS) if p.startswith(("embed", *_upto(number)))
        }
        assert SPEC.trunk(cut.number) == SPEC.trunk(cut.name) == trunk


def _upto(number):
    return [f"blocks/{k}" for k in range(min(number, BLOCKS))]


def test_the_stream_itself_stops_a_zip_where_it_did():
    assert SPEC.stop("embed") == SPEC.cuts[-1]
    declared = PermutationSpec(SPEC.entries, SPEC.perms)
    assert [cut.layers for cut in declared.cuts] == CUTS[-1:]
    with pytest.raises(
        ValueError, match=r"not a valid cut.*2 \('after blocks/0/down/w'"
    ):
        SPEC.stop("blocks/0/up")


def test_boundaries_are_kept_as_json_and_in_other_widths():
    again = PermutationSpec.from_json(SPEC.to_json())
    assert again == SPEC
    assert hash(again) == hash(SPEC)
    assert again.cuts == SPEC.cuts
    assert PermutationSpec(SPEC.entries, SPEC.perms, SPEC.depths) != SPEC
    wide = SPEC.resize({"embed": 12})
    assert wide.boundaries == SPEC.boundaries
    fits = wide.boundaries[0].fits
    assert fits((9, 12), wide.sizes)
    assert not fits((9, 6), wide.sizes)
    assert not fits((12,), wide.sizes)


# Layers before the cuts inside streams, by hand: the embedding is one, attention (Q, K
# and V, then the projection) two, an MLP two, a block of a ResNet two or three. After
# the last sum of a stream, the cut is closed, unless an embedding is read again.
FOUND = {
    "vit-linen-cls": [1, 3, 5, 7, 9, 11],
    "vit-timm": [1, 3, 5, 7, 9, 11],
    "gpt2-tied": [1, 3, 5, 7, 9],
    "llama-rotary": [1, 3, 5, 7],
    # Three stages of two blocks: the second block of each ends at a closed cut.
    "resnet-batch": [1, 3, 7, 11],
    "resnext": [1, 4],
    # A concatenation grows by one layer at a time.
    "densenet-batch": [1, 2, 3],
    "swin": [1, 3, 5, 7, 10, 12, 14, 16],
    # After the encoder's two blocks, each of attention and an MLP, the decoder reads
    # its output from its second sum on; then again through one value.
    "encoder-decoder": [1, 3, 5, 7],
    # Layers under scan are one value: there is none between them.
    "scan": [1],
    "mlp": [],
    "unet": [],
}


@pytest.mark.parametrize("name", FOUND)
def test_cuts_of_the_zoo(name):
    case = {**vits.CASES, **convnets.CASES, **sequences.CASES}[name]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    inside = [cut for cut in spec.cuts if cut.boundary is not None]
    assert [cut.layers for cut in inside] == FOUND[name]
    trunks = [spec.trunk(cut.number) for cut in spec.cuts]
    assert all(a <= b for a, b in itertools.pairwise(trunks))


def test_tied_embeddings_are_in_the_trunk_and_in_the_heads():
    case = sequences.CASES["gpt2-tied"]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    table = "params/Embed_0/embedding"
    assert [x.shared for x in spec.boundaries] == [{table}] * 5
    *_, last, closed = spec.cuts
    # Both are at the end of the stream, but only one of them leaves heads.
    assert last.layers == closed.layers == 9
    assert spec.trunk(last.number) == spec.trunk(closed.number) == set(spec.entries)


def test_groups_lie_on_the_boundary():
    case = convnets.CASES["resnet-group-padded"]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    (*pixels, channels) = spec.boundaries[0].entries
    assert pixels == [None] * 3
    names = [axis.perm for axis in axes_of(channels)]
    assert len(names) > 2
    assert {group for name in names for group in spec.perms[name].groups} <= {*names}


class Whisper(nn.Module):
    """Two convolutions, positions, and blocks over the frames; a decoder of tokens."""

    first: str

    @nn.compact
    def __call__(self, frames, tokens):
        embed = nn.Embed(7, 8, name="tokens")
        y = embed(tokens) if self.first == "decoder" else None
        x = nn.gelu(nn.Conv(8, (3,), name="conv1")(frames))
        x = nn.gelu(nn.Conv(8, (3,), strides=2, name="conv2")(x))
        x = x + np.sin(np.arange(x.shape[1])[:, None] * np.ones(8))
        for k in range(2):
            x = x + self._mlp(
                x + nn.Dense(8, name=f"mix{k}")(x.mean(1, keepdims=True)), k
            )
        memory = nn.LayerNorm(name="end")(x)
        y = embed(tokens) if y is None else y
        for k in range(2):
            scores = jax.nn.softmax(jnp.einsum("btc,bsc->bts", y, memory))
            y = y + nn.Dense(8, name=f"cross{k}")(
                jnp.einsum("bts,bsc->btc", scores, memory)
            )
            y = y + self._mlp(y, k + 2)
        return embed.attend(y)

    def _mlp(self, x, number):
        hidden = nn.gelu(nn.Dense(9, name=f"up{number}")(x))
        return nn.Dense(8, name=f"down{number}")(hidden)


@pytest.mark.parametrize("first", ["encoder", "decoder"])
def test_an_encoder_is_cut_although_the_decoder_is_beside_it(first):
    frames = normal(2, 6, 5)
    case = linen(Whisper(first), (frames, np.array([[1, 2, 3]] * 2)), 0)
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    inside = [cut for cut in spec.cuts if cut.boundary is not None]
    # The decoder reads the memory until its last cross attention.
    kernels = ["conv1", "conv2", "down0", "down1", "cross1", "down3"]
    assert [cut.name.split("/")[1] for cut in inside] == kernels
    encoder = {p.split("/")[1] for p in spec.trunk(inside[3].name)}
    blocks = {f"{name}{k}" for name in ("mix", "up", "down") for k in (0, 1)}
    assert encoder == {"conv1", "conv2", *blocks, "end"}
