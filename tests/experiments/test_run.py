import subprocess
import sys

FAST = [
    "--config.seeds=(0,)",
    "--config.train.epochs=1",
    "--config.plane.points=0",
    "--config.network.hidden=(8,)",
]


def run(workdir, *flags):
    command = [sys.executable, "-m", "experiments.run", "--workdir", str(workdir)]
    return subprocess.run([*command, *flags], capture_output=True, text=True)


def test_the_command_line_runs_an_overridden_config(tmp_path):
    done = run(tmp_path, *FAST, "--config.zipit.beta=0.0")
    assert done.returncode == 0, done.stderr
    assert "ZipIt! 1/2" in done.stdout
    assert "beta: 0.0" in (tmp_path / "report.html").read_text()
    # No log of libraries between the progress and the table.
    assert "orbax" not in done.stderr


def test_a_field_that_the_config_lacks_is_refused(tmp_path):
    done = run(tmp_path, "--config.zipit.gamma=0.5")
    assert done.returncode != 0
    assert "gamma" in done.stderr
    assert not any(tmp_path.iterdir())
