"""Arrays with compound axes, seen as arrays in which every axis is an atom.

A product is opened by a reshape, a sum by slicing the array into *blocks*. Within a
block every family is one of its members, so sums are opened first. Whatever reads or
changes units (permuting, merging, activations) uses :func:`map_atoms` or
:func:`array_blocks`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from zipjax.spec.entries import (
    Axis,
    Entries,
    Entry,
    Index,
    Product,
    Sum,
    atom_name,
    entry_size,
    select_member,
)
from zipjax.types import AnyArray, Array

# On the device or on the host: what is opened stays where it is.
_A = TypeVar("_A", jax.Array, np.ndarray)


def numpy_of(array: AnyArray) -> Any:
    """Returns the module that computes with an array where it is: NumPy, or JAX's."""
    return jnp if isinstance(array, jax.Array) else np


def map_atoms(
    array: _A,
    entries: Entries,
    sizes: Mapping[str, int],
    function: Callable[[_A, Entries], _A],
) -> _A:
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
            return numpy_of(array).concatenate(mapped, axis=number)
    for number, entry in enumerate(entries):
        before, after = entries[:number], entries[number + 1 :]
        if isinstance(entry, Product):
            factors = entry.factors
            opened = _open_axis(array, number, factors, sizes)
            out = map_atoms(opened, (*before, *factors, *after), sizes, function)
            return _close_axis(out, number, len(factors))
    return function(array, entries)


def array_blocks(
    array: _A, entries: Entries, sizes: Mapping[str, int]
) -> Iterator[tuple[_A, Entries]]:
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


def unit_samples(
    array: Array,
    entries: Entries,
    sizes: Mapping[str, int],
    perm: str,
    groups: tuple[str, ...] = (),
    loops: int = 0,
) -> Iterator[Float[Array, "elements places samples units"]]:
    """Yields a perm's activations, once for every occurrence of the perm.

    Axes without a perm are samples; of a complex number both parts are. Those of other
    perms cannot be: models have their units in different orders. Their mean and their
    root mean square over these units, which do not depend on the order, count as two
    places.

    Args:
      array: an activation.
      entries: one entry per axis.
      sizes: number of units of every perm along these axes.
      perm: the perm.
      groups: the perms and indices that the perm is nested in. Indices become the
        elements, of which each is compared on its own. The others become part of the
        units, outermost first: the units of different groups stay distinct.
      loops: how many of the first axes are iterations of scans. Those that are not
        elements are places, whose means may differ.
    """
    for block, atoms in array_blocks(array, entries, sizes):
        for number in perm_axes(atoms, perm):
            elements, units = group_axes(atoms, number, groups)
            places = [k for k in range(loops) if k not in elements]
            others = [
                k
                for k, atom in enumerate(atoms)
                if isinstance(atom, Axis) and k not in units
            ]
            kept = (*elements, *places, *others, *units)
            samples = [k for k in range(len(atoms)) if k not in kept]
            axes = (elements, places, samples, others, units)
            yield _reduced(_real(joined_axes(block, axes)), keep=not others)


def _real(
    x: Shaped[Array, "elements places samples others units"],
) -> Float[Array, "elements places all_samples others units"]:
    """Returns complex samples, as after an FFT, as their real and imaginary parts."""
    return jnp.concatenate([x.real, x.imag], axis=2) if jnp.iscomplexobj(x) else x


def _reduced(
    x: Float[Array, "elements places samples others units"], *, keep: bool
) -> Float[Array, "elements all_places samples units"]:
    if keep:
        return x[:, :, :, 0]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.concatenate([wide.mean(3), jnp.sqrt((wide**2).mean(3))], axis=1)


def joined_axes(block: _A, axes: Sequence[Sequence[int]]) -> _A:
    """Returns a block with one axis for each of these tuples of its own axes."""
    moved = block.transpose([k for own in axes for k in own])
    return moved.reshape([math.prod(block.shape[k] for k in own) for own in axes])


def perm_axes(atoms: Entries, perm: str) -> list[int]:
    """Returns the numbers of the axes that belong to a perm."""
    return [k for k, x in enumerate(atoms) if isinstance(x, Axis) and x.perm == perm]


def group_axes(
    atoms: Entries, number: int, groups: tuple[str, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the axes of a perm's indices, and those of its groups and its units.

    >>> heads, features = Axis("heads", "out"), Axis("features", "out")
    >>> block = (features, None, heads, Index("layers", 3))
    >>> group_axes(block, 0, ("layers", "heads"))
    ((3,), (2, 0))

    Args:
      atoms: a block's entries.
      number: the axis of the perm.
      groups: the perms and indices that the perm is nested in, outermost first.
    """
    places = {atom_name(entry): k for k, entry in enumerate(atoms)}
    axes = [places[group] for group in groups]
    fixed = tuple(k for k in axes if isinstance(atoms[k], Index))
    return fixed, (*(k for k in axes if k not in fixed), number)


def _size(entry: Entry, sizes: Mapping[str, int]) -> int:
    size = entry_size(entry, sizes)
    if size is None:
        raise ValueError(
            f"the size of {entry} is unknown: in a compound use Fixed(size) for None"
        )
    return size


def _parts(
    array: _A, number: int, entries: Entries, sizes: Mapping[str, int]
) -> Iterator[tuple[Entries, _A]]:
    """Yields ``(entries, block)`` for every part of the sum along axis ``number``."""
    entry = cast(Sum, entries[number])
    first = 0
    for k, part in enumerate(entry.parts):
        inside = [select_member(other, number, k) for other in entries]
        inside[number] = part
        end = first + _size(part, sizes)
        yield tuple(inside), array[(slice(None),) * number + (slice(first, end),)]
        first = end


def _open_axis(
    array: _A, number: int, factors: Entries, sizes: Mapping[str, int]
) -> _A:
    opened = tuple(_size(factor, sizes) for factor in factors)
    return array.reshape(*array.shape[:number], *opened, *array.shape[number + 1 :])


def _close_axis(array: _A, number: int, rank: int) -> _A:
    shape = array.shape
    merged = math.prod(shape[number : number + rank])
    return array.reshape(*shape[:number], merged, *shape[number + rank :])
