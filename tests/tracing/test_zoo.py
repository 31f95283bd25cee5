"""Every model of the zoo: all perms are found, and they are perms."""

import pytest

from tests.tracing.permuting import error_of
from tests.zoo import convnets, vits
from zipjax.tracing import infer_spec

CASES = {**convnets.CASES, **vits.CASES}


@pytest.mark.parametrize("name", CASES)
def test_number_of_perms_and_invariance(name: str) -> None:
    case = CASES[name]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    spec.validate(case.params)
    assert len(spec.perms) == case.perms, dict(spec.perms)
    assert max(error_of(case, spec, seed) for seed in range(3)) < 1e-5
