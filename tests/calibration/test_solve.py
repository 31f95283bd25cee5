"""The affine operations after a layer, and its normal equations, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zipjax.calibration import solve
from zipjax.calibration.passes import Pass, traced_network
from zipjax.calibration.solve import measure_affine, solve_layer
from zipjax.calibration.targets import as_target, first_rows
from zipjax.program.layers import find_layers
from zipjax.program.program import trace
from zipjax.program.rows import input_rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 5)).astype(np.float32) + 3
NORM = {
    "w": RNG.normal(size=(5, 4)),
    "b": RNG.normal(size=4),
    "mean": RNG.normal(size=4),
    "scale": np.array([0.5, 2.0, -1.0, 0.0]),
    "shift": RNG.normal(size=4),
}
NORM = {name: jnp.asarray(x, jnp.float32) for name, x in NORM.items()}


def normalised(params, x):
    y = x @ params["w"] + params["b"]
    return (y - params["mean"]) * params["scale"] / 4 + params["shift"]


def start(apply_fn, params):
    batches = [(X[:40],), (X[40:],)]
    return Pass(traced_network(apply_fn, params), params, batches)


def test_slope_offset_and_step_of_a_layer():
    current = start(normalised, NORM)
    layer = current.layers()["w"]
    assert layer.bias == "shift"
    affine = measure_affine(current, layer)
    assert affine is not None
    scale = np.float64(NORM["scale"]) / 4
    offset = (np.float64(NORM["b"]) - NORM["mean"]) * scale + NORM["shift"]
    np.testing.assert_allclose(affine.slope, scale, atol=1e-6)
    np.testing.assert_allclose(affine.offset, offset, atol=1e-6)
    np.testing.assert_allclose(affine.step, 1, atol=1e-6)


def positions(params, x):
    return x @ params["w"] + jnp.arange(80.0)[: len(x), None]


def test_operations_that_differ_between_samples_are_not_affine():
    params = {"w": NORM["w"]}
    current = start(positions, params)
    assert measure_affine(current, current.layers()["w"]) is None
    parent = start(positions, params)
    solve_layer(current, [parent], "w", as_target(first_rows), ridge=1e-3, sweeps=0)
    assert current.leaves["w"] is params["w"]


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_a_layer_is_solved_through_its_affine_operations(ridge):
    parent = NORM | {"w": NORM["w"] + 1, "b": NORM["b"] - 2}
    current = start(normalised, NORM)
    target = as_target(first_rows)
    solve_layer(
        current, [start(normalised, parent)], "w", target, ridge=ridge, sweeps=0
    )
    wanted = np.float64(normalised(jax.tree.map(np.float64, parent), np.float64(X)))
    x = np.float64(X) - X.mean(0, np.float64)
    scale = np.float64(NORM["scale"]) / 4
    weight = np.sqrt(ridge * np.square(x).sum(0).mean())
    rows = np.concatenate([x, weight * np.eye(5)])
    right = np.concatenate([wanted - wanted.mean(0), weight * NORM["w"] * scale])
    solution = np.linalg.lstsq(rows, right)[0]
    alive = np.array([True, True, True, False])
    found = np.float64(current.leaves["w"])
    np.testing.assert_allclose(
        found[:, alive], (solution / np.where(alive, scale, 1))[:, alive], atol=2e-3
    )
    # A unit that is switched off keeps its kernel.
    np.testing.assert_array_equal(found[:, 3], NORM["w"][:, 3])
    outputs = np.float64(normalised(current.leaves, X))
    np.testing.assert_allclose(outputs.mean(0)[alive], wanted.mean(0)[alive], atol=1e-3)


def convolution(params, x):
    return jax.lax.conv_general_dilated(
        x, params["w"], (1, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# All seven examples at once; three slices of two and the rest; one after the other.
@pytest.mark.parametrize("examples", [7, 3, 1])
def test_second_moments_of_slices_are_those_of_the_batch(monkeypatch, examples):
    x = jnp.asarray(RNG.normal(size=(7, 6, 5, 2)) + 3, jnp.float32)
    params = {"w": jnp.ones((3, 3, 2, 4))}
    layer = find_layers(trace(convolution, params, x))["w"]
    rows = np.float64(input_rows(layer, x))
    size = 4 * rows.size * examples // len(x)
    monkeypatch.setattr(solve, "_FEW_BYTES", size)
    monkeypatch.setattr(solve, "_MOST_BYTES", size)
    x0, total, second = solve._input_moments(layer, x, rows.shape[0])
    np.testing.assert_allclose(x0, rows.mean(0), rtol=1e-5)
    centred = rows - rows.mean(0)
    np.testing.assert_allclose(total, (rows - x0).sum(0), atol=1e-2)
    np.testing.assert_allclose(second, centred.T @ centred, rtol=1e-4, atol=1e-3)
