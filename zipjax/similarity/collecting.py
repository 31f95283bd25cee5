"""Collecting moments: one streaming pass over batches, on all local devices."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.batches import InputsOf, input_batches
from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.networks import Networks
from zipjax.program.signatures import signature_of
from zipjax.similarity.activations import Activations, activations, traced_taps
from zipjax.similarity.moments import Moments
from zipjax.spec.depth import Boundary
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.spec.verify import check_any_perms
from zipjax.types import ApplyFn, PyTree

_log = logging.getLogger(__name__)

PermMoments = dict[str, Moments]

# Of a batch in one place: enough to see whether units vary.
_FEW = 64


def collect_moments(
    apply_fn: OneOrEach[ApplyFn],
    models: Sequence[PyTree],
    spec: OneOrEach[PermutationSpec],
    batches: Iterable[Any],
    *,
    inputs_of: InputsOf | None = None,
    stop_at: str | int | None = None,
    devices: Sequence[Any] | None = None,
) -> dict[str, Moments]:
    """Collects the moments of every perm's units, of all models together.

    Units of model i of a perm with n units have the positions [i * n, (i + 1) * n),
    those of a perm nested in groups group by group. All other axes of an activation
    are samples: of an NHWC tensor, every position. Layers that are stacked for a scan
    are read inside it; a batch's activations of all of them are then held at once.

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
      stop_at: where the zip will stop, see :func:`zipjax.merge`: units are then read
        before that, or where they are next, and the moments are for such a zip only.
        For a cut inside a residual stream this is better: a stream's units are not the
        same features at its end. By default all perms are read, as late as possible,
        for any zip.
      devices: devices to share every batch among; all local ones by default. A batch
        whose size they do not divide runs on the largest number of them that does, and
        one with inputs of different lengths (a mask, a raw PRNG key) on one.

    Returns:
      ``{perm: Moments}`` in float32 or better, in depth order. Perms that lie on no
      value that can be read are left out: recipes match them by their weights.

    Raises:
      ValueError: if the models or the spec do not fit together, if there are no
        batches, if a batch is empty or holds NaN, if activations are not finite, or if
        units were seen in one sample alone.
    """
    functions = each(apply_fn, len(models), "functions")
    networks = Networks.of(models, spec, stop_at)
    check_any_perms(networks.spec)
    if not networks.perms:
        raise ValueError(
            "stop_at = 0 zips nothing, so that no moments are needed: merge by "
            "zipjax.average()"
        )
    own = tuple(devices or jax.local_devices())
    collector = _Collector(functions, networks, own, stops=stop_at is not None)
    for arrays in input_batches(batches, inputs_of):
        collector.add(arrays)
    moments = collector.result()
    _check_finite(moments, networks)
    _check_counts(moments, networks)
    return moments


class _Collector:
    """Running moments: for each number of devices in use, one set per device."""

    def __init__(
        self,
        functions: Sequence[ApplyFn],
        networks: Networks,
        devices: tuple[Any, ...],
        *,
        stops: bool,
    ) -> None:
        self._networks, self._devices, self._functions = networks, devices, functions
        trunk = stops or len(set(networks.specs)) > 1
        self._perms = networks.perms if trunk else None
        self._ends = (networks.boundaries if trunk else ()) or (None,) * len(networks)
        self._source = networks.source(stops)
        self._step = _step_of(
            one_or_each(functions), one_or_each(networks.specs), self._perms, self._ends
        )
        self._states: dict[int, tuple[PermMoments, list[PyTree]]] = {}

    def add(self, arrays: tuple[Any, ...]) -> None:
        """Adds a batch, shared among as many devices as divide it."""
        count = _num_shares(arrays, len(self._devices))
        shards = jax.tree_util.tree_map(lambda x: _shares(x, count), arrays)
        one_share = jax.tree_util.tree_map(lambda x: x[0], shards)
        self._trace(one_share)
        replicate, step = _parallel(self._step, self._devices[:count])
        if count not in self._states:
            # The parameters are copied to every device once, not with every batch.
            start = self._empty(one_share), list(self._networks.trees)
            self._states[count] = replicate(np.zeros(count), start)
        state, models = self._states[count]
        self._states[count] = step(state, models, shards), models

    def result(self) -> PermMoments:
        """Returns the moments of all batches, merged over the devices."""
        shards = [
            jax.tree_util.tree_map(lambda x, k=k: jnp.asarray(x[k]), host)
            for count, (state, _) in sorted(self._states.items())
            for host in [jax.device_get(state)]
            for k in range(count)
        ]
        return {
            perm: dataclasses.replace(
                functools.reduce(_merge, (shard[perm] for shard in shards)).rounded(),
                source=self._source,
            )
            for perm in shards[0]
        }

    def _trace(self, inputs: tuple[Any, ...]) -> None:
        """Traces the models outside of the compiled step, which finds the result."""
        networks = self._networks
        for function, spec, end, tree in zip(
            self._functions, networks.specs, self._ends, networks.trees, strict=True
        ):
            shapes = signature_of(tree), signature_of(inputs)
            traced_taps(function, spec, self._perms, end, *shapes)

    def _empty(self, inputs: tuple[Any, ...]) -> PermMoments:
        """Returns the moments of no samples, as those of two batches are laid out."""

        def twice(models: list[PyTree], arrays: tuple[Any, ...]) -> PermMoments:
            new = self._step(models, arrays)
            return {perm: _merge(own, own) for perm, own in new.items()}

        layout = jax.eval_shape(twice, list(self._networks.trees), inputs)
        return jax.tree_util.tree_map(lambda x: np.zeros(x.shape, x.dtype), layout)


def _num_shares(arrays: tuple[Any, ...], most: int) -> int:
    """Returns the largest number of devices that a batch can be shared among."""
    leaves = jax.tree_util.tree_leaves(arrays)
    sizes = {jnp.shape(x)[0] for x in leaves if jnp.ndim(x)}
    if len(sizes) != 1:
        return 1
    (size,) = sizes
    return max(k for k in range(1, most + 1) if size % k == 0)


def _shares(x: Any, count: int) -> Any:
    """Returns an input as ``[devices, ...]``; what has no batch axis is repeated."""
    if not jnp.ndim(x):
        return jnp.stack([x] * count)
    if count == 1:
        return x[None]
    return x.reshape(count, -1, *x.shape[1:])


Step = Callable[[list[PyTree], tuple[Any, ...]], PermMoments]


@functools.lru_cache(maxsize=16)
def _step_of(
    apply_fn: OneOrEach[ApplyFn],
    spec: OneOrEach[PermutationSpec],
    perms: tuple[str, ...] | None,
    ends: tuple[Boundary | None, ...],
) -> Step:
    """Returns the function of one batch's moments, the same one between calls."""
    return functools.partial(_batch_moments, apply_fn, spec, perms, ends)


