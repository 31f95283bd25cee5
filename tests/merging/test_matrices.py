"""Merge and unmerge matrices: exact identities."""

import itertools

import jax
import numpy as np
import pytest

from zipjax import Axis, Index, Perm, PermutationSpec, merge_matrices
from zipjax.merging import matrices
from zipjax.merging.matrices import merged_units, model_matrices


def shuffled_groups(sizes, seed=0):
    """An assignment with merged units of the given numbers of members."""
    assignment = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).permutation(assignment)


ASSIGNMENTS = {
    **{f"{k} to one": shuffled_groups([k, k, 1], k) for k in range(1, 65)},
    "all sizes": shuffled_groups(range(1, 65)),
    "one unit": np.zeros(9, int),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("assignment", ASSIGNMENTS.values(), ids=ASSIGNMENTS.keys())
def test_identities_hold_exactly(assignment, dtype):
    merge, unmerge = (x.astype(dtype) for x in merge_matrices(assignment, 1))
    units = assignment.max() + 1
    np.testing.assert_array_equal(merge @ unmerge, np.eye(units))
    # In any order of summation.
    order = np.random.default_rng(1).permutation(assignment.size)
    np.testing.assert_array_equal(merge[:, order] @ unmerge[order], np.eye(units))
    np.testing.assert_array_equal(merge.sum(1), np.ones(units))
    np.testing.assert_array_equal(np.cumsum(merge, axis=1)[:, -1], np.ones(units))


@pytest.mark.parametrize("assignment", ASSIGNMENTS.values(), ids=ASSIGNMENTS.keys())
def test_unmerge_is_one_hot_and_merge_averages(assignment):
    merge, unmerge = merge_matrices(assignment, 1)
    assert merge.dtype == unmerge.dtype == np.float32
    one_hot = assignment[:, None] == np.arange(assignment.max() + 1)
    np.testing.assert_array_equal(unmerge, one_hot)
    average = one_hot.T / one_hot.sum(0)[:, None]
    np.testing.assert_allclose(merge, average, rtol=0, atol=2.0**-23)
    np.testing.assert_array_equal(merge > 0, one_hot.T)


def test_matrices_are_made_when_they_are_asked_for(monkeypatch):
    """A large network's are not all in memory at once; small ones are kept."""
    rows = (Axis("a", "in"), Axis("a", "out")), (Axis("b", "in"), Axis("b", "out"))
    spec = PermutationSpec({"v": rows[0], "w": rows[1]}, {"a": Perm(3), "b": Perm(3)})
    assignments = {"a": np.array([0, 1, 2, 2, 0, 0]), "b": np.tile(np.arange(3), 2)}
    kept = model_matrices(assignments, spec, 2)
    assert kept["a"] is kept["a"]
    monkeypatch.setattr(matrices, "_KEPT", 0)
    found = model_matrices(assignments, spec, 2)
    first = found["a"]
    assert first is found["a"]
    assert found["b"][0].shape == (2, 3, 3)
    assert first is not found["a"]
    for x, y in zip(first, found["a"], strict=True):
        np.testing.assert_array_equal(x, y)
    assert found.widths() == {"a": 3, "b": 3}
    assert list(found) == ["a", "b"]


def test_averages_are_as_precise_as_the_users_numbers():
    with jax.enable_x64(True):
        merge, unmerge = merge_matrices(np.array([0, 0, 0, 1, 1, 1, 1]), 1)
        np.testing.assert_allclose(merge[0, :3], 1 / 3, rtol=0, atol=2.0**-52)
        np.testing.assert_array_equal(merge @ unmerge, np.eye(2))
        np.testing.assert_array_equal(merge.sum(1), np.ones(2))


def test_blocks_of_the_models():
    # Two models of three units; merged unit 0 takes two of the second model's.
    spec = PermutationSpec({"w": (Axis("a", "in"), Axis("a", "out"))}, {"a": Perm(3)})
    assignments = {"a": np.array([0, 1, 2, 2, 0, 0])}
    blocks, copies = model_matrices(assignments, spec, 2)["a"]
    third = 1 / 3
    expected = [
        [[third, 0, 0], [0, 1, 0], [0, 0, 0.5]],
        [[0, third, third], [0, 0, 0], [0.5, 0, 0]],
    ]
    np.testing.assert_allclose(blocks, expected, atol=2.0**-23)
    np.testing.assert_array_equal(copies[0], np.eye(3))
    np.testing.assert_array_equal(copies[1], [[0, 0, 1], [1, 0, 0], [1, 0, 0]])


GROUPED = PermutationSpec(
    {
        "w": (Index("layer", 2), None, Axis("head", "out"), Axis("dim", "out")),
        "v": (Index("layer", 2), Axis("head", "in"), Axis("dim", "in"), None),
    },
    {"head": Perm(3, ("layer",)), "dim": Perm(4, ("layer", "head"))},
)


def test_units_in_groups_go_with_their_groups():
    """Row k of a nested assignment is of the groups that were merged to group k."""
    rng, num_models = np.random.default_rng(0), 2
    heads = np.stack(
        [np.concatenate([rng.permutation(3) for _ in range(2)]) for _ in range(2)]
    )
    dims = np.stack(
        [[rng.permutation(np.arange(8) % 5) for _ in range(3)] for _ in range(2)]
    )
    assignments = {"head": heads, "dim": dims}
    matrices = model_matrices(assignments, GROUPED, num_models)
    merge, unmerge = matrices["dim"]
    assert merge.shape == (2, 2, 3, 5, 4)
    assert unmerge.shape == (2, 2, 3, 4, 5)
    flat = merged_units(assignments, GROUPED, "dim", num_models)
    flat = flat.reshape(num_models, 2, 3, 4)
    for model, layer, head in itertools.product(range(2), range(2), range(3)):
        group = heads[layer, 3 * model + head]
        units = dims[layer, group, 4 * model : 4 * model + 4]
        average, copy = merge_matrices(dims[layer, group], num_models)
        own = slice(4 * model, 4 * model + 4)
        np.testing.assert_array_equal(merge[model, layer, head], average[:, own])
        np.testing.assert_array_equal(unmerge[model, layer, head], copy[own])
        expected = (3 * layer + group) * 5 + units
        np.testing.assert_array_equal(flat[model, layer, head], expected)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("assignment", "num_models", "message"),
    [
        (np.zeros((2, 2), int), 2, r"int64 of shape \[2, 2\] for N = 2"),
        (np.zeros(4), 2, r"float64 of shape \[4\]"),
        (np.zeros(5, int), 2, r"shape \[5\] for N = 2"),
        (np.zeros(4, int), 0, "N = 0"),
        (np.array([0, 2, 2, 0]), 2, r"without gaps, but it uses \[0, 2\]"),
        (np.array([1, 2, 2, 1]), 2, r"from 0 .* uses \[1, 2\]"),
        (np.array([-1, 0, 0, 1]), 2, r"uses \[-1, 0, 1\]"),
        ([], 2, "assignment"),
    ],
)
def test_what_is_no_assignment_is_refused(assignment, num_models, message):
    with pytest.raises(ValueError, match=message):
        merge_matrices(assignment, num_models)
