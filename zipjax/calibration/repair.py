"""REPAIR: the units of a merged network get back the statistics of its parents'.

The mean of two units that are not perfectly correlated varies less than either: merged
networks lose variance with every layer (REPAIR, Jordan et al. 2022). What
``reset_batch_stats`` does where there is BatchNorm is done here to the weights, so that
it works for any network.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.batches import batch_inputs
from zipjax.calibration.passes import Network, Pass
from zipjax.calibration.solve import Affine, measure_affine
from zipjax.calibration.unit_statistics import (
    Statistics,
    layer_statistics,
    model_statistics,
    stat_shape,
)
from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.matrices import Assignments, model_matrices
from zipjax.merging.merged import Merged
from zipjax.merging.sharing import first_heads, models_spec
from zipjax.merging.weights import Matrices, merge_leaf
from zipjax.program.layers import Layer, find_layers
from zipjax.program.program import Derived, ValueId, evaluate, own_rule, trace
from zipjax.program.rows import kernel_axes, unit_axes
from zipjax.spec.entries import Entries, axes_of
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import check_models, path_leaves
from zipjax.types import AnyArray, ApplyFn, Array, PyTree


class _Free(NamedTuple):
    """What a layer adds behind its product, and where its bias can change that."""

    offset: AnyArray
    movable: AnyArray


class _Site(NamedTuple):
    """A layer to repair, the entries of its units, and what stands behind it."""

    layer: Layer
    entries: Entries
    affine: Affine

    @property
    def free(self) -> _Free:
        shape, affine = stat_shape(self.layer), self.affine
        step = np.zeros_like(affine.offset) if affine.step is None else affine.step
        offset = affine.offset.astype(np.float32)
        return _Free(offset.reshape(shape), (step != 0).reshape(shape))


def repair(
    apply_fn: OneOrEach[ApplyFn],
    models: Sequence[PyTree],
    merged: Merged,
    assignments: Assignments,
    batches: Iterable[Any],
    *,
    inputs: Callable[[Any], Any] | None = None,
) -> Merged:
    """Rescales the units of a merged model to their parents' mean and deviation.

    Behind every linear layer that makes zipped units, with what is affine and constant
    behind it (its bias, BatchNorm with running statistics) and before the nonlinearity,
    a merged unit gets the average of the means and of the deviations that the units
    merged to it have in the models (REPAIR, Jordan et al. 2022). Every layer is
    measured behind the repaired ones before it. The correction is folded into the
    kernel and the last bias: nothing is added to the network.

    The batches are read once. As in :func:`zipjax.reset_batch_stats`, each of them is
    normalised by its own statistics, and what is folded in are their plain averages: of
    one batch the statistics are exactly the target's, of several nearly so.

    A layer without a bias of one axis gets the deviations; its means are scaled along.
    Of what GroupNorm or LayerNorm normalises together, a common scale or shift is lost
    behind the norm: what counts is how the units differ. Dead units are not scaled.
    Left as they are: heads, outputs, GroupNorm and LayerNorm themselves, kernels that
    are read twice, convolutions in groups, and layers to which every position adds
    something of its own.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, in evaluation mode; must be hashable. A
        sequence of one a model where these are different functions.
      models: the models that were merged, with equal weights.
      merged: their merged model, full or partial. Repair it instead of resetting its
        BatchNorm statistics, or behind that: a reset afterwards would move the means.
      assignments: how their units were matched, from :func:`zipjax.match`.
      batches: an iterable of batches. Their shapes are compiled for: best few.
      inputs: maps a batch to the inputs of ``apply_fn``; by default it is they.

    Returns:
      The merged model with new kernels and biases.

    Raises:
      ValueError: if there are no batches, if one is empty or holds NaN, if statistics
        are not finite, or if the models, the merged model and the assignments do not
        fit together.
    """
    functions = each(apply_fn, len(models), "functions")
    trees = first_heads(models)
    check_models(trees, merged.trunk)
    spec = models_spec(trees, merged, assignments)
    matrices = model_matrices(assignments, spec, len(trees))
    sites, totals, count = None, None, 0
    call, params = one_or_each(functions), merged.params()
    for count, batch in enumerate(batches, start=1):
        arrays = batch_inputs(count - 1, batch, inputs)
        if sites is None:
            sites = _sites(functions[0], merged, spec, assignments, arrays)
        free = [site.free for site in sites]
        names = tuple((site.layer.kernel, site.entries) for site in sites)
        found = _measure(call, spec, names, params, trees, matrices, free, arrays)
        # Few numbers: the plain average is taken on the host, in float64.
        wide = jax.tree_util.tree_map(np.float64, jax.device_get(found))
        totals = wide if count == 1 else jax.tree_util.tree_map(np.add, totals, wide)
    if sites is None:
        raise ValueError("no batches: a repair needs at least one batch of inputs")
    trunk = dict(merged.trunk)
    means = jax.tree_util.tree_map(lambda total: total / count, totals)
    for site, (found, target) in zip(sites, means, strict=True):
        _check_finite(site, (*found, *target))
        _fold(trunk, site, found, target)
    return dataclasses.replace(merged, trunk=trunk)


def _sites(
    apply_fn: ApplyFn,
    merged: Merged,
    spec: PermutationSpec,
    assignments: Assignments,
    arrays: tuple[Any, ...],
) -> list[_Site]:
    """Finds the layers of the trunk that make zipped units."""
    few = jax.tree_util.tree_map(lambda x: x[:2], arrays)
    params = merged.params()
    current = Pass(Network(apply_fn, params, [few]), params)
    found = []
    for kernel, layer in current.layers().items():
        produced = kernel_axes(layer)[1]
        axes = enumerate(spec.entries[kernel])
        entries = tuple(entry if k in produced else None for k, entry in axes)
        perms = {axis.perm for entry in entries for axis in axes_of(entry)}
        if kernel in merged.trunk and perms & set(assignments):
            if layer.bias not in merged.trunk:
                layer = dataclasses.replace(layer, bias=None)
            affine = measure_affine(current, layer)
            if affine is not None:
                found.append(_Site(layer, entries, affine))
    return found


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measure(
    apply_fn: OneOrEach[ApplyFn],
    spec: PermutationSpec,
    sites: tuple[tuple[str, Entries], ...],
    params: PyTree,
    models: list[PyTree],
    matrices: Matrices,
    free: list[_Free],
    arrays: tuple[Any, ...],
) -> list[tuple[Statistics, Statistics]]:
    """Returns one batch's statistics of every layer, as they are and as wanted."""
    functions = each(apply_fn, len(models), "functions")
    kernels = [kernel for kernel, _ in sites]
    parents = [
        model_statistics(function, kernels, model, arrays)
        for function, model in zip(functions, models, strict=True)
    ]
    targets = []
    for (_, entries), of_models in zip(sites, zip(*parents, strict=True), strict=True):
        stacked = [jnp.stack(x) for x in zip(*of_models, strict=True)]
        shares = jnp.ones(len(models))
        merged = [merge_leaf(x, entries, spec.perms, matrices, shares) for x in stacked]
        targets.append(Statistics(*merged))
    program = trace(functions[0], params, *arrays)
    layers = find_layers(program)
    rules: dict[ValueId, Derived] = {}
    measured = []
    for kernel, target, own in zip(kernels, targets, free, strict=True):
        layer = layers[kernel]
        # Values besides the program's own: the layer's before its repair.
        raw = len(program.avals) + len(rules)
        rules[raw] = own_rule(program, layer.value)
        rules[raw + 1] = Derived((raw,), functools.partial(layer_statistics, layer))
        correct = functools.partial(_corrected, layer, target, own)
        rules[layer.value] = Derived((raw, raw + 1), correct)
        measured.append(raw + 1)
    flat = jax.tree_util.tree_leaves(arrays)
    found = evaluate(program, path_leaves(params), flat, measured, rules)
    return list(zip(found, targets, strict=True))


