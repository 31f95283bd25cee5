"""Random rooms with spheres and boxes, rendered with the labels of twelve tasks.

The tasks are Taskonomy's that MuDSC merges (Section 4.2), here with labels that are
computed, not estimated: nothing need be downloaded.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.scenes.geometry import (
    Boxes,
    Planes,
    Shapes,
    Spheres,
    cast,
    pixel_rays,
)
from experiments.scenes.labels import (
    RANGES,
    SEGMENTS,
    largest_object,
    of_geometry,
    of_image,
)
from experiments.scenes.shading import TEXTURES, Materials, albedo, lit

TASKS = (*RANGES, "segment_semantic", "class_object")
"""The tasks, by Taskonomy's names."""

OBJECT_CLASSES = tuple(f"{t} {s}" for s in ("sphere", "box") for t in TEXTURES)
"""The classes of objects."""

_EACH = 3  # Spheres and boxes, some of which may be absent.
_PLANES = 5  # Floor, ceiling, left, right and back wall.
_PRESENT = 0.6  # Probability of an object other than the main one.
_AT_ONCE = 16  # Scenes rendered together: all surfaces are kept for all their pixels.
# Bounds of what is drawn, in units of length or in degrees.
_HEIGHT, _SIDE, _BACK = (1.2, 1.8), (2.0, 3.5), (5.0, 8.0)
_PITCH, _YAW, _ROLL = 10.0, 15.0, 5.0
_RADIUS, _HALF, _DISTANCE = (0.3, 0.75), (0.2, 0.5), (2.0, 4.5)


class Scene(NamedTuple):
    """A room, with the camera at the origin.

    Attributes:
      view: rotation of the camera's axes into the room's.
      shapes: the surfaces, in the room's axes.
      materials: theirs.
      light: where the light is.
    """

    view: Float[Array, "3 3"]
    shapes: Shapes
    materials: Materials
    light: Float[Array, "3"]


def input_of(task: str) -> str:
    """Returns the name under which :func:`render` returns a task's input."""
    return "noisy" if task == "denoising" else "rgb"


