"""Bad calls of the public functions are told by name, with what to pass instead."""

import copy

import flax.linen as nn
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
    flatten_spec,
    images,
    variables,
)
from zipjax.batches import input_batches

WIDTHS = (3, 6, 5, 4)
SPEC = dense_spec(WIDTHS)
MODELS = [dense_params(WIDTHS, seed) for seed in range(2)]
X = images(20, (3,))
KEY = jax.random.key(0)
LABELS = np.arange(4)

pytestmark = pytest.mark.usefixtures("untyped")


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=False)(nn.Dense(6)(x)))


class Unhashable:
    __hash__ = None

    def __call__(self, params, x):
        return dense_apply(params, x)


class Tensor:
    """What other frameworks' arrays are to numpy; on an accelerator they raise."""

    def __init__(self, values, device="cpu"):
        self.values, self.device = values, device

    def __array__(self, dtype=None, copy=None):
        if self.device != "cpu":
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        return np.asarray(self.values, dtype)


@pytest.fixture(scope="module")
def moments():
    return collect(dense_apply, MODELS, SPEC, X)


def merge(models=MODELS, spec=SPEC, recipe=None, **options):
    return zipjax.merge(models, spec, recipe or zipjax.average(), **options)


def moments_of(batch, apply_fn=dense_apply, **options):
    return zipjax.collect_moments(apply_fn, MODELS, SPEC, [batch], **options)


def averaged():
    return zipjax.merge(MODELS, SPEC, zipjax.average())


def search(recipe=zipjax.average, grid=None, score=lambda merged: 1.0):
    grid = {"stop_at": [1, 2]} if grid is None else grid
    return zipjax.search(MODELS, SPEC, recipe, grid, score)


def evaluate(output, batch=(LABELS, LABELS), tasks=((0, 1), (2, 3))):
    return zipjax.evaluate(lambda inputs: output, [batch], tasks=tasks)


def dropped():
    drawn = Dropped().init({"params": KEY, "dropout": KEY}, X)
    return zipjax.infer_spec(Dropped().apply, drawn, X)


def deleted(tree):
    """A copy whose arrays were donated."""
    copied = jax.tree.map(lambda x: jnp.array(x, copy=True), tree)
    for leaf in jax.tree.leaves(copied):
        leaf.delete()
    return copied


MERGES = {
    "recipe not called": (
        {"recipe": zipjax.zipit},
        "recipe is the function zipit: cal",
    ),
    "recipe by name": ({"recipe": "zipit"}, r"recipe is the str 'zipit'.*\.zipit\(\)"),
    "spec as text": ({"spec": SPEC.to_json()}, "spec is the str '.*from_json"),
    "no spec": ({"spec": None}, "spec is the NoneType None: .*infer_spec"),
    "spec of one": ({"spec": [SPEC, None]}, "spec is the NoneType None"),
    "no models": ({"models": []}, "there are no models: pass a sequence"),
    "generator": ({"models": iter(MODELS)}, "models is a list_iterator: pass a list"),
    "one model": (
        {"models": MODELS[0]},
        r"models is a dict with the keys \['layers'\]",
    ),
    "one weight": ({"weights": 0.5}, "weights is the float 0.5: .* one number per"),
    "weights by path": ({"weights": {"layers": 0.5}}, "weights is the float 0.5"),
    "weights as text": ({"weights": "0.5"}, "weights is the str '0.5'"),
    "weights of what": ({"weights": [1, None]}, r"weights = \[1, None\] are not"),
    "true stop": ({"stop_at": True}, "stop_at = True is not a valid cut"),
    "seed": (
        {"recipe": zipjax.weight_zip(), "key": 0},
        r"key is the int 0: .*key\(0\)",
    ),
    "keys": (
        {"recipe": zipjax.weight_zip(), "key": jax.random.split(KEY)},
        r"key is the PRNGKeyArray key<fry>\[2\]: pass one",
    ),
    "deleted": (
        {"models": [deleted(MODELS[0]), MODELS[1]]},
        "'layers/0/b' of model 0 w",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MERGES.values(), ids=MERGES)
def test_bad_arguments_of_a_merge(arguments, message):
    with pytest.raises(ValueError, match=message):
        merge(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: list(found.values()), "moments is a list of Moments: pass what"),
        (lambda found: found["h0"], "moments is a Moments: pass what"),
        (
            lambda found: found | {"h1": found["h1"].m2},
            r"moments\['h1'\] is the .*Array",
        ),
    ],
)
def test_moments_of_the_wrong_kind(moments, change, message):
    with pytest.raises(ValueError, match=message):
        merge(recipe=zipjax.zipit(), moments=change(moments))


