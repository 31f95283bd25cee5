"""Scaled performance: average estimators and errors by hand."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parents.tasks.scaled import (
    Categories,
    Distance,
    Scaled,
    ScaledImages,
)
from experiments.parents.tasks.suite import Drawable, Objective


def always(output, inputs):
    """Answers every input with one output."""
    return jnp.broadcast_to(jnp.asarray(output), (len(inputs), *np.shape(output)))


def batches(*targets):
    return [(np.zeros((len(own), 1)), np.asarray(own)) for own in targets]


def test_the_mean_target_is_the_average_estimator():
    # Two examples, then one, of two pixels.
    targets = [np.array([[[[0.0], [1.0]]], [[[0.5], [0.0]]]]), np.full((1, 1, 2, 1), 1)]
    found = Distance().answer(targets)
    np.testing.assert_allclose(found, [[[0.5], [2 / 3]]])


@pytest.mark.parametrize(
    ("output", "score"),
    # All test targets are 0.6: the parent is wrong by 0.2, the estimator by 0.4.
    [(0.4, 1.0), (0.2, 0.0), (0.3, 0.5), (0.0, -1.0), (0.5, 1.5)],
)
def test_the_parent_has_1_and_the_average_estimator_0(output, score):
    tests = batches(np.full((2, 1), 0.6), np.full((1, 1), 0.6))
    training = [np.array([[0.0]]), np.array([[0.4]])]
    parent = functools.partial(always, [0.4])
    objective = Scaled(Distance()).scaled(parent, lambda: tests, training)
    # The mean training target is 0.2. The parent ignores its inputs.
    assert dataclasses.astuple(objective.scale) == pytest.approx((0.2, 0.4, 0.2))
    found = objective.score(functools.partial(always, [output]), tests)
    assert found == pytest.approx(score, abs=1e-6)


def test_outputs_for_other_examples_tell_whether_inputs_count():
    targets = np.array([[0.0], [1.0], [1.0]])
    objective = Scaled(Distance()).scaled(
        lambda inputs: jnp.asarray(inputs), lambda: [(targets, targets)], [targets]
    )
    # Without error; one further, two of three are wrong by 1.
    assert (objective.scale.parent, objective.scale.shuffled) == pytest.approx(
        (0, 2 / 3)
    )


def test_errors_are_means_over_examples_not_over_batches():
    objective = Scaled(Distance())
    tests = batches([[0.0], [0.0], [0.0]], [[1.0]])
    assert objective.error(functools.partial(always, [0.0]), tests) == 0.25


def test_frequencies_are_the_average_estimator_of_classes():
    found = Categories(3, counted=False).answer([np.array([2, 2]), np.array([0])])
    # Each seen once more, of six.
    np.testing.assert_allclose(np.exp(found), [2 / 6, 1 / 6, 3 / 6])


def test_classes_are_compared_by_cross_entropy_or_by_errors():
    probabilities = jnp.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    logits, labels = jnp.log(probabilities), jnp.array([0, 2])
    losses = [math.log(2), math.log(8)]
    for measure in (Categories(3, counted=False), Categories(3, counted=True)):
        np.testing.assert_allclose(measure.losses(logits, labels), losses, rtol=1e-6)
    found = Categories(3, counted=False).errors(logits, labels)
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    np.testing.assert_array_equal(measure.errors(logits, labels), [0, 1])


def test_pixels_count_by_their_share_of_the_image():
    measure = Categories(2, counted=True)
    # The average estimator says 0 on the left and 1 on the right.
    answer = measure.answer([np.array([[[0, 1]], [[0, 1]], [[0, 0]]])])
    assert answer.argmax(-1).tolist() == [[0, 1]]
    outputs = always(answer.astype(np.float32), np.zeros(2))
    errors = measure.errors(outputs, jnp.array([[[0, 0]], [[0, 1]]]))
    np.testing.assert_array_equal(errors, [0.5, 0])


def test_there_is_no_score_without_a_scale():
    with pytest.raises(ValueError, match=r"without a scale.*Suite\.scaled"):
        Scaled(Distance()).score(functools.partial(always, [0.0]), batches([[0.0]]))


def test_images_are_drawn_in_their_range():
    normals = ScaledImages(Distance(-1.0, 1.0))
    assert isinstance(normals, Objective)
    assert isinstance(normals, Drawable)
    found = normals.drawn_targets(np.array([[[[-1.0, 0.0, 1.0]]]]))
    assert found.tolist() == [[[[0.0, 0.5, 1.0]]]]
    # One channel is grey; outputs out of range are cut.
    depth = ScaledImages(Distance())
    assert depth.drawn_outputs(jnp.full((1, 1, 1, 1), 2.0)).tolist() == [[[[1.0] * 3]]]


def test_classes_are_drawn_in_colours_of_their_own():
    segments = ScaledImages(Categories(5, counted=True))
    truth = segments.drawn_targets(np.arange(5).reshape(1, 1, 5))
    assert len({tuple(colour) for colour in truth[0, 0].tolist()}) == 5
    logits = jnp.eye(5).reshape(1, 1, 5, 5)
    np.testing.assert_array_equal(segments.drawn_outputs(logits), truth)
    assert not isinstance(Scaled(Categories(5, counted=False)), Drawable)
