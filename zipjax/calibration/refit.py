"""Refits the linear layers of a merged network, in closed form.

Averaged weights solve no problem: a merged layer reads features that are averages of
several networks' features, but nothing made it map them to the average of what the
networks map theirs to. The refit does, by least squares, layer after layer.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zipjax import hosts
from zipjax.arguments import (
    check_key,
    check_kind,
    check_number,
    check_sequence,
    is_whole,
)
from zipjax.batches import InputsOf, input_batches
from zipjax.calibration.passes import Budget, Pass, traced_network
from zipjax.calibration.samples import Sampling
from zipjax.calibration.solve import solve_layer
from zipjax.calibration.targets import Target, as_target, first_rows, merged_target
from zipjax.calibration.unit_statistics import stat_shape, unit_entries
from zipjax.merging.each import OneOrEach, each_function, one_or_each
from zipjax.merging.matrices import model_matrices
from zipjax.merging.merged import Merged, functions_of, known_origin, with_leaves
from zipjax.merging.networks import Networks
from zipjax.merging.weights import Matrices, interpolation_shares
from zipjax.positions import Positions, check_positions
from zipjax.program.layers import Layer
from zipjax.trees import summary
from zipjax.types import AnyArray, ApplyFn, Array, Leaves, PyTree

_log = logging.getLogger(__name__)

# The share of the memory that rows may take which sweeps read again.
_FOR_ROWS = 0.25


def refit(
    apply_fn: OneOrEach[ApplyFn],
    models: Sequence[PyTree],
    merged: Merged,
    batches: Iterable[Any],
    *,
    inputs_of: InputsOf | None = None,
    outputs: Target | None = None,
    ridge: float = 1e-3,
    sweeps: int = 4,
    heads: bool = True,
    positions: Positions = "few",
    key: Array | None = None,
    memory_limit: int | None = 1 << 30,
) -> Merged:
    """Fits the layers of a merged model again, by least squares.

    In the order of the network, every layer whose kernel only one product reads gets
    the kernel and bias that minimise

        sum |W x + b + r - M h|^2 + ridge * d * |W - W*|^2

    over samples. Here x is the layer's input in the merged network as it is now,
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

    The batches are read once, into the host's memory. Between two layers, the values
    that are read later are kept there too, of as many batches as ``memory_limit``
    allows; the others' are computed again whenever they are read, from the last layer
    at which they fitted. JAX's local devices share one batch at a time. Of a layer's
    rows (a convolution's patches, for instance) only sums remain; those that sweeps
    read again are kept if they fit into a quarter of that memory. Equal layers share
    compiled programs.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, in evaluation mode; must be hashable, as
        it selects the compiled programs. A sequence with one per model where their
        functions differ after the cut.
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
      positions: how many of a batch's positions, or tokens, are read for every layer,
        drawn at random: as many of every example, one from each of as many stretches of
        equal length. "few" reads as many as make 65,536 samples of all batches, and 64
        for each of the layer's inputs, "all" reads all.
      key: PRNG key of the positions; ``jax.random.key(0)`` by default.
      memory_limit: how many bytes the values between layers may take; None for no
        limit. It does not change the result. The less, the slower: networks whose
        values do not fit run from their inputs for every layer.

    Returns:
      The merged model with new kernels and biases.

    Raises:
      ValueError: if there are no batches, if the models are not those that were merged,
        if ridge or sweeps are negative or NaN, if positions are no number of samples,
        or if memory_limit is no positive number of bytes.
    """
    _check_limit(memory_limit)
    check_positions(positions)
    if key is not None:
        check_key(key)
    from_zero = "a finite number from 0 on, such as 1e-3"
    check_number("ridge", ridge, lambda x: 0 <= x < math.inf, from_zero)
    whole = "a whole number from 0 on, such as 4"
    check_number("sweeps", sweeps, lambda x: is_whole(x) and x >= 0, whole)
    check_kind("merged", merged, Merged)
    check_sequence("models", models)
    _check_one_spec(merged)
    networks = Networks.parents_of(merged, models)
    networks.check_finite()
    functions = each_function(apply_fn, len(networks))
    stream = input_batches(batches, inputs_of)
    data = hosts.together(lambda: [jax.device_get(arrays) for arrays in stream])
    memory = math.inf if memory_limit is None else memory_limit
    draws = jax.random.key(0) if key is None else key
    seed = np.asarray(jax.random.key_data(draws)).ravel().tolist()
    sampling = Sampling(positions, seed, _FOR_ROWS * memory)
    solve = functools.partial(
        solve_layer, sampling=sampling, ridge=ridge, sweeps=sweeps
    )
    setting = _Setting(functions, networks, data, (1 - _FOR_ROWS) * memory, solve)
    trunk, left = _refit_trunk(setting, merged, outputs)
    new = dataclasses.replace(merged, trunk=trunk)
    found = []
    for number, head in enumerate(new.heads if heads else ()):
        leaves, own = _refit_head(setting, new, number, head.keys() - trunk.keys())
        left |= own
        found.append(leaves)
    if left:
        _log.warning(
            "refit leaves %s as they are: they are read twice, computed from other "
            "parameters, read in loops or in groups, or scaled by position",
            summary(left),
        )
    return with_leaves(new, found) if found else new


class _Setting(NamedTuple):
    """What the trunk and the heads are refitted with."""

    functions: tuple[ApplyFn, ...]
    networks: Networks
    data: Sequence[tuple[Any, ...]]
    memory: float
    solve: Callable[[Pass, Sequence[Pass], str, Target], bool]

    @property
    def models(self) -> list[tuple[ApplyFn, PyTree]]:
        """The models' functions and parameters."""
        return list(zip(self.functions, self.networks.trees, strict=True))

    def heads(self, merged: Merged) -> list[tuple[ApplyFn, PyTree]]:
        """Returns a merged model's functions and parameters."""
        return functions_of(one_or_each(self.functions), merged)

    def passes(self, functions: Iterable[tuple[ApplyFn, PyTree]]) -> list[Pass]:
        """Starts passes of functions and their parameters, within the limit."""
        budget = Budget(self.memory)
        return [
            Pass(traced_network(call, tree), tree, self.data, budget)
            for call, tree in functions
        ]


def _refit_trunk(
    setting: _Setting, merged: Merged, outputs: Target | None
) -> tuple[dict[str, Any], set[str]]:
    """Returns the trunk's new leaves, and the paths of the kernels that are left."""
    networks, origin = setting.networks, known_origin(merged)
    matrices = model_matrices(origin.assignments, networks.spec, len(networks))
    shares = interpolation_shares(origin.weights, merged.trunk, len(networks))
    current, *parents = setting.passes([setting.heads(merged)[0], *setting.models])
    done: list[Layer] = []
    for name in _common_layers(current, parents[0], merged.trunk):
        layer = parents[0].layers()[name]
        target = _merged_target(layer, networks, matrices, shares[layer.kernel])
        if outputs is not None and current.returns(name):
            target = as_target(outputs)
        if target is not None and setting.solve(current, parents, name, target):
            done.append(current.layers()[name])
    left = merged.trunk.keys() & current.left(done)
    return {path: current.leaves[path] for path in merged.trunk}, left


def _refit_head(
    setting: _Setting, merged: Merged, number: int, paths: Collection[str]
) -> tuple[Leaves, set[str]]:
    """Returns a head's new leaves, and those of its paths whose kernels are left."""
    head, model = setting.heads(merged)[number], setting.models[number]
    current, parent = setting.passes([head, model])
    done = [
        current.layers()[name]
        for name in _common_layers(current, parent, paths)
        if setting.solve(current, [parent], name, as_target(first_rows))
    ]
    return current.leaves, set(paths).intersection(current.left(done))


def _common_layers(current: Pass, parent: Pass, paths: Collection[str]) -> list[str]:
    """Returns the names of both networks' layers whose kernels are among these."""
    both = current.layers().keys() & parent.layers().keys()
    layers = current.layers().values()
    return [x.name for x in layers if x.kernel in paths and x.name in both]


def _check_limit(limit: Any) -> None:
    if limit is not None and not (is_whole(limit) and limit > 0):
        raise ValueError(
            f"memory_limit = {limit!r} is no positive whole number of bytes: pass one, "
            "such as memory_limit=2**30 for 1 GiB, or None for no limit"
        )


def _check_one_spec(merged: Merged) -> None:
    if isinstance(merged.spec, tuple):
        raise ValueError(
            f"this merged model's {len(merged.spec)} heads have specs of their own: "
            "only models of one spec can be refitted"
        )


def _merged_target(
    layer: Layer, networks: Networks, matrices: Matrices, shares: AnyArray
) -> Target | None:
    """Returns the target of a zipped layer; None if its units are not its own."""
    if (entries := unit_entries(layer, networks.spec)) is None:
        return None
    shape = tuple(stat_shape(layer))
    return merged_target(matrices, shares, entries, networks.spec.perms, shape)
