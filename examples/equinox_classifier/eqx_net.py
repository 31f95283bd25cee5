"""A classifier in Equinox, and what ``zipjax merge`` needs: function, net, batches."""

import equinox as eqx
import jax
import numpy as np
from sklearn.datasets import load_digits


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width, hidden, key):
        up, down = jax.random.split(key)
        self.norm = eqx.nn.LayerNorm(width)
        self.up = eqx.nn.Linear(width, hidden, key=up)
        self.down = eqx.nn.Linear(hidden, width, key=down)

    def __call__(self, x):
        return x + self.down(jax.nn.gelu(self.up(self.norm(x))))


class Net(eqx.Module):
    embed: eqx.nn.Linear
    block: Block
    head: eqx.nn.Linear

    def __init__(self, key):
        embed, block, head = jax.random.split(key, 3)
        self.embed = eqx.nn.Linear(64, 32, key=embed)
        self.block = Block(32, 64, block)
        self.head = eqx.nn.Linear(32, 10, key=head)

    def __call__(self, x):
        return self.head(self.block(self.embed(x)))


def make_net(seed=0):
    """Returns a new model, which also tells what the arrays of a file are."""
    return Net(jax.random.key(seed))


def apply(net, images):
    """Returns the logits of images.

    A net that was read from a file may hold its arrays alone: what else there is to it,
    such as functions, is taken from a model without arrays.
    """
    net = eqx.combine(net, eqx.filter_eval_shape(make_net))
    return jax.vmap(net)(images)


def digits(part):
    """Returns the "train" or "test" images ``[count, 64]`` and their labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = {"train": order[:1300], "test": order[1300:]}[part]
    return (images[chosen] / 16).astype(np.float32), labels[chosen].astype(np.int32)


def batches():
    """Returns training images of all digits; no labels are needed for a merge."""
    return np.split(digits("train")[0], 10)
