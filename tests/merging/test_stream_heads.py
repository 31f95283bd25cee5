"""Merged models whose trunk ends inside a residual stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import collect, flops, images, relative_error
from tests.streams import (
    BLOCKS,
    HIDDEN,
    INPUTS,
    WIDTH,
    after_blocks,
    apart,
    copy_of,
    stream,
    stream_apply,
    stream_params,
    upto,
)
from tests.zoo import convnets, sequences, vits
from zipjax.trees import path_leaves

X = images(9, (INPUTS,))
MODELS = [stream_params(seed) for seed in range(3)]
SPEC = zipjax.infer_spec(stream_apply, MODELS[0], X)
INSIDE = [cut for cut in SPEC.cuts if cut.boundary is not None]
NUMBERS = [cut.number for cut in INSIDE]


def check_functions(merged, models, apply_fn=stream_apply, inputs=(X,)):
    """Every head is its own model's function."""
    outputs = zipjax.apply(apply_fn, merged, *inputs)
    assert len(outputs) == len(models)
    for output, model in zip(outputs, models, strict=True):
        expected = jax.jit(apply_fn)(model, *inputs)
        assert relative_error(output, expected) < 1e-5


@pytest.mark.parametrize("number", [cut.number for cut in SPEC.cuts])
def test_units_kept_apart_are_every_models_own_function(number):
    cut = SPEC.stop(number)
    merged = zipjax.merge_units(MODELS, SPEC, apart(SPEC, cut, 3), stop_at=number)
    assert {SPEC.sizes[p] * 3 for p in cut.perms} == {
        merged.spec.sizes[p] for p in cut.perms
    } | {WIDTH * 3}
    check_functions(merged, MODELS)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_permuted_copy_keeps_its_function(number):
    copy, assignments = copy_of(MODELS[0], SPEC)
    models, cut = [MODELS[0], copy], SPEC.stop(number)
    merged = zipjax.merge_units(models, SPEC, upto(assignments, cut), stop_at=cut.name)
    check_functions(merged, models)
    # The trunk is the model's, and every head has its model's own units.
    leaves = [path_leaves(model) for model in models]
    for path, leaf in merged.trunk.items():
        np.testing.assert_allclose(leaf, leaves[0][path], rtol=1e-6)
    for head, own in zip(merged.heads, leaves, strict=True):
        assert head.keys() == SPEC.entries.keys() - SPEC.trunk(number)
        for path, leaf in head.items():
            np.testing.assert_array_equal(leaf, own[path])


def test_units_are_matched_by_their_activations():
    copy, _ = copy_of(MODELS[0], SPEC)
    models = [MODELS[0], copy]
    moments = collect(stream_apply, models, SPEC, images(90, (INPUTS,)))
    recipe = zipjax.permute()
    merged = zipjax.merge(models, SPEC, recipe, moments=moments, stop_at=2)
    check_functions(merged, models)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_cost_is_that_of_the_trunk_the_heads_and_the_unmerging(number):
    count, batch = 3, len(X)
    cut = SPEC.stop(number)
    assignments = apart(SPEC, cut, count)
    merged = zipjax.merge_units(MODELS, SPEC, assignments, stop_at=number)

    def block(width, hidden):
        """Two products; a bias and a ReLU; the sum."""
        products = 2 * 2 * batch * width * hidden
        return products + 2 * batch * hidden + batch * width

    wide, done = count * WIDTH, number - 1
    trunk = 2 * batch * INPUTS * wide + done * block(wide, count * HIDDEN)
    unmerge = 2 * batch * wide * WIDTH
    last = 2 * batch * WIDTH * 3 + batch * 3
    head = (BLOCKS - done) * block(WIDTH, HIDDEN) + last

    def forward(merged, x):
        return zipjax.apply(stream_apply, merged, x)

    assert flops(forward, merged, X) == trunk + count * (unmerge + head)


ZOO = {"vit-timm": 3, "gpt2-tied": 4, "encoder-decoder": 3, "resnet-group-padded": 2}


@pytest.mark.parametrize("name", ZOO)
def test_copies_of_the_zoo_keep_their_functions(name):
    case = {**vits.CASES, **sequences.CASES, **convnets.CASES}[name]()
    spec = zipjax.infer_spec(case.apply_fn, case.params, *case.inputs)
    copy, assignments = copy_of(case.params, spec)
    models, cut = [case.params, copy], spec.stop(ZOO[name])
    assert cut.boundary is not None
    merged = zipjax.merge_units(
        models, spec, upto(assignments, cut), stop_at=cut.number
    )
    assert relative_error(*map(_flat, (copy, case.params))) > 0.1
    check_functions(merged, models, case.apply_fn, case.inputs)


