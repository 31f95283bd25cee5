"""Pictures of predictions: every image in its column and row."""

import numpy as np
import pytest

from experiments.report.predictions import predictions


def test_every_example_has_a_row_and_every_column_its_heading():
    random = np.random.default_rng(0)
    columns = {
        "Input": random.integers(0, 256, (3, 4, 6, 1), np.uint8),
        "Truth": random.uniform(size=(3, 4, 6, 3)),
    }
    axes = np.array(predictions(columns).axes).reshape(3, 2)
    assert [axis.get_title() for axis in axes[0]] == ["Input", "Truth"]
    for number, images in enumerate(columns.values()):
        for axis, image in zip(axes[:, number], images, strict=True):
            (shown,) = axis.get_images()
            np.testing.assert_array_equal(shown.get_array(), image.squeeze())


def test_columns_of_other_lengths_are_refused():
    columns = {"Input": np.zeros((2, 4, 6, 3)), "Truth": np.zeros((1, 4, 6, 3))}
    with pytest.raises(ValueError, match=r"'Input': 2, 'Truth': 1"):
        predictions(columns)
