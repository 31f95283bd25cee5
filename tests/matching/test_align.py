"""The one-to-one matchers: align and identity."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipjax.matching.align import match_align
from zipjax.matching.identity import match_identity

MATCHERS = [match_align, match_identity]


def random_similarity(seed, size):
    return np.random.default_rng(seed).uniform(-1, 1, (size, size))


def total_similarity(block, permutation):
    """Sum over units of model i of the similarity with the unit each is sent to."""
    return sum(block[merged, unit] for unit, merged in enumerate(permutation))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(1, 5))
def test_align_finds_the_best_permutation_of_every_model(seed, num_models, units):
    similarity = random_similarity(seed, num_models * units)
    blocks = match_align(similarity, num_models).reshape(num_models, units)
    np.testing.assert_array_equal(blocks[0], np.arange(units))
    for model in range(1, num_models):
        block = similarity[:units, model * units : (model + 1) * units]
        best = max(
            total_similarity(block, permutation)
            for permutation in itertools.permutations(range(units))
        )
        assert sorted(blocks[model]) == list(range(units))
        assert total_similarity(block, blocks[model]) == pytest.approx(best, abs=1e-12)


def test_align_undoes_a_permutation():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 50))
    order = np.array([3, 0, 5, 1, 4, 2])
    similarity = np.corrcoef(np.vstack([features, features[order]]))
    # Unit k of model 1 is a copy of unit order[k] of model 0.
    np.testing.assert_array_equal(
        match_align(similarity, 2), np.concatenate([np.arange(6), order])
    )


def test_align_reads_rows_of_the_first_model():
    # Transposed, the blocks would be matched the other way round.
    similarity = np.zeros((6, 6))
    similarity[0, 4] = similarity[1, 5] = similarity[2, 3] = 1
    np.testing.assert_array_equal(match_align(similarity, 2), [0, 1, 2, 2, 0, 1])


def matched_total(similarity, num_models, assignment):
    """Sum of the similarities of matched units over all pairs of models."""
    model = np.arange(len(assignment)) // (len(assignment) // num_models)
    together = assignment[:, None] == assignment
    return similarity[together & (model[:, None] < model)].sum()


def partition(assignment):
    return {frozenset(np.flatnonzero(assignment == k)) for k in set(assignment)}


def reordered(models, units):
    """Index of every unit when the models are given in another order."""
    return (np.asarray(models)[:, None] * units + np.arange(units)).reshape(-1)


def symmetric(seed, size):
    matrix = random_similarity(seed, size)
    return (matrix + matrix.T) / 2


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(2, 5), (3, 20), (5, 12), (8, 8)]))
def test_align_with_all_does_not_depend_on_the_order_of_models(seed, shape):
    num_models, units = shape
    similarity = symmetric(seed, num_models * units)
    assignment = match_align(similarity, num_models, reference="all")
    np.testing.assert_array_equal(assignment[:units], np.arange(units))
    total = matched_total(similarity, num_models, assignment)
    for first in range(num_models):
        models = [first, *(m for m in range(num_models) if m != first)]
        order = reordered(models, units)
        permuted = similarity[np.ix_(order, order)]
        moved = match_align(permuted, num_models, reference="all")
        assert partition(moved) == partition(assignment[order])
        aligned = match_align(permuted, num_models)
        assert total >= matched_total(permuted, num_models, aligned) - 1e-9


@pytest.mark.parametrize("units", [3, 4])
@pytest.mark.parametrize("seed", range(8))
def test_align_with_all_finds_the_best_match_of_three_related_models(seed, units):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(units, 20))
    features = [base + 1.5 * rng.normal(size=base.shape) for _ in range(3)]
    similarity = np.corrcoef(np.concatenate(features))
    permutations = [np.array(p) for p in itertools.permutations(range(units))]
    best = max(
        matched_total(similarity, 3, np.concatenate([np.arange(units), p, q]))
        for p, q in itertools.product(permutations, repeat=2)
    )
    assignment = match_align(similarity, 3, reference="all")
    assert matched_total(similarity, 3, assignment) == pytest.approx(best, abs=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_align_with_all_leaves_no_model_that_fits_better_otherwise(seed):
    num_models, units = 4, 4
    similarity = symmetric(seed, num_models * units)
    assignment = match_align(similarity, num_models, reference="all")
    total = matched_total(similarity, num_models, assignment)
    for model in range(num_models):
        for permutation in itertools.permutations(range(units)):
            changed = assignment.copy()
            changed[model * units : (model + 1) * units] = permutation
            assert matched_total(similarity, num_models, changed) <= total + 1e-9


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_for_two_models_both_references_are_the_same(seed, units):
    similarity = symmetric(seed, 2 * units)
    np.testing.assert_array_equal(
        match_align(similarity, 2, reference="all"), match_align(similarity, 2)
    )


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1 / 3])
def test_align_with_all_ends_on_ties(value):
    similarity = np.full((40, 40), value)
    assignment = match_align(similarity, 5, reference="all").reshape(5, 8)
    np.testing.assert_array_equal(np.sort(assignment), np.tile(np.arange(8), (5, 1)))


def test_align_with_all_needs_symmetry_and_a_known_reference(untyped):
    with pytest.raises(ValueError, match="symmetric matrix is needed"):
        match_align(random_similarity(0, 6), 3, reference="all")
    with pytest.raises(ValueError, match=r"reference='best'.*'first'.*'all'"):
        match_align(symmetric(0, 6), 3, reference="best")  # pyright: ignore


def test_identity_sends_unit_k_to_merged_unit_k():
    assignment = match_identity(random_similarity(0, 6), 3)
    np.testing.assert_array_equal(assignment, [0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matchers_return_int64_and_leave_their_input(matcher, dtype):
    similarity = random_similarity(1, 8).astype(dtype)
    before = similarity.copy()
    assignment = matcher(similarity, 2)
    assert assignment.dtype == np.int64
    assert assignment.shape == (8,)
    np.testing.assert_array_equal(similarity, before)


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize(
    ("similarity", "num_models", "message"),
    [
        (np.zeros((4, 6)), 2, r"shape \(4, 6\).*square"),
        (np.zeros(4), 2, r"shape \(4,\).*square"),
        (np.zeros((6, 6)), 4, "6 units.*num_models=4"),
        (np.zeros((0, 0)), 2, "0 units.*num_models=2"),
        (np.zeros((6, 6)), 0, "num_models=0.*needs a model"),
        (np.full((4, 4), np.nan), 2, "16 of 16 entries.*NaN"),
        (np.diag([1, 1, 1, np.inf]), 2, "1 of 16 entries"),
        (np.zeros((4, 4), complex), 2, "complex128.*real"),
    ],
)
def test_matchers_refuse_what_is_no_similarity(
    matcher, similarity, num_models, message
):
    with pytest.raises(ValueError, match=message):
        matcher(similarity, num_models)
