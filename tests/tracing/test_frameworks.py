"""The same small network in every framework; what cannot work says why."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.zoo.case import normal, random_params
from zipjax import explain
from zipjax.spec.verify import verify_spec
from zipjax.tracing.infer import infer, infer_spec

X = normal(3, 5)


def _check(apply_fn: Any, params: Any, perms: int = 2) -> None:
    params = random_params(params)
    spec = infer_spec(apply_fn, params, X)
    assert len(spec.perms) == perms
    verify_spec(apply_fn, params, spec, X, key=jax.random.key(0))


def test_linen() -> None:
    model = nn.Sequential([nn.Dense(7), nn.relu, nn.Dense(9), nn.relu, nn.Dense(3)])
    _check(model.apply, model.init(jax.random.key(0), X))


def test_nnx() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(5, 7, rngs=rngs)
            self.norm = nnx.BatchNorm(7, use_running_average=True, rngs=rngs)
            self.second = nnx.Linear(7, 9, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
            self.last = nnx.Linear(9, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = nnx.relu(self.norm(self.first(x)))
            return self.last(self.dropout(nnx.relu(self.second(x))))

    graph, params, rest = nnx.split(Model(nnx.Rngs(0)), (nnx.Param, nnx.BatchStat), ...)
    _check(lambda p, x: nnx.merge(graph, p, rest)(x), params)


def test_equinox() -> None:
    model = eqx.nn.MLP(5, 3, 8, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    _check(lambda p, x: jax.vmap(eqx.combine(p, static))(x), params)


def test_haiku() -> None:
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([7, 9, 3])(x)))
    _check(model.apply, model.init(jax.random.key(0), X))


def test_plain_function() -> None:
    def apply_fn(params: dict[str, Any], x: jax.Array) -> jax.Array:
        for layer in params["hidden"]:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return x @ params["out"]

    shapes = [(5, 7), (7, 9)]
    hidden = [{"w": np.zeros(s), "b": np.zeros(s[1])} for s in shapes]
    _check(apply_fn, {"hidden": hidden, "out": np.zeros((9, 3))})


def test_nothing_is_computed() -> None:
    model = nn.Dense(3)
    params = jax.eval_shape(model.init, jax.random.key(0), X)
    x = jax.ShapeDtypeStruct((10**9, 5), jnp.float32)
    assert not infer_spec(model.apply, params, x).perms


def _linear(params: dict[str, Any], x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"]) @ params["v"]


PARAMS = {"w": np.ones((5, 7), np.float32), "v": np.ones((7, 3), np.float32)}


def test_closing_over_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="closes over constants of shapes"):
        infer_spec(lambda p, x: _linear(PARAMS, x), PARAMS, X)
    with pytest.raises(ValueError, match="'w' is not used"):
        infer_spec(lambda p, x: _linear({**p, "w": PARAMS["w"]}, x), PARAMS, X)


@pytest.mark.parametrize("leaf", [3.5, "name", np.array(["name"]), np.ones(3, complex)])
def test_leaves_that_are_no_parameters_are_refused(leaf: Any) -> None:
    with pytest.raises(ValueError, match=r"parameter 'count' is .*: pass"):
        infer_spec(_linear, {**PARAMS, "count": leaf}, X)


@pytest.mark.parametrize(
    "leaf",
    [3, True, np.int32(3), np.ones(7, bool), jax.random.key(0), jax.random.PRNGKey(0)],
)
def test_counters_masks_and_keys_belong_to_no_perm(leaf: Any) -> None:
    spec = infer_spec(_linear, {**PARAMS, "extra": leaf}, X)
    assert spec.entries["extra"] == (None,) * np.ndim(leaf)
    assert spec.unread == {"extra"}
    assert spec.sizes == {"w": 7}


def test_a_mask_freezes_what_it_is_applied_to() -> None:
    def masked(params: dict[str, Any], x: jax.Array) -> jax.Array:
        return _linear({**params, "w": params["w"] * params["mask"]}, x)

    spec = infer_spec(masked, {**PARAMS, "mask": np.ones((5, 7), bool)}, X)
    assert not spec.perms
    assert not spec.unread
    assert "w[1]: no floating-point numbers" in explain(spec)


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot be traced .* \[\(3, 4\)\]"):
        infer_spec(_linear, PARAMS, X[:, :4])
    with pytest.raises(ValueError, match="cannot be traced"):
        infer_spec(lambda p, x: _linear(p, x) if x.sum() > 0 else x, PARAMS, X)
    with pytest.raises(ValueError, match="none of its inputs"):
        infer_spec(lambda p, x: jnp.zeros(x.shape) @ p["w"], PARAMS, X)
    with pytest.raises(ValueError, match="no parameters"):
        infer_spec(lambda p, x: x, {}, X)


def test_unused_parameters_are_frozen_and_named() -> None:
    spec = infer_spec(_linear, {**PARAMS, "aux": np.ones((7, 2))}, X)
    assert spec.entries["aux"] == (None, None)
    assert "aux[0]: not used" in explain(spec)


def test_primitives_without_a_rule_freeze_and_are_counted() -> None:
    def apply_fn(params: dict[str, Any], x: jax.Array) -> jax.Array:
        hidden, _ = jax.lax.approx_max_k(x @ params["w"], len(params["v"]))
        return hidden @ params["v"]

    result = infer(apply_fn, PARAMS, X)
    assert not result.spec.perms
    assert result.unknown == {"approx_top_k": 1}
    text = explain(result.spec)
    assert "w[1]: approx_top_k at tracing/test_frameworks.py" in text
    assert "(test_primitives_without_a_rule_freeze_and_are_counted" in text


def test_python_side_effects_leave_the_spec_alone_and_callbacks_freeze() -> None:
    seen = []

    def noting(params: dict[str, Any], x: jax.Array) -> jax.Array:
        seen.append(x.shape)
        return _linear(params, x)

    def calling(params: dict[str, Any], x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ params["w"])
        jax.debug.callback(seen.append, hidden)
        return hidden @ params["v"]

    assert infer_spec(noting, PARAMS, X) == infer_spec(_linear, PARAMS, X)
    spec = infer_spec(calling, PARAMS, X)
    assert not spec.perms
    assert "w[1]: debug_callback at tracing/test_frameworks.py" in explain(spec)
    # Only the shape of the one trace: nothing was computed.
    assert seen == [X.shape]
