"""Tasks on data sets of their own: examples, scores and merges by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from experiments.data.pixels import Pixels
from experiments.data.splits import Dataset, in_memory
from experiments.defaults import default
from experiments.methods.runner import Runner
from experiments.parents.tasks.logits import DatasetsKind, Logits
from experiments.parents.tasks.suite import mixed
from tests.networks import variables

TRACK = lambda steps, title: steps  # noqa: E731


def split_of(count, side=4, value=1.0):
    images = np.full((count, side, side, 1), value, np.float32)
    return in_memory(images, np.arange(count) % 2, Pixels((0.0,), (2.0,)))


def suite():
    """Two tasks with three and five classes, networks of one function."""
    config = default("", "mlp", hidden=(6, 5))
    config.calibration_images = 8
    parts = []
    for name, classes, value in (("A", 3, 1.0), ("B", 5, 3.0)):
        data = split_of(12, value=value)
        parts.append((name, Dataset(data, data, classes)))
    return DatasetsKind(config, parts).suite(jax.random.key(0))


def models_of(own):
    return [
        variables(task.network, (4, 4, 1), seed) for seed, task in enumerate(own.tasks)
    ]


def test_a_task_has_some_classes_of_square_images_in_colour():
    config = default("", "mlp", hidden=(6,))
    config.datasets = (("Ends", "digits", (9, 0)), ("Noise", "noise10", ()))
    config.image_size, config.examples = 16, 3
    ends, noise = DatasetsKind.of(config, TRACK).suite(jax.random.key(0)).tasks
    images, labels = ends.train.read(np.arange(len(ends.train)))
    assert images.shape == (6, 16, 16, 3)
    # Nines are class 0, zeros class 1: these have a hole in the middle.
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    middle = images[:, 6:10, 7:9].mean((1, 2, 3))
    assert middle[labels == 0].min() > middle[labels == 1].max()
    assert len(noise.train) == 20
    assert (ends.network.outputs, noise.network.outputs) == (2, 10)


def test_merges_of_everything_leave_the_logits():
    own = suite()
    models = models_of(own)
    assert own.whole == len(own.spec.cuts)
    merged = zipjax.merge(models, own.specs, zipjax.average(), stop_at=own.whole)
    (a, b) = zipjax.apply(own.functions, merged, jnp.ones((2, 4, 4, 1)))
    assert (a.shape, b.shape) == ((2, 3), (2, 5))
    assert not own.shares_outputs


def test_every_head_is_asked_about_its_own_task():
    own = suite()
    models = models_of(own)
    merged = zipjax.merge(models, own.specs, zipjax.average(), stop_at=own.whole)
    found = Runner(5, 0).evaluate(merged, own)
    expected = []
    for number, value in enumerate((0.5, 1.5)):
        images = jnp.full((1, 4, 4, 1), value)
        outputs = own.tasks[number].network.apply(merged.params(number), images)
        # Labels are 0 and 1 by turns, and all images look alike.
        expected.append(0.5 if int(outputs.argmax()) < 2 else 0.0)
    assert found.tasks == tuple(expected)
    assert found.joint is None
    alone = Runner(5, 0).evaluate(models[1], own, only=1)
    assert alone.tasks[0] is None
    assert alone.average == alone.tasks[1]


def test_calibration_batches_have_images_of_all_tasks():
    own = suite()
    batches = list(own.inputs(4))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4]
    for batch in batches:
        assert sorted(batch[:, 0, 0, 0].tolist()) == [0.5, 0.5, 1.5, 1.5]
    small, large = split_of(2), split_of(3, side=8)
    shapes = [batch.shape[:2] for batch in mixed([small, large], 4)]
    assert shapes == [(2, 4), (2, 8), (1, 8)]
    assert [len(split) for split in own.calibrating(6).calibration] == [3, 3]


def test_settings_are_searched_on_training_images():
    own = suite().searching(4)
    assert [len(task.test) for task in own.tasks] == [2, 2]


def test_logits_are_scored_as_classes():
    objective = Logits(3)
    outputs = jnp.array([[0.0, 1, 0], [2, 0, 0]])
    labels = jnp.array([1, 2])
    shifted = np.float64(outputs)
    expected = np.log(np.exp(shifted).sum(1)) - shifted[[0, 1], [1, 2]]
    np.testing.assert_allclose(objective.losses(outputs, labels), expected, rtol=1e-6)
    assert objective.figures(outputs, labels)["accuracy"].tolist() == [True, False]
    score = objective.score(lambda x: outputs, [(None, np.asarray(labels))])
    assert score == pytest.approx(0.5)
