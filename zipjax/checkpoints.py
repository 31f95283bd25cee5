"""Saving and restoring with orbax.

Orbax writes to a temporary folder and renames it at the end: a checkpoint under its
final name is whole, even if a run was killed.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zipjax import hosts
from zipjax.files import check_free
from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.merged import Merged, Origin
from zipjax.merging.weights import Weights
from zipjax.spec.entries import entry_size
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import (
    check_same_keys,
    from_leaves,
    host_array,
    nested,
    path_leaves,
    summary,
)
from zipjax.types import Leaves, PyTree

_FORMAT = "zipjax.Merged"
_KEYS = "prng_keys"
_DIGESTS = "digests"
Specs = PermutationSpec | tuple[PermutationSpec, ...]


def save(path: str | os.PathLike[str], merged: Merged) -> None:
    """Saves a merged model with its spec and its origin.

    Args:
      path: a folder that does not exist yet.
      merged: the merged model.

    Raises:
      ValueError: if the path exists, since nothing is overwritten, or if this is no
        merged model.
      OSError: if it cannot be written, for instance to a full disk.
    """
    if not isinstance(merged, Merged):
        raise ValueError(
            f"zipjax.save writes merged models, but this is a {type(merged).__name__}: "
            "pass what zipjax.merge returned. Parameters alone (merged.params()) are "
            "an ordinary pytree, for orbax or zipjax.checkpoints.save_tree"
        )
    heads = {str(number): head for number, head in enumerate(merged.heads)}
    tree = {"trunk": merged.trunk, "heads": heads}
    metadata: dict[str, Any] = {
        "format": _FORMAT,
        "spec": _spec_text(merged.spec),
        "heads": len(merged.heads),
    }
    if merged.own is not None:
        tree["unmerge"] = {str(k): dict(u) for k, u in enumerate(merged.unmerge)}
        metadata["own"] = _spec_text(merged.own)
    if (origin := merged.origin) is not None:
        tree["assignments"] = dict(origin.assignments)
        metadata["origin"] = {
            "spec": _spec_text(origin.spec),
            "num_models": origin.num_models,
            "stop_at": origin.stop_at,
            "weights": _weights_text(origin.weights),
        }
    save_tree(path, tree, metadata)


def load(path: str | os.PathLike[str], *, like: OneOrEach[PyTree] = None) -> Merged:
    """Restores what :func:`save` wrote; the outputs are the same.

    Args:
      path: the folder.
      like: a parameter pytree of the wanted structure (one of the merged models, or its
        ``jax.eval_shape``; of the models' widths or of the merged ones), or a sequence
        with one per head if these are different functions; by default parameters come
        back as nested dictionaries.

    Raises:
      ValueError: if the path is not such a checkpoint, is damaged, or holds other
        parameters than ``like``, or of other shapes or dtypes. The files are left as
        they are.
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
        own = _read_spec(metadata["own"]) if "own" in metadata else None
        copied = {} if own is None else tree["unmerge"]
        unmerge = tuple(copied[str(k)] for k in range(len(copied)))
        origin = _read_origin(tree, metadata)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    templates = _templates(path, trunk, heads, spec, like)
    structures = [jax.tree_util.tree_structure(tree) for tree in templates]
    structure = one_or_each(structures)
    merged = Merged(trunk, heads, spec, structure, origin, unmerge, own)
    if like is not None:
        _check_arrays(path, merged, templates)
    return merged


def _templates(
    path: str | os.PathLike[str],
    trunk: dict[str, Any],
    heads: tuple[dict[str, Any], ...],
    spec: Specs,
    like: OneOrEach[PyTree],
) -> Sequence[PyTree]:
    """Returns a pytree of the structure of every head: ``like``, or dictionaries."""
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
    return templates


def _check_arrays(
    path: str | os.PathLike[str], merged: Merged, templates: Sequence[PyTree]
) -> None:
    """Checks that ``like`` has the dtypes and shapes of the merged model.

    The shapes may be those before the merge.
    """
    specs = each(merged.spec, len(templates), "specs")
    before = specs
    if merged.origin is not None:
        before = each(merged.origin.spec, merged.origin.num_models, "specs")
    for number, template in enumerate(templates):
        saved = {**merged.trunk, **(merged.heads[number] if merged.heads else {})}
        for name, leaf in path_leaves(template).items():
            entries, shape = specs[number].entries[name], np.shape(saved[name])
            parents = tuple(
                entry_size(entry, before[number].sizes) or size
                for entry, size in zip(entries, shape, strict=True)
            )
            if tuple(leaf.shape) not in (shape, parents):
                raise ValueError(
                    f"parameter {name!r} has shape {list(shape)} in "
                    f"{os.fspath(path)!r} ({list(parents)} before the merge), but "
                    f"{list(leaf.shape)} in like: pass one of the merged models"
                )
            if leaf.dtype != saved[name].dtype:
                raise ValueError(
                    f"parameter {name!r} is {saved[name].dtype} in "
                    f"{os.fspath(path)!r}, but {leaf.dtype} in like: pass like= in the "
                    "dtype that was saved, and cast what is returned"
                )


def _weights_text(weights: Weights | None) -> Any:
    return dict(weights) if isinstance(weights, Mapping) else weights


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
    return Origin(
        _read_spec(data["spec"]),
        assignments,
        data["num_models"],
        data["stop_at"],
        data["weights"],
    )


def save_tree(
    path: str | os.PathLike[str], tree: PyTree, metadata: Mapping[str, Any]
) -> None:
    """Saves a pytree of arrays with JSON metadata under a name that is free.

    Typed PRNG keys are stored as their numbers and the name of their generator. Digests
    of all arrays that this process holds, and of the metadata, are stored with them:
    :func:`load_tree` finds any change.

    Raises:
      ValueError: if the path exists.
      OSError: if it cannot be written; there is then nothing under that name.
    """
    target = Path(path).absolute()
    # No process may begin to write before all have looked.
    hosts.together(lambda: check_free(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    ocp, leaves = _orbax(), path_leaves(tree)
    found = {path: leaf for path, leaf in leaves.items() if _is_key(leaf)}
    names = {path: str(jax.random.key_impl(leaf)) for path, leaf in found.items()}
    numbers = {path: host_array(leaf) for path, leaf in found.items()}
    content = {**metadata, _KEYS: names} if names else dict(metadata)
    plain = {path: _own_copy(leaf) for path, leaf in {**leaves, **numbers}.items()}
    digests = {_DIGESTS: _digests(plain, content)}
    written = from_leaves(plain, tree)
    try:
        ocp.save(str(target), written, custom_metadata={**content, **digests})
    except (OSError, ValueError) as error:
        # What the system says, such as that a disk is full, may come as text.
        code = re.search(r"os_error_code='(\d+)'|Errno (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1] or code[2])
        raise OSError(number, os.strerror(number), str(target)) from error


def _own_copy(leaf: Any) -> Any:
    """Returns what orbax writes: of arrays that every process has, the first one's."""
    alone = jax.process_count() == 1 or not isinstance(leaf, jax.Array)
    return leaf if alone or not leaf.is_fully_addressable else np.asarray(leaf)


def load_tree(path: str | os.PathLike[str]) -> tuple[PyTree, dict[str, Any]]:
    """Restores a pytree of numpy arrays and its metadata.

    Raises:
      ValueError: if there is no whole checkpoint, or if it is not as it was saved.
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
        extra: Any = dict(metadata.custom_metadata or {})
        tree = ocp.load(str(target), abstract)
        _check_digests(tree, extra)
        return _with_keys(tree, extra)
    except (
        *(ValueError, OSError, KeyError, TypeError),
        # Of metadata that are JSON, but not those that were written.
        *(AttributeError, RecursionError),
    ) as error:
        raise _damaged(target, error) from error


def _digests(leaves: Leaves, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns digests of the metadata and, by path, of arrays, their dtypes and shapes.

    Arrays that other hosts hold in part, or that are Python's numbers, have none.
    """
    arrays = {
        path: _digest(f"{leaf.dtype}{list(leaf.shape)}", np.asarray(leaf).tobytes())
        for path, leaf in leaves.items()
        if hasattr(leaf, "dtype") and getattr(leaf, "is_fully_addressable", True)
    }
    text = _digest(json.dumps(metadata, sort_keys=True))
    return {"arrays": arrays, "metadata": text}


def _digest(text: str, data: bytes = b"") -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    digest.update(data)
    return digest.hexdigest()


def _check_digests(tree: PyTree, metadata: dict[str, Any]) -> None:
    """Checks what was read against the digests, which are taken from the metadata.

    Checkpoints of earlier versions have none.
    """
    stored = metadata.pop(_DIGESTS, None)
    if stored is None:
        return
    found = _digests(path_leaves(tree), metadata)
    names = stored["arrays"]
    changed = [path for path in names if names[path] != found["arrays"].get(path)]
    if changed:
        raise ValueError(f"the arrays {summary(changed)} are not those that were saved")
    if stored["metadata"] != found["metadata"]:
        raise ValueError("the metadata are not those that were saved")


def _with_keys(tree: PyTree, metadata: dict[str, Any]) -> tuple[PyTree, dict[str, Any]]:
    keys = metadata.pop(_KEYS, {})
    leaves = path_leaves(tree)
    for name, generator in keys.items():
        leaves[name] = jax.random.wrap_key_data(leaves[name], impl=generator)
    return from_leaves(leaves, tree), metadata


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


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