CALLS = {
    "batches a mapping": (
        lambda: zipjax.collect_moments(dense_apply, MODELS, SPEC, {"x": X}),
        r"batches are a dict with the keys \['x'\]: pass a list",
    ),
    "no batches": (
        lambda: zipjax.collect_moments(dense_apply, MODELS, SPEC, None),
        "batches are the NoneType None",
    ),
    "batch a mapping": (
        lambda: moments_of({"image": X, "label": X}),
        r"batch 0 is a dict .*inputs_of=lambda batch: batch\['image'\]",
    ),
    "batch a text": (lambda: moments_of("abc"), "batch 0 holds the str 'abc'"),
    "batch deleted": (lambda: moments_of(deleted(X)), "batch 0 was deleted"),
    "tensor elsewhere": (
        lambda: moments_of(Tensor(X, "cuda")),
        r"batch 0 holds a Tensor.*cpu\(\)\.numpy\(\)",
    ),
    "pairs": (
        lambda: moments_of((X, np.zeros(20))),
        r"\[\(5, 3\), \(5,\)\]: TypeError: .*2 inputs: .*inputs_of=",
    ),
    "another width": (
        lambda: moments_of(images(20, (7,))),
        r"apply_fn cannot be traced .*\[\(5, 7\)\]: TypeError.*widths",
    ),
    "another width for a reset": (
        lambda: zipjax.reset_batch_stats(dense_apply, MODELS[0], [images(5, (7,))]),
        r"apply_fn cannot be traced .*\[\(5, 7\)\]: TypeError",
    ),
    "inputs_of a name": (
        lambda: moments_of({"image": X}, inputs_of="image"),
        "inputs_of is the str 'image': pass a function",
    ),
    "module": (
        lambda: zipjax.infer_spec(FlattenNet(), {"w": X}, X),
        "apply_fn is a module, FlattenNet: .*module.apply",
    ),
    "module to collect": (
        lambda: zipjax.collect_moments(
            FlattenNet(),
            [variables(FlattenNet(), (4, 4, 3), seed) for seed in range(2)],
            flatten_spec(4),
            [images(2, (4, 4, 3))],
        ),
        "apply_fn is a module, FlattenNet: .*module.apply",
    ),
    "no function": (lambda: moments_of(X, apply_fn=3), "apply_fn is the int 3"),
    "unhashable": (lambda: moments_of(X, apply_fn=Unhashable()), "cannot be hashed"),
    "seed to collect": (lambda: moments_of(X, key=0), "key is the int 0"),
    "module to count": (
        lambda: zipjax.flops(FlattenNet(), {"w": X}, X),
        r"function is a module, FlattenNet: .*function=module.apply",
    ),
    "unhashable to count": (
        lambda: zipjax.flops(Unhashable(), MODELS[0], X),
        "function is a Unhashable, which cannot be hashed",
    ),
    "nothing to count": (
        lambda: zipjax.flops(3, MODELS[0], X),
        "function is the int 3: pass a function",
    ),
    "no dropout key": (dropped, "InvalidRngError.*evaluation mode, .*dropout"),
    "apply parameters": (
        lambda: zipjax.apply(dense_apply, MODELS[0], X),
        "merged is a dict .*zipjax.merge",
    ),
    "refit parameters": (
        lambda: zipjax.refit(dense_apply, MODELS, MODELS[0], [X]),
        "merged is a dict .*zipjax.merge",
    ),
    "refit a generator": (
        lambda: zipjax.refit(dense_apply, iter(MODELS), averaged(), [X]),
        "models is a list_iterator: pass a list",
    ),
    "repair parameters": (
        lambda: zipjax.repair(dense_apply, MODELS, MODELS[0], [X]),
        "merged is a dict .*zipjax.merge",
    ),
    "grid a list": (lambda: search(grid=[0.1]), r"grid is the list \[0.1\]: .*by name"),
    "search a recipe": (
        lambda: search(recipe=zipjax.average()),
        "make_recipe is a Recipe: .*zipjax.zipit",
    ),
    "no score": (lambda: search(score=lambda m: None), "score is the NoneType None"),
    "outputs and state": (
        lambda: evaluate((np.eye(4), {"state": 1})),
        r"forward returned a dict with the keys \['state'\] as an output",
    ),
    "outputs by name": (
        lambda: evaluate({"logits": np.eye(4)}),
        r"forward returned a dict .*\['logits'\]",
    ),
    "inputs without labels": (
        lambda: evaluate(np.eye(4), np.zeros(4)),
        r"a batch to evaluate is the ndarray float64\[4\]: pass pairs",
    ),
    "examples by name": (
        lambda: evaluate(np.eye(4), {"image": np.zeros(4), "label": LABELS}),
        r"a batch to evaluate is a dict .*\['image', 'label'\]",
    ),
    "flat tasks": (
        lambda: evaluate(np.eye(4), tasks=(0, 1)),
        r"tasks = \(0, 1\): give",
    ),
    "no tasks": (lambda: evaluate(np.eye(4), tasks=()), r"tasks = \(\): give"),
    "assignments a list": (
        lambda: zipjax.merge_units(MODELS, SPEC, [np.arange(12)]),
        "assignments is a list of ndarray: .*zipjax.match",
    ),
    "sequential recipe": (
        lambda: zipjax.match_sequential(dense_apply, MODELS, SPEC, zipjax.zipit, [X]),
        "recipe is the function zipit",
    ),
    "sources of one": (
        lambda: zipjax.source_of(MODELS[0], SPEC),
        "models is a dict",
    ),
    "verify with a seed": (
        lambda: zipjax.verify_spec(dense_apply, MODELS[0], SPEC, X, key=0),
        "key is the int 0",
    ),
    "explain text": (lambda: zipjax.explain(SPEC.to_json()), "spec is the str"),
    "permutations a list": (
        lambda: zipjax.permute_params(MODELS[0], SPEC, [1]),
        r"permutations is the list \[1\]",
    ),
    "alpha as text": (
        lambda: zipjax.zipit(alpha="1"),
        r"alpha = '1' must lie in \[0, 1\]",
    ),
    "no alpha": (lambda: zipjax.zipit(alpha=None), "alpha = None must lie in"),
    "no balance": (lambda: zipjax.mudsc(None), "balance = None must lie in"),
    "one width": (lambda: zipjax.zipit(num_units=3), "num_units is the int 3"),
    "half a unit": (
        lambda: zipjax.weight_zip(num_units={"h0": 4.5}),
        r"num_units\['h0'\] is the float 4.5: pass merged widths",
    ),
    "rows of several lengths": (
        lambda: zipjax.permute_params(MODELS[0], SPEC, {"h0": [[1], [1, 2]]}),
        r"permutations\['h0'\] is a list of list: pass permutations by perm",
    ),
    "half a trial": (
        lambda: zipjax.verify_spec(
            dense_apply, MODELS[0], SPEC, X, key=KEY, trials=1.5
        ),
        "trials = 1.5: pass a whole number",
    ),
    "complex score": (
        lambda: search(score=lambda merged: np.array(1j)),
        r"score is the ndarray complex128\[\]: return one number",
    ),
    "grid of a mapping": (
        lambda: search(grid={"stop_at": {1: "one"}}),
        r"values of 'stop_at' are \{1: 'one'\}: pass a list",
    ),
    "grid of an array": (
        lambda: search(grid={"stop_at": np.array(1)}),
        r"values of 'stop_at' are array\(1\): pass a list",
    ),
    "batch of complex NaN": (
        lambda: moments_of(X * np.complex64(np.nan)),
        "batch 0 holds NaN",
    ),
}


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS)
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("recipe", [zipjax.average(), zipjax.permute()])
def test_widths_need_a_recipe_that_zips(moments, recipe):
    with pytest.raises(ValueError, match=f"'{recipe.name}' merges units one to one"):
        zipjax.allot_units(dense_apply, MODELS, SPEC, recipe, X, moments=moments)


