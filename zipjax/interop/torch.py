"""PyTorch's state dictionaries as parameters of ``zipjax.models``, and back.

    state = load_state_dict("resnet50.safetensors")
    variables = to_flax(zipjax.models.resnet.resnet50(), state)

The library that a state dictionary comes from (torchvision, timm, ZipIt!'s code, ...)
is found out from its keys. Images stay NHWC here: kernels are transposed, and the first
Dense kernel behind a flatten gets its inputs in the order (height, width, channel).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from zipjax.interop.files import (
    StateDict,
    as_arrays,
    load_state_dict,
    save_state_dict,
)
from zipjax.interop.names import Architecture, Rules, Shapes, architecture, keys
from zipjax.trees import check_same_keys, from_leaves, path_leaves
from zipjax.types import PyTree, Shape

__all__ = ["from_flax", "load_state_dict", "save_state_dict", "to_flax"]

# What PyTorch keeps beside parameters and statistics: it follows from the model.
_BUFFERS = re.compile(r"(^|\.)(num_batches_tracked|relative_position_index|attn_mask)$")


def to_flax(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a state dictionary into the variables of a model.

    Args:
      model: a network of ``zipjax.models``, with the hyper-parameters of the other.
      state_dict: arrays or PyTorch's tensors by key. An MLP's inputs are flat: should
        it have been trained on images of several channels, flatten them in that order.

    Returns:
      Variables for ``model.apply``, as numpy arrays of the model's dtypes (float32).

    Raises:
      ValueError: if keys are missing or unknown, with the difference to the names of
        the nearest library, or if a shape differs, with the key and both shapes.
    """
    how = architecture(model)
    state = as_arrays("the state dictionary", state_dict)
    found = {key: array for key, array in state.items() if not _BUFFERS.search(key)}
    axes = how.spec(model).entries
    names = _nearest(how.namings(model), axes, found)
    arrays = {path: found[key] for path, key in names.items()}
    for path, entries in axes.items():
        _check_rank(names[path], arrays[path], len(entries))
    expected = _expected(how, model, {p: array.shape for p, array in arrays.items()})
    like, leaves = path_leaves(expected), {}
    for path in axes:
        leaf = like[path]
        shape = tuple(leaf.shape[axis] for axis in _axes(path, leaf.ndim))
        _check_shape(names[path], path, arrays[path].shape, shape)
        array = _from_torch(path, arrays[path], *how.flattened(model))
        leaves[path] = array.astype(leaf.dtype)
    return from_leaves(leaves, expected)


def from_flax(
    model: nn.Module, variables: PyTree, *, naming: str | None = None
) -> StateDict:
    """Converts variables of a model into a state dictionary.

    Args:
      model: a network of ``zipjax.models``.
      variables: its variables, or those of a merged network, whose widths may differ.
      naming: the library whose names to give, such as "timm" or "torchvision"; by
        default the one that the network was written after.

    Returns:
      Arrays by key. BatchNorm's count of batches is 0. The buffers of Swin are left
      out, as they follow from its shape: where a library stores them, load with
      ``strict=False``.

    Raises:
      ValueError: if the naming is unknown or the variables are those of another model.
    """
    how = architecture(model)
    axes, leaves = how.spec(model).entries, path_leaves(variables)
    check_same_keys(
        f"these are no variables of {type(model).__name__}",
        axes,
        leaves,
        "Pass all collections (params, batch_stats), and the model with them.",
    )
    arrays = as_arrays("the variables", leaves)
    state: StateDict = {}
    for path, key in keys(_chosen(how.namings(model), naming), axes).items():
        _check_rank(path, arrays[path], len(axes[path]))
        array = _to_torch(path, arrays[path], *how.flattened(model))
        # A copy: PyTorch warns of arrays that are read-only, as JAX's are.
        state[key] = np.array(array, order="C")
        module, _, name = key.rpartition(".")
        if name == "running_var":
            state[f"{module}.num_batches_tracked"] = np.zeros((), np.int64)
    return state


def _nearest(
    namings: Mapping[str, Rules], paths: Iterable[str], found: Iterable[str]
) -> dict[str, str]:
    """Returns the key of every path in the naming that has most keys in common."""
    candidates = {name: keys(rules, paths) for name, rules in namings.items()}
    known = set(found)
    name = max(candidates, key=lambda name: len(known & set(candidates[name].values())))
    check_same_keys(
        f"the state dictionary is of another network; nearest are the names of {name}",
        candidates[name].values(),
        known,
        "Pass the model with the hyper-parameters of the network.",
    )
    return candidates[name]


def _chosen(namings: Mapping[str, Rules], naming: str | None) -> Rules:
    name = next(iter(namings)) if naming is None else naming
    if name not in namings:
        known = ", ".join(map(repr, namings))
        raise ValueError(
            f"there is no naming {name!r} of this model: choose of {known}"
        )
    return namings[name]


def _expected(how: Architecture, model: nn.Module, shapes: Shapes) -> PyTree:
    """Returns the variables' shapes, for images as they must have been."""
    image = jax.ShapeDtypeStruct((1, *how.image(model, shapes)), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def _axes(path: str, rank: int) -> tuple[int, ...]:
    """Returns which axis of ours each of PyTorch's is."""
    if path.endswith("/kernel"):
        return (3, 2, 0, 1) if rank == 4 else (1, 0)
    return tuple(range(rank))


def _to_torch(path: str, leaf: np.ndarray, flattened: str, side: int) -> np.ndarray:
    """Reorders axes; what reads a flattened image, reads it channel by channel."""
    if path == flattened:
        image = leaf.reshape(side, side, -1, leaf.shape[1])
        return image.transpose(3, 2, 0, 1).reshape(leaf.shape[1], -1)
    return leaf.transpose(_axes(path, leaf.ndim))


def _from_torch(path: str, array: np.ndarray, flattened: str, side: int) -> np.ndarray:
    if path == flattened:
        image = array.reshape(array.shape[0], -1, side, side)
        return image.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.transpose(np.argsort(_axes(path, array.ndim)))


def _check_rank(name: str, array: np.ndarray, rank: int) -> None:
    if array.ndim != rank:
        raise ValueError(
            f"{name!r} has shape {list(array.shape)}, but {rank} axes are expected: "
            "pass the model with the hyper-parameters of the network"
        )


def _check_shape(key: str, path: str, found: Shape, expected: Shape) -> None:
    if found != expected:
        raise ValueError(
            f"{key!r} has shape {list(found)}, but the model's {path!r} needs "
            f"{list(expected)} (in PyTorch's order): pass the model with the "
            "hyper-parameters of the network"
        )
