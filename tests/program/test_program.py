"""Traced programs compute what the function computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import dense_apply, dense_params, images
from zipjax.program.program import Derived, Literal, compute_values, trace

TABLE = np.arange(4, dtype=np.float32)


@jax.custom_jvp
def cube(x):
    return x**3


cube.defjvp(lambda primals, tangents: (cube(*primals), 0 * tangents[0]))


@jax.custom_vjp
def halve(x):
    return x / 2


halve.defvjp(lambda x: (x / 2, None), lambda _, g: (g,))


def layer(params, x):
    return jax.nn.relu(x @ params["w"]) + TABLE


def scanned(params, x):
    def step(carry, scale):
        carry = jnp.tanh(carry @ params["w"]) * scale
        return carry, carry.sum()

    last, sums = jax.lax.scan(step, x, jnp.arange(3.0))
    return {"last": last, "sums": sums}


def branches(params, x):
    x = jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)
    x = jax.lax.while_loop(lambda y: y.sum() < 50, lambda y: y + 1, x)
    return jax.lax.fori_loop(0, 3, lambda k, y: y + k * params["w"][0], x)


@jax.jit
def nested_jit(params, x):
    inner = jax.jit(lambda y: jax.jit(jnp.exp)(y) @ params["w"])
    return inner(x), inner(2 * x)


FUNCTIONS = {
    "plain": layer,
    "jit": jax.jit(layer),
    "nested jit": nested_jit,
    "remat": jax.checkpoint(layer),
    "remat in jit": jax.jit(lambda p, x: jax.checkpoint(jax.jit(layer))(p, x)),
    "custom_jvp": lambda p, x: cube(layer(p, x)),
    "custom_vjp": lambda p, x: halve(layer(p, cube(x))),
    "scan": scanned,
    "control flow": branches,
    "vmap": lambda p, x: jax.vmap(layer, (None, 0))(p, x[:, None]),
    "gradient": lambda p, x: jax.grad(lambda p: layer(p, x).sum())(p),
    "closure": jax.jit(lambda p, x: layer(p, x) * jnp.asarray(TABLE) + TABLE.sum()),
    "inputs and constants as outputs": lambda p, x: (x, p["w"], 3.0, TABLE, x),
    "library": lambda p, x: jax.nn.softmax(jax.nn.gelu(x @ p["w"])),
    "several results": lambda p, x: jax.lax.top_k(jnp.split(x, 2, axis=1)[1], 2),
}
PARAMS = {"w": images(4, (4,), seed=1)}
X = images(5, (4,), seed=2)


def run(function, params, *inputs, compiled=False):
    program = trace(function, params, *inputs)
    leaves = dict(zip(program.params, jax.tree.leaves(params), strict=True))

    def compute(leaves, inputs):
        return compute_values(program, leaves, jax.tree.leaves(inputs), program.outputs)

    return (jax.jit(compute) if compiled else compute)(leaves, inputs)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_a_program_computes_its_function(function, compiled):
    expected = jax.tree.leaves(function(PARAMS, X))
    found = run(function, PARAMS, X, compiled=compiled)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["jit", "remat in jit", "custom_jvp", "custom_vjp"])
def test_calls_are_inlined(name):
    program = trace(FUNCTIONS[name], PARAMS, X)
    names = {eqn.primitive.name for eqn in program.equations}
    assert "dot_general" in names
    assert not [n for n in names if "jit" in n or "custom" in n or "checkpoint" in n]


def test_paths_inputs_and_shapes():
    params = dense_params((4, 3, 2), 0)
    program = trace(
        lambda p, x, extra: dense_apply(p, x) + extra["a"], params, X, {"a": 1.0}
    )
    assert list(program.params) == [
        "layers/0/b",
        "layers/0/w",
        "layers/1/b",
        "layers/1/w",
    ]
    assert program.avals[program.params["layers/1/w"]].shape == (3, 2)
    assert [program.avals[k].shape for k in program.inputs] == [(5, 4), ()]
    (output,) = program.outputs
    assert program.avals[output].shape == (5, 2)
    assert program.producers()[output].primitive.name == "add"


def test_tracing_needs_shapes_only():
    params = dense_params((4, 3, 2), 0)
    abstract = jax.eval_shape(lambda: params)
    program = trace(dense_apply, abstract, jax.ShapeDtypeStruct(X.shape, X.dtype))
    leaves = dict(zip(program.params, jax.tree.leaves(params), strict=True))
    (found,) = compute_values(program, leaves, [X], program.outputs)
    np.testing.assert_allclose(found, dense_apply(params, X), rtol=1e-6)


def test_what_is_not_needed_is_not_run():
    calls = []

    def count(x):
        calls.append(x)
        return x

    def function(params, x):
        return x @ params["w"], jax.pure_callback(count, X, x)

    program = trace(function, PARAMS, X)
    (found,) = compute_values(program, PARAMS, [X], program.outputs[:1])
    np.testing.assert_allclose(found, X @ PARAMS["w"], rtol=1e-5)
    assert not calls
    _, echo = compute_values(program, PARAMS, [X], program.outputs)
    np.testing.assert_array_equal(echo, X)
    assert len(calls) == 1


def test_derived_values_replace_computed_ones_and_parameters():
    def function(params, x):
        return (x - params["mean"]) / params["scale"]

    params = {"mean": jnp.zeros(4), "scale": jnp.full(4, 2.0)}
    program = trace(function, params, X)
    (x,) = program.inputs
    rules = {program.params["mean"]: Derived((x,), lambda x: x.mean(0))}
    leaves = {"mean": params["mean"], "scale": params["scale"]}
    found, mean = compute_values(
        program, leaves, [X], (*program.outputs, program.params["mean"]), rules
    )
    np.testing.assert_allclose(found, (X - X.mean(0)) / 2, rtol=1e-6)
    np.testing.assert_allclose(mean, X.mean(0), rtol=1e-6)


def test_programs_may_be_deeper_than_pythons_stack():
    def deep(params, x):
        return functools.reduce(lambda y, _: y + params["w"][0], range(1200), x)

    (found,) = run(deep, PARAMS, X)
    np.testing.assert_allclose(found, X + 1200 * PARAMS["w"][0], rtol=1e-3)


def test_literals_evaluate_to_themselves():
    program = trace(lambda p, x: x, PARAMS, X)
    assert compute_values(program, PARAMS, [X], [Literal(7)]) == [7]


def test_values_within_scans_are_stacked_over_the_iterations():
    """Of nested scans, with the second one's rows reversed."""

    def apply_fn(params, x):
        def outer(h, w):
            def inner(h, row):
                h = jnp.tanh(h @ w) * row
                return h, None

            h, _ = jax.lax.scan(inner, h, jnp.arange(1.0, 3.0), reverse=True)
            return h, None

        return jax.lax.scan(outer, x, params["w"])[0]

    params = {"w": images(3, (4, 4))}
    x = images(2, (4,), seed=1)
    program = trace(apply_fn, params, x)
    (scan,) = (e for e in program.equations if e.primitive.name == "scan")
    (inner,) = (e for e in scan.bodies[0].equations if e.primitive.name == "scan")
    product = next(
        e for e in inner.bodies[0].equations if e.primitive.name == "dot_general"
    )
    found, output = compute_values(
        program, params, [x], [product.results[0], *program.outputs]
    )
    h, expected = x, np.empty((3, 2, 2, 4))
    for k, w in enumerate(params["w"]):
        for row in (1, 0):
            expected[k, row] = h @ w
            h = np.tanh(h @ w) * (1 + row)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(output, h, atol=1e-5)


def test_what_leads_to_no_output_is_left_out_unless_it_has_effects():
    seen = []

    def apply_fn(params, x):
        jnp.sin(x @ params["w"])
        jax.debug.callback(seen.append, x)
        return x + 1

    program = trace(apply_fn, {"w": np.ones((3, 3), np.float32)}, images(2, (3,)))
    names = [eqn.primitive.name for eqn in program.equations]
    assert names == ["debug_callback", "add"]
