"""The type checker of the tests: what has arrays is checked, shapes and all.

jaxtyping's import hook decorates every function of a module. Most have no arrays, and
checking their calls takes longer than many of them do.
"""

import functools
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_jaxtyped = jaxtyping.jaxtyped

# An int may stand for a float, as Python has it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """Returns a decorator that checks a function or dataclass which has arrays.

    Not an inner function: those are made again at every call of the outer one, and
    their checks would be compiled each time.
    """
    return functools.partial(_decorated, _jaxtyped(typechecker=typechecker))


def _decorated(decorator: Callable[[Any], Any], own: Any) -> Any:
    function: Any = own
    if isinstance(own, property):
        function = own.fget
    elif isinstance(own, classmethod | staticmethod):
        function = own.__func__
    annotations = getattr(function, "__annotations__", {})
    shaped = "<locals>" not in function.__qualname__ and any(
        map(_has_arrays, annotations.values())
    )
    return decorator(own) if shaped else own


def _has_arrays(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_has_arrays, typing.get_args(annotation)))
