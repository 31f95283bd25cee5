"""Batches of inputs, and averages over them."""

import numpy as np
import pytest

from zipjax.batches import input_batches, plain_average


def test_a_batch_is_its_own_input_or_a_tuple_of_them():
    x, y = np.ones((4, 2)), np.zeros((4,), int)
    assert [len(inputs) for inputs in input_batches([x, (x, y), [x]])] == [1, 2, 1]
    (chosen,) = input_batches([{"image": x, "label": y}], lambda b: (b["image"],))
    assert chosen[0] is x


def test_batches_are_checked_one_by_one():
    stream = input_batches(iter([np.ones((2, 1)), np.full((2, 1), np.nan)]))
    assert next(stream)[0].shape == (2, 1)
    with pytest.raises(ValueError, match="batch 1 holds NaN"):
        next(stream)
    with pytest.raises(ValueError, match="no batches"):
        next(input_batches(iter(())))


def test_averages_are_taken_in_float64():
    # In float32, adding 1 to 2^25 changes nothing.
    values = [np.float32(2**25), *[np.float32(1)] * 3]
    found = plain_average({"a": v, "b": [v * np.ones(2, np.float32)]} for v in values)
    assert found["a"] == (2**25 + 3) / 4
    np.testing.assert_array_equal(found["b"][0], [(2**25 + 3) / 4] * 2)
    assert found["a"].dtype == found["b"][0].dtype == np.float64
