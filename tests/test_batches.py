"""Batches of inputs, and averages over them."""

import jax.numpy as jnp
import numpy as np
import pytest

from zipjax.batches import input_batches, sample_average


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
    found = sample_average(
        ({"a": v, "b": [v * np.ones(2, np.float32)]}, {"a": 1, "b": 1}) for v in values
    )
    assert found["a"] == (2**25 + 3) / 4
    np.testing.assert_array_equal(found["b"][0], [(2**25 + 3) / 4] * 2)
    assert found["a"].dtype == found["b"][0].dtype == np.float64


def test_samples_count_alike_in_batches_of_any_size():
    x = np.random.default_rng(0).normal(size=(1025, 3))
    parts = [x[k : k + 256] for k in range(0, 1025, 256)]
    found = sample_average(({"a": x.mean(0)}, len(x)) for x in parts)
    np.testing.assert_allclose(found["a"], x.mean(0), rtol=1e-12)


def test_an_array_is_not_a_list_of_batches():
    with pytest.raises(ValueError, match=r"one array of shape \[4, 2\].*\[array\]"):
        next(input_batches(np.ones((4, 2))))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64, complex])
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_nan_is_found_in_any_precision(make, dtype):
    x = make(np.array([[1, np.nan]]).astype(dtype))
    with pytest.raises(ValueError, match="batch 0 holds NaN"):
        next(input_batches([x]))
