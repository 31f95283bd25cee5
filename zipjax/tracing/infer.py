"""``infer_spec``: the permutation spec of any JAX function, from its jaxpr."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping

from zipjax.program.dependence import read_parameters
from zipjax.program.program import Program
from zipjax.spec.entries import Axis, Entries, Entry, Fixed, Index, axes_of
from zipjax.spec.notes import Notes
from zipjax.spec.permutation_spec import Perm, PermutationSpec
from zipjax.tracing.boundaries import read_boundaries
from zipjax.tracing.checks import check_used, checked_trace
from zipjax.tracing.node_entries import Place, map_axes, simplified
from zipjax.tracing.nodes import Node, atoms, find
from zipjax.tracing.reading import Reading
from zipjax.tracing.roles import with_roles
from zipjax.tracing.taps import Reads, Tap, Taps, read_taps
from zipjax.tracing.user_lines import describe, user_line
from zipjax.types import ApplyFn, PyTree


@dataclasses.dataclass(frozen=True)
class Inference:
    """Everything that is inferred from a function's jaxpr.

    Attributes:
      spec: the permutation spec.
      taps: the values where each perm's units are read; see ``find_taps``.
      program: the traced function, whose values the taps are.
      unknown: how often each primitive without a rule occurs.
    """

    spec: PermutationSpec
    taps: Taps
    program: Program
    unknown: Mapping[str, int]


def infer_spec(apply_fn: ApplyFn, params: PyTree, *inputs: PyTree) -> PermutationSpec:
    """Returns the permutation spec of a function, inferred from its jaxpr.

    Nothing is computed. Primitives without a rule freeze the axes that they touch, so
    that the spec is sound for any function; all perms are found in the usual
    architectures.

    >>> import jax.numpy as jnp
    >>> def mlp(params, x):
    ...     return jnp.tanh(x @ params["w1"]) @ params["w2"]
    >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 3))}
    >>> spec = infer_spec(mlp, params, jnp.ones((1, 4)))
    >>> spec.sizes
    {'w1': 8}
    >>> spec.entries["w2"]
    (Axis(perm='w1', role='in'), None)

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, in evaluation mode, returning outputs
        only (batch statistics, if returned, would count as outputs).
      params: parameter pytree, of arrays or of ``jax.ShapeDtypeStruct``.
      *inputs: the other inputs, of either kind.

    Returns:
      The spec, with the parameters in the order in which the function uses them;
      ``zipjax.explain(spec)`` says what was frozen, and why.

    Raises:
      ValueError: if a parameter is not an array of numbers or PRNG keys, if the
        function cannot be traced with these arguments, or if its outputs depend on none
        of its parameters or on none of its inputs.
    """
    return infer(apply_fn, params, *inputs).spec


def infer(apply_fn: ApplyFn, params: PyTree, *inputs: PyTree) -> Inference:
    """Returns a spec, as :func:`infer_spec` does, with the taps of its perms."""
    program = checked_trace(apply_fn, params, *inputs)
    reading = Reading(program)
    check_used(reading)
    raw, numbers = reading.raw_entries()
    sizes = {number: atom.size for atom, number in numbers.items()}
    axes = with_roles(raw, sizes, program)
    free = {number for atom, number in numbers.items() if atom.frozen is None}
    names = _names(axes, free)
    perms = {atom: names[k] for atom, k in numbers.items() if k in names}
    indices = _indices(reading, perms)
    nested = _nested_perms(reading, perms, indices)
    counts = {name: atom.size for atom, name in indices.items()}
    taps = read_taps(reading, {**perms, **indices}, nested, counts)
    index_names = {numbers[atom]: name for atom, name in indices.items()}
    spec = PermutationSpec(
        entries=_named_entries(axes, names, index_names, sizes),
        perms=nested,
        depths={path: reading.ledger.depths.get(path, 0) for path in axes},
        unread=frozenset(axes) - read_parameters(program),
        notes=Notes(
            frozen=_reasons(reading, perms),
            taps={name: _where(taps.get(name), reading) for name in nested},
        ),
    )
    found = read_boundaries(reading, perms, spec)
    spec = dataclasses.replace(spec, boundaries=found)
    return Inference(spec, taps, program, reading.ledger.unknown)


def _names(axes: Mapping[str, Entries], free: Collection[str]) -> dict[str, str]:
    """Returns names of the perms that are produced and consumed, by their numbers.

    A perm is named after the first parameter that produces it.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for path, entries in axes.items():
        for axis in (atom for entry in entries for atom in axes_of(entry)):
            roles = found.setdefault(axis.perm, {"out": [], "in": []})
            roles[axis.role].append(path)
    names: dict[str, str] = {}
    for number, roles in found.items():
        if number in free and roles["out"] and roles["in"]:
            names[number] = _unique(roles["out"][0], names.values())
    return names


