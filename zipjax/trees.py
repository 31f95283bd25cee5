"""Pytrees as flat mappings from "a/b/kernel" paths to leaves, and back."""

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from zipjax.types import Leaves, PyTree


def path_leaves(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of ``tree`` by path, in the pytree's own order.

    Python's integers and truth values, such as step numbers, are returned as arrays.

    >>> path_leaves({"dense": {"kernel": 1.0, "bias": 2.0}})
    {'dense/bias': 2.0, 'dense/kernel': 1.0}

    Raises:
      ValueError: if two leaves have one path, as in {"a/b": x, "a": {"b": y}}.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            np.asarray(leaf, jnp.result_type(leaf)) if isinstance(leaf, int) else leaf
        )
        for path, leaf in flat
    }
    if len(leaves) < len(flat):
        raise ValueError(_same_paths(path for path, _ in flat))
    return leaves


def _same_paths(paths: Iterable[Any]) -> str:
    """Says which keys of a pytree make one path."""
    found: dict[str, list[str]] = {}
    for path in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found.setdefault(name, []).append(jax.tree_util.keystr(path))
    name, keys = next((k, own) for k, own in found.items() if len(own) > 1)
    return (
        f"the arrays at {' and '.join(keys)} have the same path {name!r}: rename a "
        "key, so that parameters can be told apart by their paths"
    )


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
    (``batch_stats/norm/mean``), NNX (``norm/mean``, ``norm/mean/value``) and Haiku
    (``mean_ema/average``, with its ``hidden``). Only for where there is no program:
    :func:`zipjax.program.norms.find_norms` finds them under any name.
    """
    known = set(paths)
    pairs = []
    for mean in sorted(known):
        parts = mean.split("/")
        for k in range(max(len(parts) - 2, 0), len(parts)):
            name = {"mean": "var", "mean_ema": "var_ema"}.get(parts[k])
            var = "/".join([*parts[:k], str(name), *parts[k + 1 :]])
            if name is not None and var in known:
                pairs.append((mean, var))
    return pairs


def is_weight(leaf: Any) -> bool:
    """Returns whether a leaf holds floating-point numbers, which merging averages.

    Counters, PRNG keys, masks and tables do not: they belong to no perm.
    """
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def host_array(leaf: Any) -> np.ndarray:
    """Returns a leaf as a numpy array; of PRNG keys, the numbers behind them."""
    key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf)


def not_finite(leaves: Leaves) -> list[str]:
    """Lists the paths of the leaves that hold NaN or infinity.

    Those that are traced have no values yet.
    """
    return [
        path
        for path, leaf in leaves.items()
        if is_weight(leaf) and not is_traced(leaf) and not is_finite(leaf)
    ]


def is_finite(array: Any) -> bool:
    """Returns whether an array of numbers holds neither NaN nor infinity."""
    # What other processes hold in part, all of them look at together.
    everywhere = not getattr(array, "is_fully_addressable", True)
    return bool((jnp if everywhere else np).isfinite(array).all())


def is_deleted(leaf: Any) -> bool:
    """Returns whether an array's memory is gone, as after its donation to a jit."""
    return isinstance(leaf, jax.Array) and not is_traced(leaf) and leaf.is_deleted()


def is_traced(leaf: Any) -> bool:
    """Returns whether an array is an argument of a function that is being traced."""
    return isinstance(leaf, jax.core.Tracer)


def summary(paths: Iterable[str], limit: int = 8) -> str:
    """Returns paths as text, no more than ``limit`` of them.

    >>> summary(["b", "a", "c"], limit=2)
    "['a', 'b'] and 1 more"
    """
    found = sorted(paths)
    rest = len(found) - limit
    return f"{found[:limit]}" + (f" and {rest} more" if rest > 0 else "")


def collections(paths: Iterable[str], apart: Iterable[str] = ()) -> list[str]:
    """Returns paths, many within one collection as that collection.

    >>> collections(["ema/a", "ema/b", "ema/c", "ema/d", "step"])
    ['ema/* (4 in all)', 'step']

    Args:
      paths: the paths.
      apart: other paths; what lies in their collections is listed one by one.
    """
    known = {path.split("/")[0] for path in apart}
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(path.split("/")[0], []).append(path)
    return [
        name
        for top, own in groups.items()
        for name in (
            own if len(own) < 4 or top in known else [f"{top}/* ({len(own)} in all)"]
        )
    ]