@pytest.mark.parametrize("depth", [50, 10_000])
def test_nested_json_is_a_spec_or_refused(depth):
    size = '{"product": [{"fixed": 1}, ' * depth + '{"fixed": 3}' + "]}" * depth
    text = SPEC.to_json().replace("null", size, 1)
    assert text != SPEC.to_json()
    if depth < 100:
        assert zipjax.PermutationSpec.from_json(text).sizes == SPEC.sizes
        return
    with pytest.raises(ValueError, match="not a permutation spec in JSON"):
        zipjax.PermutationSpec.from_json(text)


def test_what_the_function_raised_is_the_cause():
    with pytest.raises(ValueError, match="cannot be traced") as error:
        zipjax.infer_spec(dense_apply, MODELS[0], images(2, (7,)))
    assert isinstance(error.value.__cause__, TypeError)
    assert "dot_general" in str(error.value.__cause__)


def test_legal_batches_stay_legal():
    """Pairs are two inputs, a chosen mapping is one, and tensors are arrays."""
    pair = next(input_batches([(X, X)]))
    assert len(pair) == 2
    (whole,) = next(input_batches([{"image": X}], lambda batch: batch))
    assert whole["image"] is X
    (found,) = next(input_batches([Tensor(X)]))
    np.testing.assert_array_equal(found, X)
    assert isinstance(found, np.ndarray)


