"""The memory that ``zipjax merge`` takes for two large checkpoints, by format.

    python -m benchmarks.checkpoints --megabytes 1000 --folder /tmp/checkpoints

Makes two residual networks of that size, merges them in a process of its own for every
format, and prints the most memory that this had (its resident set, which counts pages
of mapped files, though the system may drop these). The files are removed at the end.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import zipjax
from zipjax.markdown import markdown_table
from zipjax.types import Array, PyTree

WIDTH, HIDDEN = 4096, 2048
_BLOCK = 4 * 2 * WIDTH * HIDDEN  # Bytes.
_NAMES = {
    "safetensors": "{}.safetensors",
    "npz": "{}.npz",
    "flax": "{}.msgpack",
    "orbax": "{}_orbax",
}
_COMMAND = ("--apply", "benchmarks.checkpoints:apply", "--batches")


def apply(params: PyTree, x: Array) -> Array:
    """Runs the residual network."""
    for block in params.values():
        x = x + jax.nn.relu(x @ block["up"]) @ block["down"]
    return x


def batches() -> list[np.ndarray]:
    """Returns two batches of inputs."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(64, WIDTH)).astype(np.float32) for _ in range(2)]


def write_network(path: Path, blocks: int, seed: int) -> None:
    """Writes a random network."""
    rng = np.random.default_rng(seed)
    params = {
        f"block{number:04}": {
            "up": rng.standard_normal((WIDTH, HIDDEN), np.float32) / 45,
            "down": rng.standard_normal((HIDDEN, WIDTH), np.float32) / 1000,
        }
        for number in range(blocks)
    }
    zipjax.write_checkpoint(path, params)


def peak_of(arguments: list[str]) -> int:
    """Returns the largest resident set of a Python process, in bytes."""
    quiet = subprocess.DEVNULL
    child = subprocess.Popen([sys.executable, *arguments], stdout=quiet, stderr=quiet)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(
            f"{arguments} ended with {os.waitstatus_to_exitcode(status)}"
        )
    return usage.ru_maxrss * 1024


def measured(folder: Path, name: str, blocks: int, flags: list[str]) -> int:
    """Returns the peak of a merge of two networks in one format."""
    paths = [folder / _NAMES[name].format(letter) for letter in "ab"]
    for seed, path in enumerate(paths):
        code = (
            "import pathlib, benchmarks.checkpoints as c;"
            f"c.write_network(pathlib.Path({str(path)!r}), {blocks}, {seed})"
        )
        peak_of(["-c", code])
    source = "benchmarks.checkpoints:batches"
    out = folder / "merged"
    command = ["-m", "zipjax", "merge", *map(str, paths), *_COMMAND, source]
    peak = peak_of([*command, "--out", str(out), "--no-report", *flags])
    shutil.rmtree(folder)
    return peak


def main() -> None:
    """Measures all formats and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=Path("checkpoints_benchmark"))
    parser.add_argument("--formats", nargs="+", default=list(_NAMES))
    parser.add_argument("--flags", nargs="*", default=["--recipe", "permute"])
    parser.add_argument("--memory_limit", type=int, default=200)
    options = parser.parse_args()
    blocks = max(options.megabytes * 1_000_000 // _BLOCK, 1)
    flags = [*options.flags, "--memory_limit", f"{options.memory_limit}000000"]
    least = measured(options.folder, "npz", 1, flags)
    print(f"of one block, {_BLOCK / 1e6:.0f} MB: {least / 1e6:,.0f} MB", flush=True)
    size = blocks * _BLOCK
    rows = []
    for name in options.formats:
        peak = measured(options.folder, name, blocks, flags)
        figures = f"{size / 1e6:,.0f}", f"{peak / 1e6:,.0f}"
        rows.append([name, *figures, f"{(peak - least) / size:.2f}"])
        print(*rows[-1], flush=True)
    columns = ["format", "each, MB", "peak, MB", "(peak - that of one block) / each"]
    print(markdown_table(columns, rows, text_columns=1))


if __name__ == "__main__":
    main()
