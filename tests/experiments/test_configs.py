"""Every config runs; smoke mode shrinks it to next to nothing."""

import importlib.util
import io
from pathlib import Path

import pytest
from rich.console import Console

from experiments.defaults import default
from experiments.experiment import Experiment
from experiments.methods.rows import METHODS, one_of_a_kind

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


ALL_ROWS = {"digits", "camvid_cifar10", "mnist_prime_odd"}


def load(path, *init):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*init)


def run(config, workdir):
    config.smoke = True
    return Experiment(config, workdir, Console(file=io.StringIO())).run()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs(path, tmp_path):
    config = load(path)
    if path.stem not in ALL_ROWS:
        # Rows are tried on these; larger networks only compile longer.
        config.rows, config.partial_rows = ("zipit",), ()
        config.pictures, config.plane.points = (), 0
    results = run(config, tmp_path)
    assert {result.seed for result in results} == {config.seeds[0]}
    methods = list(dict.fromkeys(result.method for result in results))
    rows = one_of_a_kind(config.rows, config.partial_rows)
    partial = set(rows) & set(config.partial_rows)
    networks = min(config.num_tasks, 3 if config.datasets else 2)
    assert len(results[0].tasks) == (1 if config.tasks == "same" else networks)
    separate = (networks + 1) * (2 if config.reset_parents else 1)
    assert len(methods) == separate + len(rows) + len(partial)
    assert (tmp_path / "report.html").exists()


def test_every_kind_of_row_runs(tmp_path):
    config = load(Path(CONFIGS[0].parent, "digits.py"))
    config.rows = tuple(METHODS)
    config.partial_rows = ("zipit", "zipit_sequential", "zipit_refit_ensemble")
    methods = {result.method for result in run(config, tmp_path)}
    assert methods >= {
        "ZipIt! (searched)",
        "MuDSC-Zip (searched)",
        "ZipIt!, sequential 3/3",
        "ZipIt!, allotted widths",
        "ZipIt! + refit to the ensemble 2/3",
        "ZipIt!, allotted widths + refit",
    }
    steps = (tmp_path / "seconds.csv").read_text()
    assert "matching,ZipIt!," in steps
    assert "moments,," in steps


@pytest.mark.parametrize("name", ["digits", "digits_prime_odd"])
def test_fine_tuned_networks_start_from_one(name, tmp_path):
    config = load(Path(CONFIGS[0].parent, f"{name}.py"), "finetuned")
    run(config, tmp_path)
    trained = sorted(path.name.rsplit("_", 1)[0] for path in tmp_path.glob("models/*"))
    assert trained == ["seed0_A", "seed0_B", "seed0_start"]


def test_configs_differ_where_they_say_and_nowhere_else():
    for path in CONFIGS:
        config = load(path)
        assert set(config) == set(default("", config.model))
        assert f"--config configs/{path.name}" in path.read_text()


def test_an_unknown_network_names_the_known():
    with pytest.raises(ValueError, match=r"'resnet18' is unknown.*'resnet20'"):
        run(default("", "resnet18"), Path())


def test_an_unknown_row_names_the_known(tmp_path):
    config = default("", "mlp", hidden=(8,))
    config.rows = ("average", "magic")
    with pytest.raises(ValueError, match=r"config.rows = .*'magic'.*'zipit'"):
        run(config, tmp_path)
