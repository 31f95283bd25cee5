"""Moments against numpy in float64."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zipjax
from tests.networks import relative_error
from zipjax import Moments
from zipjax.similarity import running

# Compiling for new shapes takes time; the examples are the same in every run.
FEW = settings(max_examples=20, deadline=None, derandomize=True, database=None)


def samples_of(count, units, mean=0.0, seed=0, dtype=np.float32):
    """Correlated samples with units of different scales."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(units, units)) * rng.uniform(0.5, 2, units)
    x = rng.normal(size=(count, units)) @ mix
    return np.asarray(x + mean * x.std(0), dtype)


def moments_of(batches, units):
    return functools.reduce(Moments.update, batches, Moments.empty(units))


def check(moments, samples):
    """Compares with numpy in float64 on all samples at once."""
    x = np.asarray(samples, np.float64)
    mean = np.asarray(moments.mean, np.float64) + np.asarray(moments.mean_tail)
    covariance = np.cov(x.T, bias=True).reshape(x.shape[1], -1)
    deviation = np.sqrt(np.diag(covariance))
    assert moments.count == len(x)
    assert np.abs((mean - x.mean(0)) / deviation).max() < 1e-5
    assert relative_error(moments.covariance(), covariance) < 1e-5
    assert relative_error(moments.deviation(), deviation) < 1e-5
    if x.shape[1] > 1:
        correlation = np.corrcoef(x.T)
        assert np.abs(moments.correlation() - correlation).max() < 1e-5


@FEW
@given(
    cuts=st.lists(st.integers(1, 39), unique=True, max_size=8),
    mean=st.sampled_from([0.0, 1.0, -1000.0, 1000.0]),
    seed=st.integers(0, 100),
)
def test_any_split_into_batches_gives_what_numpy_gives(cuts, mean, seed):
    samples = samples_of(40, 3, mean, seed)
    check(moments_of(np.split(samples, sorted(cuts)), 3), samples)


@pytest.mark.parametrize("batch", [1, 7, 250, 2000])
def test_a_mean_a_thousand_times_the_deviation_loses_nothing(batch):
    samples = samples_of(2000, 5, mean=1000)
    moments = Moments.empty(5)
    update = jax.jit(Moments.update)
    for first in range(0, 2000, batch):
        moments = update(moments, samples[first : first + batch])
    check(moments, samples)


@jax.jit
def one_by_one(moments, samples):
    """Adds every sample on its own."""

    def add(state, sample):
        return state.update(sample[None]), None

    return jax.lax.scan(add, moments, samples)[0]


def test_many_small_updates_do_not_drift():
    # A plain sum of float32 is 2e-4 off by then, and grows with every sample.
    samples = 3 + np.random.default_rng(0).normal(size=(2**19, 2)).astype(np.float32)
    moments = one_by_one(Moments.empty(2), samples)
    expected = np.cov(np.float64(samples).T, bias=True)
    assert relative_error(moments.covariance(), expected) < 2e-6
    assert relative_error(moments.mean, samples.mean(0, np.float64)) < 1e-6


def test_counts_do_not_stall():
    """From 2^24 on, a float32 plus 1 is itself."""
    samples = samples_of(1000, 2)
    zeros = jnp.zeros(2)
    many = Moments(jnp.float32(2**24), zeros, zeros, 2.0**24 * jnp.eye(2))
    both = one_by_one(many.merge(Moments.empty(2)), samples)
    assert both.count == 2**24 + 1000
    x = np.float64(samples)
    total = 2.0**24 * np.eye(2) + x.T @ x - np.outer(x.sum(0), x.sum(0)) / both.count
    assert relative_error(both.m2, total) < 1e-7


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_inputs_accumulate_in_float32(dtype):
    samples = jnp.asarray(samples_of(3000, 4, mean=3), dtype)
    moments = moments_of(jnp.split(samples, 6), 4)
    leaves = jax.tree.leaves(moments)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    # The samples, rounded as they are, lose nothing more.
    check(moments, np.asarray(samples, np.float64))


