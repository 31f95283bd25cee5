"""Tasks: disjoint sets of classes."""

import jax
import numpy as np


def split_classes(
    num_classes: int, num_tasks: int, key: jax.Array
) -> tuple[tuple[int, ...], ...]:
    """Splits the classes at random into tasks of equal size (ZipIt!, Section 4).

    Raises:
      ValueError: if the tasks cannot be of equal size.
    """
    if num_tasks < 1 or num_classes % num_tasks:
        raise ValueError(
            f"{num_classes} classes do not split into {num_tasks} tasks of equal size"
        )
    shuffled = np.asarray(jax.random.permutation(key, num_classes))
    tasks = np.sort(shuffled.reshape(num_tasks, -1), axis=1)
    return tuple(tuple(task) for task in tasks.tolist())
