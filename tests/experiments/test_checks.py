"""A config's faults are told at once, before anything is trained or written."""

import dataclasses
import io
import os

import jax
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from experiments import experiment as experiment_module
from experiments.checks import RULES, check_config
from experiments.data.datasets import load_dataset, num_classes
from experiments.defaults import default, training
from experiments.experiment import Experiment
from experiments.methods.journal import Journal
from experiments.parents import cache
from experiments.parents.trained import Trainer
from experiments.results import Result
from experiments.workdirs import claimed
from tests.networks import randomise


def config_of(**changes):
    config = default("Digits", "mlp", hidden=(8,))
    config.seeds = (0,)
    if changes.get("model") == "vit":
        config.network = ConfigDict({"width": 8, "depth": 1, "heads": 2})
    with config.ignore_type():
        config.update_from_flattened_dict(
            {name.replace("__", "."): value for name, value in changes.items()}
        )
    return config


def experiment(workdir, **changes):
    console = Console(file=io.StringIO(), record=True, width=120)
    return Experiment(config_of(**changes), workdir, console)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "foo"}, r"config.init = 'foo' .*'finetuned', 'scratch'"),
        ({"dataset": "mnist"}, "config.dataset = 'mnist' .*'digits'"),
        ({"model": "resnet18"}, "config.model = 'resnet18' .*'resnet20'"),
        ({"text_encoder": "bert"}, "config.text_encoder = 'bert' .*'minilm'"),
        ({"tasks": "odd"}, "config.tasks = 'odd' .*'prime_odd'"),
        ({"seeds": ()}, r"config.seeds = \(\) .*at least one"),
        ({"seeds": (1, 1)}, r"config.seeds = \(1, 1\) .*different"),
        ({"rows": ("average", "average")}, "config.rows = .*different names"),
        ({"rows": ("magic",)}, "config.rows = .*'magic'.*'zipit'"),
        ({"partial_rows": ("magic",)}, "config.partial_rows = .*'magic'"),
        ({"zipit__alpha": 2.0}, r"config.zipit.alpha = 2.0 must lie in \[0, 1\]"),
        ({"partial_zipit__beta": -0.5}, "config.partial_zipit.beta = -0.5"),
        ({"grid__balance": ()}, r"config.grid.balance = \(\) .*at least one"),
        ({"grid__alpha": (0.5, 2)}, r"config.grid.alpha = \(0.5, 2\)"),
        ({"num_tasks": 1}, "config.num_tasks = 1 must be .* 2 on"),
        ({"num_tasks": 3}, "config.num_tasks = 3 does not divide the 10 classes"),
        ({"classes": ((0, 1), (2, 3))}, r"config.classes lacks \[4, 5, 6, 7, 8, 9\]"),
        ({"classes": 3}, "config.classes = 3 must be one tuple of classes per task"),
        ({"own_train": 3}, "config.own_train = 3 must be trainings by task"),
        ({"classes": (range(5), range(5, 10))}, "must be one tuple of classes per"),
        ({"classes": (tuple(range(10)),)}, r"lists \[10\] classes .*num_tasks = 2"),
        (
            {"classes": (tuple(range(6)), tuple(range(5, 10)))},
            r"config.classes lacks \[\], has \[5\] twice",
        ),
        (
            {"class_names": "cifar100"},
            "'cifar100' are 100 classes, but .*'digits' .*10",
        ),
        ({"dataset": "noise10"}, "config.class_names = None, .*'noise10'.*'cifar10'"),
        ({"tasks": "prime_odd", "num_tasks": 4}, "'prime_odd' is 2 tasks .* not 4"),
        (
            {"tasks": "prime_odd", "rows": ("zipit_refit_ensemble",)},
            r"config.rows has \['zipit_refit_ensemble'\].*leave",
        ),
        ({"train__epochs": 0}, "config.train.epochs = 0 .*from 1 on"),
        (
            {"finetune__learning_rate": float("nan")},
            "config.finetune.learning_rate = n",
        ),
        ({"batch_size": 0}, "config.batch_size = 0"),
        ({"test_images": 0}, "config.test_images = 0 .*or None"),
        ({"ddof": 2}, "config.ddof = 2 must be 0 or 1"),
        ({"positions": "some"}, "config.positions = 'some' must be 'all', 'few'"),
        ({"cost": 0.0}, "config.cost = 0.0 must be a positive"),
        ({"cut_layers": (0,)}, r"config.cut_layers = \(0,\)"),
        ({"network__width": 3}, r"config.network has \['width'\].*'hidden'"),
        ({"checkpoints": "nowhere"}, "'nowhere' lacks .*'model_a.safetensors'"),
        ({"plane__points": -1}, "config.plane.points = -1"),
        ({"line__points": 1}, "config.line.points = 1 must be .* 2 on"),
        ({"pictures": ("barriers",)}, r"pictures = .*\['barrier', 'basins', 'pairs'\]"),
        (
            {"pixels__mean": (1.0, 2.0)},
            r"pixels.mean = \(1.0, 2.0\) are 2 .* 1 channels",
        ),
        ({"pixels__std": (0.0,)}, "config.pixels.std = .* positive"),
        ({"groups": (3,)}, r"config.groups = \(3,\) .* \[3\] among .*num_tasks = 2"),
        ({"groups": ("all", 2)}, r"groups of \[2, 2\].*different"),
        ({"groups": (1,)}, r"config.groups = \(1,\) must be"),
        (
            {"tasks": "same", "classes": (tuple(range(10)),)},
            r"config.classes = .*'same' have in common: pass \(\)",
        ),
        ({"tasks": "same", "rows": ("zipit_refit_ensemble",)}, "text embeddings"),
        (
            {"tasks": "same", "checkpoints": ".", "checkpoint_files": ("x.npz",)},
            r"lists 1 files .* = 2 networks.* lacks \['x.npz'\]",
        ),
    ],
)
def test_a_fault_names_the_field_and_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(config_of(**changes))


