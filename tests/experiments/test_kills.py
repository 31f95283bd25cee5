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


def times(folder):
    """Returns when every file of a folder was written; none are hidden."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*")}


def until_a_row(workdir):
    """Kills a run that has made a row, unless another has; returns when they were."""
    process = started(workdir, *FIELDS)
    while not times(workdir / "rows"):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return times(workdir / "rows")


def test_a_run_that_is_killed_again_and_again_gives_the_same_table(tmp_path):
    begun = time.monotonic()
    code, _, told = command(tmp_path / "whole", *FIELDS)
    assert code == 0, told
    whole = time.monotonic() - begun
    rng, killed = random.Random(0), 0
    for _ in range(KILLS):
        process = started(tmp_path / "killed", *FIELDS)
        time.sleep(rng.uniform(0.2, 0.7) * whole)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    # Not too late, most of them.
    assert killed >= KILLS - 2
    rows = until_a_row(tmp_path / "killed")
    code, _, told = command(tmp_path / "killed", *FIELDS)
    assert code == 0, told
    assert rows.items() <= times(tmp_path / "killed" / "rows").items()
    tables = [tmp_path / name / "results.csv" for name in ("whole", "killed")]
    assert tables[0].read_text() == tables[1].read_text()
    # Nor is anything left lying about.
    assert names(tmp_path / "whole") == names(tmp_path / "killed")
