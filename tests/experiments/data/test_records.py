"""Prepared data sets: read by number, with the shard of what is damaged."""

import numpy as np
import pytest

from experiments.data.records import open_builder, open_records
from tests.experiments.data import written


def example(number, **changes):
    mask = np.full((4, 6), number, np.uint8)
    pixels = written.picture(number, 4, 6)
    return {
        "image": written.encoded(pixels),
        "label": 10 + number,
        "segmentation_mask": written.encoded(mask),
        "name": f"n{number}",
        **changes,
    }


def opened(tmp_path, *shards, **features):
    from tensorflow_datasets.core import features as kinds

    described = {
        "image": kinds.Image(shape=(None, None, 3)),
        "label": kinds.ClassLabel(num_classes=20),
        "segmentation_mask": kinds.Image(shape=(None, None, 1)),
        "name": kinds.Text(),
    }
    written.prepare(tmp_path / "tiny" / "1.0.0", "tiny", described, {"train": shards})
    builder = open_builder("tiny", str(tmp_path), "")
    names = {"image": "image", "mask": "segmentation_mask", **features}
    return open_records(builder, "train", names)


def test_fields_labels_and_names_are_read_by_number(tmp_path):
    found = opened(tmp_path, [example(0), example(1)], [example(2)])
    assert len(found) == 3
    numbers = np.array([2, 0])
    fields = found.read(numbers, ("image", "mask"))
    for number, image, mask in zip(
        numbers, fields["image"], fields["mask"], strict=True
    ):
        np.testing.assert_array_equal(image, written.picture(number, 4, 6))
        np.testing.assert_array_equal(mask, np.full((4, 6), number))
    assert set(found.read(numbers, ("mask",))) == {"mask"}
    assert found.labels(np.arange(3)).tolist() == [10, 11, 12]
    assert found.ids(numbers, "name").tolist() == ["n2", "n0"]


def test_greys_and_transparent_images_become_colours(tmp_path):
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    clear = np.concatenate([written.picture(3, 4, 6), grey[..., None]], axis=-1)
    changed = [example(0, image=written.encoded(own)) for own in (grey, clear)]
    found = opened(tmp_path, changed).read(np.arange(2), ("image",))["image"]
    np.testing.assert_array_equal(found[0], np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(found[1], written.picture(3, 4, 6))


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (
            example(0, image=b"none"),
            r"array_record-00001-of-00002, record 1, .*decoded",
        ),
        (b"none", r"array_record-00001-of-00002, record 1, .*read"),
        ({"label": 1}, r"00001-of-00002, record 1, has no feature 'image'"),
    ],
)
def test_what_is_damaged_is_named(damaged, message, tmp_path):
    found = opened(tmp_path, [example(0)], [example(1), damaged])
    found.read(np.array([0, 1]), ("image",))
    with pytest.raises(ValueError, match=message):
        found.read(np.arange(3), ("image",))


def test_labels_are_known_without_decoding(tmp_path):
    found = opened(tmp_path, [example(0, image=b"none"), example(1)])
    assert found.labels(np.arange(2)).tolist() == [10, 11]


def test_a_damaged_shard_is_named(tmp_path):
    found = opened(tmp_path, [example(0)], [example(1)] * 50)
    shard = tmp_path / "tiny/1.0.0/tiny-train.array_record-00001-of-00002"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3 : 2 * len(data) // 3] = bytes(len(data) // 3)
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"00001-of-00002, record \d+, .*read"):
        found.read(np.arange(51), ("image",))


def test_the_newest_version_is_opened(tmp_path):
    from tensorflow_datasets.core import features as kinds

    for version in ("2.0.0", "10.0.0", "9.1.0"):
        described = {"image": kinds.Image(shape=(None, None, 3))}
        written.prepare(tmp_path / "tiny" / version, "tiny", described, {"train": []})
    assert str(open_builder("tiny", str(tmp_path), "").version) == "10.0.0"


def test_digests_tell_examples_apart(tmp_path):
    found = opened(tmp_path, [example(0), example(1)], [example(2)])
    assert found.digest(np.arange(2)) == found.digest(np.arange(2))
    assert found.digest(np.arange(2)) != found.digest(np.array([0, 2]))
