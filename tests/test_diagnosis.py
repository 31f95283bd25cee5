"""The diagnosis of merged models, against least squares on the activations."""

import jax
import numpy as np
import pytest

import zipjax
from tests.networks import (
    dense_apply,
    dense_params,
    dense_spec,
    images,
    variables,
)
from zipjax.models import resnet

WIDTHS = (6, 9, 7, 3)
SPEC = dense_spec(WIDTHS)
MODELS = [dense_params(WIDTHS, seed) for seed in (0, 1)]
X = images(400, (6,))


def hidden(params, depth):
    """The values after a layer of the plain network, in float64."""
    x = X.astype(np.float64)
    for layer in params["layers"][:depth]:
        weight, bias = (np.asarray(layer[n], np.float64) for n in ("w", "b"))
        x = np.maximum(x @ weight + bias, 0)
    return x


def share(merged, model, depth):
    """What least squares predicts of a model's standardised units."""
    sources, targets = (hidden(own, depth) for own in (merged, model))
    sources = np.hstack([sources, np.ones((len(X), 1))])
    targets = targets[:, targets.std(0) > 1e-6]
    targets = (targets - targets.mean(0)) / targets.std(0)
    found = np.linalg.lstsq(sources, targets, rcond=1e-6)[0]
    return 1 - np.square(targets - sources @ found).mean()


def averaged(models=MODELS, **options):
    return zipjax.merge(models, SPEC, zipjax.average(), **options)


def diagnosed(merged, models=MODELS):
    return zipjax.diagnose(dense_apply, models, merged, [X], positions="all")


def test_shares_are_those_of_least_squares():
    merged = averaged()
    found = diagnosed(merged)
    assert [own.perm for own in found.perms] == ["h0", "h1"]
    for depth, own in enumerate(found.perms, 1):
        assert own.depth == depth
        expected = [share(merged.params(), model, depth) for model in MODELS]
        np.testing.assert_allclose(own.explained, expected, atol=2e-4)
        variances = [hidden(x, depth).var(0).mean() for x in (merged.params(), *MODELS)]
        ratio = variances[0] / np.mean(variances[1:])
        np.testing.assert_allclose(own.variance, ratio, rtol=1e-4)
    assert max(max(own.explained) for own in found.perms) < 0.9


@pytest.mark.parametrize("groups", [None, 2])
def test_nothing_is_lost_in_the_merge_of_permuted_copies(groups):
    net = resnet.ResNet20(3, width=0.5, groups=groups, blocks=1)
    spec, x = resnet.spec(net), images(100, (8, 8, 3))
    model = variables(net, (8, 8, 3), 0)
    permutations = zipjax.random_permutations(spec, jax.random.key(0))
    models = [model, zipjax.permute_params(model, spec, permutations)]
    moments = zipjax.collect_moments(net.apply, models, spec, [x])
    merged = zipjax.merge(models, spec, zipjax.permute(), moments=moments)
    found = zipjax.diagnose(net.apply, models, merged, [x])
    assert [own.perm for own in found.perms] == list(spec.perms)
    for own in found.perms:
        np.testing.assert_allclose(own.explained, 1, atol=1e-3)
        np.testing.assert_allclose(own.variance, 1, rtol=1e-3)
    assert [own.cut for own in found.cuts] == list(spec.cuts)


def test_a_cut_costs_its_trunk_and_every_head():
    first, last = diagnosed(averaged()).cuts
    a, b, c = 6 * 9, 9 * 7, 7 * 3
    np.testing.assert_allclose(first.cost, (a + 2 * (b + c)) / (a + b + c))
    np.testing.assert_allclose(last.cost, (a + b + 2 * c) / (a + b + c))
    assert (first.cut, last.cut) == SPEC.cuts


def test_the_recommended_cut_keeps_most_within_the_budget():
    found = diagnosed(averaged())
    first, last = found.cuts
    assert first.explained > last.explained
    assert found.recommended(2.0) == first.cut
    assert found.recommended(last.cost) == last.cut
    with pytest.raises(ValueError, match=r"no cut costs 1.01 runs .* costs 1\.1"):
        found.recommended(1.01)


def test_a_partial_zip_is_diagnosed_up_to_its_cut():
    found = diagnosed(averaged(stop_at=1))
    assert [own.perm for own in found.perms] == ["h0"]
    assert [own.cut.number for own in found.cuts] == [1]
    whole = diagnosed(averaged()).perms[0]
    np.testing.assert_allclose(found.perms[0].explained, whole.explained, atol=1e-6)


def test_text_names_every_perm_and_cut():
    text = str(diagnosed(averaged()))
    assert all(f"\n{perm} " in f"\n{text}" for perm in SPEC.perms)
    assert all(f"{cut.number} {cut.name} " in text for cut in SPEC.cuts)


def test_a_dead_merged_network_keeps_nothing():
    merged = averaged()
    dead = {path: np.zeros_like(leaf) for path, leaf in merged.trunk.items()}
    found = diagnosed(zipjax.Merged(dead, (), SPEC, merged.structure, merged.origin))
    for own in found.perms:
        assert own.explained == (0, 0)
        assert own.variance == 0


def test_merged_models_that_cannot_be_diagnosed_are_refused():
    moments = zipjax.collect_moments(dense_apply, MODELS, SPEC, [X])
    wide = zipjax.merge(
        MODELS, SPEC, zipjax.zipit(num_units={"h0": 11}), moments=moments
    )
    with pytest.raises(ValueError, match=r"\{'h0': 11\}: diagnose a merge without"):
        diagnosed(wide)
    with pytest.raises(ValueError, match="was made from 2 models, but these are 1"):
        diagnosed(averaged(), MODELS[:1])
    with pytest.raises(ValueError, match="merged is a dict"):
        diagnosed(MODELS[0])
