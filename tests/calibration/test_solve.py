"""The affine operations after a layer, and its normal equations, against numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zipjax.calibration import samples
from zipjax.calibration.passes import Pass, traced_network
from zipjax.calibration.samples import LayerSamples, Sampling
from zipjax.calibration.solve import measure_affine, solve_layer
from zipjax.calibration.targets import as_target, first_rows

RNG = np.random.default_rng(0)
ALL = Sampling("all", [0], math.inf)
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
    solve_layer(
        current,
        [parent],
        "w",
        as_target(first_rows),
        sampling=ALL,
        ridge=1e-3,
        sweeps=0,
    )
    assert current.leaves["w"] is params["w"]


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_a_layer_is_solved_through_its_affine_operations(ridge):
    parent = NORM | {"w": NORM["w"] + 1, "b": NORM["b"] - 2}
    current = start(normalised, NORM)
    target = as_target(first_rows)
    solve_layer(
        current,
        [start(normalised, parent)],
        "w",
        target,
        sampling=ALL,
        ridge=ridge,
        sweeps=0,
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
    y = jax.lax.conv_general_dilated(
        x, params["w"], (1, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + params["b"]


# Of 8 x 4 positions: 5 of each of 8 examples, 3 of each of 7, which devices cannot
# share, and all of them, a few at a time.
@pytest.mark.parametrize(
    ("examples", "wanted", "read"), [(8, 40, 5), (7, 21, 3), (7, "all", 32)]
)
def test_some_positions_find_what_all_follow(monkeypatch, examples, wanted, read):
    monkeypatch.setattr(samples, "_MOST_BYTES", 4 * 18 * 7 * 5)
    found = LayerSamples.moments

    def counted(self, function, *given, keep):
        for moments in found(self, function, *given, keep=keep):
            seen.append(int(moments[0]))
            yield moments

    seen = []
    monkeypatch.setattr(LayerSamples, "moments", counted)
    shape = (examples, 8, 8, 2)
    batches = [(RNG.normal(size=shape).astype(np.float32),) for _ in range(3)]
    shapes = {"w": (3, 3, 2, 4), "b": 4}
    parent, other = (
        {name: np.float32(RNG.normal(size=size)) for name, size in shapes.items()}
        for _ in range(2)
    )
    current, target = (
        Pass(traced_network(convolution, params), params, batches)
        for params in (other, parent)
    )
    sampling = Sampling(wanted, [0], math.inf)
    options = {"sampling": sampling, "ridge": 1e-9, "sweeps": 0}
    solve_layer(current, [target], "w", as_target(first_rows), **options)
    # Every sample's target is a linear function of its inputs, the parent's.
    np.testing.assert_allclose(current.leaves["w"], parent["w"], atol=1e-4)
    np.testing.assert_allclose(current.leaves["b"], parent["b"], atol=1e-4)
    assert sum(seen) == 3 * examples * read
