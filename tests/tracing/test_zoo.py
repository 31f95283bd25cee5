"""Every model of the zoo: all perms are found, and they are perms.

That copies with reordered units are the same function is seen in
``tests/recipes/test_copies.py``.
"""

import pytest

from tests.zoo import CASES
from zipjax.tracing.infer import infer_spec


@pytest.mark.parametrize("name", CASES)
def test_number_of_perms(name: str) -> None:
    case = CASES[name]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    spec.validate(case.params)
    assert len(spec.perms) == case.perms, dict(spec.perms)