@FEW
@given(
    order=st.permutations(range(4)),
    parts=st.tuples(*[st.integers(0, 5)] * 4),
    mean=st.sampled_from([0.0, 1000.0]),
)
def test_merge_is_associative_and_commutative(order, parts, mean):
    samples = samples_of(2 + sum(parts), 3, mean)
    ends = list(itertools.accumulate((2 + parts[0], *parts[1:3])))
    pieces = [moments_of([x], 3) for x in np.split(samples, ends) if len(x)]
    pieces += [Moments.empty(3)] * (4 - len(pieces))
    a, b, c, d = (pieces[k] for k in order)
    for merged in (
        a.merge(b).merge(c).merge(d),
        a.merge(b.merge(c.merge(d))),
        a.merge(b).merge(c.merge(d)),
    ):
        check(merged, samples)


def test_empty_is_neutral_and_finite():
    empty = Moments.empty(3)
    np.testing.assert_array_equal(empty.covariance(), np.zeros((3, 3)))
    np.testing.assert_array_equal(empty.correlation(), np.eye(3))
    both = empty.merge(empty)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, both, empty)))
    some = empty.update(samples_of(9, 3))
    for merged in (some.merge(empty), empty.merge(some)):
        check(merged, samples_of(9, 3))


def test_one_sample_has_no_spread():
    moments = Moments.empty(2).update(np.float32([[3.5, -1e6]]))
    np.testing.assert_array_equal(moments.covariance(), np.zeros((2, 2)))
    np.testing.assert_array_equal(moments.correlation(), np.eye(2))


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1234.5, -1e-30, 7e7])
def test_a_constant_unit_has_no_correlation_and_no_nan(value):
    samples = samples_of(600, 3)
    samples[:, 1] = value
    moments = moments_of(np.split(samples, [5, 100, 333]), 3)
    correlation = np.asarray(moments.correlation())
    expected = np.eye(3)
    expected[0, 2] = expected[2, 0] = np.corrcoef(samples[:, [0, 2]].T)[0, 1]
    np.testing.assert_allclose(correlation, expected, atol=1e-5)
    assert moments.deviation()[1] == 0


def test_units_of_one_constant_are_one_feature():
    samples = samples_of(600, 5)
    samples[:, 1] = samples[:, 3] = 0.1
    samples[:, 4] = 0.2
    moments = moments_of(np.split(samples, [5, 100, 333]), 5)
    correlation = np.asarray(moments.correlation())
    expected = np.eye(5)
    expected[1, 3] = expected[3, 1] = 1
    expected[0, 2] = expected[2, 0] = np.corrcoef(samples[:, [0, 2]].T)[0, 1]
    np.testing.assert_allclose(correlation, expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e12])
def test_correlations_do_not_depend_on_the_scale(scale):
    samples = samples_of(500, 4)
    samples[:, :2] *= np.float32(scale)
    found = moments_of([samples], 4).correlation()
    expected = np.corrcoef(samples.astype(np.float64).T)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_correlations_of_copies_and_opposites_are_one_at_most():
    x = samples_of(300, 2, mean=5)
    moments = moments_of([np.concatenate([x, -2 * x, x / 3], axis=1)], 6)
    correlation = np.asarray(moments.correlation())
    signs = np.tile([[1.0, 0, -1, 0, 1, 0], [0, 1, 0, -1, 0, 1]], (3, 1))
    signs[2:4] *= -1
    np.testing.assert_allclose(correlation * (signs != 0), signs, atol=1e-6)
    assert np.abs(correlation).max() == 1
    np.testing.assert_array_equal(correlation, correlation.T)


def test_float64_is_kept_where_the_user_enabled_it():
    samples = samples_of(50, 2, mean=1e6, dtype=np.float64)
    with jax.enable_x64(True):
        moments = moments_of(np.split(samples, 5), 2)
        assert moments.covariance().dtype == jnp.float64
        check(moments, samples)
        expected = np.cov(samples.T, bias=True)
        assert relative_error(moments.covariance(), expected) < 1e-9


