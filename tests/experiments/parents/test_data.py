"""Datasets: stored unmodified, normalised on the device."""

import json

import numpy as np
import pytest

from experiments.parents import data

MEAN = np.array([125.307, 122.961, 113.8575])
STD = np.array([51.5865, 50.847, 51.255])


def test_batches_are_normalised_a_channel_at_a_time():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 2), np.uint8)
    pixels = data.Pixels((10.0, 20.0), (2.0, 4.0))
    split = data.Split(images, np.arange(5), pixels)
    batches = list(split.batches(3))
    assert [labels.tolist() for _, labels in batches] == [[0, 1, 2], [3, 4]]
    expected = np.stack([(images[..., 0] - 10.0) / 2, (images[..., 1] - 20.0) / 4], -1)
    found = np.concatenate([np.asarray(batch) for batch, _ in batches])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_examples_are_taken_with_their_labels_and_names():
    labels = np.array([3, 1, 3, 1, 3])
    images = np.arange(5.0).reshape(5, 1, 1, 1)
    ids = np.array(list("abcde"))
    split = data.Split(images, labels, ids=ids).take(labels == 3)
    assert split.images.ravel().tolist() == [0, 2, 4]
    assert split.ids is not None
    assert split.ids.tolist() == ["a", "c", "e"]
    first = data.Split(images, labels, ids=ids).first(2)
    assert sorted(zip(first.labels, first.ids, strict=True)) == [
        (1, "b"),
        (1, "d"),
        (3, "a"),
        (3, "c"),
    ]


def test_noise_stands_in_for_cifar():
    noise = data.load_dataset("noise100")
    assert noise.train.images.shape[1:] == (32, 32, 3)
    assert noise.train.images.dtype == np.uint8
    assert set(noise.test.labels) == set(range(100))


def test_absent_data_comes_with_the_command_that_gets_it(tmp_path):
    command = rf"tfds build cifar100 .*array_record --data_dir={tmp_path}"
    with pytest.raises(FileNotFoundError, match=command):
        data.load_dataset("cifar100", str(tmp_path))


@pytest.mark.parametrize("several", [1, 4])
def test_prepared_examples_are_decoded_in_order(several, monkeypatch):
    class Source:
        """What the data source of TensorFlow Datasets offers."""

        def __len__(self):
            return 9

        def __getitems__(self, numbers):
            return [
                {
                    "image": np.full((2, 2, 3), k, np.uint8),
                    "label": k % 3,
                    "id": b"train_%05d" % k,
                }
                for k in numbers
            ]

    monkeypatch.setattr(data, "_DECODED_TOGETHER", several)
    split = data._decoded(Source(), data.Pixels())
    assert split.images[:, 0, 0, 0].tolist() == list(range(9))
    assert split.labels.tolist() == [0, 1, 2] * 3
    assert split.ids is not None
    assert split.ids[8] == "train_00008"


def test_cifar10_is_read_as_it_lies_in_the_shared_folder(shared):
    import tensorflow_datasets as tfds

    builder = tfds.builder(
        "cifar10", data_dir=shared / "tfds", file_format="array_record"
    )
    source = builder.as_data_source("test[:200]")
    ids = json.loads((shared / "checkpoints/cifar10_5v5/train_ids.json").read_text())
    assert len(set(ids)) == 5000
    split = data._decoded(source, data._CIFAR10)
    assert split.images.shape == (200, 32, 32, 3)
    (batch, labels), *_ = split.batches(200)
    expected = (split.images.astype(np.float64) - MEAN) / STD
    np.testing.assert_allclose(batch, expected, rtol=0, atol=1e-5)
    assert set(labels) == set(range(10))
    # Real images are about standard normal under CIFAR's own statistics.
    assert abs(expected.mean()) < 0.2
    assert 0.8 < expected.std() < 1.4
