"""The type checker of the tests: an int may stand for a float, as Python has it."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that checks its arguments, unless it is an inner one.

    Inner functions are made again at every call of the outer one; to compile their
    checks each time took a fifth of the suite's time.
    """
    inner = "<locals>" in getattr(function, "__qualname__", "")
    return function if inner else _check(function)
