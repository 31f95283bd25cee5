"""Results that a run keeps for the next one."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zipjax import checkpoints


def remember(
    path: Path, inputs: Any, make: Callable[[], Any]
) -> tuple[dict[str, Any], bool]:
    """Returns a pytree of arrays from a checkpoint, or makes and saves it.

    Args:
      path: the checkpoint's folder; a digest of ``inputs`` is added to its name, so
        that what other settings made is never taken for this.
      inputs: JSON data that determine the result.
      make: computes it.

    Returns:
      The pytree, always as it was restored from the checkpoint, and whether it was
      there already.

    Raises:
      ValueError: if the checkpoint is damaged.
    """
    text = json.dumps(inputs, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    target = path.with_name(f"{path.name}_{digest}")
    reused = target.exists()
    if not reused:
        checkpoints.save_tree(target, make(), {"inputs": text})
    tree, _ = checkpoints.load_tree(target)
    return tree, reused
