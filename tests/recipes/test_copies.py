"""The rule for all models and recipes: a network merged with a copy of it is itself.

The copy has its units reordered, groups as a whole. Whatever cannot tell units apart,
or compares what does not correspond, shows.
"""

import functools

import jax
import numpy as np
import pytest

import zipjax
from benchmarks.zoo.case import Case
from tests.models.catalog import TINY
from tests.networks import awake, randomise, relative_error
from tests.zoo import CASES as ZOO

RECIPES = {
    "permute": zipjax.permute(),
    "zipit": zipjax.zipit(),
    "git_rebasin": zipjax.git_rebasin(),
    "weight_zip": zipjax.weight_zip(beta=0.0),
    "mudsc_align": zipjax.mudsc(0.5, "align"),
    "mudsc_zip": zipjax.mudsc(0.5, beta=0.0),
}
SAMPLES = 128


def tiny(name):
    net = TINY[name]
    model = awake(net, randomise(net.shapes, 0))
    x = np.zeros((1, net.side, net.side, 3), np.float32)
    return Case(net.model.apply, model, (x,), net.perms)


CASES = {**ZOO, **{f"tiny-{name}": functools.partial(tiny, name) for name in TINY}}


def drawn(x, rng):
    """Inputs like these: more of them, so that units differ in what they do."""
    shape = (SAMPLES, *x.shape[1:])
    if x.dtype == bool:
        return rng.uniform(size=shape) > 0.5
    if np.issubdtype(x.dtype, np.integer):
        return rng.integers(0, x.max() + 1, shape).astype(x.dtype)
    return rng.normal(size=shape).astype(x.dtype)


@functools.lru_cache(maxsize=1)
def copies(name):
    jax.clear_caches()  # Of all models, there would be too many programs.
    case = CASES[name]()
    spec = zipjax.infer_spec(case.apply_fn, case.params, *case.inputs)
    # By weights alone, ascent from the units' own order finds most copies, not all: of
    # eight draws, one of "loops" and two of "tiny-swin" end in another optimum.
    planted = zipjax.random_permutations(spec, jax.random.key(2))
    models = [case.params, zipjax.permute_params(case.params, spec, planted)]
    rng = np.random.default_rng(5)
    inputs = tuple(drawn(np.asarray(x), rng) for x in case.inputs)
    device = jax.local_devices()[:1]
    moments = zipjax.collect_moments(
        case.apply_fn, models, spec, [inputs], devices=device
    )
    forward = jax.jit(case.apply_fn)
    return models, spec, moments, forward, inputs


@pytest.mark.parametrize("recipe", [None, *RECIPES])
@pytest.mark.parametrize("name", CASES)
def test_a_model_merged_with_a_copy_is_itself(name, recipe):
    models, spec, moments, forward, inputs = copies(name)
    params, tolerance = models[1], 1e-5  # Without a recipe: the copy itself.
    if recipe is not None:
        tolerance = 1e-4
        merged = zipjax.merge(
            models, spec, RECIPES[recipe], moments=moments, key=jax.random.key(3)
        )
        params = merged.params()
    found, expected = (
        jax.tree.leaves(forward(p, *inputs)) for p in (params, models[0])
    )
    for output, wanted in zip(found, expected, strict=True):
        assert relative_error(output, wanted) < tolerance
