"""Merging: function-preserving cases, partial zips, and bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import (
    FlattenNet,
    collect,
    dense_apply,
    dense_params,
    dense_spec,
    first_models,
    flatten_spec,
    images,
    permuted_copies,
    relative_error,
    variables,
)
from zipjax.models import mlp, resnet
from zipjax.trees import path_leaves

RECIPES = {
    "average": zipjax.average(),
    "permute": zipjax.permute(),
    "zipit": zipjax.zipit(),
    "zipit across models": zipjax.zipit(beta=0),
    "zipit of pairs": zipjax.zipit(alpha=0.3, beta=0.5),
}
MATCHING = [name for name in RECIPES if name != "average"]
# An alpha below 1 holds merged units back from a third model's copy.
COPIES = [
    (count, recipe)
    for count in (2, 3, 4)
    for recipe in RECIPES
    if count == 2 or recipe != "zipit of pairs"
]


@dataclasses.dataclass
class Case:
    apply_fn: object
    models: list
    spec: zipjax.PermutationSpec
    moments: dict
    x: np.ndarray

    def first(self, count):
        return self.models[:count], first_models(self.moments, self.spec, count)


def flax_net(net, spec, shape, seed):
    return net.apply, variables(net, shape, seed), spec, images(60, shape)


def plain_net():
    widths = (6, 12, 10, 4)
    return dense_apply, dense_params(widths, 0), dense_spec(widths), images(99, (6,))


NETWORKS = {
    "plain function": plain_net,
    "mlp": lambda: flax_net(
        mlp.MLP((9, 7), 3), mlp.spec(mlp.MLP((9, 7), 3)), (2, 2), 0
    ),
    "flatten": lambda: flax_net(FlattenNet(), flatten_spec(4), (4, 4, 3), 1),
    "resnet20": lambda: flax_net(
        resnet.ResNet20(5, 0.25), resnet.spec(resnet.ResNet20(5, 0.25)), (8, 8, 3), 1
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def copies(request):
    """A model and three copies of it with reordered units."""
    apply_fn, model, spec, x = NETWORKS[request.param]()
    models = permuted_copies(model, spec, 4)
    moments = collect(apply_fn, models, spec, x)
    # A dead unit cannot be told from another one.
    assert all((m.deviation() > 0).all() for m in moments.values())
    return Case(jax.jit(apply_fn), models, spec, moments, x)


def outputs(case, merged):
    return np.asarray(zipjax.apply(case.apply_fn, merged, case.x))


def same_leaves(found, expected, exactly):
    tolerance = 0 if exactly else 3e-6
    for path, leaf in path_leaves(expected).items():
        ours = path_leaves(found)[path]
        np.testing.assert_allclose(ours, leaf, tolerance, tolerance, err_msg=path)


def test_the_copies_are_other_parameters_of_one_function(copies):
    expected = copies.apply_fn(copies.models[0], copies.x)
    for model in copies.models[1:]:
        assert relative_error(copies.apply_fn(model, copies.x), expected) < 1e-5
        for path, leaf in path_leaves(model).items():
            if any(copies.spec.entries[path]):
                assert not np.array_equal(leaf, path_leaves(copies.models[0])[path])


@pytest.mark.parametrize(
    ("count", "recipe"), [case for case in COPIES if case[1] != "average"]
)
def test_a_model_and_its_permuted_copies_give_back_the_model(copies, count, recipe):
    models, moments = copies.first(count)
    merged = zipjax.merge(models, copies.spec, RECIPES[recipe], moments=moments)
    expected = copies.apply_fn(models[0], copies.x)
    assert relative_error(outputs(copies, merged), expected) < 1e-5
    # Merged units come in the order of the first model's. Halves and quarters are
    # exact in floating point, thirds are not.
    same_leaves(merged.params(), models[0], exactly=count != 3)


def test_averaging_permuted_copies_does_not(copies):
    merged = zipjax.merge(copies.models, copies.spec, zipjax.average())
    expected = copies.apply_fn(copies.models[0], copies.x)
    assert relative_error(outputs(copies, merged), expected) > 0.01


WIDTHS = (3, 6, 5, 4)
SPEC = dense_spec(WIDTHS)
MODELS = [dense_params(WIDTHS, seed) for seed in range(4)]
X = images(80, (3,))


@pytest.fixture(scope="module")
def four():
    """Four different models."""
    moments = collect(dense_apply, MODELS, SPEC, X)
    return Case(dense_apply, MODELS, SPEC, moments, X)


@pytest.mark.parametrize(("count", "recipe"), COPIES)
def test_copies_of_one_model_are_that_model(recipe, count):
    models = MODELS[:1] * count
    moments = collect(dense_apply, models, SPEC, X)
    merged = zipjax.merge(models, SPEC, RECIPES[recipe], moments=moments)
    same_leaves(merged.params(), MODELS[0], exactly=count != 3)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_average_is_the_mean_of_the_trees(count):
    merged = zipjax.merge(MODELS[:count], SPEC, zipjax.average())
    for path, leaf in path_leaves(merged.params()).items():
        leaves = [np.asarray(path_leaves(m)[path], np.float64) for m in MODELS[:count]]
        np.testing.assert_allclose(leaf, np.mean(leaves, 0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("stop_at", ["h0", "h1"])
def test_a_full_width_zip_keeps_every_models_function(four, stop_at, count):
    models, moments = four.first(count)
    perms = SPEC.stop(stop_at).perms
    recipe = zipjax.zipit(num_units={p: count * SPEC.sizes[p] for p in perms})
    merged = zipjax.merge(models, SPEC, recipe, moments=moments, stop_at=stop_at)
    assert merged.trunk["layers/0/w"].shape == (3, count * 6)
    assert merged.spec.sizes["h0"] == count * 6
    for output, model in zip(zipjax.apply(dense_apply, merged, X), models, strict=True):
        assert relative_error(output, dense_apply(model, X)) < 1e-6


def test_merged_widths_may_be_chosen_by_perm(four):
    recipe = zipjax.zipit(num_units={"h1": 7})
    merged = zipjax.merge(MODELS, SPEC, recipe, moments=four.moments)
    assert merged.spec.sizes == {"h0": 6, "h1": 7}
    assert zipjax.apply(dense_apply, merged, X).shape == (80, 4)
    merged.spec.validate(merged.params())


@pytest.mark.parametrize("recipe", RECIPES)
def test_depth_zero_is_the_ensemble(four, recipe):
    merged = zipjax.merge(
        MODELS, SPEC, RECIPES[recipe], moments=four.moments, stop_at=0
    )
    assert not merged.trunk
    for number, model in enumerate(MODELS):
        same_leaves(merged.params(number), model, exactly=True)
        output = zipjax.apply(dense_apply, merged, X)[number]
        assert relative_error(output, dense_apply(model, X)) < 1e-6


def brute_force_partial(models, assignment):
    """The zip of the first layer alone, unit by unit."""
    units, n = assignment.max() + 1, 6
    w, b = np.zeros((3, units)), np.zeros(units)
    for unit in range(units):
        members = np.flatnonzero(assignment == unit)
        columns = [models[m // n]["layers"][0] for m in members]
        w[:, unit] = np.mean(
            [c["w"][:, m % n] for c, m in zip(columns, members, strict=True)], 0
        )
        b[unit] = np.mean(
            [c["b"][m % n] for c, m in zip(columns, members, strict=True)]
        )
    readers = []
    for number, model in enumerate(models):
        reader = np.zeros((units, 5))
        for k in range(n):
            reader[assignment[number * n + k]] += model["layers"][1]["w"][k]
        readers.append(reader)
    return w, b, readers


@pytest.mark.parametrize("recipe", MATCHING)
def test_a_partial_zip_unit_by_unit(four, recipe):
    options = {"moments": four.moments, "stop_at": 1}
    assignments = zipjax.match(MODELS, SPEC, RECIPES[recipe], **options)
    assert list(assignments) == ["h0"]
    merged = zipjax.merge(MODELS, SPEC, RECIPES[recipe], **options)
    w, b, readers = brute_force_partial(MODELS, assignments["h0"])
    assert set(merged.trunk) == {"layers/0/w", "layers/0/b"}
    assert relative_error(merged.trunk["layers/0/w"], w) < 1e-6
    assert relative_error(merged.trunk["layers/0/b"], b) < 1e-6
    for head, reader, model in zip(merged.heads, readers, MODELS, strict=True):
        assert relative_error(head["layers/1/w"], reader) < 1e-6
        for path in ("layers/1/b", "layers/2/w", "layers/2/b"):
            np.testing.assert_array_equal(head[path], path_leaves(model)[path])


def test_heads_of_different_shape_are_kept(four):
    models = [
        {"layers": [*model["layers"][:2], dense_params((5, k), k)["layers"][0]]}
        for model, k in zip(MODELS, (2, 7, 1, 4), strict=True)
    ]
    moments = first_models(four.moments, SPEC, 4)
    merged = zipjax.merge(models, SPEC, zipjax.zipit(), moments=moments)
    # The hidden layers are merged all the same.
    expected = zipjax.merge(MODELS, SPEC, zipjax.zipit(), moments=moments, stop_at=2)
    same_leaves(merged.trunk, expected.trunk, exactly=True)
    shapes = [y.shape for y in zipjax.apply(dense_apply, merged, X)]
    assert shapes == [(80, 2), (80, 7), (80, 1), (80, 4)]


def test_heads_are_averaged_or_kept_on_request(four):
    shared = zipjax.merge(MODELS, SPEC, zipjax.permute(), moments=four.moments)
    kept = zipjax.merge(
        MODELS, SPEC, zipjax.permute(), moments=four.moments, stop_at="h1"
    )
    assert (shared.num_outputs, kept.num_outputs) == (1, 4)
    assert set(kept.heads[0]) == {"layers/2/w", "layers/2/b"}
    # The last layer is linear: averaged heads average the outputs.
    mean = np.mean(zipjax.apply(dense_apply, kept, X), axis=0)
    assert relative_error(zipjax.apply(dense_apply, shared, X), mean) < 1e-5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("stop_at", [None, 1])
def test_the_models_dtype_is_kept(dtype, stop_at):
    models = jax.tree.map(lambda x: x.astype(dtype), MODELS[:3])
    merged = zipjax.merge(models, SPEC, zipjax.average(), stop_at=stop_at)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(dtype)}
    wide = [np.asarray(m["layers"][0]["w"], np.float64) for m in models]
    rounding = 0.51 * float(jnp.finfo(dtype).eps)
    found = np.asarray(merged.trunk["layers/0/w"], np.float64)
    np.testing.assert_allclose(found, np.mean(wide, 0), rounding, 1e-7)


def test_merging_changes_neither_models_nor_moments(four):
    before = jax.tree.map(np.array, (MODELS, four.moments))
    zipjax.merge(MODELS, SPEC, zipjax.zipit(), moments=four.moments)
    same_leaves((MODELS, four.moments), before, exactly=True)


def changed(path, change):
    leaves = path_leaves(MODELS[1]) | {path: change}
    layers = [{n: leaves[f"layers/{k}/{n}"] for n in ("b", "w")} for k in range(3)]
    return {"layers": layers}


NO_BIAS = {"layers": [*MODELS[1]["layers"][:2], {"w": MODELS[1]["layers"][2]["w"]}]}
MISFITS = {
    "paths": ([MODELS[0], NO_BIAS], SPEC, r"model 1 .*missing \['layers/2/b'\]"),
    "dtypes": (
        [MODELS[0], changed("layers/1/b", jnp.zeros(5, jnp.bfloat16))],
        SPEC,
        r"'layers/1/b' is float32\[5\] in model 0 but bfloat16\[5\] in model 1",
    ),
    "ranks": (
        [MODELS[0], changed("layers/1/b", jnp.zeros((1, 5)))],
        SPEC,
        r"'layers/1/b' .* float32\[1, 5\] in model 1",
    ),
    "widths": (
        [MODELS[0], changed("layers/1/b", jnp.zeros(6))],
        SPEC,
        r"'layers/1/b' has the shapes \[\[5\], \[6\]\]",
    ),
    "inputs": (
        [MODELS[0], changed("layers/0/w", jnp.zeros((4, 6)))],
        SPEC,
        r"'layers/0/w' has the shapes \[\[3, 6\], \[4, 6\]\].* only outputs",
    ),
    "a spec of other widths": (MODELS, dense_spec((3, 6, 9, 4)), "of other widths"),
    "a spec of other parameters": (
        MODELS,
        dense_spec((3, 6, 4)),
        r"unexpected \['layers/2/b', 'layers/2/w'\]",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_models_and_spec_that_do_not_fit(name):
    models, spec, message = MISFITS[name]
    with pytest.raises(ValueError, match=message):
        zipjax.merge(models, spec, zipjax.average())
    with pytest.raises(ValueError, match=message):
        zipjax.merge_units(models, spec, {})


@pytest.mark.parametrize("stop_at", ["h7", 3, "layers/0/w"])
def test_a_stop_that_does_not_exist_names_the_valid_ones(stop_at):
    with pytest.raises(ValueError, match=r"not a valid cut.*1 \('h0', 1 layers\), 2"):
        zipjax.merge(MODELS, SPEC, zipjax.average(), stop_at=stop_at)


RENAMED = zipjax.PermutationSpec.from_json(SPEC.to_json().replace("h1", "other"))
DEEPER = zipjax.PermutationSpec(
    {**SPEC.entries, "layers/1/b": (None,)},
    SPEC.perms,
)


@pytest.mark.parametrize(
    ("models", "spec", "message"),
    [
        (MODELS[::-1], SPEC, "collected for spec"),
        ([*MODELS[:3], dense_params(WIDTHS, 9)], SPEC, "collected for spec"),
        (MODELS, DEEPER, "collected for spec"),
        (MODELS, RENAMED, r"missing \['other'\]; unexpected \['h1'\]"),
        (MODELS[:2], SPEC, r"of 24 units, not of N\*n = 2 \* 6"),
    ],
    ids=["swapped", "other model", "other spec", "other perms", "other number"],
)
@pytest.mark.parametrize("recipe", MATCHING)
def test_moments_of_other_models_or_specs_are_refused(
    four, models, spec, message, recipe
):
    with pytest.raises(ValueError, match=message) as error:
        zipjax.merge(models, spec, RECIPES[recipe], moments=four.moments)
    assert "Collect the moments with these models" in str(error.value)


def test_moments_after_training_on_are_refused(four):
    trained = jax.tree.map(lambda x: x + 1e-6, MODELS)
    with pytest.raises(ValueError, match="were collected for"):
        zipjax.merge(trained, SPEC, zipjax.permute(), moments=four.moments)


@pytest.mark.parametrize("recipe", MATCHING)
def test_missing_moments_name_the_remedy(recipe):
    with pytest.raises(ValueError, match=r"moments=zipjax\.collect_moments"):
        zipjax.merge(MODELS, SPEC, RECIPES[recipe])
    with pytest.raises(ValueError, match=r"missing \['h0', 'h1'\]"):
        zipjax.merge(MODELS, SPEC, RECIPES[recipe], moments={})


GOOD = {"h0": np.tile(np.arange(6), 4), "h1": np.tile(np.arange(5), 4)}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ({"h0": GOOD["h0"]}, r"missing \['h1'\]"),
        (GOOD | {"h2": GOOD["h0"]}, r"unexpected \['h2'\]"),
        (
            GOOD | {"h0": GOOD["h1"]},
            r"shape \[20\], not \[24\]: N\*n = 4 \* 6",
        ),
        (GOOD | {"h0": GOOD["h0"][:, None]}, r"'h0' has shape \[24, 1\]"),
        (GOOD | {"h1": GOOD["h1"] + 1}, "without gaps"),
        (GOOD | {"h1": GOOD["h1"] / 1.0}, "vector of N.n integers, got float64"),
    ],
)
def test_wrong_assignments(assignments, message):
    with pytest.raises(ValueError, match=message):
        zipjax.merge_units(MODELS, SPEC, assignments)


def test_given_assignments_are_what_average_does():
    merged = zipjax.merge_units(MODELS, SPEC, GOOD)
    expected = zipjax.merge(MODELS, SPEC, zipjax.average())
    same_leaves(merged.params(), expected.params(), exactly=True)


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"alpha": 1.5}, {"beta": 2.0}])
def test_recipes_check_their_settings(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))} = .* \[0, 1\]"):
        zipjax.zipit(**options)


def test_widths_of_perms_that_are_not_zipped_are_refused(four):
    recipe = zipjax.zipit(num_units={"h1": 7})
    with pytest.raises(ValueError, match=r"unexpected \['h1'\].*zipped perms are"):
        zipjax.merge(MODELS, SPEC, recipe, moments=four.moments, stop_at="h0")
