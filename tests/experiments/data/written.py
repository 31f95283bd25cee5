"""Small data sets, written in the formats of the real ones."""

import io
import json

import numpy as np
from PIL import Image


def encoded(pixels, kind="PNG", mode=None):
    """Returns an image file's content."""
    stream = io.BytesIO()
    Image.fromarray(pixels, mode=mode).save(stream, kind)
    return stream.getvalue()


def picture(number, height=20, width=30):
    """Returns an image of one colour, which says its number."""
    return np.full((height, width, 3), (number, 2 * number, 255 - number), np.uint8)


def save(path, pixels, **options):
    """Writes an image file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "JPEG" if path.suffix == ".jpg" else "PNG"
    path.write_bytes(encoded(pixels, kind, **options))


def prepare(folder, name, features, splits, kind="array_record"):
    """Writes a data set as TensorFlow Datasets prepares it, without TensorFlow.

    Args:
      folder: its version's folder.
      name: its name.
      features: TensorFlow Datasets' features.
      splits: by name, a list of shards, each a list of examples: the values of some
        features.
      kind: the file format that is noted.
    """
    import tensorflow_datasets as tfds

    folder.mkdir(parents=True)
    tfds.features.FeaturesDict(features).save_config(folder)
    info = {"name": name, "version": folder.name, "fileFormat": kind, "splits": []}
    for split, shards in splits.items():
        for number, shard in enumerate(shards):
            place = f"{number:05d}-of-{len(shards):05d}"
            write_records(folder / f"{name}-{split}.array_record-{place}", shard)
        info["splits"].append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(len(shard)) for shard in shards],
                "numBytes": "1",
            }
        )
    (folder / "dataset_info.json").write_text(json.dumps(info))


def write_records(path, examples):
    """Writes one shard of examples, or of bytes that are none."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        record = example if isinstance(example, bytes) else _serialised(example)
        writer.write(record)
    writer.close()


def _serialised(example):
    from tensorflow_datasets.proto import tf_example_pb2

    record = tf_example_pb2.Example()
    for name, value in example.items():
        own = record.features.feature[name]
        if isinstance(value, bytes | str):
            data = value.encode() if isinstance(value, str) else value
            own.bytes_list.value.append(data)
        elif isinstance(value, int):
            own.int64_list.value.append(value)
        else:
            own.float_list.value.extend(value)
    return record.SerializeToString()


def photographs(name, classes):
    """Returns the features of a data set of photographs as it is published."""
    from tensorflow_datasets import features

    box = features.BBoxFeature
    own = {
        "stanford_dogs": {
            "image/filename": features.Text(),
            "objects": features.Sequence({"bbox": box()}),
        },
        "oxford_iiit_pet": {
            "file_name": features.Text(),
            "head_bbox": box(),
            "segmentation_mask": features.Image(shape=(None, None, 1)),
            "species": features.ClassLabel(num_classes=2),
        },
        "caltech_birds2011": {
            "bbox": box(),
            "image/filename": features.Text(),
            "label_name": features.Text(),
            "segmentation_mask": features.Image(shape=(None, None, 1)),
        },
        "imagenet2012": {"file_name": features.Text()},
    }
    return {
        "image": features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "label": features.ClassLabel(num_classes=classes),
        **own[name],
    }