@pytest.mark.parametrize(
    "other", [Moments.empty(3, "models a"), Moments.empty(4, "models b")]
)
def test_moments_of_different_models_do_not_combine(other):
    moments = Moments.empty(3, "models b")
    with pytest.raises(ValueError, match=r"3 units of models b .* do not combine"):
        moments.merge(other)


def test_moments_are_a_pytree():
    samples = samples_of(20, 3)
    moments = jax.jit(lambda m, x: m.update(x))(Moments.empty(3, "source"), samples)
    assert moments.source == "source"
    check(jax.tree.map(lambda leaf: leaf + 0, moments), samples)


def within_places(places):
    """Numpy's covariance of units around the mean that they have in each place."""
    centred = [np.asarray(x, np.float64) - np.mean(x, 0, np.float64) for x in places]
    joined = np.concatenate(centred)
    return joined.T @ joined / len(joined)


def read_in_places(batches):
    """Moments of batches, each with the samples in every place."""
    sums = None
    for batch in batches:
        parts = [[jnp.asarray(x)[None]] for x in batch]
        if sums is None:
            shapes = jax.eval_shape(lambda x: jax.tree.map(lambda y: y[None], x), parts)
            empty = running.nothing(shapes)
            sums = jax.tree.map(lambda x: x[0], empty)
        sums = running.with_batch(sums, parts, 0)
    return running.as_moments(jax.device_get(sums), None, None)


@pytest.mark.parametrize("batches", [1, 3])
def test_units_read_in_several_places_have_a_mean_in_each(batches):
    places = [
        samples_of(90, 4, mean=mean, seed=seed) for seed, mean in enumerate((0, 50))
    ]
    moments = read_in_places(zip(*(np.split(x, batches) for x in places), strict=True))
    assert moments.mean.shape == (2, 4)
    expected = within_places(places)
    assert relative_error(moments.covariance(), expected) < 1e-5
    deviation = np.sqrt(np.diag(expected))
    correlation = expected / np.outer(deviation, deviation)
    np.testing.assert_allclose(moments.correlation(), correlation, atol=1e-5)


def test_constant_units_have_no_second_moment():
    constant = np.float32([0.1, -3.3, 1e6 / 7])
    moments = read_in_places([[np.tile(constant, (1000, 1))]])
    np.testing.assert_array_equal(moments.m2, np.zeros((3, 3)))
    np.testing.assert_array_equal(moments.mean, constant)


def test_places_may_have_different_numbers_of_samples():
    places = [samples_of(50, 3, seed=1), samples_of(20, 3, mean=5, seed=2)]
    moments = read_in_places([places])
    assert moments.count.tolist() == [50, 20]
    assert relative_error(moments.covariance(), within_places(places)) < 1e-5


def test_units_that_are_constant_here_are_told_apart_by_earlier_places():
    """Units 1 to 4 are constant at the tap; 4 is constant everywhere, like 5."""
    here, before = samples_of(200, 6, seed=3), samples_of(200, 6, seed=4)
    here[:, 1:] = 0
    before[:, 4:] = 0
    moments = dataclasses.replace(Moments.of(here), earlier=Moments.of(before))
    expected = np.eye(6)
    expected[1:4, 1:4] = np.corrcoef(before[:, 1:4].T)
    expected[4, 5] = expected[5, 4] = 1
    np.testing.assert_allclose(moments.correlation(), expected, atol=1e-5)
    # Where units vary, earlier places do not count.
    alive = dataclasses.replace(moments, earlier=Moments.of(samples_of(200, 6)))
    again = dataclasses.replace(Moments.of(samples_of(200, 6, seed=3)), earlier=alive)
    np.testing.assert_allclose(
        again.correlation(), np.corrcoef(samples_of(200, 6, seed=3).T), atol=1e-5
    )


def test_moments_of_the_elements_of_an_index_are_compared_each_on_its_own():
    samples = np.stack([samples_of(60, 3, seed=seed) for seed in range(4)])
    moments = jax.vmap(Moments.of)(samples)
    found = zipjax.activation_similarity(moments)
    expected = np.stack([np.corrcoef(x.T) for x in samples])
    np.testing.assert_allclose(found, expected, atol=1e-5)