def _scale(found: Statistics, target: Statistics) -> Any:
    alive = found.deviation > 0
    # Not a division by zero first: that would warn on the host.
    return alive * target.deviation / (found.deviation + ~alive) + ~alive


def _corrected(
    layer: Layer, target: Statistics, free: _Free, y: Array, found: Statistics
) -> Array:
    """Returns a layer's value as it is behind the repair."""
    units = unit_axes(layer, y.ndim)
    shape = [size if k in units else 1 for k, size in enumerate(y.shape)]
    scale = _scale(found, target)
    before = jnp.where(free.movable, found.mean, free.offset)
    after = jnp.where(free.movable, target.mean, free.offset)
    shift = after - scale * before
    return (y * scale.reshape(shape) + shift.reshape(shape)).astype(y.dtype)


def _fold(
    leaves: dict[str, Any], site: _Site, found: Statistics, target: Statistics
) -> None:
    """Writes a layer's correction into its kernel and its bias."""
    layer, affine = site.layer, site.affine
    scale = _scale(found, target)
    kernel = leaves[layer.kernel]
    new = np.asarray(kernel, np.float64) * scale
    leaves[layer.kernel] = jnp.asarray(new, kernel.dtype)
    if layer.bias is not None and affine.step is not None:
        # The kernel scales what the layer adds to the offset, not the offset.
        mean, wanted, scale = (np.ravel(x) for x in (found.mean, target.mean, scale))
        change = scale * (affine.offset - mean) + wanted - affine.offset
        moves = affine.step != 0
        delta = np.where(moves, change / np.where(moves, affine.step, 1), 0)
        bias = leaves[layer.bias]
        new = np.asarray(bias, np.float64) + delta.reshape(bias.shape)
        leaves[layer.bias] = jnp.asarray(new, bias.dtype)


def _check_finite(site: _Site, statistics: Iterable[Any]) -> None:
    if not all(np.isfinite(x).all() for x in statistics):
        raise ValueError(
            f"the values behind {site.layer.kernel!r} are not finite: check that the "
            "models' and the merged model's parameters hold no NaN"
        )
