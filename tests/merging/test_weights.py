"""Merged weights against dense matrices in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import block_diag

import zipjax
from tests.networks import dense_params, dense_spec, relative_error
from zipjax import (
    Axis,
    Fixed,
    Perm,
    PermutationSpec,
    Product,
    Sum,
    merge_matrices,
)
from zipjax.merging.matrices import model_matrices
from zipjax.merging.weights import merge_leaf, unmerge_leaf
from zipjax.trees import path_leaves

SIZES = {"a": 4, "b": 3, "free": 2}
# Merged widths other than the models', and unequal shares of the models.
WIDTHS = {"a": 5, "b": 3}

A_OUT, A_IN = Axis("a", "out"), Axis("a", "in")
B_OUT, B_IN = Axis("b", "out"), Axis("b", "in")
FREE = Axis("free", "out")
ENTRIES = {
    "bias": (A_OUT,),
    "kernel": (A_IN, B_OUT),
    "first kernel": (None, A_OUT),
    "head": (A_IN, None),
    "no perm": (None, None),
    "convolution": (None, None, B_IN, A_OUT),
    "square": (A_IN, A_OUT),
    "perm that is not zipped": (A_IN, FREE),
    "flatten": (Product((Fixed(3), A_IN)), B_OUT),
    "channels first": (Product((A_IN, Fixed(3))), None),
    "produced product": (None, Product((A_OUT, B_OUT))),
    "consumed product": (Product((A_IN, B_IN)), None),
    "two produced axes": (A_OUT, B_OUT),
    "concatenation": (Sum((A_IN, Fixed(2), B_IN)), A_OUT),
    "produced sum": (Sum((B_OUT, Fixed(1), A_OUT)), None),
    "sum of products": (Sum((Product((Fixed(2), A_IN)), B_IN)), B_OUT),
    "product of a sum": (Product((Fixed(2), Sum((A_IN, B_IN)))), A_OUT),
    "two compounds": (Product((Fixed(2), B_IN)), Sum((A_OUT, B_OUT))),
}


SPEC = PermutationSpec(
    {"produced": (A_OUT, B_OUT, FREE), "consumed": (A_IN, B_IN, Axis("free", "in"))},
    {perm: Perm(size) for perm, size in SIZES.items()},
)


def merged(leaves, entries, matrices):
    shares = jnp.ones(len(leaves))
    return merge_leaf(jnp.stack(leaves), entries, SPEC.perms, matrices, shares)


def assignments(num_models):
    """Random ones in which every merged unit is used."""
    rng = np.random.default_rng(num_models)
    found = {}
    for perm, width in WIDTHS.items():
        extra = rng.integers(width, size=num_models * SIZES[perm] - width)
        found[perm] = rng.permutation(np.concatenate([np.arange(width), extra]))
    return found


def length(entry):
    match entry:
        case None:
            return 3
        case Axis():
            return SIZES[entry.perm]
        case Fixed():
            return entry.size
        case Product(children):
            return int(np.prod([length(child) for child in children]))
        case Sum(children):
            return sum(length(child) for child in children)


def operator(entry, model, matrices, roles):
    """The dense matrix that one model's axis is multiplied with from the left."""
    match entry:
        case Product(children):
            out = np.eye(1)
            for child in children:
                out = np.kron(out, operator(child, model, matrices, roles))
            return out
        case Sum(children):
            return block_diag(*[operator(c, model, matrices, roles) for c in children])
        case Axis() if entry.perm in matrices and entry.role in roles:
            merge, unmerge = matrices[entry.perm]
            n = SIZES[entry.perm]
            own = slice(model * n, (model + 1) * n)
            # M sums over the models; scaled by N, all operators are averaged.
            scale = unmerge.shape[0] // n
            return scale * merge[:, own] if entry.role == "out" else unmerge[own].T
    return np.eye(length(entry))


def apply_operators(array, operators):
    for number, matrix in enumerate(operators):
        array = np.moveaxis(np.tensordot(matrix, array, (1, number)), 0, number)
    return array


