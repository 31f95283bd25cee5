"""What the public functions' arguments must be, checked where they come in.

A mistake of the caller's, such as a recipe that was not called, is told by the name of
the argument, what was given and what to pass instead, not by an error further in.
"""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What to pass, by argument.
_REMEDIES = {
    "assignments": "pass what zipjax.match returned, {perm: assignment}",
    "apply_fn": "pass a function, apply_fn(params, *inputs), such as module.apply",
    "function": "pass a function that can be jitted, such as module.apply",
    "fractions": "pass numbers, such as numpy.linspace(0, 1, 11)",
    "grid": "pass the values to try by name, such as {'alpha': [0.3, 1.0]}",
    "inputs_of": "pass a function of a batch, such as lambda batch: batch['image']",
    "key": "pass one PRNG key, such as jax.random.key(0)",
    "make_recipe": "pass what makes a recipe from settings, such as zipjax.zipit",
    "merged": "pass what zipjax.merge, zipjax.merge_units or zipjax.load returned",
    "models": "pass a list of parameter pytrees, one per model",
    "moments": "pass what zipjax.collect_moments returned, {perm: Moments}",
    "num_units": "pass merged widths by perm, such as {'hidden': 64}",
    "permutations": "pass permutations by perm, {perm: indices}",
    "recipe": "call a recipe, such as zipjax.zipit()",
    "score": "return one number, the higher the better",
    "spec": "pass a PermutationSpec: zipjax.infer_spec makes one, and "
    "PermutationSpec.from_json reads one from text",
    "weights": "pass one number per model, with sum 1",
}
_LENGTH = 60


def shown(value: Any) -> str:
    """Returns what a value is, in a few words.

    >>> shown("zipit"), shown([0.3]), shown({"x": 1})
    ("the str 'zipit'", 'the list [0.3]', "a dict with the keys ['x']")
    """
    kind = type(value).__name__
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"the {kind} {value.dtype}{list(value.shape)}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the {kind} {value.__name__}"
    if isinstance(value, Mapping):
        return f"a {kind} with the keys {_cut(str(list(value)))}"
    parts = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(part, str | bytes | float | int | None) for part in parts):
        return f"the {kind} {_cut(repr(value))}"
    # The text of other objects says little and may be costly: of arrays, all numbers.
    inner = {type(part).__name__ for part in parts if part is not value}
    return f"a {kind} of {' and '.join(sorted(inner))}" if inner else f"a {kind}"


def wrong(name: str, value: Any) -> ValueError:
    """Returns the error for an argument that is of another kind than it must be."""
    owner = name.partition("[")[0]
    return ValueError(f"{name} is {shown(value)}: {_REMEDIES[owner]}")


def check_kind(name: str, value: Any, kind: type | tuple[type, ...]) -> None:
    """Checks that an argument is of a class.

    Raises:
      ValueError: if it is not.
    """
    if not isinstance(value, kind):
        raise wrong(name, value)


def check_values(name: str, values: Any, kind: type) -> None:
    """Checks that an argument is a mapping to values of a class.

    Raises:
      ValueError: if it is not.
    """
    check_kind(name, values, Mapping)
    for key, value in values.items():
        check_kind(f"{name}[{key!r}]", value, kind)


def check_sequence(name: str, values: Any) -> None:
    """Checks that an argument is a list or another sequence, of no text.

    Raises:
      ValueError: if it is not.
    """
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise wrong(name, values)


def check_callable(name: str, function: Any) -> None:
    """Checks that an argument can be called.

    Raises:
      ValueError: if it cannot.
    """
    if not callable(function):
        raise wrong(name, function)


def check_function(name: str, function: Any) -> None:
    """Checks that an argument is a function that can select a compiled program.

    Raises:
      ValueError: if it is a module, is not callable or cannot be hashed.
    """
    # A Flax module can be called, but not with its parameters; Haiku's transformed
    # functions are pairs.
    if hasattr(function, "init") and hasattr(function, "apply"):
        raise ValueError(
            f"{name} is a module, {type(function).__name__}: pass its method "
            f"{name}=module.apply, which takes the parameters"
        )
    check_callable(name, function)
    try:
        hash(function)
    except TypeError:
        raise ValueError(
            f"{name} is {shown(function)}, which cannot be hashed, as it must be to "
            "select its compiled program: pass a function, or a method of a module"
        ) from None


def check_key(key: Any) -> None:
    """Checks that an argument is one PRNG key, typed or of the raw kind.

    Raises:
      ValueError: if it is not.
    """
    array = isinstance(key, jax.Array | np.ndarray)
    typed = array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not (array and (typed or key.dtype == np.uint32) and key.ndim == 1 - typed):
        raise wrong("key", key)


def is_number(value: Any) -> bool:
    """Returns whether a value is one real number, of Python, numpy or JAX."""
    kinds = jnp.floating, np.integer
    return isinstance(value, numbers.Real) or _is_scalar(value, *kinds)


def is_whole(value: Any) -> bool:
    """Returns whether a value is one whole number, of Python, numpy or JAX."""
    if isinstance(value, bool | np.bool_):
        return False
    return isinstance(value, numbers.Integral) or _is_scalar(value, np.integer)


def check_number(
    name: str, value: Any, fits: Callable[[Any], bool], wanted: str
) -> None:
    """Checks that a setting is one real number of some range.

    Args:
      name: the setting.
      value: what was given.
      fits: whether a number lies in the range.
      wanted: the range in words, with an example.

    Raises:
      ValueError: if it is no number, or outside of the range.
    """
    if not is_number(value) or not fits(value):
        raise ValueError(f"{name} = {value!r}: pass {wanted}")


def _is_scalar(value: Any, *kinds: Any) -> bool:
    """Returns whether a value is an array without axes, of some kinds of numbers."""
    array = isinstance(value, jax.Array | np.ndarray) and not np.ndim(value)
    return array and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)


def _cut(text: str) -> str:
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}..."
