"""Collecting moments: one streaming pass over batches, on all devices and hosts."""

import dataclasses
import functools
import logging
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zipjax import hosts
from zipjax.arguments import check_key
from zipjax.batches import InputsOf, input_batches
from zipjax.merging.each import OneOrEach, each_function, one_or_each
from zipjax.merging.networks import Networks
from zipjax.positions import FEW_SAMPLES, Positions, check_positions
from zipjax.similarity.costs import PassPlan, pass_bytes, passes
from zipjax.similarity.moments import Moments, accumulator
from zipjax.similarity.placement import Placement, placement_of
from zipjax.similarity.running import (
    Running,
    as_moments,
    combined,
    displacement,
    pooled_mean,
)
from zipjax.similarity.steps import BatchStep, Sums
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.spec.verify import check_any_perms
from zipjax.types import ApplyFn, Array, PyTree

_log = logging.getLogger(__name__)

# After so many batches the devices' sums are added to float64 ones on the host.
_BATCHES = 64


def collect_moments(
    apply_fn: OneOrEach[ApplyFn],
    models: Sequence[PyTree],
    spec: OneOrEach[PermutationSpec],
    batches: Iterable[Any],
    *,
    inputs_of: InputsOf | None = None,
    stop_at: str | int | None = None,
    positions: Positions = "few",
    key: Array | None = None,
    memory_limit: int | None = None,
    devices: Sequence[Any] | None = None,
) -> dict[str, Moments]:
    """Collects the moments of every perm's units, of all models together.

    Units of model i of a perm with n units have the positions [i * n, (i + 1) * n),
    those of a perm nested in groups group by group. All other axes of an activation
    are samples: of an NHWC tensor, every position. Layers that are stacked for a scan
    are read inside it; a batch's activations of all of them are then held at once.

    Every batch runs on all local devices; the next one is read and copied to them
    meanwhile. Inputs or parameters that are sharded over a mesh stay where they are,
    and second moments are sharded over it by rows. Under ``jax.distributed`` every
    process passes its own share of the data (or all pass the same global arrays), and
    all of them get the moments of all data.

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
      batches: an iterable of batches; every batch is read once in each pass.
      inputs_of: maps a batch to the inputs of ``apply_fn`` (one array, or a tuple of
        positional inputs whose leading axis is the batch). By default a batch is its
        own input, or a tuple of inputs.
      stop_at: where the zip will stop, see :func:`zipjax.merge`: units are then read
        before that, or where they are next, and the moments are for such a zip only.
        For a cut inside a residual stream this is better: a stream's units are not the
        same features at its end. By default all perms are read, as late as possible,
        for any zip.
      positions: how many of a batch's positions (or tokens: of all samples that it has
        of a unit) are read, drawn at random for every perm and batch, one from each of
        as many stretches of equal length. "few" reads as many as make ``FEW_SAMPLES``
        of every perm if the number of batches is known, that is, if ``batches`` has a
        length; else all. "all" reads all: for wide layers this often takes longer than
        the forward passes.
      key: PRNG key of the positions; ``jax.random.key(0)`` by default.
      memory_limit: the most memory in bytes that moments may take on each device. Perms
        are collected in as many passes over the batches as that takes; one whose second
        moment alone is larger in panels of its rows, which are put together on the
        host. The batches must then be such as can be read again, for example a list.
        The log tells how many passes there are, and how much memory they take.
      devices: devices to share every batch among; all local ones by default. A batch
        whose size they do not divide runs on the largest number of them that does, and
        one with inputs of different lengths (a mask, a raw PRNG key) on one.

    Returns:
      ``{perm: Moments}`` in float32 or better, in depth order. Perms that lie on no
      value that can be read are left out: recipes match them by their weights.

    Raises:
      ValueError: if the models or the spec do not fit together, if there are no
        batches, if a batch is empty or holds NaN, if activations are not finite, if
        units were seen in one sample alone, if ``positions`` or ``memory_limit`` are
        too small, or if several passes are needed over what can be read only once.
    """
    networks = Networks.of(models, spec, stop_at)
    functions = each_function(apply_fn, len(networks))
    if key is not None:
        check_key(key)
    check_any_perms(networks.spec)
    if not networks.perms:
        raise ValueError(
            "stop_at = 0 zips nothing, so that no moments are needed: merge by "
            "zipjax.average()"
        )
    stops = stop_at is not None
    trunk = stops or len(set(networks.specs)) > 1
    batch_step = BatchStep(
        one_or_each(functions),
        one_or_each(networks.specs),
        networks.perms if trunk else None,
        (networks.boundaries if trunk else ()) or (None,) * len(networks),
        _positions_per_batch(positions, batches),
    )
    panels: dict[str, list[tuple[int, tuple[Running, ...]]]] = {}
    draws = jax.random.key(0) if key is None else key
    for own in _planned(networks, batches, memory_limit):
        stream = functools.partial(input_batches, batches, inputs_of)
        found = _Collector(batch_step, own, networks.trees, devices).over(stream, draws)
        for perm, sums in found.items():
            panels.setdefault(perm, []).append((own.start, sums))
    moments = {
        perm: as_moments(*_assembled(panels[perm]), source=networks.source(stops))
        for perm in networks.spec.perms
        if perm in panels
    }
    _check_finite(moments, networks)
    _check_counts(moments, networks)
    return moments


