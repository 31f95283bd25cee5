import re
from pathlib import Path

import numpy as np
import pytest

import zipjax

ROOT = Path(__file__).parent.parent


def test_the_example_in_the_readme_runs(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code_lines = [line for line in code.splitlines() if line.strip()]
    assert len(code_lines) <= 40
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    x = names["images"]
    restored = zipjax.load(tmp_path / "merged")
    again = zipjax.apply(names["net"].apply, restored, x)
    np.testing.assert_array_equal(names["outputs"], again)


@pytest.mark.parametrize("command", ["bin/pytest", "-m experiments.run"])
def test_the_quick_start_has_complete_commands(command):
    (section,) = re.findall(
        r"## Quick start\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL
    )
    (line,) = [row for row in section.splitlines() if row.endswith(command)]
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install")


def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name
)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [
        link
        for link in links
        if not link.startswith("https://") and not (page.parent / link).exists()
    ]
    assert not missing


def test_links_lead_to_headings():
    """As GitHub names them: in lower case, without punctuation, spaces as hyphens."""
    page = ROOT / "docs" / "papers.md"
    titles = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "results.md").read_text(), re.M)
    headings = {re.sub(r"[^\w -]", "", x.lower()).replace(" ", "-") for x in titles}
    links = set(re.findall(r"\]\(results\.md#([^)]+)\)", page.read_text()))
    assert links
    assert links <= headings


@pytest.mark.parametrize("page", ROOT.glob("docs/*.md"), ids=lambda page: page.name)
def test_names_in_the_docs_exist(page):
    names = set(re.findall(r"\bzipjax\.([a-z_]+)\(", page.read_text()))
    assert not {name for name in names if not hasattr(zipjax, name)}
    modules = set(re.findall(r"\bzipjax(?:/[a-z_]+)+\.py", page.read_text()))
    assert not {path for path in modules if not (ROOT / path).exists()}
