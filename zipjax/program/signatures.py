"""Signatures: what of a pytree of arrays decides how a function is traced."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from zipjax.types import PyTree

Signature: TypeAlias = Any
"""Structure, shapes and dtypes of a pytree; hashable."""


def signature_of(tree: PyTree) -> Signature:
    """Returns the signature of a pytree of arrays, tracers or placeholders."""
    leaves, structure = jax.tree_util.tree_flatten(tree)
    return structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)


def abstract(signature: Signature) -> PyTree:
    """Returns a pytree of placeholders with a signature."""
    structure, shapes = signature
    leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return jax.tree_util.tree_unflatten(structure, leaves)
