"""Data sets in folders of image files, in the layouts in which they are published."""

import csv
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.data.images import read_image, read_target
from experiments.data.sources import Fields
from experiments.fingerprints import text_digest

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".webp"}
_CLASSES = "make it, with one folder of images for every class"
# The one domain of Taskonomy whose files are called after another.
_CALLED_AFTER = {"mask_valid": "depth_zbuffer"}


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Examples in files of their own.

    Attributes:
      root: the folder of the data set.
      images: the images' paths within it.
      targets: for every dense target, the path of an example's, given its image's.
    """

    root: Path
    images: list[str]
    targets: Mapping[str, Callable[[str], str]] = dataclasses.field(
        default_factory=dict
    )

    def __len__(self) -> int:
        return len(self.images)

    def read(self, numbers: np.ndarray, fields: Sequence[str]) -> Fields:
        """Returns some fields of some examples.

        Raises:
          ValueError: if a file cannot be decoded.
          FileNotFoundError: if there is no such file.
        """
        names = self._names(numbers)
        return {field: [self._field(field, name) for name in names] for field in fields}

    def digest(self, numbers: np.ndarray) -> str:
        """Returns a digest of the files' names, sizes and times of change."""
        names = self._names(numbers)
        stats = [(self.root / name).stat() for name in names]
        known = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
        return text_digest(repr((names, known, sorted(self.targets))))

    def _names(self, numbers: np.ndarray) -> list[str]:
        return [self.images[number] for number in numbers.tolist()]

    def _field(self, field: str, name: str) -> np.ndarray:
        if field == "image":
            return read_image(self.root / name)
        return read_target(self.root / self.targets[field](name))


def class_folders(root: Path) -> list[str]:
    """Returns the classes of a folder with one folder of images per class, sorted.

    Raises:
      FileNotFoundError: if it is absent.
    """
    _check(root, _CLASSES)
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def folder_of_classes(root: Path, split: str) -> tuple[Files, np.ndarray]:
    """Opens ``<root>/<split>/<class>/<image>``; returns images and their classes.

    Classes are numbered in the order of their names among the folders of ``train``.

    Raises:
      FileNotFoundError: if a folder is absent, or holds no images.
      ValueError: if the split has a class that ``train`` has not.
    """
    for folder in (root / "train", root / split):
        _check(folder, _CLASSES)
    places = {name: number for number, name in enumerate(class_folders(root / "train"))}
    own = class_folders(root / split)
    if strange := sorted(set(own) - set(places)):
        raise ValueError(
            f"{root / split} has the classes {strange}, which {root / 'train'} has "
            "not: give both folders the same classes"
        )
    names = [
        f"{split}/{path.relative_to(root / split).as_posix()}"
        for name in own
        for path in sorted((root / split / name).rglob("*"))
        if path.suffix.lower() in _ENDINGS
    ]
    if not names:
        raise FileNotFoundError(
            f"{root / split} holds no images that end in {sorted(_ENDINGS)}: fill the "
            "folders of its classes"
        )
    labels = np.array([places[name.split("/")[1]] for name in names])
    return Files(root, names), labels


def voc(root: Path, split: str, remedy: str) -> Files:
    """Opens VOC's images with a mask of classes: 0 to 20, and 255 without a class.

    The folder holds ``ImageSets/Segmentation/<split>.txt``, with the names of the
    images in ``JPEGImages`` and the masks in ``SegmentationClass``.

    Raises:
      FileNotFoundError: if the list of the split is absent.
    """
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    _check(listed, remedy)
    names = [f"JPEGImages/{name}.jpg" for name in listed.read_text().split()]
    return Files(root, names, {"mask": _voc_mask})


def _voc_mask(image: str) -> str:
    return f"SegmentationClass/{Path(image).stem}.png"


def nabirds(root: Path, train: bool, remedy: str) -> tuple[Files, np.ndarray]:
    """Opens NABirds' images; returns these and their classes.

    The folder holds ``images`` and the lists ``images.txt``,
    ``image_class_labels.txt`` and ``train_test_split.txt``. Of the listed hierarchy
    only the classes that images have are numbered, in ascending order.

    Raises:
      FileNotFoundError: if a list is absent.
    """
    paths, classes, chosen = (
        _pairs(root / f"{name}.txt", remedy)
        for name in ("images", "image_class_labels", "train_test_split")
    )
    own = [name for name in paths if (chosen[name] == "1") == train]
    numbered = np.unique([int(number) for number in classes.values()])
    labels = np.searchsorted(numbered, [int(classes[name]) for name in own])
    return Files(root, [f"images/{paths[name]}" for name in own]), labels


def _pairs(path: Path, remedy: str) -> dict[str, str]:
    """Reads lines of a name and a value."""
    _check(path, remedy)
    rows = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line]
    if wrong := [row for row in rows if len(row) != 2]:
        raise ValueError(
            f"{path} has the line {wrong[0]}, not a name and a value: {remedy}"
        )
    return {name: value.strip() for name, value in rows}


def taskonomy(root: Path, split: str, domains: Sequence[str], remedy: str) -> Files:
    """Opens Taskonomy's images with dense targets, one per domain.

    Folders lie by building, ``<building>/<domain>/``, as in the sample building; by
    domain, ``<domain>/<building>/``; or as the download tool lays them,
    ``<domain>/taskonomy/<building>/``. Files are called
    ``point_<x>_view_<y>_domain_<domain>.png``. The published lists
    ``train_val_test_<size>.csv`` say which buildings a split has; those that are not in
    the folder are left out.

    Args:
      root: the folder of the data set.
      split: "train", "val" or "test".
      domains: the names of the targets.
      remedy: a command that gets the data.

    Raises:
      FileNotFoundError: if there is no list, or none of the split's images.
    """
    _check(root, remedy)
    lists = sorted({*root.glob("train_val_test_*.csv"), *root.glob("splits/*.csv")})
    chosen = {
        row["id"].lower()
        for path in lists
        for row in csv.DictReader(path.read_text().splitlines())
        if row[split] == "1"
    }
    images = sorted({*root.glob("*/rgb/*_domain_rgb.png"), *root.glob("rgb/**/*.png")})
    names = [path.relative_to(root).as_posix() for path in images]
    own = [name for name in names if _building(name).lower() in chosen]
    if not own:
        raise FileNotFoundError(
            f"{root} has {len(names)} images, but none in the {len(chosen)} buildings "
            f"of the split {split!r} that the lists train_val_test_*.csv there name "
            f"(lists found: {len(lists)}): {remedy}"
        )
    return Files(root, own, {name: _Domain(name) for name in domains})


def _building(image: str) -> str:
    """Returns the building of an image, which is the folder that is no domain."""
    *_, outer, inner, _ = image.split("/")
    return outer if inner == "rgb" else inner


@dataclasses.dataclass(frozen=True)
class _Domain:
    """Maps an image of Taskonomy to its target in a domain."""

    name: str

    def __call__(self, image: str) -> str:
        *folders, file = image.split("/")
        own = [self.name if folder == "rgb" else folder for folder in folders]
        ending = f"_domain_{_CALLED_AFTER.get(self.name, self.name)}.png"
        return "/".join([*own, re.sub(r"_domain_rgb\.png$", ending, file)])


def _check(path: Path, remedy: str) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} is absent: {remedy}")
