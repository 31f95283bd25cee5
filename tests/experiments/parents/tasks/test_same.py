"""One task for all networks: one score, and an ensemble of probabilities, by hand."""

import jax
import numpy as np
import pytest

import zipjax
from experiments.data.splits import Dataset, in_memory
from experiments.defaults import default
from experiments.methods.runner import Runner
from experiments.parents.tasks.same import SameKind
from tests.networks import relative_error, variables
from zipjax.models import mlp

NETWORK = mlp.MLP((6,), 3)
LABELS = np.array([0, 2, 1, 1, 0, 2, 1])


@pytest.fixture(scope="module")
def suite():
    images = np.random.default_rng(0).normal(size=(7, 2, 2, 1)).astype(np.float32)
    config = default("", "mlp", hidden=(6,))
    config.num_tasks, config.test_images, config.calibration_images = 3, 5, 4
    split = in_memory(images, LABELS)
    kind = SameKind(config, Dataset(split, split, 3), NETWORK, mlp.spec(NETWORK))
    return kind.suite(jax.random.key(0))


@pytest.fixture(scope="module")
def models():
    return [variables(NETWORK, (2, 2, 1), seed) for seed in range(3)]


def logits(suite, model, count=5):
    images, _ = suite.tasks[0].train.read(np.arange(count))
    return np.asarray(NETWORK.apply(model, images), np.float64)


def probabilities(values):
    powers = np.exp(values)
    return powers / powers.sum(1, keepdims=True)


def test_there_is_one_score_whichever_networks_are_merged(suite, models):
    assert len(suite.tasks) == 3
    assert suite.headings == ("Accuracy",)
    found = Runner(2, 0).evaluate(models[1], suite, only=1)
    right = logits(suite, models[1]).argmax(1) == LABELS[:5]
    assert found.tasks == pytest.approx((right.mean(),))
    assert found.joint is None
    pair = suite.subset([0, 2])
    assert len(pair.tasks) == 2
    assert pair.columns([0, 2]) == (0,)
    assert len(pair.calibration[0]) == 4


def test_an_ensemble_answers_with_the_mean_of_its_probabilities(suite, models):
    ensemble = zipjax.merge(models, suite.specs, zipjax.average(), stop_at=0)
    images, _ = suite.tasks[0].test.read(np.arange(5))
    answer = suite.forward(suite.functions, ensemble, 0)(images)
    mean = np.mean([probabilities(logits(suite, model)) for model in models], axis=0)
    assert relative_error(np.exp(answer), mean) < 1e-5
    found = Runner(2, 0).evaluate(ensemble, suite)
    assert found.tasks == pytest.approx(((mean.argmax(1) == LABELS[:5]).mean(),))


def test_the_loss_is_that_of_the_test_examples(suite, models):
    own = probabilities(logits(suite, models[0]))[np.arange(5), LABELS[:5]]
    np.testing.assert_allclose(suite.losses(models[0], 2), [-np.log(own).mean()], 1e-5)


def test_settings_are_searched_on_calibration_images(suite, models):
    searching = suite.searching(3)
    right = logits(suite, models[0], 3).argmax(1) == LABELS[:3]
    found = Runner(2, 0).evaluate(models[0], searching)
    assert found.tasks == pytest.approx((right.mean(),))


def test_merges_include_the_last_layer(suite, models):
    assert suite.whole is None
    merged = zipjax.merge(models, suite.specs, zipjax.average())
    assert not merged.heads
