"""Collecting moments: one streaming pass over batches, on all local devices."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.batches import InputsOf, input_batches
from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.networks import Networks
from zipjax.program.program import compute_values, trace
from zipjax.similarity.moments import Moments
from zipjax.spec.blocks import unit_views
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.tracing.taps import find_taps
from zipjax.trees import path_leaves
from zipjax.types import ApplyFn, Array, PyTree

PermMoments = dict[str, Moments]


def collect_moments(
    apply_fn: OneOrEach[ApplyFn],
    models: Sequence[PyTree],
    spec: OneOrEach[PermutationSpec],
    batches: Iterable[Any],
    *,
    inputs_of: InputsOf | None = None,
    devices: Sequence[Any] | None = None,
) -> dict[str, Moments]:
    """Collects the moments of every perm's units, of all models together.

    Units of model i of a perm with n units have the positions [i * n, (i + 1) * n),
    those of a perm nested in groups group by group. All other axes of an activation
    are samples: of an NHWC tensor, every position.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, in evaluation mode; traced, never
        modified. Must be hashable (a function, or a bound method of a Flax module): it
        selects the compiled program. A sequence with one per model where their
        functions differ.
      models: parameter pytrees of one architecture, or of several with a common
        beginning; in a merged model with heads, layers after the trunk are read with
        the first head.
      spec: the permutation spec, or a sequence with one per model: the perms are then
        those that a zip can share.
      batches: an iterable of batches; every batch is read once.
      inputs_of: maps a batch to the inputs of ``apply_fn`` (one array, or a tuple of
        positional inputs whose leading axis is the batch). By default a batch is its
        own input, or a tuple of inputs.
      devices: devices to share every batch among; all local ones by default. A batch
        whose size they do not divide runs on the largest number of them that does.

    Returns:
      ``{perm: Moments}`` in float32 or better, in depth order.

    Raises:
      ValueError: if the models or the spec do not fit together, if there are no
        batches, if a batch is empty or holds NaN, or if activations are not finite.
    """
    functions = each(apply_fn, len(models), "functions")
    networks = Networks.of(models, spec)
    collector = _Collector(functions, networks, tuple(devices or jax.local_devices()))
    for arrays in input_batches(batches, inputs_of):
        collector.add(arrays)
    moments = collector.result()
    _check_finite(moments, networks.spec)
    return moments


def tapped_units(
    apply_fn: ApplyFn,
    model: PyTree,
    spec: PermutationSpec,
    inputs: Sequence[Any],
    perms: Collection[str] | None = None,
) -> dict[str, Array]:
    """Returns every perm's activations ``[samples, units]`` of one model.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``.
      model: parameter pytree.
      spec: the permutation spec.
      inputs: the other inputs.
      perms: the perms of the trunk that models of several functions have in common;
        see :func:`find_taps`.
    """
    program = trace(apply_fn, model, *inputs)
    found = find_taps(program, spec, perms)
    taps = [(perm, tap) for perm, both in found.items() for tap in both]
    values = compute_values(
        program,
        path_leaves(model),
        jax.tree_util.tree_leaves(inputs),
        [tap.value for _, tap in taps],
    )
    views: dict[str, list[Array]] = {perm: [] for perm in found}
    for (perm, tap), value in zip(taps, values, strict=True):
        groups = spec.perms[perm].groups
        views[perm] += unit_views(value, tap.entries, spec.sizes, perm, groups)
    return {perm: jnp.concatenate(parts) for perm, parts in views.items()}


class _Collector:
    """Running moments: for each number of devices in use, one set per device."""

    def __init__(
        self,
        functions: Sequence[ApplyFn],
        networks: Networks,
        devices: tuple[Any, ...],
    ) -> None:
        self._networks, self._devices = networks, devices
        self._function = functools.partial(
            _parallel, one_or_each(functions), one_or_each(networks.specs)
        )
        self._empty = {
            perm: Moments.empty(len(networks) * networks.spec.units(perm))
            for perm in networks.common_perms
        }
        self._states: dict[int, tuple[PermMoments, list[PyTree]]] = {}

    def add(self, arrays: tuple[Any, ...]) -> None:
        """Adds a batch, shared among as many devices as divide it."""
        size = np.shape(jax.tree_util.tree_leaves(arrays)[0])[0]
        count = max(k for k in range(1, len(self._devices) + 1) if size % k == 0)
        replicate, step = self._function(self._devices[:count])
        if count not in self._states:
            # The parameters are copied to every device once, not with every batch.
            start = self._empty, list(self._networks.trees)
            self._states[count] = replicate(np.zeros(count), start)
        state, models = self._states[count]
        shards = jax.tree_util.tree_map(
            lambda x: np.reshape(x, (count, -1, *np.shape(x)[1:])), arrays
        )
        self._states[count] = step(state, models, shards), models

    def result(self) -> PermMoments:
        """Returns the moments of all batches, merged over the devices."""
        shards = [
            jax.tree_util.tree_map(lambda x, k=k: jnp.asarray(x[k]), host)
            for count, (state, _) in sorted(self._states.items())
            for host in [jax.device_get(state)]
            for k in range(count)
        ]
        totals = {
            perm: functools.reduce(Moments.merge, (shard[perm] for shard in shards))
            for perm in self._empty
        }
        return {
            perm: dataclasses.replace(moments, source=self._networks.fingerprint)
            for perm, moments in totals.items()
        }


@functools.lru_cache(maxsize=16)
def _parallel(
    apply_fn: OneOrEach[ApplyFn],
    spec: OneOrEach[PermutationSpec],
    devices: tuple[Any, ...],
) -> tuple[Callable[..., Any], Callable[..., PermMoments]]:
    """Returns a function that copies a pytree to the devices, and the step they run.

    Kept between calls, so that the same network is compiled once.
    """
    replicate = jax.pmap(lambda _, tree: tree, in_axes=(0, None), devices=devices)
    step = functools.partial(_step, apply_fn, spec)
    return replicate, jax.pmap(step, devices=devices, donate_argnums=0)


def _step(
    apply_fn: OneOrEach[ApplyFn],
    spec: OneOrEach[PermutationSpec],
    state: PermMoments,
    models: list[PyTree],
    inputs: tuple[Any, ...],
) -> PermMoments:
    """Adds one device's share of a batch."""
    functions = each(apply_fn, len(models), "functions")
    specs = each(spec, len(models), "specs")
    perms = tuple(state) if isinstance(spec, tuple) else None
    per_model = [
        tapped_units(function, model, own, inputs, perms)
        for function, model, own in zip(functions, models, specs, strict=True)
    ]
    return {
        perm: moments.update(_side_by_side(perm, [u[perm] for u in per_model]))
        for perm, moments in state.items()
    }


def _side_by_side(perm: str, units: Sequence[Array]) -> Array:
    counts = [len(samples) for samples in units]
    if len(set(counts)) > 1:
        raise ValueError(
            f"the units of perm {perm!r} are read at {counts} positions of one batch "
            "in the models: their functions do not read them alike. Let every head "
            "read the trunk's output, and resize after its first layer"
        )
    return jnp.concatenate(list(units), axis=1)


def _check_finite(moments: PermMoments, spec: PermutationSpec) -> None:
    for perm, moment in moments.items():
        finite = np.isfinite(np.asarray(jnp.diag(moment.m2) + moment.mean))
        if not finite.all():
            guilty = sorted({int(u) // spec.units(perm) for u in np.where(~finite)[0]})
            raise ValueError(
                f"the activations of perm {perm!r} are not finite in the models "
                f"{guilty}: check that their parameters hold no NaN"
            )
