"""Early checks: functions and arguments whose spec cannot be inferred are refused."""

import jax.numpy as jnp
import numpy as np

from zipjax.program.program import Program, trace
from zipjax.tracing.interpreter import returned_values
from zipjax.tracing.reading import Reading
from zipjax.trees import check_leaf, path_leaves
from zipjax.types import ApplyFn, PyTree


def checked_trace(apply_fn: ApplyFn, params: PyTree, *inputs: PyTree) -> Program:
    """Returns the program of a function, after checking its parameters.

    Raises:
      ValueError: for parameters that are not arrays of numbers or PRNG keys, and for
        functions that cannot be traced with these arguments.
    """
    leaves = path_leaves(params)
    if not leaves:
        raise ValueError("there are no parameters: pass a pytree of arrays")
    for path, leaf in leaves.items():
        check_leaf(path, leaf)
    return trace(apply_fn, params, *inputs)


def check_used(reading: Reading) -> None:
    """Checks that a function's outputs depend on its parameters and on its inputs.

    Raises:
      ValueError: if they do not, listing the constants that the function closes over.
    """
    program = reading.program
    outputs = returned_values(reading.ledger, program, reading.values)
    depends = any(value.data for value in outputs)
    if depends and reading.ledger.depths:
        _check_copies(reading)
        return
    closed = [f"{np.shape(x)}" for x in program.constants.values() if np.ndim(x) > 1]
    hint = (
        f" It closes over constants of shapes {', '.join(closed)}: if these are its "
        "parameters, pass them as its first argument"
        if closed
        else ""
    )
    what = "none of its parameters" if depends else "none of its inputs"
    raise ValueError(
        f"the function's outputs depend on {what}, so that it has no perms. It is "
        f"called as apply_fn(params, *inputs).{hint}"
    )


def _check_copies(reading: Reading) -> None:
    """Checks that no unused parameter has been replaced by a constant of its shape."""
    program = reading.program
    constants = [x for x in program.constants.values() if np.ndim(x) > 1]
    alike = {(np.shape(x), jnp.result_type(x)) for x in constants}
    for path, number in program.params.items():
        shape, dtype = program.avals[number].shape, program.avals[number].dtype
        if path not in reading.ledger.depths and (shape, dtype) in alike:
            raise ValueError(
                f"parameter {path!r} is not used, but the function closes over a "
                f"constant of its shape {shape}. Perms of constants cannot be found: "
                "use the parameters that are passed as the first argument, or do not "
                "pass this one"
            )
