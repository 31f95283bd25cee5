"""Networks of torchvision, timm and PyTorch compute the same with our parameters.

PyTorch's side was recorded; tests/interop/test_live_parity.py compares with PyTorch.
"""

import jax
import numpy as np
import pytest

from tests.interop.parity import FULL, RECORDED, SMALL, decode, draw_state, is_position
from tests.models import catalog
from tests.networks import relative_error
from zipjax.interop.torch import from_flax, to_flax


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as file:
        return dict(file)


def joined(outputs):
    """Several outputs as one, as they were recorded."""
    if isinstance(outputs, dict):
        return np.concatenate([outputs["out"], outputs["aux"]], axis=-1)
    return outputs


@pytest.mark.parametrize("name", SMALL)
def test_the_outputs_are_the_same(name, recorded):
    ours, expected = SMALL[name], recorded[f"outputs/{name}"]
    variables = to_flax(ours.model, draw_state(decode(recorded[f"small/{name}"])))
    found = joined(jax.jit(ours.model.apply)(variables, ours.images()))
    assert np.abs(expected).std() > 0.01
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_the_state_goes_back(name, recorded):
    ours = SMALL[name]
    expected = draw_state(decode(recorded[f"small/{name}"]))
    variables = to_flax(ours.model, expected)
    state = from_flax(ours.model, variables, naming=ours.naming)
    assert set(state) == {key for key in expected if not is_position(key)}
    for key, value in state.items():
        np.testing.assert_array_equal(value, expected[key])
        assert value.dtype == expected[key].dtype


@pytest.mark.parametrize("name", FULL)
def test_keys_and_shapes_at_full_size(name, recorded):
    network = catalog.FULL[name]
    # Bytes: VGG has 138 million parameters.
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "i1"), network.shapes)
    state = from_flax(network.model, variables, naming=FULL[name])
    found = {key: value.shape for key, value in state.items()}
    expected = decode(recorded[f"full/{name}"])
    assert found == {key: shape.shape for key, shape in expected.items()}
