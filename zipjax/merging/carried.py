"""Leaves that merging does not average: what the function does not read, and integers.

Counters, PRNG keys, optimiser states and averages of the weights travel with many
models' parameters. They are carried along: what is no floating-point number must be the
same in all models, or the caller says whose is kept.
"""

import logging
from typing import Any

import numpy as np

from zipjax.merging.networks import Networks
from zipjax.trees import collections, host_array, is_weight, summary

_log = logging.getLogger(__name__)


def carried_leaves(networks: Networks, carry: int | None = None) -> dict[str, Any]:
    """Returns the shared leaves that are not averaged, by path.

    Args:
      networks: the models.
      carry: the number of the model whose leaves are kept. By default the first one's:
        a warning names floating-point numbers that the function does not read and that
        differ.

    Raises:
      ValueError: if models differ in a leaf that holds no floating-point numbers and
        nobody said whose is kept, or if there is no such model.
    """
    if carry is not None and carry not in range(len(networks)):
        raise ValueError(
            f"carry = {carry!r} is no model: pass a number from 0 to "
            f"{len(networks) - 1}, the model whose leaves are kept"
        )
    unread = networks.spec.unread
    carried = {
        path: leaf
        for path, leaf in networks.leaves[carry or 0].items()
        if path in networks.trunk and (path in unread or not is_weight(leaf))
    }
    if carry is None:
        _check_equal(networks, carried)
    return carried


def _check_equal(networks: Networks, carried: dict[str, Any]) -> None:
    unread, (first, *others) = networks.spec.unread, networks.leaves
    differing = [
        path
        for path, leaf in carried.items()
        if not all(_equal(leaf, model[path]) for model in others)
    ]
    if numbers := [path for path in differing if not is_weight(carried[path])]:
        read = [path for path in numbers if path not in unread]
        reads = f"; the outputs depend on {summary(read)}" if read else ""
        raise ValueError(
            f"{summary(numbers)} differ between the models and cannot be averaged: "
            f"they are no floating-point numbers{reads}. Pass carry=0 to keep model "
            "0's (or another's), give all models the same, or leave them out"
        )
    if differing:
        _log.warning(
            "models differ in %s, which the function does not read: the first model's "
            "are kept. Pass carry= to choose another's, or leave them out",
            summary(collections(differing, set(first) - unread)),
        )


def _equal(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and np.array_equal(host_array(a), host_array(b))
