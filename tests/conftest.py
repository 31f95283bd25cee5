"""Shared fixtures. Array shapes in the package's annotations are checked in tests."""

import os
from pathlib import Path

# Set before JAX starts: several devices are virtual ones of the CPU.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import config, install_import_hook

import tests.checking  # noqa: F401 - the hook looks it up by name

install_import_hook(["zipjax", "experiments"], "tests.checking.check")

import jax
import pytest

SHARED = os.environ.get("ZIPJAX_SHARED", "")


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
