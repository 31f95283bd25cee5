"""REPAIR: units of a merged network get back the statistics of its parents' units.

The mean of two units that are not perfectly correlated varies less than either: merged
networks lose variance with every layer (REPAIR, Jordan et al. 2022). Where there is
BatchNorm, ``reset_batch_stats`` mends that. A repair changes the weights, so that it
works for any network.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.batches import InputsOf, input_batches, plain_average
from zipjax.calibration.passes import Pass, traced_network
from zipjax.calibration.solve import Affine, measure_affine
from zipjax.calibration.unit_statistics import (
    Statistics,
    layer_statistics,
    model_statistics,
    stat_shape,
    unit_entries,
)
from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.matrices import model_matrices
from zipjax.merging.merged import Merged, known_origin
from zipjax.merging.networks import Networks
from zipjax.merging.weights import Matrices, interpolation_shares, merge_leaf
from zipjax.program.layers import Layer, find_layers
from zipjax.program.program import Derived, ValueId, compute_values, own_rule, trace
from zipjax.program.rows import output_unit_axes
from zipjax.spec.entries import Entries, axes_of
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import path_leaves
from zipjax.types import AnyArray, ApplyFn, Array, PyTree


class _Free(NamedTuple):
    """A layer's offset after its product, and where its bias can change that."""

    offset: AnyArray
    movable: AnyArray


class _Site(NamedTuple):
    """A layer to repair, the entries of its units, and the operations after it."""

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
    batches: Iterable[Any],
    *,
    inputs_of: InputsOf | None = None,
) -> Merged:
    """Rescales the units of a merged model to their parents' mean and deviation.

    The statistics are taken after every linear layer that makes zipped units and the
    constant affine operations that follow it (its bias, BatchNorm with running
    statistics), before the nonlinearity. A merged unit gets the average of the means
    and of the deviations that its units have in the models, weighted as the models were
    (REPAIR, Jordan et al. 2022). Every layer is measured after the repaired ones before
    it. The correction is folded into the kernel and the last bias: nothing is added to
    the network.

    The batches are read once. As in :func:`zipjax.reset_batch_stats`, each of them is
    normalised by its own statistics, and their plain averages are folded in: with one
    batch the statistics are exactly the target's, with several nearly so.

    A layer without a bias of one axis gets the deviations; its means are scaled along.
    GroupNorm and LayerNorm remove a common scale or shift of the units that they
    normalise together: only differences between these units matter. Dead units are not
    scaled. Left as they are: heads, outputs, GroupNorm and LayerNorm themselves,
    kernels that are read twice, convolutions in groups, and layers to which every
    position adds something of its own.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, in evaluation mode; must be hashable. A
        sequence with one per model where these are different functions.
      models: the models that were merged.
      merged: their merged model, full or partial. Repair it instead of resetting its
        BatchNorm statistics, or after that: a later reset would move the means.
      batches: an iterable of batches. Each new shape recompiles: use few.
      inputs_of: maps a batch to the inputs of ``apply_fn``; by default it is its own
        input.

    Returns:
      The merged model with new kernels and biases.

    Raises:
      ValueError: if there are no batches, if one is empty or holds NaN, if statistics
        are not finite, or if the models are not those that were merged.
    """
    functions = each(apply_fn, len(models), "functions")
    networks, origin = Networks.parents_of(merged, models), known_origin(merged)
    matrices = model_matrices(origin.assignments, networks.spec, len(networks))
    shares = interpolation_shares(origin.weights, len(networks))
    stream = input_batches(batches, inputs_of)
    first = next(stream)
    sites = _sites(functions[0], merged, networks, first)
    measure = functools.partial(
        _site_statistics,
        one_or_each(functions),
        networks.spec,
        tuple((site.layer.kernel, site.entries) for site in sites),
        merged.params(),
        list(networks.trees),
        (matrices, shares),
        [site.free for site in sites],
    )
    means = plain_average(map(measure, itertools.chain([first], stream)))
    trunk = dict(merged.trunk)
    for site, (found, target) in zip(sites, means, strict=True):
        _check_finite(site, (*found, *target))
        _fold(trunk, site, found, target)
    return dataclasses.replace(merged, trunk=trunk)


