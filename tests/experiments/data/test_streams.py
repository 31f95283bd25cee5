"""Batches from the background: in order, resumable, from threads and processes."""

import functools
import threading
import time

import jax
import numpy as np
import pytest

from experiments.data.streams import Reader, on_device, streamed

BATCHES = [np.arange(start, start + 3) for start in range(0, 30, 3)]


def doubled(numbers):
    return 2 * numbers, numbers


def failing(numbers):
    if 9 in numbers:
        raise ValueError("shard 3, record 9, cannot be decoded")
    return numbers


def test_threads_keep_the_order():
    late = threading.Event()

    def load(numbers):
        if numbers[0] == 0:
            late.wait(5)  # The first batch is ready after the second.
        late.set()
        return numbers

    found = list(streamed(load, BATCHES, Reader(threads=4)))
    np.testing.assert_array_equal(found, BATCHES)


def test_no_more_is_read_ahead_than_asked_for():
    loaded = []
    stream = streamed(lambda x: loaded.append(x) or x, BATCHES, Reader(threads=2))
    next(stream)
    next(stream)
    time.sleep(0.2)
    assert len(loaded) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_was(workers):
    reading = Reader(workers)
    stream = streamed(doubled, BATCHES, reading)
    before = [next(stream) for _ in range(4)]
    state = stream.get_state()
    after = list(stream)
    np.testing.assert_array_equal([x for _, x in [*before, *after]], BATCHES)
    np.testing.assert_array_equal([x for x, _ in after], 2 * np.array(BATCHES[4:]))
    resumed = streamed(doubled, BATCHES, reading)
    resumed.set_state(state)
    np.testing.assert_array_equal(list(resumed), after)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_told_when_it_is_due(workers):
    stream = streamed(failing, BATCHES, Reader(workers))
    for _ in range(3):
        next(stream)
    with pytest.raises(ValueError, match="shard 3, record 9"):
        next(stream)


def test_the_next_batch_is_on_the_device_before_one_is_used():
    sent = []

    def put(batch):
        sent.append(batch)
        return jax.device_put(batch)

    batches = on_device(iter(BATCHES), put)
    first = next(batches)
    assert isinstance(first, jax.Array)
    assert len(sent) == 2
    np.testing.assert_array_equal([first, *batches], BATCHES)
    assert list(on_device([])) == []


def test_loading_may_be_a_partial_function():
    load = functools.partial(np.add, 1)
    found = list(streamed(load, BATCHES, Reader()))
    np.testing.assert_array_equal(found, np.array(BATCHES) + 1)
