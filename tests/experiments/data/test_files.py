"""Folders of images, in the layouts in which data sets are published."""

import numpy as np
import pytest

from experiments.data import files
from experiments.data.datasets import load_dataset, num_classes
from tests.experiments.data import written


def images_of(split, count):
    """Returns the numbers that the pictures of a split say."""
    images = split.source.read(np.arange(count), ("image",))["image"]
    return [int(image[0, 0, 0]) for image in images]


def classes(root, split, names):
    for number, name in enumerate(names):
        written.save(root / split / name / f"{number}.png", written.picture(number))


def test_a_folder_of_classes(tmp_path):
    classes(tmp_path, "train", ["cat", "ant", "bee"])
    classes(tmp_path, "test", ["bee"])
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    found = load_dataset("folder", str(tmp_path))
    assert found.num_classes == 3
    # In the order of the names: ant, bee, cat.
    assert found.train.labels.tolist() == [0, 1, 2]
    assert images_of(found.train, 3) == [1, 2, 0]
    assert found.test.labels.tolist() == [1]
    images, _ = next(found.train.batches(3))
    assert images.shape == (3, 224, 224, 3)


def test_a_class_that_is_not_trained_is_told(tmp_path):
    classes(tmp_path, "train", ["ant"])
    classes(tmp_path, "test", ["ant", "bee"])
    with pytest.raises(ValueError, match=r"the classes \['bee'\]"):
        load_dataset("folder", str(tmp_path))


def test_empty_folders_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train is absent: make it"):
        num_classes("folder", str(tmp_path))
    (tmp_path / "train" / "ant").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"train holds no images"):
        load_dataset("folder", str(tmp_path))


def test_a_damaged_file_is_named_where_it_is_read(tmp_path):
    classes(tmp_path, "train", ["ant", "bee"])
    classes(tmp_path, "test", ["ant"])
    (tmp_path / "train" / "bee" / "1.png").write_bytes(b"none")
    found = load_dataset("folder", str(tmp_path))
    with pytest.raises(ValueError, match=r"train/bee/1\.png cannot be decoded"):
        list(found.train.batches(2))


def test_changed_files_have_another_digest(tmp_path):
    classes(tmp_path, "train", ["ant", "bee"])
    found, _ = files.folder_of_classes(tmp_path, "train")
    before = [found.digest(np.array(own)) for own in ([0], [1], [0])]
    assert before[0] == before[2] != before[1]
    written.save(tmp_path / "train" / "ant" / "0.png", written.picture(9, 21))
    assert found.digest(np.array([0])) != before[0]
    assert found.digest(np.array([1])) == before[1]


def test_voc(tmp_path):
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039\n")
    (lists / "val.txt").write_text("2007_000033\n")
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 30:], mask[:20, :30] = 20, 255
    for number, name in enumerate(("2007_000032", "2007_000033", "2007_000039")):
        image = written.picture(number, 40, 60)
        written.save(tmp_path / "JPEGImages" / f"{name}.jpg", image)
        written.save(tmp_path / "SegmentationClass" / f"{name}.png", mask)
    found = load_dataset("voc", str(tmp_path))
    assert found.num_classes == 21
    assert (len(found.train), len(found.test)) == (2, 1)
    assert set(found.train.labels) == {0}
    images, masks = next(found.train.batches(2))
    assert images.shape == (2, 320, 320, 3)
    # The centre, 40x40, eight times as large.
    expected = mask[:, 10:50].repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(masks, [expected, expected])


def test_a_mask_that_is_absent_is_named(tmp_path):
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text("a\n")
    written.save(tmp_path / "JPEGImages" / "a.jpg", written.picture(0))
    found = load_dataset("voc", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"SegmentationClass/a\.png"):
        list(found.train.batches(1))


def test_nabirds(tmp_path):
    rows = [("0a-1", 817, 1), ("0b-2", 295, 0), ("0c-3", 1010, 1), ("0d-4", 295, 1)]
    lists = {"images": [], "image_class_labels": [], "train_test_split": []}
    for number, (name, label, train) in enumerate(rows):
        path = f"{label:04d}/{name}.jpg"
        written.save(tmp_path / "images" / path, written.picture(100 * (number % 2)))
        for own, value in zip(lists, (path, label, train), strict=True):
            lists[own].append(f"{name} {value}")
    for own, lines in lists.items():
        (tmp_path / f"{own}.txt").write_text("\n".join(lines) + "\n")
    found = load_dataset("nabirds", str(tmp_path))
    # Of 295, 817 and 1010.
    assert found.train.labels.tolist() == [1, 2, 0]
    assert found.test.labels.tolist() == [0]
    assert np.abs(np.subtract(images_of(found.train, 3), [0, 0, 100])).max() <= 2


BUILDINGS = {"hanson": "train", "wiconisco": "val", "ihlen": "test", "absent": "train"}


@pytest.mark.parametrize(
    "layout",
    ["{building}/{domain}", "{domain}/{building}", "{domain}/taskonomy/{building}"],
)
def test_taskonomy(layout, tmp_path):
    header = "id,train,val,test"
    lines = [
        ",".join([name, *(str(int(split == own)) for own in ("train", "val", "test"))])
        for name, split in BUILDINGS.items()
    ]
    (tmp_path / "train_val_test_tiny.csv").write_text("\n".join([header, *lines]))
    deep = np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)
    for number, building in enumerate(["hanson", "wiconisco", "ihlen", "unlisted"]):
        targets = {
            "rgb": (written.picture(number, 256, 256), "rgb"),
            "depth_euclidean": (deep + number, "depth_euclidean"),
            "normal": (written.picture(9, 256, 256), "normal"),
            "mask_valid": (np.full((256, 256), 255, np.uint8), "depth_zbuffer"),
        }
        for domain, (pixels, ending) in targets.items():
            folder = tmp_path / layout.format(building=building, domain=domain)
            for view in (0, 1):
                name = f"point_{number}_view_{view}_domain_{ending}.png"
                written.save(folder / name, pixels)
    found = load_dataset("taskonomy", str(tmp_path))
    assert found.validation is not None
    for number, split in enumerate((found.train, found.validation, found.test)):
        assert images_of(split, 2) == [number, number]
        assert len(split) == 2
        images, depths = split.read(np.arange(2))
        assert images.shape == (2, 256, 256, 3)
        np.testing.assert_array_equal(depths, [deep + number] * 2)
    _, normals = found.train.towards("normal").read(np.arange(1))
    np.testing.assert_array_equal(normals, [written.picture(9, 256, 256)])
    _, valid = found.train.towards("mask_valid").read(np.arange(1))
    assert (valid == 255).all()


def test_taskonomy_without_its_lists_is_told(tmp_path):
    name = "rgb/hanson/point_0_view_0_domain_rgb.png"
    written.save(tmp_path / name, written.picture(0))
    with pytest.raises(FileNotFoundError, match=r"1 images.*lists found: 0.*splits_t"):
        load_dataset("taskonomy", str(tmp_path))
