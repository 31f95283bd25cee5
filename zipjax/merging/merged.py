"""Merged models: a shared trunk and, after a partial zip, one head per model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from zipjax.arguments import check_function, check_kind
from zipjax.merging.each import OneOrEach, each, each_function, one_or_each
from zipjax.merging.matrices import Assignments
from zipjax.merging.stream_heads import StreamEnd, StreamHead
from zipjax.merging.weights import Weights, fixed_weights
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import from_leaves
from zipjax.types import ApplyFn, Leaves, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """How a merged model was made. Equality and hash compare the content.

    Attributes:
      spec: the parents' permutation spec, with the widths before the merge; a tuple
        with one per model if their functions differ.
      assignments: how the parents' units were matched, ``{perm: [*groups, N*n]}``.
      num_models: number of parents N.
      stop_at: the number of the cut where the zip stopped; None if the parents were
        merged whole.
      weights: interpolation weights of the parents, also by path; None for equal ones.
    """

    spec: PermutationSpec | tuple[PermutationSpec, ...]
    assignments: Assignments
    num_models: int
    stop_at: int | None = None
    weights: Weights | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", fixed_weights(self.weights))
        copies = {perm: np.array(x) for perm, x in self.assignments.items()}
        for assignment in copies.values():
            assignment.setflags(write=False)
        object.__setattr__(self, "assignments", MappingProxyType(copies))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        rows = tuple((p, x.shape, x.tobytes()) for p, x in self.assignments.items())
        weights = self.weights
        if isinstance(weights, Mapping):
            weights = tuple(weights.items())
        return self.spec, rows, self.num_models, self.stop_at, weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Merged:
    """A merged model: a pytree of its arrays.

    Attributes:
      trunk: shared parameters by path.
      heads: each model's own parameters by path; empty if everything is shared.
      spec: the permutation spec, with the merged widths; a tuple with one per head if
        the heads are different functions.
      structure: the structure of the models' parameter pytrees; a tuple with one per
        head where they differ.
      origin: how the model was made; None if unknown.
      unmerge: after a cut inside a residual stream, every model's U of the perms that
        lie there, ``{perm: [*groups, n, units]}``.
      own: after such a cut the models' spec, whose widths the heads have, or a tuple
        with one per head; else None.
    """

    trunk: dict[str, Any]
    heads: tuple[dict[str, Any], ...]
    spec: PermutationSpec | tuple[PermutationSpec, ...] = dataclasses.field(
        metadata={"static": True}
    )
    structure: Any = dataclasses.field(metadata={"static": True})
    origin: Origin | None = dataclasses.field(default=None, metadata={"static": True})
    unmerge: tuple[dict[str, Any], ...] = ()
    own: PermutationSpec | tuple[PermutationSpec, ...] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    @property
    def num_outputs(self) -> int:
        """Number of outputs: one, or one per head."""
        return max(len(self.heads), 1)

    @property
    def assignments(self) -> Assignments:
        """How the parents' units were matched: ``{perm: [*groups, N*n]}``.

        Raises:
          ValueError: if the model does not know how it was made.
        """
        return known_origin(self).assignments

    def params(self, head: int = 0) -> PyTree:
        """Returns the parameters for ``apply_fn``: the trunk with one head.

        They are a pytree with the structure of that head's model.

        Args:
          head: number of the model whose head to use.

        Raises:
          ValueError: if there is no such head, or if the trunk ends inside a residual
            stream: the model is then no parameters of ``apply_fn``.
        """
        if self.own is not None:
            raise ValueError(
                "this merged model's trunk ends inside a residual stream: its layers "
                "have merged units, those of the heads each model's own, and no "
                "parameters of apply_fn are both. Run it with zipjax.apply, or stop "
                "the zip at a closed cut (one of spec.cuts whose boundary is None)"
            )
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

    def __repr__(self) -> str:
        matched = 0 if self.origin is None else len(self.origin.assignments)
        return (
            f"Merged({len(self.trunk)} shared parameters, {len(self.heads)} heads, "
            f"{matched} matched perms)"
        )


def known_origin(merged: Merged) -> Origin:
    """Returns how a merged model was made.

    Raises:
      ValueError: if it does not know, or is no merged model.
    """
    check_kind("merged", merged, Merged)
    if merged.origin is None:
        raise ValueError(
            "this merged model does not know how it was made (origin is None): pass "
            "one that zipjax.merge, zipjax.merge_units or zipjax.load returned"
        )
    return merged.origin


def heads_of(model: PyTree | Merged) -> list[PyTree]:
    """Returns a model's parameters for ``apply_fn``, with each of its heads.

    Raises:
      ValueError: if its trunk ends inside a residual stream.
    """
    if isinstance(model, Merged):
        return [model.params(head) for head in range(model.num_outputs)]
    return [model]


def functions_of(
    apply_fn: OneOrEach[ApplyFn], model: PyTree | Merged
) -> list[tuple[ApplyFn, PyTree]]:
    """Returns a model as a function for each of its heads, with its parameters.

    They are ``apply_fn`` and :meth:`Merged.params`; after a cut inside a residual
    stream a function of the trunk's leaves by path, a head's, and its U.

    Args:
      apply_fn: the model's function, or a sequence with one per head.
      model: a parameter pytree or a merged model.

    Raises:
      ValueError: if the number of functions differs from that of the heads.
    """
    if not isinstance(model, Merged):
        return [(call, model) for call in each_function(apply_fn, 1)]
    functions = each_function(apply_fn, model.num_outputs)
    if model.own is None:
        return [(call, model.params(k)) for k, call in enumerate(functions)]
    parts = zip(functions, stream_ends(model), model.heads, model.unmerge, strict=True)
    return [
        (StreamHead(call, end), end.leaves(model.trunk, head, unmerge))
        for call, end, head, unmerge in parts
    ]


def head_specs(merged: Merged) -> list[PermutationSpec]:
    """Returns the specs of :func:`functions_of`, in which merged units stay.

    After a cut inside a stream, perms that the trunk does not end in are those of the
    head: :meth:`PermutationSpec.only`.
    """
    ends = stream_ends(merged)
    if ends:
        return [end.spec() for end in ends]
    return list(each(merged.spec, merged.num_outputs, "specs"))


def with_leaves(model: Any, leaves: Sequence[Leaves]) -> Any:
    """Returns a model with other leaves.

    Args:
      model: a parameter pytree or a merged model.
      leaves: for every head all leaves of its parameters in :func:`functions_of`, by
        path. The trunk's are those of the first head.
    """
    if not isinstance(model, Merged):
        return from_leaves(leaves[0], model)
    trunk = {path: leaves[0][path] for path in model.trunk}
    if model.own is None:
        own = [
            {path: found[path] for path in head}
            for found, head in zip(leaves, model.heads, strict=False)
        ]
    else:
        ends = stream_ends(model)
        own = [end.parts(x)[1] for end, x in zip(ends, leaves, strict=True)]
    return dataclasses.replace(model, trunk=trunk, heads=tuple(own))


def stream_ends(merged: Merged) -> list[StreamEnd]:
    """Returns where the trunk ends inside a stream, for every head; else nothing."""
    if merged.own is None:
        return []
    count, trunk = merged.num_outputs, frozenset(merged.trunk)
    return [
        StreamEnd(structure, own.boundary_after(trunk), spec, own)
        for structure, spec, own in zip(
            each(merged.structure, count, "structures"),
            each(merged.spec, count, "specs"),
            each(merged.own, count, "specs"),
            strict=True,
        )
    ]


def flops(function: Callable[..., Any], *args: PyTree) -> float:
    """Returns the floating-point operations of a call, as XLA counts them.

    NaN where the backend does not count.

    Args:
      function: any function that can be jitted.
      *args: its arguments; for a merged model
        ``zipjax.flops(functools.partial(zipjax.apply, apply_fn), merged, inputs)``.

    Raises:
      ValueError: if it is a module, is not callable or cannot be hashed.
    """
    check_function("function", function)
    analysis = jax.jit(function).lower(*args).compile().cost_analysis()
    return float((analysis or {}).get("flops", float("nan")))


def apply(apply_fn: OneOrEach[ApplyFn], merged: Merged, *inputs: PyTree) -> Any:
    """Runs a merged model.

    Every head is a call of ``apply_fn`` within one jit, where XLA computes what they
    share once: the cost is that of the trunk and the heads.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``; must be hashable (a bound method or a
        function defined once), as it selects the compiled program. A sequence with one
        per head where these are different functions.
      merged: the merged model.
      *inputs: inputs of ``apply_fn``.

    Returns:
      The output, or a list with one output per head.

    Raises:
      ValueError: if the number of functions differs from that of the heads, or if this
        is no merged model.
    """
    check_kind("merged", merged, Merged)
    functions = each_function(apply_fn, merged.num_outputs)
    # Other origins, the same shapes: one compiled program.
    bare = dataclasses.replace(merged, origin=None)
    return _apply(one_or_each(functions), bare, *inputs)


@functools.partial(jax.jit, static_argnums=0)
def _apply(apply_fn: OneOrEach[ApplyFn], merged: Merged, *inputs: PyTree) -> Any:
    outputs = [call(params, *inputs) for call, params in functions_of(apply_fn, merged)]
    return outputs if merged.heads else outputs[0]
