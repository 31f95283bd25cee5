"""Seconds that functions take, and how often they compile."""

import contextlib
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def timed(
    function: Callable[..., Any], *arguments: Any, **options: Any
) -> tuple[Any, float]:
    """Returns a function's result, computed to the end, and the seconds it took."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments, **options))
    return result, time.perf_counter() - start


def cpu_seconds() -> float:
    """Returns the CPU seconds that this process has taken."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cpu_timed(function: Callable[[], Any], repeats: int = 1) -> tuple[Any, float]:
    """Returns a function's result and the fewest CPU seconds that it took.

    Args:
      function: without arguments.
      repeats: number of calls.
    """
    best, result = float("inf"), None
    for _ in range(repeats):
        start = cpu_seconds()
        result = jax.block_until_ready(function())
        best = min(best, cpu_seconds() - start)
    return result, best


def peak_megabytes() -> float:
    """Returns the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """Collects the seconds of everything that XLA compiles meanwhile."""
    seen: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Returns the power of the size by which times grow, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(seconds, 1e-9)), 1)[0])
