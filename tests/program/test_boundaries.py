"""Boundaries of programs: found by hand in small graphs, and run in two parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import images, relative_error
from zipjax.program.boundaries import boundary_value, boundary_values
from zipjax.program.program import compute_from, trace

X = images(5, (4,))
PARAMS = {name: images(4, (4,), seed) for seed, name in enumerate("abcdefgh")}


def found(apply_fn, *inputs):
    """The parameters before each boundary, with those read after it, each once."""
    program = trace(apply_fn, PARAMS, *inputs)
    values = boundary_values(program)
    keys = (("".join(sorted(x.trunk)), "".join(sorted(x.shared))) for x in values)
    return list(dict.fromkeys(keys))


def test_a_chain_has_a_boundary_after_every_parameter():
    def chain(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) + p["b"][0]) @ p["c"]

    assert found(chain, X) == [("a", ""), ("ab", ""), ("abc", "")]


def test_a_block_is_crossed_by_its_residual_connection():
    def block(p, x):
        x = x @ p["a"]
        x = x + jnp.tanh(x @ p["b"]) @ p["c"]
        return (x / jnp.linalg.norm(x)) @ p["d"]

    assert found(block, X) == [("a", ""), ("abc", ""), ("abcd", "")]


def test_what_depends_on_inputs_or_parameters_alone_may_be_computed_again():
    def masked(p, x):
        mask, gate = jnp.cumsum(x, 1) > 0, jax.nn.softmax(p["e"])
        x = jnp.where(mask, (x @ p["a"]) * gate[0], 0)
        return jnp.where(mask, (x @ p["b"]) * gate[1], 0) @ p["a"].T

    before = [("a", "a"), ("ae", "ae"), ("abe", "ae")]
    assert found(masked, X) == [*before, ("abe", "a"), ("abe", "")]


def test_boundaries_do_not_depend_on_the_order_of_branches():
    """An encoder a, b, c, and d, which reads it twice: beside it until the end."""

    def encoded(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]

    def decoded(p, y, memory):
        return (y * memory + memory) @ p["e"]

    def before(p, x):
        memory = encoded(p, x)
        return decoded(p, x @ p["d"], memory)

    def after(p, x):
        y = x @ p["d"]
        return decoded(p, y, encoded(p, x))

    branches = [("a", ""), ("ab", ""), ("abc", ""), ("d", "")]
    ends = [("abcd", ""), ("abcde", "")]
    assert found(before, X) == branches + ends
    assert sorted(found(after, X)) == sorted(branches + ends)


def test_an_output_in_the_middle_and_dead_code():
    def two(p, x):
        x = jnp.tanh(x @ p["a"])
        y = jnp.tanh(x @ p["b"])
        del_me = (x @ p["h"]).sum()
        del del_me
        return x @ p["c"], y @ p["d"]

    assert found(two, X) == [("a", "")]

    def inner(p, x):
        x = jnp.tanh(x @ p["a"])
        return x.sum(), x @ p["b"] + x @ p["c"]

    # The first output is read after the value, and so is no way around it.
    assert found(inner, X) == [("a", "")]


def test_one_result_of_a_loop_is_none_if_another_is_read():
    def loop(p, x):
        def step(carry, row):
            return carry @ p["a"], carry + row

        last, rows = jax.lax.scan(step, x, x[:, None])
        return (jnp.tanh(last) @ p["b"]) @ p["c"] + rows.sum()

    assert ("a", "") not in found(loop, X)


def test_a_program_runs_in_two_parts():
    def apply_fn(p, x):
        mask = x > 0
        x = jnp.tanh(x @ p["a"]) * mask
        return {"y": (x @ p["b"]) * mask, "x": x}

    program = trace(apply_fn, PARAMS, X)
    fits = [(5, 4)].__contains__
    end = boundary_value(program, {"a"}, frozenset(), fits)
    known = {program.params["a"]: PARAMS["a"], program.inputs[0]: X}
    (value,) = compute_from(program, known, [end])
    assert relative_error(value, X @ PARAMS["a"]) < 1e-6
    rest = {program.params["b"]: PARAMS["b"], program.inputs[0]: X, end: 2 * value}
    outputs = compute_from(program, rest, program.outputs)
    x = np.tanh(2 * X @ PARAMS["a"]) * (X > 0)
    expected = [x, (x @ PARAMS["b"]) * (X > 0)]
    for output, wanted in zip(outputs, expected, strict=True):
        assert relative_error(output, wanted) < 1e-5
    with pytest.raises(ValueError, match=r"no value through .*\['b'\]. Infer"):
        boundary_value(program, {"b"}, frozenset(), fits)
