"""What was recorded of PyTorch's networks is what they compute."""

import numpy as np
import pytest

from tests.interop.parity import FULL, RECORDED, SMALL, decode, draw_state, is_position
from tests.networks import relative_error
from zipjax.interop.torch import from_flax, to_flax

NEEDED = "needs PyTorch, torchvision and timm: pip install -e '.[parity]'"
torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("torchvision", reason=NEEDED)
pytest.importorskip("timm", reason=NEEDED)

from tests.interop import torch_networks  # noqa: E402


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as file:
        return dict(file)


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_are_as_recorded(name, recorded):
    net = torch_networks.SMALL[name]()
    shapes = torch_networks.shapes_of(net)
    assert shapes == decode(recorded[f"small/{name}"])
    filled = torch_networks.fill(net, draw_state(shapes))
    found = torch_networks.outputs(filled, SMALL[name].images())
    assert relative_error(found, recorded[f"outputs/{name}"]) < 1e-5


@pytest.mark.parametrize("name", FULL)
def test_full_sizes_are_as_recorded(name, recorded):
    shapes = torch_networks.shapes_at_full_size(name)
    assert shapes == decode(recorded[f"full/{name}"])


@pytest.mark.parametrize("name", SMALL)
def test_tensors_go_there_and_back(name):
    ours, net = SMALL[name], torch_networks.SMALL[name]()
    state = net.state_dict()
    torch_networks.fill(net, draw_state(torch_networks.shapes_of(net)))
    back = from_flax(ours.model, to_flax(ours.model, state), naming=ours.naming)
    tensors = {key: torch.from_numpy(value) for key, value in back.items()}
    positions = any(is_position(key) for key in state)
    loaded = torch_networks.SMALL[name]()
    loaded.load_state_dict(tensors, strict=not positions)
    found = loaded.state_dict()
    for key in tensors:
        # BatchNorm's counters of batches start again.
        if state[key].is_floating_point():
            assert torch.equal(found[key], state[key]), key


def test_tensors_in_bfloat16_are_widened():
    ours, net = SMALL["vit-timm"], torch_networks.SMALL["vit-timm"]()
    net = net.bfloat16()
    kernel = to_flax(ours.model, net.state_dict())["params"]["head"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel.T, net.head.weight.detach().float().numpy())