SETS = (("Streets", "noise_camvid", ()), ("Things", "noise10", ()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "mlp"}, r"config.model = 'mlp' does not label .*\['deeplab'\]"),
        ({"rows": ("average", "zipit_refit")}, r"\['zipit_refit'\], which need one"),
        ({"rows": ("zipit_allotted",)}, r"config.rows has \['zipit_allotted'\]"),
        ({"calibration_tasks": (0, 2)}, r"calibration_tasks has \[2\].*from 0 to 1"),
        ({"calibration_tasks": (1, 1)}, r"calibration_tasks = \(1, 1\) .*different"),
        (
            {"datasets": (("Streets", "noise_camvid", (1,)), SETS[1])},
            r"gives 'Streets' the classes \[1\].* pass \(\)",
        ),
        (
            {"datasets": (("Depth", "noise_taskonomy", ()), SETS[1])},
            "'noise_taskonomy' for 'Depth'.*'camvid'",
        ),
        ({"own_train": {"Things": {"epochs": 1}}}, "config.own_train = .*'crop'"),
        (
            {"own_train": {"Cats": training(epochs=1)}},
            r"trainings of \['Cats'\].*'Streets', 'Things'",
        ),
    ],
)
def test_a_fault_of_several_data_sets_names_the_remedy(changes, message):
    config = default("Several", "deeplab", depths=(1, 1))
    config.tasks, config.datasets, config.rows = "datasets", SETS, ("average",)
    check_config(config)
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        check_config(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("calibration_tasks", (0,)), ("own_train", {"Task A": training(epochs=1)})],
)
def test_what_tells_data_sets_apart_is_refused_for_classes(field, value):
    config = config_of()
    config.update({field: value})
    with pytest.raises(ValueError, match=f"config.{field} = .*leave it empty"):
        check_config(config)


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError, match=r"init.*zipit.alpha") as error:
        check_config(config_of(init="foo", seeds=(1, 1), zipit__alpha=2.0))
    assert "config.seeds" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_field_with_a_rule_exists_and_its_default_fits():
    config = config_of()
    check_config(config)
    fields = {name.split(".")[0] for name in RULES}
    # Text for people, a folder, sizes and data sets that are checked together.
    free = {"title", "data_dir", "checkpoints", "network", "distributed"}
    free |= {"datasets", "data_dirs", "start"}
    assert set(config) == fields | free