def _sites(
    apply_fn: ApplyFn, merged: Merged, networks: Networks, arrays: tuple[Any, ...]
) -> list[_Site]:
    """Finds the layers of the trunk that make zipped units."""
    few = jax.tree_util.tree_map(lambda x: x[:2], arrays)
    params = merged.params()
    current = Pass(traced_network(apply_fn, params), params, [few])
    found = []
    for kernel, layer in current.layers().items():
        if kernel not in merged.trunk:
            continue
        entries = unit_entries(layer, networks.spec.entries[kernel])
        perms = {axis.perm for entry in entries for axis in axes_of(entry)}
        if perms & set(networks.perms):
            if layer.bias not in merged.trunk:
                layer = dataclasses.replace(layer, bias=None)
            affine = measure_affine(current, layer)
            if affine is not None:
                found.append(_Site(layer, entries, affine))
    return found


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _site_statistics(
    apply_fn: OneOrEach[ApplyFn],
    spec: PermutationSpec,
    sites: tuple[tuple[str, Entries], ...],
    params: PyTree,
    models: list[PyTree],
    merging: tuple[Matrices, Array],
    free: list[_Free],
    arrays: tuple[Any, ...],
) -> list[tuple[Statistics, Statistics]]:
    """Returns one batch's statistics of every site.

    Args:
      apply_fn: the models' function, or one per model.
      spec: the models' permutation spec.
      sites: ``(kernel, entries of its units)`` of every site, in program order.
      params: the merged model's parameters.
      models: the models' parameters.
      merging: M and U by perm, and the models' shares.
      free: of every site.
      arrays: one batch of inputs.

    Returns:
      Per site the statistics in the merged model, as they are once the sites before it
      are repaired, and the target.
    """
    functions = each(apply_fn, len(models), "functions")
    targets = _target_statistics(functions, spec, sites, models, merging, arrays)
    program = trace(functions[0], params, *arrays)
    layers = find_layers(program)
    rules: dict[ValueId, Derived] = {}
    measured = []
    for (kernel, _), target, own in zip(sites, targets, free, strict=True):
        layer = layers[kernel]
        # Two new values: the layer's value before its repair, and its statistics.
        before = len(program.avals) + len(rules)
        statistics = before + 1
        rules[before] = own_rule(program, layer.value)
        rules[statistics] = Derived(
            (before,), functools.partial(layer_statistics, layer)
        )
        # The layer's own value is the repaired one, for all that reads it.
        repaired = functools.partial(_repaired, layer, target, own)
        rules[layer.value] = Derived((before, statistics), repaired)
        measured.append(statistics)
    flat = jax.tree_util.tree_leaves(arrays)
    found = compute_values(program, path_leaves(params), flat, measured, rules)
    return list(zip(found, targets, strict=True))


def _target_statistics(
    functions: Sequence[ApplyFn],
    spec: PermutationSpec,
    sites: tuple[tuple[str, Entries], ...],
    models: list[PyTree],
    merging: tuple[Matrices, Array],
    arrays: tuple[Any, ...],
) -> list[Statistics]:
    """Returns the parents' statistics at every site, averaged by merged unit."""
    kernels = [kernel for kernel, _ in sites]
    parents = [
        model_statistics(function, kernels, model, arrays)
        for function, model in zip(functions, models, strict=True)
    ]
    targets = []
    for (_, entries), of_models in zip(sites, zip(*parents, strict=True), strict=True):
        stacked = [jnp.stack(x) for x in zip(*of_models, strict=True)]
        merged = [merge_leaf(x, entries, spec.perms, *merging) for x in stacked]
        targets.append(Statistics(*merged))
    return targets


def _scale(found: Statistics, target: Statistics) -> Any:
    alive = found.deviation > 0
    # Not a division by zero first: that would warn on the host.
    return alive * target.deviation / (found.deviation + ~alive) + ~alive


def _repaired(
    layer: Layer, target: Statistics, free: _Free, y: Array, found: Statistics
) -> Array:
    """Returns a layer's value as the repaired layer has it."""
    units = output_unit_axes(layer, y.ndim)
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
        # The kernel scales the part that is added to the offset, not the offset.
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
            f"the values after {site.layer.kernel!r} are not finite: check that the "
            "models' and the merged model's parameters hold no NaN"
        )
