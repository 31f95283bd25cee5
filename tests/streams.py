"""Small networks with residual streams, as plain functions that run at any width."""

import jax
import jax.numpy as jnp
import numpy as np

import zipjax
from tests.networks import randomise
from zipjax.spec.verify import Permutations, random_permutations

INPUTS, WIDTH, HIDDEN, BLOCKS = 4, 6, 5, 3
CUTS = [1, 3, 5, 7]  # The numbers of layers before each cut; the last one is closed.


def stream_params(seed, *, outputs=3, norm=False):
    """Returns an embedding, blocks of two layers and a head."""
    shapes = {
        "embed": (INPUTS, WIDTH),
        "blocks": [
            {
                "up": {"w": (WIDTH, HIDDEN), "b": (HIDDEN,)},
                "down": {"w": (HIDDEN, WIDTH)},
            }
            for _ in range(BLOCKS)
        ],
        "head": {"w": (WIDTH, outputs), "b": (outputs,)},
    }
    if norm:
        stats = {"mean": (HIDDEN,), "var": (HIDDEN,)}
        shapes["norms"] = [stats for _ in range(BLOCKS)]
    like = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    return randomise(like, seed)


def stream(params, x):
    """Returns the stream after all blocks."""
    return after_blocks(params, x @ params["embed"])


def after_blocks(params, x):
    for number, block in enumerate(params["blocks"]):
        y = x @ block["up"]["w"] + block["up"]["b"]
        if "norms" in params:
            norm = params["norms"][number]
            y = (y - norm["mean"]) * jax.lax.rsqrt(norm["var"] + 1e-3)
        x = x + jax.nn.relu(y) @ block["down"]["w"]
    return x


def stream_apply(params, x):
    return stream(params, x) @ params["head"]["w"] + params["head"]["b"]


def copy_of(params, spec, seed=0):
    """Returns a copy with its units reordered, and how they are matched."""
    drawn = random_permutations(spec, jax.random.key(seed))
    return zipjax.permute_params(params, spec, drawn), matches_of(drawn)


def matches_of(drawn: Permutations):
    """Returns the assignments that undo permutations of a copy.

    Its unit k is the model's unit ``indices[k]``; in the copy's groups of a nested
    perm, which are numbered as in the model, ``indices[*groups, k]``.
    """
    return {
        perm: np.concatenate(
            [np.broadcast_to(np.arange(x.shape[-1]), x.shape), x], axis=-1
        )
        for perm, x in drawn.items()
    }


def upto(assignments, cut):
    """Returns the assignments of the perms that are zipped up to a cut."""
    return {perm: x for perm, x in assignments.items() if perm in cut.perms}


def apart(spec, cut, count):
    """Returns assignments that merge no unit with any other."""
    return {perm: np.arange(count * spec.sizes[perm]) for perm in cut.perms}
