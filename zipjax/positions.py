"""Which positions of a batch are read: of an image, its pixels; of a text, its tokens.

Neighbours say almost the same, and statistics of units need far fewer samples than
images have positions.
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from zipjax.arguments import is_whole
from zipjax.types import AnyArray

Positions = int | Literal["few", "all"]

FEW_SAMPLES = 2**15
"""Samples of every perm with ``positions="few"``. The standard error of a correlation
is then at most 1/sqrt(FEW_SAMPLES), 0.0055, as far as samples are independent."""


def check_positions(positions: Any) -> None:
    """Checks that these are positions.

    Raises:
      ValueError: if they are neither "few", "all" nor a positive whole number.
    """
    if positions in ("few", "all") or (is_whole(positions) and positions >= 1):
        return
    raise ValueError(
        f"positions = {positions!r}: pass the number of samples to read of every "
        "batch, 'few' or 'all'"
    )


def positions_of(drawn: AnyArray, samples: int) -> Int[AnyArray, "... count"]:
    """Returns positions in order, one in each stretch of equal length.

    Args:
      drawn: where in its stretch each of them lies, in [0, 1), ``[..., count]``.
      samples: how many positions there are.
    """
    count = drawn.shape[-1]
    places = (np.arange(count) + drawn) * (samples / count)
    # What is just below the end may be rounded up.
    return places.astype(np.int32).clip(max=samples - 1)
