"""Every recipe on every family of networks, and how recipes relate."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.models.catalog import TINY, Network
from tests.networks import collect, images, randomise, relative_error
from zipjax.models import resnet
from zipjax.trees import path_leaves

NETWORKS = {
    **{name: TINY[name] for name in ("mlp", "vgg-batch", "basic", "vit", "swin")},
    # Of images large enough that a group has more than two values in the end.
    "group": Network(
        resnet.ResNet(3, (1, 1), width=1 / 8, groups=2),
        resnet.spec, 32, 14, (1, 4, 7), 8,
    ),
}  # fmt: skip
RECIPES = {
    "permute": zipjax.permute(),
    "git_rebasin": zipjax.git_rebasin(),
    "git_rebasin, cosine": zipjax.git_rebasin(metric="cosine"),
    "zipit": zipjax.zipit(),
    "weight_zip": zipjax.weight_zip(beta=0.0),
    "mudsc_align": zipjax.mudsc(0.5, "align"),
    "mudsc_zip": zipjax.mudsc(0.5, beta=0.0),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Two networks, their spec and the moments of their units."""

    apply_fn: Any
    models: list[Any]
    spec: zipjax.PermutationSpec
    moments: dict[str, zipjax.Moments]
    x: np.ndarray

    def merge(self, recipe, seed=0, **options):
        key = jax.random.key(seed)
        return zipjax.merge(
            self.models, self.spec, recipe, moments=self.moments, key=key, **options
        )

    def match(self, recipe, seed=0, **options):
        key = jax.random.key(seed)
        return zipjax.match(
            self.models, self.spec, recipe, moments=self.moments, key=key, **options
        )


@functools.cache
def copies(name):
    """A network and a copy of it with its units and groups reordered."""
    net = NETWORKS[name]
    model = randomise(net.shapes, 0)
    permutations = zipjax.random_permutations(net.spec, jax.random.key(1))
    models = [model, zipjax.permute_params(model, net.spec, permutations)]
    return case(name, models)


@functools.cache
def strangers(name, count=2):
    return case(name, [randomise(NETWORKS[name].shapes, seed) for seed in range(count)])


def case(name, models):
    net = NETWORKS[name]
    x = images(32, (net.side, net.side, 3))
    moments = collect(net.model.apply, models, net.spec, x)
    return Case(jax.jit(net.model.apply), models, net.spec, moments, x)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_and_its_permuted_copy_merge_to_the_network(name, recipe):
    both = copies(name)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, both.models), strict=True)
    )
    expected = np.asarray(both.apply_fn(both.models[0], both.x), np.float64)
    merged = both.merge(recipe)
    assert relative_error(both.apply_fn(merged.params(), both.x), expected) < 1e-5
