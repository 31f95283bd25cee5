"""A config's faults, all of them, before anything is loaded or trained."""

import importlib.util
import inspect
import math
from collections import Counter
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.data.datasets import DATASETS, num_classes
from experiments.data.splits import LABEL
from experiments.methods.rows import METHODS
from experiments.parents.architectures import ARCHITECTURES, segmenters
from experiments.parents.tasks.kinds import KINDS
from experiments.parents.tasks.scenes import IMAGE_ONLY, SCENES, STORED, TASKONOMY
from experiments.parents.text_embeddings import CLASSES, ENCODERS
from experiments.parents.train import Config
from experiments.parents.trained import checkpoint_files
from experiments.scenes.scenes import TASKS
from zipjax.models.taskonomy import SHRINKAGE


class Rule(NamedTuple):
    """What a field's value must be, as a test and in words."""

    fits: Callable[[Any], bool]
    wanted: str


def check_config(config: Config) -> None:
    """Checks a config's fields.

    Raises:
      ValueError: listing all faults, each with the field, its value and the remedy.
    """
    faults = list(_field_faults(config))
    # How fields fit together is clear only where each of them makes sense.
    if not faults:
        own = {
            "same": _same_faults,
            "datasets": _dataset_faults,
            "scenes": _scene_faults,
        }
        faults = [
            *own.get(config.tasks, _class_faults)(config),
            *_other_faults(config),
        ]
    if faults:
        raise ValueError(f"the config cannot run: {'; '.join(faults)}")


def _one_of(names: Iterable[str]) -> Rule:
    known = sorted(names)
    return Rule(lambda x: x in known, f"is unknown: choose among {known}")


def _whole(least: int) -> Rule:
    return Rule(
        lambda x: _is_whole(x, least), f"must be a whole number from {least} on"
    )


def _or_none(rule: Rule) -> Rule:
    return Rule(lambda x: x is None or rule.fits(x), f"{rule.wanted}, or None")


