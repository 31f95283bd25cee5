"""Results that a run keeps for the next one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.fingerprints import text_digest
from zipjax import checkpoints, hosts


def remember(
    path: Path, inputs: Any, make: Callable[[], Any]
) -> tuple[dict[str, Any], bool]:
    """Returns a pytree of arrays from a checkpoint, or makes and saves it.

    Args:
      path: the checkpoint's folder; a digest of ``inputs`` is added to its name, so
        that a result of other inputs is never mistaken for this one.
      inputs: JSON data that determine the result.
      make: computes it, the same in all processes.

    Returns:
      The pytree, always as it was restored from the checkpoint, and whether it existed
      already.

    Raises:
      ValueError: if the checkpoint is damaged.
    """
    text = json.dumps(inputs, sort_keys=True)
    target = path.with_name(f"{path.name}_{text_digest(text)}")
    # One process looks for all: what exists here may be what another has just begun.
    reused = bool(hosts.once(lambda: {"exists": np.array(target.exists())})["exists"])
    if not reused:
        checkpoints.save_tree(target, make(), {"inputs": text})
    tree, _ = checkpoints.load_tree(target)
    return tree, reused
