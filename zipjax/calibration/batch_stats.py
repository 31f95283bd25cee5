"""BatchNorm statistics of a merged model, re-estimated on data.

Averaging two networks shrinks the variance of units that are not perfectly correlated
(REPAIR, Jordan et al. 2022; ZipIt!, Appendix A), so that merged running statistics are
wrong until they are reset.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.batches import InputsOf, input_batches, plain_average
from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.merged import Merged, heads_of
from zipjax.program.parameter_views import parameter_views
from zipjax.program.program import Derived, Program, ValueId, compute_values, trace
from zipjax.trees import from_leaves, path_leaves, running_stats
from zipjax.types import ApplyFn, Array, Leaves, PyTree

Model = TypeVar("Model")
StatsPaths = Callable[[Iterable[str]], list[tuple[str, str]]]


def reset_batch_stats(
    apply_fn: OneOrEach[ApplyFn],
    model: Model,
    batches: Iterable[Any],
    *,
    inputs_of: InputsOf | None = None,
    stats: StatsPaths = running_stats,
    ddof: int = 0,
) -> Model:
    """Re-estimates the BatchNorm means and variances of a model.

    Every batch is normalised by its own statistics, as in training; the new ones are
    their plain averages over the batches. ``apply_fn`` stays in evaluation mode: the
    statistics are read where the traced network subtracts the running mean.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, in evaluation mode; a sequence with one
        per head where these are different functions.
      model: a merged model (full or partial) or a parameter pytree.
      batches: an iterable of batches.
      inputs_of: maps a batch to the inputs of ``apply_fn``; by default it is its own
        input.
      stats: finds the paths of the running means and variances; by default, those of
        Linen and NNX by their names.
      ddof: 1 stores variances divided by the number of samples less one, as PyTorch
        does; batches are normalised by the plain ones in either case.

    Returns:
      A new model of the same kind; without BatchNorm, an equal one.

    Raises:
      ValueError: if there are no batches, if one is empty or holds NaN, or if a
        running mean is not found in the traced network.
    """
    heads = heads_of(model)
    functions = one_or_each(each(apply_fn, len(heads), "functions"))
    pairs = tuple(tuple(stats(path_leaves(head))) for head in heads)
    if not any(pairs):
        return model
    means = plain_average(
        _batch_statistics(functions, pairs, ddof, heads, arrays)
        for arrays in input_batches(batches, inputs_of)
    )
    return _replaced(model, means)


def _replaced(model: Any, means: list[dict[str, np.ndarray]]) -> Any:
    """Returns the model with new statistics; a trunk's are the same for every head."""

    def update(leaves: Leaves, new: Leaves) -> dict[str, Any]:
        return {
            path: jnp.asarray(new[path], leaf.dtype) if path in new else leaf
            for path, leaf in leaves.items()
        }

    if isinstance(model, Merged):
        trunk = update(model.trunk, means[0])
        heads = tuple(map(update, model.heads, means))
        return dataclasses.replace(model, trunk=trunk, heads=heads)
    return from_leaves(update(path_leaves(model), means[0]), model)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _batch_statistics(
    apply_fn: OneOrEach[ApplyFn],
    pairs: tuple[tuple[tuple[str, str], ...], ...],
    ddof: int,
    heads: list[PyTree],
    arrays: tuple[Any, ...],
) -> list[dict[str, Array]]:
    """Returns one batch's means and variances by path, one mapping per head."""
    functions = each(apply_fn, len(heads), "functions")
    return [
        _head_statistics(function, own, ddof, head, arrays)
        for function, own, head in zip(functions, pairs, heads, strict=True)
    ]


def _head_statistics(
    apply_fn: ApplyFn,
    pairs: tuple[tuple[str, str], ...],
    ddof: int,
    params: PyTree,
    arrays: tuple[Any, ...],
) -> dict[str, Array]:
    program = trace(apply_fn, params, *arrays)
    sources = _normalised(program)
    rules: dict[ValueId, Derived] = {}
    corrections: dict[str, float] = {}
    for mean_path, var_path in pairs:
        if mean_path not in sources:
            raise ValueError(
                f"the running mean {mean_path!r} is subtracted from nothing in the "
                "traced network: pass the apply_fn of evaluation mode"
            )
        source, axes = sources[mean_path]
        for path, statistic in ((mean_path, jnp.mean), (var_path, jnp.var)):
            number = program.params[path]
            rule = functools.partial(
                _reduce, statistic, axes, program.avals[number].dtype
            )
            rules[number] = Derived((source,), rule)
        samples = math.prod(program.avals[source].shape[k] for k in axes)
        corrections[var_path] = samples / (samples - ddof)
    paths = [path for pair in pairs for path in pair]
    flat = jax.tree_util.tree_leaves(arrays)
    wanted = [program.params[path] for path in paths]
    values = compute_values(program, path_leaves(params), flat, wanted, rules)
    return {
        path: value * corrections.get(path, 1.0)
        for path, value in zip(paths, values, strict=True)
    }


def _normalised(program: Program) -> dict[str, tuple[ValueId, tuple[int, ...]]]:
    """Finds the values from which parameters are subtracted, with their sample axes."""
    views = parameter_views(program)
    sources: dict[str, tuple[ValueId, tuple[int, ...]]] = {}
    for eqn in program.equations:
        if eqn.primitive.name == "sub":
            source, mean = eqn.operands
            view = views.get(mean) if isinstance(mean, ValueId) else None
            if view is not None and isinstance(source, ValueId):
                axes = tuple(k for k, axis in enumerate(view.axes) if axis is None)
                sources.setdefault(view.path, (source, axes))
    return sources


def _reduce(
    statistic: Callable[..., Array], axes: tuple[int, ...], dtype: Any, x: Array
) -> Array:
    return statistic(x.astype(jnp.float32), axes).astype(dtype)