class _Collector:
    """One pass over the batches: sums on the devices, and their totals on the host."""

    def __init__(
        self,
        batch_step: BatchStep,
        own: PassPlan,
        trees: Sequence[PyTree],
        devices: Sequence[Any] | None,
    ) -> None:
        self._batch_step = dataclasses.replace(
            batch_step, only=own.perms, height=own.height
        )
        self._start, self._trees, self._devices = own.start, trees, devices
        self._sums: dict[Placement, Sums] = {}
        self._models: dict[Placement, list[PyTree]] = {}
        # Of this process's batches, and of those that all processes share.
        self._totals: dict[bool, Sums] = {}

    def over(self, read: Callable[[], Iterable[tuple[Any, ...]]], key: Array) -> Sums:
        """Returns the sums over all batches, of all processes."""

        def local() -> None:
            for number, arrays in enumerate(read()):
                self._add(arrays, jax.random.fold_in(key, number))
                if number % _BATCHES == _BATCHES - 1:
                    self._fetch()
            self._fetch()

        hosts.together(local)
        parts = [
            total if shared else _over_hosts(total, self._start)
            for shared, total in sorted(self._totals.items(), key=lambda x: x[0])
        ]
        return _combined(parts, self._start)

    def _add(self, arrays: tuple[Any, ...], key: Array) -> None:
        place = placement_of(arrays, self._trees, self._devices)
        inputs = place.inputs(arrays)
        example = place.example(inputs)
        self._batch_step.trace(self._trees, example)
        if place not in self._models:
            # The parameters are copied to every device once, not with every batch.
            self._models[place] = place.models(self._trees)
        if place not in self._sums:
            self._sums[place] = place.sums(self._batch_step.empty(self._trees, example))
        if not place.spans_hosts:
            key = jax.random.fold_in(key, jax.process_index())
        # This batch was read and sent while the one before ran. No more are ahead, or
        # they would fill the devices.
        sums = jax.block_until_ready(self._sums[place])
        step, start = place.compiled(self._batch_step), np.int32(self._start)
        self._sums[place] = step(sums, self._models[place], inputs, key, start)

    def _fetch(self) -> None:
        """Adds the devices' sums to the totals on the host."""
        for place, sums in self._sums.items():
            known = self._totals.get(place.spans_hosts)
            parts = [*([known] if known else []), *place.parts(sums)]
            self._totals[place.spans_hosts] = _combined(parts, self._start)
        self._sums = {}


def _combined(parts: Sequence[Sums], start: int) -> Sums:
    """Returns the sums of all parts together, perm by perm."""
    return {
        perm: tuple(
            combined(kinds, start)
            for kinds in zip(*(part[perm] for part in parts), strict=True)
        )
        for perm in parts[0]
    }


