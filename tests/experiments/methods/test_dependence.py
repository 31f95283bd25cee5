"""Rows depend on all code but the report's."""

from experiments.methods import dependence


def test_rows_depend_on_all_code_but_the_reports(tmp_path, monkeypatch):
    names = ["zipjax/a.py", "experiments/b.py", "experiments/methods/c.py"]
    names.append("experiments/report/d.py")
    for file in (tmp_path / name for name in names):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1")
    monkeypatch.setattr(dependence, "_PACKAGE", tmp_path / "zipjax")
    monkeypatch.setattr(dependence, "_EXPERIMENTS", tmp_path / "experiments")
    known = [dependence.code_of_rows()]
    for name in names:
        (tmp_path / name).write_text("x = 2")
        known.append(dependence.code_of_rows())
    assert len(set(known[:-1])) == 4
    assert known[-1] == known[-2]
