"""Scores the parents, their average and the merged network on test images.

The merged network is read as any other: by Equinox, into a model of the same class.
"""

import equinox as eqx
import jax
import numpy as np
from eqx_net import apply, digits, make_net

TASKS = (range(5), range(5, 10))
images, labels = digits("test")


def accuracies(net):
    """Returns the accuracy on each task, among its own digits, and among all ten."""
    logits, found = np.asarray(eqx.filter_jit(apply)(net, images)), []
    for task in TASKS:
        own = np.isin(labels, task)
        right = logits[own][:, task].argmax(1) + task[0] == labels[own]
        found.append(float(right.mean()))
    return [*found, float((logits.argmax(1) == labels).mean())]


files = {"first": "first.eqx", "second": "second.eqx", "merged": "merged/params.eqx"}
networks = {
    name: eqx.tree_deserialise_leaves(path, make_net()) for name, path in files.items()
}
networks["averaged"] = jax.tree.map(
    lambda x, y: (x + y) / 2, networks["first"], networks["second"]
)
scores = {name: accuracies(net) for name, net in networks.items()}
for name, (first, second, joint) in scores.items():
    print(f"{name:8} 0-4 {first:.1%}, 5-9 {second:.1%}, all ten {joint:.1%}")
