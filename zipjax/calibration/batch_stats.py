"""BatchNorm statistics of a merged model, re-estimated on data.

Averaging two networks shrinks the variance of units that are not perfectly correlated
(REPAIR, Jordan et al. 2022; ZipIt!, Appendix A), so that merged running statistics are
wrong until they are reset.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.batches import InputsOf, input_batches, sample_average, spread
from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.merged import functions_of, with_leaves
from zipjax.program.dependence import read_parameters
from zipjax.program.norms import Norm, Norms, Statistic, find_norms
from zipjax.program.program import Derived, Program, ValueId, compute_values, trace
from zipjax.trees import path_leaves, running_stats, summary
from zipjax.types import ApplyFn, Array, Leaves, PyTree

Model = TypeVar("Model")
StatsPaths = Callable[[Iterable[str]], Iterable[tuple[str, str]]]
Pairs = tuple[tuple[str, str], ...]

_REMEDY = (
    "Pass the apply_fn of evaluation mode; or name the statistics yourself, "
    'stats=lambda paths: [("bn/mean", "bn/var"), ...]'
)


def reset_batch_stats(
    apply_fn: OneOrEach[ApplyFn],
    model: Model,
    batches: Iterable[Any],
    *,
    inputs_of: InputsOf | None = None,
    stats: StatsPaths | None = None,
    ddof: int = 0,
) -> Model:
    """Re-estimates the BatchNorm means and variances of a model.

    Every batch is normalised by its own statistics, as in training; the new ones are
    their averages over the batches, weighted by samples. ``apply_fn`` stays in
    evaluation mode: norms are found in the traced network, in any framework, as a mean
    that is subtracted beside a variance whose root divides. Statistics of any shape
    keep their axes, and are taken over all others. A norm that is applied at several
    places gets those of the first. A batch runs on all local devices; under
    ``jax.distributed`` every process passes its own batches, and all get the same.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, in evaluation mode; a sequence with one
        per head where these are different functions.
      model: a merged model (full or partial) or a parameter pytree.
      batches: an iterable of batches.
      inputs_of: maps a batch to the inputs of ``apply_fn``; by default it is its own
        input.
      stats: maps all parameters' paths to those of the running means and variances, as
        pairs; by default they are found.
      ddof: 1 stores variances divided by the number of samples less one, as PyTorch
        does; 0 by the number itself. Batches are normalised by the latter in either
        case.

    Returns:
      A new model of the same kind; without BatchNorm, an equal one.

    Raises:
      ValueError: if there are no batches, if one is empty or holds NaN, if ddof is
        neither 0 nor 1, or 1 where a batch has one sample, or if there are statistics,
        by name or by what is computed with them, for which no norm is found
        in the traced network.
    """
    if ddof not in (0, 1):
        raise ValueError(f"ddof = {ddof!r}: pass 0, or 1 for variances as in PyTorch")
    calls, heads = zip(*functions_of(apply_fn, model), strict=True)
    functions = one_or_each(calls)
    pairs = None if stats is None else tuple(_pairs(stats, head) for head in heads)
    means = sample_average(
        _batch_statistics(functions, pairs, ddof, list(heads), spread(arrays))
        for arrays in input_batches(batches, inputs_of)
    )
    leaves = [
        _updated(path_leaves(x), new) for x, new in zip(heads, means, strict=True)
    ]
    return with_leaves(model, leaves)


def _pairs(stats: StatsPaths, head: PyTree) -> Pairs:
    return tuple((mean, variance) for mean, variance in stats(path_leaves(head)))


def _updated(leaves: Leaves, new: Leaves) -> dict[str, Any]:
    return {
        path: jnp.asarray(new[path], leaf.dtype) if path in new else leaf
        for path, leaf in leaves.items()
    }


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _batch_statistics(
    apply_fn: OneOrEach[ApplyFn],
    pairs: tuple[Pairs, ...] | None,
    ddof: int,
    heads: list[PyTree],
    arrays: tuple[Any, ...],
) -> tuple[list[dict[str, Array]], list[dict[str, int]]]:
    """Returns one batch's means and variances by path, one mapping per head.

    And, alike, the numbers of samples behind them.
    """
    functions = each(apply_fn, len(heads), "functions")
    chosen = (None,) * len(heads) if pairs is None else pairs
    found = [
        _head_statistics(function, own, ddof, head, arrays)
        for function, own, head in zip(functions, chosen, heads, strict=True)
    ]
    return [values for values, _ in found], [counts for _, counts in found]


def _head_statistics(
    apply_fn: ApplyFn,
    pairs: Pairs | None,
    ddof: int,
    params: PyTree,
    arrays: tuple[Any, ...],
) -> tuple[dict[str, Array], dict[str, int]]:
    program = trace(apply_fn, params, *arrays)
    norms = _found(program) if pairs is None else _named(program, pairs)
    rules: dict[ValueId, Derived] = {}
    corrections: dict[str, float] = {}
    counts: dict[str, int] = {}
    for norm in norms:
        rules |= _rules(program, norm)
        shape = program.avals[norm.centre.source].shape
        kept = [k is not None for k in norm.centre.axes]
        samples = math.prod(n for n, own in zip(shape, kept, strict=True) if not own)
        if samples <= ddof:
            raise ValueError(
                f"a batch has {samples} sample for the variance {norm.variance.path!r},"
                f" but ddof = {ddof}: pass ddof=0, or larger batches"
            )
        corrections[norm.variance.path] = samples / (samples - ddof)
        counts |= {norm.centre.mean.path: samples, norm.variance.path: samples}
    paths = [x.path for norm in norms for x in (norm.centre.mean, norm.variance)]
    flat = jax.tree_util.tree_leaves(arrays)
    wanted = [program.params[path] for path in paths]
    values = compute_values(program, path_leaves(params), flat, wanted, rules)
    statistics = {
        path: value * corrections.get(path, 1.0)
        for path, value in zip(paths, values, strict=True)
    }
    return statistics, counts


def _found(program: Program) -> tuple[Norm, ...]:
    """Returns the norms of a program, after checking that none is overlooked."""
    norms, read = find_norms(program), read_parameters(program)
    known = {x.variance.path for x in norms.norms}
    known |= {x.centre.mean.path for x in norms.norms}
    named = running_stats(program.params)
    # Statistics that are not read, such as an unused branch's, change nothing; but if
    # none at all are found, the function is most likely in training mode.
    missed = {p for pair in named for p in pair if p in read or not known} - known
    missed |= (norms.roots & read) - known
    if missed:
        raise ValueError(
            f"{summary(missed)} look like running statistics, but are subtracted from "
            f"nothing, or divide nothing, in the traced network. {_REMEDY}"
        )
    return norms.norms


def _named(program: Program, pairs: Pairs) -> tuple[Norm, ...]:
    """Returns the norms whose statistics have these paths."""
    found: Norms = find_norms(program)
    known = {norm.centre.mean.path: norm for norm in found.norms}
    for path, _ in pairs:
        if path not in found.centres:
            raise ValueError(
                f"the running mean {path!r} is subtracted from nothing in the traced "
                "network: pass the apply_fn of evaluation mode"
            )
    return tuple(
        known[mean]
        if mean in known and known[mean].variance.path == variance
        else Norm(found.centres[mean], Statistic(variance))
        for mean, variance in pairs
    )


def _rules(program: Program, norm: Norm) -> dict[ValueId, Derived]:
    """Returns rules by which a norm's parameters are those of its batch."""
    source, axes = norm.centre.source, norm.centre.axes
    rules = {}
    for own, function in ((norm.centre.mean, jnp.mean), (norm.variance, jnp.var)):
        number = program.params[own.path]
        rule = functools.partial(_measured, function, axes, program.avals[number])
        divisors = () if own.divisor is None else (own.divisor,)
        rules[number] = Derived((source, *divisors), rule)
    return rules


def _measured(
    function: Callable[..., Array],
    axes: tuple[int | None, ...],
    like: Any,
    x: Array,
    divisor: Any = 1,
) -> Array:
    """Returns a statistic of a value, as a parameter of the shape of ``like``."""
    samples = tuple(k for k, axis in enumerate(axes) if axis is None)
    order = np.argsort([axis for axis in axes if axis is not None])
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    measured = function(wide, samples).transpose(order)
    return (measured.reshape(like.shape) * divisor).astype(like.dtype)