def _over_hosts(sums: Sums, start: int) -> Sums:
    """Returns the sums of all processes together.

    Counts and means are gathered; then every second moment is about the common mean,
    and all are added.
    """
    if jax.process_count() == 1:
        return sums
    flat = [own for kinds in sums.values() for own in kinds]
    names = ("count", "mean", "mean_tail")
    everywhere = hosts.gathered(
        {f"{k}/{name}": getattr(x, name) for k, x in enumerate(flat) for name in names}
    )
    totals = []
    for k, own in enumerate(flat):
        parts = [{name: x[f"{k}/{name}"] for name in names} for x in everywhere]
        count, mean = pooled_mean([Running(**part, m2=None) for part in parts])
        moved = own.m2 + displacement(own, mean, start)
        m2 = hosts.summed(moved.astype(accumulator(jnp.float32)))
        totals.append(Running(count, mean, np.zeros_like(mean), m2))
    left = iter(totals)
    return {perm: tuple(next(left) for _ in kinds) for perm, kinds in sums.items()}


def _assembled(
    panels: Sequence[tuple[int, tuple[Running, ...]]],
) -> tuple[Running, Running | None]:
    """Returns a perm's last and earlier moments, put together from panels of rows."""
    starts = [start for start, _ in panels]
    kinds = [_whole(starts, own) for own in zip(*(x for _, x in panels), strict=True)]
    return kinds[0], kinds[1] if len(kinds) > 1 else None


def _whole(starts: Sequence[int], panels: Sequence[Running]) -> Running:
    first = panels[0]
    *elements, height, units = first.m2.shape
    if height == units:
        return first
    m2 = np.empty((*elements, units, units), first.m2.dtype)
    for start, panel in zip(starts, panels, strict=True):
        m2[..., start : start + height, :] = panel.m2
    return dataclasses.replace(first, m2=m2)


def _positions_per_batch(positions: Positions, batches: Iterable[Any]) -> int | None:
    """Returns how many samples of each batch are read; None: all."""
    check_positions(positions)
    if positions == "all":
        return None
    if positions == "few":
        count = operator.length_hint(batches) * jax.process_count()
        return -(-FEW_SAMPLES // count) if count else None
    return int(positions)


def _planned(
    networks: Networks, batches: Iterable[Any], memory_limit: int | None
) -> list[PassPlan]:
    """Returns the passes over the batches, after checking that these allow them."""
    spec, count = networks.spec, len(networks)
    shapes = {
        perm: (spec.elements(perm) or 1, count * spec.units(perm))
        for perm in spec.perms
    }
    plan = passes(shapes, memory_limit)
    if len(plan) > 1 and iter(batches) is batches:
        raise ValueError(
            f"memory_limit = {memory_limit} takes {len(plan)} passes over the batches, "
            "which can be read only once: pass a list, or an object whose __iter__ "
            "starts again"
        )
    _log.info(
        "collecting moments of %d perms in %d passes, in %.3g MB on each device",
        len(shapes),
        len(plan),
        max(pass_bytes(own, shapes) for own in plan) / 1e6,
    )
    return plan


def _check_finite(moments: Mapping[str, Moments], networks: Networks) -> None:
    num_models = len(networks)
    for perm, moment in moments.items():
        diagonal = np.diagonal(np.asarray(moment.m2), axis1=-2, axis2=-1)
        finite = np.isfinite(diagonal).reshape(
            -1, num_models, diagonal.shape[-1] // num_models
        )
        if not finite.all():
            networks.check_finite()
            guilty = np.flatnonzero(~finite.all((0, 2))).tolist()
            raise ValueError(
                f"the activations of perm {perm!r} are not finite in the models "
                f"{guilty}, though their parameters are: these overflow on the inputs"
            )


def _check_counts(moments: Mapping[str, Moments], networks: Networks) -> None:
    """Checks that there were samples; warns if they are few."""
    few = []
    for perm, moment in moments.items():
        elements = networks.spec.elements(perm) or 1
        count = int(np.asarray(moment.count).sum()) // elements
        if count < 2:
            raise ValueError(
                f"the units of perm {perm!r} were seen in {count} sample: one does not "
                "tell units apart. Pass more inputs"
            )
        if count < networks.spec.units(perm):
            few.append(f"{perm!r} ({count} samples, {networks.spec.units(perm)} units)")
    if few:
        _log.warning(
            "fewer samples than units tell units apart badly: pass more inputs. "
            "This concerns the perms %s",
            ", ".join(few),
        )
    missing = [perm for perm in networks.perms if perm not in moments]
    if missing:
        _log.warning(
            "no value that can be read holds the units of the perms %s: recipes match "
            "them by their weights alone",
            missing,
        )
