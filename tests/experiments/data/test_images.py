"""Encoded images, decoded as networks need them."""

import io

import numpy as np
import pytest
from PIL import Image

from experiments.data.images import decode_image, decode_target, read_target
from tests.experiments.data import written

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6)


def test_images_have_the_channels_asked_for():
    data = written.encoded(GREY)
    np.testing.assert_array_equal(decode_image(data, "x", 1), GREY[..., None])
    found = decode_image(data, "x")
    np.testing.assert_array_equal(found, np.repeat(GREY[..., None], 3, -1))


def test_targets_are_as_they_are_stored(tmp_path):
    deep = GREY.astype(np.uint16) * 2000
    written.save(tmp_path / "deep.png", deep)
    found = read_target(tmp_path / "deep.png")
    np.testing.assert_array_equal(found, deep)
    assert found.dtype == np.uint16


def test_a_palettes_numbers_are_classes():
    coloured = Image.fromarray(GREY)
    coloured.putpalette(list(range(255, -1, -1)) * 3)
    stream = io.BytesIO()
    coloured.save(stream, "PNG")
    np.testing.assert_array_equal(decode_target(stream.getvalue(), "x"), GREY)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_that_ends_early_is_named(kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    data = written.encoded(noise, kind)
    with pytest.raises(ValueError, match=r"some\.png cannot be decoded"):
        decode_image(data[: len(data) // 2], "some.png")
