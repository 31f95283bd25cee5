"""The layout holds: imports point one way, and a name means one thing."""

import ast
import functools
import graphlib
import importlib
import re
from collections import defaultdict
from pathlib import Path

import zipjax
from tests.conftest import SLOW

ROOT = Path(__file__).parent.parent

# Lowest first. A package imports from the rows above its own, and from itself.
ORDER = [
    {"types", "version", "files", "hosts", "markdown", "pages", "arguments"},
    {"trees", "labels", "positions"},
    {"batches", "evaluation", "segmentation"},
    {"matching", "spec", "program"},
    {"tracing", "merging"},
    {"similarity", "models"},
    {"recipes", "calibration"},
    {"formats"},
    {"checkpoints", "diagnosis", "inspect", "interop"},
    {"command"},
    {"__main__"},
    {"zipjax"},
    {"experiments"},
]
# Names that stand in several modules because they mean the same in each.
SHARED_NAMES = {
    "spec",  # models/: the declared spec of the module's network
    "Block",  # models/: a residual block of the module's network
    "main",  # the command line of a module
}


def _modules() -> dict[str, ast.Module]:
    found = {}
    for folder in ("zipjax", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            found[name] = ast.parse(path.read_text(), str(path))
    return found


MODULES = _modules()


def _imported(node: ast.AST) -> list[str]:
    """Returns the modules of this project that a statement imports."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if name in MODULES else node.module or "" for name in inner]
    return [name for name in names if name.split(".")[0] in ("zipjax", "experiments")]


@functools.cache
def _imports(module: str) -> set[str]:
    tree = MODULES[module]
    return {name for node in ast.walk(tree) for name in _imported(node)}


def _package(module: str) -> str:
    top, *inner = module.split(".")
    return top if top == "experiments" or not inner else inner[0]


def test_imports_point_downwards():
    tiers = {name: row for row, names in enumerate(ORDER) for name in names}
    upwards = [
        f"{module} imports {name}"
        for module in MODULES
        for name in _imports(module)
        if _package(name) != _package(module)
        and tiers[_package(name)] >= tiers[_package(module)]
    ]
    assert not upwards


def test_no_modules_import_each_other_in_a_circle():
    graphlib.TopologicalSorter({name: _imports(name) for name in MODULES}).prepare()


def test_the_projects_own_modules_are_imported_at_the_top():
    inside = [
        f"{module}: {ast.unparse(node)}"
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if _imported(node) and node not in tree.body
    ]
    assert not inside


def test_matching_needs_no_jax():
    matching = [name for name in MODULES if _package(name) == "matching"]
    sources = [ast.unparse(MODULES[name]) for name in matching]
    assert sources
    assert not re.findall(
        r"^\s*(?:import|from) jax\b", "\n".join(sources), re.MULTILINE
    )


def test_only_the_package_itself_lists_names():
    for path in sorted(ROOT.glob("zipjax/*/**/__init__.py")):
        (docstring,) = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr), path


def test_no_function_shadows_its_module():
    children = {name.split(".")[1] for name in MODULES if name.startswith("zipjax.")}
    assert not children & set(zipjax.__all__)
    assert zipjax.__all__ == sorted(set(zipjax.__all__))


def test_every_module_is_reached_by_its_name():
    for module in MODULES:
        top, *inner = module.split(".")
        imported = importlib.import_module(module)
        found = functools.reduce(getattr, inner, importlib.import_module(top))
        assert found is imported, module


def test_modules_have_no_leading_underscore():
    modules = set(MODULES) - {"zipjax.__main__"}
    assert not [name for name in modules if "._" in name]


def test_a_name_means_one_thing():
    homes = defaultdict(list)
    for module, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                homes[node.name].append(module)
    several = {
        name: modules
        for name, modules in homes.items()
        if len(modules) > 1 and name[0] != "_" and name not in SHARED_NAMES
    }
    assert not several


def test_the_slow_tests_exist():
    # The list goes by file name: a renamed file would count as fast.
    assert all(path.exists() for path in SLOW)
