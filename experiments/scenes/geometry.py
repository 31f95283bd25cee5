"""Rays from a pinhole camera, and where they meet planes, spheres and boxes.

Axes are those of images: x to the right, y down, z forward. Surfaces are numbered
planes first, then spheres, then boxes.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

HALF_ANGLE = math.pi / 6
"""Between the optical axis and the middle of an image's side."""

_TINY = 1e-6

Vectors = Float[Array, "*rays 3"]


class Planes(NamedTuple):
    """Planes, seen from the side to which their normals point.

    Attributes:
      normals: of length 1.
      offsets: of their points, along the normals.
    """

    normals: Float[Array, "planes 3"]
    offsets: Float[Array, "planes"]


class Spheres(NamedTuple):
    """Spheres, seen from outside."""

    centers: Float[Array, "spheres 3"]
    radii: Float[Array, "spheres"]


class Boxes(NamedTuple):
    """Boxes, seen from outside.

    Attributes:
      centers: their centres.
      halves: half their sides.
      frames: rotations, whose columns are the directions of the sides.
    """

    centers: Float[Array, "boxes 3"]
    halves: Float[Array, "boxes 3"]
    frames: Float[Array, "boxes 3 3"]


class Shapes(NamedTuple):
    """All surfaces.

    Attributes:
      planes: the room.
      spheres: the first objects.
      boxes: the other objects.
      present: which of the objects are there.
    """

    planes: Planes
    spheres: Spheres
    boxes: Boxes
    present: Bool[Array, "objects"]


class Hit(NamedTuple):
    """The first surface on every ray.

    Attributes:
      distance: from the ray's origin; infinite if there is no surface.
      surface: its number.
      normal: of length 1, towards the origin's side.
    """

    distance: Float[Array, "*rays"]
    surface: Int[Array, "*rays"]
    normal: Float[Array, "*rays 3"]


def pixel_rays(size: int) -> Float[Array, "size size 3"]:
    """Returns the directions, of length 1, from the camera through pixels' centres."""
    steps = (jnp.arange(size) + 0.5) * (2 / size) - 1
    x, y = jnp.meshgrid(steps, steps)
    forward = jnp.full_like(x, 1 / math.tan(HALF_ANGLE))
    rays = jnp.stack([x, y, forward], axis=-1)
    return rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)


def cast(shapes: Shapes, origins: Vectors, directions: Vectors) -> Hit:
    """Returns what rays hit first.

    Args:
      shapes: the surfaces.
      origins: where the rays start.
      directions: of length 1.
    """
    found = [
        _meet_planes(shapes.planes, origins, directions),
        _meet_spheres(shapes.spheres, origins, directions),
        _meet_boxes(shapes.boxes, origins, directions),
    ]
    distances = jnp.concatenate([distance for distance, _ in found], axis=-1)
    normals = jnp.concatenate([normal for _, normal in found], axis=-2)
    planes = jnp.ones(len(shapes.planes.offsets), bool)
    there = jnp.concatenate([planes, shapes.present])
    distances = jnp.where(there & (distances > _TINY), distances, jnp.inf)
    surface = jnp.argmin(distances, axis=-1)
    normal = jnp.take_along_axis(normals, surface[..., None, None], axis=-2)
    return Hit(distances.min(-1), surface, normal[..., 0, :])


def _meet_planes(
    planes: Planes, origins: Vectors, directions: Vectors
) -> tuple[Float[Array, "*rays planes"], Float[Array, "*rays planes 3"]]:
    towards = -directions @ planes.normals.T
    height = origins @ planes.normals.T - planes.offsets
    front = towards > _TINY
    distances = jnp.where(front, height / jnp.where(front, towards, 1), jnp.inf)
    return distances, jnp.broadcast_to(planes.normals, (*distances.shape, 3))


def _meet_spheres(
    spheres: Spheres, origins: Vectors, directions: Vectors
) -> tuple[Float[Array, "*rays spheres"], Float[Array, "*rays spheres 3"]]:
    centers = spheres.centers - origins[..., None, :]
    nearest = (centers * directions[..., None, :]).sum(-1)
    # Not by the quadratic formula, whose differences of large numbers cost digits.
    aside = centers - nearest[..., None] * directions[..., None, :]
    depth = spheres.radii**2 - (aside**2).sum(-1)
    met = depth > 0
    distances = nearest - jnp.sqrt(jnp.where(met, depth, 0))
    points = distances[..., None] * directions[..., None, :]
    normals = (points - centers) / jnp.maximum(spheres.radii, _TINY)[:, None]
    return jnp.where(met, distances, jnp.inf), normals


def _meet_boxes(
    boxes: Boxes, origins: Vectors, directions: Vectors
) -> tuple[Float[Array, "*rays boxes"], Float[Array, "*rays boxes 3"]]:
    """Intersects the three pairs of parallel planes of every box in its own axes."""
    from_center = origins[..., None, :] - boxes.centers
    start = jnp.einsum("...bi,bij->...bj", from_center, boxes.frames)
    along = jnp.einsum("...i,bij->...bj", directions, boxes.frames)
    along = jnp.where(jnp.abs(along) < _TINY, _TINY, along)
    sides = (jnp.sign(along) * boxes.halves - start) / along
    entered = sides - 2 * boxes.halves / jnp.abs(along)
    enter, leave = entered.max(-1), sides.min(-1)
    axis = jax.nn.one_hot(entered.argmax(-1), 3)
    normals = jnp.einsum("bij,...bj->...bi", boxes.frames, -jnp.sign(along) * axis)
    return jnp.where(enter < leave, enter, jnp.inf), normals
