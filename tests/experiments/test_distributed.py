"""An experiment on several processes has the table of one."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import ROOT

# Twenty images make three batches.
FIELDS = ("seeds=(0,)", "rows=('zipit', 'mudsc_zip')", "batch_size=8", "smoke=True")


def run(workdir, *fields):
    command = [sys.executable, "-m", "experiments.run", "--workdir", str(workdir)]
    command += [f"--config.{field}" for field in (*FIELDS, *fields)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("place", ["somewhere", "localhost:1,2", "localhost:1,2,x"])
def test_a_place_that_is_none_is_refused(tmp_path, place):
    done = run(tmp_path / "run", f"distributed={place}")
    assert done.returncode == 1
    assert "host:port,count,number" in done.stderr
    assert not (tmp_path / "run").exists()


def test_two_processes_make_the_table_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    one = run(tmp_path / "one")
    assert one.returncode == 0, one.stderr[-2000:]
    with ThreadPoolExecutor() as pool:
        two = list(
            pool.map(
                lambda k: run(tmp_path / "two", f"distributed={place},2,{k}"), range(2)
            )
        )
    for done in two:
        assert done.returncode == 0, done.stderr[-2000:]
    tables = [tmp_path / name / "results.csv" for name in ("one", "two")]
    assert tables[0].read_text() == tables[1].read_text()
    assert "Report" in two[0].stdout
    assert "Report" not in two[1].stdout
