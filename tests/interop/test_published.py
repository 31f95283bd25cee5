"""Networks that others trained and published are here as good as they say."""

import jax
import numpy as np
import pytest

from experiments.data.pixels import Pixels
from experiments.data.records import open_builder, open_records
from zipjax.interop.torch import load_state_dict, to_flax
from zipjax.models import resnet

NET = resnet.ResNet20(10, padded=True)
PIXELS = Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
IMAGES = 300


@pytest.fixture
def folder(shared):
    found = shared / "checkpoints" / "resnet20_third_party"
    if not found.exists():
        pytest.skip("needs the published networks beside the golden results")
    return found


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [("run_1", 0.924), ("run_2", 0.920), ("run_3", 0.923), ("akamaster", 0.913)],
)
def test_networks_are_as_good_as_published(folder, shared, name, accuracy):
    pytest.importorskip("safetensors", reason="needs the extra [torch]")
    builder = open_builder("cifar10", str(shared / "tfds_lossless"), "")
    records = open_records(builder, "test", {"image": "image"})
    numbers = np.arange(IMAGES)
    images = np.stack(list(records.read(numbers, ("image",))["image"]))
    variables = to_flax(NET, load_state_dict(folder / f"{name}.safetensors"))
    answers = jax.jit(NET.apply)(variables, PIXELS.normalised(images)).argmax(-1)
    found = np.mean(np.asarray(answers) == records.labels(numbers))
    deviation = np.sqrt(accuracy * (1 - accuracy) / IMAGES)
    assert abs(found - accuracy) < 3 * deviation
