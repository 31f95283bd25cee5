"""Data sets by name: what is in memory, what is read as needed, what is absent."""

import json

import numpy as np
import pytest

from experiments.data import datasets
from experiments.data.datasets import DATASETS, load_dataset, num_classes, stand_in
from experiments.data.records import Records
from experiments.data.sources import Arrays
from tests.experiments.data import written

PHOTOGRAPHS = {
    "stanford_dogs": ("0.2.0", 120, "test"),
    "oxford_iiit_pet": ("4.0.0", 37, "test"),
    "caltech_birds2011": ("0.1.1", 200, "test"),
    "imagenet2012": ("5.1.0", 1000, "validation"),
}


def example(number):
    mask = np.full((20 + number, 30, 1), number, np.uint8)
    return {
        "image": written.encoded(written.picture(number, 20 + number), "JPEG"),
        "label": 3 * number,
        "segmentation_mask": written.encoded(mask[..., 0]),
        "file_name": f"{number}.jpg",
        "bbox": [0.0, 0.0, 1.0, 1.0],
    }


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_read_as_needed_and_brought_to_one_size(name, tmp_path):
    version, classes, test = PHOTOGRAPHS[name]
    train = [[example(number) for number in shard] for shard in ((0, 1), (2, 3, 4))]
    splits = {"train": train, test: [[example(5), example(6)]]}
    features = written.photographs(name, classes)
    written.prepare(tmp_path / name / version, name, features, splits)
    found = load_dataset(name, str(tmp_path))
    assert isinstance(found.train.source, Records)
    assert found.num_classes == num_classes(name) == classes
    assert found.train.labels.tolist() == [0, 3, 6, 9, 12]
    assert found.test.labels.tolist() == [15, 18]
    images, labels = found.train.read(np.array([4, 1]))
    assert images.shape == (2, 224, 224, 3)
    assert labels.tolist() == [12, 3]
    # JPEG keeps one colour but for its rounding.
    assert np.abs(images[0, 100, 100] - [4.0, 8, 251]).max() <= 2


def test_pets_also_have_masks(tmp_path):
    features = written.photographs("oxford_iiit_pet", 37)
    splits = {"train": [[example(1), example(2)]], "test": [[example(3)]]}
    folder = tmp_path / "oxford_iiit_pet" / "4.0.0"
    written.prepare(folder, "oxford_iiit_pet", features, splits)
    train = load_dataset("oxford_iiit_pet", str(tmp_path)).train.towards("mask")
    images, masks = train.read(np.array([0, 1]))
    assert images.shape[:3] == masks.shape == (2, 224, 224)
    assert [np.unique(mask).tolist() for mask in masks] == [[1], [2]]


def test_small_images_of_one_size_are_in_memory(tmp_path, monkeypatch):
    from tensorflow_datasets import features

    described = {
        "image": features.Image(shape=(28, 28, 1), encoding_format="png"),
        "label": features.ClassLabel(num_classes=10),
    }
    greys = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    examples = [
        {"image": written.encoded(grey), "label": number}
        for number, grey in enumerate(greys)
    ]
    splits = {"train": [examples[:3]], "test": [examples[3:]]}
    written.prepare(tmp_path / "mnist" / "3.0.1", "mnist", described, splits)
    bars = []

    def track(steps, title):
        bars.append(title)
        return steps

    found = load_dataset("mnist", str(tmp_path), track=track)
    assert isinstance(found.train.source, Arrays)
    np.testing.assert_array_equal(found.train.source.fields["image"][..., 0], greys[:3])
    assert {*bars} == {"read mnist, train", "read mnist, test"}
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 3 * 28 * 28 - 1)
    streamed = load_dataset("mnist", str(tmp_path))
    assert isinstance(streamed.train.source, Records)
    assert isinstance(streamed.test.source, Arrays)
    both = found.train.batches(2), streamed.train.batches(2)
    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("cifar100", r"tfds build cifar100 .*array_record --data_dir=.*elsewhere"),
        ("imagenet2012", r"ILSVRC2012_img_train.*tfds build imagenet2012"),
        ("camvid", r"git clone https://"),
        ("voc", r"wget .*VOCtrainval"),
        ("nabirds", r"tar xzf nabirds"),
        ("taskonomy", r"omnitools.download"),
        ("folder", r"one folder of images"),
    ],
)
def test_absent_data_come_with_the_command_that_gets_them(name, command, tmp_path):
    with pytest.raises(FileNotFoundError, match=command):
        load_dataset(name, str(tmp_path / "elsewhere"))


def test_data_in_another_format_are_told(tmp_path):
    folder = tmp_path / "imagenet2012" / "5.1.0"
    features = written.photographs("imagenet2012", 1000)
    written.prepare(folder, "imagenet2012", features, {"train": []}, "tfrecord")
    with pytest.raises(FileNotFoundError, match=r"in another format.*tfds build"):
        load_dataset("imagenet2012", str(tmp_path))


def test_unknown_names_are_told_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'minst' is unknown.*'mnist'"):
        load_dataset("minst")


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"imagenet2012", "folder"}))
def test_every_set_has_a_stand_in_of_its_shape_and_fields(name):
    info, found = DATASETS[name], load_dataset(stand_in(name))
    train = found.train
    assert train.target == info.target
    assert train.pixels == info.pixels
    assert found.num_classes == info.num_classes
    images, targets = train.read(np.arange(2))
    assert images.shape == (2, *info.shape)
    if info.target == "label":
        classes = set(range(info.num_classes))
        assert set(train.labels) == set(found.test.labels) == classes
    else:
        assert targets.shape == (2, *info.shape[:2])
    if info.framing is not None:
        assert info.framing.size == info.shape[:2]


def test_noise_stands_in_for_cifar():
    assert [stand_in(name) for name in ("cifar10", "cifar100")] == [
        "noise10",
        "noise100",
    ]
    images, _ = load_dataset("noise100").train.read(np.arange(1))
    assert images.dtype == np.uint8
    assert stand_in("digits") == "digits"


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("mnist", (60000, 10000), (28, 28, 1)),
        ("cifar10", (50000, 10000), (32, 32, 3)),
        ("camvid", (367, 233), (96, 128, 3)),
    ],
)
def test_shared_data_are_real(name, sizes, shape, shared):
    found = load_dataset(name, str(shared / "tfds"))
    assert (len(found.train), len(found.test)) == sizes
    images, targets = next(found.test.batches(200))
    assert images.shape[1:] == shape
    classes = set(np.unique(targets).tolist())
    unlabelled = {DATASETS[name].unlabelled} - {None}
    assert classes - unlabelled == set(range(DATASETS[name].num_classes))
    # Real images are about standard normal under their set's own statistics.
    assert abs(float(images.mean())) < 0.2
    assert 0.8 < float(images.std()) < 1.4


def test_shared_cifar_has_the_calibration_images(shared):
    found = load_dataset("cifar10", str(shared / "tfds"))
    numbers = json.loads(
        (shared / "checkpoints/cifar10_5v5/train_ids.json").read_text()
    )
    assert len(set(numbers)) == 5000
    assert {f"train_{number:05d}" for number in numbers} <= set(found.train.ids)
