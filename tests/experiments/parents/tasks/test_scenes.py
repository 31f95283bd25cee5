"""Tasks with encoders and decoders: examples, scales and merges."""

import dataclasses

import jax
import numpy as np
import pytest

import zipjax
from experiments.data.datasets import load_dataset
from experiments.data.sources import Arrays
from experiments.defaults import default, shrunk
from experiments.methods.runner import Runner
from experiments.parents.tasks.scaled import Distance, Scale, Scaled
from experiments.parents.tasks.scenes import ScenesKind, View, _check_learned
from experiments.scenes.labels import NOISE
from tests.networks import variables

TRACK = lambda steps, title: steps  # noqa: E731


def kind(*tasks, images="scenes"):
    config = default("", "taskonomy")
    config.tasks, config.scenes.tasks = "scenes", tasks
    config.scenes.images, config.scenes.size = images, 32
    config.calibration_images = 4
    config = shrunk(config)
    config.scenes.tasks = tasks
    return ScenesKind.of(config, TRACK)


@pytest.fixture(scope="module")
def suite():
    tasks = ("segment_semantic", "denoising", "class_object", "depth_zbuffer")
    return kind(*tasks).suite(jax.random.key(0))


def models_of(suite):
    return [
        variables(task.network, (32, 32, 3), seed)
        for seed, task in enumerate(suite.tasks)
    ]


def test_every_task_has_its_own_inputs_and_labels(suite):
    everything = np.arange(8)
    read = {task.name: task.train.read(everything) for task in suite.tasks}
    images, classes = read["class_object"]
    noisy, clean = read["denoising"]
    np.testing.assert_array_equal(clean, images)
    spread = (noisy - clean)[(clean > 0.3) & (clean < 0.7)].std()
    assert spread == pytest.approx(NOISE, rel=0.05)
    assert classes.shape == (8,)
    masks = read["segment_semantic"][1]
    assert masks.shape == (8, 32, 32)
    assert masks.dtype == np.int32
    assert read["depth_zbuffer"][1].shape == (8, 32, 32, 1)
    sizes = [(len(task.train), len(task.test)) for task in suite.tasks]
    assert sizes == [(8, 4)] * 4
    assert [len(split) for split in suite.calibration] == [4] * 4


def test_training_and_test_scenes_differ(suite):
    train, test = suite.tasks[3].train, suite.tasks[3].test
    ours, theirs = (split.read(np.arange(4))[0] for split in (train, test))
    assert np.abs(ours - theirs).mean((1, 2, 3)).min() > 0.01


def test_images_of_a_data_set_are_labelled():
    drawn = kind("autoencoding", "denoising", images="cifar10")
    own = drawn.suite(jax.random.key(0))
    images, targets = own.tasks[0].train.read(np.arange(8))
    np.testing.assert_array_equal(images, targets)
    # Spread over the 20 images that there are.
    places = np.array([0, 3, 5, 8, 11, 14, 16, 19])
    stored, _ = load_dataset("noise10").train.read(places)
    np.testing.assert_allclose(images, stored / 255, atol=1e-6)
    noisy, clean = own.tasks[1].train.read(np.arange(8))
    np.testing.assert_array_equal(clean, targets)
    assert 0.02 < np.abs(noisy - clean).mean() < NOISE


def test_stored_targets_become_fractions():
    images = np.full((2, 4, 6, 3), 51, np.uint8)
    depth = np.array([[[0, 13107]], [[32768, 65535]]], np.uint16)
    normal = np.array([[[[0, 51, 255]]], [[[255, 0, 204]]]], np.uint8)
    fields = {"image": images, "depth_zbuffer": depth, "normal": normal}
    source, both = Arrays(fields), np.array([1, 0])
    found = View(source, "depth_zbuffer").read(both, ())["depth_zbuffer"]
    fractions = [[[[32768 / 65535], [1.0]]], [[[0.0], [0.2]]]]
    np.testing.assert_allclose(found, fractions, rtol=1e-6)
    found = View(source, "normal").read(both, ())["normal"]
    np.testing.assert_allclose(found[1], [[[-1, -0.6, 1]]], rtol=1e-6)
    clean = View(source, "autoencoding").read(both, ())
    np.testing.assert_array_equal(clean["image"], images)
    np.testing.assert_allclose(clean["autoencoding"], 0.2, rtol=1e-6)
    noisy = View(source, "denoising").read(both, ())
    np.testing.assert_allclose(noisy["denoising"], 0.2, rtol=1e-6)
    again = View(source, "denoising").read(both[::-1], ())["image"][::-1]
    np.testing.assert_array_equal(noisy["image"], again)
    spread = np.std(np.array(noisy["image"]) / 255)
    assert spread == pytest.approx(NOISE, rel=0.2)
    views = [View(source, task).digest(both) for task in ("denoising", "normal")]
    assert views[0] != views[1]


@pytest.mark.parametrize("pair", [(1, 2), (0, 0)], ids=["two kinds", "one kind"])
def test_merges_stop_before_the_last_layer_of_the_encoder(suite, pair):
    own = suite.subset(pair)
    models = [variables(task.network, (32, 32, 3), 0) for task in own.tasks]
    merged = zipjax.merge(models, own.specs, zipjax.average(), stop_at=own.whole)
    layers = {path.split("/")[2] for path in merged.trunk}
    assert {"conv1", "layer2_0"} <= layers
    assert not any(layer.startswith("compress") for layer in layers)
    for head in merged.heads:
        parts = {tuple(path.split("/")[1:3]) for path in head}
        assert ("encoder", "compress1") in parts
        assert any(part == "decoder" for part, _ in parts)


def test_networks_of_the_tasks_are_the_scale(suite):
    own = suite.subset((0, 3))
    models = models_of(own)
    scaled, runner = own.scaled(models, 4), Runner(4, 0)
    for number, model in enumerate(models):
        scores = runner.evaluate(model, scaled, number)
        assert scores.tasks[number] == pytest.approx(1)
        other = variables(own.tasks[number].network, (32, 32, 3), 7)
        assert runner.evaluate(other, scaled, number).tasks[number] != 1
    mean = own.tasks[1].train.read(np.arange(8))[1].mean(0, dtype=np.float64)
    truth = own.tasks[1].test.read(np.arange(4))[1]
    estimator = np.abs(truth - mean).mean()
    scale = scaled.tasks[1].objective.scale
    assert scale.estimator == pytest.approx(estimator, rel=1e-5)
    # Of other examples there is another scale.
    again = dataclasses.replace(scaled.tasks[1].objective, scale=None)
    assert own.tasks[1].objective == again
    searched = scaled.searching(None).scaled(models, 4)
    assert searched.tasks[1].objective.scale != scale


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        ((0.3, 0.2, 0.4), "depth: its network's error, 0.3, is no better than 0.2"),
        ((0.1, 0.2, 0.1), "depth: its network's error, 0.1, is hardly better than 0.1"),
        ((0.1, 0.2, 0.15), ""),
    ],
)
def test_networks_that_learned_nothing_are_told(scale, told, caplog):
    _check_learned("depth", Scaled(Distance(), Scale(*scale)))
    assert told in caplog.text if told else not caplog.text


def test_there_is_no_task_of_all():
    with pytest.raises(ValueError, match="use 'scratch'"):
        kind("depth_zbuffer", "normal").everything()
