"""A classifier in NNX, and what ``zipjax merge`` needs: function, template, batches."""

import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

# What is saved and merged: BatchNorm's running statistics are part of a network.
SAVED = (nnx.Param, nnx.BatchStat)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden_1 = nnx.Linear(64, 64, rngs=rngs)
        self.norm_1 = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.hidden_2 = nnx.Linear(64, 64, rngs=rngs)
        self.norm_2 = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm_1(self.hidden_1(x)))
        x = nnx.relu(self.norm_2(self.hidden_2(x)))
        return self.head(x)


def make_net(seed=0):
    return Net(nnx.Rngs(seed))


def template():
    """Returns the shapes of what is saved, without computing anything."""
    return nnx.state(nnx.eval_shape(make_net), SAVED)


def apply(state, images):
    """Returns the logits of a saved network, in evaluation mode."""
    net = nnx.eval_shape(make_net)
    net.eval()
    graph, _, rest = nnx.split(net, SAVED, ...)
    return nnx.merge(graph, state, rest)(images)


def digits(part):
    """Returns the "train" or "test" images ``[count, 64]`` and their labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = {"train": order[:1300], "test": order[1300:]}[part]
    return (images[chosen] / 16).astype(np.float32), labels[chosen].astype(np.int32)


def batches():
    """Returns training images of all digits; no labels are needed for a merge."""
    return np.split(digits("train")[0], 10)
