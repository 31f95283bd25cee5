"""Refits the linear layers of a merged network, in closed form.

Averaged weights solve no problem: a merged layer reads features that are averages of
several networks' features, but nothing made it map them to the average of what the
networks map theirs to. The refit does, by least squares, layer after layer.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

from zipjax.batches import InputsOf, input_batches
from zipjax.calibration.passes import Pass, traced_network
from zipjax.calibration.solve import solve_layer
from zipjax.calibration.targets import MergedTarget, Target, as_target, first_rows
from zipjax.calibration.unit_statistics import stat_shape, unit_entries
from zipjax.merging.matrices import model_matrices
from zipjax.merging.merged import Merged, known_origin
from zipjax.merging.networks import Networks
from zipjax.merging.weights import Matrices, interpolation_shares
from zipjax.program.layers import Layer
from zipjax.spec.entries import axes_of
from zipjax.types import ApplyFn, Array, PyTree


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
    bias. So call ``reset_batch_stats`` before a refit, never after it.

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
      ValueError: if there are no batches, or the models are not those that were merged.
    """
    _check_one_function(merged)
    networks = Networks.parents_of(merged, models)
    data = list(input_batches(batches, inputs_of))
    origin = known_origin(merged)
    matrices = model_matrices(origin.assignments, networks.spec, len(networks))
    shares = interpolation_shares(origin.weights, len(networks))
    solve = functools.partial(solve_layer, ridge=ridge, sweeps=sweeps)
    parents = [_start(apply_fn, tree, data) for tree in networks.trees]

    current = _start(apply_fn, merged.params(), data)
    for kernel in [kernel for kernel in current.layers() if kernel in merged.trunk]:
        layer = parents[0].layers()[kernel]
        target: Target = _merged_target(layer, networks, matrices, shares)
        if outputs is not None and current.returns(kernel):
            target = as_target(outputs)
        solve(current, parents, kernel, target)
    trunk = {path: current.leaves[path] for path in merged.trunk}
    new = dataclasses.replace(merged, trunk=trunk)
    own = [dict(head) for head in new.heads]
    for number, head in enumerate(own if heads else []):
        current = _start(apply_fn, new.params(number), data)
        parent = _start(apply_fn, networks.trees[number], data)
        for kernel in [kernel for kernel in current.layers() if kernel in head]:
            solve(current, [parent], kernel, as_target(first_rows))
        head.update({path: current.leaves[path] for path in head})
    return dataclasses.replace(new, heads=tuple(own))


def _start(apply_fn: ApplyFn, tree: PyTree, data: Sequence[tuple[Any, ...]]) -> Pass:
    return Pass(traced_network(apply_fn, tree), tree, data)


def _check_one_function(merged: Merged) -> None:
    if isinstance(merged.spec, tuple):
        raise ValueError(
            f"this merged model's {len(merged.spec)} heads are different functions: "
            "only models of one function can be refitted"
        )


def _merged_target(
    layer: Layer, networks: Networks, matrices: Matrices, shares: Array
) -> MergedTarget:
    """Returns the target of a zipped layer."""
    spec = networks.spec
    entries = unit_entries(layer, spec.entries[layer.kernel])
    names = {axis.perm for entry in entries for axis in axes_of(entry)}
    names |= {group for name in names for group in spec.perms[name].groups}
    perms = tuple((p, perm) for p, perm in spec.perms.items() if p in names)
    own = {perm: matrices[perm] for perm in matrices if perm in names}
    return MergedTarget(own, shares, entries, perms, tuple(stat_shape(layer)))
