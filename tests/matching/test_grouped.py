"""Matches of nested perms against exhaustive searches and planted permutations."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipjax.matching.align import Reference, match_align
from zipjax.matching.grouped import (
    Nest,
    match_grouped_align,
    match_grouped_zip,
    match_nest,
)
from zipjax.matching.identity import match_identity
from zipjax.matching.zipping import match_zip

SEEDS = st.integers(0, 2**32 - 1)
REFERENCES: list[Reference] = ["first", "all"]


def random_similarity(seed, size):
    matrix = np.random.default_rng(seed).uniform(-1, 1, (size, size))
    return (matrix + matrix.T) / 2


def partition(assignment):
    return {frozenset(np.flatnonzero(assignment == k)) for k in set(assignment)}


def shuffled(rng, outer, size):
    """Extend an order of groups by a random order of the units in each of them."""
    return np.concatenate([group * size + rng.permutation(size) for group in outer])


def similarity_of(base, orders, noise=0.0, seed=0):
    """Correlation of units; unit k of model i is base unit orders[i][k], plus noise."""
    rng = np.random.default_rng(seed)
    features = np.concatenate([base[order] for order in orders])
    features = features + noise * rng.normal(size=features.shape)
    return np.asarray(np.corrcoef(features))


def planted(rng, num_models, groups, size):
    """Similarity of noisy, permuted copies, and the base unit of every unit."""
    base = rng.normal(size=(groups * size, 40))
    orders = [shuffled(rng, rng.permutation(groups), size) for _ in range(num_models)]
    return similarity_of(base, orders, 0.1), np.concatenate(orders)


def total_similarity(similarity, num_models, assignment):
    model = np.arange(len(assignment)) // (len(assignment) // num_models)
    together = assignment[:, None] == assignment
    return similarity[together & (model[:, None] < model)].sum()


def check_groups_whole(assignment, num_models, groups, size):
    """All units of a group go to one merged group, one group of every model to each."""
    assert sorted(set(assignment)) == list(range(groups * size))
    merged = assignment.reshape(num_models, groups, size) // size
    np.testing.assert_array_equal(merged, np.repeat(merged[:, :, :1], size, axis=2))
    np.testing.assert_array_equal(
        np.sort(merged[:, :, 0], axis=1), np.tile(np.arange(groups), (num_models, 1))
    )


def grouped_permutations(groups, size):
    inner = list(itertools.permutations(range(size)))
    for outer in itertools.permutations(range(groups)):
        for chosen in itertools.product(inner, repeat=groups):
            yield np.concatenate(
                [g * size + np.array(p) for g, p in zip(outer, chosen, strict=True)]
            )


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.sampled_from([(2, 2), (2, 3), (3, 2), (1, 4), (4, 1)]))
def test_two_models_get_the_best_alignment_that_keeps_groups_whole(seed, shape):
    groups, size = shape
    units = groups * size
    similarity = random_similarity(seed, 2 * units)
    block = similarity[:units, units:]
    best = max(
        block[merged, np.arange(units)].sum()
        for merged in grouped_permutations(groups, size)
    )
    for reference in REFERENCES:
        assignment = match_grouped_align(
            similarity, 2, num_groups=groups, reference=reference
        )
        check_groups_whole(assignment, 2, groups, size)
        np.testing.assert_array_equal(assignment[:units], np.arange(units))
        assert total_similarity(similarity, 2, assignment) == pytest.approx(best)


def test_best_groups_are_not_those_whose_units_look_alike_in_place():
    # Unpermuted, group 0 would go with group 0; its units' best match is in group 1.
    block = np.zeros((4, 4))
    block[0, 0] = block[1, 1] = 0.6
    block[0, 3] = block[1, 2] = block[2, 0] = block[3, 1] = 0.9
    similarity = np.block([[np.eye(4), block], [block.T, np.eye(4)]])
    assignment = match_grouped_align(similarity, 2, num_groups=2)
    np.testing.assert_array_equal(assignment, [0, 1, 2, 3, 2, 3, 1, 0])


def all_matchers(num_models):
    for reference in REFERENCES:
        yield functools.partial(match_grouped_align, reference=reference)
        for alpha, beta in [(1.0, 1.0), (1.0, 0.0), (0.3, 0.5), (0.0, 0.5)]:
            # Pairs alone do not reduce more than two models to the width of one.
            if alpha or num_models == 2:
                yield functools.partial(
                    match_grouped_zip, alpha=alpha, beta=beta, reference=reference
                )


def hard_similarities(num_models, groups, size):
    """Random; with dead units; with duplicates; constant."""
    units = num_models * groups * size
    similarity = random_similarity(num_models, units)
    yield similarity
    dead = similarity.copy()
    dead[::3] = dead[:, ::3] = 0
    yield dead
    copied = np.arange(units) // 2
    yield similarity[np.ix_(copied, copied)]
    yield np.ones((units, units))
    yield np.zeros((units, units))


@pytest.mark.parametrize("num_models", [2, 3, 5])
@pytest.mark.parametrize(("groups", "size"), [(1, 4), (4, 1), (2, 3), (3, 4)])
def test_every_unit_goes_to_one_merged_unit_and_groups_stay_whole(
    num_models, groups, size
):
    for similarity in hard_similarities(num_models, groups, size):
        for matcher in all_matchers(num_models):
            assignment = matcher(similarity, num_models, num_groups=groups)
            assert assignment.shape == (len(similarity),)
            assert assignment.dtype == np.int64
            check_groups_whole(assignment, num_models, groups, size)


@settings(deadline=None, max_examples=5)
@given(SEEDS, st.sampled_from([2, 3]))
def test_permuting_groups_and_units_permutes_the_match(seed, num_models):
    groups, size = 3, 3
    rng = np.random.default_rng(seed)
    similarity = random_similarity(seed, num_models * groups * size)
    models = range(num_models)
    order = np.concatenate(
        [
            model * groups * size + shuffled(rng, rng.permutation(groups), size)
            for model in models
        ]
    )
    permuted = similarity[np.ix_(order, order)]
    for matcher in all_matchers(num_models):
        assignment = matcher(similarity, num_models, num_groups=groups)
        moved = matcher(permuted, num_models, num_groups=groups)
        assert partition(moved) == partition(assignment[order])


@pytest.mark.parametrize("num_models", [3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_with_all_as_reference_the_order_of_models_does_not_matter(num_models, seed):
    groups, size = 3, 4
    units = groups * size
    similarity = random_similarity(seed, num_models * units)
    models = np.random.default_rng(seed).permutation(num_models)
    order = (models[:, None] * units + np.arange(units)).reshape(-1)
    permuted = similarity[np.ix_(order, order)]
    match = functools.partial(match_grouped_align, num_groups=groups, reference="all")
    assignment = match(similarity, num_models)
    assert partition(match(permuted, num_models)) == partition(assignment[order])
    first = match_grouped_align(similarity, num_models, num_groups=groups)
    assert total_similarity(similarity, num_models, assignment) > total_similarity(
        similarity, num_models, first
    )


@pytest.mark.parametrize("num_models", [2, 3])
def test_one_group_and_groups_of_one_unit_are_the_plain_matches(num_models):
    similarity = random_similarity(7, num_models * 6)
    aligned = match_align(similarity, num_models)
    zipped = match_zip(similarity, num_models, alpha=0.5, beta=0.5)
    zip_grouped = functools.partial(match_grouped_zip, alpha=0.5, beta=0.5)
    for matcher, groups, expected in [
        (match_grouped_align, 1, aligned),
        (match_grouped_align, 6, aligned),
        (zip_grouped, 1, zipped),
        (zip_grouped, 6, aligned),
    ]:
        assignment = matcher(similarity, num_models, num_groups=groups)
        np.testing.assert_array_equal(assignment, expected)


@pytest.mark.parametrize("num_models", [2, 3, 5])
def test_planted_permutations_of_groups_and_units_are_found(num_models):
    groups, size = 4, 5
    similarity, base_unit = planted(np.random.default_rng(1), num_models, groups, size)
    for matcher in all_matchers(num_models):
        # A third match of one unit must not be held back by alpha.
        if num_models == 2 or matcher.keywords.get("alpha", 1.0) == 1.0:
            assignment = matcher(similarity, num_models, num_groups=groups)
            assert partition(assignment) == partition(base_unit)


def test_dead_units_are_left_for_last():
    groups, size = 4, 5
    similarity, base_unit = planted(np.random.default_rng(2), 3, groups, size)
    dead = base_unit % size == 0
    similarity[dead] = similarity[:, dead] = 0
    zipped = functools.partial(match_grouped_zip, beta=0.0)
    for matcher in (match_grouped_align, zipped):
        for reference in REFERENCES:
            assignment = matcher(similarity, 3, num_groups=groups, reference=reference)
            assert partition(assignment[~dead]) == partition(base_unit[~dead])
            check_groups_whole(assignment, 3, groups, size)


def test_input_is_left_as_it_was():
    similarity = random_similarity(0, 16).astype(np.float32)
    before = similarity.copy()
    for matcher in all_matchers(2):
        matcher(similarity, 2, num_groups=2)
    np.testing.assert_array_equal(similarity, before)


# Nests of any shape


def units_together(result, num_models, names, sizes):
    """The merged unit of every unit (model, *enclosing, unit), along a chain of perms.

    A merged unit is the tuple of the merged units of the perms from outside inwards.
    """
    merged = {}
    for unit in itertools.product(range(num_models), *map(range, sizes)):
        path = ()
        for name, size, u in zip(names, sizes, unit[1:], strict=True):
            path += (int(result[name][path][unit[0] * size + u]),)
        merged[unit] = path
    numbers = {path: k for k, path in enumerate(sorted(set(merged.values())))}
    return np.array([numbers[path] for path in merged.values()])


def nested_orders(rng, sizes):
    """A random order at every depth that keeps all groups whole."""
    orders = [rng.permutation(sizes[0])]
    for size in sizes[1:]:
        orders.append(shuffled(rng, orders[-1], size))
    return orders


@pytest.mark.parametrize("num_models", [2, 3])
def test_children_share_one_match_of_heads(num_models):
    rng = np.random.default_rng(3)
    heads, keys, values = 5, 3, 4
    # Heads 0 and 1 differ in their values alone, 3 and 4 in their keys alone.
    key_base = rng.normal(size=(heads, keys, 40))
    key_base[1] = key_base[0]
    value_base = rng.normal(size=(heads, values, 40))
    value_base[4] = value_base[3]
    head_orders = [rng.permutation(heads) for _ in range(num_models)]
    key_orders = [shuffled(rng, order, keys) for order in head_orders]
    value_orders = [shuffled(rng, order, values) for order in head_orders]
    key_similarity = similarity_of(key_base.reshape(-1, 40), key_orders, 0.05)
    value_similarity = similarity_of(value_base.reshape(-1, 40), value_orders, 0.05)
    children = (Nest("k", keys, key_similarity), Nest("v", values, value_similarity))
    result = match_nest(
        Nest("heads", heads, None, children), num_models, matcher=match_align
    )
    shapes = {name: found.shape for name, found in result.items()}
    assert shapes == {
        "heads": (num_models * heads,),
        "k": (heads, num_models * keys),
        "v": (heads, num_models * values),
    }
    assert partition(result["heads"]) == partition(np.concatenate(head_orders))
    for name, size, orders in [("k", keys, key_orders), ("v", values, value_orders)]:
        found = units_together(result, num_models, ["heads", name], [heads, size])
        assert partition(found) == partition(np.concatenate(orders))


@pytest.mark.parametrize("seed", range(5))
def test_heads_of_two_children_have_the_largest_sum(seed):
    heads, sizes = 3, (2, 3)
    own = random_similarity(seed, 2 * heads)
    inner = [random_similarity(seed + k, 2 * heads * n) for k, n in enumerate(sizes, 1)]

    def best_inside(similarity, size, g, h):
        a, b = g * size, (heads + h) * size
        block = similarity[a : a + size, b : b + size]
        return max(
            block[p, np.arange(size)].sum()
            for p in map(list, itertools.permutations(range(size)))
        )

    def total(order):
        return sum(
            own[g, heads + h]
            + sum(best_inside(s, n, g, h) for s, n in zip(inner, sizes, strict=True))
            for h, g in enumerate(order)
        )

    children = tuple(Nest(f"child{n}", n, s) for s, n in zip(inner, sizes, strict=True))
    result = match_nest(Nest("heads", heads, own, children), 2, matcher=match_align)
    best = max(itertools.permutations(range(heads)), key=total)
    np.testing.assert_array_equal(result["heads"][heads:], best)


@pytest.mark.parametrize("matcher", [match_align, match_zip])
@pytest.mark.parametrize("reference", REFERENCES)
def test_permutations_nested_three_deep_are_found(matcher, reference):
    rng = np.random.default_rng(4)
    num_models, sizes, names = 3, (3, 2, 4), ["a", "b", "c"]
    orders = [nested_orders(rng, sizes) for _ in range(num_models)]
    base = rng.normal(size=(24, 40))
    leaf = Nest("c", 4, similarity_of(base, [order[2] for order in orders], 0.1))
    nest = Nest("a", 3, None, (Nest("b", 2, None, (leaf,)),))
    group_matcher = functools.partial(match_align, reference=reference)
    result = match_nest(nest, 3, matcher=matcher, group_matcher=group_matcher)
    assert [result[name].shape for name in names] == [(9,), (3, 6), (3, 2, 12)]
    for depth in (1, 2, 3):
        found = units_together(result, 3, names[:depth], sizes[:depth])
        expected = np.concatenate([order[depth - 1] for order in orders])
        assert partition(found) == partition(expected)


def deep_permutations(sizes):
    """Orders of the innermost units that keep the groups of all depths whole."""
    if len(sizes) == 1:
        return [list(p) for p in itertools.permutations(range(sizes[0]))]
    inner = deep_permutations(sizes[1:])
    width = len(inner[0])
    return [
        [g * width + u for g, p in zip(outer, chosen, strict=True) for u in p]
        for outer in itertools.permutations(range(sizes[0]))
        for chosen in itertools.product(inner, repeat=sizes[0])
    ]


@pytest.mark.parametrize("seed", range(5))
def test_three_levels_have_the_largest_sum(seed):
    sizes = (2, 2, 3)
    similarities = [
        random_similarity(seed + k, 2 * int(np.prod(sizes[: k + 1]))) for k in range(3)
    ]
    a, b, c = (s[: len(s) // 2, len(s) // 2 :] for s in similarities)

    def total(order):
        # The groups of a unit's own position and of the one it moves to.
        goes, place = np.array(order), np.arange(12)
        own = c[goes, place].sum()
        middle = b[goes[::3] // 3, place[::3] // 3].sum()
        return own + middle + a[goes[::6] // 6, place[::6] // 6].sum()

    best = max(deep_permutations(sizes), key=total)
    leaf = Nest("c", 3, similarities[2])
    nest = Nest("a", 2, similarities[0], (Nest("b", 2, similarities[1], (leaf,)),))
    result = match_nest(nest, 2, matcher=match_align)
    found = units_together(result, 2, ["a", "b", "c"], sizes)
    np.testing.assert_array_equal(found[12:], best)


def test_identity_needs_no_similarity_and_reads_none():
    for similarity in (None, random_similarity(0, 24)):
        nest = Nest("h", 3, None, (Nest("k", 4, similarity),))
        result = match_nest(
            nest, 2, matcher=match_identity, group_matcher=match_identity
        )
        np.testing.assert_array_equal(result["h"], [0, 1, 2] * 2)
        np.testing.assert_array_equal(result["k"], [[0, 1, 2, 3] * 2] * 3)


def test_a_perm_with_nothing_nested_is_matched_as_it_is():
    similarity = random_similarity(1, 12)
    result = match_nest(Nest("p", 6, similarity), 2, matcher=match_zip)
    assert list(result) == ["p"]
    np.testing.assert_array_equal(result["p"], match_zip(similarity, 2))


LEAF = Nest("k", 2, np.zeros((8, 8)))


@pytest.mark.parametrize(
    ("nest", "options", "message"),
    [
        (Nest("h", 3, None, (LEAF,)), {}, "'k' holds 8 units.*3 groups.*12"),
        (Nest("h", 2, np.full((4, 4), np.nan), (LEAF,)), {}, "'h' has 16 of 16"),
        (Nest("k", 2, None, (LEAF,)), {}, "'k' occurs twice"),
        (Nest("h", 0, None), {}, "'h' has size 0"),
        (
            Nest("h", 2, np.eye(4)[[1, 0, 3, 2]], (LEAF,)),
            {"group_matcher": match_zip},
            "perm 'h'.*one to one",
        ),
    ],
)
def test_a_nest_that_does_not_fit_is_refused(nest, options, message):
    with pytest.raises(ValueError, match=message):
        match_nest(nest, 2, matcher=match_align, **options)


@pytest.mark.parametrize("groups", [0, 4, -2])
def test_groups_must_share_the_units(groups):
    with pytest.raises(ValueError, match=f"num_groups={groups}.*6 units"):
        match_grouped_align(random_similarity(0, 12), 2, num_groups=groups)
