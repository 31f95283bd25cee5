"""Names shared by all modules: array aliases, pytrees and the package's errors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

PyTree: TypeAlias = Any
ApplyFn: TypeAlias = Callable[..., Any]
"""``apply_fn(params, *inputs) -> outputs``: one forward pass in evaluation mode."""

Leaves: TypeAlias = Mapping[str, Any]
"""A pytree's leaves by path: ``{"params/conv1/kernel": array}``."""

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Sequence[Shape]
Array: TypeAlias = jax.Array
AnyArray: TypeAlias = jax.Array | np.ndarray


class SpecError(ValueError):
    """A permutation spec does not describe the function it was made for."""