def _flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def test_a_merged_model_is_still_a_pytree_that_can_be_differentiated():
    cut = SPEC.stop(2)
    merged = zipjax.merge(MODELS, SPEC, zipjax.average(), stop_at=2)
    assert [set(u) for u in merged.unmerge] == [{"embed"}] * 3
    leaves = [*cut.boundary.trunk, *range(3 * (len(SPEC.entries) - len(merged.trunk)))]
    assert len(jax.tree.leaves(merged)) == len(leaves) + 3

    @jax.jit
    def loss(merged):
        return sum(y.sum() for y in zipjax.apply(stream_apply, merged, X))

    gradient = jax.grad(loss)(merged)
    assert np.abs(gradient.trunk["embed"]).max() > 0
    for head in gradient.heads:
        np.testing.assert_allclose(head["head/b"], np.full(3, len(X)), rtol=1e-6)


def test_an_average_is_the_mean_up_to_the_cut():
    merged = zipjax.merge(MODELS, SPEC, zipjax.average(), stop_at=1)
    embed = np.mean([model["embed"] for model in MODELS], axis=0)
    np.testing.assert_allclose(merged.trunk["embed"], embed, rtol=1e-5)
    mixed = [{**model, "embed": embed} for model in MODELS]
    check_functions(merged, mixed)


def test_no_parameters_are_such_a_model_and_it_is_not_merged_again():
    merged = zipjax.merge(MODELS, SPEC, zipjax.average(), stop_at=2)
    with pytest.raises(
        ValueError, match=r"ends inside a residual stream.*zipjax.apply"
    ):
        merged.params(0)
    for again in ([merged, MODELS[0]], [MODELS[0], merged]):
        with pytest.raises(ValueError, match=r"model \d .* cannot be merged again"):
            zipjax.merge(again, SPEC, zipjax.average(), stop_at=1)


def test_a_model_with_heads_is_merged_again_up_to_a_stream():
    """All heads are kept: two of the first model, whose trunk is the pair's, one."""
    copy, assignments = copy_of(MODELS[0], SPEC)
    pair = zipjax.merge_units(
        [MODELS[0], copy], SPEC, assignments, stop_at=SPEC.cuts[-1].number
    )
    third, matches = copy_of(MODELS[0], SPEC, seed=1)
    merged = zipjax.merge_units(
        [pair, third], SPEC, upto(matches, SPEC.stop(2)), stop_at=2
    )
    check_functions(merged, [MODELS[0], copy, third])


def other_apply(params, x):
    """Another function after the same stream."""
    return {"y": jnp.tanh(stream(params, x)) @ params["out"]}


def skip_apply(params, x):
    """Its last layer reads the start of the stream again."""
    x = x @ params["embed"]
    return (after_blocks(params, x) + x) @ params["out"]


def again_apply(params, x):
    """Its last layer embeds the inputs again: by its own embedding, after a zip."""
    return (stream(params, x) + x @ params["embed"]) @ params["out"]


def with_other_head(params):
    kept = {name: leaf for name, leaf in params.items() if name != "head"}
    return {**kept, "out": images(WIDTH, (2,), 5)}


@pytest.mark.parametrize("second", [other_apply, again_apply])
@pytest.mark.parametrize("number", [2, 3])
def test_heads_may_be_different_functions(number, second):
    other = with_other_head(MODELS[0])
    specs = [SPEC, zipjax.infer_spec(second, other, X)]
    copy, assignments = copy_of(other, specs[1])
    models, functions = [MODELS[0], copy], [stream_apply, second]
    merged = zipjax.merge_units(
        models, specs, upto(assignments, SPEC.stop(number)), stop_at=number
    )
    outputs = zipjax.apply(functions, merged, X)
    for output, function, model in zip(outputs, functions, models, strict=True):
        expected = jax.tree.leaves(function(model, X))
        assert relative_error(*jax.tree.leaves([output, expected])) < 1e-5


def test_a_head_that_reads_more_than_the_stream_is_refused():
    other = with_other_head(MODELS[1])
    specs = [SPEC, zipjax.infer_spec(skip_apply, other, X)]
    with pytest.raises(ValueError, match=r"model 1 does not read the trunk through"):
        zipjax.merge([MODELS[0], other], specs, zipjax.average(), stop_at=2)
    # The embedded inputs are one value, even if it is read twice.
    merged = zipjax.merge([MODELS[0], other], specs, zipjax.average(), stop_at=1)
    assert set(merged.trunk) == {"embed"}


def test_another_function_than_the_specs_is_refused():
    merged = zipjax.merge(MODELS, SPEC, zipjax.average(), stop_at=2)

    def skipped(params, x):
        return stream_apply(params, x) + (x @ params["embed"]) @ params["head"]["w"]

    with pytest.raises(ValueError, match=r"it is not the function that the spec is of"):
        zipjax.apply(skipped, merged, X)
