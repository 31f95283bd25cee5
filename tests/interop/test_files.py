"""State dictionaries in files."""

import os
import pickle
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from zipjax.interop.torch import load_state_dict, save_state_dict

KINDS = [".safetensors", ".npz"]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs the extra [torch]")


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    return {
        "conv1.weight": rng.normal(size=(4, 3, 2, 5)).astype(np.float32),
        "fc.weight": rng.normal(size=(3, 4)).astype(np.float16),
        "bn1.num_batches_tracked": np.array(7, np.int64),
    }


def assert_same(found, expected):
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)


def test_what_was_saved_is_loaded_without_torch(tmp_path, state, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "new" / f"model{kind}"
    save_state_dict(path, state)
    assert_same(load_state_dict(str(path)), state)
    assert os.listdir(path.parent) == [path.name]


def test_transposed_arrays_are_saved_as_they_are_seen(tmp_path, state, kind):
    """safetensors alone writes the memory of an array, whatever its strides."""
    seen = {key: value.T for key, value in state.items()}
    assert not seen["conv1.weight"].flags.c_contiguous
    save_state_dict(tmp_path / f"model{kind}", seen)
    assert_same(load_state_dict(tmp_path / f"model{kind}"), seen)


def test_bfloat16_is_widened(tmp_path, kind):
    exact = np.array([1.5, -3.0, 2.0**-100], np.float32)
    save_state_dict(tmp_path / f"a{kind}", {"x": exact.astype(ml_dtypes.bfloat16)})
    assert_same(load_state_dict(tmp_path / f"a{kind}"), {"x": exact})


def test_files_in_bfloat16_are_read(tmp_path):
    exact = np.array([1.5, -3.0, 2.0**-100], np.float32)
    path = tmp_path / "model.safetensors"
    save_file({"x": exact.astype(ml_dtypes.bfloat16)}, path)
    assert_same(load_state_dict(path), {"x": exact})


def test_nothing_is_overwritten(tmp_path, state, kind):
    path = tmp_path / f"model{kind}"
    path.write_text("precious")
    with pytest.raises(ValueError, match="exists already"):
        save_state_dict(path, state)
    assert path.read_text() == "precious"


def test_a_save_that_fails_leaves_nothing(tmp_path, state, kind, monkeypatch):
    def stop(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OSError, match="full"):
        save_state_dict(tmp_path / f"model{kind}", state)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["model.bin", "model", "model.pt"])
def test_other_kinds_are_not_written(tmp_path, state, name):
    with pytest.raises(ValueError, match=r"it can be \.safetensors, \.npz$"):
        save_state_dict(tmp_path / name, state)


def test_other_kinds_are_not_read(tmp_path):
    with pytest.raises(
        ValueError, match=r"'\.pkl': it can be .*\.npz, \.pt, \.pth, \.th"
    ):
        load_state_dict(tmp_path / "model.pkl")


@pytest.mark.parametrize("name", ["model.safetensors", "model.npz"])
def test_absent_files_say_so(tmp_path, name):
    with pytest.raises(FileNotFoundError):
        load_state_dict(tmp_path / name)


def test_missing_packages_come_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'zipjax\[torch\]'"):
        load_state_dict(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_files_of_torch(tmp_path, torch, suffix, wrapper):
    weight = torch.arange(6.0).reshape(2, 3)
    content = {"a.weight": weight.T, "b": torch.tensor([1.5]).bfloat16()}
    path = tmp_path / f"model{suffix}"
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, path)
    expected = {"a.weight": weight.numpy().T, "b": np.array([1.5], np.float32)}
    assert_same(load_state_dict(path), expected)


def test_other_values_of_a_checkpoint_are_named(tmp_path, torch):
    torch.save({"weight": torch.ones(2), "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"'epoch' in .*model\.pt' is a int"):
        load_state_dict(tmp_path / "model.pt")
    torch.save(torch.ones(2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds a Tensor, not tensors by key"):
        load_state_dict(tmp_path / "model.pt")


def test_a_checkpoint_as_published_is_its_state(shared, torch):
    folder = shared / "checkpoints" / "resnet20_third_party"
    if not folder.exists():
        pytest.skip("needs the published networks beside the golden results")
    found = load_state_dict(folder / "run_1_as_published.th")
    expected = load_state_dict(folder / "run_1.safetensors")
    assert_same(found, {f"module.{key}": value for key, value in expected.items()})


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickles_that_would_run_code_are_refused(tmp_path, torch):
    trace, path = tmp_path / "it-ran", tmp_path / "model.pt"
    torch.save({"weight": torch.ones(2), "more": Malicious(trace)}, path)
    with pytest.raises(ValueError, match="a pickle can run any code"):
        load_state_dict(path)
    path.write_bytes(pickle.dumps({"weight": Malicious(trace)}))
    with pytest.raises(ValueError, match="a pickle can run any code"):
        load_state_dict(path)
    assert not trace.exists()
    # The file is as bad as it was meant to be.
    torch.serialization.pickle.loads(path.read_bytes())
    assert trace.exists()


def test_pickles_in_npz_files_are_refused(tmp_path):
    trace, path = tmp_path / "it-ran", tmp_path / "model.npz"
    np.savez(path, weight=np.array([Malicious(trace)], object), allow_pickle=True)
    with pytest.raises(ValueError, match="a pickle can run any code"):
        load_state_dict(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_damaged_files_are_refused(tmp_path, suffix):
    if suffix == ".pt":
        pytest.importorskip("torch", reason="needs the extra [torch]")
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80 no such thing" * 9)
    with pytest.raises(ValueError, match="cannot be read"):
        load_state_dict(path)


def test_keys_may_be_called_like_arguments_of_numpy(tmp_path):
    keys = "allow_pickle", "file", "args", "a/b"
    state = {key: np.full(3, k, np.float32) for k, key in enumerate(keys)}
    save_state_dict(tmp_path / "model.npz", state)
    with np.load(tmp_path / "model.npz") as found:
        assert set(found.files) == set(keys)
        for key, array in state.items():
            np.testing.assert_array_equal(found[key], array)
