"""Statistics that BatchNorm keeps: their names, and the whole way in NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zipjax
from tests.networks import images, relative_error
from zipjax.trees import path_leaves, running_stats

EPSILON = 1e-5


@pytest.mark.parametrize(
    ("paths", "pairs"),
    [
        # Linen, NNX, and the values of NNX's variables.
        (["batch_stats/a/mean", "batch_stats/a/var", "params/a/scale"],
         [("batch_stats/a/mean", "batch_stats/a/var")]),
        (["b/var", "b/mean", "a/var", "a/mean", "b/bias"],
         [("a/mean", "a/var"), ("b/mean", "b/var")]),
        (["bn/mean/value", "bn/var/value"], [("bn/mean/value", "bn/var/value")]),
        (["mean", "var"], [("mean", "var")]),
        # Haiku.
        (["bn/~/mean_ema/average", "bn/~/var_ema/average", "bn/~/mean_ema/counter"],
         [("bn/~/mean_ema/average", "bn/~/var_ema/average")]),
        # One without the other, names further up, and parts of names.
        (["a/mean", "b/var"], []),
        (["mean/a/kernel", "var/a/kernel"], []),
        (["a/mean_shift", "a/var_shift"], []),
        ([], []),
    ],
)  # fmt: skip
def test_pairs_are_found_by_their_names(paths, pairs):
    assert running_stats(paths) == pairs


class Net(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.hidden = nnx.Linear(6, 9, rngs=rngs)
        self.bn = nnx.BatchNorm(9, use_running_average=True, epsilon=EPSILON, rngs=rngs)
        self.head = nnx.Linear(9, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.bn(self.hidden(x))))


GRAPH, _ = nnx.split(Net(0))
SHIFT = np.linspace(-1, 2, 6)
X = (SHIFT + 2 * images(200, (6,))).astype(np.float32)
BATCHES = [X[:100], X[100:]]


def apply_fn(state, x):
    return nnx.merge(GRAPH, state)(x)


def state_of(seed):
    """A network's state, with scales and shifts that are no two alike."""
    _, state = nnx.split(Net(seed))
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(state)
    noise = [jnp.asarray(rng.uniform(0.1, 0.5, x.shape), x.dtype) for x in leaves]
    return jax.tree.unflatten(structure, jax.tree.map(jnp.add, leaves, noise))


def numpy_leaves(state):
    """Leaves by path without the name that NNX's variables give their value."""
    return {
        path.removesuffix("/value"): np.float64(leaf)
        for path, leaf in path_leaves(state).items()
    }


def numpy_stats(state, batches):
    leaves = numpy_leaves(state)
    values = [x @ leaves["hidden/kernel"] + leaves["hidden/bias"] for x in batches]
    stats = (np.mean, np.var)
    return [np.mean([stat(v, axis=0) for v in values], axis=0) for stat in stats]


def check_stats(state, batches):
    leaves = numpy_leaves(state)
    for name, wanted in zip(("mean", "var"), numpy_stats(state, batches), strict=True):
        assert relative_error(leaves[f"bn/{name}"], wanted) < 1e-5


def test_nnx_names_its_statistics():
    pairs = running_stats(path_leaves(state_of(1)))
    assert [[name.removesuffix("/value") for name in pair] for pair in pairs] == [
        ["bn/mean", "bn/var"]
    ]


def test_statistics_of_an_nnx_network():
    state = state_of(1)
    reset = zipjax.reset_batch_stats(apply_fn, state, BATCHES)
    check_stats(reset, BATCHES)
    assert jax.tree.structure(reset) == jax.tree.structure(state)
    before, after = numpy_leaves(state), numpy_leaves(reset)
    for path in set(before) - {"bn/mean", "bn/var"}:
        np.testing.assert_array_equal(after[path], before[path])


def test_the_whole_way_of_nnx_networks_with_batch_norm():
    model, other = (
        zipjax.reset_batch_stats(apply_fn, state_of(seed), BATCHES) for seed in (1, 2)
    )
    spec = zipjax.infer_spec(apply_fn, model, X[:2])
    (perm,) = spec.sizes
    order = np.random.default_rng(0).permutation(9)
    copy = zipjax.permute_params(model, spec, {perm: order})
    expected = apply_fn(model, X)
    for models, same in (([model, copy], True), ([model, other], False)):
        moments = zipjax.collect_moments(
            apply_fn, models, spec, BATCHES, devices=jax.local_devices()[:1]
        )
        merged = zipjax.merge(models, spec, zipjax.permute(), moments=moments)
        reset = zipjax.reset_batch_stats(apply_fn, merged, BATCHES)
        check_stats(reset.params(), BATCHES)
        outputs = zipjax.apply(apply_fn, reset, X)
        assert (relative_error(outputs, expected) < 1e-4) == same
    # Averaged statistics are not those of the averaged network.
    with pytest.raises(AssertionError):
        check_stats(merged.params(), BATCHES)
