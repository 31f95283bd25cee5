"""Trains a classifier on some of the digits, and saves it with Orbax.

python train.py first --digits 01234
"""

import argparse
from pathlib import Path

import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from nnx_net import SAVED, digits, make_net

parser = argparse.ArgumentParser()
parser.add_argument("out", help="folder to write")
parser.add_argument("--digits", default="0123456789")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=150)
options = parser.parse_args()

images, labels = digits("train")
own = np.flatnonzero(np.isin(labels, [int(x) for x in options.digits]))
net = make_net(options.seed)
optimizer = nnx.Optimizer(net, optax.adam(3e-3), wrt=nnx.Param)


@nnx.jit
def train_step(net, optimizer, images, labels):
    def loss(net):
        losses = optax.softmax_cross_entropy_with_integer_labels(net(images), labels)
        return losses.mean()

    value, gradient = nnx.value_and_grad(loss)(net)
    optimizer.update(net, gradient)
    return value


rng = np.random.default_rng(options.seed)
for number in range(options.steps):
    some = rng.choice(own, 128, replace=False)
    loss = train_step(net, optimizer, images[some], labels[some])
    if number % 50 == 49:
        print(f"{options.out}: step {number + 1}, loss {loss:.4f}")

with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(Path(options.out).absolute(), nnx.state(net, SAVED))
