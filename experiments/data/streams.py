"""Batches that are made before they are needed, in the background."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

# Batches that wait on the device while another one is computed with.
_WAITING = 1


@dataclasses.dataclass(frozen=True)
class Reader:
    """How examples are read that are not in memory.

    Attributes:
      workers: processes that read and decode; 0: threads of this one, which works
        everywhere and is enough unless decoding keeps one Python process busy.
      threads: of each process, every one with a batch of its own that it has ready.
    """

    workers: int = 0
    threads: int = 4


def streamed(
    load: Callable[[np.ndarray], Any], batches: Sequence[np.ndarray], reading: Reader
) -> grain.DatasetIterator[Any]:
    """Loads batches in order, in the background.

    Args:
      load: makes a batch from the numbers of its examples; is pickled for workers.
      batches: the numbers of every batch's examples.
      reading: how they are read.

    Returns:
      An iterator whose ``get_state()`` and ``set_state(state)`` save the place that it
      has reached, and go on from there; it does not depend on the number of threads.
    """
    options = grain.ReadOptions(
        num_threads=reading.threads, prefetch_buffer_size=reading.threads
    )
    dataset = grain.MapDataset.source(batches).map(load).to_iter_dataset(options)
    if reading.workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own in workers.
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers=reading.workers)
        dataset = dataset.mp_prefetch(workers)
    return iter(dataset)


def on_device(
    batches: Iterable[Any], put: Callable[[Any], Any] = jax.device_put
) -> Iterator[Any]:
    """Yields batches on the device; the next is sent there before one is used.

    Args:
      batches: pytrees of arrays.
      put: sends one without waiting for it; to share a batch among devices, pass
        :func:`zipjax.batches.spread`.
    """
    waiting: collections.deque[Any] = collections.deque()
    for batch in batches:
        waiting.append(put(batch))
        if len(waiting) > _WAITING:
            yield waiting.popleft()
    yield from waiting
