"""What of a checkpoint is read: a part of it, without the optimiser's state."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from zipjax.formats.stored import Stored
from zipjax.types import PyTree

_log = logging.getLogger(__name__)

Select = str | Sequence[str] | None

# Keys of optimiser states; no merge averages these.
_OPTIMISERS = {"opt_state", "optimizer", "optimizer_state", "optimiser"}


def chosen(what: str, tree: PyTree, select: Select) -> PyTree:
    """Returns the part of a stored pytree that is asked for.

    Args:
      what: names the checkpoint in errors.
      tree: the stored pytree.
      select: the path of a part, or several paths: these come back as a dictionary,
        by the last of their keys. None is everything but optimiser states.

    Raises:
      ValueError: if there is no such part, or if two have one name.
    """
    if select is None:
        return without_optimiser(what, tree)
    if isinstance(select, str):
        return _part(what, tree, select)
    names = [path.rpartition("/")[2] for path in select]
    if len(set(names)) < len(names):
        raise ValueError(
            f"select = {tuple(select)} ends in {names}, of which two are the same: "
            "choose parts with names of their own"
        )
    return {path.rpartition("/")[2]: _part(what, tree, path) for path in select}


def placed_back(part: PyTree, select: Select) -> PyTree:
    """Returns dictionaries that hold a part where ``select`` finds it again."""
    if select is None:
        return part
    if isinstance(select, str):
        return _at({}, select, part)
    tree: dict[str, Any] = {}
    for path in select:
        _at(tree, path, part[path.rpartition("/")[2]])
    return tree


def without_optimiser(what: str, tree: PyTree) -> PyTree:
    """Returns a pytree without optimiser states, which a warning names.

    In other nodes than dictionaries, None is in their place.
    """
    dropped: list[str] = []

    def keep(path: Any, leaf: Any) -> Any:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        found = next((k for k, name in enumerate(names) if name in _OPTIMISERS), None)
        if found is None:
            return leaf
        dropped.append("/".join(names[: found + 1]))
        return None

    kept = jax.tree_util.tree_map_with_path(keep, tree)
    if dropped:
        _log.warning(
            "%s: %s left out: an optimiser's state, which no merge averages. select= "
            "chooses what is read",
            what,
            ", ".join(map(repr, dict.fromkeys(dropped))),
        )
    return _pruned(kept)


def warn_of_texts(what: str, stored: Stored) -> None:
    """Says what was left out because it is no array."""
    if stored.left_out:
        _log.warning("%s: %s are no arrays, and left out", what, stored.left_out)


def _pruned(tree: PyTree) -> PyTree:
    """Returns nested dictionaries without the keys of optimisers."""
    if not isinstance(tree, dict):
        return tree
    return {
        key: _pruned(child)
        for key, child in tree.items()
        if str(key) not in _OPTIMISERS
    }


def _part(what: str, tree: PyTree, path: str) -> PyTree:
    children = dict(_children(tree))
    for name, child in children.items():
        # Keys may hold "/" themselves, as Haiku's do.
        if path == name:
            return child
        if path.startswith(f"{name}/"):
            return _part(f"{what}, {name!r},", child, path[len(name) + 1 :])
    found = list(children) or "an array"
    raise ValueError(f"{what} has no {path!r}, which select= names: it has {found}")


def _children(tree: PyTree) -> list[tuple[str, PyTree]]:
    if isinstance(tree, Mapping):
        return [(str(key), child) for key, child in tree.items()]
    if isinstance(tree, list | tuple):
        return [(str(k), child) for k, child in enumerate(tree)]
    return []


def _at(tree: dict[str, Any], path: str, part: PyTree) -> dict[str, Any]:
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = part
    return tree
