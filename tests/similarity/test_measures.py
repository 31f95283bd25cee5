"""Similarities of weights and of matched units, against dense products in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from zipjax import Axis, Fixed, Index, Perm, PermutationSpec, Product, Sum
from zipjax.merging.matrices import model_matrices
from zipjax.merging.weights import multiply_axes
from zipjax.similarity.measures import (
    WeightSpace,
    device_product,
    matched_similarity,
)
from zipjax.similarity.weight_rows import neighbours, weight_rows
from zipjax.spec.blocks import array_blocks
from zipjax.spec.entries import entry_size

METRICS = ["correlation", "cosine", "inner"]


def axis(perm, role="out"):
    return Axis(perm, role)


# Heads with features of their own, a stream that writes to itself, a concatenation.
HEADS = PermutationSpec(
    {
        "embed": (None, axis("s")),
        "qk": (axis("s", "in"), axis("h"), axis("f")),
        "qk bias": (Product((axis("h"), axis("f"))),),
        "mix": (axis("h", "in"), axis("f", "in"), axis("s")),
        "square": (axis("s", "in"), axis("s")),
        "joined": (Sum((axis("s", "in"), Fixed(2), axis("m", "in"))), None),
        "window": (Fixed(3), axis("s", "in"), axis("m")),
    },
    {"s": Perm(4), "h": Perm(3), "f": Perm(2, ("h",)), "m": Perm(5)},
)
LAYERS = Index("layers", 3)
# Layers stacked for a scan: within each, hidden units and heads have an own order.
STACK = PermutationSpec(
    {
        "embed": (None, axis("s")),
        "up": (LAYERS, axis("s", "in"), axis("m")),
        "up bias": (LAYERS, axis("m")),
        "down": (LAYERS, axis("m", "in"), axis("s")),
        "value": (axis("s", "in"), LAYERS, axis("h"), axis("f")),
        "project": (LAYERS, axis("h", "in"), axis("f", "in"), axis("s")),
        "scales": (LAYERS, axis("s", "in")),
    },
    {
        "s": Perm(4),
        "m": Perm(5, ("layers",)),
        "h": Perm(3, ("layers",)),
        "f": Perm(2, ("layers", "h")),
    },
)
SPECS = {"heads": HEADS, "stack": STACK}


def models_of(spec, count, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        path: [entry_size(entry, spec.sizes) or 3 for entry in entries]
        for path, entries in spec.entries.items()
    }
    return [
        {path: rng.normal(1, 1, shape).astype(np.float32) for path, shape in own}
        for own in [shapes.items()] * count
    ]


def assignments_of(spec, count, seed=0):
    """Random zips, and alignments of units that hold groups."""
    rng = np.random.default_rng(seed)

    def row(perm, size):
        if perm in spec.group_perms:
            return np.concatenate([rng.permutation(size) for _ in range(count)])
        rest = rng.integers(size, size=(count - 1) * size)
        return rng.permutation(np.concatenate([np.arange(size), rest]))

    found = {}
    for perm, size in spec.sizes.items():
        groups = spec.group_sizes(perm)
        rows = [row(perm, size) for _ in range(int(np.prod(groups)))]
        found[perm] = np.reshape(rows, (*groups, count * size))
    return found


def dense_features(models, spec, perm, assignments, *, swapped, once):
    """Every unit's part of all parameters by dense einsums: [elements, units, parts].

    The einsum is that of merging, which has its own tests.
    """
    matrices = model_matrices(assignments, spec, len(models))
    features = []
    for number, model in enumerate(models):
        own = {
            p: (len(models) * m[number], u[number]) for p, (m, u) in matrices.items()
        }
        if swapped:
            own = {
                p: (u.swapaxes(-1, -2), m.swapaxes(-1, -2)) for p, (m, u) in own.items()
            }
        parts = []
        for path, entries in spec.entries.items():
            for block, axes in array_blocks(model[path], entries, spec.sizes):
                tied = [x for x in axes if isinstance(x, Axis)]
                outer = {g for x in tied for g in spec.perms[x.perm].groups}
                share = sum(x.perm not in outer for x in tied)
                for k, entry in enumerate(axes):
                    if not isinstance(entry, Axis) or entry.perm != perm:
                        continue
                    if perm in outer:
                        continue
                    names = [getattr(x, "perm", getattr(x, "name", None)) for x in axes]
                    groups = [names.index(g) for g in spec.perms[perm].groups]
                    rest = [j for j in range(len(axes)) if j not in (*groups, k)]
                    merged = multiply_axes(
                        jnp.asarray(block), axes, spec.perms, own, numbers=rest
                    )
                    order = [*groups, k, *rest]
                    moved = np.float64(merged).transpose(order)
                    rows = moved.reshape(spec.elements(perm) or 1, spec.units(perm), -1)
                    parts.append(rows / share**0.5 if once else rows)
        features.append(np.concatenate(parts, -1))
    return np.concatenate(features, 1)


def compare(features, metric):
    inner = features @ features.T
    scale = np.sqrt(np.diag(inner))
    return {
        "correlation": lambda: np.corrcoef(features),
        "cosine": lambda: inner / scale / scale[:, None],
        "inner": lambda: inner,
    }[metric]()


CASES = [(name, perm) for name, spec in SPECS.items() for perm in spec.perms]


@pytest.mark.parametrize("swapped", [True, False])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("name", "perm"), CASES)
def test_weight_similarity_is_that_of_dense_products(name, perm, metric, swapped):
    spec, once = SPECS[name], metric == "inner"
    models, assignments = models_of(spec, 3), assignments_of(spec, 3)
    options = {"swapped": swapped, "once": once}
    found = zipjax.weight_similarity(
        models, spec, perm, assignments, metric=metric, **options
    )
    if perm == "h":  # Compared by its features alone.
        assert found is None
        return
    features = dense_features(models, spec, perm, assignments, **options)
    expected = [compare(own, metric) for own in features]
    found = found if found.ndim == 3 else found[None]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found, found.swapaxes(1, 2))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("name", "perm"), [c for c in CASES if c[1] != "h"])
def test_matched_weights_are_the_pairs_of_all_similarities(name, perm, metric):
    spec = SPECS[name]
    models, assignments = models_of(spec, 3), assignments_of(spec, 3)
    features = dense_features(models, spec, perm, assignments, swapped=True, once=False)
    rng = np.random.default_rng(1)
    merged = rng.integers(0, 4, features.shape[:2])
    expected = sum(
        compare(own, metric)[i, j]
        for own, units in zip(features, merged, strict=True)
        for i, j in itertools.combinations(range(len(units)), 2)
        if units[i] == units[j]
    )
    rows = weight_rows(models, spec, perm, assignments)
    found = WeightSpace.of(rows, metric).matched(merged)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_parameters_that_the_rest_is_not_matched_for_keep_their_own_space():
    models, assignments = models_of(HEADS, 2), assignments_of(HEADS, 2)
    known = {"m": assignments["m"]}
    found = zipjax.weight_similarity(models, HEADS, "m", known)
    features = np.concatenate(
        [np.r_[own["window"].reshape(12, 5), own["joined"][6:].T] for own in models], 1
    )
    np.testing.assert_allclose(found, np.corrcoef(features.T), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 5000])
@pytest.mark.parametrize("metric", METRICS)
def test_rows_in_chunks_are_rows(rows, metric):
    spec = PermutationSpec(
        {"w": (None, axis("h")), "v": (axis("h", "in"), None)}, {"h": Perm(3)}
    )
    rng = np.random.default_rng(rows)
    models = [
        {"w": rng.normal(3, 1, (rows, 3)), "v": rng.normal(3, 1, (3, 2))}
        for _ in range(2)
    ]
    features = np.concatenate([np.r_[own["w"], own["v"].T].T for own in models])
    models = jax.tree.map(lambda x: x.astype(np.float32), models)
    found = zipjax.weight_similarity(models, spec, "h", {}, metric=metric)
    expected = compare(features, metric)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    merged = np.array([[0, 1, 0, 1, 0, 2]])
    total = WeightSpace.of(weight_rows(models, spec, "h", {}), metric).matched(merged)
    pairs = expected[[0, 0, 2, 1], [2, 4, 4, 3]].sum()
    assert total == pytest.approx(pairs, rel=1e-5, abs=1e-5)


def test_constant_units_are_compared_by_their_means():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1, 50, 6))
    rows[0, :, 1] = rows[0, :, 4] = 0.0
    rows[0, :, 2] = rows[0, :, 5] = 0.7
    # Units 1 and 4, 2 and 5 are one feature each; the others vary.
    expected = np.eye(6)
    for i, j in [(1, 4), (2, 5)]:
        expected[i, j] = expected[j, i] = 1
    varying = np.corrcoef(rows[0, :, [0, 3]])[0, 1]
    expected[0, 3] = expected[3, 0] = varying

    def space():
        return WeightSpace.of([rows.astype(np.float32)], "correlation")

    np.testing.assert_allclose(space().similarity()[0], expected, atol=1e-6)
    for merged in ([0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 0], [0, 1, 1, 2, 2, 0]):
        brute = sum(
            expected[i, j]
            for i, j in itertools.combinations(range(6), 2)
            if merged[i] == merged[j]
        )
        found = space().matched(np.array([merged]))
        assert found == pytest.approx(brute, abs=1e-6)


def test_dead_units_have_no_cosine():
    rows = np.random.default_rng(0).normal(size=(1, 50, 3)).astype(np.float32)
    rows[0, :, 1] = 0
    expected = compare(np.float64(rows[0].T[[0, 2]]), "cosine")
    found = WeightSpace.of([rows], "cosine").similarity()[0]
    np.testing.assert_allclose(found[np.ix_([0, 2], [0, 2])], expected, atol=1e-6)
    np.testing.assert_array_equal(found[1], 0)


@pytest.mark.parametrize("lengths", [(5,), (2048, 2048, 31)])
@pytest.mark.parametrize("units", [4, 600])
def test_products_on_the_device_are_those_of_numpy(lengths, units):
    rng = np.random.default_rng(units)
    parts = [rng.normal(size=(n, units)).astype(np.float32) for n in lengths]
    whole = np.concatenate(parts).astype(np.float64)
    found = device_product(parts)
    np.testing.assert_allclose(found, whole.T @ whole, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("units", [1, 6, 15])
def test_matched_similarity_sums_every_pair_once(units):
    rng = np.random.default_rng(units)
    similarity = rng.normal(size=(units, units))
    similarity += similarity.T
    merged = rng.integers(0, 4, units)
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(units), 2)
        if merged[i] == merged[j]
    ]
    total, count = matched_similarity(similarity, merged)
    assert count == len(pairs)
    assert total == pytest.approx(sum(similarity[pair] for pair in pairs), abs=1e-12)


@pytest.mark.parametrize(("name", "perm"), CASES)
def test_neighbours_are_the_perms_whose_matches_change_the_rows(name, perm):
    spec = SPECS[name]
    models, before = models_of(spec, 2), assignments_of(spec, 2)
    paths = [path for path, _, _ in spec.members(perm)]
    rows = weight_rows(models, spec, perm, before)
    changing = set()
    for other in spec.perms:
        for seed in range(1, 9):  # Some of these may come out as before.
            after = before | {other: assignments_of(spec, 2, seed)[other]}
            again = weight_rows(models, spec, perm, after)
            if any(not np.allclose(a, b) for a, b in zip(rows, again, strict=True)):
                changing.add(other)
    assert neighbours(spec, perm, paths) == changing
