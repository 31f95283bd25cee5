"""The user's lines of code that equations come from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zipjax.program.program import Equation
from zipjax.tracing.nodes import Reason

# Frames in these packages are not the user's.
_FRAMEWORKS = ("jax", "jaxlib", "flax", "haiku", "equinox", "einops")


def describe(reason: Reason) -> str:
    """Returns a reason in words, with the user's line if one is known."""
    line = None if reason.equation is None else user_line(reason.equation)
    return reason.what if line is None else f"{reason.what} at {line}"


def user_line(eqn: Equation) -> str | None:
    """Returns "model.py:12 (function)" for the innermost frame of the user's code."""
    if eqn.call is not None:
        # Frames beyond the call belong to the first caller of the jitted function.
        for frame in _frames(eqn.source):
            if frame.file_name.endswith("jax/_src/pjit.py"):
                break
            if not _is_framework(frame.file_name):
                return _line(frame)
    for frame in _frames(eqn.call or eqn.source):
        if not _is_framework(frame.file_name):
            return _line(frame)
    return None


def _frames(source: Any) -> Iterator[Any]:
    traceback = getattr(source, "traceback", None)
    if traceback is not None:
        yield from traceback.frames


def _is_framework(file: str) -> bool:
    parts = Path(file).parts
    return any(name in _FRAMEWORKS for name in parts[-6:-1]) or file.startswith("<")


def _line(frame: Any) -> str:
    path = Path(frame.file_name)
    name = "/".join(path.parts[-2:])
    return f"{name}:{frame.line_num} ({frame.function_name})"
