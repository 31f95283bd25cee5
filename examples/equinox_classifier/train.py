"""Trains a classifier on some of the digits, and saves it as Equinox does.

python train.py first.eqx --digits 01234
"""

import argparse

import equinox as eqx
import numpy as np
import optax
from eqx_net import apply, digits, make_net

parser = argparse.ArgumentParser()
parser.add_argument("out", help="file to write")
parser.add_argument("--digits", default="0123456789")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=150)
options = parser.parse_args()

images, labels = digits("train")
own = np.flatnonzero(np.isin(labels, [int(x) for x in options.digits]))
net, adam = make_net(options.seed), optax.adam(3e-3)
state = adam.init(eqx.filter(net, eqx.is_array))


@eqx.filter_value_and_grad
def loss_of(net, images, labels):
    logits = apply(net, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@eqx.filter_jit
def train_step(net, state, images, labels):
    loss, gradient = loss_of(net, images, labels)
    updates, state = adam.update(gradient, state)
    return eqx.apply_updates(net, updates), state, loss


rng = np.random.default_rng(options.seed)
for number in range(options.steps):
    some = rng.choice(own, 128, replace=False)
    net, state, loss = train_step(net, state, images[some], labels[some])
    if number % 50 == 49:
        print(f"{options.out}: step {number + 1}, loss {loss:.4f}")

eqx.tree_serialise_leaves(options.out, net)
