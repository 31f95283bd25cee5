"""Networks of other packages, as they come."""

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import pytest

from tests.zoo.case import normal, random_params
from zipjax.tracing import infer_spec
from zipjax.verify import verify_spec

HAIKU = {
    # Four streams and eight blocks.
    "ResNet18": (lambda: hk.nets.ResNet18(10), 12),
    # Four streams and the stem, and two perms in each of sixteen blocks.
    "ResNet50": (lambda: hk.nets.ResNet50(10), 37),
    # The stem and thirteen pointwise convolutions.
    "MobileNetV1": (lambda: hk.nets.MobileNetV1(num_classes=10), 14),
}


@pytest.mark.parametrize("name", HAIKU)
def test_haiku(name: str) -> None:
    make, perms = HAIKU[name]
    x = normal(2, 32, 32, 3)
    model = hk.without_apply_rng(hk.transform_with_state(lambda x, t: make()(x, t)))
    params, state = jax.eval_shape(
        lambda key, x: model.init(key, x, True), jax.random.key(0), x
    )
    moving, counters = eqx.partition(
        state, lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    counters = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), counters)

    def apply_fn(params: Any, x: jax.Array) -> jax.Array:
        state = eqx.combine(params["state"], counters)
        return model.apply(params["params"], state, x, False)[0]

    tree = random_params({"params": params, "state": moving})
    spec = infer_spec(apply_fn, tree, x)
    assert len(spec.perms) == perms
    if name != "ResNet50":
        verify_spec(apply_fn, tree, spec, x, key=jax.random.key(0), trials=1)