@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(0), np.zeros(2, np.uint32)])
def test_both_kinds_of_keys_are_keys(key):
    merged = merge(recipe=zipjax.weight_zip(), key=key)
    assert set(merged.assignments) == {"h0", "h1"}


@pytest.mark.parametrize(
    "stop_at",
    [np.int64(1), np.array(1), jnp.asarray(1)],
    ids=["numpy", "array", "JAX"],
)
def test_whole_numbers_of_numpy_and_jax_are_cuts(stop_at):
    assert merge(stop_at=stop_at).origin.stop_at == 1


@pytest.mark.parametrize("stop_at", [np.float64(1), np.True_, np.array([1])], ids=repr)
def test_other_numbers_are_no_cuts(stop_at):
    with pytest.raises(ValueError, match="is not a valid cut"):
        merge(stop_at=stop_at)


def cast(models, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), models)


def test_a_merge_beyond_the_range_of_float16_is_told():
    models = cast(MODELS, jnp.float16)
    for sign, model in zip((1, -1), models, strict=True):
        model["layers"][1]["w"] = model["layers"][1]["w"].at[0, 0].set(sign * 6e4)
    message = r"merged parameter 'layers/1/w' overflows float16.*finite"
    with pytest.raises(ValueError, match=message):
        merge(models, weights=(1.5, -0.5))
    wide = merge(cast(models, jnp.float32), weights=(1.5, -0.5))
    assert wide.trunk["layers/1/w"][0, 0] == pytest.approx(1.2e5, rel=1e-3)
    assert merge(models, weights=(0.5, 0.5)).trunk["layers/1/w"][0, 0] == 0


@pytest.mark.parametrize("dtype", [jnp.int8, bool])
def test_units_of_parameters_that_cannot_be_averaged(dtype):
    models = copy.deepcopy(MODELS)
    for model in models:
        model["layers"][1]["w"] = jnp.ones((6, 5), dtype)
    name = jnp.dtype(dtype).name
    with pytest.raises(
        ValueError, match=f"'layers/1/w' of model 0 is {name}, but .*cast"
    ):
        merge(models)


def test_complex_parameters_are_refused_with_a_declared_spec():
    with pytest.raises(ValueError, match="of dtype complex64"):
        merge(cast(MODELS, jnp.complex64))


def changed(moments, change):
    """The moments, the m2 of one perm changed."""
    m2 = np.array(moments["h1"].m2)
    change(m2)
    spoilt = zipjax.Moments(
        moments["h1"].count, moments["h1"].mean, moments["h1"].mean_tail, m2
    )
    return moments | {"h1": spoilt}


def negate(m2):
    m2[2, 2] *= -1


def nan(m2):
    m2[2, 2] = np.nan


def tilt(m2):
    m2[1, 2] += 0.5 * np.abs(m2).max()


def stray(m2):
    m2[1, 2] = m2[2, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (negate, "'h1' have second moments from -.*diagonal"),
        (nan, "'h1' have second moments from nan"),
        (tilt, "'h1' differs from its transpose"),
        (stray, "'h1' differs from its transpose by nan"),
    ],
)
def test_second_moments_that_are_none(moments, change, message):
    with pytest.raises(ValueError, match=message):
        merge(recipe=zipjax.zipit(), moments=changed(moments, change))
    same = merge(recipe=zipjax.zipit(), moments=changed(moments, lambda m2: None))
    assert set(same.assignments) == {"h0", "h1"}


def test_moments_of_no_sample():
    none = {perm: zipjax.Moments.empty(2 * n) for perm, n in SPEC.sizes.items()}
    with pytest.raises(ValueError, match=r"'h0' are of no sample .*count is 0.0"):
        merge(recipe=zipjax.zipit(), moments=none)
