"""Pictures of predictions: the test images, and what networks answer about them."""

import flax.linen as nn
import numpy as np

from experiments.data.pixels import Pixels
from experiments.data.sources import Arrays
from experiments.data.splits import Split
from experiments.parents.tasks.segmentation import PixelLogits
from experiments.parents.tasks.suite import Task
from experiments.report import pictures
from zipjax.models import mlp

COUNT, CLASSES = 9, 3


def test_networks_are_asked_about_normalised_test_images():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (COUNT, 4, 6, 3), np.uint8)
    masks = random.integers(0, CLASSES, (COUNT, 4, 6), np.uint8)
    source = Arrays({"image": images, "mask": masks})
    pixels = Pixels((100.0,), (50.0,))
    zeros = np.zeros(COUNT, int)
    split = Split(source, np.arange(COUNT), zeros, pixels, target="mask")
    objective, network = PixelLogits(CLASSES, 255), mlp.MLP((2,), CLASSES)
    task = Task(
        "Streets", split, split, objective, network, nn.Module.apply, mlp.spec(network)
    )
    asked = []

    def answer(seen):
        """Says the class whose channel is the largest."""
        asked.append(np.asarray(seen))
        return seen

    picture = pictures.prediction_picture(task, objective, {"Model A": answer}, "Here.")
    shown = [0, 3, 5, 8]  # Four of nine: places 0, 8/3, 16/3 and 8.
    np.testing.assert_allclose(asked[0], (images[shown] - 100.0) / 50, rtol=1e-6)
    axes = np.array(picture.figure.axes).reshape(4, 3)
    titles = [axis.get_title() for axis in axes[0]]
    assert titles == ["Input", "Truth", "Model A"]
    wanted = [
        images[shown],
        objective.drawn_targets(masks[shown]),
        objective.drawn_targets(images[shown].argmax(-1)),
    ]
    for column, own in zip(axes.T, wanted, strict=True):
        for axis, image in zip(column, own, strict=True):
            (found,) = axis.get_images()
            np.testing.assert_array_equal(found.get_array(), image)
    assert picture.caption.startswith("Streets: ")
    assert picture.caption.endswith(" Here.")
