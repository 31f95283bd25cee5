"""Refits the linear layers of a merged network, in closed form.

Averaged weights solve no problem: a merged layer reads features that are averages of
several networks' features, but nothing made it map them to the average of what the
networks map theirs to. The refit does, by least squares, layer after layer.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from zipjax.batches import InputsOf, input_batches
from zipjax.calibration.passes import Pass, traced_network
from zipjax.calibration.solve import solve_layer
from zipjax.calibration.targets import MergedTarget, Target, as_target, first_rows
from zipjax.calibration.unit_statistics import stat_shape, unit_entries
from zipjax.merging.matrices import model_matrices
from zipjax.merging.merged import Merged, functions_of, known_origin, with_leaves
from zipjax.merging.networks import Networks
from zipjax.merging.weights import Matrices, interpolation_shares
from zipjax.program.layers import Layer
from zipjax.spec.entries import axes_of
from zipjax.trees import summary
from zipjax.types import AnyArray, ApplyFn, PyTree

_log = logging.getLogger(__name__)


def refit(
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    merged: Merged,
    batches: Iterable[Any],
    *,
    inputs_of: InputsOf | None = None,
    outputs: Target | None = None,
    ridge: float = 1e-3,
    sweeps: int = 4,
    heads: bool = True,
) -> Merged:
    """Fits the layers of a merged model again, by least squares.

    In the order of the network, every layer whose kernel only one product reads gets
    the kernel and bias that minimise

        sum |W x + b + r - M h|^2 + ridge * d * |W - W*|^2

    over all samples. Here x is the layer's input in the merged network as it is now,
    h the concatenated values of the models after the layer's constant affine operations
    (its bias, BatchNorm with running statistics), M the merge matrix, W* the merged
    kernel and d the mean diagonal of the inputs' second moment. Where a residual sum
    follows whose other operand r is already fixed, h is that sum, so that the layer
    makes up for the errors of the stream. Before a ReLU, values matter only where they
    are positive: ``sweeps`` times, targets that should be negative and are get the
    current value as target (auxiliary variables; Zhang et al. 2015, "Accelerating Very
    Deep Convolutional Networks", Section 3.2). Nothing is trained and no labels are
    used.

    Normalisation layers stay as they are: their running statistics, scales and all but
    one bias keep their values, and the solution is written into the kernel and the last
    bias. So call ``reset_batch_stats`` before a refit, never after it. Kernels that are
    read twice, computed from other parameters, or read in loops or in groups are left
    as they are; a warning names them.

    Where a kernel produces more than units, such as queries, keys and values in heads,
    M h is h merged as the layer's bias would be.

    The batches are read once. The values that are alive between two layers are kept for
    all batches in the host's memory; JAX's default device holds one batch at a time,
    and of a convolution's patches only second moments are kept.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, in evaluation mode; must be hashable, as
        it selects the compiled programs.
      models: the models that were merged, with fitting batch statistics.
      merged: their merged model.
      batches: an iterable of batches. Each new shape recompiles: use few.
      inputs_of: maps a batch to the inputs of ``apply_fn``; by default it is its own
        input.
      outputs: maps the list of the models' outputs ``[samples, units]`` to the target
        of a shared output, for instance ``zipjax.ensemble_target(...)``; their mean by
        default. The heads of a partial zip are each fitted to their own model, whose
        confidence is what distinguishes the heads.
      ridge: how strongly kernels are held to the merged ones.
      sweeps: number of passes for the ReLU after a layer; 0 for the plain solution.
      heads: whether layers after a partial zip's cut are refitted too, each to its own
        model.

    Returns:
      The merged model with new kernels and biases.

    Raises:
      ValueError: if there are no batches, if the models are not those that were merged,
        or if ridge or sweeps are negative or NaN.
    """
    if not (0 <= ridge < math.inf and 0 <= sweeps < math.inf):
        raise ValueError(
            f"ridge = {ridge} and sweeps = {sweeps}: pass finite numbers from 0 on, "
            "such as ridge=1e-3 and sweeps=4"
        )
    _check_one_function(merged)
    networks = Networks.parents_of(merged, models)
    networks.check_finite()
    data = list(input_batches(batches, inputs_of))
    origin = known_origin(merged)
    matrices = model_matrices(origin.assignments, networks.spec, len(networks))
    shares = interpolation_shares(origin.weights, merged.trunk, len(networks))
    solve = functools.partial(solve_layer, ridge=ridge, sweeps=sweeps)
    parents = [_start(apply_fn, tree, data) for tree in networks.trees]

    done: list[Layer] = []
    current = _start(*functions_of(apply_fn, merged)[0], data)
    for name in _common_layers(current, parents[0], merged.trunk):
        layer = parents[0].layers()[name]
        target = _merged_target(layer, networks, matrices, shares[layer.kernel])
        if outputs is not None and current.returns(name):
            target = as_target(outputs)
        if target is not None and solve(current, parents, name, target):
            done.append(layer)
    left = merged.trunk.keys() & current.left(done)
    trunk = {path: current.leaves[path] for path in merged.trunk}
    new = dataclasses.replace(merged, trunk=trunk)
    found = []
    for number, head in enumerate(new.heads if heads else ()):
        current = _start(*functions_of(apply_fn, new)[number], data)
        parent = _start(apply_fn, networks.trees[number], data)
        own = head.keys() - trunk.keys()
        done = [
            parent.layers()[name]
            for name in _common_layers(current, parent, own)
            if solve(current, [parent], name, as_target(first_rows))
        ]
        left |= own.intersection(current.left(done))
        found.append(current.leaves)
    if left:
        _log.warning(
            "refit leaves %s as they are: they are read twice, computed from other "
            "parameters, read in loops or in groups, or scaled by position",
            summary(left),
        )
    return with_leaves(new, found) if found else new


def _common_layers(current: Pass, parent: Pass, paths: Collection[str]) -> list[str]:
    """Returns the names of both networks' layers whose kernels are among these."""
    both = current.layers().keys() & parent.layers().keys()
    layers = current.layers().values()
    return [x.name for x in layers if x.kernel in paths and x.name in both]


def _start(apply_fn: ApplyFn, tree: PyTree, data: Sequence[tuple[Any, ...]]) -> Pass:
    return Pass(traced_network(apply_fn, tree), tree, data)


def _check_one_function(merged: Merged) -> None:
    if isinstance(merged.spec, tuple):
        raise ValueError(
            f"this merged model's {len(merged.spec)} heads are different functions: "
            "only models of one function can be refitted"
        )


def _merged_target(
    layer: Layer, networks: Networks, matrices: Matrices, shares: AnyArray
) -> Target | None:
    """Returns the target of a zipped layer; None if its units are not its own."""
    spec = networks.spec
    if (entries := unit_entries(layer, spec)) is None:
        return None
    names = {axis.perm for entry in entries for axis in axes_of(entry)}
    names |= {group for name in names for group in spec.perms[name].groups}
    perms = tuple((p, perm) for p, perm in spec.perms.items() if p in names)
    own = {perm: matrices[perm] for perm in matrices if perm in names}
    return MergedTarget(own, shares, entries, perms, tuple(stat_shape(layer)))
