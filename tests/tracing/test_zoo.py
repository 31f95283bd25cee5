"""Every model of the zoo: all perms are found, and they are perms."""

import jax
import pytest

from tests.zoo import convnets, sequences, vits
from zipjax.spec.verify import verify_spec
from zipjax.tracing.infer import infer_spec

CASES = {**convnets.CASES, **vits.CASES, **sequences.CASES}


@pytest.mark.parametrize("name", CASES)
def test_number_of_perms_and_invariance(name: str) -> None:
    case = CASES[name]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    spec.validate(case.params)
    assert len(spec.perms) == case.perms, dict(spec.perms)
    verify_spec(case.apply_fn, case.params, spec, *case.inputs, key=jax.random.key(0))
