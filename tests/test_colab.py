import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

NOTEBOOKS = sorted((Path(__file__).parent.parent / "colab").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, capsys):
    cells = json.loads(path.read_text())["cells"]
    codes = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    names: dict = {}
    for code in codes[:-1]:
        if not code.startswith("%"):
            exec(compile(code, path.name, "exec"), names)
    *statements, shown = codes[-1].splitlines()
    exec("\n".join(statements), names)
    assert isinstance(eval(shown, names), Figure)
    printed = capsys.readouterr().out
    scores = {line.split()[0]: float(line.split()[-1]) for line in printed.splitlines()}
    assert scores["zipit"] > scores["average"]
    assert not any("def " in code or "class " in code for code in codes)


def test_there_are_notebooks():
    assert NOTEBOOKS
