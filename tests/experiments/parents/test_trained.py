"""Networks: trained once for the same inputs, or read from a folder."""

import importlib.metadata
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.pixels import Pixels
from experiments.data.splits import Dataset, in_memory
from experiments.defaults import default
from experiments.parents.tasks.classes import ClassKind
from experiments.parents.trained import Trainer, pretrained, started
from tests.networks import variables
from zipjax.interop.torch import from_flax, save_state_dict
from zipjax.models import mlp

IMAGES = np.arange(9.0).reshape(9, 1, 1, 1)
NETWORK = mlp.MLP((5,), 3)
EMBEDDINGS = np.eye(4, 3, dtype=np.float32)


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
    return in_memory(IMAGES, np.arange(9) % 4, ids=ids)


def kind(config, train, embeddings=EMBEDDINGS, network=NETWORK):
    data = Dataset(train, split(), 4)
    return ClassKind(config, data, embeddings, network, mlp.spec(network))


def read(config, train):
    return pretrained(config, kind(config, train).pretrained(Path(config.checkpoints)))


def test_networks_tasks_and_images_are_those_of_the_folder(config):
    found = read(config, split())
    x = jnp.ones((1, 2, 2, 1))
    for seed, model in enumerate(found.models):
        expected = NETWORK.apply(variables(NETWORK, (2, 2, 1), seed), x)
        np.testing.assert_allclose(NETWORK.apply(model, x), expected, rtol=1e-5)
    assert [own.numbers.tolist() for own in found.suite.classes] == [
        [1, -1, -1, 0],
        [-1, 0, 1, -1],
    ]
    objective = found.suite.tasks[1].objective
    np.testing.assert_array_equal(objective.targets, np.eye(4, 3)[[1, 2]])
    # In the order of the file, not of the dataset.
    assert found.suite.calibration[0].numbers.tolist() == [7, 2]
    assert list(found.keys) == [4, 6]
    drawn = {jax.random.key_data(key).tobytes() for key in found.keys.values()}
    assert len(drawn) == 2


def test_files_may_have_other_names(config, tmp_path):
    expected = read(config, split()).models
    for name in ("model_a.safetensors", "model_b.safetensors"):
        (tmp_path / name).rename(tmp_path / f"other_{name}")
    with pytest.raises(FileNotFoundError):
        read(config, split())
    config.checkpoint_files = tuple(f"other_model_{k}.safetensors" for k in "ba")
    found = read(config, split()).models
    for model, wanted in zip(found, reversed(expected), strict=True):
        leaves = jax.tree.leaves(model), jax.tree.leaves(wanted)
        np.testing.assert_array_equal(leaves[0][0], leaves[1][0])


def test_an_image_that_the_dataset_lacks_is_named(config):
    with pytest.raises(ValueError, match=r"1 images .* 5 ids .* 'train_00007'"):
        read(config, split().take(slice(5)))


def trainer(workdir, messages, *, config=None, split=split, **changes):
    """Returns a trainer of tiny networks; changes are of what they learn."""
    if config is None:
        config = default("", "mlp", hidden=(5,))
        config.train.epochs = 1
    learnt = kind(config, split(), **changes)
    return Trainer(config, learnt, workdir, lambda steps, title: steps, messages.append)


@pytest.fixture
def reused(tmp_path):
    """Returns a function that counts how many of two networks a run reuses."""
    trainer(tmp_path, []).parents(0)

    def count(**changes):
        messages = []
        trainer(tmp_path, messages, **changes).parents(0)
        return len(messages)

    return count


def test_the_same_networks_are_trained_once(reused):
    assert reused() == 2


def relabelled():
    return in_memory(IMAGES, (np.arange(9) + 1) % 4)


def repainted():
    images = IMAGES.copy()
    images[4] += 1  # Of one example of one task.
    return in_memory(images, split().labels)


def shortened():
    return split().take(slice(8))


def brightened():
    return in_memory(IMAGES, split().labels, Pixels((0.5,), (2.0,)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"embeddings": np.eye(4, 3, k=1, dtype=np.float32)}, 0),
        ({"split": relabelled}, 0),
        ({"split": repainted}, 1),
        ({"split": shortened}, 1),
        ({"split": brightened}, 0),
        ({"network": mlp.MLP((4,), 3)}, 0),
    ],
)
def test_other_data_targets_or_networks_are_trained_again(changes, expected, reused):
    assert reused(**changes) == expected


@pytest.mark.parametrize(
    "name", ["train", "classes", "logits", "splits", "trained", "mlp", "layers"]
)
def test_other_code_trains_again(name, reused, monkeypatch):
    read = Path.read_bytes

    def changed(path):
        return read(path) + (b"\n" if path.name == f"{name}.py" else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    assert reused() == 0


@pytest.mark.parametrize("package", ["jax", "flax", "optax"])
def test_other_versions_train_again(package, reused, monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: "0.0" if name == package else version(name),
    )
    assert reused() == 0


def test_other_settings_train_again(reused):
    config = default("", "mlp", hidden=(5,))
    config.train.epochs, config.train.weight_decay = 1, 0.0
    assert reused(config=config) == 0


def test_networks_start_from_a_file_with_another_head(tmp_path, caplog):
    pytest.importorskip("safetensors", reason="needs the extra [torch]")
    given = variables(mlp.MLP((5,), 7), (1, 1, 1), 5)
    file = tmp_path / "start.safetensors"
    save_state_dict(file, from_flax(mlp.MLP((5,), 7), given))
    config = default("", "mlp", hidden=(5,))
    (task, _) = kind(config, split()).suite(jax.random.key(0)).tasks
    found = [started(file, task, jax.random.key(k))["params"] for k in (0, 1)]
    for own in found:
        for name, leaf in given["params"]["dense_0"].items():
            np.testing.assert_array_equal(own["dense_0"][name], leaf)
        assert own["head"]["kernel"].shape == (5, 3)
    assert not np.array_equal(found[0]["head"]["kernel"], found[1]["head"]["kernel"])
    assert "2.bias" in caplog.text
    file = tmp_path / "other.safetensors"
    save_state_dict(file, {"conv1.weight": np.ones((1, 1, 1, 1), np.float32)})
    with pytest.raises(ValueError, match=r"config.start = .*'conv1.weight'.*'0.bias'"):
        started(file, task, jax.random.key(0))
