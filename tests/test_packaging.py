"""What a user installs: a wheel that holds the package alone, and loads in no time."""

import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

import zipjax
from zipjax.version import __version__

ROOT = Path(__file__).parent.parent
HEAVY = {"flax", "orbax", "optax", "tensorflow", "matplotlib", "torch", "sklearn"}


def _python(code: str, *path: str, cwd: Path = ROOT) -> str:
    """Returns what the code prints in an interpreter that sees only this path."""
    code = f"import sys; sys.path[:0] = {list(map(str, path))}\n{code}"
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Returns a folder that holds what the wheel installs, and nothing else."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # All packages of the checkout: the wheel has to leave some out.
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("zipjax", "experiments", "configs", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    wheels = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    options = ["--no-index", "--quiet", "--wheel-dir", str(wheels), str(source)]
    done = subprocess.run([*pip, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    folder = tmp_path_factory.mktemp("installed")
    shutil.unpack_archive(wheel, folder, "zip")
    return folder


def test_the_wheel_holds_the_package_alone(installed):
    tops = {path.name for path in installed.iterdir()}
    assert tops == {"zipjax", f"zipjax-{__version__}.dist-info"}
    found = {p.relative_to(installed) for p in installed.glob("zipjax/**/*.*")}
    source = {p.relative_to(ROOT) for p in ROOT.glob("zipjax/**/*.py")}
    assert found == source | {Path("zipjax/py.typed")}


def test_the_wheel_has_the_command(installed):
    (path,) = installed.glob("*.dist-info/entry_points.txt")
    assert path.read_text().split() == [
        *("[console_scripts]", "zipjax", "=", "zipjax.command.main:main")
    ]


def test_the_wheel_imports_where_nothing_else_of_the_checkout_is(installed):
    libraries = sysconfig.get_path("purelib")
    code = (
        "import importlib, importlib.util, pathlib, pkgutil, zipjax\n"
        "for module in pkgutil.walk_packages(zipjax.__path__, 'zipjax.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(pathlib.Path(zipjax.__file__).parent, zipjax.__version__)\n"
        "print([importlib.util.find_spec(n) for n in ('experiments', 'configs')])"
    )
    printed = _python(code, str(installed), libraries, cwd=installed.parent)
    assert printed == f"{installed / 'zipjax'} {__version__}\n[None, None]\n"


def test_the_version_is_the_one_that_is_installed():
    assert zipjax.__version__ == __version__ == metadata.version("zipjax")


def test_the_import_loads_nothing_heavy():
    code = "import sys, zipjax\nprint(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"jax", "numpy", "scipy"} <= loaded
    heavy = loaded & HEAVY
    assert not heavy