def _is_whole(x: Any, least: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= least


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and math.isfinite(x)


def _is_sequence(x: Any) -> bool:
    return isinstance(x, tuple | list)


def _are_rows(x: Any) -> bool:
    return _is_sequence(x) and set(x) <= set(METHODS) and not _twice(x)


def _are_positions(x: Any) -> bool:
    return x in ("all", "few") or (isinstance(x, str) and x.isdecimal() and int(x) > 0)


def _are_groups(x: Any) -> bool:
    named = _is_sequence(x) and [
        name in ("all", "pairs") or _is_whole(name, 2) for name in x
    ]
    return bool(named) and all(named)


def group_size(name: str | int, count: int) -> int:
    """Returns how many networks a group has that ``config.groups`` names.

    Args:
      name: "all", "pairs", or the number of networks.
      count: number of all networks.
    """
    return name if isinstance(name, int) else {"all": count, "pairs": 2}[name]


def _twice(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


_BOOL = Rule(lambda x: isinstance(x, bool), "must be True or False")
_FRACTION = Rule(lambda x: _is_number(x) and 0 <= x <= 1, "must lie in [0, 1]")
_FRACTIONS = Rule(
    lambda x: _is_sequence(x) and len(x) > 0 and all(map(_FRACTION.fits, x)),
    "must be a tuple of numbers in [0, 1], at least one",
)
_NUMBERS = Rule(
    lambda x: _is_sequence(x) and all(map(_is_number, x)),
    "must be a tuple of numbers, or ()",
)
_POSITIVE = Rule(lambda x: _is_number(x) and x > 0, "must be a positive number")
_NOT_NEGATIVE = Rule(lambda x: _is_number(x) and x >= 0, "must be a number from 0 on")
_ROWS = Rule(_are_rows, f"must be different names among {sorted(METHODS)}")
_TRAINING = {
    "epochs": _whole(1),
    "batch_size": _whole(1),
    "learning_rate": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
    "flip": _BOOL,
    "crop": _whole(0),
    "precision": _one_of(("float32", "bfloat16")),
}


def _is_mapping(x: Any) -> bool:
    return isinstance(x, Mapping | ConfigDict)


def _is_training(recipe: Any) -> bool:
    return (
        _is_mapping(recipe)
        and set(recipe) == set(_TRAINING)
        and all(rule.fits(recipe[name]) for name, rule in _TRAINING.items())
    )


_PICTURES = {"barrier", "basins", "pairs"}
_ZIP = {"alpha": _FRACTION, "beta": _FRACTION}
_IN_COLOUR = ("cifar10", "cifar100", "noise10", "noise100")
_IMAGES = ("calibration_images", "search_images", "refit_images", "test_images")
RULES: dict[str, Rule] = {
    "dataset": _one_of(name for name, info in DATASETS.items() if info.target == LABEL),
    "workers": _whole(0),
    "examples": _or_none(_whole(1)),
    "pixels.mean": _NUMBERS,
    "pixels.std": Rule(
        lambda x: _NUMBERS.fits(x) and all(value > 0 for value in x),
        "must be a tuple of positive numbers, or ()",
    ),
    "class_names": _or_none(_one_of(CLASSES)),
    "text_encoder": _one_of(ENCODERS),
    "tasks": _one_of(KINDS),
    "num_tasks": _whole(2),
    "groups": Rule(
        _are_groups,
        "must be 'all', 'pairs' and whole numbers from 2 on, at least one of these",
    ),
    "image_size": _or_none(_whole(1)),
    "classes": Rule(_is_sequence, "must be one tuple of classes per task, or ()"),
    "own_train": Rule(
        lambda x: _is_mapping(x) and all(map(_is_training, x.values())),
        f"must be trainings by task, with {sorted(_TRAINING)}, see config.train",
    ),
    "scenes.images": _one_of((SCENES, TASKONOMY, *_IN_COLOUR)),
    "scenes.train": _whole(1),
    "scenes.test": _whole(1),
    "scenes.size": _whole(1),
    "seeds": Rule(
        lambda x: (
            _is_sequence(x)
            and len(x) > 0
            and all(_is_whole(seed, 0) for seed in x)
            and not _twice(x)
        ),
        "must be different whole numbers from 0 on, at least one",
    ),
    "model": _one_of(ARCHITECTURES),
    "checkpoint_files": Rule(
        lambda x: _is_sequence(x) and all(isinstance(name, str) for name in x),
        "must be a tuple of names of files, or ()",
    ),
    "init": _one_of(("scratch", "finetuned")),
    **{f"train.{name}": rule for name, rule in _TRAINING.items()},
    **{f"finetune.{name}": rule for name, rule in _TRAINING.items()},
    "batch_size": _whole(1),
    **dict.fromkeys(_IMAGES, _or_none(_whole(1))),
    "calibration_tasks": Rule(
        lambda x: _is_sequence(x) and all(_is_whole(k, 0) for k in x) and not _twice(x),
        "must be different numbers of tasks from 0 on, or ()",
    ),
    "ddof": Rule(lambda x: x in (0, 1), "must be 0 or 1"),
    "positions": Rule(_are_positions, "must be 'all', 'few', or a number from '1' on"),
    "reset_parents": _BOOL,
    "rows": _ROWS,
    "partial_rows": _ROWS,
    "cuts": _whole(0),
    "cut_layers": Rule(
        lambda x: _is_sequence(x) and all(_is_whole(k, 1) for k in x) and not _twice(x),
        "must be different numbers of layers from 1 on, or ()",
    ),
    "inferred": _BOOL,
    **{f"zipit.{name}": rule for name, rule in _ZIP.items()},
    **{f"partial_zipit.{name}": rule for name, rule in _ZIP.items()},
    "cost": _POSITIVE,
    "partial_cost": _POSITIVE,
    **{f"grid.{name}": _FRACTIONS for name in ("alpha", "beta", "balance")},
    "plane.points": _whole(0),
    "pictures": Rule(
        lambda x: _is_sequence(x) and {*x} <= _PICTURES and not _twice(x),
        f"must be different names among {sorted(_PICTURES)}, or ()",
    ),
    "plane.images": _whole(1),
    "line.points": _whole(2),
    "line.images": _whole(1),
    "tensorboard": _BOOL,
    "smoke": _BOOL,
}
"""By field. Those that are not listed may have any value, or are checked together."""


def _field_faults(config: Config) -> Iterator[str]:
    for field, (fits, wanted) in RULES.items():
        value = config
        for name in field.split("."):
            value = value[name]
        if not fits(value):
            yield f"config.{field} = {_shown(value)} {wanted}"


def _shown(value: Any) -> str:
    """Returns a field's value in one line."""
    return repr(value.to_dict() if isinstance(value, ConfigDict) else value)


def _shared_faults(config: Config) -> Iterator[str]:
    """Yields what tasks of one data set do not allow."""
    for field in ("calibration_tasks", "own_train"):
        if config[field]:
            yield (
                f"config.{field} = {_shown(config[field])} tells tasks by their data "
                f"sets, which those of config.tasks = {config.tasks!r} share: leave it "
                "empty"
            )
    channels = DATASETS[config.dataset].shape[-1]
    for field in ("mean", "std"):
        if len(given := config.pixels[field]) not in (0, 1, channels):
            yield (
                f"config.pixels.{field} = {_shown(given)} are {len(given)} numbers, "
                f"but images of config.dataset = {config.dataset!r} have {channels} "
                "channels: pass one for each, or one for all"
            )


def _same_faults(config: Config) -> Iterator[str]:
    """Yields what is wrong about one task for all networks."""
    yield from _shared_faults(config)
    if config.classes:
        yield (
            f"config.classes = {_shown(config.classes)} divides the classes, which all "
            "networks of config.tasks = 'same' have in common: pass ()"
        )
    yield from _refit_faults(config, "tasks with text embeddings")


def _class_faults(config: Config) -> Iterator[str]:
    """Yields what is wrong about the classes and their tasks."""
    yield from _shared_faults(config)
    count, tasks = num_classes(config.dataset, config.data_dir), config.num_tasks
    names = config.class_names
    shipped = config.checkpoints is None and not config.smoke
    if shipped and names is None and config.dataset not in CLASSES:
        yield (
            "config.class_names = None, but config.dataset = "
            f"{config.dataset!r} has no names of its own: choose among "
            f"{sorted(CLASSES)}"
        )
    if names is not None and len(CLASSES[names].names) != count:
        yield (
            f"config.class_names = {names!r} are {len(CLASSES[names].names)} classes, "
            f"but config.dataset = {config.dataset!r} has {count}: choose names of all"
        )
    if config.classes:
        yield from _listed_faults(config.classes, tasks, count)
    elif config.tasks == "split" and count % tasks:
        yield (
            f"config.num_tasks = {tasks} does not divide the {count} classes of "
            f"config.dataset = {config.dataset!r}: choose a divisor"
        )
    elif config.tasks == "prime_odd" and (tasks, count) != (2, 10):
        yield (
            f"config.tasks = 'prime_odd' is 2 tasks on the digits, not {tasks} on "
            f"{config.dataset!r}: set config.num_tasks=2 and config.dataset=digits"
        )
    guilty = [row for row in config.rows if METHODS[row].refit == "ensemble"]
    if guilty and config.tasks == "prime_odd" and not config.classes:
        yield (
            f"config.rows has {guilty}, which refit to an ensemble of tasks with "
            "classes of their own, but those of config.tasks = 'prime_odd' share their "
            "images: leave these rows out"
        )


def _listed_faults(classes: Collection[Any], tasks: int, count: int) -> Iterator[str]:
    if not all(map(_is_sequence, classes)):
        yield f"config.classes = {classes!r} must be one tuple of classes per task"
        return
    listed = [k for own in classes for k in own]
    if len(classes) != tasks or not all(classes):
        yield (
            f"config.classes lists {[len(own) for own in classes]} classes for "
            f"config.num_tasks = {tasks} tasks: list some for each"
        )
    missing, strange = set(range(count)) - {*listed}, {*listed} - set(range(count))
    if missing or strange or _twice(listed):
        yield (
            f"config.classes lacks {sorted(missing)}, has {_twice(listed)} twice and "
            f"{sorted(strange, key=str)} that do not exist: give each of the {count} "
            "classes to one task, or pass () to draw them"
        )


def _dataset_faults(config: Config) -> Iterator[str]:
    """Yields what is wrong about data sets with heads of their own."""
    entries = config.datasets
    if not all(_is_sequence(x) and len(x) == 3 and _is_sequence(x[2]) for x in entries):
        yield (
            f"config.datasets = {entries!r} must be one tuple (name, data set, "
            "classes) per task, with () for all classes"
        )
        return
    if len(entries) != config.num_tasks:
        yield (
            f"config.datasets lists {len(entries)} data sets for config.num_tasks = "
            f"{config.num_tasks} tasks: list one for each"
        )
    yield from _task_faults(config, [name for name, *_ in entries])
    yield from _network_faults(config, [dataset for _, dataset, _ in entries])
    for name, dataset, classes in entries:
        if dataset not in DATASETS or DATASETS[dataset].target not in (LABEL, "mask"):
            known = [k for k, x in DATASETS.items() if x.target in (LABEL, "mask")]
            yield (
                f"config.datasets names {dataset!r} for {name!r}, which is no data set "
                "of classified images or pixels: choose among "
                f"{sorted(known)}"
            )
            continue
        if DATASETS[dataset].target != LABEL:
            if len(classes):
                yield (
                    f"config.datasets gives {name!r} the classes {list(classes)}, but "
                    f"{dataset!r} has masks, which are not divided: pass ()"
                )
            continue
        count = num_classes(dataset, config.data_dirs.get(dataset) or config.data_dir)
        strange = [k for k in classes if not _is_whole(k, 0) or k >= count]
        if strange or _twice(classes):
            yield (
                f"config.datasets gives {name!r} the classes {strange}, which are none "
                f"of the {count} of {dataset!r}, and {_twice(classes)} twice: list "
                f"different numbers from 0 to {count - 1}"
            )
    yield from _separate_faults(config)


def _scene_faults(config: Config) -> Iterator[str]:
    """Yields what is wrong about tasks with encoders and decoders."""
    names, chosen = config.scenes.tasks, config.scenes
    known = {SCENES: TASKS, TASKONOMY: STORED}.get(chosen.images, IMAGE_ONLY)
    if not _is_sequence(names) or not set(names) <= set(known) or _twice(names):
        yield (
            f"config.scenes.tasks = {names!r} must be different names among "
            f"{sorted(known)}, those of config.scenes.images = {chosen.images!r}"
        )
    elif len(names) != config.num_tasks:
        yield (
            f"config.scenes.tasks lists {len(names)} tasks for config.num_tasks = "
            f"{config.num_tasks}: list so many"
        )
    if chosen.size % SHRINKAGE:
        yield (
            f"config.scenes.size = {chosen.size} must be a multiple of {SHRINKAGE}, "
            "by which encoders shrink images"
        )
    if chosen.images != SCENES and chosen.size != (side := _side(chosen.images)):
        yield (
            f"config.scenes.size = {chosen.size}, but images of config.scenes.images = "
            f"{chosen.images!r} have {side} pixels a side: set it to that"
        )
    if config.model != "taskonomy":
        yield (
            f"config.model = {config.model!r} has no encoder and decoder, which "
            "config.tasks = 'scenes' needs: use 'taskonomy'"
        )
    yield from _separate_faults(config)


def _side(dataset: str) -> int:
    return DATASETS[dataset].shape[0]


def _separate_faults(config: Config) -> Iterator[str]:
    """Yields what tasks with outputs of their own do not allow."""
    if config.init != "scratch":
        yield (
            f"config.init = {config.init!r} needs one task of all classes, which "
            "tasks with outputs of their own do not have: use 'scratch'"
        )
    yield from _refit_faults(config, "tasks with one output")


def _refit_faults(config: Config, tasks: str) -> Iterator[str]:
    """Yields rows that refit to an ensemble, which only some tasks have."""
    guilty = [row for row in config.rows if METHODS[row].refit == "ensemble"]
    if guilty:
        yield (
            f"config.rows has {guilty}, which refit to an ensemble of {tasks}: leave "
            "these rows out"
        )


def _task_faults(config: Config, names: Sequence[str]) -> Iterator[str]:
    """Yields what fields say about tasks that there are not."""
    if strange := [k for k in config.calibration_tasks if k >= len(names)]:
        yield (
            f"config.calibration_tasks has {strange}, but config.datasets lists "
            f"{len(names)} tasks: choose among the numbers from 0 to {len(names) - 1}"
        )
    if strange := sorted(set(config.own_train) - set(names)):
        yield (
            f"config.own_train has trainings of {strange}, but config.datasets names "
            f"{list(names)}: use these names"
        )


def _network_faults(config: Config, datasets: Sequence[str]) -> Iterator[str]:
    """Yields what the network, or merges of several networks, cannot do."""
    targets = {DATASETS[name].target for name in datasets if name in DATASETS}
    if "mask" in targets and config.model not in segmenters():
        yield (
            f"config.model = {config.model!r} does not label the pixels of "
            f"config.datasets = {list(datasets)}: choose among {segmenters()}"
        )
    guilty = [row for row in config.rows if METHODS[row].refit or METHODS[row].allots]
    if guilty and len(targets) > 1:
        yield (
            f"config.rows has {guilty}, which need one network for all tasks, but "
            "those that label pixels and those that classify images differ: leave "
            "these rows out"
        )


def _other_faults(config: Config) -> Iterator[str]:
    fields = set(inspect.signature(ARCHITECTURES[config.model].make).parameters)
    if unknown := sorted(set(config.network) - fields):
        yield (
            f"config.network has {unknown}, which config.model = {config.model!r} does "
            f"not: choose among {sorted(fields - {'parent', 'name', 'outputs'})}"
        )
    sizes = [group_size(name, config.num_tasks) for name in config.groups]
    if max(sizes) > config.num_tasks or _twice(sizes):
        yield (
            f"config.groups = {_shown(config.groups)} are groups of {sizes} among "
            f"config.num_tasks = {config.num_tasks} networks: choose different numbers "
            f"up to {config.num_tasks}"
        )
    if config.checkpoints is not None and not config.smoke:
        yield from _checkpoint_faults(config)
    if config.start is not None and not Path(config.start).is_file():
        yield (
            f"config.start = {config.start!r} does not exist: pass the file that "
            "networks start from, or None"
        )
    if config.tensorboard and importlib.util.find_spec("tensorflow") is None:
        yield (
            "config.tensorboard = True needs TensorFlow, which is not installed: "
            'pip install "zipjax[tensorboard]"'
        )


def _checkpoint_faults(config: Config) -> Iterator[str]:
    classified = config.tasks in ("split", "prime_odd")
    if classified and not config.classes:
        yield (
            "config.classes = () does not say which classes the networks in "
            f"config.checkpoints = {config.checkpoints!r} know: list those of each"
        )
    folder, names = Path(config.checkpoints), checkpoint_files(config)
    if len(names) != config.num_tasks:
        yield (
            f"config.checkpoint_files lists {len(names)} files for config.num_tasks = "
            f"{config.num_tasks} networks: list one for each, or pass ()"
        )
    files = [*names, *(["class_embeddings.npy", "train_ids.json"] * classified)]
    if missing := [name for name in files if not (folder / name).is_file()]:
        yield (
            f"config.checkpoints = {config.checkpoints!r} lacks {missing}: pass the "
            "folder that holds them"
        )
