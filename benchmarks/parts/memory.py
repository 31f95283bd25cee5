"""The memory that moments are predicted to take, beside what XLA allots to them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.similarity.costs import moments_cost
from zipjax.similarity.running import nothing, with_batch


def measure(smoke: bool) -> dict[str, Any]:
    """Returns megabytes by number of units, whole and in panels of an eighth."""
    sizes = [64, 256] if smoke else [1024, 4096, 8192]
    return {
        f"{units:,} units": {
            "predicted": moments_cost([units], 512).device_bytes / 1e6,
            "allotted": allotted(units, None),
            "predicted, panels": moments_cost(
                [units], 512, memory_limit=units * units
            ).device_bytes
            / 1e6,
            "allotted, panels": allotted(units, units // 8),
        }
        for units in sizes
    }


def allotted(units: int, height: int | None, samples: int = 512) -> float:
    """Returns the megabytes that a batch's step takes, less its rows.

    Args:
      units: number of units.
      height: number of rows of a panel; None: all.
      samples: number of samples.
    """
    part = jax.ShapeDtypeStruct((1, samples, units), jnp.float32)
    empty = jax.tree.map(lambda x: x[0], nothing([[_with_elements(part)]], height))
    step = jax.jit(with_batch, static_argnums=3, donate_argnums=0)
    compiled = step.lower(empty, [[part]], np.int32(0), height).compile()
    stats: Any = compiled.memory_analysis()
    rows = 4 * samples * units
    return (stats.temp_size_in_bytes + stats.output_size_in_bytes - rows) / 1e6


def _with_elements(part: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *part.shape), part.dtype)
