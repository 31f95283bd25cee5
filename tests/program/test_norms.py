"""Norms with running statistics, found by what is computed with them."""

import jax
import jax.numpy as jnp
import pytest

from zipjax.program.dependence import multiplied_parameters, read_parameters
from zipjax.program.norms import find_norms
from zipjax.program.program import trace

X = jnp.ones((5, 2, 4))
EPS = 1e-5
PARAMS = {"m": jnp.ones(4), "v": jnp.ones(4), "g": jnp.ones(4), "b": jnp.ones(4)}

FORMS = {
    "rsqrt": lambda p, x: (x - p["m"]) * jax.lax.rsqrt(p["v"] + EPS) * p["g"] + p["b"],
    "sqrt": lambda p, x: p["g"] * (x - p["m"]) / jnp.sqrt(p["v"] + EPS) + p["b"],
    "one over sqrt": lambda p, x: (x - p["m"]) * (p["g"] * (1 / jnp.sqrt(p["v"]))),
    "power": lambda p, x: (x - p["m"]) * (p["v"] + EPS) ** -0.5,
    "half a power": lambda p, x: (x - p["m"]) / jnp.power(EPS + p["v"], 0.5),
    "powers": lambda p, x: (x - p["m"]) * jnp.sqrt(p["v"] + EPS) ** -1,
    "clipped": lambda p, x: (x - p["m"]) / jnp.sqrt(jnp.maximum(p["v"], 0) + EPS),
    "cast": lambda p, x: (
        (x.astype(jnp.bfloat16) - p["m"].astype(jnp.bfloat16)).astype(jnp.float32)
        * jax.lax.rsqrt(p["v"].astype(jnp.float32) + EPS)
    ),
    "scaled first": lambda p, x: (x - p["m"]) * p["g"] * jax.lax.rsqrt(p["v"] + EPS),
}


def frozen(p, x):
    """As in DETR: one product and one sum."""
    scale = p["g"] * jax.lax.rsqrt(p["v"] + EPS)
    return x * scale + (p["b"] - p["m"] * scale)


def folded(p, x):
    scale = jax.lax.rsqrt(p["v"] + EPS)
    return x * scale - p["m"] * scale


FORMS |= {"frozen": frozen, "folded": folded}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_forms_of_batch_norm(form):
    program = trace(form, PARAMS, X)
    found = find_norms(program)
    (norm,) = found.norms
    assert (norm.centre.mean.path, norm.variance.path) == ("m", "v")
    assert norm.centre.axes == (None, None, 0)
    assert program.avals[norm.centre.source].shape == X.shape
    assert found.roots == {"v"}


LAYOUTS = {
    "kept axes": ((1, 1, 4), lambda m: m, (None, None, 2)),
    "a leading axis": ((1, 4), lambda m: m, (None, None, 1)),
    "transposed": ((4, 1), lambda m: m.T, (None, None, 0)),
    "two axes": ((4, 2), lambda m: m.T, (None, 1, 0)),
    "a number": ((), lambda m: m, (None, None, None)),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_of_statistics(layout):
    shape, view, axes = layout
    params = {"m": jnp.ones(shape), "v": jnp.ones(shape)}
    program = trace(
        lambda p, x: (x - view(p["m"])) / jnp.sqrt(view(p["v"]) + EPS), params, X
    )
    (norm,) = find_norms(program).norms
    assert norm.centre.axes == axes


NONE = {
    "layer norm": lambda p, x: (x - x.mean(-1, keepdims=True)) * p["g"] + p["b"],
    "a bias": lambda p, x: (x - p["b"]) * p["g"],
    "log variance": lambda p, x: (x - p["m"]) / jnp.sqrt(jnp.exp(p["v"])),
    "a fixed scale": lambda p, x: (x - p["m"]) / p["v"],
    "nonlinear between": lambda p, x: jnp.tanh(x - p["m"]) * jnp.exp(p["g"]),
    "products of parameters": lambda p, x: (
        x @ jnp.outer(p["v"], p["m"]).T + jnp.outer(p["b"], p["g"]).sum(0)[None]
    ),
    "centred by data": lambda p, x: (p["m"] - x) * p["g"],
}


@pytest.mark.parametrize("form", NONE.values(), ids=NONE.keys())
def test_what_is_no_norm(form):
    found = find_norms(trace(form, PARAMS, X))
    assert not found.norms
    assert not found.roots


def test_a_root_without_a_mean_is_recorded():
    found = find_norms(trace(lambda p, x: x / jnp.sqrt(p["v"] + EPS), PARAMS, X))
    assert (found.norms, found.roots) == ((), {"v"})
    nonlinear = lambda p, x: jnp.tanh(x - p["m"]) / jnp.sqrt(p["v"])  # noqa: E731
    found = find_norms(trace(nonlinear, PARAMS, X))
    assert (found.norms, found.roots, set(found.centres)) == ((), {"v"}, {"m"})


def test_parameters_that_the_outputs_depend_on():
    def apply_fn(p, x):
        _ = x * p["g"]  # Computed and dropped.
        return jax.lax.scan(lambda c, _: (c + p["m"], None), x, None, length=2)[0]

    assert read_parameters(trace(apply_fn, PARAMS, X)) == {"m"}


def test_parameters_that_multiply_data():
    def apply_fn(p, x):
        x = x @ p["w"].T + p["b"]
        x = x @ (p["stack"][1] / jnp.linalg.norm(p["stack"][1]))
        x = jax.lax.scan(lambda c, w: (c @ w, None), x, p["scanned"])[0]
        x = x * p["g"] + p["table"][jnp.argmax(x, -1)]
        return (x[..., None] * p["summed"]).sum(-2) + jnp.tanh(x * p["scale"])

    square = jnp.ones((4, 4))
    params = {**PARAMS, "w": square, "stack": jnp.ones((2, 4, 4)), "table": square}
    params |= {"scanned": jnp.ones((3, 4, 4)), "summed": square}
    program = trace(apply_fn, params | {"scale": jnp.ones((2, 4))}, X)
    assert set(multiplied_parameters(program)) == {"w", "stack", "scanned", "summed"}
