"""The examples in docstrings run and print what they say."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef


def examples():
    """Yields ``(module, name, docstring)``; functions may be wrapped in tests."""
    for path in sorted((ROOT / "zipjax").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            docstring = (
                ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
            )
            if docstring and ">>>" in docstring:
                name = getattr(node, "name", "")
                yield pytest.param(module, name, docstring, id=f"{module}:{name}")


@pytest.mark.parametrize(("module", "name", "docstring"), examples())
def test_examples_print_what_they_say(module, name, docstring):
    names = dict(vars(importlib.import_module(module)))
    test = doctest.DocTestParser().get_doctest(docstring, names, name, module, 0)
    printed: list[str] = []
    results = doctest.DocTestRunner().run(test, out=printed.append)
    assert results.attempted
    assert not results.failed, "".join(printed)
