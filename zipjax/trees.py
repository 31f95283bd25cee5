"""Pytrees as flat mappings from "a/b/kernel" paths to leaves, and back."""

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from zipjax.types import Leaves, PyTree


def path_leaves(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of ``tree`` by path, in the pytree's own order.

    >>> path_leaves({"dense": {"kernel": 1, "bias": 2}})
    {'dense/bias': 2, 'dense/kernel': 1}
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in flat}


def from_leaves(leaves: Leaves, like: PyTree) -> PyTree:
    """Returns a pytree with the structure of ``like`` and the given leaves by path."""
    structure = jax.tree_util.tree_structure(like)
    return jax.tree_util.tree_unflatten(
        structure, [leaves[path] for path in path_leaves(like)]
    )


def nested(leaves: Leaves) -> dict[str, Any]:
    """Returns plain nested dictionaries made from leaves by path.

    >>> nested({"dense/kernel": 1, "dense/bias": 2})
    {'dense': {'kernel': 1, 'bias': 2}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def running_stats(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the paths of the mean and the variance of every BatchNorm.

    They are recognised by their names: "mean" and "var" side by side, as in Linen
    (``batch_stats/norm/mean``) and NNX (``norm/mean``, ``norm/mean/value``).
    """
    known = set(paths)
    pairs = []
    for mean in sorted(known):
        parts = mean.split("/")
        for k in range(max(len(parts) - 2, 0), len(parts)):
            var = "/".join([*parts[:k], "var", *parts[k + 1 :]])
            if parts[k] == "mean" and var in known:
                pairs.append((mean, var))
    return pairs


def check_same_keys(
    what: str, expected: Iterable[str], found: Iterable[str], remedy: str
) -> None:
    """Checks that two sets of keys are equal.

    Raises:
      ValueError: if they differ, listing all keys that are missing or unexpected.
    """
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    if missing or extra:
        raise ValueError(
            f"{what}: missing {missing or 'nothing'}; "
            f"unexpected {extra or 'nothing'}.{_hint(missing, extra)} {remedy}"
        )


def check_models(
    models: Sequence[PyTree], paths: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Returns the models' leaves by path, after checking that they can be merged.

    Args:
      models: parameter pytrees.
      paths: the parameters to check and return; by default all.

    Raises:
      ValueError: if their paths, ranks or dtypes differ, or if a leaf is not an array
        of numbers. Shapes are compared where the spec is known, by
        :meth:`PermutationSpec.validate`.
    """
    all_leaves = [path_leaves(model) for model in models]
    for number, leaves in enumerate(all_leaves):
        _check_arrays(number, leaves)
        if paths is not None:
            leaves = {p: leaf for p, leaf in leaves.items() if p in paths}
            all_leaves[number] = leaves
        check_same_keys(
            f"model {number} has other parameters than model 0",
            all_leaves[0],
            leaves,
            "Merge models of one architecture.",
        )
        for path, leaf in leaves.items():
            first = all_leaves[0][path]
            if (leaf.dtype, leaf.ndim) != (first.dtype, first.ndim):
                raise ValueError(
                    f"parameter {path!r} is {_describe(first)} in model 0 but "
                    f"{_describe(leaf)} in model {number}: merge models of one "
                    "architecture and cast them to one dtype"
                )
    return all_leaves


def _check_arrays(number: int, leaves: Leaves) -> None:
    if not leaves:
        raise ValueError(f"model {number} has no parameters: pass its pytree of arrays")
    for path, leaf in leaves.items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise ValueError(
                f"parameter {path!r} of model {number} is a {type(leaf).__name__}, not "
                "an array: pass the arrays only (for instance nnx.split, eqx.partition)"
            )


def _describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _hint(missing: list[str], extra: list[str]) -> str:
    pairs = [(m, difflib.get_close_matches(m, extra, n=1)) for m in missing]
    close = [f"{found[0]!r} for {m!r}" for m, found in pairs if found]
    return f" (Perhaps {', '.join(close)}?)" if close else ""
