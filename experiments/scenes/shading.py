"""Textures and light: the colour of surfaces at given points."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.scenes.geometry import Hit, Shapes, cast

TEXTURES = ("checker", "stripes", "noise")
"""What a material's kind counts."""

AMBIENT = 0.45
"""How bright a surface is in shadow."""

_ABOVE = 1e-3  # Where rays to the light start, so as not to meet their own surface.


class Materials(NamedTuple):
    """Solid textures of two colours, one per surface.

    Attributes:
      kinds: numbers of :data:`TEXTURES`.
      colors: the two colours, from 0 to 1.
      frequencies: cells of the texture per unit of length.
      phases: where the texture starts, in cells.
      centers: origins of the texture's axes.
      frames: rotations, whose columns are the texture's axes.
    """

    kinds: Int[Array, "surfaces"]
    colors: Float[Array, "surfaces 2 3"]
    frequencies: Float[Array, "surfaces"]
    phases: Float[Array, "surfaces 3"]
    centers: Float[Array, "surfaces 3"]
    frames: Float[Array, "surfaces 3 3"]


def albedo(
    materials: Materials, surface: Int[Array, "*rays"], points: Float[Array, "*rays 3"]
) -> Float[Array, "*rays 3"]:
    """Returns the texture's colour at points of surfaces."""
    own = jax.tree.map(lambda x: x[surface], materials)
    cells = jnp.einsum("...i,...ij->...j", points - own.centers, own.frames)
    cells = cells * own.frequencies[..., None] + own.phases
    checker = jnp.floor(cells).sum(-1) % 2
    stripes = jnp.floor(cells[..., 0]) % 2
    values = jnp.stack([checker, stripes, noise(cells)], axis=-1)
    share = jnp.take_along_axis(values, own.kinds[..., None], axis=-1)
    return own.colors[..., 0, :] * (1 - share) + own.colors[..., 1, :] * share


def noise(cells: Float[Array, "*points 3"]) -> Float[Array, "*points"]:
    """Returns smooth noise from 0 to 1, with one random value per lattice point."""
    low = jnp.floor(cells)
    part = cells - low
    part = part * part * (3 - 2 * part)
    total = jnp.zeros(cells.shape[:-1])
    for corner in itertools.product((0, 1), repeat=3):
        weight = jnp.where(jnp.array(corner) == 1, part, 1 - part).prod(-1)
        total += weight * _hashed(low.astype(jnp.int32) + jnp.array(corner))
    return total


def _hashed(lattice: Int[Array, "*points 3"]) -> Float[Array, "*points"]:
    """Returns a number from 0 to 1 that looks random for every lattice point."""
    primes = jnp.array([73856093, 19349663, 83492791], jnp.uint32)
    bits = (lattice.astype(jnp.uint32) * primes).sum(-1, dtype=jnp.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    bits = bits ^ (bits >> 16)
    return (bits >> 8).astype(jnp.float32) / 2**24


def lit(
    shapes: Shapes,
    light: Float[Array, "3"],
    hit: Hit,
    points: Float[Array, "*rays 3"],
) -> Float[Array, "*rays"]:
    """Returns how bright surfaces are under a point light, from 0 to 1.

    By Lambert's law, without loss over distance; in shadow only ambient light remains.

    Args:
      shapes: all surfaces, which throw shadows.
      light: where the light is.
      hit: the surfaces.
      points: where they are looked at.
    """
    towards = light - points
    distance = jnp.linalg.norm(towards, axis=-1)
    towards = towards / distance[..., None]
    between = cast(shapes, points + _ABOVE * hit.normal, towards)
    cosine = jnp.maximum((hit.normal * towards).sum(-1), 0)
    free = between.distance > distance - _ABOVE
    return AMBIENT + (1 - AMBIENT) * jnp.where(free, cosine, 0)