@functools.lru_cache(maxsize=16)
def _parallel(
    batch_moments: Step, devices: tuple[Any, ...]
) -> tuple[Callable[..., Any], Callable[..., PermMoments]]:
    """Returns a function that copies a pytree to the devices, and the step they run.

    Kept between calls, so that the same network is compiled once.
    """

    def step(
        state: PermMoments, models: list[PyTree], inputs: tuple[Any, ...]
    ) -> PermMoments:
        new = batch_moments(models, inputs)
        return {perm: _merge(state[perm], new[perm]) for perm in state}

    replicate = jax.pmap(lambda _, tree: tree, in_axes=(0, None), devices=devices)
    return replicate, jax.pmap(step, devices=devices, donate_argnums=0)


def _batch_moments(
    apply_fn: OneOrEach[ApplyFn],
    spec: OneOrEach[PermutationSpec],
    perms: tuple[str, ...] | None,
    ends: tuple[Boundary | None, ...],
    models: list[PyTree],
    inputs: tuple[Any, ...],
) -> PermMoments:
    """Returns the moments of one device's share of a batch."""
    functions = each(apply_fn, len(models), "functions")
    specs = each(spec, len(models), "specs")
    found = [
        activations(function, model, own, inputs, perms, end)
        for function, model, own, end in zip(
            functions, models, specs, ends, strict=True
        )
    ]
    return {
        perm: _moments(_side_by_side(perm, [own[perm] for own in found]), specs[0])
        for perm in found[0]
    }


def _moments(read: Activations, spec: PermutationSpec) -> Moments:
    """Returns the moments of all models' activations of a perm."""
    return (
        jax.vmap(_element_moments)(read)
        if spec.elements(read.perm)
        else (_element_moments(jax.tree_util.tree_map(lambda x: x[0], read)))
    )


def _element_moments(read: Activations) -> Moments:
    """Returns the moments of ``[places, samples, units]``."""
    places = sum(x.shape[0] for x in read.earlier)
    earlier = [Moments.of(x[:, :: _stride(places, x.shape[1])]) for x in read.earlier]
    if all(x.shape[0] == 1 for x in read.last):
        last = Moments.of(jnp.concatenate([x[0] for x in read.last]))
    else:
        last = Moments.pooled([Moments.of(x) for x in read.last])
    before = Moments.pooled(earlier) if earlier else None
    return dataclasses.replace(last, earlier=before)


def _stride(places: int, samples: int) -> int:
    """Returns the step between samples that are taken in each of several places.

    All places together are to cost as much as one, with enough samples in each. The
    step divides no number of columns, so that all positions of an image are seen.
    """
    step = max(1, min(places, samples // _FEW))
    while math.gcd(step, samples) > 1:
        step += 1
    return step


def _merge(left: Moments, right: Moments) -> Moments:
    """Merges the moments of a perm; of perms nested in an index, those of each."""
    return (jax.vmap(Moments.merge) if left.m2.ndim == 3 else Moments.merge)(
        left, right
    )


def _side_by_side(perm: str, read: Sequence[Activations]) -> Activations:
    shapes = {tuple(x.shape[:-1] for x in (*own.last, *own.earlier)) for own in read}
    if len(shapes) > 1:
        raise ValueError(
            f"the units of perm {perm!r} are read at positions of the shapes "
            f"{sorted(shapes)} of one batch in the models: their functions do not read "
            "them alike. Let every head read the trunk's output, and resize after its "
            "first layer"
        )
    return jax.tree_util.tree_map(lambda *x: jnp.concatenate(x, axis=-1), *read)


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
        count = int(np.sum(moment.count)) // elements
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
