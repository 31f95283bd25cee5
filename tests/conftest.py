"""Shared fixtures. Array shapes in the package's annotations are checked in tests."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Set before JAX starts, and for the commands that tests run. Several devices are
# virtual ones of the CPU. Compiling takes longest: it is done cheaply, by one thread of
# each worker, only once, and by the older code generator, which takes a quarter less.
_FLAGS = (
    "--xla_force_host_platform_device_count=4",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
)
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

import jaxtyping
from jaxtyping import config, install_import_hook

import tests.checking

jaxtyping.jaxtyped = tests.checking.jaxtyped

# Of the modules that have shapes to check.
SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("zipjax", "experiments")
    for path in (ROOT / folder).rglob("*.py")
    if "from jaxtyping import" in path.read_text()
]
install_import_hook(SHAPED, "tests.checking.check")

import jax
import pytest

SHARED = os.environ.get("ZIPJAX_SHARED", "")

# These train, search at random, or trace and compile networks of full size.
SLOW = {
    ROOT / "tests" / name
    for name in (
        "experiments/test_configs.py",
        "experiments/test_distributed.py",
        "experiments/test_experiment.py",
        "experiments/test_kills.py",
        "experiments/test_run.py",
        "interop/test_live_parity.py",
        "models/test_specs.py",
        "recipes/test_copies.py",
        "test_colab.py",
        "test_end_to_end.py",
        "test_golden_resnet20.py",
        "test_hosts.py",
        "tracing/test_end_to_end.py",
        "tracing/test_fuzz.py",
        "tracing/test_mutations.py",
        "tracing/test_third_party.py",
        "tracing/test_zoo.py",
    )
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs after every module: a process can map only so many."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the reference implementations' results."""
    if not SHARED:
        pytest.skip("needs the golden results: set ZIPJAX_SHARED to their folder")
    return Path(SHARED)


@pytest.fixture
def key() -> jax.Array:
    """A PRNG key."""
    return jax.random.key(0)


@pytest.fixture
def untyped():
    """Lets bad input through to the package's own errors: users run no type checks."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
