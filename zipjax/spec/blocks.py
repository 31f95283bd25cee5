"""Arrays with compound axes, seen as arrays whose axes are atoms.

A product is a reshape and a sum is a slice (in which families of other axes become
one of their members, so that sums come first); everything that reads or changes units
(permuting, merging, activations) goes through the two functions here.
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
    """Applies ``function(array, entries)`` where every entry is an atom.

    Args:
      array: an array with one entry an axis.
      entries: the axes' entries.
      sizes: number of units of every perm along these axes.
      function: maps an array whose entries are all ``Axis``, ``Fixed``, ``Index`` or
        None to one of the same rank; it may change the sizes.

    Returns:
      The array put together again from what ``function`` returned.
    """
    for number, entry in enumerate(entries):
        if isinstance(entry, Sum):
            mapped = [
                map_atoms(piece, parts, sizes, function)
                for parts, piece in _split(array, number, entries, sizes)
            ]
            return jnp.concatenate(mapped, axis=number)
    for number, entry in enumerate(entries):
        before, behind = entries[:number], entries[number + 1 :]
        if isinstance(entry, Product):
            factors = entry.factors
            opened = _open(array, number, factors, sizes)
            out = map_atoms(opened, (*before, *factors, *behind), sizes, function)
            return _close(out, number, len(factors))
    return function(array, entries)


def array_blocks(
    array: Array, entries: Entries, sizes: Mapping[str, int]
) -> Iterator[tuple[Array, Entries]]:
    """Yields the parts of an array between its sums, with atoms as entries."""
    for number, entry in enumerate(entries):
        if isinstance(entry, Sum):
            for parts, piece in _split(array, number, entries, sizes):
                yield from array_blocks(piece, parts, sizes)
            return
    for number, entry in enumerate(entries):
        if isinstance(entry, Product):
            opened = _open(array, number, entry.factors, sizes)
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
      entries: its axes' entries.
      sizes: number of units of every perm along these axes.
      perm: the perm whose units become the last axis; all else are samples.
      groups: what the perm is nested in: the units of all groups are told apart.
    """
    for block, atoms in array_blocks(array, entries, sizes):
        for number in perm_axes(atoms, perm):
            yield flat_units(block, unit_axes(atoms, number, groups))


def perm_axes(atoms: Entries, perm: str) -> list[int]:
    """Returns the numbers of the axes that a perm has."""
    return [k for k, x in enumerate(atoms) if isinstance(x, Axis) and x.perm == perm]


def unit_axes(atoms: Entries, number: int, groups: tuple[str, ...]) -> tuple[int, ...]:
    """Returns the axes of the enclosing groups, outermost first, and of the units."""
    places = {atom_name(entry): k for k, entry in enumerate(atoms)}
    return (*(places[group] for group in groups), number)


def flat_units(block: Array, axes: tuple[int, ...]) -> Array:
    """Returns a block as ``[samples, units]``: the given axes last, as one."""
    units = math.prod(block.shape[k] for k in axes)
    last = tuple(range(-len(axes), 0))
    return jnp.moveaxis(block, axes, last).reshape(-1, units)


def _size(entry: Entry, sizes: Mapping[str, int]) -> int:
    size = entry_size(entry, sizes)
    if size is None:
        raise ValueError(
            f"the size of {entry} is unknown: in a compound, use Fixed(size) for None"
        )
    return size


def _split(
    array: Array, number: int, entries: Entries, sizes: Mapping[str, int]
) -> Iterator[tuple[Entries, Array]]:
    """Yields the parts of a sum, each with the entries of all axes in it."""
    entry = cast(Sum, entries[number])
    ends = np.cumsum([_size(part, sizes) for part in entry.parts])
    pieces = jnp.split(array, ends[:-1].tolist(), axis=number)
    for k, (part, piece) in enumerate(zip(entry.parts, pieces, strict=True)):
        inside = [select_member(other, number, k) for other in entries]
        inside[number] = part
        yield tuple(inside), piece


def _open(
    array: Array, number: int, factors: Entries, sizes: Mapping[str, int]
) -> Array:
    opened = tuple(_size(factor, sizes) for factor in factors)
    return array.reshape(*array.shape[:number], *opened, *array.shape[number + 1 :])


def _close(array: Array, number: int, rank: int) -> Array:
    shape = array.shape
    merged = math.prod(shape[number : number + rank])
    return array.reshape(*shape[:number], merged, *shape[number + rank :])