def test_the_number_of_classes_is_that_of_the_data():
    for name in ("digits", "noise10", "noise100"):
        assert load_dataset(name).num_classes == num_classes(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cut_layers": (99,)}, r"cut_layers \[99\].*\[1\]"),
        ({"network__hidden": ()}, "the spec has no perms"),
        ({"test_images": 2}, r"config.test_images leaves 'Task \w' without any"),
        ({"plane__images": 2}, r"config.plane.images leaves 'Task \w' without"),
        (
            {"rows": ("mudsc_zip",), "search_images": 2},
            r"config.search_images leaves 'Task \w' without",
        ),
    ],
)
def test_what_the_data_and_the_spec_tell_is_told_before_training(
    tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(Trainer, "trained", None)
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path, **changes)
    # Nothing is drawn, nothing is searched: neither number matters.
    experiment(tmp_path, plane__points=0, plane__images=2, search_images=2, rows=())
    assert not any(tmp_path.iterdir())


def test_a_table_is_printed_though_it_cannot_be_saved(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device", "results.csv")

    monkeypatch.setattr(experiment_module.report, "write_report", full)
    found = experiment(tmp_path)
    results = [
        Result(f"Model {name}", 0, 1.0, 0.5, (0.25, 0.75)) for name in ("A", "B")
    ]
    with pytest.raises(OSError, match="table above cannot be saved: No space left"):
        found.write(results, [])
    assert "Model B" in found.console.export_text()


def test_a_training_that_diverges_names_the_network_and_the_epoch(tmp_path):
    found = experiment(tmp_path, train__learning_rate=1e30, train__epochs=3)
    with pytest.raises(
        ValueError, match=r"train seed0_A: the loss of epoch \d is nan, from step \d"
    ):
        next(found.parents())


@pytest.mark.parametrize("name", ["title", "model", "tasks", "init", "smoke"])
def test_a_folder_belongs_to_one_config(tmp_path, name):
    with claimed(tmp_path, config_of(rows=("average",))):
        pass
    with claimed(tmp_path, config_of(rows=("permute",), seeds=(1,))):
        pass
    before = (tmp_path / "config.json").read_bytes()
    value = {"smoke": True}.get(name, "other")
    message = f"another config .*{name} = .*, not {value!r}.*--workdir"
    with (
        pytest.raises(ValueError, match=message),
        claimed(tmp_path, config_of(**{name: value})),
    ):
        pass
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_folder_is_one_runs_until_it_ends(tmp_path):
    message = rf"another run .*process {os.getpid()} on .*--workdir"
    with (
        claimed(tmp_path, config_of()),
        pytest.raises(ValueError, match=message),
        claimed(tmp_path, config_of()),
    ):
        pass
    with claimed(tmp_path, config_of()):
        assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"title": "Digits"}', "[" * 9999])
