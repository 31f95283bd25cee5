"""Normalisation, a channel at a time."""

import numpy as np

from experiments.data.pixels import Pixels


def test_images_are_normalised_a_channel_at_a_time():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 2), np.uint8)
    found = np.asarray(Pixels((10.0, 20.0), (2.0, 4.0)).normalised(images))
    expected = np.stack([(images[..., 0] - 10.0) / 2, (images[..., 1] - 20.0) / 4], -1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
