"""Runs that are killed, or cannot start: nothing is lost, and one line says why."""

import os
import random
import signal
import subprocess
import sys
import time

from experiments.defaults import default
from experiments.workdirs import claimed
from tests.conftest import ROOT

KILLS = 5
# A refit and a search: all that comes between the first network and the table.
FIELDS = (
    "seeds=(0,)",
    "rows=('average','zipit','mudsc_zip','zipit_refit','zipit_refit_ensemble')",
    "partial_rows=('zipit_refit',)",
    "cuts=1",
    "network.hidden=(16,16)",
    "train.epochs=2",
    "grid.balance=(0.0,0.5)",
    "plane.points=2",
)


def started(workdir, *fields):
    run = [sys.executable, "-m", "experiments.run", "--workdir", str(workdir)]
    run += [f"--config.{field}" for field in fields]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(run, cwd=ROOT, text=True, **pipes)


def command(workdir, *fields):
    process = started(workdir, *fields)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


def test_the_command_line_tells_in_one_line(tmp_path):
    """A file in the folder's place, and several faults, without a stack of frames."""
    (tmp_path / "file").write_text("kept")
    code, _, told = command(tmp_path / "file")
    assert (code, told.count("\n")) == (1, 1), told
    assert "file' cannot be used (" in told
    assert (tmp_path / "file").read_text() == "kept"
    code, _, told = command(tmp_path / "run", "init=foo", "seeds=(1,1)")
    assert (code, told.count("\n")) == (1, 1), told
    assert "config.init = 'foo'" in told
    assert "config.seeds = (1, 1)" in told
    assert not (tmp_path / "run").exists()


def test_two_runs_in_one_folder_the_second_says_so(tmp_path):
    config = default("Digits, 5 + 5 classes, MLP", "mlp")
    config.smoke = True
    with claimed(tmp_path, config):
        code, _, told = command(tmp_path, "smoke=True")
    assert (code, told.count("\n")) == (1, 1), told
    assert f"process {os.getpid()} on" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


def names(folder):
    """Returns the names of all that a run leaves: files, networks and moments."""
    kept = [path for path in folder.iterdir() if path.name != "compiled"]
    inside = [own for path in kept if path.is_dir() for own in path.iterdir()]
    return {str(path.relative_to(folder)) for path in [*kept, *inside]}


def kept(workdir):
    """Returns all networks, moments and rows, and when each of them was written."""
    found = [
        path
        for name in ("models", "moments", "rows")
        for path in (workdir / name).glob("[!.]*")
    ]
    return {path: path.stat().st_mtime_ns for path in found}


def kill(workdir, results, seconds):
    """Starts a run, and kills it some time after it has kept so many more results."""
    process = started(workdir, *FIELDS)
    enough = len(kept(workdir)) + results
    while len(kept(workdir)) < enough:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_run_that_is_killed_again_and_again_gives_the_same_table(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, _, told = command(whole, *FIELDS)
    assert code == 0, told
    rng = random.Random(0)
    for _ in range(KILLS):
        kill(killed, rng.randint(1, 2), rng.uniform(0, 0.3))
    before = kept(killed)
    assert any(path.parent.name == "rows" for path in before)
    code, _, told = command(killed, *FIELDS)
    assert code == 0, told
    # What was finished is not made again.
    assert before.items() <= kept(killed).items()
    assert (whole / "results.csv").read_text() == (killed / "results.csv").read_text()
    assert (whole / "report.html").read_text() == (killed / "report.html").read_text()
    # Nor is anything left lying about.
    assert names(whole) == names(killed)
