"""Orbax's folders: a pytree, a step with its items, or a manager's steps."""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from zipjax.formats.stored import Layout, Slot, Stored
from zipjax.types import PyTree

ORBAX = "orbax"

_STEP = re.compile(r"(?:.*_)?(\d+)")
_MERGED = "zipjax.Merged"


def is_pytree(path: Path) -> bool:
    """Returns whether a folder holds a pytree of Orbax's."""
    return (path / "_METADATA").is_file()


def items_of(path: Path) -> list[str]:
    """Returns the names of the pytrees in the folder of a step."""
    return sorted(x.name for x in path.iterdir() if is_pytree(x))


def steps_of(path: Path) -> dict[int, str]:
    """Returns the names of the steps' folders in that of a manager, by number."""
    found = {x.name: _STEP.fullmatch(x.name) for x in path.iterdir() if x.is_dir()}
    steps = {int(match[1]): name for name, match in found.items() if match}
    return {
        number: name
        for number, name in sorted(steps.items())
        if is_pytree(path / name) or items_of(path / name)
    }


def open_orbax(path: Path, step: int | None = None) -> Stored:
    """Opens a folder of Orbax's.

    Args:
      path: the folder of a pytree, of a step, or of a manager's steps.
      step: the number of the step, if these are several; the last one by default.

    Raises:
      ValueError: if there is no such step, or if ``zipjax.save`` wrote the folder.
    """
    _check_foreign(path)
    inside: tuple[str, ...] = ()
    steps = {} if is_pytree(path) or items_of(path) else steps_of(path)
    if step is not None and step not in steps:
        raise ValueError(
            f"{str(path)!r} has no step {step}: it has {list(steps) or 'no steps'}"
        )
    if steps:
        inside = (steps[max(steps) if step is None else step],)
    folder = path.joinpath(*inside)
    items = () if is_pytree(folder) else tuple(items_of(folder))
    parts = {item: _Part(folder / item) for item in items or ("",)}
    several = len(items) > 1
    if not several:
        inside += items
    trees = {item: part.tree for item, part in parts.items()}

    def read(keys: Mapping[str, NamedSharding | None]) -> dict[str, Any]:
        return {k: x for part in parts.values() for k, x in part.read(keys).items()}

    return Stored(
        Layout(ORBAX, inside=inside, items=several),
        trees if several else next(iter(trees.values())),
        read,
        tuple(text for part in parts.values() for text in part.texts),
    )


def write_orbax(path: Path, tree: PyTree, layout: Layout) -> None:
    """Writes a pytree as Orbax's checkpointers do.

    Args:
      path: a folder that does not exist; Orbax makes it last of all.
      tree: the pytree; a dictionary of pytrees if these are several items of a step.
      layout: how the folder is laid out.
    """
    ocp = _orbax()
    if not layout.inside and not layout.items:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
        return
    *steps, item = layout.inside if not layout.items else (*layout.inside, "")
    items = tree if layout.items else {item: tree}
    saved = {name: ocp.args.PyTreeSave(own) for name, own in items.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.joinpath(*steps), args=ocp.args.Composite(**saved))


def _check_foreign(path: Path) -> None:
    metadata = path / "_CHECKPOINT_METADATA"
    text = metadata.read_text() if metadata.is_file() else "{}"
    if (json.loads(text).get("custom_metadata") or {}).get("format") == _MERGED:
        raise ValueError(
            f"{str(path)!r} is a merged model that zipjax.save wrote: read it with "
            "zipjax.load"
        )


class _Part:
    """One pytree of Orbax's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()  # Orbax finds nothing by relative paths.
        with self._checkpointer() as checkpointer:
            found = checkpointer.metadata(self._folder).item_metadata
        self._known = found.tree
        paths, self._structure = jax.tree_util.tree_flatten_with_path(self._known)
        self._leaves = [leaf for _, leaf in paths]
        slots = [self._slot(k, leaf) for k, leaf in enumerate(self._leaves)]
        self.tree = jax.tree_util.tree_unflatten(self._structure, slots)
        self.texts = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for (path, _), slot in zip(paths, slots, strict=True)
            if slot is None
        ]

    def read(self, keys: Mapping[str, NamedSharding | None]) -> dict[str, Any]:
        """Reads those arrays of this part that are among the keys."""
        ocp = _orbax()
        numbers = range(len(self._leaves))
        own = {k: self._key(k) for k in numbers if self._key(k) in keys}
        if not own:
            return {}
        items = [leaf if k in own else ... for k, leaf in enumerate(self._leaves)]
        chosen = [
            self._arguments(leaf, keys[own[k]]) if k in own else ocp.RestoreArgs()
            for k, leaf in enumerate(self._leaves)
        ]
        unflatten = functools.partial(jax.tree_util.tree_unflatten, self._structure)
        with self._checkpointer() as checkpointer:
            arguments = ocp.args.PyTreeRestore(
                item=unflatten(items), restore_args=unflatten(chosen)
            )
            tree = checkpointer.restore(self._folder, args=arguments)
        found = jax.tree_util.tree_leaves(tree)
        return {key: _as_array(found[k]) for k, key in own.items()}

    def _key(self, number: int) -> str:
        return f"{self._folder}:{number}"

    def _slot(self, number: int, leaf: Any) -> Slot | None:
        if getattr(leaf, "dtype", None) is None:
            return None
        shape = tuple(getattr(leaf, "shape", None) or ())
        return Slot(self._key(number), shape, leaf.dtype)

    @staticmethod
    def _arguments(leaf: Any, sharding: NamedSharding | None) -> Any:
        ocp = _orbax()
        if sharding is not None:
            return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding)
        # On the host, whatever devices it was saved from.
        scalar = getattr(leaf, "shape", None) is None
        return ocp.RestoreArgs() if scalar else ocp.RestoreArgs(restore_type=np.ndarray)

    @staticmethod
    def _checkpointer() -> Any:
        ocp = _orbax()
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _as_array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else np.asarray(leaf, jnp.result_type(leaf))


def _orbax() -> Any:
    # Takes half a second to import, which those who do not need it should not wait for.
    import orbax.checkpoint

    return orbax.checkpoint
