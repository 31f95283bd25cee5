import csv
import importlib.util
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import zipjax
from experiments.data.datasets import load_dataset
from experiments.experiment import Experiment, groups
from experiments.methods.rows import chosen_cuts
from experiments.parents import cache
from experiments.parents.tasks import classes
from zipjax.models import mlp

CONFIG = Path(__file__).parents[2] / "configs" / "digits.py"


def small_config():
    spec = importlib.util.spec_from_file_location("digits", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.seeds = (0, 1)
    config.rows = ("average", "permute", "zipit", "mudsc_zip")
    config.grid.balance = (0.0, 0.5)
    config.network.hidden = (32, 32)
    config.train.epochs = 8
    config.plane.points = 2
    return config


def run(workdir, config=None):
    console = Console(record=True, width=120, file=io.StringIO())
    results = Experiment(config or small_config(), workdir, console).run()
    return results, console.export_text()


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    results, text = run(workdir)
    return workdir, results, text


def test_every_method_has_a_row_for_every_seed(first_run):
    workdir, results, text = first_run
    methods = [
        "Model A",
        "Model B",
        "Ensemble",
        "Average",
        "Permute",
        "ZipIt! 3/3",
        "ZipIt! 2/3",
        "ZipIt! 1/3",
        "MuDSC-Zip",
    ]
    assert [r.method for r in results if r.seed == 0] == methods
    assert [r.method for r in results if r.seed == 1] == methods
    with (workdir / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(results)
    assert all(method in text for method in methods)
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == page.count('<p class="reading">') == 7
    assert "image/png" not in page


def test_merging_beats_averaging_and_flops_grow_with_the_heads(first_run):
    _, results, _ = first_run
    by_method = {r.method: r for r in results if r.seed == 0}
    assert by_method["ZipIt! 3/3"].average > by_method["Average"].average + 0.1
    flops = [by_method[f"ZipIt! {k}/3"].flops for k in (3, 2, 1)]
    assert flops == sorted(flops)
    assert by_method["Model A"].flops == flops[0]
    assert by_method["Ensemble"].flops == pytest.approx(2 * flops[0], rel=0.01)


def written(workdir):
    return [(workdir / name).read_bytes() for name in ("report.html", "seconds.csv")]


def steps(seconds):
    return [line.split(",")[:2] for line in seconds.decode().splitlines()]


def counting(monkeypatch, most):
    """Lets an experiment make so many rows before it dies; returns their names."""
    made = []

    def figures(self, setting, candidate, key):
        if len(made) == most:
            raise KeyboardInterrupt
        made.append(f"{setting.parents.name}: {candidate.name}")
        return original(self, setting, candidate, key)

    original = Experiment.figures
    monkeypatch.setattr(Experiment, "figures", figures)
    return made


def test_a_second_run_reuses_everything_and_says_so(first_run, monkeypatch):
    workdir, results, _ = first_run
    report, made = written(workdir), counting(monkeypatch, 0)
    before = {p: p.stat().st_mtime_ns for p in (workdir / "models").iterdir()}
    again, text = run(workdir)
    assert again == results
    assert made == []
    assert text.count("reused") == 8
    assert text.count("9 of 9 rows reused") == 2
    assert written(workdir) == report
    assert {p: p.stat().st_mtime_ns for p in (workdir / "models").iterdir()} == before


def test_a_run_that_was_killed_twice_finishes_with_the_same_table(
    first_run, tmp_path, monkeypatch
):
    """Once between two networks, and once between two rows."""
    workdir, results, _ = first_run
    saved = []

    def die_on_the_third(path, tree, metadata):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        return original(path, tree, metadata)

    original = cache.checkpoints.save_tree
    with monkeypatch.context() as patch:
        patch.setattr(cache.checkpoints, "save_tree", die_on_the_third)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    with monkeypatch.context() as patch:
        made = counting(patch, 11)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert (len(made), made[-1]) == (11, "seed1: Model B")
    rest = counting(monkeypatch, 99)
    again, text = run(tmp_path)
    assert again == results
    assert (len(rest), rest[0]) == (7, "seed1: Ensemble")
    assert text.count("train seed") == 4
    assert "seed0: merge and evaluate: 9 of 9 rows reused" in text
    assert "seed1: merge and evaluate: 2 of 9 rows reused" in text
    # Sweeps and searches of both runs are in the pictures, their steps in the times.
    (report, seconds), (own_report, own_seconds) = map(written, (workdir, tmp_path))
    assert own_report == report
    assert steps(own_seconds) == steps(seconds)
    assert ["moments", ""] in steps(seconds)


@pytest.mark.parametrize(
    "change", [{"train.epochs": 1}, {"class_names": "cifar10"}, {"examples": 60}]
)
def test_other_settings_do_not_reuse_networks(first_run, change):
    workdir, _, _ = first_run
    config = small_config()
    config.update_from_flattened_dict(change)
    console = Console(record=True, width=120, file=io.StringIO())
    experiment = Experiment(config, workdir, console)
    experiment.prepare(next(experiment.parents()))
    assert "reused" not in console.export_text()


def content(target):
    """The files of a checkpoint that are not empty."""
    files = sorted(path for path in target.rglob("*") if path.is_file())
    return [path for path in files if path.stat().st_size]


def empty(target, number):
    for path in content(target):
        path.write_bytes(b"")


def flip(target, number):
    """Flips a bit of one file."""
    files = content(target)
    path = files[number % len(files)]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [empty, flip])
def test_a_damaged_checkpoint_is_told_and_made_again(tmp_path, caplog, damage):
    folder, values = tmp_path / "seed0", {"x": np.arange(99.0)}
    cache.remember(folder, [1], lambda: values)
    (target,) = tmp_path.iterdir()
    made = 0
    for number in range(1 if damage is empty else len(content(target))):
        damage(target, number)
        caplog.clear()
        found, reused = cache.remember(folder, [1], lambda: values)
        np.testing.assert_array_equal(found["x"], values["x"])
        # What changes no array, such as the time that orbax notes, is no damage.
        assert reused == (
            f"made again: the checkpoint at {str(target)!r}" not in caplog.text
        )
        made += not reused
        assert list(tmp_path.iterdir()) == [target]
        assert cache.remember(folder, [1], lambda: values)[1]
    assert made >= (1 if damage is empty else 3)


def test_damaged_figures_are_told_and_made_again(tmp_path, caplog):
    figures = {"joint": 0.1 + 0.2, "tasks": [None, 1e-300]}

    def found():
        caplog.clear()
        return cache.remember_figures(tmp_path / "seed0", [1], lambda: figures)

    assert found() == (figures, False)
    (target,) = tmp_path.iterdir()
    whole = target.read_bytes()
    flips = [
        whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :]
        for k in range(len(whole))
    ]
    made = 0
    for damaged in [b"", b"[" * 9999, b"[]", whole[: len(whole) // 2], *flips]:
        target.write_bytes(damaged)
        again, reused = found()
        assert again == figures
        assert reused == ("made again: the file" not in caplog.text)
        assert list(tmp_path.iterdir()) == [target]
        made += not reused
    # A space between two fields may become another one.
    assert made > 0.8 * len(whole)
    target.unlink()
    assert found() == (figures, False)
    assert caplog.text == ""


def test_a_disk_that_is_full_is_told_before_anything_is_written(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match=r"No space left .*seed0"):
        cache.remember(tmp_path / "seed0", [1], lambda: {"x": np.ones(3)})
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_that_is_replaced_is_whole_at_any_time(tmp_path, monkeypatch):
    """A run that dies after the new one was saved finds no damaged one again."""
    folder = tmp_path / "seed0"
    cache.remember(folder, [1], lambda: {"x": np.ones(3)})
    (target,) = tmp_path.iterdir()
    for file in list(target.rglob("*")):
        if file.is_file():
            file.write_bytes(b"")

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        cache.remember(folder, [1], lambda: {"x": np.ones(3)})
    monkeypatch.undo()
    assert not target.exists()
    found, reused = cache.remember(folder, [1], lambda: {"x": np.full(3, 2.0)})
    assert not reused
    np.testing.assert_array_equal(found["x"], np.full(3, 2.0))
    assert list(tmp_path.iterdir()) == [target]


def test_digits_are_real_and_disjoint():
    digits = load_dataset("digits")
    assert len(digits.train) + len(digits.test) == 1797
    splits = digits.train, digits.test
    train, test = (split.read(np.arange(len(split)))[0] for split in splits)
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)
    some = digits.test.take(np.isin(digits.test.labels, (3, 5)))
    assert set(some.labels) == {3, 5}
    assert sum(len(labels) for _, labels in some.batches(7)) == len(some.labels)


def test_unknown_dataset_names_the_known_ones():
    with pytest.raises(ValueError, match="digits"):
        load_dataset("minst")


def test_classes_split_at_random_into_equal_tasks(key):
    split = classes.split_classes(10, 2, key)
    assert sorted(split[0] + split[1]) == list(range(10))
    assert len(split[0]) == 5
    with pytest.raises(ValueError, match="10 classes"):
        classes.split_classes(10, 3, key)


def test_the_experiment_uses_the_public_package_only():
    source = Path(zipjax.__file__).parent
    imports = [
        line
        for file in source.rglob("*.py")
        for line in file.read_text().splitlines()
        if line.startswith(("import experiments", "from experiments"))
    ]
    assert imports == []


@pytest.mark.parametrize(
    ("most", "layers"), [(9, [4, 3, 2, 1]), (2, [4, 1]), (1, [4]), (0, [])]
)
def test_partial_zips_are_spread_over_the_depth(most, layers):
    spec = mlp.spec(mlp.MLP((8, 8, 8, 8), 3))
    assert [cut.layers for cut in chosen_cuts(spec.cuts, most, ())] == layers


def test_partial_zips_stop_where_they_are_told():
    spec = mlp.spec(mlp.MLP((8, 8, 8, 8), 3))
    assert [cut.layers for cut in chosen_cuts(spec.cuts, 1, (2, 4))] == [4, 2]
    with pytest.raises(ValueError, match=r"cut_layers \[7\].*\[1, 2, 3, 4\]"):
        chosen_cuts(spec.cuts, 1, (7, 2))


def test_groups_are_all_of_their_size():
    assert list(groups(("all",), 3)) == [("", (0, 1, 2))]
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert list(groups(("pairs",), 3)) == [("Pairs", pair) for pair in pairs]
    found = list(groups((3, 4), 4))
    assert [numbers for _, numbers in found[:2]] == [(0, 1, 2), (0, 1, 3)]
    assert [title for title, _ in found] == ["Groups of 3"] * 4 + [""]
    # A smoke run has two networks.
    assert list(groups((3,), 2)) == list(groups(("pairs",), 2)) == [("", (0, 1))]
