"""Networks from a folder: what is read is what lies there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.defaults import default
from experiments.parents.data import Split
from experiments.parents.parents import pretrained
from tests.networks import variables
from zipjax.interop.torch import from_flax, save_state_dict
from zipjax.models import mlp

NETWORK = mlp.MLP((5,), 3)


@pytest.fixture
def config(tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra [torch]")
    for seed, letter in enumerate("ab"):
        state = from_flax(NETWORK, variables(NETWORK, (2, 2, 1), seed))
        save_state_dict(tmp_path / f"model_{letter}.safetensors", state)
    np.save(tmp_path / "class_embeddings.npy", np.eye(4, 3, dtype=np.float32))
    (tmp_path / "train_ids.json").write_text(json.dumps([7, 2, 5]))
    config = default("", "mlp", hidden=(5,))
    config.checkpoints, config.classes = str(tmp_path), ((3, 0), (1, 2))
    config.seeds, config.calibration_images = (4, 6), 2
    return config


def split():
    ids = np.array([f"train_{number:05d}" for number in range(9)])
    return Split(np.arange(9.0).reshape(9, 1, 1, 1), np.arange(9) % 4, ids=ids)


def test_networks_tasks_and_images_are_those_of_the_folder(config):
    found = pretrained(config, NETWORK, split())
    x = jnp.ones((1, 2, 2, 1))
    for seed, model in enumerate(found.models):
        expected = NETWORK.apply(variables(NETWORK, (2, 2, 1), seed), x)
        np.testing.assert_allclose(NETWORK.apply(model, x), expected, rtol=1e-5)
    assert [task.classes.tolist() for task in found.tasks] == [
        [1, -1, -1, 0],
        [-1, 0, 1, -1],
    ]
    np.testing.assert_array_equal(found.tasks[1].targets, np.eye(4, 3)[[1, 2]])
    # In the order of the file, not of the dataset.
    assert found.calibration.images.ravel().tolist() == [7, 2]
    assert list(found.keys) == [4, 6]
    drawn = {jax.random.key_data(key).tobytes() for key in found.keys.values()}
    assert len(drawn) == 2


def test_an_image_that_the_dataset_lacks_is_named(config):
    with pytest.raises(ValueError, match=r"1 images .* 5 ids .* 'train_00007'"):
        pretrained(config, NETWORK, split().take(slice(5)))


def test_classes_must_be_named(config):
    config.classes = ()
    with pytest.raises(ValueError, match=r"set config\.classes"):
        pretrained(config, NETWORK, split())
