"""Files: a name holds the old content or all of the new."""

import os

import pytest

from zipjax.files import write_text, write_whole


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write_text(path, "old")

    def fail(source, target):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_what_a_killed_one_left(tmp_path):
    (tmp_path / ".results.csv.tmp").write_text("half")
    write_text(tmp_path / "results.csv", "ü")
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]
    assert (tmp_path / "results.csv").read_text(encoding="utf-8") == "ü"


def test_any_writer_is_given_a_name_beside_the_file(tmp_path):
    path, names = tmp_path / "a.npz", []

    def write(file):
        names.append(file)
        file.write_bytes(b"\0\1")
        assert not path.exists()

    write_whole(os.fspath(path), write)
    assert path.read_bytes() == b"\0\1"
    assert names[0].parent == tmp_path
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def write(file):
        file.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.txt", write)
    assert list(tmp_path.iterdir()) == []