def _unique(path: str, taken: Collection[str]) -> str:
    base = path.rpartition("/")[0]
    # "params", Linen's collection, does not name a layer.
    base = path if base in ("", "params") else base
    name, number = base, 2
    while name in taken:
        name, number = f"{base}.{number}", number + 1
    return name


def _indices(reading: Reading, perms: Collection[Node]) -> dict[Node, str]:
    """Returns names of what encloses perms and is none, as "path[axis number]".

    Such atoms are in a fixed order: frozen, or not consumed by parameters (the members
    of an ensemble whose outputs are averaged).
    """
    found: dict[Node, str] = {}
    wanted = {p for atom in perms for p in reading.parents[atom] if p not in perms}
    for path in reading.order:
        for number, node in enumerate(reading.axes(path)):
            for atom in map(find, atoms(node)):
                if atom in wanted:
                    found.setdefault(atom, f"{path}[{number}]")
    return found


def _named_entries(
    axes: Mapping[str, Entries],
    names: Mapping[str, str],
    indices: Mapping[str, str],
    sizes: Mapping[str, int],
) -> dict[str, Entries]:
    def rename(axis: Axis, _: Place) -> Entry:
        if axis.perm in names:
            return Axis(names[axis.perm], axis.role)
        if axis.perm in indices:
            return Index(indices[axis.perm], sizes[axis.perm])
        return Fixed(sizes[axis.perm])

    return {
        path: simplified(map_axes(entries, sizes, rename))
        for path, entries in axes.items()
    }


def _nested_perms(
    reading: Reading, perms: Mapping[Node, str], indices: Mapping[Node, str]
) -> dict[str, Perm]:
    """Returns the perms by name, with the names of what encloses them."""
    enclosing = {**perms, **indices}

    def groups(atom: Node) -> tuple[str, ...]:
        # Indices first: every one of their elements is matched on its own.
        parents = sorted(reading.parents[atom], key=lambda p: p in perms)
        return tuple(enclosing[p] for p in parents if p in enclosing)

    return {name: Perm(atom.size, groups(atom)) for atom, name in perms.items()}


def _reasons(
    reading: Reading, names: Mapping[Node, str]
) -> dict[str, tuple[str | None, ...]]:
    """Returns, for every axis, why it is frozen as a whole or in part, else None."""
    return {
        path: tuple(
            "; ".join(dict.fromkeys(_axis_reasons(reading, path, node, names))) or None
            for node in reading.axes(path)
        )
        for path in reading.order
    }


def _axis_reasons(
    reading: Reading, path: str, node: Node, names: Mapping[Node, str]
) -> Iterator[str]:
    used = path in reading.ledger.depths
    for atom in map(find, atoms(node)):
        if atom.frozen is not None:
            yield describe(atom.frozen)
        elif atom.size > 1 and atom not in names:
            yield "not both produced and consumed by parameters" if used else "not used"
        elif atom.size == node.size == 1:
            yield "a single unit"


def _where(reads: Reads | None, reading: Reading) -> str:
    """Says where a perm is read."""
    if reads is None:
        return "no value that can be read: its weights alone match it"
    last = " and ".join(_described(tap, reading) for tap in reads.last)
    return f"{last} (and {len(reads.earlier)} earlier)" if reads.earlier else last


def _described(tap: Tap, reading: Reading) -> str:
    """Returns the primitive, the shape and the line of a tap."""
    aval = reading.program.avals[tap.value]
    eqn = reading.program.all_producers().get(tap.value)
    name = "an input" if eqn is None else eqn.primitive.name
    line = None if eqn is None else user_line(eqn)
    return f"{name} {aval.str_short()}" + (f" at {line}" if line else "")
