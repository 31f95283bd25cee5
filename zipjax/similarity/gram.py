"""Second moments, which are symmetric: few products of two units are computed twice."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from zipjax.types import AnyArray, Array

# Wider blocks are computed in parts: of a block's product with itself, half is wasted.
_WIDEST = 1024

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

    Args:
      blocks: samples of units, side by side.
    """
    parts = [part for block in blocks for part in _narrow(block)]
    starts = itertools.accumulate((part.shape[-1] for part in parts), initial=0)
    placed = list(zip(starts, parts, strict=False))
    for (row, left), (column, right) in itertools.combinations_with_replacement(
        placed, 2
    ):
        yield Tile(row, column, left, right)


def num_products(units: int) -> int:
    """Returns of how many pairs of units the products are computed."""
    parts = _num_parts(units)
    return units * units * (parts + 1) // (2 * parts)


def mirror(upper: Float[np.ndarray, "*elements units units"]) -> None:
    """Copies the upper triangle of second moments to the lower one, in place."""
    units = upper.shape[-1]
    for first in range(0, units, _CACHED):
        own = slice(first, first + _CACHED)
        below = slice(first + _CACHED, units)
        corner = upper[..., own, own]
        corner[...] = np.triu(corner) + np.swapaxes(np.triu(corner, 1), -1, -2)
        upper[..., below, own] = np.swapaxes(upper[..., own, below], -1, -2)


def _narrow(block: AnyArray) -> list[AnyArray]:
    """Returns a block in parts of about equal width."""
    units = block.shape[-1]
    count = _num_parts(units)
    edges = [units * k // count for k in range(count + 1)]
    return [block[:, a:b] for a, b in itertools.pairwise(edges)]


def _num_parts(units: int) -> int:
    return -(-units // _WIDEST)
