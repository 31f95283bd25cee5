"""Models of any framework as functions of a parameter pytree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.zoo.case import Case, random_params


def haiku(network: Callable[..., Any], x: Any, perms: int) -> Case:
    """Makes a case of ``network(x, is_training)``, with statistics as parameters."""
    import haiku as hk

    model = hk.without_apply_rng(hk.transform_with_state(network))
    params, state = jax.eval_shape(
        lambda key, x: model.init(key, x, True), jax.random.key(0), x
    )
    moving, counters = _partition(state)

    def apply_fn(tree: Any, x: Any) -> Any:
        state = _combine(tree["state"], counters)
        return model.apply(tree["params"], state, x, False)[0]

    return Case(
        apply_fn, random_params({"params": params, "state": moving}), (x,), perms
    )


def nnx(
    model: Any, inputs: tuple[Any, ...], perms: int, call: Callable[..., Any]
) -> Case:
    """Makes a case of ``call(model, *inputs)`` of an NNX model."""
    from flax import nnx

    model.eval()
    graph, params, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)

    def apply_fn(params: Any, *inputs: Any) -> Any:
        return call(nnx.merge(graph, params, rest), *inputs)

    return Case(apply_fn, random_params(params), inputs, perms)


def equinox(
    model: Any, inputs: tuple[Any, ...], perms: int, call: Callable[..., Any]
) -> Case:
    """Makes a case of ``call(model, *inputs)`` of an Equinox model."""
    import equinox as eqx

    params, static = eqx.partition(
        eqx.nn.inference_mode(model),
        lambda leaf: eqx.is_inexact_array(leaf) or isinstance(leaf, _Shape),
    )

    def apply_fn(params: Any, *inputs: Any) -> Any:
        return call(eqx.combine(params, static), *inputs)

    return Case(apply_fn, random_params(params), inputs, perms)


def keras(model: Any, inputs: tuple[Any, ...], perms: int) -> Case:
    """Makes a case of a Keras model on JAX, with statistics as parameters."""
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    shapes = {v.path: _Shape(v.shape, v.dtype) for v in variables if "float" in v.dtype}

    def apply_fn(params: Any, *inputs: Any) -> Any:
        groups = (model.trainable_variables, model.non_trainable_variables)
        values = [[params.get(v.path, v.value) for v in group] for group in groups]
        return model.stateless_call(*values, *inputs, training=False)[0]

    return Case(apply_fn, random_params(shapes), inputs, perms)


def penzai(
    model: Any, inputs: tuple[Any, ...], perms: int, call: Callable[..., Any]
) -> Case:
    """Makes a case of ``call(model, *inputs)`` of a Penzai model."""
    from penzai import pz  # pyright: ignore[reportMissingImports]

    body, variables = pz.unbind_params(model, freeze=True)
    params = {variable.label: variable for variable in variables}

    def apply_fn(params: Any, *inputs: Any) -> Any:
        bound = pz.bind_variables(body, list(params.values()))
        return jax.tree.leaves(call(bound, *inputs))

    return Case(apply_fn, random_params(params), inputs, perms)


_Shape = jax.ShapeDtypeStruct


def _partition(tree: Any) -> tuple[Any, Any]:
    """Splits a pytree of shapes into numbers and zeros for counters."""

    def moving(leaf: Any) -> Any:
        return leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None

    def counter(leaf: Any) -> Any:
        return None if moving(leaf) else jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(moving, tree), jax.tree.map(counter, tree)


def _combine(first: Any, second: Any) -> Any:
    def either(a: Any, b: Any) -> Any:
        return b if a is None else a

    return jax.tree.map(either, first, second, is_leaf=lambda leaf: leaf is None)
