"""The greedy zip against full rescans and exhaustive searches of small cases."""

import functools
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zipjax.matching.inputs import asymmetry, symmetric_copy
from zipjax.matching.zip_rules import AcrossModels, most_pairs
from zipjax.matching.zipping import match_zip

ALPHAS = st.sampled_from([1.0, 0.5, 0.25, 1e-4, 0.0]) | st.floats(0, 1)
BETAS = st.sampled_from([1.0, 0.5, 0.125, 0.0]) | st.floats(0, 1)
SEEDS = st.integers(0, 2**32 - 1)


def within_budget(size, num_models, beta, num_units):
    return int(((size - num_units) // num_models) * beta + 1e-4)


def random_similarity(seed, size):
    matrix = np.random.default_rng(seed).uniform(-1, 1, (size, size))
    return (matrix + matrix.T) / 2


def partition(assignment):
    return {frozenset(np.flatnonzero(assignment == k)) for k in set(assignment)}


# Exhaustive searches: what can be reached at all. A unit is (label, bit set of models,
# whether it may be merged); a state is the units and the merges spent on each label.


def next_states(units, spent, budget, pairs_only):
    for j, (label_j, models_j, open_j) in enumerate(units):
        for i, (label, models, open_i) in enumerate(units[:j]):
            within = label == label_j
            refused = within and spent[label] == budget if budget else models & models_j
            if refused or not (open_i and open_j):
                continue
            rest = [unit for k, unit in enumerate(units) if k not in (i, j)]
            merged = (label, models | models_j, not pairs_only)
            paid = [s + (within and k == label) for k, s in enumerate(spent)]
            yield tuple(sorted([*rest, merged])), tuple(paid)


@functools.cache
def smallest_width(num_models, units, budget, pairs_only):
    start = tuple((m, 1 << m, True) for m in range(num_models) for _ in range(units))
    states = {(start, (0,) * num_models)}
    while True:
        after = {s for state in states for s in next_states(*state, budget, pairs_only)}
        if not after:
            return len(next(iter(states))[0])
        states = after


@functools.cache
def can_finish(units, spent, budget, pairs_only, num_units):
    return len(units) == num_units or any(
        can_finish(*state, budget, pairs_only, num_units)
        for state in next_states(units, spent, budget, pairs_only)
    )


@pytest.mark.parametrize(
    ("num_models", "units"),
    [(1, 4), (2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (4, 2)],
)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_width_is_refused_exactly_if_no_merges_reach_it(num_models, units, alpha):
    size = num_models * units
    similarity = random_similarity(0, size)
    for beta in (0.0, 0.3, 0.5, 0.75, 1.0):

        def reachable(width, beta=beta):
            budget = within_budget(size, num_models, beta, width)
            return smallest_width(num_models, units, budget, alpha == 0) <= width

        for num_units in range(1, size + 1):
            options = {"alpha": alpha, "beta": beta, "num_units": num_units}
            if reachable(num_units):
                assignment = match_zip(similarity, num_models, **options)
                assert set(assignment) == set(range(num_units))
                continue
            least = next(w for w in range(num_units, size + 1) if reachable(w))
            with pytest.raises(ValueError, match="cannot be reached") as error:
                match_zip(similarity, num_models, **options)
            assert f"the smallest width that can is {least}." in str(error.value)
            match_zip(similarity, num_models, **{**options, "num_units": least})


@functools.cache
def most_pairs_by_search(singles, budget):
    best = 0
    for a in range(len(singles)):
        for b in range(a, len(singles)):
            left = [count - (k == a) - (k == b) for k, count in enumerate(singles)]
            paid = [count - (a == b == k) for k, count in enumerate(budget)]
            if min(left) >= 0 and min(paid) >= 0:
                best = max(best, 1 + most_pairs_by_search(tuple(left), tuple(paid)))
    return best


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=2, max_size=4)
)
def test_most_pairs_is_what_a_search_finds(models):
    singles, budget = zip(*models, strict=True)
    assert most_pairs(dict(enumerate(singles)), dict(enumerate(budget))) == (
        most_pairs_by_search(singles, budget)
    )


# The rule of match_zip, one full rescan a merge.


class RescanningZip:
    """Full rescans of a matrix that shrinks, as the reference does."""

    def __init__(self, similarity, num_models, alpha, beta, num_units):
        size = len(similarity)
        self.sims = similarity.copy()
        self.banned = np.eye(size, dtype=bool)
        self.labels = np.repeat(np.arange(num_models), size // num_models)
        self.members = [[k] for k in range(size)]
        self.models = [1 << label for label in self.labels.tolist()]
        self.spent = [0] * num_models
        self.budget = within_budget(size, num_models, beta, num_units)
        self.alpha, self.num_units = alpha, num_units
        self.refused = self.dead_ends = 0

    def run(self):
        while len(self.sims) > self.num_units:
            # Row-major order, so that a stable sort leaves the first of ties in front.
            pairs = np.argwhere(~self.banned)
            order = np.argsort(-self.sims[~self.banned], kind="stable")
            chosen = next((p for p in pairs[order].tolist() if self.allowed(*p)), None)
            if chosen is None:
                self.dead_ends += 1
                self.banned = np.eye(len(self.sims), dtype=bool)
                self.ban_spent_labels()
            else:
                self.merge(*chosen)
        return {frozenset(members) for members in self.members}

    def allowed(self, i, j):
        """Regimes with look-ahead: whether the width can be reached afterwards."""
        if self.alpha and self.budget:
            return True
        if self.budget == 0 and self.models[i] & self.models[j]:
            return False
        label, within = self.labels[i], self.labels[i] == self.labels[j]
        if self.budget and within and self.spent[label] == self.budget:
            return False
        single = [len(members) == 1 for members in self.members]
        units = [
            (int(label), models, bool(self.alpha) or alone)
            for label, models, alone in zip(
                self.labels, self.models, single, strict=True
            )
        ]
        if not (units[i][2] and units[j][2]):
            return False
        units[i] = (units[i][0], units[i][1] | units[j][1], bool(self.alpha))
        del units[j]
        spent = list(self.spent)
        spent[label] += bool(within)
        state = tuple(sorted(units)), tuple(spent)
        finishes = can_finish(*state, self.budget, self.alpha == 0, self.num_units)
        self.refused += not finishes
        return finishes

    def merge(self, i, j):
        row = np.minimum(self.sims[i], self.sims[j]) * self.alpha
        self.sims[i] = self.sims[:, i] = row
        row = self.banned[i] | self.banned[j]
        self.banned[i] = self.banned[:, i] = row
        self.members[i] += self.members.pop(j)
        self.models[i] |= self.models.pop(j)
        self.spent[self.labels[i]] += int(self.labels[i] == self.labels[j])
        self.labels = np.delete(self.labels, j)
        self.sims = np.delete(np.delete(self.sims, j, 0), j, 1)
        self.banned = np.delete(np.delete(self.banned, j, 0), j, 1)
        self.ban_spent_labels()

    def ban_spent_labels(self):
        for label, spent in enumerate(self.spent):
            if self.budget and spent == self.budget:
                self.banned |= np.outer(self.labels == label, self.labels == label)


@st.composite
def zips(draw, max_models=4, max_size=8):
    """A similarity, full of ties or of none, with settings that are reachable."""
    num_models = draw(st.integers(2, max_models))
    units = draw(st.integers(1, max_size // num_models))
    size = num_models * units
    if draw(st.booleans()):
        quarters = draw(arrays(np.int64, (size, size), elements=st.integers(-4, 4)))
        similarity = (np.tril(quarters) + np.tril(quarters, -1).T) / 4
    else:
        similarity = random_similarity(draw(SEEDS), size)
    alpha, beta = draw(ALPHAS), draw(BETAS)
    least = smallest_reachable(num_models, units, alpha, beta)
    num_units = draw(st.integers(least, size))
    return similarity, num_models, alpha, beta, num_units


def smallest_reachable(num_models, units, alpha, beta):
    """By the rules that the exhaustive test above confirms."""
    size = num_models * units
    if alpha == 0:
        return size - size // 2
    widths = range(1, size + 1)
    return next(
        w for w in widths if w >= units - within_budget(size, num_models, beta, w)
    )


@settings(deadline=None, max_examples=300)
@given(zips())
def test_zip_is_a_full_rescan_on_small_matrices(case):
    similarity, num_models, alpha, beta, num_units = case
    expected = RescanningZip(*case).run()
    assignment = match_zip(
        similarity, num_models, alpha=alpha, beta=beta, num_units=num_units
    )
    assert partition(assignment) == expected


@pytest.mark.parametrize("alpha", [1.0, 0.5, 1e-4])
@pytest.mark.parametrize("shift", [0.0, -0.5, -1.0])
@pytest.mark.parametrize("steps", [None, 8])
def test_zip_is_a_full_rescan_on_larger_matrices(alpha, shift, steps):
    for seed in range(4):
        similarity = random_similarity(seed, 60) + shift
        if steps:
            similarity = np.round(similarity * steps) / steps
        expected = RescanningZip(similarity, 3, alpha, 0.5, 20).run()
        assignment = match_zip(similarity, 3, alpha=alpha, beta=0.5, num_units=20)
        assert partition(assignment) == expected


@pytest.mark.parametrize(("num_models", "units"), [(2, 4), (3, 2)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_zip_is_a_full_rescan_where_most_pairs_tie(num_models, units, alpha, beta):
    least = smallest_reachable(num_models, units, alpha, beta)
    for seed in range(20):
        similarity = np.round(random_similarity(seed, num_models * units) * 3) / 3
        # Merged units that alpha raises are better than what was the best before.
        similarity -= seed % 3 / 2
        case = similarity, num_models, alpha, beta, least
        assignment = match_zip(
            similarity, num_models, alpha=alpha, beta=beta, num_units=least
        )
        assert partition(assignment) == RescanningZip(*case).run()


@pytest.mark.parametrize(
    ("units", "beta", "num_units"),
    [pytest.param(3, 0.0, 3, id="across"), pytest.param(6, 0.75, 3, id="labels")],
)
def test_zip_is_a_full_rescan_where_that_meets_dead_ends(units, beta, num_units):
    refused = dead_ends = 0
    for seed in range(60):
        similarity = random_similarity(seed, 3 * units)
        # Budgets that are spent before models are merged leave the least room.
        similarity += np.kron(np.eye(3), np.full((units, units), 3.0))
        oracle = RescanningZip(similarity, 3, 0.5, beta, num_units)
        expected = oracle.run()
        refused += oracle.refused
        dead_ends += oracle.dead_ends
        assignment = match_zip(similarity, 3, alpha=0.5, beta=beta, num_units=num_units)
        assert partition(assignment) == expected
    # Or else the seeds would test nothing.
    assert (refused if beta == 0 else dead_ends) > 10


# Properties that hold for any setting.


@settings(deadline=None, max_examples=300)
@given(st.integers(2, 4), st.integers(1, 8), ALPHAS, BETAS, SEEDS, st.data())
def test_every_unit_lands_in_one_merged_unit_or_the_width_is_refused(
    num_models, units, alpha, beta, seed, data
):
    size = num_models * units
    num_units = data.draw(st.integers(1, size))
    similarity = random_similarity(seed, size)
    before = similarity.copy()
    options = {"alpha": alpha, "beta": beta}
    try:
        assignment = match_zip(similarity, num_models, num_units=num_units, **options)
    except ValueError as error:
        stated = re.search(r"smallest width that can is (\d+)\.", str(error))
        num_units_stated = int(stated[1])
        assert num_units_stated > num_units
        num_units = num_units_stated
        assignment = match_zip(similarity, num_models, num_units=num_units, **options)
    np.testing.assert_array_equal(similarity, before)
    assert assignment.dtype == np.int64
    assert assignment.shape == (size,)
    check_numbering(assignment, num_units)
    check_limits(assignment, num_models, alpha, beta, num_units)


def check_numbering(assignment, num_units):
    """Merged units are all used, in the order of their smallest member."""
    merged, first = np.unique(assignment, return_index=True)
    np.testing.assert_array_equal(merged, np.arange(num_units))
    assert np.all(np.diff(first) > 0)


def check_limits(assignment, num_models, alpha, beta, num_units):
    """What alpha and beta promise about merged units."""
    size = len(assignment)
    models = np.repeat(np.arange(num_models), size // num_models)
    counts = np.zeros((num_units, num_models), dtype=int)
    np.add.at(counts, (assignment, models), 1)
    budget = within_budget(size, num_models, beta, num_units)
    if alpha == 0:
        assert counts.sum(1).max() <= 2
        # Pairs within a model are the merges that its budget pays for.
        assert (counts == 2).sum(0).max() <= budget
    if budget == 0:
        assert counts.max() <= 1
    # Model 0 is the first label of every merged unit that it is in: units of it meet
    # only by merges that its budget pays for.
    assert (counts[:, 0] - 1).clip(0).sum() <= budget


@settings(deadline=None, max_examples=60)
@given(zips(max_models=3, max_size=12), SEEDS)
def test_zip_does_not_depend_on_the_order_of_units_within_a_model(case, seed):
    _, num_models, alpha, beta, num_units = case
    size = len(case[0])
    similarity = random_similarity(seed, size)
    # Similarities that differ also after alpha: no merged unit ties with another.
    options = {"alpha": max(alpha, 0.01) if alpha else 0.0, "beta": beta}
    blocks = np.arange(size).reshape(num_models, -1)
    order = np.random.default_rng(seed).permuted(blocks, axis=1).ravel()
    plain = match_zip(similarity, num_models, num_units=num_units, **options)
    moved = match_zip(
        similarity[np.ix_(order, order)], num_models, num_units=num_units, **options
    )
    assert partition(moved) == partition(plain[order])


@pytest.mark.parametrize("num_models", [2, 3, 4])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_identical_copies_match_copy_to_copy(num_models, alpha):
    own = random_similarity(5, 9) * 0.4
    np.fill_diagonal(own, 1)
    similarity = np.tile(own, (num_models, num_models))
    np.testing.assert_array_equal(
        match_zip(similarity, num_models, alpha=alpha),
        np.tile(np.arange(9), num_models),
    )


def similarity_of(size, **entries):
    """A symmetric matrix from entries such as ``s01=0.5``; -1 elsewhere."""
    matrix = np.full((size, size), -1.0)
    for name, value in entries.items():
        i, j = int(name[1]), int(name[2])
        matrix[i, j] = matrix[j, i] = value
    return matrix


def test_alpha_multiplies_negative_similarities_as_the_reference_does():
    # Once 0 and 2 are merged, 1 is at -0.9 * 0.1 from them: closer than -0.5 from 3.
    similarity = similarity_of(4, s02=0.9, s01=-0.9, s12=-0.9, s13=-0.5)
    np.testing.assert_array_equal(match_zip(similarity, 2, alpha=0.1), [0, 0, 0, 1])
    np.testing.assert_array_equal(match_zip(similarity, 2, alpha=1.0), [0, 1, 0, 1])


def test_alpha_0_never_matches_a_merged_unit_again():
    # All units are alike, but unit 2 is left over when 0 and 1 have merged.
    similarity = similarity_of(4, s01=0.9, s02=0.8, s12=0.8, s03=0.1, s13=0.1, s23=0.1)
    np.testing.assert_array_equal(match_zip(similarity, 2, alpha=0.9), [0, 0, 0, 1])
    np.testing.assert_array_equal(match_zip(similarity, 2, alpha=0.0), [0, 0, 1, 1])


def test_beta_0_merges_no_two_units_of_a_model():
    similarity = similarity_of(4, s01=0.9, s23=0.9, s03=0.2, s12=0.1)
    np.testing.assert_array_equal(match_zip(similarity, 2, beta=1.0), [0, 0, 1, 1])
    np.testing.assert_array_equal(match_zip(similarity, 2, beta=0.0), [0, 1, 1, 0])


def test_beta_0_passes_over_merges_that_lead_to_a_dead_end():
    # The three best pairs are of models 0+1, 0+2 and 1+2: merged, they fit into no two
    # units. The third is passed over.
    similarity = similarity_of(6, s02=0.9, s14=0.8, s35=0.7)
    assignment = match_zip(similarity, 3, beta=0.0, alpha=0.5)
    np.testing.assert_array_equal(assignment, [0, 1, 0, 1, 1, 0])
    assignment = match_zip(similarity, 3, beta=0.0, alpha=0.5, num_units=3)
    np.testing.assert_array_equal(assignment, [0, 1, 0, 2, 1, 2])


def test_a_spent_budget_keeps_apart_what_its_units_are_merged_into():
    # Model 1 spends its budget of 1 on 3 and 4, which then merge with 0. Unit 5 would
    # be next, at -0.05, if 3 and 5 were not forbidden; what is left is 1, at -0.09.
    near = {"s34": 0.9, "s03": 0.8, "s04": 0.8}
    far = {"s35": -0.9, "s45": -0.9, "s01": -0.9, "s02": -0.9}
    rest = {"s05": -0.5, "s12": -0.5, "s15": -0.5, "s25": -0.5}
    similarity = similarity_of(6, **near, **far, **rest)
    assignment = match_zip(similarity, 2, alpha=0.1)
    np.testing.assert_array_equal(assignment, [0, 0, 1, 0, 0, 2])


def test_slots_are_exchanged_to_bring_two_kinds_together():
    rule = AcrossModels([1, 2, 4, 8], units=2, width=2)
    assert rule.merge(1, 2) == 3
    assert rule.merge(4, 8) == 12
    # Whichever slots these two are in, one of the next two pairs is in no slot yet.
    assert rule.admits(3, 4)
    assert rule.admits(12, 1)
    assert not rule.admits(3, 2)


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2), st.randoms())
def test_the_witness_holds_every_unit_once(num_models, units, spare, random):
    width = min(units + spare, units * num_models)
    kinds = [1 << model for model in range(num_models)]
    rule = AcrossModels(kinds, units, width)
    present = kinds * units
    while len(present) > width:
        a, b = random.sample(present, 2)
        if not rule.admits(a, b):
            continue
        present.remove(a)
        present.remove(b)
        present.append(rule.merge(a, b))
        slots = list(rule.slots.elements())
        assert len(slots) == width
        assert sorted(kind for slot in slots for kind in slot) == sorted(present)
        for slot in slots:
            assert sum(slot) == functools.reduce(int.__or__, slot, 0)


def test_num_units_is_one_models_width_by_default():
    similarity = random_similarity(2, 12)
    np.testing.assert_array_equal(
        match_zip(similarity, 3), match_zip(similarity, 3, num_units=4)
    )
    np.testing.assert_array_equal(match_zip(similarity, 3, num_units=12), np.arange(12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, r"alpha = -0\.1.*\[0, 1\]"),
        ({"alpha": np.nan}, r"alpha = nan.*\[0, 1\]"),
        ({"beta": 1.5}, r"beta = 1\.5.*\[0, 1\]"),
        ({"num_units": 0}, "num_units=0.*3 models of 2 units.*1 to 6"),
        ({"num_units": 7}, "num_units=7.*3 models of 2 units.*1 to 6"),
        (
            {"num_units": 1, "beta": 0.0},
            r"num_units=1 cannot.*beta=0\.0.*that can is 2\. Pass num_units=2 .*beta$",
        ),
        (
            {"alpha": 0.0},
            r"num_units=2 cannot.*alpha=0\.0.*that can is 3\. .*raise alpha above 0$",
        ),
    ],
)
def test_zip_refuses_settings_with_a_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        match_zip(random_similarity(0, 6), 3, **options)


@pytest.mark.parametrize(
    ("similarity", "num_models", "message"),
    [
        (np.zeros((4, 6)), 2, r"shape \(4, 6\).*square"),
        (np.zeros((6, 6)), 4, "6 units.*num_models=4"),
        (np.zeros((6, 6)), 0, "num_models=0.*needs a model"),
        (np.full((4, 4), np.nan), 2, "16 of 16 entries.*NaN"),
        (np.triu(np.ones((4, 4))), 2, "transpose differ by up to 1 .*symmetric"),
    ],
)
def test_zip_refuses_what_is_no_similarity(similarity, num_models, message):
    with pytest.raises(ValueError, match=message):
        match_zip(similarity, num_models)


@pytest.mark.parametrize("size", [1, 128, 129, 300])
def test_a_symmetric_copy_is_the_mean_with_the_transpose(size):
    similarity = random_similarity(4, size)
    similarity *= 1 + 1e-6 * np.random.default_rng(5).normal(size=(size, size))
    np.testing.assert_array_equal(
        symmetric_copy(similarity), (similarity + similarity.T) / 2
    )


@pytest.mark.parametrize("place", [(0, 1), (5, 299), (299, 140), (131, 130)])
def test_asymmetry_is_the_largest_difference_of_mirrored_entries(place):
    matrices = np.stack([random_similarity(4, 300), random_similarity(5, 300)])
    assert asymmetry(matrices) == 0
    matrices[1][place] += 0.25
    assert asymmetry(matrices) == pytest.approx(0.25)
    matrices[0][place] = np.nan
    assert np.isnan(asymmetry(matrices))


def test_zip_takes_a_matrix_that_is_symmetric_up_to_rounding():
    similarity = random_similarity(3, 300)
    rounded = similarity.astype(np.float32)
    rounded[np.tril_indices(300)] *= np.float32(1 + 1e-6)
    before = rounded.copy()
    np.testing.assert_array_equal(match_zip(rounded, 2), match_zip(similarity, 2))
    np.testing.assert_array_equal(rounded, before)


@pytest.mark.parametrize("num_models", [2, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_similarity_that_may_be_written_to_gives_the_same(num_models, alpha, beta):
    rng = np.random.default_rng(num_models)
    similarity = np.corrcoef(rng.normal(size=(num_models * 40, 30)))
    before = similarity.copy()
    # Pairs alone do not make three models as narrow as one.
    settings = {"alpha": alpha, "beta": beta, "num_units": 20 * num_models}
    expected = match_zip(similarity, num_models, **settings)
    np.testing.assert_array_equal(similarity, before)
    found = match_zip(similarity, num_models, **settings, overwrite=True)
    np.testing.assert_array_equal(found, expected)


def test_read_only_similarities_are_copied():
    similarity = np.eye(4)[::-1]
    similarity.flags.writeable = False
    assert match_zip(similarity, 2, overwrite=True).tolist() == [0, 1, 1, 0]


def test_matching_in_place_takes_no_second_matrix():
    size = 2000
    similarity = np.corrcoef(np.random.default_rng(0).normal(size=(size, 50)))
    tracemalloc.start()
    match_zip(similarity, 2, overwrite=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * similarity.nbytes
