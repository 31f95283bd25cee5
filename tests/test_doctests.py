"""The examples in the docstrings run."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "zipjax").rglob("*.py"))
    if ">>> " in path.read_text()
]


def test_there_are_examples():
    assert MODULES


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name):
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted
    assert not done.failed
