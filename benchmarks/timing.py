"""Seconds that functions take."""

import time
from collections.abc import Callable
from typing import Any

import jax


def timed(
    function: Callable[..., Any], *arguments: Any, **options: Any
) -> tuple[Any, float]:
    """Returns a function's result, computed to the end, and the seconds it took."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments, **options))
    return result, time.perf_counter() - start
