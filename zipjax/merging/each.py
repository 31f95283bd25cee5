"""One value for all models, or one per model: functions, specs, structures."""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar, cast

from zipjax.arguments import check_function
from zipjax.types import ApplyFn

T = TypeVar("T")
OneOrEach: TypeAlias = T | Sequence[T]


def each(values: OneOrEach[T], count: int, what: str) -> tuple[T, ...]:
    """Returns one value per model (or head), in order.

    Args:
      values: one value for all, or a list or tuple with one per model.
      count: number of models, or of heads.
      what: what the values are, for the error.

    Raises:
      ValueError: if the number of values differs from the number of models.
    """
    if not isinstance(values, list | tuple):
        return (cast(T, values),) * count
    if len(values) != count:
        raise ValueError(
            f"{len(values)} {what} for {count} models or heads: pass one for all of "
            "them, or a sequence with one for each"
        )
    return tuple(values)


def each_function(apply_fn: OneOrEach[ApplyFn], count: int) -> tuple[ApplyFn, ...]:
    """Returns one function per model (or head), checked; see :func:`each`.

    Raises:
      ValueError: if their number differs from that of the models, or one is a module,
        is not callable or cannot be hashed.
    """
    # A named tuple, such as Haiku's (init, apply), is no sequence of functions.
    given = apply_fn if type(apply_fn) in (list, tuple) else (apply_fn,)
    for function in cast(Sequence[ApplyFn], given):
        check_function("apply_fn", function)
    return each(apply_fn, count, "functions")


def one_or_each(values: Sequence[T]) -> T | tuple[T, ...]:
    """Returns the one value if all are equal, else a tuple: both can be hashed."""
    first = values[0]
    same = all(value is first or value == first for value in values)
    return first if same else tuple(values)
