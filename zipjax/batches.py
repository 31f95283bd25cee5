"""Batches of inputs: checked, and averaged over."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def batch_inputs(
    number: int, batch: Any, inputs: Callable[[Any], Any] | None
) -> tuple[Any, ...]:
    """Returns a batch's inputs as a tuple, checked; see :func:`collect_moments`."""
    arrays = batch if inputs is None else inputs(batch)
    arrays = tuple(arrays) if isinstance(arrays, (tuple, list)) else (arrays,)
    leaves = jax.tree_util.tree_leaves(arrays)
    sizes = [np.shape(leaf)[0] if np.ndim(leaf) else None for leaf in leaves]
    if not sizes or None in sizes or len(set(sizes)) > 1 or sizes[0] == 0:
        raise ValueError(
            f"batch {number} has inputs of shapes {[np.shape(x) for x in leaves]}: "
            "every input needs one and the same leading batch axis, of size 1 or more. "
            "Use inputs= to select a batch's inputs"
        )
    for leaf in leaves:
        floating = np.issubdtype(np.asarray(leaf).dtype, np.floating)
        if floating and not np.isfinite(leaf).all():
            raise ValueError(
                f"batch {number} holds NaN or infinity: clean the data first"
            )
    return arrays