def test_a_damaged_note_of_the_config_is_told(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with (
        pytest.raises(ValueError, match=r"config.json' does not say whose"),
        claimed(tmp_path, config_of()),
    ):
        pass


# What every field of a config changes: networks, their moments, or at most rows, see
# ROWS. Values differ from the defaults.
CHANGES = {
    "networks": {
        "dataset": "noise10",
        "examples": 20,
        "pixels.mean": (3.0,),
        "pixels.std": (3.0,),
        "class_names": "cifar10",
        "tasks": "prime_odd",
        "num_tasks": 5,
        "classes": (tuple(range(0, 10, 2)), tuple(range(1, 10, 2))),
        "seeds": (7,),
        "model": "vit",
        "network.hidden": (9,),
        "init": "finetuned",
        "train.epochs": 7,
        "train.batch_size": 7,
        "train.learning_rate": 0.7,
        "train.weight_decay": 0.7,
        "train.flip": True,
        "train.crop": 1,
        "train.precision": "bfloat16",
    },
    "moments": {
        "batch_size": 7,
        "calibration_images": 70,
        "positions": "few",
        "inferred": True,
    },
    "neither": {
        "title": "Other",
        "data_dir": "elsewhere",
        "workers": 1,
        # Of two networks there is one pair; the others are of several data sets.
        "groups": ("pairs",),
        "datasets": (("Digits", "digits", ()),),
        "image_size": 7,
        "scenes.tasks": ("normal", "reshading"),
        "scenes.images": "noise10",
        "scenes.train": 7,
        "scenes.test": 7,
        "scenes.size": 32,
        "finetune.epochs": 7,
        "finetune.batch_size": 7,
        "finetune.learning_rate": 0.7,
        "finetune.weight_decay": 0.7,
        "finetune.flip": True,
        "finetune.crop": 1,
        "finetune.precision": "bfloat16",
        "search_images": 70,
        "refit_images": 70,
        "test_images": 70,
        # There is no BatchNorm; moments depend on the networks as they are then.
        "reset_parents": True,
        "ddof": 1,
        "rows": ("average",),
        "partial_rows": (),
        "cuts": 1,
        "cut_layers": (1,),
        "zipit.alpha": 0.7,
        "zipit.beta": 0.7,
        "partial_zipit.alpha": 0.7,
        "partial_zipit.beta": 0.7,
        "cost": 0.7,
        "partial_cost": 0.7,
        "grid.alpha": (0.7,),
        "grid.beta": (0.7,),
        "grid.balance": (0.7,),
        "plane.points": 3,
        "pictures": ("pairs",),
        "plane.images": 70,
        "line.points": 3,
        "line.images": 70,
    },
}
# These need packages, files, other processes or tasks with images of their own, or
# replace all of the config.
UNTRIED = {
    *("text_encoder", "checkpoints", "start", "distributed", "tensorboard", "smoke"),
    *("calibration_tasks", "checkpoint_files"),
}
FINE = [f"finetune.{name}" for name in config_of().finetune]


DATASETS = (("Few", "digits", (0, 1)), ("Noise", "noise10", ()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": ("digits",)}, r"must be one tuple \(name, data set, classes\)"),
        ({"datasets": DATASETS[:1]}, "lists 1 data sets for config.num_tasks = 2"),
        ({"datasets": (*DATASETS[:1], ("B", "voc", (1,)))}, r"'B' the classes \[1\]"),
        ({"datasets": (*DATASETS[:1], ("B", "digits", (1, 1, 10)))}, r"\[10\].*\[1\]"),
        ({"init": "finetuned"}, "needs one task of all classes"),
        ({"rows": ("zipit_refit_ensemble",)}, "leave these rows out"),
        ({"image_size": 0}, "config.image_size = 0"),
        ({"groups": ()}, "config.groups"),
        ({"groups": ("triples",)}, "config.groups"),
    ],
)
def test_data_sets_are_checked_one_by_one(changes, message):
    usual = {"tasks": "datasets", "datasets": DATASETS}
    check_config(config_of(**usual))
    with pytest.raises(ValueError, match=message):
        check_config(config_of(**{**usual, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenes__tasks": ("normal", "horizon")}, "'horizon'.*'reshading'"),
        ({"scenes__tasks": ("normal", "normal")}, "must be different names"),
        ({"scenes__tasks": ("normal",)}, "lists 1 tasks for config.num_tasks = 2"),
        ({"scenes__images": "digits"}, "config.scenes.images = 'digits'"),
        ({"scenes__images": "noise10"}, "those of config.scenes.images = 'noise10'"),
        ({"scenes__size": 40}, "config.scenes.size = 40 must be a multiple of 16"),
        ({"model": "mlp"}, "config.model = 'mlp' has no encoder"),
        ({"init": "finetuned"}, "needs one task of all classes"),
    ],
)
def test_tasks_on_scenes_fit_their_images(changes, message):
    usual = {"tasks": "scenes", "scenes__tasks": ("normal", "denoising")}
    usual |= {"model": "taskonomy", "network": ConfigDict()}
    check_config(config_of(**usual))
    with pytest.raises(ValueError, match=message):
        check_config(config_of(**{**usual, **changes}))


def test_images_of_a_data_set_keep_their_size():
    tasks = {"tasks": "scenes", "scenes__tasks": ("keypoints2d", "denoising")}
    network = {"model": "taskonomy", "network": ConfigDict()}
    noise = {**tasks, **network, "scenes__images": "noise10"}
    check_config(config_of(**noise, scenes__size=32))
    with pytest.raises(ValueError, match=r"size = 48.* have 32 pixels a side"):
        check_config(config_of(**noise))


# Rows that are made again though networks and moments are not.
ZIPS = {
    *("ZipIt! 2/2", "ZipIt! 1/2", "ZipIt! (searched)", "MuDSC-Zip", "ZipIt! + refit"),
    *("ZipIt!, allotted widths 2/2", "ZipIt!, allotted widths 1/2"),
}
EVERY = {"Model A", "Model B", "Ensemble", "Average", *ZIPS}
ROWS = {
    "search_images": {"ZipIt! (searched)", "MuDSC-Zip"},
    "refit_images": {"ZipIt! + refit"},
    "test_images": EVERY,
    "ddof": EVERY,
    # Partial zips follow the whole ones until they are set.
    "zipit.alpha": ZIPS,
    "zipit.beta": ZIPS,
    "partial_zipit.alpha": {"ZipIt! 1/2"},
    "partial_zipit.beta": {"ZipIt! 1/2"},
    "cost": {"ZipIt!, allotted widths 2/2"},
    "partial_cost": {"ZipIt!, allotted widths 1/2"},
    "grid.alpha": {"ZipIt! (searched)"},
    "grid.beta": {"ZipIt! (searched)"},
    "grid.balance": {"MuDSC-Zip"},
}


def names_of(workdir, monkeypatch, changes, **others):
    """Returns the names of networks, moments and, by row, files that a config needs.

    A digest of all that they depend on is part of their names. Networks are not
    trained, but drawn by that digest; nothing is merged. Of the networks to merge,
    ``others`` may replace some attributes.
    """
    rows = "average", "zipit", "zipit_searched", "mudsc_zip", "zipit_refit"
    usual = {"rows": (*rows, "zipit_allotted")}
    usual |= {"partial_rows": ("zipit", "zipit_allotted")}
    fields = {**usual, **changes}
    found = experiment(workdir, **{k.replace(".", "__"): x for k, x in fields.items()})
    images, _ = next(found.kind.data.test.batches(1))
    shapes = jax.eval_shape(found.kind.network.init, jax.random.key(0), images)
    names, files = [], []

    def drawn(path, inputs, make):
        names.append(cache.target_of(path, inputs).name)
        known = path.parent.name == "moments"
        digest = int(names[-1].rpartition("_")[2], 16)
        return {} if known else randomise(shapes, digest), False

    def figures(path, inputs, make):
        files.append(cache.target_of(path, inputs).name)
        none = Journal().data()
        if path.parent.name == "moments":
            return none, False
        return {"flops": 1, "joint": 1, "tasks": [1], "journal": none}, False

    monkeypatch.setattr(cache, "remember", drawn)
    monkeypatch.setattr(cache, "remember_figures", figures)
    parents = dataclasses.replace(next(found.parents()), **others)
    setting = found.prepare(parents)
    made = [result.method for result in found.results(setting)]
    return names[:-1], names[-1:], dict(zip(made, files[1:], strict=True))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("usual")
        start = {"init": "finetuned"}
        return [names_of(folder, patch, own) for own in ({}, start)]


CASES = [(kind, *item) for kind, own in CHANGES.items() for item in own.items()]


@pytest.mark.parametrize(
    ("kind", "field", "value"), CASES, ids=[field for _, field, _ in CASES]
)
def test_what_depends_on_a_field_is_made_again(
    usual, tmp_path, monkeypatch, kind, field, value
):
    along = {"class_names": "digits"} if field == "dataset" else {}
    networks, moments, rows = names_of(tmp_path, monkeypatch, {field: value, **along})
    assert (set(networks) != set(usual[0][0])) == (kind == "networks")
    assert (moments != usual[0][1]) == (kind != "neither")
    before = set(usual[0][2].values())
    other = {name for name, file in rows.items() if file not in before}
    assert other == (ROWS.get(field, set()) if kind == "neither" else set(rows))


def test_rows_that_iterate_or_search_depend_on_the_key(usual, tmp_path, monkeypatch):
    keys = {0: jax.random.key(7)}
    *same, rows = names_of(tmp_path, monkeypatch, {}, keys=keys)
    assert same == list(usual[0][:2])
    other = {name for name, file in rows.items() if file != usual[0][2][name]}
    assert other == {"MuDSC-Zip", "ZipIt! (searched)"}


@pytest.mark.parametrize("field", FINE)
def test_fine_tuned_networks_depend_on_their_training(
    usual, tmp_path, monkeypatch, field
):
    change = {"init": "finetuned", field: CHANGES["neither"][field]}
    networks, moments, rows = names_of(tmp_path, monkeypatch, change)
    # The network that they start from does not.
    kept = set(networks) & set(usual[1][0])
    assert [name.rpartition("_")[0] for name in kept] == ["seed0_start"]
    assert moments != usual[1][1]
    assert set(rows.values()).isdisjoint(usual[1][2].values())


def test_every_field_was_tried():
    config = config_of()
    tried = {field for _, field, _ in CASES} | UNTRIED
    nested = {name for name, x in config.items() if isinstance(x, ConfigDict)}
    fields = {f"{name}.{own}" for name in nested for own in config[name]}
    assert fields | (set(config) - nested) == tried
