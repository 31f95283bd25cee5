"""Images and their targets, cut and resized together."""

import numpy as np
import pytest

from experiments.data.framing import Box, Framing

FRAMING = Framing(8, (6, 4))


def test_the_centre_is_cropped_of_what_is_resized():
    # 16x32 is resized to 8x16, so that one pixel there is two here.
    assert FRAMING.centre(16, 32) == Box(2, 12, 12, 8)
    # 32x16 becomes 16x8.
    assert FRAMING.centre(32, 16) == Box(10, 4, 12, 8)
    # Not larger than the image: 4 x 8 of the wanted shape in 4 x 12 pixels.
    assert Framing(4, (8, 16)).centre(4, 12) == Box(0, 2, 4, 8)


def test_random_parts_have_the_areas_and_shapes_asked_for():
    framing = Framing(8, (4, 4), area=(0.1, 0.5), ratio=(0.5, 2.0))
    random = np.random.default_rng(0)
    boxes = np.array([framing.drawn(60, 60, random) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (boxes >= 0).all()
    assert (top + height <= 60).all()
    assert (left + width <= 60).all()
    area, ratio = height * width / 3600, width / height
    np.testing.assert_allclose([area.min(), area.max()], [0.1, 0.5], atol=0.02)
    np.testing.assert_allclose([ratio.min(), ratio.max()], [0.5, 2], rtol=0.1)
    # Uniform in the area, as likely flat as tall, and anywhere.
    np.testing.assert_allclose(area.mean(), 0.3, atol=0.02)
    assert 0.45 < (ratio > 1).mean() < 0.55
    np.testing.assert_allclose((top / (60 - height)).mean(), 0.5, atol=0.03)


def test_an_image_without_such_a_part_is_cropped_at_its_centre():
    framing = Framing(8, (4, 4), area=(1.0, 1.0), ratio=(1.0, 1.0))
    random = np.random.default_rng(0)
    assert framing.drawn(10, 100, random) == framing.centre(10, 100)
    assert framing.drawn(10, 10, random) == Box(0, 0, 10, 10)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_cut_where_the_box_is(channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)
    found = FRAMING.image(image, Box(3, 5, 6, 4))
    np.testing.assert_array_equal(found, image[3:9, 5:9])


def test_resized_images_are_interpolated():
    ramp = np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], 12, 0)
    halved = Framing(6, (6, 15)).image(ramp, Box(0, 0, 12, 30))
    # The means of neighbours, away from the edges.
    expected = np.arange(4, 240, 16)
    assert np.abs(halved[3, 1:-1, 0].astype(int) - expected[1:-1]).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_targets_are_cut_and_never_blended(dtype):
    target = np.random.default_rng(0).integers(0, 200, (20, 30)).astype(dtype)
    found = FRAMING.target(target, Box(3, 5, 6, 4))
    np.testing.assert_array_equal(found, target[3:9, 5:9])
    doubled = Framing(8, (12, 8)).target(target, Box(3, 5, 6, 4))
    expected = target[3:9, 5:9].repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(doubled, expected)
    assert doubled.dtype == dtype
    some = Framing(8, (7, 9)).target(target, Box(1.3, 2.8, 11.9, 20.1))
    assert set(some.ravel()) <= set(target.ravel())


def test_image_and_target_are_cut_alike():
    rows, columns = np.mgrid[:64, :48].astype(np.uint8)
    image = np.stack([rows, columns, rows], -1)
    framing, random = Framing(32, (16, 16)), np.random.default_rng(1)
    for _ in range(20):
        box = framing.drawn(64, 48, random)
        cut = framing.image(image, box).astype(int)
        own = framing.target(image, box).astype(int)
        # Where both are smooth, the nearest pixel is close to the interpolated one.
        assert np.abs(cut - own)[1:-1, 1:-1].max() <= max(box.height, box.width) / 16
