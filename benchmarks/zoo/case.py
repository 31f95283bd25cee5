"""A model of the zoo: a function, random parameters and inputs, its perms."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with the number of perms that was derived by hand.

    Attributes:
      apply_fn: ``apply_fn(params, *inputs)``.
      params: parameters, all of them random.
      inputs: random inputs.
      perms: the number of perms.
    """

    apply_fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    perms: int


def linen(model: nn.Module, inputs: tuple[Any, ...], perms: int) -> Case:
    """Makes a case of a Linen module."""
    # Not the initial parameters: all that is trivial in them would hide errors.
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return Case(model.apply, random_params(shapes), inputs, perms)


def random_params(shapes: Any, seed: int = 0) -> Any:
    """Draws parameters of which none is trivial."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        noise = rng.normal(size=leaf.shape)
        if "var" in name:
            return (0.5 + np.abs(noise)).astype(leaf.dtype)
        if leaf.ndim < 2:
            return (("scale" in name) + 0.3 * noise).astype(leaf.dtype)
        fan_in = max(np.prod(leaf.shape) // leaf.shape[-1], 1)
        return (noise * max(fan_in, 4) ** -0.5 * 1.4).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    """Draws an input."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tokens(*shape: int, vocabulary: int, seed: int = 2) -> np.ndarray:
    """Draws token numbers."""
    return np.random.default_rng(seed).integers(0, vocabulary, shape).astype(np.int32)
