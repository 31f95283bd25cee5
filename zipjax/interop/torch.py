"""PyTorch's state dictionaries as parameters of ``zipjax.models``, and back.

    state = load_state_dict("resnet50.safetensors")
    variables = to_flax(zipjax.models.resnet.resnet50(), state)

The library that a state dictionary comes from (torchvision, timm, ZipIt!'s code, ...)
is recognised by its keys. Images stay NHWC here: kernels are transposed, and the first
Dense kernel after a flatten gets its inputs in the order (height, width, channel).
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
from zipjax.interop.names import Conversion, ParamShapes, Rules, conversion, keys
from zipjax.trees import check_same_keys, from_leaves, path_leaves
from zipjax.types import PyTree, Shape

__all__ = ["from_flax", "load_state_dict", "save_state_dict", "to_flax"]

# Buffers other than statistics; they follow from the model's hyper-parameters.
_BUFFERS = re.compile(
    r"(^|\.)(num_batches_tracked|relative_position_index|attn_mask|n_averaged)$"
)
# What DataParallel and torch.compile put before the names of what they wrap.
_WRAPPERS = re.compile(r"^(module\.)+|(?<![^.])_orig_mod\.")


def to_flax(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state dictionary as the variables of a model.

    Args:
      model: a network of ``zipjax.models``, with the same hyper-parameters.
      state_dict: arrays or PyTorch's tensors by key; the prefixes of wrapped modules
        ("module.", "_orig_mod.") are ignored. An MLP takes flat inputs: flatten images
        in the order (channel, height, width) if PyTorch did so in training.

    Returns:
      Variables for ``model.apply``, as numpy arrays of the model's dtypes (float32).

    Raises:
      ValueError: if keys are missing or unknown, listing them for the library whose
        names are the nearest, or if a shape differs, with the key and both shapes.
    """
    how = conversion(model)
    state = as_arrays("the state dictionary", state_dict)
    found = {
        key: array
        for key, array in _unwrapped(state).items()
        if not _BUFFERS.search(key)
    }
    entries = how.spec(model).entries
    names = _nearest(how.namings(model), entries, found)
    arrays = {path: found[key] for path, key in names.items()}
    for path, row in entries.items():
        _check_rank(names[path], arrays[path], len(row))
    expected = _expected(how, model, {p: array.shape for p, array in arrays.items()})
    like, leaves = path_leaves(expected), {}
    for path in entries:
        leaf = like[path]
        shape = tuple(leaf.shape[axis] for axis in _axes(path, leaf.ndim))
        _check_shape(names[path], path, arrays[path].shape, shape)
        array = _from_torch(path, arrays[path], *how.flattened(model))
        leaves[path] = array.astype(leaf.dtype)
    return from_leaves(leaves, expected)


def from_flax(
    model: nn.Module, variables: PyTree, *, naming: str | None = None
) -> StateDict:
    """Returns the variables of a model as a state dictionary.

    Args:
      model: a network of ``zipjax.models``.
      variables: its variables, or those of a merged network, whose widths may differ.
      naming: the library whose names to use, such as "timm" or "torchvision"; by
        default the library that the network follows.

    Returns:
      Arrays by key. BatchNorm's count of batches is 0. Swin's buffers are left out,
      since they follow from its shape: load with ``strict=False`` if the library stores
      them.

    Raises:
      ValueError: if the naming is unknown, or the variables are another model's.
    """
    how = conversion(model)
    entries, leaves = how.spec(model).entries, path_leaves(variables)
    check_same_keys(
        f"these are not the variables of a {type(model).__name__}",
        entries,
        leaves,
        "Pass all collections (params, batch_stats), and the model they belong to.",
    )
    arrays = as_arrays("the variables", leaves)
    state: StateDict = {}
    for path, key in keys(_chosen(how.namings(model), naming), entries).items():
        _check_rank(path, arrays[path], len(entries[path]))
        array = _to_torch(path, arrays[path], *how.flattened(model))
        # A copy, because PyTorch warns about read-only arrays such as JAX's.
        state[key] = np.array(array, order="C")
        module, _, name = key.rpartition(".")
        if name == "running_var":
            state[f"{module}.num_batches_tracked"] = np.zeros((), np.int64)
    return state


def _unwrapped(state: StateDict) -> StateDict:
    """Returns a state dictionary without the prefixes of wrappers.

    Raises:
      ValueError: if two keys differ in nothing but these.
    """
    found: StateDict = {}
    for key, array in state.items():
        name = key
        while (shorter := _WRAPPERS.sub("", name)) != name:
            name = shorter
        if name in found:
            raise ValueError(
                f"{key!r} is {name!r} without the prefix of its wrapper, but there is "
                f"another {name!r}: pass the state dictionary of one network"
            )
        found[name] = array
    return found


def _nearest(
    namings: Mapping[str, Rules], paths: Iterable[str], found: Iterable[str]
) -> dict[str, str]:
    """Returns the key of every path, in the naming with the most keys in common."""
    candidates = {name: keys(rules, paths) for name, rules in namings.items()}
    known = set(found)
    name = max(candidates, key=lambda name: len(known & set(candidates[name].values())))
    check_same_keys(
        f"the state dictionary is not this network's; nearest are the names of {name}",
        candidates[name].values(),
        known,
        "Pass the model with the hyper-parameters of the network.",
    )
    return candidates[name]


def _chosen(namings: Mapping[str, Rules], naming: str | None) -> Rules:
    name = next(iter(namings)) if naming is None else naming
    if name not in namings:
        known = ", ".join(map(repr, namings))
        raise ValueError(f"this model has no naming {name!r}: choose one of {known}")
    return namings[name]


def _expected(how: Conversion, model: nn.Module, shapes: ParamShapes) -> PyTree:
    """Returns the variables' shapes, for the images that the network must have read."""
    image = jax.ShapeDtypeStruct((1, *how.image(model, shapes)), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def _axes(path: str, rank: int) -> tuple[int, ...]:
    """Returns, for each of PyTorch's axes, the number of the axis here."""
    if path.endswith("/kernel"):
        return (3, 2, 0, 1) if rank == 4 else (1, 0)
    return tuple(range(rank))


def _to_torch(path: str, leaf: np.ndarray, flattened: str, side: int) -> np.ndarray:
    """Returns an array in PyTorch's order; the inverse of :func:`_from_torch`."""
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
