"""Arrays with compound axes, seen as arrays in which every axis is an atom.

A product is opened by a reshape, a sum by slicing the array into *blocks*. Within a
block every family is one of its members, so sums are opened first. Whatever reads or
changes units (permuting, merging, activations) uses :func:`map_atoms` or
:func:`array_blocks`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import jax.numpy as jnp
import numpy as np

from zipjax.spec.entries import (
    Axis,
    Entries,
    Entry,
    Product,
    Sum,
    atom_name,
    entry_size,
    select_member,
)
from zipjax.types import Array


def map_atoms(
    array: Array,
    entries: Entries,
    sizes: Mapping[str, int],
    function: Callable[[Array, Entries], Array],
) -> Array:
    """Applies ``function(block, atoms)`` to each block, opened into atoms.

    Args:
      array: an array.
      entries: one entry per axis.
      sizes: number of units of every perm along these axes.
      function: maps a block whose entries are all atoms (``Axis``, ``Fixed``, ``Index``
        or None) to one of the same rank; it may change the sizes.

    Returns:
      The array put together again from what ``function`` returned.
    """
    for number, entry in enumerate(entries):
        if isinstance(entry, Sum):
            mapped = [
                map_atoms(piece, parts, sizes, function)
                for parts, piece in _parts(array, number, entries, sizes)
            ]
            return jnp.concatenate(mapped, axis=number)
    for number, entry in enumerate(entries):
        before, after = entries[:number], entries[number + 1 :]
        if isinstance(entry, Product):
            factors = entry.factors
            opened = _open_axis(array, number, factors, sizes)
            out = map_atoms(opened, (*before, *factors, *after), sizes, function)
            return _close_axis(out, number, len(factors))
    return function(array, entries)


def array_blocks(
    array: Array, entries: Entries, sizes: Mapping[str, int]
) -> Iterator[tuple[Array, Entries]]:
    """Yields the blocks of an array, opened into atoms, each with their entries."""
    for number, entry in enumerate(entries):
        if isinstance(entry, Sum):
            for parts, piece in _parts(array, number, entries, sizes):
                yield from array_blocks(piece, parts, sizes)
            return
    for number, entry in enumerate(entries):
        if isinstance(entry, Product):
            opened = _open_axis(array, number, entry.factors, sizes)
            factors = (*entries[:number], *entry.factors, *entries[number + 1 :])
            yield from array_blocks(opened, factors, sizes)
            return
    yield array, entries


def unit_views(
    array: Array,
    entries: Entries,
    sizes: Mapping[str, int],
    perm: str,
    groups: tuple[str, ...] = (),
) -> Iterator[Array]:
    """Yields ``[samples, units]`` views, one for every occurrence of a perm.

    Args:
      array: an activation or a parameter.
      entries: one entry per axis.
      sizes: number of units of every perm along these axes.
      perm: the perm whose units become the last axis; all other axes are samples.
      groups: the perms and indices that the perm is nested in. They become part of the
        last axis, outermost first: the units of different groups stay distinct.
    """
    for block, atoms in array_blocks(array, entries, sizes):
        for number in perm_axes(atoms, perm):
            yield flat_units(block, unit_axes(atoms, number, groups))


def perm_axes(atoms: Entries, perm: str) -> list[int]:
    """Returns the numbers of the axes that belong to a perm."""
    return [k for k, x in enumerate(atoms) if isinstance(x, Axis) and x.perm == perm]


def unit_axes(atoms: Entries, number: int, groups: tuple[str, ...]) -> tuple[int, ...]:
    """Returns the axes of the groups, outermost first, followed by that of the units.

    >>> heads, features = Axis("heads", "out"), Axis("features", "out")
    >>> unit_axes((features, None, heads), 0, ("heads",))
    (2, 0)
    """
    places = {atom_name(entry): k for k, entry in enumerate(atoms)}
    return (*(places[group] for group in groups), number)


def flat_units(block: Array, axes: tuple[int, ...]) -> Array:
    """Returns a block as ``[samples, units]``: the given axes are joined as units."""
    units = math.prod(block.shape[k] for k in axes)
    last = tuple(range(-len(axes), 0))
    return jnp.moveaxis(block, axes, last).reshape(-1, units)


def _size(entry: Entry, sizes: Mapping[str, int]) -> int:
    size = entry_size(entry, sizes)
    if size is None:
        raise ValueError(
            f"the size of {entry} is unknown: in a compound use Fixed(size) for None"
        )
    return size


def _parts(
    array: Array, number: int, entries: Entries, sizes: Mapping[str, int]
) -> Iterator[tuple[Entries, Array]]:
    """Yields ``(entries, block)`` for every part of the sum along axis ``number``."""
    entry = cast(Sum, entries[number])
    ends = np.cumsum([_size(part, sizes) for part in entry.parts])
    pieces = jnp.split(array, ends[:-1].tolist(), axis=number)
    for k, (part, piece) in enumerate(zip(entry.parts, pieces, strict=True)):
        inside = [select_member(other, number, k) for other in entries]
        inside[number] = part
        yield tuple(inside), piece


def _open_axis(
    array: Array, number: int, factors: Entries, sizes: Mapping[str, int]
) -> Array:
    opened = tuple(_size(factor, sizes) for factor in factors)
    return array.reshape(*array.shape[:number], *opened, *array.shape[number + 1 :])


def _close_axis(array: Array, number: int, rank: int) -> Array:
    shape = array.shape
    merged = math.prod(shape[number : number + rank])
    return array.reshape(*shape[:number], merged, *shape[number + rank :])
