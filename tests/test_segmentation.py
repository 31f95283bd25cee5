"""Intersection over union, counted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import zipjax

# Two images of 2 x 3 pixels.
MASKS = np.array([[[0, 0, 1], [1, 1, 255]], [[2, 2, 0], [0, 255, 2]]])
PREDICTED = np.array([[[0, 1, 1], [1, 2, 0]], [[2, 0, 0], [0, 2, 2]]])
# True 0: 0 1 0 0; true 1: 1 1 2; true 2: 2 0 2.
CONFUSION = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 2]])


def logits(classes):
    """Logits that predict these classes, of four, the last of which never wins."""
    return np.eye(4)[classes] + np.array([0, 0, 0, -9.0])


def evaluate(masks=MASKS, outputs=None, num_classes=4, **options):
    """Evaluates given outputs, one image at a time."""
    outputs = logits(PREDICTED) if outputs is None else outputs
    batches = ((slice(k, k + 1), masks[k : k + 1]) for k in range(len(masks)))
    return zipjax.evaluate_segmentation(
        lambda rows: outputs[rows], batches, num_classes=num_classes, **options
    )


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_classes_are_counted_over_all_batches(asarray):
    found = evaluate(asarray(MASKS), asarray(logits(PREDICTED)))
    assert found.classes[:3] == pytest.approx((3 / 5, 2 / 4, 2 / 4))
    assert np.isnan(found.classes[3])
    assert found.mean_iou == pytest.approx((3 / 5 + 2 / 4 + 2 / 4) / 3)
    assert found.accuracy == pytest.approx(7 / 10)
    assert found.count == 10


def test_the_matrix_is_that_of_the_true_and_the_predicted_classes():
    assert zipjax.mean_iou(CONFUSION) == pytest.approx(evaluate().mean_iou)
    # A class that nobody has changes nothing; one that is predicted in vain counts 0.
    wider = np.pad(CONFUSION, ((0, 1), (0, 1)))
    assert zipjax.mean_iou(wider) == pytest.approx(zipjax.mean_iou(CONFUSION))
    wider[0, 3] = 5
    # Class 0 now has 4 + 5 pixels, of which 3 are found.
    expected = (3 / 10 + 2 / 4 + 2 / 4 + 0) / 4
    assert zipjax.mean_iou(wider) == pytest.approx(expected)


def test_another_label_is_ignored_or_none():
    masks = np.where(MASKS == 255, 0, MASKS)
    found = evaluate(masks, ignore=None)
    # Two more pixels of class 0: one found, one taken for class 2.
    assert found.classes[:3] == pytest.approx((4 / 7, 2 / 4, 2 / 5))
    assert found.count == 12
    assert evaluate(masks, ignore=0).count == 6
    shifted = np.where(MASKS == 255, -1, MASKS)
    assert evaluate(shifted, ignore=-1).mean_iou == evaluate().mean_iou


def test_what_is_predicted_at_ignored_pixels_does_not_count():
    changed = np.where(MASKS == 255, 1, PREDICTED)
    assert evaluate(outputs=logits(changed)).mean_iou == evaluate().mean_iou


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 3}, r"\[1, 2, 3, 3\], not \[1, 2, 3, 4\]: resize"),
        ({"num_classes": 0}, "num_classes is the int 0"),
        ({"num_classes": 3.0}, "num_classes is the float 3.0"),
        ({"ignore": None}, r"labels \[255\] are no classes from 0 to 3"),
        ({"masks": MASKS - 1}, r"labels \[-1, 254\] are no classes"),
        ({"masks": MASKS / 2}, "whole numbers .batch, height, width."),
        ({"masks": MASKS[..., None]}, "whole numbers .batch, height, width."),
        ({"masks": np.full_like(MASKS, 255)}, "no pixel has a class"),
        ({"masks": MASKS[:0]}, "no pixel has a class"),
        ({"outputs": logits(PREDICTED)[:, 1:]}, r"not \[1, 1, 3, 4\]"),
        (
            {"outputs": np.where(logits(PREDICTED) == 1, np.inf, 0)},
            "1 of 1 images are NaN",
        ),
    ],
)
def test_what_cannot_be_scored(changes, message, untyped):
    with pytest.raises(ValueError, match=message):
        evaluate(**changes)


@pytest.mark.parametrize(
    ("batch", "output", "message"),
    [
        ((MASKS,), None, "pass pairs"),
        ((MASKS, MASKS), {"out": 1}, "forward returned a dict with the keys .'out'"),
        ((MASKS, MASKS), ["a"], r"forward returned the list \['a'\]"),
    ],
)
def test_batches_and_outputs_of_another_kind(batch, output, message, untyped):
    with pytest.raises(ValueError, match=message):
        zipjax.evaluate_segmentation(lambda x: output, [batch], num_classes=4)


@pytest.mark.parametrize(
    "confusion",
    [CONFUSION[:2], CONFUSION - 1, CONFUSION / 2, CONFUSION[0], np.eye(3, dtype=bool)],
)
def test_matrices_that_hold_no_counts(confusion, untyped):
    with pytest.raises(ValueError, match="pass numbers of pixels"):
        zipjax.mean_iou(confusion)
    with pytest.raises(ValueError, match="no pixel"):
        zipjax.mean_iou(np.zeros((2, 2), int))
