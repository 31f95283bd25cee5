"""Parts of programs: equal ones have one key, and all compute what the whole does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zipjax.program.canonical import fragment, run_fragment
from zipjax.program.program import trace, values_of

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)


def whole(function, *arrays):
    """The fragment of a function from its inputs to its outputs."""
    program = trace(lambda params, *inputs: function(*inputs), {}, *arrays)
    return fragment(program, program.inputs, values_of(program.outputs)), program


def looped(constant):
    def function(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y) * 2.0 + constant, x)

    return function


def key(function):
    return whole(function, X)[0].program


def test_equal_functions_have_equal_keys():
    for make in (lambda: lambda x: jnp.sin(x) * 2.0, lambda: looped(0.5)):
        assert key(make()) == key(make())
        assert hash(key(make())) == hash(key(make()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x * 2.0, lambda x: x * 3.0),
        (lambda x: x * 0.0, lambda x: x * -0.0),
        (lambda x: x.sum(0), lambda x: x.sum(1)),
        (lambda x: x - jnp.sin(x), lambda x: jnp.sin(x) - x),
        (looped(0.5), looped(0.25)),
    ],
)
def test_other_functions_have_other_keys(one, other):
    assert key(one) != key(other)


def test_constants_closed_over_are_data():
    shifts = [jnp.arange(4.0), jnp.arange(4.0) + 1]
    parts = [whole(lambda x, shift=shift: x + shift, X) for shift in shifts]
    assert parts[0][0].program == parts[1][0].program
    for shift, (part, program) in zip(shifts, parts, strict=True):
        given = part.arguments({}, dict(zip(program.inputs, [X], strict=True)))
        np.testing.assert_allclose(run_fragment(part.program, given)[0], X + shift)


def test_blocks_of_a_network_are_one_program():
    params = {"a": jnp.eye(4) * 2, "b": jnp.eye(4) * 3}

    def apply_fn(params, x):
        return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"])

    program = trace(apply_fn, params, X)
    middle = program.equations[1].results
    first = fragment(program, program.inputs, middle)
    second = fragment(program, middle, values_of(program.outputs))
    assert first.program == second.program
    (half,) = run_fragment(
        first.program, first.arguments(params, {program.inputs[0]: X})
    )
    (found,) = run_fragment(second.program, second.arguments(params, {middle[0]: half}))
    np.testing.assert_allclose(found, apply_fn(params, X), rtol=1e-6)
