"""Second moments, which are symmetric: few products of two units are computed twice."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from zipjax.types import AnyArray, Array

# The most rows of a band: of a band's product with itself, half is wasted.
_HIGHEST = 1024

# So much of a matrix is transposed within a processor's cache.
_CACHED = 128


class Tile(NamedTuple):
    """A part of a second moment that reaches to the diagonal, or is above it.

    Attributes:
      row: its first row.
      column: its first column.
      left: samples of the units of its rows, ``[samples, height]``.
      right: samples of the units of its columns, ``[samples, width]``.
    """

    row: int
    column: int
    left: AnyArray
    right: AnyArray

    def product(self, precision: jax.lax.Precision) -> Float[Array, "height width"]:
        """Returns left^T right in a precision, summed in float32 or better."""
        dtype = jnp.promote_types(self.left.dtype, jnp.float32)
        return jnp.matmul(
            self.left.T, self.right, precision=precision, preferred_element_type=dtype
        )

    def added(
        self,
        total: Float[AnyArray, "rows units"],
        product: Float[AnyArray, "height width"],
    ) -> Float[Array, "rows units"]:
        """Returns a second moment with this part added, in place if it is donated."""
        corner = self.row, self.column
        before = jax.lax.dynamic_slice(total, corner, product.shape)
        return jax.lax.dynamic_update_slice(total, before + product, corner)


def gram(
    x: Float[AnyArray, "samples units"],
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> Float[Array, "units units"]:
    """Returns x^T x, symmetric to the last bit.

    Args:
      x: samples of units; usually centred.
      precision: of the products; the sums are taken in float32 or better.
    """
    units, dtype = x.shape[-1], jnp.promote_types(x.dtype, jnp.float32)
    upper = jnp.zeros((units, units), dtype)
    for tile in upper_tiles([x]):
        upper = tile.added(upper, tile.product(precision))
    return jnp.triu(upper) + jnp.triu(upper, 1).T


def upper_tiles(blocks: Sequence[Float[AnyArray, "samples _units"]]) -> Iterator[Tile]:
    """Yields the parts of a second moment that hold its upper triangle.

    That are bands of rows, which begin at the diagonal: the wider a product is, the
    faster. Blocks are not joined for that; a band has a part for each.

    Args:
      blocks: samples of units, side by side.
    """
    widths = [block.shape[-1] for block in blocks]
    placed = list(zip(itertools.accumulate(widths, initial=0), blocks, strict=False))
    for number, (start, block) in enumerate(placed):
        for first, last in _bands(block.shape[-1]):
            rows, row = block[:, first:last], start + first
            yield Tile(row, row, rows, block[:, first:])
            for column, other in placed[number + 1 :]:
                yield Tile(row, column, rows, other)


def num_products(units: int) -> int:
    """Returns of how many pairs of units the products are computed."""
    return sum((last - first) * (units - first) for first, last in _bands(units))


def mirror(upper: Float[np.ndarray, "*elements units units"]) -> None:
    """Copies the upper triangle of second moments to the lower one, in place."""
    units = upper.shape[-1]
    for first in range(0, units, _CACHED):
        own = slice(first, first + _CACHED)
        below = slice(first + _CACHED, units)
        corner = upper[..., own, own]
        corner[...] = np.triu(corner) + np.swapaxes(np.triu(corner, 1), -1, -2)
        upper[..., below, own] = np.swapaxes(upper[..., own, below], -1, -2)


def _bands(units: int) -> Iterator[tuple[int, int]]:
    """Returns where bands of about equal height begin and end."""
    count = -(-units // _HIGHEST)
    return itertools.pairwise(units * k // count for k in range(count + 1))
