"""Saving and restoring with orbax.

Orbax writes to a temporary folder and renames it at the end: a checkpoint under its
final name is whole, even if a run was killed.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.merged import Merged, Origin
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import check_same_keys, nested, path_leaves
from zipjax.types import PyTree

_FORMAT = "zipjax.Merged"
Specs = PermutationSpec | tuple[PermutationSpec, ...]


def save(path: str | os.PathLike[str], merged: Merged) -> None:
    """Saves a merged model with its spec and its origin.

    Args:
      path: a folder that does not exist yet.
      merged: the merged model.

    Raises:
      ValueError: if the path exists: nothing is overwritten.
    """
    heads = {str(number): head for number, head in enumerate(merged.heads)}
    tree = {"trunk": merged.trunk, "heads": heads}
    metadata: dict[str, Any] = {
        "format": _FORMAT,
        "spec": _spec_text(merged.spec),
        "heads": len(merged.heads),
    }
    if (origin := merged.origin) is not None:
        tree["assignments"] = dict(origin.assignments)
        metadata["origin"] = {
            "spec": _spec_text(origin.spec),
            "num_models": origin.num_models,
            "stop_at": origin.stop_at,
            "weights": origin.weights,
        }
    save_tree(path, tree, metadata)


def load(path: str | os.PathLike[str], *, like: OneOrEach[PyTree] = None) -> Merged:
    """Restores what :func:`save` wrote; the outputs are the same.

    Args:
      path: the folder.
      like: a parameter pytree of the wanted structure (one of the merged models, or its
        ``jax.eval_shape``), or a sequence with one per head if these are different
        functions; by default parameters come back as nested dictionaries.

    Raises:
      ValueError: if the path is not such a checkpoint, is damaged, or holds other
        parameters than ``like``. The files are left as they are.
    """
    tree, metadata = load_tree(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{os.fspath(path)!r} is a checkpoint of {metadata.get('format')!r}, not "
            f"of {_FORMAT!r}: it was not written by zipjax.save"
        )
    try:
        spec = _read_spec(metadata["spec"])
        trunk = tree.get("trunk", {})
        heads = tuple(tree["heads"][str(k)] for k in range(metadata["heads"]))
        origin = _read_origin(tree, metadata)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    structures = _structures(path, trunk, heads, spec, like)
    return Merged(trunk, heads, spec, one_or_each(structures), origin)


def _structures(
    path: str | os.PathLike[str],
    trunk: dict[str, Any],
    heads: tuple[dict[str, Any], ...],
    spec: Specs,
    like: OneOrEach[PyTree],
) -> list[Any]:
    """Returns the structure of every head: that of ``like``, or nested dictionaries."""
    # Heads of one function have one structure.
    own = heads if isinstance(spec, tuple) else heads[:1]
    trees = [{**trunk, **head} for head in own or ({},)]
    if like is None:
        templates = [nested(leaves) for leaves in trees]
    else:
        templates = each(like, len(own), "trees") if isinstance(spec, tuple) else [like]
    for template, leaves in zip(templates, trees, strict=True):
        check_same_keys(
            f"the parameters in {os.fspath(path)!r} and those of like differ",
            path_leaves(template),
            leaves,
            "Pass a pytree of the merged models' structure.",
        )
    return [jax.tree_util.tree_structure(tree) for tree in templates]


def _spec_text(spec: Specs) -> str | list[str]:
    if isinstance(spec, tuple):
        return [own.to_json() for own in spec]
    return spec.to_json()


def _read_spec(data: str | list[str]) -> Specs:
    if isinstance(data, list):
        return tuple(map(PermutationSpec.from_json, data))
    return PermutationSpec.from_json(data)


def _read_origin(tree: Mapping[str, Any], metadata: Mapping[str, Any]) -> Origin | None:
    if "origin" not in metadata:
        return None
    data, assignments = metadata["origin"], tree.get("assignments", {})
    weights = None if data["weights"] is None else tuple(data["weights"])
    return Origin(
        _read_spec(data["spec"]),
        assignments,
        data["num_models"],
        data["stop_at"],
        weights,
    )


def save_tree(
    path: str | os.PathLike[str], tree: PyTree, metadata: Mapping[str, Any]
) -> None:
    """Saves a pytree of arrays with JSON metadata under a name that is free.

    Raises:
      ValueError: if the path exists.
    """
    target = Path(path).absolute()
    if target.exists():
        raise ValueError(
            f"{str(target)!r} exists already: choose another path, or remove it first"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    ocp = _orbax()
    ocp.save(str(target), tree, custom_metadata=dict(metadata))


def load_tree(path: str | os.PathLike[str]) -> tuple[PyTree, dict[str, Any]]:
    """Restores a pytree of numpy arrays and its metadata.

    Raises:
      ValueError: if there is no whole checkpoint.
    """
    target = Path(path).absolute()
    if not target.exists():
        raise ValueError(f"there is no checkpoint at {str(target)!r}")
    ocp = _orbax()
    try:
        metadata = ocp.metadata(str(target))
        if metadata.metadata is None:
            raise ValueError("its list of arrays cannot be read")
        # A target of numpy arrays restores on any number of devices.
        abstract = jax.tree_util.tree_map(
            lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata.metadata
        )
        extra: Any = metadata.custom_metadata or {}
        return ocp.load(str(target), abstract), dict(extra)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise _damaged(target, error) from error


def _orbax() -> Any:
    # Takes half a second to import, which those who save nothing should not wait for.
    from orbax.checkpoint import v1

    return v1


def _damaged(path: str | os.PathLike[str], error: Exception) -> ValueError:
    summary = str(error).splitlines()[0][:200] if str(error) else repr(error)
    return ValueError(
        f"the checkpoint at {os.fspath(path)!r} is damaged or half written ({summary})."
        " Nothing was changed; restore it from a copy or write it again"
    )