def dense_merge(leaves, entries, matrices):
    roles = ("out", "in")
    merged = [
        apply_operators(leaf, [operator(e, model, matrices, roles) for e in entries])
        for model, leaf in enumerate(leaves)
    ]
    return sum(merged) / len(leaves)


def case(entries, num_models, dtype=np.float32):
    rng = np.random.default_rng(0)
    shape = [length(entry) for entry in entries]
    leaves = [rng.normal(size=shape).astype(dtype) for _ in range(num_models)]
    chosen = assignments(num_models)
    ours = dict(model_matrices(chosen, SPEC, num_models))
    dense = {}
    for perm, assignment in chosen.items():
        one_hot = assignment[:, None] == np.arange(assignment.max() + 1)
        dense[perm] = one_hot.T / one_hot.sum(0)[:, None], one_hot.astype(float)
    return leaves, ours, dense


@pytest.mark.parametrize("num_models", [2, 3])
@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES.keys())
def test_merged_leaves_are_what_dense_matrices_give(entries, num_models):
    leaves, ours, dense = case(entries, num_models)
    found = merged(leaves, entries, ours)
    assert found.dtype == jnp.float32
    wide = [leaf.astype(np.float64) for leaf in leaves]
    assert relative_error(found, dense_merge(wide, entries, dense)) < 1e-6


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES.keys())
def test_leaves_of_a_head_are_unmerged_where_they_consume(entries):
    leaves, ours, dense = case(entries, 2)
    for model, leaf in enumerate(leaves):
        own = {perm: (m[model], u[model]) for perm, (m, u) in ours.items()}
        found = unmerge_leaf(jnp.asarray(leaf), entries, SPEC.perms, own)
        operators = [operator(e, model, dense, ("in",)) for e in entries]
        expected = apply_operators(leaf.astype(np.float64), operators)
        # One-hot matrices copy and add; sums of a few weights differ by rounding.
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_plain_kernel_is_the_block_diagonal_formula():
    """W* = U^T diag(W_1, ..., W_N) M^T with the matrices of all models at once."""
    leaves, ours, _ = case(ENTRIES["kernel"], 3)
    chosen = assignments(3)
    _, unmerge = merge_matrices(chosen["a"], 3)
    merge, _ = merge_matrices(chosen["b"], 3)
    blocks = block_diag(*leaves).astype(np.float64)
    expected = unmerge.T @ blocks @ merge.T
    found = merged(leaves, ENTRIES["kernel"], ours)
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["kernel", "flatten", "bias"])
def test_half_precision_is_kept_and_computed_in_float32(name, dtype):
    leaves, ours, dense = case(ENTRIES[name], 3, dtype)
    found = merged(leaves, ENTRIES[name], ours)
    assert found.dtype == dtype
    wide = [leaf.astype(np.float64) for leaf in leaves]
    expected = dense_merge(wide, ENTRIES[name], dense)
    # Rounded once, at the end: by half a unit in the last place.
    rounding = 0.51 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(found), expected, rounding, atol=1e-6)


@pytest.mark.parametrize("weights", [(1 / 3, 2 / 3), {"layers/1": (0.1, 0.9)}], ids=str)
def test_weights_are_as_precise_as_the_users_numbers(weights):
    rng = np.random.default_rng(0)
    models = [
        jax.tree.map(lambda x: rng.normal(size=x.shape), dense_params((3, 4, 2), 0))
        for _ in range(2)
    ]
    with jax.enable_x64(True):
        merged = zipjax.merge(
            models, dense_spec((3, 4, 2)), zipjax.average(), weights=weights
        )
    first, second = (path_leaves(model) for model in models)
    a, b = weights if isinstance(weights, tuple) else weights["layers/1"]
    expected = a * first["layers/1/w"] + b * second["layers/1/w"]
    np.testing.assert_allclose(merged.trunk["layers/1/w"], expected, rtol=0, atol=1e-15)
