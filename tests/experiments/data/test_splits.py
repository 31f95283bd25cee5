"""Splits: what is in memory and what is read as needed give the same batches."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.data.framing import Framing
from experiments.data.pixels import PLAIN, Pixels
from experiments.data.sources import Arrays
from experiments.data.splits import Dataset, Split, in_memory
from experiments.data.streams import Reader

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 6, 9, 3), np.uint8)
MASKS = np.random.default_rng(1).integers(0, 5, (23, 6, 9), np.uint8)
LABELS = np.arange(23) % 4
MEMORY = in_memory(IMAGES, LABELS, Pixels((10.0,), (2.0,)), np.arange(23).astype(str))
STREAMED = dataclasses.replace(MEMORY, reading=Reader(threads=3))
CROPPED = dataclasses.replace(STREAMED, framing=Framing(4, (3, 3)))
DENSE = Split(
    Arrays({"image": IMAGES, "mask": MASKS}), np.arange(23), LABELS * 0, target="mask"
)


@pytest.mark.parametrize("split", [MEMORY, STREAMED])
def test_batches_come_in_order(split):
    batches = list(split.batches(5))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    found = np.concatenate([np.asarray(images) for images, _ in batches])
    np.testing.assert_allclose(found, (IMAGES - 10.0) / 2, rtol=1e-6)
    np.testing.assert_array_equal(np.concatenate([x for _, x in batches]), LABELS)


@pytest.mark.parametrize("split", [MEMORY, STREAMED])
def test_processes_take_turns_with_batches(split):
    batches = [labels.tolist() for _, labels in split.batches(5)]
    assert [own.tolist() for _, own in split.batches(5, 0, 2)] == batches[::2]
    assert [own.tolist() for _, own in split.batches(5, 1, 2)] == batches[1::2]
    assert list(split.batches(30, 1, 2)) == []


def test_examples_are_taken_with_their_labels_and_names():
    split = MEMORY.take(LABELS == 3)
    assert split.numbers.tolist() == [3, 7, 11, 15, 19]
    assert split.ids.tolist() == ["3", "7", "11", "15", "19"]
    some = split.take(np.array([4, 0]))
    images, labels = some.read(np.arange(2))
    np.testing.assert_array_equal(images, IMAGES[[19, 3]])
    assert labels.tolist() == [3, 3]
    assert split.take(slice(2)).numbers.tolist() == [3, 7]


def test_the_first_of_every_class_are_taken():
    first = MEMORY.first(2)
    assert sorted(first.numbers.tolist()) == list(range(8))
    assert DENSE.first(2).numbers.tolist() == [0, 1]
    both = Dataset(MEMORY, DENSE, 4, DENSE).first(1)
    assert [len(both.train), len(both.test), len(both.validation)] == [4, 1, 1]


@pytest.mark.parametrize("split", [MEMORY, STREAMED])
def test_an_epoch_is_a_random_order_of_all_full_batches(split, key):
    def order(epoch, **options):
        batches = split.shuffled(5, key, epoch, **options)
        return [batch.tolist() for batch in (images for images, _ in batches)]

    # Training's order of examples, of which the recorded tables are made.
    places = np.asarray(jax.random.permutation(jax.random.fold_in(key, 7), 23))
    expected = IMAGES[places[:20]].reshape(4, 5, 6, 9, 3).tolist()
    assert order(7) == expected
    assert order(8) != expected
    assert order(7, start=3) == expected[3:]
    shares = [order(7, number=number, count=2) for number in (0, 1)]
    assert shares == [expected[::2], expected[1::2]]
    uneven = [order(7, number=number, count=3) for number in range(3)]
    assert [len(own) for own in uneven] == [1, 1, 1]


def test_targets_travel_with_shuffled_images(key):
    for split in (DENSE, dataclasses.replace(DENSE, reading=Reader())):
        for images, masks in split.shuffled(4, key, 0):
            for image, mask in zip(images, masks, strict=True):
                (number,) = np.flatnonzero((image == IMAGES).all((1, 2, 3)))
                np.testing.assert_array_equal(mask, MASKS[number])
    for images, labels in STREAMED.shuffled(4, key, 0):
        numbers = [np.flatnonzero((x == IMAGES).all((1, 2, 3)))[0] for x in images]
        assert labels.tolist() == LABELS[numbers].tolist()


def test_random_crops_follow_from_key_epoch_and_example(key):
    def crops(split, epoch=0, key=key, **options):
        batches = list(split.shuffled(4, key, epoch, **options))
        return np.concatenate([images for images, _ in batches])

    first = crops(CROPPED)
    assert first.shape == (20, 3, 3, 3)
    np.testing.assert_array_equal(crops(CROPPED), first)
    np.testing.assert_array_equal(crops(CROPPED, start=2), first[8:])
    slow = dataclasses.replace(CROPPED, reading=Reader(threads=1))
    np.testing.assert_array_equal(crops(slow), first)
    assert (crops(CROPPED, 1) != first).any()
    assert (crops(CROPPED, key=jax.random.key(1)) != first).any()
    # Not those that are tested on, and not one part for all examples.
    flat = dataclasses.replace(
        CROPPED, source=Arrays({"image": np.repeat(IMAGES[:1], 23, 0)})
    )
    assert len({crop.tobytes() for crop in crops(flat)}) > 15


def test_crops_of_targets_are_those_of_their_images(key):
    rows, columns = np.mgrid[:60, :90].astype(np.uint8)
    images = np.repeat(np.stack([rows, columns, rows], -1)[None], 8, 0)
    source = Arrays({"image": images, "mask": images[..., 0]})
    framing = Framing(30, (16, 16))
    split = Split(source, np.arange(8), np.zeros(8, int), PLAIN, None, "mask", framing)
    for images, masks in split.shuffled(4, key, 0):
        difference = np.abs(images[..., 0].astype(int) - masks)
        assert difference[:, 1:-1, 1:-1].max() <= 4
    images, masks = split.read(np.arange(1))
    # The centre: 30 of 60 rows are every second one of the middle.
    assert np.abs(images[0, :, 0, 0].astype(int) - np.arange(14, 46, 2)).max() <= 1
    np.testing.assert_array_equal(masks[0, :, 0], np.arange(15, 47, 2))


def test_kept_examples_are_the_same():
    def track(steps, title):
        titles.append(title)
        return steps

    for split in (MEMORY, CROPPED, DENSE):
        titles = []
        some = split.take(np.array([5, 2, 11]))
        kept = some.kept(track, "read")
        assert titles == ["read"]
        for own, other in zip(
            kept.read(np.arange(3)), some.read(np.arange(3)), strict=True
        ):
            np.testing.assert_array_equal(own, other)
        assert len(kept.source) == 3
        assert (kept.framing, kept.reading, kept.target) == (None, None, split.target)


def test_digests_tell_examples_labels_and_sizes_apart():
    relabelled = dataclasses.replace(MEMORY, labels=LABELS[::-1])
    repainted = in_memory(IMAGES ^ 1, LABELS)
    others = [MEMORY, CROPPED, relabelled, repainted, DENSE, MEMORY.take(slice(9))]
    assert len({split.digest() for split in others}) == len(others)
    assert MEMORY.digest() == in_memory(IMAGES.copy(), LABELS.copy()).digest()


def test_a_data_set_may_be_normalised_otherwise():
    images = np.full((2, 1, 1, 3), 6, np.uint8)
    split = in_memory(images, np.zeros(2, int), Pixels((2.0, 4.0, 6.0), (2.0,)))
    data = Dataset(split, split, 1, split)

    def first(changed):
        return [
            np.ravel(x.example()).tolist() for x in (changed.test, changed.validation)
        ]

    assert first(data.normalised_by((), ())) == [[2, 1, 0]] * 2
    assert first(data.normalised_by((0.0,), ())) == [[3, 3, 3]] * 2
    assert first(data.normalised_by((), (1.0, 2.0, 3.0))) == [[4, 1, 0]] * 2
