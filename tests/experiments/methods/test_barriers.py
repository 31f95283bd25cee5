"""Barriers: none between a network and its permuted copy, once it is ordered."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import zipjax
from experiments.data.splits import Dataset, in_memory
from experiments.defaults import default
from experiments.methods.barriers import barriers
from experiments.methods.merges import Setting
from experiments.methods.runner import Runner
from experiments.parents.tasks.same import SameKind
from experiments.parents.trained import Parents
from experiments.report.barrier import Curve, Line, barrier_curves
from tests.networks import variables
from zipjax.models import mlp

OPTIONS = ConfigDict({"points": 3, "images": 20})


@pytest.fixture(scope="module")
def setting():
    """A network that is right about its images, and a copy in another order."""
    network = mlp.MLP((16, 12), 3)
    model = variables(network, (4, 4, 1), 0)
    images = np.random.default_rng(0).normal(size=(30, 4, 4, 1)).astype(np.float32)
    split = in_memory(images, np.asarray(network.apply(model, images)).argmax(1))
    kind = SameKind(
        default("", "mlp"), Dataset(split, split, 3), network, mlp.spec(network)
    )
    suite = kind.suite(jax.random.key(0))
    orders = zipjax.random_permutations(suite.spec, jax.random.key(1))
    models = [model, zipjax.permute_params(model, suite.spec, orders)]
    moments = zipjax.collect_moments(
        suite.functions, models, suite.specs, list(suite.inputs(30))
    )
    keys = {0: jax.random.key(0)}
    return Setting(Parents("twins", suite, models, "AB", keys), models, moments)


def test_a_copy_in_order_has_no_barrier(setting):
    lines = barriers(setting, Runner(10, 0), OPTIONS)
    own, *ordered = lines
    assert own.name == "own order"
    assert own.fractions.tolist() == [0, 0.5, 1]
    for line in lines:
        # Both ends are right about all images, in any order.
        np.testing.assert_allclose(line.interpolated.scores[[0, -1]], 1)
        ends = line.interpolated.losses[[0, -1]]
        np.testing.assert_allclose(ends, own.interpolated.losses[0], rtol=1e-4)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *setting.models)
    middle = setting.suite.testing(20).losses(mean, 7)[0]
    np.testing.assert_allclose(own.interpolated.losses[1], middle, rtol=1e-5)
    assert middle > 1.2 * own.interpolated.losses[0]
    assert own.interpolated.scores[1] < 1
    for line in ordered:
        np.testing.assert_allclose(
            line.interpolated.losses, own.interpolated.losses[0], rtol=1e-4
        )
        # There are no batch statistics.
        np.testing.assert_allclose(line.reset.losses, line.interpolated.losses)


def test_curves_are_drawn_as_they_were_measured():
    places = np.array([0, 0.5, 1])
    kinds = [
        Curve(np.array([0.1, k, 0.2]), np.array([0.9, k / 4, 0.8])) for k in (1, 2)
    ]
    figure = barrier_curves([Line("own order", places, *kinds)])
    losses, scores = figure.axes
    for panel, wanted in ((losses, [1, 2]), (scores, [25, 50])):
        drawn = [line.get_xydata() for line in panel.get_lines()]
        assert [line[1].tolist() for line in drawn] == [[0.5, w] for w in wanted]
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["own order", "own order, reset"]
    with pytest.raises(ValueError, match="no lines"):
        barrier_curves([])