@functools.partial(jax.jit, static_argnames=("count", "size"))
def render(key: Any, count: int, size: int = 64) -> dict[str, Array]:
    """Renders random scenes.

    Scene k depends on the key and on k only, so that the first of many scenes are those
    of few.

    Args:
      key: PRNG key.
      count: number of scenes.
      size: side of the images in pixels.

    Returns:
      "rgb", from 0 to 1, and "noisy", what is to be denoised, ``[count, size, size,
      3]``; by the names of :data:`TASKS` the labels: dense ones as in
      :mod:`experiments.scenes.labels`; "segment_semantic", numbers of ``SEGMENTS``
      ``[count, size, size]``, and "class_object", the class of the object with the most
      pixels, a number of :data:`OBJECT_CLASSES` ``[count]``, as int32.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))

    def rendered(key: Any) -> dict[str, Array]:
        drawing, noise = jax.random.split(key)
        return render_scene(draw_scene(drawing), noise, size)

    return jax.lax.map(rendered, keys, batch_size=_AT_ONCE)


def render_scene(scene: Scene, key: Any, size: int) -> dict[str, Array]:
    """Renders one scene; see :func:`render`.

    Args:
      scene: the scene.
      key: PRNG key of the noise.
      size: side of the image in pixels.
    """
    rays = pixel_rays(size)
    directions = rays @ scene.view.T
    hit = cast(scene.shapes, jnp.zeros_like(directions), directions)
    points = hit.distance[..., None] * directions
    colors = albedo(scene.materials, hit.surface, points)
    image = colors * lit(scene.shapes, scene.light, hit, points)[..., None]
    kinds = scene.materials.kinds[_PLANES:]
    shapes = jnp.repeat(jnp.arange(2), _EACH)
    classes = shapes * len(TEXTURES) + kinds
    return {
        "rgb": image,
        **of_image(key, image),
        **of_geometry(hit.distance, hit.normal @ scene.view, rays),
        "segment_semantic": _segments()[hit.surface],
        "class_object": largest_object(hit.surface, _PLANES, classes),
    }


def draw_scene(key: Any) -> Scene:
    """Draws a scene; one object at least is there, in the middle of the view."""
    room, view, objects, looks, light = jax.random.split(key, 5)
    planes = _draw_planes(room)
    shapes = _draw_objects(objects, planes)
    x, y, z = jax.random.uniform(light, (3,), minval=-1, maxval=1)
    # Below the ceiling, in front of the objects or above them.
    lamp = jnp.stack([1.5 * x, 0.8 * planes.offsets[1] + 0.1 * y, 1.5 + 1.5 * z])
    degrees = jax.random.uniform(view, (3,), minval=-1, maxval=1)
    angles = degrees * jnp.array([_PITCH, _YAW, _ROLL])
    return Scene(_rotation(angles), shapes, _draw_materials(looks, shapes), lamp)


def _segments() -> Int[Array, "surfaces"]:
    room = ("floor", "ceiling", "wall", "wall", "wall")
    names = (*room, *("sphere",) * _EACH, *("box",) * _EACH)
    return jnp.array([SEGMENTS.index(name) for name in names], jnp.int32)


def _draw_planes(key: Any) -> Planes:
    """Draws a room around the camera; its sixth side is behind."""
    keys = jax.random.split(key, 3)
    bounds = ((_HEIGHT, 2), (_SIDE, 2), (_BACK, 1))
    drawn = [_between(k, b, (n,)) for k, (b, n) in zip(keys, bounds, strict=True)]
    normals = [[0, -1, 0], [0, 1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, -1]]
    return Planes(jnp.array(normals, jnp.float32), -jnp.concatenate(drawn))


def _draw_objects(key: Any, planes: Planes) -> Shapes:
    count = 2 * _EACH
    keys = jax.random.split(key, 7)
    main = jnp.arange(count) == jax.random.randint(keys[0], (), 0, count)
    present = main | jax.random.bernoulli(keys[1], _PRESENT, (count,))
    radii = _between(keys[2], _RADIUS, (_EACH,))
    halves = _between(keys[6], _HALF, (_EACH, 3))
    # As far as a box's corners, so that no object leaves the room.
    reach = jnp.concatenate([radii, jnp.linalg.norm(halves, axis=-1)])
    distance = _between(keys[3], _DISTANCE, (count, 1))
    aside = jax.random.uniform(keys[4], (count, 2), minval=-1, maxval=1)
    aside = aside * distance * jnp.where(main[:, None], 0.15, 0.45)
    floor, ceiling, left, right, back = -planes.offsets
    low = jnp.array([-left, -ceiling, 0])
    high = jnp.array([right, floor, back])
    centers = jnp.concatenate([aside, distance], axis=-1)
    centers = jnp.clip(centers, low + reach[:, None], high - reach[:, None])
    angles = jax.random.uniform(keys[5], (_EACH, 3), minval=-180, maxval=180)
    frames = jax.vmap(_rotation)(angles)
    spheres = Spheres(centers[:_EACH], radii)
    boxes = Boxes(centers[_EACH:], halves, frames)
    return Shapes(planes, spheres, boxes, present)


def _draw_materials(key: Any, shapes: Shapes) -> Materials:
    """Draws textures; those of the boxes have their axes, others those of the room."""
    count = _PLANES + 2 * _EACH
    keys = jax.random.split(key, 4)
    first = jax.random.uniform(keys[1], (count, 1, 3), minval=0.1, maxval=0.9)
    # Half of the range of colours apart, in every channel.
    colors = jnp.concatenate([first, (first + 0.5) % 1], axis=1)
    axes = jnp.broadcast_to(jnp.eye(3), (count - _EACH, 3, 3))
    centers = [jnp.zeros((_PLANES, 3)), shapes.spheres.centers, shapes.boxes.centers]
    return Materials(
        kinds=jax.random.randint(keys[0], (count,), 0, len(TEXTURES)),
        colors=colors,
        frequencies=_between(keys[2], (1.5, 4.0), (count,)),
        phases=jax.random.uniform(keys[3], (count, 3)),
        centers=jnp.concatenate(centers),
        frames=jnp.concatenate([axes, shapes.boxes.frames]),
    )


def _between(
    key: Any, bounds: tuple[float, float], shape: tuple[int, ...]
) -> Float[Array, "..."]:
    return jax.random.uniform(key, shape, minval=bounds[0], maxval=bounds[1])


def _rotation(degrees: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Returns the rotation by angles about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = (
        f(degrees * (math.pi / 180)) for f in (jnp.cos, jnp.sin)
    )
    about_x = jnp.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = jnp.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = jnp.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
