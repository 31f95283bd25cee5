"""Batches of inputs, checked one by one, and averages over them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zipjax import hosts
from zipjax.arguments import check_callable, shown
from zipjax.trees import is_deleted, is_finite
from zipjax.types import PyTree

InputsOf = Callable[[Any], Any]
"""Maps a batch to a function's inputs: one array, or a tuple of positional inputs."""


def input_batches(
    batches: Iterable[Any], inputs_of: InputsOf | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yields every batch's inputs as a tuple, checked; batches are read as asked for.

    Args:
      batches: an iterable of batches; every batch is read once.
      inputs_of: maps a batch to the inputs of a function, whose leading axis is the
        batch. By default a batch is its own input, or a tuple of inputs. Inputs without
        a batch axis (PRNG keys, masks) may be among them.

    Raises:
      ValueError: if there are no batches, or one array or mapping in place of them, or
        if one has no leading axis, is empty, holds NaN, infinity or what is no array,
        or is a mapping and ``inputs_of`` does not say what to read of it.
    """
    if inputs_of is not None:
        check_callable("inputs_of", inputs_of)
    if (shape := getattr(batches, "shape", None)) is not None:
        raise ValueError(
            f"batches are one array of shape {list(shape)}, whose examples would be "
            "taken for batches: pass a list of batches, [array] for one"
        )
    if isinstance(batches, Mapping | str) or not isinstance(batches, Iterable):
        raise ValueError(
            f"batches are {shown(batches)}: pass a list of batches, or another "
            "iterable such as a data loader"
        )
    number = -1
    for number, batch in enumerate(batches):
        if inputs_of is None and isinstance(batch, Mapping):
            raise ValueError(
                f"batch {number} is {shown(batch)}: choose the inputs, such as "
                f"inputs_of=lambda batch: batch[{next(iter(batch), 'image')!r}]; for "
                "a function of the whole, inputs_of=lambda batch: batch"
            )
        arrays = batch if inputs_of is None else inputs_of(batch)
        arrays = tuple(arrays) if isinstance(arrays, (tuple, list)) else (arrays,)
        arrays = _as_arrays(number, arrays)
        _check_inputs(number, arrays)
        yield arrays
    if number < 0:
        raise ValueError(
            "no batches: at least one batch of inputs is needed (an iterator that was "
            "used before is empty)"
        )


def spread(arrays: PyTree, devices: Sequence[Any] | None = None) -> PyTree:
    """Returns inputs that lie on several devices, shared along their first axis.

    A compiled function that reads them runs on all of these devices, and its results
    are those of the whole batch. Inputs that have no batch axis, or one that the number
    of devices does not divide, lie on all devices as a whole; so does everything if
    there is but one. Arrays that are shared among devices already stay as they are.

    Args:
      arrays: one batch's inputs.
      devices: the devices; all local ones by default.
    """
    chosen = list(devices or jax.local_devices())
    if len(chosen) == 1:
        return arrays
    sizes = {jnp.shape(x)[0] for x in jax.tree_util.tree_leaves(arrays) if jnp.ndim(x)}
    shared = len(sizes) == 1 and not next(iter(sizes)) % len(chosen)

    def put(x: Any) -> Any:
        if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
            return x
        axes = ("batch",) if shared and jnp.ndim(x) else ()
        return jax.device_put(x, device_sharding(tuple(chosen), *axes))

    return jax.tree_util.tree_map(put, arrays)


def replicated(leaf: Any) -> Any:
    """Returns an array that all local devices hold as a whole."""
    devices = tuple(jax.local_devices())
    if len(devices) == 1:
        return leaf
    return jax.device_put(leaf, device_sharding(devices))


def device_sharding(devices: tuple[Any, ...], *axes: str) -> jax.sharding.NamedSharding:
    """Returns how arrays lie on devices: as a whole on each, or shared among them.

    Args:
      devices: the devices.
      *axes: "batch" if the first axis is shared.
    """
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def sample_average(measured: Iterable[tuple[PyTree, PyTree]]) -> PyTree:
    """Returns the average over samples of pytrees of arrays, in float64 on the host.

    Under ``jax.distributed`` it is that over the samples of all processes.

    Args:
      measured: one pair or more: arrays, which should be small, such as the statistics
        of one batch, and the number of samples behind each of them. All have one
        structure; the numbers may stand for whole branches of it.
    """
    totals, structure = hosts.together(lambda: _weighted_sums(measured))
    named = {str(number): total for number, total in enumerate(totals)}
    sums = list(hosts.total(named).values())
    total, count = jax.tree_util.tree_unflatten(structure, sums)
    return _times(jax.tree_util.tree_map(np.reciprocal, count), total)


def _weighted_sums(
    measured: Iterable[tuple[PyTree, PyTree]],
) -> tuple[list[np.ndarray], Any]:
    """Returns the sums of values times counts and of counts, flattened."""
    totals: PyTree = None
    for values, counts in measured:
        pair = _times(*jax.device_get((counts, values))), jax.device_get(counts)
        wide = jax.tree_util.tree_map(np.float64, pair)
        totals = (
            wide if totals is None else jax.tree_util.tree_map(np.add, totals, wide)
        )
    return jax.tree_util.tree_flatten(totals)


def _times(factors: PyTree, values: PyTree) -> PyTree:
    """Returns values times factors, which may stand for whole branches of values."""

    def branch(factor: Any, part: PyTree) -> PyTree:
        return jax.tree_util.tree_map(lambda x: np.float64(factor) * x, part)

    return jax.tree_util.tree_map(branch, factors, values)


def _as_arrays(number: int, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns inputs with those of other frameworks, on the host, as numpy's arrays."""

    def array(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float):
            return leaf
        if not hasattr(leaf, "__array__"):
            raise _no_array(number, leaf)
        try:
            return np.asarray(leaf)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _no_array(number, leaf) from error

    return jax.tree_util.tree_map(array, inputs)


def _no_array(number: int, leaf: Any) -> ValueError:
    return ValueError(
        f"batch {number} holds {shown(leaf)}, which is no array: pass arrays of numpy "
        "or JAX (of a PyTorch tensor, tensor.detach().cpu().numpy()), or choose the "
        "inputs with inputs_of="
    )


def _check_inputs(number: int, arrays: tuple[Any, ...]) -> None:
    leaves = jax.tree_util.tree_leaves(arrays)
    sizes = [jnp.shape(leaf)[0] for leaf in leaves if jnp.ndim(leaf)]
    if not sizes or 0 in sizes:
        raise ValueError(
            f"batch {number} has inputs of shapes {[jnp.shape(x) for x in leaves]}: at "
            "least one needs a leading batch axis, of size 1 or more. Use inputs_of= "
            "to select a batch's inputs"
        )
    for leaf in leaves:
        if is_deleted(leaf):
            raise ValueError(
                f"batch {number} was deleted, most likely donated to a compiled "
                "function: pass a copy, or arrays of numpy"
            )
        # Not numpy's own: bfloat16 is none of its kinds.
        inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        if inexact and not is_finite(leaf):
            raise ValueError(
                f"batch {number} holds NaN or infinity: clean the data first"
            )
