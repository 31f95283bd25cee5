"""The objective of pixels: against numpy, pixel by pixel."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parents.tasks.segmentation import PixelLogits
from experiments.parents.tasks.suite import Drawable, Objective

CLASSES, UNLABELLED = 3, 7
OBJECTIVE = PixelLogits(CLASSES, UNLABELLED)


@pytest.fixture
def batch(random):
    """Logits and masks; of the last image, no pixel has a class."""
    logits = random.normal(size=(3, 4, 5, CLASSES)).astype(np.float32)
    masks = random.choice([0, 1, 2, UNLABELLED, 255], (3, 4, 5)).astype(np.uint8)
    masks[2] = UNLABELLED
    return logits, masks


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_an_images_loss_is_the_mean_over_its_labelled_pixels(batch):
    logits, masks = batch
    log_sums = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    expected = []
    for image, mask, total in zip(logits, masks, log_sums, strict=True):
        own = [
            total[place] - image[place][label]
            for place, label in np.ndenumerate(mask)
            if label < CLASSES
        ]
        expected.append(np.mean(own) if own else 0.0)
    found = OBJECTIVE.losses(jnp.asarray(logits), jnp.asarray(masks))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_accuracy_is_that_of_labelled_pixels(batch):
    logits, masks = batch
    right, known = logits.argmax(-1) == masks, masks < CLASSES
    expected = [
        x[k].mean() if k.any() else 0 for x, k in zip(right, known, strict=True)
    ]
    found = OBJECTIVE.figures(jnp.asarray(logits), jnp.asarray(masks))
    np.testing.assert_allclose(found["accuracy"], expected, rtol=1e-6)


def test_the_score_counts_pixels_of_all_batches_together():
    # Classes found, by pixel: class 0 is 1 of 3 (one found, one missed, one taken for
    # it), class 1 is 1 of 3, and class 2 occurs nowhere.
    truth = np.array([[[0, 0]], [[1, 1]], [[UNLABELLED, UNLABELLED]]], np.uint8)
    predicted = np.array([[[0, 1]], [[1, 0]], [[2, 2]]])
    batches = [
        (np.eye(CLASSES)[predicted[k : k + 1]], truth[k : k + 1]) for k in range(3)
    ]
    assert OBJECTIVE.score(lambda x: x, batches) == pytest.approx(1 / 3)


def test_pictures_have_a_colour_for_every_class_and_black_for_none():
    many = PixelLogits(21, 255)
    assert isinstance(many, Objective)
    assert isinstance(many, Drawable)
    masks = np.array([*range(21), 255]).reshape(1, 2, 11)
    truth = many.drawn_targets(masks)
    colours = truth.reshape(22, 3)
    apart = np.abs(colours[:, None] - colours).max(-1) + np.eye(22)
    assert apart.min() > 0.05
    assert (colours[-1] == 0).all()
    assert (truth >= 0).all()
    assert (truth <= 1).all()
    found = many.drawn_outputs(np.eye(21)[masks[:, :1]])
    np.testing.assert_array_equal(found, truth[:, :1])
