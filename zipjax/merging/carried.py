"""Leaves that merging does not average: what the function does not read, and integers.

Counters, PRNG keys, optimiser states and averages of the weights travel with many
models' parameters. What the outputs do not depend on is carried along; what they depend
on and cannot be averaged (a table of indices, a mask) must be the same in all models.
"""

import logging
from typing import Any

import numpy as np

from zipjax.merging.networks import Networks
from zipjax.trees import collections, host_array, is_weight, summary

_log = logging.getLogger(__name__)


def carried_leaves(networks: Networks) -> dict[str, Any]:
    """Returns the shared leaves that are not averaged, by path: the first model's.

    If models differ in leaves that the function does not read, a warning names these.

    Raises:
      ValueError: if models differ in a leaf that is read and holds no floating-point
        numbers.
    """
    unread, (first, *others) = networks.spec.unread, networks.leaves
    carried = {
        path: leaf
        for path, leaf in first.items()
        if path in networks.trunk and (path in unread or not is_weight(leaf))
    }
    differing = [
        path
        for path, leaf in carried.items()
        if not all(_equal(leaf, model[path]) for model in others)
    ]
    if read := [path for path in differing if path not in unread]:
        raise ValueError(
            f"{summary(read)} differ between the models, cannot be averaged (they are "
            "no floating-point numbers), and the outputs depend on them. Give all "
            "models the same; or, if apply_fn does not need them, leave them out"
        )
    if differing:
        _log.warning(
            "models differ in %s, which the function does not read: the first model's "
            "are kept. Leave them out of the parameters to skip them",
            summary(collections(differing, set(first) - unread)),
        )
    return carried


def _equal(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and np.array_equal(host_array(a), host_array(b))
