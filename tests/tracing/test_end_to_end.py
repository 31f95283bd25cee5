"""A network that nobody declared is merged from its inferred spec alone."""

import dataclasses

import pytest

import zipjax
from tests.zoo import convnets, sequences, vits

CASES = {**convnets.CASES, **vits.CASES, **sequences.CASES}


@pytest.mark.parametrize("name", ["vit-linen-mean", "resnet-group"])
def test_every_perm_is_tapped(name: str) -> None:
    case = CASES[name]()
    spec = zipjax.infer_spec(case.apply_fn, case.params, *case.inputs)
    moments = zipjax.collect_moments(
        case.apply_fn, [case.params] * 2, spec, [case.inputs]
    )
    assert set(moments) == set(spec.perms)


def test_moments_serve_a_spec_whose_notes_changed() -> None:
    case = CASES["mlp"]()
    spec = zipjax.infer_spec(case.apply_fn, case.params, *case.inputs)
    models = [case.params] * 2
    moments = zipjax.collect_moments(case.apply_fn, models, spec, [case.inputs])
    again = dataclasses.replace(spec, notes=None)
    assert spec.notes is not None
    assert zipjax.source_of(models, again) == zipjax.source_of(models, spec)
    zipjax.merge(models, again, zipjax.zipit(), moments=moments)
