"""Every recipe on every family of networks, and how recipes relate."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest

import zipjax
from tests.models.catalog import TINY, Network
from tests.networks import awake, collect, images, randomise, relative_error
from zipjax.models import resnet
from zipjax.trees import from_leaves, path_leaves

NETWORKS = {
    **{name: TINY[name] for name in ("mlp", "vgg-batch", "basic", "vit")},
    "swin": TINY["swin-one-window"],
    # Of images large enough that a group has more than two values in the end.
    "group": Network(
        resnet.ResNet(3, (1,), resnet.basic, width=1 / 8, groups=2),
        resnet.spec, 32, 4, (3,), 4,
    ),
}  # fmt: skip
RECIPES = {
    "permute": zipjax.permute(),
    "git_rebasin": zipjax.git_rebasin(),
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
    model = awake(net, randomise(net.shapes, 0))
    # Not every draw is found by weights alone, see `tests/recipes/test_copies.py`.
    permutations = zipjax.random_permutations(net.spec, jax.random.key(2))
    models = [model, zipjax.permute_params(model, net.spec, permutations)]
    found = case(name, models)
    assert all((moment.deviation() > 0).all() for moment in found.moments.values())
    return found


@functools.cache
def strangers(name, count=2):
    return case(name, [randomise(NETWORKS[name].shapes, seed) for seed in range(count)])


def case(name, models):
    net = NETWORKS[name]
    x = images(64, (net.side, net.side, 3))
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


@pytest.mark.parametrize("metric", ["correlation", "cosine", "inner"])
@pytest.mark.parametrize("name", ["mlp", "basic", "vit"])
def test_git_rebasin_recovers_a_permutation(name, metric):
    both = copies(name)
    found = both.match(zipjax.git_rebasin(metric=metric), seed=3)
    expected = both.match(zipjax.permute())
    for perm, assignment in expected.items():
        np.testing.assert_array_equal(found[perm], assignment, err_msg=perm)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["mlp", "group", "vit"])
def test_the_objective_of_git_rebasin_is_the_inner_product_and_never_falls(name, seed):
    both = strangers(name)
    sweeps = []
    assignments = both.match(zipjax.git_rebasin(), seed, report=sweeps.append)
    values = [sweep.objective for sweep in sweeps]
    assert [sweep.number for sweep in sweeps] == list(range(len(sweeps)))
    assert sweeps[-1].changed == 0
    assert len(values) > 2
    assert (np.diff(values) >= -1e-6 * abs(values[-1])).all()
    indices = {perm: inverse(both.spec, assignments, perm) for perm in assignments}
    first = path_leaves(both.models[0])
    second = path_leaves(zipjax.permute_params(both.models[1], both.spec, indices))
    touched = {path for p in assignments for path, _, _ in both.spec.members(p)}
    inner = sum(np.vdot(np.float64(first[p]), np.float64(second[p])) for p in touched)
    groups = {group for perm in both.spec.perms.values() for group in perm.groups}
    pairs = sum(both.spec.units(perm) for perm in set(assignments) - groups)
    assert values[-1] == pytest.approx(inner / pairs, rel=1e-4)


def inverse(spec, assignments, perm):
    """Which unit of model 1 went to every merged unit, in its own order of groups."""
    rows = np.argsort(assignments[perm][..., spec.perms[perm].size :], axis=-1)
    for axis, group in enumerate(spec.perms[perm].groups):
        size = spec.perms[group].size
        rows = rows.take(assignments[group][size:], axis)
    return rows


def dense_case(num_models, widths=(4, 6, 5, 3)):
    """A dense network in numpy: weights ``[in, out]`` and biases, and its spec."""
    rng = np.random.default_rng(num_models)
    axes, models = {}, [{} for _ in range(num_models)]
    for k, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        produced = zipjax.Axis(f"h{k}", "out") if k < len(widths) - 2 else None
        axes[f"{k}/w"] = (zipjax.Axis(f"h{k - 1}", "in") if k else None, produced)
        axes[f"{k}/b"] = (produced,)
        for model in models:
            model[f"{k}/w"] = rng.normal(size=(n_in, n_out)).astype(np.float32)
            model[f"{k}/b"] = rng.normal(size=n_out).astype(np.float32)
    perms = {"h0": zipjax.Perm(widths[1]), "h1": zipjax.Perm(widths[2])}
    return models, zipjax.PermutationSpec(axes, perms)


@pytest.mark.parametrize("swapped", [True, False])
@pytest.mark.parametrize("metric", ["correlation", "cosine", "inner"])
@pytest.mark.parametrize("num_models", [2, 3])
def test_weight_similarity_is_equation_6(num_models, metric, swapped):
    models, spec = dense_case(num_models)
    rng = np.random.default_rng(9)
    units = {"h0": 6, "h1": 5}
    # Any zip, not only a permutation: each merged unit is used.
    assignments = {
        perm: rng.permutation(np.arange(num_models * n) % n)
        for perm, n in units.items()
    }
    found = zipjax.weight_similarity(
        models, spec, "h0", assignments, metric=metric, swapped=swapped
    )
    one_hot = np.eye(5)[assignments["h1"]].reshape(num_models, 5, 5)
    average = one_hot / one_hot.sum((0, 1)) * num_models
    # The next layer's outputs are produced units: U as in the reference, or M.
    matrices = one_hot if swapped else average
    features = np.concatenate(
        [
            np.concatenate([m["0/w"], m["0/b"][None], (m["1/w"] @ p).T]).T
            for m, p in zip(models, matrices, strict=True)
        ]
    ).astype(np.float64)
    inner = features @ features.T
    scale = np.sqrt(np.diag(inner))
    expected = {
        "correlation": np.corrcoef(features),
        "cosine": inner / scale / scale[:, None],
        "inner": inner,
    }
    np.testing.assert_allclose(found, expected[metric], rtol=1e-5, atol=1e-5)


PARTS = {"alpha": 0.5, "beta": 0.5}
EQUAL = {
    "align, activations": (zipjax.mudsc(0.0, "align"), zipjax.permute()),
    "zip, activations": (zipjax.mudsc(0.0, **PARTS), zipjax.zipit(**PARTS)),
    "align, weights": (
        zipjax.mudsc(1.0, "align"),
        zipjax.git_rebasin(metric="correlation", statistics=False),
    ),
    "zip, weights": (zipjax.mudsc(1.0, **PARTS), zipjax.weight_zip(**PARTS)),
}


@pytest.mark.parametrize(("mudsc", "other"), EQUAL.values(), ids=EQUAL.keys())
@pytest.mark.parametrize("name", ["vgg-batch", "vit"])
def test_mudsc_has_both_spaces_as_its_ends(name, mudsc, other):
    both = strangers(name)
    found, expected = both.match(mudsc), both.match(other)
    for perm, assignment in expected.items():
        np.testing.assert_array_equal(found[perm], assignment, err_msg=perm)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_the_same_key_gives_the_same_merge_and_models_stay(recipe):
    both = strangers("mlp")
    before = jax.tree.map(np.array, both.models)
    once, again = both.merge(recipe, 5), both.merge(recipe, 5)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, once, again)))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, both.models)))


@pytest.mark.parametrize("name", ["mlp", "vit"])
@pytest.mark.parametrize("recipe", ["permute", "git_rebasin", "mudsc_align"])
def test_aligning_two_models_does_not_depend_on_which_comes_first(name, recipe):
    both = strangers(name)
    turned = case(name, both.models[::-1])
    expected = both.apply_fn(both.merge(RECIPES[recipe]).params(), both.x)
    found = both.apply_fn(turned.merge(RECIPES[recipe]).params(), both.x)
    assert relative_error(found, np.asarray(expected, np.float64)) < 1e-5


@pytest.mark.parametrize("count", [3, 5])
def test_aligning_with_all_models_does_not_depend_on_their_order(count):
    several = strangers("mlp", count)
    turned = case("mlp", several.models[::-1])
    outputs = {}
    for reference in ("first", "all"):
        recipe = zipjax.permute(reference=reference)
        outputs[reference] = [
            np.asarray(several.apply_fn(c.merge(recipe).params(), several.x))
            for c in (several, turned)
        ]
    assert relative_error(outputs["all"][0], np.float64(outputs["all"][1])) < 1e-5
    assert relative_error(outputs["first"][0], np.float64(outputs["first"][1])) > 1e-2


GRID = [(1.0, 1.0, 2), (0.3, 0.5, 2), (0.0, 0.0, 2), (0.5, 0.0, 3), (1.0, 0.4, 3)]


@pytest.mark.parametrize(("alpha", "beta", "count"), GRID)
@pytest.mark.parametrize("balance", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_every_unit_goes_to_one_merged_unit_of_its_group(
    name, balance, alpha, beta, count
):
    several = strangers(name, count)
    spec = several.spec
    found = several.match(zipjax.mudsc(balance, alpha=alpha, beta=beta))
    groups = {group for perm in spec.perms.values() for group in perm.groups}
    assert list(found) == list(spec.perms)
    for perm, assignment in found.items():
        size = spec.perms[perm].size
        assert assignment.shape == (*spec.group_sizes(perm), count * size)
        for row in assignment.reshape(-1, count, size):
            np.testing.assert_array_equal(np.unique(row), np.arange(size))
            if perm in groups:
                expected = np.tile(np.arange(size), (count, 1))
                np.testing.assert_array_equal(np.sort(row), expected)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_dead_constant_and_duplicate_units_give_no_nan(recipe):
    base = strangers("mlp")
    models = [jax.tree.map(np.array, model) for model in base.models]
    for model in models:
        first, second = (layer for layer in list(model["params"].values())[:2])
        first["bias"][0] = -100  # Dead after the ReLU.
        first["kernel"][:, 1], first["bias"][1] = 0, 2.5  # Constant.
        first["kernel"][:, 2] = first["kernel"][:, 3]
        first["bias"][2] = first["bias"][3]
        second["kernel"][2] = second["kernel"][3]
    pair = case("mlp", models)
    merged = pair.merge(recipe)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(merged))
    assert np.isfinite(pair.apply_fn(merged.params(), pair.x)).all()


def test_a_partial_zip_compares_the_weights_of_its_trunk_only():
    both = strangers("vgg-batch")
    recipe = zipjax.mudsc(0.7)
    expected = both.match(recipe, stop_at=2)
    deeper = dict(path_leaves(both.models[0]))
    changed = [
        p for p in deeper if p.startswith("params") and p not in both.spec.trunk(2)
    ]
    other = randomise(jax.tree.map(lambda x: x, both.models[0]), 7)
    mixed = from_leaves(
        {p: path_leaves(other)[p] if p in changed else x for p, x in deeper.items()},
        both.models[0],
    )
    moments = {
        perm: dataclasses.replace(m, source=None) for perm, m in both.moments.items()
    }
    found = zipjax.match(
        [mixed, both.models[1]],
        both.spec,
        recipe,
        moments=moments,
        stop_at=2,
        key=jax.random.key(0),
    )
    assert changed
    for perm, assignment in expected.items():
        np.testing.assert_array_equal(found[perm], assignment)


def test_the_schedule_ends_the_descent():
    both = strangers("vit")
    sweeps = []
    schedule = zipjax.Schedule(sweeps=1)
    both.match(zipjax.git_rebasin(schedule=schedule), report=sweeps.append)
    assert [sweep.number for sweep in sweeps] == [0, 1]


@pytest.mark.parametrize(
    "make",
    [zipjax.zipit, zipjax.weight_zip, lambda **parts: zipjax.mudsc(0.5, **parts)],
)
def test_widths_of_nested_perms_may_change_and_those_of_groups_not(make):
    both = strangers("vit")
    (inner, perm), *_ = [(n, p) for n, p in both.spec.perms.items() if p.groups]
    merged = both.merge(make(num_units={inner: perm.size + 2}))
    assert merged.spec.perms[inner].size == perm.size + 2
    merged.spec.validate(merged.params())
    with pytest.raises(ValueError, match=r"groups are matched one to one"):
        both.merge(make(num_units={perm.groups[0]: perm.size + 2}))


WRONG = {
    "balance": (lambda: zipjax.mudsc(1.5), r"balance = 1.5 must lie in \[0, 1\]"),
    "matching": (lambda: zipjax.mudsc(0.5, "tie"), "'tie' is unknown: .*'align' or"),
    "metric": (lambda: zipjax.Similarity(1.0, "l2"), "'l2' is unknown: choose"),
    "scale": (lambda: zipjax.mudsc(0.5, metric="inner"), "no scale to blend"),
    "alpha": (lambda: zipjax.weight_zip(alpha=-1), r"alpha = -1 must lie"),
    "schedule": (lambda: zipjax.Schedule(sweeps=0), "start at 1"),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_recipes_with_a_random_order_want_a_key():
    both = strangers("mlp")
    with pytest.raises(ValueError, match=r"'git_rebasin' .*random order: pass a PRNG"):
        zipjax.merge(both.models, both.spec, zipjax.git_rebasin())


@pytest.mark.parametrize(
    "make",
    [
        zipjax.permute,
        zipjax.git_rebasin,
        zipjax.zipit,
        zipjax.weight_zip,
        functools.partial(zipjax.mudsc, 0.5),
    ],
)
def test_unknown_references_and_metrics_are_refused(make, untyped):
    with pytest.raises(ValueError, match="reference = 'foo' is unknown: choose"):
        make(reference="foo")
    if make not in (zipjax.permute, zipjax.zipit):
        with pytest.raises(ValueError, match="metric = 'foo' is unknown: choose"):
            make(metric="foo")


@pytest.mark.parametrize(
    "options", [{"alpha": 7}, {"alpha": 0.5}, {"beta": 0.0}, {"num_units": {"h": 3}}]
)
def test_an_alignment_has_no_settings_of_a_zip(options):
    with pytest.raises(ValueError, match=r"settings of a zip.*matching='zip'"):
        zipjax.mudsc(0.5, "align", **options)
