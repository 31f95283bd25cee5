"""The code in the pages about checkpoints and the command runs, as it stands there."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import zipjax
from zipjax.command.main import main

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page):
    return BLOCK.findall((DOCS / page).read_text())


def test_the_page_about_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for kind, code in blocks("checkpoints.md"):
        if kind == "python":
            exec(compile(code, "checkpoints.md", "exec"), names)
    np.testing.assert_array_equal(names["again"]["hidden"]["kernel"], np.ones((4, 8)))
    assert set(names["variables"]) == {"params", "batch_stats"}
    assert int(names["merged"].params()["step"]) == 200


def test_the_page_about_the_command(tmp_path, monkeypatch):
    """Files have the names of their first lines; commands run in their order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = blocks("command.md")
    for _, code in (block for block in found if block[0] == "python"):
        name = code.splitlines()[0].removeprefix("# ")
        Path(name).write_text(code)
    rng = np.random.default_rng(0)
    for name in ("first.npz", "second.npz"):
        params = {"hidden": rng.normal(size=(5, 8)), "head": rng.normal(size=(8, 3))}
        zipjax.write_checkpoint(name, {k: np.float32(x) for k, x in params.items()})
    np.save("images.npy", rng.normal(size=(256, 5)).astype(np.float32))
    lines = [x for kind, code in found if not kind for x in code.splitlines()]
    assert len(lines) == 7
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "zipjax"
        assert main(arguments) == 0, line
    sys.modules.pop("my_nets")
    assert Path("refitted/params.npz").exists()


def test_flags_exist(capsys):
    text = (DOCS / "command.md").read_text()
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    known = capsys.readouterr().out
    for command in ("inspect", "verify", "apply-spec", "convert"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known += capsys.readouterr().out
    for flag in set(re.findall(r"--[a-z][a-z_-]*", text)):
        assert flag in known, flag
