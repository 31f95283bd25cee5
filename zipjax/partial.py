"""Merged models: a shared trunk and, after a partial zip, one head a model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from zipjax.spec import PermutationSpec
from zipjax.trees import from_leaves
from zipjax.types import ApplyFn, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Merged:
    """A merged model: a pytree of its arrays.

    Attributes:
      trunk: shared parameters by path.
      heads: each model's own parameters by path; empty if everything is shared.
      spec: the permutation spec, with the merged widths.
      structure: the structure of the models' parameter pytrees.
    """

    trunk: dict[str, Any]
    heads: tuple[dict[str, Any], ...]
    spec: PermutationSpec = dataclasses.field(metadata={"static": True})
    structure: Any = dataclasses.field(metadata={"static": True})

    @property
    def num_outputs(self) -> int:
        """Number of outputs: one, or one for every head."""
        return max(len(self.heads), 1)

    def params(self, head: int = 0) -> PyTree:
        """Returns the parameters for ``apply_fn``: the trunk with one head.

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
        like = jax.tree_util.tree_unflatten(self.structure, [0] * number)
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


@functools.partial(jax.jit, static_argnums=0)
def apply(apply_fn: ApplyFn, merged: Merged, *inputs: PyTree) -> Any:
    """Runs a merged model.

    Every head is a call of ``apply_fn`` within one jit, where XLA computes what they
    share once: the cost is that of the trunk and the heads.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``; must be hashable (a bound method or a
        function defined once), as it selects the compiled program.
      merged: the merged model.
      *inputs: inputs of ``apply_fn``.

    Returns:
      The output, or a list of one output a head.
    """
    outputs = [apply_fn(merged.params(k), *inputs) for k in range(merged.num_outputs)]
    return outputs if merged.heads else outputs[0]
