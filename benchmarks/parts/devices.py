"""Moments on 1 to 8 virtual devices and in 1 to 4 processes, beside one device.

Virtual devices share the machine's cores: the ratios show what sharing costs, not what
it gains.
"""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np

import zipjax
from benchmarks.networks import pair
from benchmarks.timing import cpu_timed


def measure(smoke: bool) -> dict[str, Any]:
    """Returns CPU seconds of all processes, as ratios to one device."""
    devices, processes = ([1, 2], [1, 2]) if smoke else ([1, 2, 4, 8], [1, 2, 4])
    images = 32 if smoke else 512
    alone = sum(_run(images, 1, 1))
    return {
        "devices": {str(n): sum(_run(images, n, 1)) / alone for n in devices},
        "processes": {str(n): sum(_run(images, 1, n)) / alone for n in processes},
        "one device, CPU s": alone,
    }


def _run(images: int, devices: int, processes: int) -> list[float]:
    """Returns the CPU seconds of every process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.parts.devices",
                *map(str, (images, port, processes, number)),
            ],
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def _worker(images: int, port: int, processes: int, number: int) -> None:
    """Prints the CPU seconds of a second pass over a process's share of the images."""
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)
    own = pair(
        "two blocks" if images < 100 else "ResNet-20", images, max(images // 8, 8)
    )
    batches = own.batches[number::processes]

    def moments() -> Any:
        return zipjax.collect_moments(
            own.apply_fn, own.models, own.spec, batches, positions="all"
        )

    moments()
    _, seconds = cpu_timed(moments)
    print(json.dumps(float(np.round(seconds, 4))))


if __name__ == "__main__":
    _worker(*map(int, sys.argv[1:]))
