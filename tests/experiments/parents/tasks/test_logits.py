"""Tasks on data sets of their own: examples, scores and merges by hand."""

import operator

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
from experiments.parents.tasks.segmentation import PixelLogits
from experiments.parents.tasks.suite import Mixed
from tests.networks import variables
from zipjax.models import deeplab, resnet

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
        parts.append((name, Dataset(data, data, classes), Logits(classes)))
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
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
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
    shapes = [batch.shape[:2] for batch in Mixed([small, large], 4)]
    assert shapes == [(2, 4), (2, 8), (1, 8)]
    again = own.inputs(4)
    assert [len(batch) for batch in again] == [len(batch) for batch in again]
    assert operator.length_hint(again) == 4
    assert operator.length_hint(Mixed([small, large], 4)) == 3
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


NETWORK = {"depths": (1, 1), "body": "basic", "width": 1 / 16, "hidden": 4}


def kind_of(*datasets, **changes):
    config = default("", "deeplab", **NETWORK, rates=(1,))
    config.tasks, config.datasets, config.num_tasks = "datasets", datasets, 2
    config.update(changes)
    return DatasetsKind.of(config, TRACK)


PIXELS, IMAGES = ("Streets", "noise_camvid", ()), ("Things", "noise10", (1, 4, 2))


@pytest.fixture(scope="module")
def beside():
    return kind_of(PIXELS, IMAGES).suite(jax.random.key(0))


def test_masks_get_a_segmenter_and_labels_its_backbones_classifier(beside):
    segmenter, classifier = beside.tasks
    assert segmenter.objective == PixelLogits(11, 11)
    assert classifier.objective == Logits(3)
    assert isinstance(segmenter.network, deeplab.DeepLabV3)
    assert isinstance(classifier.network, resnet.ResNet)
    assert (segmenter.network.outputs, classifier.network.outputs) == (11, 3)
    assert segmenter.network.plans == classifier.network.plans
    assert classifier.train.labels.tolist() == [0, 2, 1, 0, 2, 1]


def test_a_zip_stops_where_the_backbone_ends(beside):
    assert [cut.name for cut in beside.cuts] == ["stage1", "stage2"]
    assert beside.cuts[-1].number == beside.whole < len(beside.spec.cuts)
    turned = kind_of(IMAGES, PIXELS).suite(jax.random.key(0))
    assert [cut.name for cut in turned.cuts] == ["stage1", "stage2"]


@pytest.mark.parametrize(
    ("chosen", "sides"),
    [((), {(96, 128), (32, 32)}), ((0,), {(96, 128)}), ((1,), {(32, 32)})],
)
def test_moments_come_from_the_chosen_tasks_images(chosen, sides):
    suite = kind_of(PIXELS, IMAGES, calibration_tasks=chosen).suite(jax.random.key(0))
    assert {batch.shape[1:3] for batch in suite.inputs(4)} == sides
    # A head's own statistics need the images of its task all the same.
    assert [len(split) for split in suite.calibration] == [4, 6]


@pytest.mark.parametrize(
    ("numbers", "kept"), [((0, 2), (1,)), ((2, 1), (0,)), ((0, 1), ())]
)
def test_a_subset_keeps_the_chosen_tasks_that_it_has(numbers, kept):
    datasets = PIXELS, IMAGES, ("More", "noise10", (5,))
    suite = kind_of(*datasets, calibration_tasks=(2,)).suite(jax.random.key(0))
    part = suite.subset(numbers)
    assert part.calibration_tasks == kept
    wanted = [suite.tasks[2]] if kept else [suite.tasks[k] for k in numbers]
    assert [split.digest() for split in part.measured] == [
        task.train.digest() for task in wanted
    ]


def test_only_classified_images_are_resized():
    kind = kind_of(PIXELS, IMAGES, image_size=8)
    shapes = [next(data.test.batches(1))[0].shape for _, data, _ in kind.parts]
    assert shapes == [(1, 96, 128, 3), (1, 8, 8, 3)]


def test_a_trunks_statistics_are_the_chosen_tasks_and_a_heads_its_own(beside):
    models = [
        task.network.init(jax.random.key(number), next(task.train.batches(1))[0])
        for number, task in enumerate(beside.tasks)
    ]
    merged = zipjax.merge(models, beside.specs, zipjax.average())
    found = [
        chosen.calibrated(beside.functions, merged, 4, 0)
        for chosen in (
            beside,
            kind_of(PIXELS, IMAGES, calibration_tasks=(1,)).suite(jax.random.key(0)),
        )
    ]
    both, alone = (np.asarray(x.trunk["batch_stats/bn1/mean"]) for x in found)
    images, _ = next(beside.tasks[1].train.batches(8))
    kernel = jnp.asarray(merged.trunk["params/conv1/kernel"])
    values = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), [(3, 3)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(alone, values.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    assert np.abs(both - alone).max() > 1e-3
