"""REPAIR: units of a merged network get back the statistics of its parents' units.

The mean of two units that are not perfectly correlated varies less than either: merged
networks lose variance with every layer (REPAIR, Jordan et al. 2022). Where there is
BatchNorm, ``reset_batch_stats`` mends that. A repair changes the weights, so that it
works for any network.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zipjax import hosts
from zipjax.arguments import check_kind, check_sequence
from zipjax.batches import InputsOf, input_batches, sample_average
from zipjax.calibration.passes import Pass, traced_network
from zipjax.calibration.solve import Affine, measure_affine
from zipjax.calibration.unit_statistics import (
    Statistics,
    layer_statistics,
    model_statistics,
    num_samples,
    stat_shape,
    unit_entries,
)
from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.matrices import model_matrices
from zipjax.merging.merged import Merged, functions_of, known_origin
from zipjax.merging.networks import Networks
from zipjax.merging.weights import Matrices, interpolation_shares, merge_leaf
from zipjax.program.layers import Layer, find_layers
from zipjax.program.program import Derived, ValueId, compute_values, own_rule, trace
from zipjax.program.rows import output_unit_axes
from zipjax.spec.entries import Entries, Role, axes_of
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import path_leaves, summary
from zipjax.types import AnyArray, ApplyFn, Array, Leaves, PyTree

_log = logging.getLogger(__name__)


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
        return _Free(affine.offset.reshape(shape), (step != 0).reshape(shape))


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
    and of the deviations that its units have in the models, weighted as the models'
    kernels were (REPAIR, Jordan et al. 2022). Every layer is measured after the
    repaired ones before it. The correction is folded into the kernel and the last bias:
    nothing is added to the network.

    The batches are read once. As in :func:`zipjax.reset_batch_stats`, each of them is
    normalised by its own statistics, and their averages over the samples are folded in:
    with one batch the statistics are exactly the target's, with several nearly so.

    A layer without a bias of one axis gets the deviations; its means are scaled along.
    GroupNorm and LayerNorm remove a common scale or shift of the units that they
    normalise together: only differences between these units matter. Dead units are not
    scaled. Left as they are: heads, outputs, GroupNorm and LayerNorm themselves, and,
    with a warning that names them, kernels that are read twice, computed from
    parameters or read in loops, convolutions in groups, and layers to which every
    position adds something of its own. Layers of a stack, ``w[0]``, have one kernel
    each.

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
    check_kind("merged", merged, Merged)
    check_sequence("models", models)
    functions = each(apply_fn, len(models), "functions")
    networks, origin = Networks.parents_of(merged, models), known_origin(merged)
    matrices = dict(model_matrices(origin.assignments, networks.spec, len(networks)))
    shares = interpolation_shares(origin.weights, merged.trunk, len(networks))
    stream = input_batches(batches, inputs_of)
    first = hosts.together(lambda: next(stream))
    call, params = functions_of(functions[0], merged)[0]
    sites = _sites(call, params, networks, first)
    measure = functools.partial(
        _site_statistics,
        call,
        one_or_each(functions),
        networks.spec,
        tuple((site.layer.name, site.entries) for site in sites),
        params,
        list(networks.trees),
        (matrices, [shares[site.layer.kernel] for site in sites]),
        [site.free for site in sites],
    )
    means = sample_average(map(measure, itertools.chain([first], stream)))
    trunk = dict(merged.trunk)
    for site, (found, target) in zip(sites, means, strict=True):
        _check_finite(site, (*found, *target), networks)
        trunk = _folded(trunk, site, found, target)
    return dataclasses.replace(merged, trunk=trunk)


def _sites(
    call: ApplyFn, params: PyTree, networks: Networks, arrays: tuple[Any, ...]
) -> list[_Site]:
    """Finds the layers of the trunk that make zipped units."""
    few = jax.tree_util.tree_map(lambda x: x[:2], arrays)
    current = Pass(traced_network(call, params), params, [few])
    # What the models read again after a trunk is no layer of theirs.
    again = frozenset[str]().union(*(x.shared for x in networks.boundaries))
    found = []
    for layer in current.layers().values():
        if layer.kernel not in networks.trunk or layer.kernel in again:
            continue
        entries = unit_entries(layer, networks.spec)
        if entries and _perms(entries, "out", "in") & set(networks.perms):
            if layer.bias not in networks.trunk:
                layer = dataclasses.replace(layer, bias=None)
            affine = measure_affine(current, layer)
            if affine is not None:
                found.append(_Site(layer, entries, affine))
    _report_left(current.left(site.layer for site in found), networks)
    return found


def _perms(entries: Entries, *roles: Role) -> set[str]:
    axes = (axis for entry in entries for axis in axes_of(entry))
    return {axis.perm for axis in axes if axis.role in roles}


def _report_left(kernels: Iterable[str], networks: Networks) -> None:
    """Names the kernels among those left that make zipped units."""
    entries, perms = networks.spec.entries, set(networks.perms)
    left = [
        path
        for path in kernels
        if path in networks.trunk and _perms(entries[path], "out") & perms
    ]
    if left:
        _log.warning(
            "repair leaves %s as they are: they are read twice, computed from other "
            "parameters, read in loops or in groups, or added to by position",
            summary(left),
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _site_statistics(
    call: ApplyFn,
    apply_fn: OneOrEach[ApplyFn],
    spec: PermutationSpec,
    sites: tuple[tuple[str, Entries], ...],
    params: PyTree,
    models: list[PyTree],
    merging: tuple[Matrices, list[Array]],
    free: list[_Free],
    arrays: tuple[Any, ...],
) -> tuple[list[tuple[Statistics, Statistics]], list[int]]:
    """Returns one batch's statistics of every site, and their numbers of samples.

    Args:
      call: the merged model's function.
      apply_fn: the models' function, or one per model.
      spec: the models' permutation spec.
      sites: ``(layer, entries of its units)`` of every site, in program order.
      params: the merged model's parameters.
      models: the models' parameters.
      merging: M and U by perm, and the models' shares of every site.
      free: of every site.
      arrays: one batch of inputs.

    Returns:
      Per site the statistics in the merged model, as they are once the sites before it
      are repaired, and the target.
    """
    functions = each(apply_fn, len(models), "functions")
    targets = _target_statistics(functions, spec, sites, models, merging, arrays)
    program = trace(call, params, *arrays)
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
    counts = [
        num_samples(layers[name], program.avals[layers[name].value].shape)
        for name, _ in sites
    ]
    return list(zip(found, targets, strict=True)), counts


def _target_statistics(
    functions: Sequence[ApplyFn],
    spec: PermutationSpec,
    sites: tuple[tuple[str, Entries], ...],
    models: list[PyTree],
    merging: tuple[Matrices, list[Array]],
    arrays: tuple[Any, ...],
) -> list[Statistics]:
    """Returns the parents' statistics at every site, averaged by merged unit."""
    kernels = [kernel for kernel, _ in sites]
    parents = [
        model_statistics(function, kernels, model, arrays)
        for function, model in zip(functions, models, strict=True)
    ]
    per_site, (matrices, shares) = zip(*parents, strict=True), merging
    targets = []
    for (_, entries), of_models, own in zip(sites, per_site, shares, strict=True):
        stacked = [jnp.stack(x) for x in zip(*of_models, strict=True)]
        merged = [merge_leaf(x, entries, spec.perms, matrices, own) for x in stacked]
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


def _folded(
    leaves: Leaves, site: _Site, found: Statistics, target: Statistics
) -> dict[str, Any]:
    """Returns parameters with a layer's correction in its kernel and its bias."""
    layer, affine = site.layer, site.affine
    scale = _scale(found, target)
    kernel = np.asarray(layer.own_kernel(leaves), np.float64) * scale
    bias = None
    if layer.bias is not None and affine.step is not None:
        # The kernel scales the part that is added to the offset, not the offset.
        mean, wanted, scale = (np.ravel(x) for x in (found.mean, target.mean, scale))
        change = scale * (affine.offset - mean) + wanted - affine.offset
        moves = affine.step != 0
        delta = np.where(moves, change / np.where(moves, affine.step, 1), 0)
        start = np.asarray(layer.own_bias(leaves), np.float64)
        bias = start + delta.reshape(start.shape)
    return layer.replaced(leaves, kernel, bias)


def _check_finite(site: _Site, statistics: Iterable[Any], networks: Networks) -> None:
    if not all(np.isfinite(x).all() for x in statistics):
        networks.check_finite()
        raise ValueError(
            f"the values after {site.layer.name!r} are not finite, though the "
            "models' parameters are: check the merged model's for NaN"
        )