def check_same_keys(
    what: str, expected: Iterable[str], found: Iterable[str], remedy: str
) -> None:
    """Checks that two sets of keys are equal.

    Raises:
      ValueError: if they differ, listing all keys that are missing or unexpected.
    """
    expected, found = set(expected), set(found)
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        lacking = collections(missing, found) or "nothing"
        surplus = collections(extra, expected) or "nothing"
        raise ValueError(
            f"{what}: missing {lacking}; unexpected {surplus}."
            f"{_hint(missing, extra)} {remedy}"
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
        of numbers or of PRNG keys. Shapes are compared where the spec is known, by
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
            "Merge models of one architecture, and leave out what apply_fn does not "
            "read (averages of the weights, optimiser states).",
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


def check_leaf(path: str, leaf: Any, owner: str = "") -> None:
    """Checks that a leaf is an array of real numbers, of truth values or of PRNG keys.

    Raises:
      ValueError: if it is anything else, or was deleted.
    """
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise ValueError(
            f"parameter {path!r}{owner} is a {type(leaf).__name__}, not an array: pass "
            "the arrays only (for instance nnx.split, eqx.partition)"
        )
    kinds = jnp.floating, jnp.integer, jnp.bool_, jax.dtypes.prng_key
    if not any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds):
        raise ValueError(
            f"parameter {path!r}{owner} is of dtype {leaf.dtype}, but parameters are "
            "real numbers (besides PRNG keys, counters and masks): pass complex ones "
            "as their real and imaginary parts"
        )
    if is_deleted(leaf):
        raise ValueError(
            f"parameter {path!r}{owner} was deleted, most likely donated to a training "
            "step: pass the step's new parameters, or copy these before it"
        )


def _check_arrays(number: int, leaves: Leaves) -> None:
    if not leaves:
        raise ValueError(f"model {number} has no parameters: pass its pytree of arrays")
    for path, leaf in leaves.items():
        check_leaf(path, leaf, f" of model {number}")


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _hint(missing: list[str], extra: list[str]) -> str:
    pairs = [(m, difflib.get_close_matches(m, extra, n=1)) for m in missing]
    close = [f"{found[0]!r} for {m!r}" for m, found in pairs if found]
    return f" (Perhaps {', '.join(close)}?)" if close else ""


def unstack_layers(params: PyTree, path: str) -> dict[str, Any]:
    """Returns parameters with layers that are stacked for a scan taken apart.

    They are those of the same network with its layers called one by one, in which a
    zip can stop between layers.

    >>> params = {"blocks": {"w": np.arange(4).reshape(2, 2)}, "head": np.ones(2)}
    >>> apart = unstack_layers(params, "blocks")
    >>> {path: leaf.tolist() for path, leaf in path_leaves(apart).items()}
    {'blocks_0/w': [0, 1], 'blocks_1/w': [2, 3], 'head': [1.0, 1.0]}

    Args:
      params: nested dictionaries of arrays.
      path: where the layers are, such as "params/blocks": all arrays there have the
        layers as first axis.

    Returns:
      Nested dictionaries; layer k is at ``path_k``.

    Raises:
      ValueError: if there are no arrays at the path, or not of the same number of
        layers.
    """
    leaves = path_leaves(params)
    stacked = {p: x for p, x in leaves.items() if p.startswith(f"{path}/")}
    counts = {np.shape(x)[0] if np.ndim(x) else None for x in stacked.values()}
    if len(counts) != 1 or None in counts:
        shapes = {p: list(np.shape(x)) for p, x in stacked.items()}
        raise ValueError(
            f"the arrays at {path!r} have the shapes {shapes}: layers that are stacked "
            "have one first axis, the layers. Name the path that holds these"
        )
    (count,) = counts
    apart = {
        f"{path}_{k}{p.removeprefix(path)}": x[k]
        for k in range(count or 0)
        for p, x in stacked.items()
    }
    return nested({**{p: x for p, x in leaves.items() if p not in stacked}, **apart})


def stack_layers(params: PyTree, path: str) -> dict[str, Any]:
    """Returns parameters with layers stacked for a scan: undoes ``unstack_layers``.

    Args:
      params: nested dictionaries of arrays.
      path: where the stacked layers will be; layer k is at ``path_k``.

    Raises:
      ValueError: if there are no such layers, or if they differ in their parameters or
        shapes: merged layers that have several widths cannot be stacked.
    """
    leaves, layers = path_leaves(params), list[dict[str, Any]]()
    while True:
        prefix = f"{path}_{len(layers)}/"
        layer = {p.removeprefix(prefix): p for p in leaves if p.startswith(prefix)}
        if not layer:
            break
        layers.append(layer)
    taken = {p for layer in layers for p in layer.values()}
    shapes = [{p: np.shape(leaves[own]) for p, own in x.items()} for x in layers]
    differing = [k for k, own in enumerate(shapes) if own != shapes[0]]
    if not layers or differing:
        found = f"layers {differing} differ from layer 0" if layers else "no layers"
        raise ValueError(
            f"found {found} at {path}_0, {path}_1, ...: layers that are stacked have "
            "the same parameters of the same shapes. Merge them to one width"
        )
    stacked = {
        f"{path}/{p}": jnp.stack([leaves[layer[p]] for layer in layers])
        for p in layers[0]
    }
    return nested({**{p: x for p, x in leaves.items() if p not in taken}, **stacked})
