"""Refits the linear layers of a merged network, in closed form.

Averaged weights are no solution of anything: a merged layer reads features that are
means of two networks' and was never asked to make of them the mean of what the networks
make of theirs. Here it is asked, by least squares, layer after layer.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zipjax.activations import batch_inputs
from zipjax.entries import Axis, Entries, Entry, Product, leaf_axes
from zipjax.matrices import Assignments, check_widths, merge_matrices, merged_units
from zipjax.partial import Merged
from zipjax.refitting.passes import Network, Pass
from zipjax.refitting.solve import Target, solve_layer
from zipjax.spec import PermutationSpec
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
    samples: int = 200_000,
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

    The batches are read once; the values that are alive between two layers are kept for
    all of them, in the memory of JAX's default device.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, in evaluation mode.
      models: the models that were merged, with fitting batch statistics.
      merged: their merged model.
      assignments: how their units were matched, from :func:`zipjax.match`.
      batches: an iterable of batches. Their shapes are compiled for: best few.
      inputs: maps a batch to the inputs of ``apply_fn``; by default it is they.
      outputs: maps the list of the models' outputs ``[samples, units]`` to the target
        of a shared output; their mean by default.
      ridge: how strongly kernels are held to the merged ones.
      sweeps: number of passes for the ReLU behind a layer; 0: the plain solution.
      samples: number of samples a layer is solved from, at most; of a convolution,
        every position of its output is one. The rest is left out at random. A layer
        needs memory for that many rows of its inputs.
      heads: whether layers behind a partial zip's cut are refitted too, each to its
        own model.

    Returns:
      The merged model with new kernels and biases.

    Raises:
      ValueError: if there are no batches, or the assignments do not fit the merged
        model.
    """
    spec = _only_spec(merged)
    check_models(models)
    check_widths(assignments, spec)
    data = [batch_inputs(k, batch, inputs) for k, batch in enumerate(batches)]
    if not data:
        raise ValueError("no batches: a refit needs at least one batch of inputs")
    solve = functools.partial(solve_layer, ridge=ridge, sweeps=sweeps, samples=samples)
    network, own_network = _networks(apply_fn, models[0], merged, data)
    parents = [Pass(network, model) for model in models]
    matrices = {
        perm: _averages(assignments, spec, perm, len(models)) for perm in assignments
    }
    current = Pass(own_network, merged.params())
    for kernel, layer in current.layers().items():
        target = _target(spec.axes[kernel], spec, matrices)
        if target is _mean and current.returns(layer):
            target = outputs or _mean
        if target is not None and kernel in merged.trunk:
            solve(current, parents, kernel, target)
    trunk = {path: current.leaves[path] for path in merged.trunk}
    new = dataclasses.replace(merged, trunk=trunk)
    own = [dict(head) for head in new.heads]
    for number, head in enumerate(own if heads else []):
        current = Pass(own_network, new.params(number))
        parent = Pass(network, models[number])
        for kernel in [k for k in current.layers() if k in head]:
            solve(current, [parent], kernel, _mean)
        head.update({path: current.leaves[path] for path in head})
    return dataclasses.replace(new, heads=tuple(own))


def _only_spec(merged: Merged) -> PermutationSpec:
    if isinstance(merged.spec, tuple):
        raise ValueError(
            f"this merged model's {len(merged.spec)} heads are different functions: "
            "only models of one function can be refitted"
        )
    return merged.spec


def _networks(
    apply_fn: ApplyFn, model: PyTree, merged: Merged, data: Sequence[tuple[Any, ...]]
) -> tuple[Network, Network]:
    """Returns the models' and the merged network: one, unless widths changed."""
    network = Network(apply_fn, model, data)
    before, after = path_leaves(model), path_leaves(merged.params())
    if all(before[path].shape == x.shape for path, x in after.items()):
        return network, network
    return network, Network(apply_fn, merged.params(), data)


def _mean(rows: list[Array]) -> Array:
    return sum(rows[1:], rows[0]) / len(rows)


def _averages(
    assignments: Assignments, spec: PermutationSpec, perm: str, num_models: int
) -> Array:
    """Returns M of a perm's units in all groups, ``[units, N*n]``."""
    units = merged_units(assignments, spec, perm, num_models)
    return jnp.asarray(merge_matrices(units, num_models)[0])


def _target(
    entries: Entries, spec: PermutationSpec, matrices: Mapping[str, Array]
) -> Target | None:
    """Returns the target of a kernel with these entries, from the models' rows.

    The matched mean; the plain mean where nothing was matched. None for several
    produced axes, for compound ones other than units in groups, and for those that are
    not zipped.
    """
    if not any(x.role == "out" for e in entries for x in leaf_axes(e)):
        return _mean
    produced = [e for e in entries if any(x.role == "out" for x in leaf_axes(e))]
    perm = _produced_perm(produced[0], spec) if len(produced) == 1 else None
    if perm is None or perm not in matrices:
        return None
    merge = matrices[perm]

    def mix(rows: list[Array]) -> Array:
        every = jnp.concatenate(rows, axis=-1)
        return jnp.matmul(every, merge.T, precision=jax.lax.Precision.HIGHEST)

    return mix


def _produced_perm(entry: Entry, spec: PermutationSpec) -> str | None:
    """Returns the perm of an axis: its own, or that of the units in its groups."""
    factors = entry.factors if isinstance(entry, Product) else (entry,)
    names = tuple(x.perm for x in factors if isinstance(x, Axis))
    nested = names and spec.perms[names[-1]].groups == names[:-1]
    return names[-1] if nested and len(names) == len(factors) else None
