"""Specs are verified: right ones pass, and every kind of mistake is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import (
    FlattenNet,
    dense_apply,
    dense_params,
    dense_spec,
    flatten_spec,
    images,
    relative_error,
    variables,
)
from zipjax import Axis, Fixed, Perm, PermutationSpec, Product, SpecError

WIDTHS = (3, 6, 6, 4)
PARAMS = dense_params(WIDTHS, 0)
SPEC = dense_spec(WIDTHS)
X = images(8, (3,))
H0, H1 = (Axis(perm, "out") for perm in ("h0", "h1"))
READ_H0, READ_H1 = (Axis(perm, "in") for perm in ("h0", "h1"))


def verify(axes, key, params=PARAMS, **options):
    spec = PermutationSpec(axes, SPEC.perms)
    return zipjax.verify_spec(dense_apply, params, spec, X, key=key, **options)


def test_a_right_spec_passes_with_a_small_error(key):
    assert 0 <= verify(SPEC.entries, key, trials=5) < 1e-6


def test_compounds_pass(key):
    net = FlattenNet()
    params = variables(net, (4, 6, 3), 1)
    x = images(4, (4, 6, 3))
    assert zipjax.verify_spec(net.apply, params, flatten_spec(6), x, key=key) < 1e-6


MUTATIONS = {
    "a bias left out": {"layers/0/b": (None,)},
    "a produced axis left out": {"layers/0/w": (None, None)},
    "perms exchanged": {"layers/0/b": (H1,), "layers/1/b": (H0,)},
    "perms exchanged in a kernel": {
        "layers/1/w": (READ_H1, H0),
        "layers/2/w": (READ_H0, None),
    },
    "axes transposed": {"layers/1/w": (H1, READ_H0)},
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_wrong_entries_are_found(name, key):
    with pytest.raises(
        SpecError, match=r"changes the outputs by .*\(tolerance 1e-05\)"
    ):
        verify({**SPEC.entries, **MUTATIONS[name]}, key)


def test_outputs_that_are_permuted_are_found(key):
    # The outputs are given a perm, which something must consume.
    axes = {
        **SPEC.entries,
        "layers/2/w": (READ_H1, Axis("y", "out")),
        "layers/2/b": (Axis("y", "in"),),
    }
    spec = PermutationSpec(axes, {**SPEC.perms, "y": Perm(4)})
    with pytest.raises(SpecError, match="changes the outputs by"):
        zipjax.verify_spec(dense_apply, PARAMS, spec, X, key=key)


def test_the_wrong_order_in_a_product_is_found(key):
    net = FlattenNet()
    params, x = variables(net, (4, 6, 3), 1), images(4, (4, 6, 3))
    right = flatten_spec(6)
    flat = Product((Axis("conv", "in"), Fixed(6)))
    axes = {**right.entries, "params/hidden/kernel": (flat, Axis("hidden", "out"))}
    spec = PermutationSpec(axes, right.perms)
    with pytest.raises(SpecError, match="changes the outputs by"):
        zipjax.verify_spec(net.apply, params, spec, x, key=key)


@pytest.mark.parametrize("perms", [{"h0": 7}, {"h1": 5}, {"h0": 5, "h1": 7}])
def test_wrong_sizes_are_found(perms, key):
    with pytest.raises(ValueError, match="of other widths"):
        zipjax.verify_spec(dense_apply, PARAMS, SPEC.resize(perms), X, key=key)


def test_imaginary_parts_of_outputs_are_compared(key):
    def apply_fn(params, x):
        hidden = x @ params["w"]
        return hidden.sum(-1) + 1j * hidden[:, 0]

    entries = {"w": (None, H0), "unused": (READ_H0,)}
    params = {"w": images(3, (6,)), "unused": images(6, ())}
    spec = PermutationSpec(entries, {"h0": Perm(6)})
    with pytest.raises(SpecError, match="changes the outputs by"):
        zipjax.verify_spec(apply_fn, params, spec, X, key=key)


def constant(params, value):
    return jax.tree.map(lambda x: jnp.full_like(x, value), params)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_parameters_verify_nothing(value, key):
    with pytest.raises(SpecError, match=r"'h0' moves none .*Randomise"):
        verify(SPEC.entries, key, constant(PARAMS, value))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_named(value, key):
    params = jax.tree.map(np.array, PARAMS)
    params["layers"][1]["b"][2] = value
    with pytest.raises(SpecError, match=r"\['layers/1/b'\] are not finite"):
        verify(SPEC.entries, key, params)


def test_inputs_that_are_not_finite_verify_nothing(key):
    with pytest.raises(SpecError, match=r"outputs are .* not finite.*inputs for NaN"):
        zipjax.verify_spec(dense_apply, PARAMS, SPEC, X * np.nan, key=key)


def test_no_samples_verify_nothing(key):
    with pytest.raises(SpecError, match="outputs are empty"):
        zipjax.verify_spec(dense_apply, PARAMS, SPEC, X[:0], key=key)


UNINFORMATIVE = {
    "constant": lambda params, x: 0 * dense_apply(params, x) + 2,
    # The output's bias differs from class to class.
    "dead": lambda params, x: 0 * dense_apply(params, x) + params["layers"][2]["b"],
    "one value": lambda params, x: 0 * dense_apply(params, x).sum(),
}


@pytest.mark.parametrize("name", UNINFORMATIVE)
def test_outputs_that_do_not_depend_on_units_verify_nothing(name, key):
    message = (
        r"outputs (are constant \(\[2.0\]\)|do not depend on).*nothing is verified"
    )
    with pytest.raises(SpecError, match=message):
        zipjax.verify_spec(UNINFORMATIVE[name], PARAMS, SPEC, X, key=key)


def test_one_number_or_a_direction_verifies_a_spec(key):
    def direction(params, x):
        hidden = jax.nn.relu(x @ params["in"]) @ params["out"]
        return hidden / jnp.linalg.norm(hidden)

    def loss(params, x):
        return dense_apply(params, x).sum()

    assert zipjax.verify_spec(loss, PARAMS, SPEC, X, key=key) < 1e-5
    spec = PermutationSpec({"in": (None, H0), "out": (READ_H0, None)}, {"h0": Perm(6)})
    params = {"in": PARAMS["layers"][0]["w"], "out": PARAMS["layers"][2]["w"]}
    assert zipjax.verify_spec(direction, params, spec, X, key=key) < 1e-5


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        ({"h7": np.arange(6)}, r"unexpected \['h7'\].*perms are \['h0', 'h1'\]"),
        ({"h0": np.zeros(6, int)}, r"'h0' are int64\[6\], \[0 0 .*of 0..5"),
        ({"h0": np.arange(6) - 6}, "permutations of 0..5"),
        ({"h0": np.arange(7)}, r"int64\[7\].*as integers \[6\]"),
        ({"h0": np.arange(6.0)}, r"float64\[6\].*as integers"),
        ({"h0": np.arange(6) > 2}, r"bool\[6\].*as integers"),
        ({"h1": [0, 1, 2, 3, 4, 4]}, "'h1' are int64"),
    ],
    ids=["unknown", "repeated", "negative", "long", "floats", "a mask", "a list"],
)
def test_indices_are_permutations(permutations, message, untyped):
    with pytest.raises(ValueError, match=message):
        zipjax.permute_params(PARAMS, SPEC, permutations)


def test_a_spec_without_perms_verifies_nothing(key):
    def training(params, x):
        """Returns what it should not: hidden values beside the outputs."""
        return dense_apply(params, x), [x @ params["layers"][0]["w"]]

    params = dense_params((3, 6, 4), 0)
    spec = zipjax.infer_spec(training, params, X)
    assert not spec.perms
    with pytest.raises(SpecError, match=r"no perms.*evaluation mode.*outputs only"):
        zipjax.verify_spec(training, params, spec, X, key=key)


# In half precision, sums in another order are other sums.
HALVES = (jnp.float16, jnp.bfloat16)


def half(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_verified_in_float32(dtype, key):
    params, x = half((PARAMS, X), dtype)
    error = zipjax.verify_spec(dense_apply, params, SPEC, x, key=key)
    assert error < 1e-6
    entries = {**SPEC.entries, "layers/0/b": (None,)}
    spec = PermutationSpec(entries, SPEC.perms)
    with pytest.raises(SpecError, match=r"tolerance 1e-05"):
        zipjax.verify_spec(dense_apply, params, spec, x, key=key)


WIDE = (3, 300, 300, 4)
WIDE_PARAMS, WIDE_SPEC = dense_params(WIDE, 0), dense_spec(WIDE)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_tolerance_follows_the_dtype_that_the_function_computes_in(
    dtype, mutation, key
):
    def apply_fn(params, x):
        return dense_apply(half(params, dtype), x.astype(dtype)).astype(jnp.float32)

    # Exactly in half precision, so that nothing but the sums is rounded.
    params = half(half(WIDE_PARAMS, dtype), jnp.float32)
    x = images(64, (3,))
    error = zipjax.verify_spec(apply_fn, params, WIDE_SPEC, x, key=key)
    limit = 4 * float(jnp.finfo(dtype).eps)
    assert error < limit
    spec = PermutationSpec(
        {**WIDE_SPEC.entries, **MUTATIONS[mutation]}, WIDE_SPEC.perms
    )
    with pytest.raises(SpecError, match=rf"tolerance {limit:.3g}"):
        zipjax.verify_spec(apply_fn, params, spec, x, key=key)


def test_functions_that_insist_on_a_dtype(key):
    """A kernel of the function's own has the parameters' dtype."""
    own = half(np.eye(3), jnp.bfloat16)

    def apply_fn(params, x):
        return dense_apply(params, jax.lax.dot(x, own))

    params, x = half((PARAMS, X), jnp.bfloat16)
    error = zipjax.verify_spec(apply_fn, params, SPEC, x, key=key)
    assert error < 4 * float(jnp.finfo(jnp.bfloat16).eps)


def test_the_tolerance_decides(key):
    spec = PermutationSpec({**SPEC.entries, "layers/0/b": (None,)}, SPEC.perms)
    arguments = (dense_apply, PARAMS, spec, X)
    error = zipjax.verify_spec(*arguments, key=key, tolerance=10)
    assert error > 1e-3
    with pytest.raises(SpecError, match=r"tolerance 0\.001"):
        zipjax.verify_spec(*arguments, key=key, tolerance=1e-3)


def test_at_least_one_trial(key):
    with pytest.raises(ValueError, match="trials = 0"):
        verify(SPEC.entries, key, trials=0)


def test_outputs_may_be_a_pytree(key):
    def apply_fn(params, x):
        return {"y": dense_apply(params, x), "x": x}

    assert zipjax.verify_spec(apply_fn, PARAMS, SPEC, X, key=key) < 1e-6


def test_permute_params_moves_units_as_numpy_does():
    order = {"h0": np.array([2, 0, 1, 5, 4, 3])}
    found = zipjax.permute_params(PARAMS, SPEC, order)["layers"]
    before = PARAMS["layers"]
    np.testing.assert_array_equal(found[0]["w"], before[0]["w"][:, order["h0"]])
    np.testing.assert_array_equal(found[0]["b"], before[0]["b"][order["h0"]])
    np.testing.assert_array_equal(found[1]["w"], before[1]["w"][order["h0"]])
    for name in ("w", "b"):
        np.testing.assert_array_equal(found[2][name], before[2][name])


def test_permute_params_reorders_what_is_traced_or_on_another_device():
    order = {"h0": np.array([2, 0, 1, 5, 4, 3])}
    expected = jax.tree.leaves(zipjax.permute_params(PARAMS, SPEC, order))
    traced = jax.jit(lambda params: zipjax.permute_params(params, SPEC, order))(PARAMS)
    device = jax.local_devices()[1]
    there = zipjax.permute_params(jax.device_put(PARAMS, device), SPEC, order)
    for tree in (traced, there):
        for found, wanted in zip(jax.tree.leaves(tree), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert {x.device for x in jax.tree.leaves(there)} == {device}
    # What was free to go anywhere still is.
    kept = zipjax.permute_params(jax.tree.map(jnp.asarray, PARAMS), SPEC, order)
    assert not any(x.committed for x in jax.tree.leaves(kept))


def test_random_permutations_are_permutations_and_differ_by_key():
    draws = [zipjax.random_permutations(SPEC, jax.random.key(k)) for k in range(3)]
    for draw in draws:
        assert list(draw) == ["h0", "h1"]
        assert all(sorted(indices) == list(range(6)) for indices in draw.values())
    assert len({tuple(draw["h0"]) for draw in draws}) == 3
    assert tuple(draws[0]["h0"]) != tuple(draws[0]["h1"])


# A role does not show in permutations, where U = M^T. It does in a zip: a unit and its
# double within one model are averaged where they are produced and added up where they
# are consumed.


def with_doubles(params):
    """The same function with every hidden unit twice, at half the output weights."""
    first, second, head = params["layers"]
    k = np.repeat(np.arange(6), 2)
    return {
        "layers": [
            {"w": first["w"][:, k], "b": first["b"][k]},
            {"w": second["w"][k][:, k] / 2, "b": second["b"][k]},
            {"w": head["w"][k] / 2, "b": head["b"]},
        ]
    }


def zipped_with_its_double(axes):
    wide = PermutationSpec(axes, {"h0": Perm(12), "h1": Perm(12)})
    model = with_doubles(PARAMS)
    assignment = np.tile(np.repeat(np.arange(6), 2), 2)
    merged = zipjax.merge_units(
        [model] * 2, wide, dict.fromkeys(wide.perms, assignment)
    )
    return zipjax.apply(dense_apply, merged, X)


def test_a_zip_of_doubles_keeps_the_function():
    expected = dense_apply(PARAMS, X)
    assert relative_error(dense_apply(with_doubles(PARAMS), X), expected) < 1e-6
    assert relative_error(zipped_with_its_double(SPEC.entries), expected) < 1e-6


@pytest.mark.parametrize("path", ["layers/0/b", "layers/1/b"])
def test_a_flipped_role_shows_in_a_zip(path, key):
    flipped = {**SPEC.entries, path: (Axis(SPEC.entries[path][0].perm, "in"),)}
    assert verify(flipped, key) < 1e-6
    expected = dense_apply(PARAMS, X)
    assert relative_error(zipped_with_its_double(flipped), expected) > 0.01


@pytest.mark.parametrize(
    ("path", "entries", "message"),
    [
        ("layers/2/w", (H1, None), r"consumed by \[\]"),
        ("layers/1/w", (H0, H1), r"consumed by \[\]"),
    ],
)
def test_a_flipped_role_that_leaves_a_perm_without_a_reader(path, entries, message):
    with pytest.raises(ValueError, match=message):
        PermutationSpec({**SPEC.entries, path: entries}, SPEC.perms)
