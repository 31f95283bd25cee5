"""Refits the linear layers of a merged network, in closed form.

Averaged weights are no solution of anything: a merged layer reads features that are
means of two networks' and was never asked to make of them the mean of what the networks
make of theirs. Here it is asked, by least squares, layer after layer.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zipjax.batches import batch_inputs
from zipjax.calibration.passes import Network, Pass
from zipjax.calibration.solve import Target, solve_layer
from zipjax.calibration.unit_statistics import stat_shape
from zipjax.merging.matrices import Assignments, model_matrices
from zipjax.merging.merged import Merged
from zipjax.merging.sharing import models_spec
from zipjax.merging.weights import Matrices, merge_leaf
from zipjax.program.layers import Layer
from zipjax.program.rows import kernel_axes
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import check_models, path_leaves
from zipjax.types import ApplyFn, Array, PyTree


def refit(
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    merged: Merged,
    assignments: Assignments,
    batches: Iterable[Any],
    *,
    inputs: Callable[[Any], Any] | None = None,
    outputs: Target | None = None,
    ridge: float = 1e-3,
    sweeps: int = 4,
    heads: bool = True,
) -> Merged:
    """Solves the layers of a merged model anew, by least squares.

    In the order of the network, every layer with a kernel that one product reads gets
    the kernel and bias that minimise

        sum |W x + b + r - M h|^2 + ridge * d * |W - W*|^2

    over all samples: x is the layer's input in the merged network as it is now, h the
    concatenated models' own values behind the layer's constant affine operations (its
    bias, BatchNorm with running statistics), M the merge matrix, W* the merged kernel
    and d the mean diagonal of the inputs' second moment. Where a residual sum follows
    and the other operand r is fixed already, h is that sum, so that the layer makes up
    for the errors of the stream. Before a ReLU, values matter only where they are
    positive: ``sweeps`` times what should be negative and is gets itself as target
    (auxiliary variables; Zhang et al. 2015, "Accelerating Very Deep Convolutional
    Networks", Section 3.2). Nothing is trained and no labels are used.

    Normalisation stays where it is: its running statistics, scale and all but one bias
    keep their values, and the solution is written into the kernel and the last bias. So
    ``reset_batch_stats`` must come before, never after.

    Where a kernel produces more than units, such as queries, keys and values in heads,
    M h is h merged as the layer's bias would be.

    The batches are read once. The values that are alive between two layers are kept for
    all of them in the host's memory; JAX's default device sees one batch at a time, and
    of a convolution's patches only second moments are kept.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, in evaluation mode.
      models: the models that were merged, with fitting batch statistics.
      merged: their merged model.
      assignments: how their units were matched, from :func:`zipjax.match`.
      batches: an iterable of batches. Their shapes are compiled for: best few.
      inputs: maps a batch to the inputs of ``apply_fn``; by default it is they.
      outputs: maps the list of the models' outputs ``[samples, units]`` to the target
        of a shared output; their mean by default. The heads of a partial zip are each
        refitted to their own model, whose confidence tells the heads apart.
      ridge: how strongly kernels are held to the merged ones.
      sweeps: number of passes for the ReLU behind a layer; 0: the plain solution.
      heads: whether layers behind a partial zip's cut are refitted too, each to its
        own model.

    Returns:
      The merged model with new kernels and biases.

    Raises:
      ValueError: if there are no batches, or the assignments do not fit the merged
        model.
    """
    _check_one_function(merged)
    check_models(models, merged.trunk)
    spec = models_spec(models, merged, assignments)
    data = [batch_inputs(k, batch, inputs) for k, batch in enumerate(batches)]
    if not data:
        raise ValueError("no batches: a refit needs at least one batch of inputs")
    matrices = model_matrices(assignments, spec, len(models))
    solve = functools.partial(solve_layer, ridge=ridge, sweeps=sweeps)
    network, own_network = _networks(apply_fn, models[0], merged, data)
    parents = [Pass(network, model) for model in models]

    current = Pass(own_network, merged.params())
    for kernel in [kernel for kernel in current.layers() if kernel in merged.trunk]:
        target = _matched(parents[0].layers()[kernel], spec, matrices)
        if outputs is not None and current.returns(kernel):
            target = outputs
        solve(current, parents, kernel, target)
    trunk = {path: current.leaves[path] for path in merged.trunk}
    new = dataclasses.replace(merged, trunk=trunk)
    own = [dict(head) for head in new.heads]
    for number, head in enumerate(own if heads else []):
        current = Pass(own_network, new.params(number))
        parent = Pass(network, models[number])
        for kernel in [kernel for kernel in current.layers() if kernel in head]:
            solve(current, [parent], kernel, _own)
        head.update({path: current.leaves[path] for path in head})
    return dataclasses.replace(new, heads=tuple(own))


def _check_one_function(merged: Merged) -> None:
    if isinstance(merged.spec, tuple):
        raise ValueError(
            f"this merged model's {len(merged.spec)} heads are different functions: "
            "only models of one function can be refitted"
        )


def _networks(
    apply_fn: ApplyFn, model: PyTree, merged: Merged, data: Sequence[tuple[Any, ...]]
) -> tuple[Network, Network]:
    """Returns the models' and the merged network: one, unless widths changed."""
    network = Network(apply_fn, model, data)
    before, after = path_leaves(model), path_leaves(merged.params())
    if all(before[path].shape == x.shape for path, x in after.items()):
        return network, network
    return network, Network(apply_fn, merged.params(), data)


def _own(rows: list[Array]) -> Array:
    return rows[0]


def _matched(layer: Layer, spec: PermutationSpec, matrices: Matrices) -> Target:
    """Returns the target of a zipped layer: its value, merged as its bias would be."""
    produced = kernel_axes(layer)[1]
    axes = enumerate(spec.entries[layer.kernel])
    entries = tuple(entry if k in produced else None for k, entry in axes)
    shape = stat_shape(layer)

    def merge(values: Array) -> Array:
        shares = jnp.ones(len(values))
        return merge_leaf(values, entries, spec.perms, matrices, shares).reshape(-1)

    def mix(rows: list[Array]) -> Array:
        samples = jnp.stack(rows, axis=1)
        return jax.vmap(merge)(samples.reshape(-1, len(rows), *shape))

    return mix
