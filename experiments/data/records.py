"""Data sets that TensorFlow Datasets has prepared; TensorFlow is not needed."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from experiments.data.images import decode_image, decode_target
from experiments.data.sources import Fields
from experiments.fingerprints import array_digest, text_digest

IMAGE = "image"
"""The field that is an image of bytes; other encoded ones are dense targets."""

_READ_TOGETHER = 1000

# What array_record raises for a damaged shard: absl's status, as one of these.
_FAULTS = (RuntimeError, ValueError, IndexError, OSError)


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Examples in the shards of one split, in array_record's format.

    Attributes:
      storage: random access to the serialized examples.
      shards: the shards' paths.
      lengths: the number of examples of each.
      features: for every field, what it is called in the examples.
      channels: of the images.
    """

    storage: Any
    shards: Sequence[str]
    lengths: Sequence[int]
    features: Mapping[str, str]
    channels: int

    def __len__(self) -> int:
        return len(self.storage)

    def read(self, numbers: np.ndarray, fields: Sequence[str]) -> Fields:
        """Returns some fields of some examples.

        Raises:
          ValueError: if one cannot be decoded, naming the shard and the record in it.
        """
        found: dict[str, list[np.ndarray]] = {name: [] for name in fields}
        for number, example in self._examples(numbers):
            for name in fields:
                data = self._value(example, number, self.features[name]).bytes_list
                found[name].append(self._decoded(name, data.value[0], number))
        return found

    def labels(self, numbers: np.ndarray, feature: str = "label") -> np.ndarray:
        """Returns the classes of some examples; images are not decoded."""
        return np.array(
            [
                self._value(example, number, feature).int64_list.value[0]
                for number, example in self._examples(numbers)
            ]
        )

    def ids(self, numbers: np.ndarray, feature: str) -> np.ndarray:
        """Returns the names of some examples; images are not decoded."""
        return np.array(
            [
                self._value(example, number, feature).bytes_list.value[0].decode()
                for number, example in self._examples(numbers)
            ]
        )

    def digest(self, numbers: np.ndarray) -> str:
        """Returns a digest of the shards' names and lengths, and of the numbers.

        Prepared data do not change under a version, which the shards' paths contain.
        """
        names = ["/".join(shard.split("/")[-3:]) for shard in self.shards]
        held = repr((names, list(self.lengths), dict(self.features)))
        return text_digest(held + array_digest(numbers))

    def _examples(self, numbers: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Yields the parsed examples with their numbers."""
        from tensorflow_datasets.proto import tf_example_pb2

        parse: Callable[[bytes], Any] = vars(tf_example_pb2)["Example"].FromString

        for start in range(0, len(numbers), _READ_TOGETHER):
            some = numbers[start : start + _READ_TOGETHER].tolist()
            for number, record in zip(some, self._records(some), strict=True):
                try:
                    yield number, parse(record)
                except DecodeError as error:
                    raise self._error(number, error) from error

    def _records(self, numbers: list[int]) -> Sequence[bytes]:
        try:
            return self.storage.__getitems__(numbers)
        except _FAULTS as error:
            if len(numbers) > 1:  # One by one, to find the record.
                return [self._records([number])[0] for number in numbers]
            raise self._error(numbers[0], error) from error

    def _value(self, example: Any, number: int, feature: str) -> Any:
        values = example.features.feature
        if feature not in values:
            raise ValueError(
                f"{self._name(number)} has no feature {feature!r}, only "
                f"{sorted(values)}: prepare the data set's version that has it"
            )
        return values[feature]

    def _decoded(self, name: str, data: bytes, number: int) -> np.ndarray:
        if name == IMAGE:
            return decode_image(data, self._name(number), self.channels)
        return decode_target(data, self._name(number))

    def _name(self, number: int) -> str:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        first = int(self._ends[shard]) - self.lengths[shard]
        return f"{self.shards[shard]}, record {number - first},"

    def _error(self, number: int, error: Exception) -> ValueError:
        return ValueError(
            f"{self._name(number)} cannot be read ({error}): prepare the data set again"
        )

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.array(list(itertools.accumulate(self.lengths)))


def open_builder(name: str, data_dir: str | None, remedy: str) -> Any:
    """Opens a data set that TensorFlow Datasets has prepared, in its newest version.

    Args:
      name: the data set, whose folder holds one folder per version.
      data_dir: the folder of data sets; TensorFlow Datasets' own default if None.
      remedy: a command that prepares it, with "{name}" and "{option}" for its folder.

    Raises:
      FileNotFoundError: if it is not there, or not in array_record's format.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    folder = tfds.core.Path(data_dir or constants.DATA_DIR) / name
    versions = _versions(folder)
    if versions:
        builder = tfds.builder_from_directory(versions[-1])
        if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
            return builder
    command = remedy.format(
        name=name, option=f" --data_dir={data_dir}" if data_dir else ""
    )
    found = "is there in another format than array_record" if versions else "is absent"
    raise FileNotFoundError(
        f"data set {name!r} {found} in {folder}: {command}; or name "
        "the folder that holds it with --config.data_dir"
    )


def open_records(builder: Any, split: str, features: Mapping[str, str]) -> Records:
    """Opens a split of a data set that :func:`open_builder` returned.

    Args:
      builder: the data set.
      split: the split's name in the data set.
      features: for every field, what it is called in the examples.
    """
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    info = builder.info.splits[split]
    return Records(
        builder.as_data_source(split, deserialize_method=raw),
        [str(path) for path in info.filepaths],
        list(info.shard_lengths),
        features,
        builder.info.features[features[IMAGE]].shape[-1],
    )


def _versions(folder: Any) -> list[Any]:
    """Returns the folders of prepared versions, in ascending order."""
    if not folder.exists():
        return []
    prepared = [
        path
        for path in folder.iterdir()
        if path.name.replace(".", "").isdecimal()
        and (path / "dataset_info.json").exists()
    ]
    return sorted(prepared, key=lambda path: [int(x) for x in path.name.split(".")])
