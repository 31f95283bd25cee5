"""Several processes (hosts) under ``jax.distributed``: what they exchange.

Every process calls these functions in the same order, as with any collective. With a
single process nothing is exchanged.
"""

import functools
import io
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")


def gathered(arrays: Arrays) -> list[dict[str, np.ndarray]]:
    """Returns the arrays of every process, in the order of these, bit for bit.

    For small arrays: every process receives all of them.

    Args:
      arrays: by name, which hold no null character; shapes may differ by process.
    """
    if jax.process_count() == 1:
        return [dict(arrays)]
    return [_unpacked(data) for data in _gathered_bytes(_packed(arrays))]


def total(arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns the sums of small arrays over all processes, in the order of these."""
    everywhere = gathered(arrays)
    return {name: np.sum([own[name] for own in everywhere], axis=0) for name in arrays}


def summed(array: np.ndarray) -> np.ndarray:
    """Returns the sum of an array over all processes, by an all-reduce; writeable.

    Args:
      array: of one shape and dtype in all processes.
    """
    if jax.process_count() == 1:
        return array
    mesh = _one_device_each()
    split = NamedSharding(mesh, PartitionSpec("hosts"))
    with jax.enable_x64(True):  # Or float64 would be summed as float32.
        parts = jax.make_array_from_process_local_data(split, np.asarray(array)[None])
        return np.array(_sum_over_hosts(mesh)(parts).addressable_data(0))


def together(work: Callable[[], T]) -> T:
    """Returns what this process computes, unless that failed in any of the processes.

    No process then waits for one that has given up.

    Raises:
      ValueError: in all processes, if there was one in any.
    """
    if jax.process_count() == 1:
        return work()
    message, found = "", None
    try:
        found = work()
    except ValueError as error:
        message = str(error)
    text = np.frombuffer(message.encode(), np.uint8)
    for number, own in enumerate(gathered({"error": text})):
        if own["error"].size:
            found = own["error"].tobytes().decode()
            raise ValueError(f"process {number}: {found}")
    return cast(T, found)


def once(make: Callable[[], Arrays]) -> dict[str, np.ndarray]:
    """Returns arrays that the first process makes, in all of them.

    Raises:
      ValueError: in all processes, if making them raised one.
    """
    first = jax.process_index() == 0
    return gathered(together(lambda: make() if first else {}))[0]


def _packed(arrays: Arrays) -> bytes:
    stream = io.BytesIO()
    names = np.frombuffer("\0".join(arrays).encode(), np.uint8)
    np.savez(stream, names, *map(np.asarray, arrays.values()), allow_pickle=False)
    return stream.getvalue()


def _unpacked(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        names, *values = (stored[f"arr_{k}"] for k in range(len(stored.files)))
    text = names.tobytes().decode()
    return dict(zip(text.split("\0") if values else [], values, strict=True))


def _gathered_bytes(data: bytes) -> list[bytes]:
    # Takes long to import, which a single process should not wait for.
    from jax.experimental import multihost_utils

    gather = multihost_utils.process_allgather
    sizes = np.asarray(gather(np.array([len(data)], np.int32))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(gather(padded)).reshape(len(sizes), -1)
    return [row[:n].tobytes() for row, n in zip(rows, sizes.tolist(), strict=True)]


def _one_device_each() -> Mesh:
    first: dict[int, Any] = {}
    for device in jax.devices():
        first.setdefault(device.process_index, device)
    return Mesh(np.array([first[k] for k in sorted(first)]), ("hosts",))


@functools.cache
def _sum_over_hosts(mesh: Mesh) -> Callable[[Any], Any]:
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda x: x.sum(0), out_shardings=whole)
