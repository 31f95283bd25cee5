"""Several processes on loopback give what one gives."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

import zipjax
from tests.conftest import ROOT
from tests.networks import relative_error
from zipjax import hosts


def run(folder, count):
    """Runs that many processes to the end; returns what each of them got."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.hosts_worker", str(folder)]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    processes = [
        subprocess.Popen(
            [*command, str(number), str(count), str(port)],
            cwd=ROOT,
            env=os.environ | flags,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    return [dict(np.load(folder / f"{count}_{k}.npz")) for k in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def alone(folder):
    return run(folder, 1)[0]


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_give_what_one_gives(count, alone, folder):
    found = run(folder, count)
    for own in found:
        assert own.keys() == alone.keys()
        assert own["refused"] == 4
        for name, value in alone.items():
            # All end with the same merge, to the last bit.
            np.testing.assert_array_equal(own[name], found[0][name], err_msg=name)
            kind = name.split()[0]
            if kind in ("samples", "mudsc", "joint", "count", "refused"):
                np.testing.assert_array_equal(own[name], value, err_msg=name)
            else:
                assert relative_error(own[name], value) < 1e-6, name
    one, several = (zipjax.load(folder / f"merged{n}") for n in (1, count))
    assert several.trunk.keys() == one.trunk.keys()
    for path, leaf in one.trunk.items():
        assert relative_error(several.trunk[path], leaf) < 1e-6, path


def test_arrays_travel_bit_for_bit():
    arrays = {
        "a/b c": np.array([1.1, np.nan]),
        "h": np.arange(3),
        "": np.zeros((2, 0), np.float32),
    }
    back = hosts._unpacked(hosts._packed(arrays))
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert hosts._unpacked(hosts._packed({})) == {}


def test_one_process_exchanges_nothing():
    arrays = {"a": np.arange(3)}
    assert hosts.gathered(arrays) == [arrays]
    assert hosts.summed(arrays["a"]) is arrays["a"]
    assert hosts.once(lambda: arrays) == arrays
