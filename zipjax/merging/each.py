"""What is given once for all models, or once for each: functions, specs, structures."""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar, cast

T = TypeVar("T")
OneOrEach: TypeAlias = T | Sequence[T]


def each(values: OneOrEach[T], count: int, what: str) -> tuple[T, ...]:
    """Returns one value a model (or a head), in order.

    Args:
      values: one value, or a list or tuple of one for each.
      count: number of models, or of heads.
      what: what they are, for the error.

    Raises:
      ValueError: if there is another number of them.
    """
    if not isinstance(values, list | tuple):
        return (cast(T, values),) * count
    if len(values) != count:
        raise ValueError(
            f"{len(values)} {what} for {count} models or heads: pass one for all of "
            "them, or a sequence of one for each"
        )
    return tuple(values)


def one_or_each(values: Sequence[T]) -> T | tuple[T, ...]:
    """Returns the one value that all are, or a tuple of them: both can be hashed."""
    first = values[0]
    same = all(value is first or value == first for value in values)
    return first if same else tuple(values)
