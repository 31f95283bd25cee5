"""Scores the parents, their average and the merged network on test images.

The merged network is read as any other: with Orbax, into the network's own state.
"""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from nnx_net import apply, digits, template

TASKS = (range(5), range(5, 10))
images, labels = digits("test")


def accuracies(state):
    """Returns the accuracy on each task, among its own digits, and among all ten."""
    logits, found = np.asarray(jax.jit(apply)(state, images)), []
    for task in TASKS:
        own = np.isin(labels, task)
        right = logits[own][:, task].argmax(1) + task[0] == labels[own]
        found.append(float(right.mean()))
    return [*found, float((logits.argmax(1) == labels).mean())]


with ocp.StandardCheckpointer() as checkpointer:
    networks = {
        name: checkpointer.restore(Path(path).absolute(), template())
        for name, path in [
            ("first", "first"),
            ("second", "second"),
            ("merged", "merged/params"),
        ]
    }
networks["averaged"] = jax.tree.map(
    lambda x, y: (x + y) / 2, networks["first"], networks["second"]
)
scores = {name: accuracies(state) for name, state in networks.items()}
for name, (first, second, joint) in scores.items():
    print(f"{name:8} 0-4 {first:.1%}, 5-9 {second:.1%}, all ten {joint:.1%}")
