"""How images are normalised."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float

from zipjax.types import AnyArray


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation of the pixels, one number per channel or one for all.

    Hashable, so that it may be static data of a jitted function.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def normalised(
        self, images: AnyArray
    ) -> Float[jax.Array, "batch height width channels"]:
        """Returns images as networks see them, computed on the device."""
        return (jnp.asarray(images, jnp.float32) - jnp.array(self.mean)) / jnp.array(
            self.std
        )


PLAIN = Pixels()
"""Leaves images as they are."""
