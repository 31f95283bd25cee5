"""Second moments, in which every product of two units is computed once."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from zipjax.types import AnyArray, Array

# Below this many units, one product of the whole is faster than three of the parts.
_WHOLE = 512


def gram(
    x: Float[AnyArray, "samples units"],
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> Float[Array, "units units"]:
    """Returns x^T x, symmetric to the last bit, from about half of the products.

    Args:
      x: samples of units; usually centred.
      precision: of the products; the sums are taken in float32 or better.
    """
    units, dtype = x.shape[-1], jnp.promote_types(x.dtype, jnp.float32)

    def product(a: AnyArray, b: AnyArray) -> Array:
        return jnp.matmul(a.T, b, precision=precision, preferred_element_type=dtype)

    if units <= _WHOLE:
        whole = product(x, x)
        upper = jnp.triu(whole, 1)
        return jnp.triu(whole) + upper.T
    left, right = x[:, : units // 2], x[:, units // 2 :]
    across = product(left, right)
    return jnp.block(
        [[gram(left, precision), across], [across.T, gram(right, precision)]]
    )
