"""What a program's outputs depend on, and which parameters multiply its data."""

from typing import Any

from zipjax.program.program import Equation, Program, ValueId, values_of

# What these do to every unit alone, or to single rows of a table, is no product.
_NO_PRODUCTS = {
    *("add", "add_any", "sub", "mul", "div", "max", "min", "pow", "rem", "atan2"),
    *("select_n", "clamp", "nextafter", "eq", "ne", "ge", "gt", "le", "lt"),
    *("and", "or", "xor", "gather", "dynamic_slice", "concatenate", "pad"),
    *("dynamic_update_slice", "scatter", "scatter-add", "random_bits", "rng_bit"),
}


def read_parameters(program: Program) -> frozenset[str]:
    """Returns the paths of the parameters on which the outputs depend."""
    # All equations of a traced program lead to an output, or to another effect.
    read = set(values_of(program.outputs))
    for eqn in program.equations:
        read.update(values_of(eqn.operands))
    return frozenset(p for p, number in program.params.items() if number in read)


def data_values(program: Program) -> set[ValueId]:
    """Returns the values that depend on the function's inputs."""
    found = set(program.inputs)
    for eqn in program.equations:
        if found.intersection(values_of(eqn.operands)):
            found.update(eqn.results)
    return found


def multiplied_parameters(program: Program) -> list[str]:
    """Returns the paths of the parameters that meet data in a product, or in a loop.

    These are the kernels of layers, whatever is done to them before the product, which
    may also be a multiplication followed by a sum. Biases and scales, which meet data
    unit by unit, and tables read by index are left out, as are vectors.
    """
    data, found = data_values(program), set[str]()
    matrices = {p for p, k in program.params.items() if _is_matrix(program.avals[k])}
    origins: dict[ValueId, frozenset[str]] = {
        number: frozenset({path}) for path, number in program.params.items()
    }
    factors: dict[ValueId, frozenset[str]] = {}
    for eqn in program.equations:
        name, operands = eqn.primitive.name, values_of(eqn.operands)
        own = frozenset().union(*(origins.get(x, ()) for x in operands))
        if not data.intersection(operands):
            origins.update(dict.fromkeys(eqn.results, own))
        elif name not in _NO_PRODUCTS:
            found |= factors.get(operands[0], own) if name == "reduce_sum" else own
        elif name == "mul":
            factors[eqn.results[0]] = own
    return [path for path in program.params if path in found & matrices]


def _is_matrix(aval: Any) -> bool:
    return sum(size > 1 for size in aval.shape) > 1


def is_data(eqn: Equation, data: set[ValueId]) -> bool:
    """Returns whether an equation reads a value that depends on the inputs."""
    return bool(data.intersection(values_of(eqn.operands)))
