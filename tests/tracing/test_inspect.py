"""The table of perms."""

import sys

import pytest

from zipjax import inspect


def test_prints_one_row_a_perm_and_the_cuts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["inspect", "resnet20", "--shape", "1", "8", "8", "3", "--explain"]
    monkeypatch.setattr(sys, "argv", arguments)
    inspect.main()
    table, _, rest = capsys.readouterr().out.partition("\n\n")
    rows = [line for line in table.splitlines()[2:] if not line.startswith("===")]
    assert len(rows) == 12
    assert [x for x in table.splitlines() if x.startswith("===")] == [
        "=== cut 1: 7 layers",
        "=== cut 2: 13 layers",
        "=== cut 3: 19 layers",
    ]
    assert ".#.................." in rows[0]
    assert "frozen axes:" in rest
