"""Specs are not taken on trust: random permutations verify them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from zipjax.arguments import (
    check_function,
    check_key,
    check_kind,
    is_whole,
    wrong,
)
from zipjax.spec.blocks import map_atoms, numpy_of
from zipjax.spec.entries import Axis, Entries, Entry, atom_name, entry_names
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import (
    check_same_keys,
    from_leaves,
    is_traced,
    is_weight,
    not_finite,
    path_leaves,
    summary,
)
from zipjax.types import ApplyFn, Array, PyTree, SpecError

Indices: TypeAlias = Int[np.ndarray, "*_groups _units"]
Permutations = Mapping[str, Indices]


def random_permutations(spec: PermutationSpec, key: Array) -> dict[str, np.ndarray]:
    """Returns random permutations ``[*groups, units]`` of every perm, one per group."""
    # On the host: JAX would compile a program for the shape of every perm.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return {
        name: rng.permuted(
            np.broadcast_to(np.arange(perm.size), (*spec.group_sizes(name), perm.size)),
            axis=-1,
        )
        for name, perm in spec.perms.items()
    }


def permute_params(
    params: PyTree, spec: PermutationSpec, permutations: Permutations
) -> PyTree:
    """Returns a network with its units reordered; its function stays the same.

    >>> from zipjax.spec.permutation_spec import Perm
    >>> entries = {"w1": (None, Axis("h", "out")), "w2": (Axis("h", "in"), None)}
    >>> spec = PermutationSpec(entries, {"h": Perm(3)})
    >>> params = {"w1": np.array([[1, 2, 3]]), "w2": np.array([[10], [20], [30]])}
    >>> permuted = permute_params(params, spec, {"h": np.array([2, 0, 1])})
    >>> permuted["w1"].tolist(), permuted["w2"].tolist()
    ([[3, 1, 2]], [[30], [10], [20]])

    Args:
      params: parameter pytree.
      spec: the permutation spec.
      permutations: ``{perm: indices}``; new unit k is old unit ``indices[k]``, or, of a
        nested perm, old unit ``indices[*groups, k]``, with the groups in their old
        order. Perms that are left out keep their order.

    Returns:
      The parameters with reordered units.

    Raises:
      ValueError: if the spec does not fit the parameters, has no such perm, or if
        indices are no permutations of a perm's units.
    """
    check_kind("spec", spec, PermutationSpec)
    check_kind("permutations", permutations, Mapping)
    spec.validate(params)
    _check_permutations(spec, permutations)

    def depth(entry: Entry) -> int:
        return len(spec.perms[entry.perm].groups) if isinstance(entry, Axis) else 0

    def reorder(array: Any, entries: Entries) -> Any:
        places = {atom_name(entry): k for k, entry in enumerate(entries)}
        # Units first, then their groups: indices refer to the groups' old order.
        for k in sorted(range(array.ndim), key=lambda k: -depth(entries[k])):
            if isinstance(entry := entries[k], Axis) and entry.perm in permutations:
                groups = spec.perms[entry.perm].groups
                axes = [*(places[group] for group in groups), k]
                own = np.asarray(permutations[entry.perm])
                indices = _spread(own, axes, array.ndim)
                array = numpy_of(array).take_along_axis(array, indices, axis=k)
        return array

    def reordered(path: str, leaf: Any) -> Any:
        entries = spec.entries[path]
        if not entry_names(entries):  # Of any dtype, such as a PRNG key.
            return jnp.asarray(leaf)
        if is_traced(leaf) or not getattr(leaf, "is_fully_addressable", True):
            return map_atoms(leaf, entries, spec.sizes, reorder)
        # On the host: JAX would compile a program for every shape.
        found = map_atoms(np.asarray(leaf), entries, spec.sizes, reorder)
        stays = getattr(leaf, "committed", False)
        return jax.device_put(found, leaf.sharding if stays else None)

    leaves = {path: reordered(path, x) for path, x in path_leaves(params).items()}
    return from_leaves(leaves, params)


def verify_spec(
    apply_fn: ApplyFn,
    params: PyTree,
    spec: PermutationSpec,
    *inputs: PyTree,
    key: Array,
    trials: int = 3,
    tolerance: float | None = None,
) -> float:
    """Checks a spec against a function: reordering units must not change the outputs.

    Parameters at their initial values can hide mistakes (norm scales of 1, biases and
    means of 0): verify trained or randomised ones.

    A spec does not depend on precision: parameters and inputs in half precision are
    verified in float32, if the function runs with these.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``.
      params: parameter pytree.
      spec: the spec to verify.
      *inputs: inputs of ``apply_fn``.
      key: PRNG key for the permutations.
      trials: number of random draws.
      tolerance: largest change allowed, relative to the largest output; by default
        1e-5, or 4 times the rounding of the coarsest dtype that the function computes
        in (4 * 2^-7 in bfloat16).

    Returns:
      The largest relative change of an output.

    Raises:
      ValueError: if ``trials`` is less than 1.
      SpecError: if the spec has no perms, if the outputs change, if parameters or
        outputs are not finite, or if nothing is verified: there are no outputs, they
        are constant or do not depend on the parameters that have units, or permuting a
        perm changes no parameter.
    """
    if not is_whole(trials) or trials < 1:
        raise ValueError(f"trials = {trials!r}: pass a whole number, at least 1")
    check_function("apply_fn", apply_fn)
    check_kind("spec", spec, PermutationSpec)
    check_key(key)
    check_any_perms(spec)
    _check_parameters(params)
    params, inputs = _widened(apply_fn, params, inputs)
    if tolerance is None:
        tolerance = _default_tolerance(apply_fn, params, *inputs)
    expected = _outputs(_run(apply_fn, params, *inputs))
    worst = 0.0
    for trial_key in jax.random.split(key, trials):
        found = _permuted_outputs(apply_fn, params, spec, inputs, trial_key)
        worst = max(worst, _relative_error(expected, found))
        if not worst <= tolerance:
            raise SpecError(_diagnosis(worst, tolerance))
    _check_informative(apply_fn, params, spec, inputs, expected)
    return worst


def _permuted_outputs(
    apply_fn: ApplyFn,
    params: PyTree,
    spec: PermutationSpec,
    inputs: tuple[PyTree, ...],
    key: Array,
) -> list[np.ndarray]:
    """Returns the outputs with reordered units; the copy is gone when it returns."""
    permutations = random_permutations(spec, key)
    permuted = permute_params(params, spec, permutations)
    _check_moved(params, permuted, spec, permutations)
    return _outputs(_run(apply_fn, permuted, *inputs))


def check_any_perms(spec: PermutationSpec) -> None:
    """Checks that there is anything to reorder, match or verify.

    Raises:
      SpecError: if the spec has no perm, saying what may be the reason.
    """
    if not spec.perms:
        raise SpecError(
            "the spec has no perms: by it, no units of this network can be reordered. "
            "Either there are no hidden units (only zipjax.average() merges such "
            "models), or the function hides them. Pass infer_spec a function in "
            "evaluation mode (in training mode, statistics of the batch and dropout "
            "are no part of the network), that returns its outputs only (no mutable "
            "collections, no hidden values), and that uses the parameters which it is "
            "passed, not those it closes over. zipjax.explain(spec) says what froze "
            "every axis"
        )


def _check_parameters(params: PyTree) -> None:
    if guilty := not_finite(path_leaves(params)):
        raise SpecError(
            f"parameters {summary(guilty)} are not finite (NaN or infinity): nothing "
            "can be verified. Verify parameters that are"
        )


def _widened(
    apply_fn: ApplyFn, params: PyTree, inputs: tuple[PyTree, ...]
) -> tuple[PyTree, tuple[PyTree, ...]]:
    """Returns the arguments with half precision as float32, if they still run."""
    wide, wide_inputs = jax.tree_util.tree_map(_widened_leaf, (params, inputs))
    try:
        jax.eval_shape(apply_fn, wide, *wide_inputs)
    except Exception:  # Whatever the user's function raises: it asks for its dtypes.
        return params, inputs
    return wide, wide_inputs


def _widened_leaf(leaf: Any) -> Any:
    half = is_weight(leaf) and jnp.finfo(leaf.dtype).bits < 32
    return jnp.asarray(leaf, jnp.float32) if half else leaf


def _run(apply_fn: ApplyFn, *arguments: PyTree) -> PyTree:
    # Accelerators round the factors of products by default.
    with jax.default_matmul_precision("highest"):
        return jax.jit(apply_fn)(*arguments)


def _default_tolerance(apply_fn: ApplyFn, *arguments: PyTree) -> float:
    jaxpr = jax.make_jaxpr(apply_fn)(*arguments).jaxpr
    return max([1e-5, *(4 * float(jnp.finfo(x).eps) for x in _float_dtypes(jaxpr))])


def _float_dtypes(jaxpr: Any) -> set[Any]:
    """Returns the floating-point dtypes of all values, those in calls included."""
    found = set()
    for eqn in jaxpr.eqns:
        found |= {x.aval.dtype for x in eqn.outvars if is_weight(x.aval)}
        for bodies in eqn.params.values():
            for body in bodies if isinstance(bodies, tuple) else (bodies,):
                inner = getattr(body, "jaxpr", body)
                found |= _float_dtypes(inner) if hasattr(inner, "eqns") else set()
    return found


def _spread(indices: Indices, axes: Sequence[int], rank: int) -> Int[np.ndarray, "..."]:
    """Returns ``indices`` with its axes moved to ``axes`` of an array of this rank.

    For example, indices ``[2, 3]`` become ``[1, 3, 1, 2]`` for axes 3 and 1 of 4.
    """
    shape = [1] * rank
    for axis, size in zip(axes, indices.shape, strict=True):
        shape[axis] = size
    return indices.transpose(np.argsort(axes)).reshape(shape)


def _outputs(tree: PyTree) -> list[np.ndarray]:
    outputs = _exact(tree)
    if not any(map(np.size, outputs)) or not all(np.isfinite(x).all() for x in outputs):
        raise SpecError(
            "the function's outputs are empty or not finite: nothing can be verified. "
            "Check the inputs for NaN"
        )
    return outputs


def _exact(tree: PyTree) -> list[np.ndarray]:
    """Returns the arrays of a pytree in double precision, complex ones as such."""
    leaves = map(np.asarray, jax.tree_util.tree_leaves(tree))
    return [x.astype(complex if np.iscomplexobj(x) else float) for x in leaves]


def _check_informative(
    apply_fn: ApplyFn,
    params: PyTree,
    spec: PermutationSpec,
    inputs: tuple[PyTree, ...],
    expected: list[np.ndarray],
) -> None:
    """Checks that the outputs would show a mistake in the spec."""
    remedy = (
        "so nothing is verified. Verify trained or random parameters on varied data"
    )
    values = [x for x in expected if x.size]
    if all(x.size > 1 and (x == x.flat[0]).all() for x in values):
        raise SpecError(
            f"the outputs are constant ({[x.flat[0].item() for x in values]}), {remedy}"
        )
    rng, leaves = np.random.default_rng(0), path_leaves(params)

    def uneven(leaf: Any) -> Array:
        # Not one factor for all: normalised outputs do not depend on that.
        factors = rng.random(leaf.shape, np.float32) + np.float32(0.5)
        return jnp.asarray((np.asarray(leaf) * factors).astype(leaf.dtype))

    scaled = {
        path: uneven(leaf)
        for path, leaf in leaves.items()
        if is_weight(leaf) and entry_names(spec.entries[path])
    }
    found = _exact(_run(apply_fn, from_leaves({**leaves, **scaled}, params), *inputs))
    if all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True)):
        raise SpecError(
            f"the outputs do not depend on {summary(scaled)}, which hold the units, "
            + remedy
        )


def _check_permutations(spec: PermutationSpec, permutations: Permutations) -> None:
    check_same_keys(
        "permutations are given for perms that the spec does not have",
        set(permutations) & set(spec.perms),
        permutations,
        f"Its perms are {list(spec.perms)}.",
    )
    for name, indices in permutations.items():
        try:
            size, found = spec.perms[name].size, np.asarray(indices)
        except ValueError:  # Rows of several lengths.
            raise wrong(f"permutations[{name!r}]", indices) from None
        shape = (*spec.group_sizes(name), size)
        whole = np.issubdtype(found.dtype, np.integer) and found.shape == shape
        if not whole or (np.sort(found, -1) != np.arange(size)).any():
            raise ValueError(
                f"the indices of perm {name!r} are {found.dtype}{list(found.shape)}, "
                f"{np.array2string(found, threshold=20)}: pass permutations of "
                f"0..{size - 1}, as integers {list(shape)}"
            )


def _relative_error(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    pairs = [(a, b) for a, b in zip(expected, found, strict=True) if a.size]
    return max(
        (np.abs(a - b).max() / max(np.abs(a).max(), 1e-30) for a, b in pairs),
        default=0.0,
    )


def _check_moved(
    params: PyTree, permuted: PyTree, spec: PermutationSpec, permutations: Permutations
) -> None:
    before, after = path_leaves(params), path_leaves(permuted)
    for perm, indices in permutations.items():
        if (indices == np.arange(indices.shape[-1])).all():
            continue
        paths = {path for path, _, _ in spec.members(perm)}
        if all(np.array_equal(before[path], after[path]) for path in paths):
            raise SpecError(
                f"permuting {perm!r} moves none of its members {sorted(paths)}: their "
                "values are all equal, so nothing is verified. Randomise them first"
            )


def _diagnosis(error: float, tolerance: float) -> str:
    return (
        f"permuting units changes the outputs by {error:.3g} of their largest value "
        f"(tolerance {tolerance:.3g}): the spec does not describe this function. To "
        "find the wrong entry, verify one perm at a time with permute_params"
    )
