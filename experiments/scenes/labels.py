"""Labels of Taskonomy's tasks, from images alone or from the geometry in addition.

Dense labels are ``[height, width, channels]``, in the ranges that :data:`RANGES` gives.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zipjax.types import AnyArray

FAR = 10.0
"""The distance that depths are divided by; no surface is further away."""

NOISE = 0.1
"""Standard deviation of the noise on the images to denoise."""

SEGMENTS = ("floor", "ceiling", "wall", "sphere", "box")
"""The classes of pixels."""

RANGES: dict[str, tuple[float, float]] = {
    "autoencoding": (0, 1),
    "denoising": (0, 1),
    "edge_texture": (0, 1),
    "edge_occlusion": (0, 1),
    "keypoints2d": (0, 1),
    "keypoints3d": (0, 1),
    "depth_zbuffer": (0, 1),
    "depth_euclidean": (0, 1),
    "normal": (-1, 1),
    "reshading": (0, 1),
}
"""The least and the largest value of every dense label."""

_HARRIS = 0.05
_OCCLUSION = 0.25
_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
_BINOMIAL = ((1.0, 2.0, 1.0), (2.0, 4.0, 2.0), (1.0, 2.0, 1.0))

Image = Float[Array, "height width channels"]
Map = Float[Array, "height width 1"]


def image_only_labels(
    key: Any, images: Float[AnyArray, "batch height width 3"]
) -> dict[str, Float[Array, "batch height width channels"]]:
    """Returns the labels that need no geometry, for any images.

    Args:
      key: PRNG key of the noise.
      images: RGB, from 0 to 1.

    Returns:
      "autoencoding" and "denoising", both of which are the images, "edge_texture" and
      "keypoints2d"; in addition "noisy", the images to denoise.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
    return jax.vmap(of_image)(keys, jnp.asarray(images, jnp.float32))


def of_image(key: Any, image: Float[Array, "height width 3"]) -> dict[str, Image]:
    """Returns the labels of one image; see :func:`image_only_labels`."""
    noise = NOISE * jax.random.normal(key, image.shape)
    grey = image @ jnp.array([0.299, 0.587, 0.114])
    return {
        "noisy": jnp.clip(image + noise, 0, 1),
        "autoencoding": image,
        "denoising": image,
        "edge_texture": edges(grey[..., None]),
        "keypoints2d": harris(grey[..., None]),
    }


def of_geometry(
    distance: Float[Array, "height width"],
    normal: Float[Array, "height width 3"],
    rays: Float[Array, "height width 3"],
) -> dict[str, Image]:
    """Returns the dense labels that need the geometry.

    Args:
      distance: from the camera to the surfaces.
      normal: the surfaces' normals, in the camera's axes.
      rays: the pixels' directions, of length 1.

    Returns:
      "depth_euclidean", the distance, and "depth_zbuffer", its part along the optical
      axis, both divided by :data:`FAR`; "normal", "reshading", which is how bright
      white surfaces are under a light at the camera; "edge_occlusion" and
      "keypoints3d".
    """
    depth = distance * rays[..., 2]
    return {
        "depth_euclidean": distance[..., None] / FAR,
        "depth_zbuffer": depth[..., None] / FAR,
        "normal": normal,
        "reshading": jnp.maximum(-(normal * rays).sum(-1, keepdims=True), 0),
        "edge_occlusion": occlusions(depth[..., None]),
        # Normals differ by 2 at most, and images by 1.
        "keypoints3d": harris(normal / 2),
    }


def largest_object(
    surface: Int[Array, "height width"],
    first: int,
    classes: Int[Array, "objects"],
) -> Int[Array, ""]:
    """Returns the class of the object with the most pixels, the first of equal ones.

    Args:
      surface: the number of the surface that every pixel shows.
      first: the number of the first object.
      classes: the objects' classes.
    """
    objects = first + jnp.arange(len(classes))
    sizes = (surface[..., None] == objects).sum((0, 1))
    return classes[sizes.argmax()]


def edges(channel: Map) -> Map:
    """Returns the length of Sobel's gradient, at most 1.

    Taskonomy's 2D edges are Canny's without suppression and thresholds, which is this
    length after some smoothing.
    """
    across, down = _gradients(channel)
    return jnp.hypot(across, down) / math.sqrt(2)


def harris(channels: Image) -> Map:
    """Returns how much of a corner every pixel is (Harris and Stephens 1988), from 0.

    The structure tensor adds up the gradients of all channels, smoothed over 3 x 3
    pixels. Of Harris's response, the positive part, the fourth root is taken: it has
    the unit of a gradient, and corners of weak contrast can be seen.
    """
    across, down = _gradients(channels)
    products = (across**2, across * down, down**2)
    xx, xy, yy = (_filtered(p.sum(-1, keepdims=True), _BINOMIAL) / 16 for p in products)
    response = xx * yy - xy**2 - _HARRIS * (xx + yy) ** 2
    return jnp.minimum(jnp.maximum(response, 0) ** 0.25, 1)


def occlusions(depth: Map) -> Map:
    """Returns how much the depth jumps at every pixel, from 0 to 1.

    The reciprocal of the depth along the optical axis is a linear function of the
    position on every plane, however slanted: only at jumps is its second difference,
    relative to its value, large. A quarter or more counts as 1.

    Args:
      depth: along the optical axis.
    """
    near = 1 / depth
    padded = jnp.pad(near, ((1, 1), (1, 1), (0, 0)), "reflect", reflect_type="odd")
    inner = slice(1, -1)
    across = padded[inner, 2:] + padded[inner, :-2] - 2 * near
    down = padded[2:, inner] + padded[:-2, inner] - 2 * near
    jump = jnp.maximum(jnp.abs(across), jnp.abs(down)) * depth
    return jnp.minimum(jump / _OCCLUSION, 1)


def _gradients(channels: Image) -> tuple[Image, Image]:
    """Returns Sobel's gradients, at most 1 for channels from 0 to 1."""
    sobel = jnp.array(_SOBEL) / 4
    return _filtered(channels, sobel), _filtered(channels, sobel.T)


def _filtered(channels: Image, kernel: Any) -> Image:
    """Correlates every channel with a 3 x 3 kernel; the border is repeated."""
    height, width = channels.shape[:2]
    padded = jnp.pad(channels, ((1, 1), (1, 1), (0, 0)), "edge")
    weights = jnp.asarray(kernel)
    return sum(
        (
            weights[i, j] * padded[i : i + height, j : j + width]
            for i in range(3)
            for j in range(3)
        ),
        jnp.zeros_like(channels),
    )
