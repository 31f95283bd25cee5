"""Merged models: a shared trunk and, after a partial zip, one head a model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import from_leaves
from zipjax.types import ApplyFn, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Merged:
    """A merged model: a pytree of its arrays.

    Attributes:
      trunk: shared parameters by path.
      heads: each model's own parameters by path; empty if everything is shared.
      spec: the permutation spec, with the merged widths; a tuple of one a head if the
        heads are different functions.
      structure: the structure of the models' parameter pytrees; a tuple of one a head
        where they differ.
    """

    trunk: dict[str, Any]
    heads: tuple[dict[str, Any], ...]
    spec: PermutationSpec | tuple[PermutationSpec, ...] = dataclasses.field(
        metadata={"static": True}
    )
    structure: Any = dataclasses.field(metadata={"static": True})

    @property
    def num_outputs(self) -> int:
        """Number of outputs: one, or one for every head."""
        return max(len(self.heads), 1)

    def params(self, head: int = 0) -> PyTree:
        """Returns the parameters for ``apply_fn``: the trunk with one head.

        They are a pytree of the structure that this head's model had.

        Args:
          head: number of the model whose head to use.

        Raises:
          ValueError: if there is no such head.
        """
        if not 0 <= head < self.num_outputs:
            raise ValueError(
                f"head {head} does not exist: this merged model has "
                f"{self.num_outputs}, numbered from 0"
            )
        own = self.heads[head] if self.heads else {}
        number = len(self.trunk) + len(own)
        structure = each(self.structure, self.num_outputs, "structures")[head]
        like = jax.tree_util.tree_unflatten(structure, [0] * number)
        return from_leaves({**self.trunk, **own}, like)


def heads_of(model: PyTree | Merged) -> list[PyTree]:
    """Returns a model's parameters for ``apply_fn``, with each of its heads."""
    if isinstance(model, Merged):
        return [model.params(head) for head in range(model.num_outputs)]
    return [model]


def flops(function: Callable[..., Any], *args: PyTree) -> float:
    """Returns the floating point operations of a call, as XLA counts them.

    NaN where the backend does not count.

    Args:
      function: any function that can be jitted.
      *args: its arguments; for a merged model
        ``zipjax.flops(functools.partial(zipjax.apply, apply_fn), merged, inputs)``.
    """
    analysis = jax.jit(function).lower(*args).compile().cost_analysis()
    return float((analysis or {}).get("flops", float("nan")))


def apply(apply_fn: OneOrEach[ApplyFn], merged: Merged, *inputs: PyTree) -> Any:
    """Runs a merged model.

    Every head is a call of ``apply_fn`` within one jit, where XLA computes what they
    share once: the cost is that of the trunk and the heads.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``; must be hashable (a bound method or a
        function defined once), as it selects the compiled program. A sequence of one
        a head where these are different functions.
      merged: the merged model.
      *inputs: inputs of ``apply_fn``.

    Returns:
      The output, or a list of one output a head.

    Raises:
      ValueError: if there is another number of functions than of heads.
    """
    functions = each(apply_fn, merged.num_outputs, "functions")
    return _apply(one_or_each(functions), merged, *inputs)


@functools.partial(jax.jit, static_argnums=0)
def _apply(apply_fn: OneOrEach[ApplyFn], merged: Merged, *inputs: PyTree) -> Any:
    functions = each(apply_fn, merged.num_outputs, "functions")
    outputs = [call(merged.params(k), *inputs) for k, call in enumerate(functions)]
    return outputs if merged.heads else outputs[0]
