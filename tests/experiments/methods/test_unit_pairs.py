"""Units merged in pairs: those of a permuted copy keep everything."""

import jax
import numpy as np

import zipjax
from experiments.data.splits import Dataset, in_memory
from experiments.defaults import default
from experiments.methods.merges import Setting
from experiments.methods.runner import Runner
from experiments.methods.unit_pairs import unit_pairs
from experiments.parents.tasks.logits import DatasetsKind, Logits
from experiments.parents.trained import Parents
from experiments.report.unit_pairs import UnitPairs, merged_pairs
from tests.networks import variables


def setting():
    """A network, and a copy of it with its units in another order."""
    config = default("", "mlp", hidden=(7, 6, 5))
    images = np.random.default_rng(0).normal(size=(60, 4, 4, 1)).astype(np.float32)
    data = Dataset(*[in_memory(images, np.arange(60) % 3)] * 2, 3)
    suite = DatasetsKind(
        config, [("A", data, Logits(3)), ("B", data, Logits(3))]
    ).suite(jax.random.key(0))
    model = variables(suite.tasks[0].network, (4, 4, 1), 0)
    orders = zipjax.random_permutations(suite.spec, jax.random.key(1))
    models = [model, zipjax.permute_params(model, suite.spec, orders)]
    moments = zipjax.collect_moments(
        suite.functions, models, suite.specs, list(suite.inputs(30))
    )
    parents = Parents("twins", suite, models, ["A", "B"], {})
    return Setting(parents, models, moments)


def test_a_unit_and_its_copy_are_the_best_pair():
    twins_setting = setting()
    pairs = unit_pairs(twins_setting, Runner(30, 0), None)
    assert len(pairs.kept) == 6 * 6
    twins = pairs.weights > 1 - 1e-4
    assert twins.sum() == 6
    # Perms before and after are merged with their copies, so that nothing is lost.
    np.testing.assert_allclose(pairs.activations[twins], 1, atol=1e-3)
    np.testing.assert_allclose(pairs.kept[twins], 1, atol=1e-3)
    assert pairs.kept[~twins].max() < 0.999
    # Every unit of one network with every one of the other, once.
    across = twins_setting.moments[pairs.perm].correlation()[:6, 6:]
    found, expected = np.sort(pairs.activations), np.sort(np.ravel(across))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_star_is_on_the_pair_of_which_most_is_left():
    pairs = UnitPairs(
        "h", *np.array([[0.1, 0.9, 0.5], [0.2, 0.3, 0.8], [0.1, 0.7, 0.4]])
    )
    (axes, _) = merged_pairs(pairs).axes
    (star,) = axes.lines
    assert star.get_xydata().tolist() == [[0.9, 0.3]]
    (points,) = axes.collections
    assert sorted(points.get_array().tolist()) == [0.1, 0.4, 0.7]
