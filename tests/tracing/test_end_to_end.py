"""A network that nobody declared is merged from its inferred spec alone."""

import jax
import numpy as np
import pytest

import zipjax
from tests.zoo import convnets, sequences, vits
from tests.zoo.case import normal
from zipjax.trees import path_leaves

CASES = {**convnets.CASES, **vits.CASES, **sequences.CASES}


@pytest.mark.parametrize("name", ["vgg", "densenet-batch"])
def test_a_permuted_copy_is_merged_without_loss(name: str) -> None:
    case = CASES[name]()
    spec = zipjax.infer_spec(case.apply_fn, case.params, *case.inputs)
    planted = zipjax.random_permutations(spec, jax.random.key(0))
    models = [case.params, zipjax.permute_params(case.params, spec, planted)]
    batches = [(normal(256, *case.inputs[0].shape[1:]),)]
    moments = zipjax.collect_moments(case.apply_fn, models, spec, batches)
    merged = zipjax.merge(models, spec, zipjax.permute(), moments=moments)
    expected, found = path_leaves(case.params), path_leaves(merged.params())
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["vit-linen-mean", "resnet-group"])
def test_every_perm_is_tapped(name: str) -> None:
    case = CASES[name]()
    spec = zipjax.infer_spec(case.apply_fn, case.params, *case.inputs)
    moments = zipjax.collect_moments(
        case.apply_fn, [case.params] * 2, spec, [case.inputs]
    )
    assert set(moments) == set(spec.perms)


def test_units_of_a_loop_have_no_tap() -> None:
    case = CASES["lstm-fused"]()
    spec = zipjax.infer_spec(case.apply_fn, case.params, *case.inputs)
    with pytest.raises(ValueError, match="outside of loops"):
        zipjax.collect_moments(case.apply_fn, [case.params] * 2, spec, [case.inputs])
