"""No random program may get an unsound spec."""

import jax
import numpy as np
import pytest

from tests.tracing.programs import RandomProgram
from zipjax.spec.verify import verify_spec
from zipjax.tracing.infer import infer_spec


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_get_sound_specs(seed: int) -> None:
    # Random programs are less stable than networks: float64 keeps noise below errors.
    with jax.enable_x64(True):
        program = RandomProgram(seed, length=10 + 2 * seed, dtype=np.float64)
        spec = infer_spec(program, program.params, program.x)
        arguments = program, program.params, spec, program.x
        verify_spec(*arguments, key=jax.random.key(seed), trials=2, tolerance=1e-7)


def test_most_random_programs_have_perms() -> None:
    programs = [RandomProgram(seed) for seed in range(6)]
    specs = [infer_spec(p, p.params, p.x) for p in programs]
    assert sum(len(spec.perms) > 0 for spec in specs) >= 5
