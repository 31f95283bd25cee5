"""What coordinate ascent computes again, and its objective, on small networks."""

import itertools

import numpy as np
import pytest

import zipjax
from tests.models.catalog import TINY
from tests.networks import collect, dense_params, dense_spec, images, randomise
from zipjax.merging.matrices import merged_units
from zipjax.merging.networks import Networks
from zipjax.recipes import problem as problem_module
from zipjax.recipes.problem import MatchingProblem
from zipjax.trees import path_leaves

WIDTHS = (3, 6, 5, 7, 2)
SPEC = dense_spec(WIDTHS)
MODELS = [dense_params(WIDTHS, seed) for seed in range(2)]


def problem_of(recipe, models=MODELS, spec=SPEC, moments=None):
    return MatchingProblem.of(Networks.of(models, spec), recipe, moments)


@pytest.fixture
def compared(monkeypatch):
    """The perms whose weights are compared, in a list."""
    seen = []

    def remember(models, spec, perm, *args, **options):
        seen.append(perm)
        return weight_rows(models, spec, perm, *args, **options)

    weight_rows = problem_module.weight_rows
    monkeypatch.setattr(problem_module, "weight_rows", remember)
    return seen


def turned(matched, perm):
    """The same matching, but for one perm."""
    size = len(matched[perm]) // 2
    return matched | {perm: np.r_[np.arange(size), np.roll(np.arange(size), 1)]}


def test_a_perm_is_matched_again_only_if_a_neighbour_changed(compared):
    problem = problem_of(zipjax.weight_zip())
    start = problem.start()
    assert not compared
    first = {perm: problem.rematch(perm, start)[perm] for perm in SPEC.perms}
    assert compared == ["h0", "h1", "h2"]
    beside = {"h0": {"h1"}, "h1": {"h0", "h2"}, "h2": {"h1"}}
    for changed, perm in itertools.product(SPEC.perms, SPEC.perms):
        # Equal assignments in other arrays are no change.
        same = {p: x.copy() for p, x in start.items()}
        problem.rematch(perm, same)
        compared.clear()
        again = problem.rematch(perm, turned(same, changed))
        assert compared == [perm] * (changed in beside[perm])
        if changed not in beside[perm]:
            np.testing.assert_array_equal(again[perm], first[perm])


def test_a_perms_part_of_the_objective_depends_on_it_and_its_neighbours(compared):
    problem = problem_of(zipjax.weight_zip())
    start = problem.start()
    before = problem.objective(start)
    assert compared == ["h0", "h1", "h2"]
    compared.clear()
    assert problem.objective(dict(start)) == before
    assert not compared
    after = problem.objective(turned(start, "h0"))
    assert compared == ["h0", "h1"]
    fresh = problem_of(zipjax.weight_zip()).objective(turned(start, "h0"))
    assert after == fresh != before


@pytest.mark.parametrize("balance", [0.3, 1.0])
@pytest.mark.parametrize("metric", ["correlation", "cosine"])
@pytest.mark.parametrize("name", ["mlp", "vit", "resnet20-group"])
def test_the_objective_is_the_mean_similarity_of_matched_units(name, metric, balance):
    net = TINY[name]
    spec, x = net.spec, images(16, (net.side, net.side, 3))
    models = [randomise(net.shapes, seed) for seed in range(2)]
    moments = None
    if balance < 1:
        moments = collect(net.model.apply, models, spec, x)
    recipe = zipjax.mudsc(balance, metric=metric)
    problem = problem_of(recipe, models, spec, moments)
    matched = problem.start()
    leaves = [
        {p: leaf for p, leaf in path_leaves(own).items() if "batch_stats" not in p}
        for own in models
    ]
    values = []
    for perm in problem.networks.perms:
        weights = zipjax.weight_similarity(leaves, spec, perm, matched, metric=metric)
        if weights is None:
            continue  # Groups are compared by their units.
        similarity = balance * np.float64(weights)
        if moments is not None:
            similarity += (1 - balance) * np.float64(moments[perm].correlation())
        units = merged_units(matched, spec, perm, 2)
        values += [
            similarity[i, j]
            for i, j in itertools.combinations(range(len(units)), 2)
            if units[i] == units[j]
        ]
    assert problem.objective(matched) == pytest.approx(np.mean(values), abs=1e-6)
