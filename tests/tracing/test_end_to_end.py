"""A network that nobody declared is merged from its inferred spec alone."""

import dataclasses

import jax
import numpy as np
import pytest

import zipjax
from benchmarks.zoo.case import normal
from tests.zoo import convnets, sequences, vits

CASES = {**convnets.CASES, **vits.CASES, **sequences.CASES}


@pytest.mark.parametrize("name", ["convnext", "densenet-batch"])
def test_a_permuted_copy_is_merged_without_loss(name: str) -> None:
    case = CASES[name]()
    spec = zipjax.infer_spec(case.apply_fn, case.params, *case.inputs)
    planted = zipjax.random_permutations(spec, jax.random.key(0))
    models = [case.params, zipjax.permute_params(case.params, spec, planted)]
    images = normal(256, *case.inputs[0].shape[1:])
    moments = zipjax.collect_moments(case.apply_fn, models, spec, [(images,)])
    merged = zipjax.merge(models, spec, zipjax.permute(), moments=moments)
    # Parameters may differ, and networks of random ReLUs after a Dense layer cannot be
    # tested: units that are active on none or one of these images look the same.
    expected = case.apply_fn(case.params, images)
    found = zipjax.apply(case.apply_fn, merged, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


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


def test_moments_serve_a_spec_whose_notes_changed() -> None:
    case = CASES["mlp"]()
    spec = zipjax.infer_spec(case.apply_fn, case.params, *case.inputs)
    models = [case.params] * 2
    moments = zipjax.collect_moments(case.apply_fn, models, spec, [case.inputs])
    again = dataclasses.replace(spec, notes=None)
    assert spec.notes is not None
    assert zipjax.source_of(models, again) == zipjax.source_of(models, spec)
    zipjax.merge(models, again, zipjax.zipit(), moments=moments)
