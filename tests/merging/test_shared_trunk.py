"""Merged models whose heads are different functions after one trunk."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import (
    collect,
    dense_apply,
    dense_params,
    dense_spec,
    flops,
    images,
    random_permutations,
    randomise,
    relative_error,
    variables,
)
from zipjax.trees import path_leaves


class Encoder(nn.Module):
    """Two convolutions and what lies between them, for skip connections."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), name="conv1")(x)
        x = skip = nn.relu(nn.BatchNorm(True, name="norm")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.relu(nn.Conv(8, (3, 3), name="conv2")(x)), skip


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        x, _ = Encoder(name="encoder")(x)
        x = nn.relu(nn.Dense(7, name="hidden")(x.mean((1, 2))))
        return nn.Dense(3, name="head")(x)


class Segmenter(nn.Module):
    """Its last layer reads the first one's units again, before they are pooled."""

    @nn.compact
    def __call__(self, x):
        x, skip = Encoder(name="encoder")(x)
        x = nn.relu(nn.ConvTranspose(5, (2, 2), (2, 2), name="up")(x))
        return nn.Conv(2, (1, 1), name="pixels")(jnp.concatenate([x, skip], -1))


SHAPE = (8, 8, 3)
NETS = (Classifier(), Segmenter())
FUNCTIONS = [net.apply for net in NETS]
X = images(16, SHAPE)


def copied(source, target, spec, seed):
    """Gives a network the encoder of another one, with its units reordered."""
    leaves = path_leaves(target)
    common = {p: x for p, x in path_leaves(source).items() if "/encoder/" in p}
    mixed = {**leaves, **common}
    params = jax.tree.unflatten(jax.tree.structure(target), [mixed[p] for p in leaves])
    return zipjax.permute_params(params, spec, random_permutations(spec, seed))


@pytest.fixture(scope="module")
def nets():
    """A classifier, and a segmenter with its encoder, but for the order of units."""
    plain = [variables(net, SHAPE, seed) for seed, net in enumerate(NETS)]
    specs = [
        zipjax.infer_spec(f, params, X)
        for f, params in zip(FUNCTIONS, plain, strict=True)
    ]
    models = [plain[0], copied(*plain, specs[1], seed=3)]
    return models, specs, collect(FUNCTIONS, models, specs, X)


@pytest.mark.parametrize("stop_at", [None, 1, "params/encoder/conv1"])
def test_a_classifier_and_a_segmenter_keep_their_functions(nets, stop_at):
    models, specs, moments = nets
    recipe = zipjax.permute()
    merged = zipjax.merge(models, specs, recipe, moments=moments, stop_at=stop_at)
    outputs = zipjax.apply(FUNCTIONS, merged, X)
    assert [y.shape for y in outputs] == [(16, 3), (16, 8, 8, 2)]
    for head, (function, model) in enumerate(zip(FUNCTIONS, models, strict=True)):
        assert relative_error(outputs[head], function(model, X)) < 1e-5
        params = merged.params(head)
        assert jax.tree.structure(params) == jax.tree.structure(model)
    shared = {"conv1", "norm", "conv2"} if stop_at is None else {"conv1", "norm"}
    assert {path.split("/")[2] for path in merged.trunk} == shared


def test_moments_are_those_of_the_common_perms(nets):
    _, specs, moments = nets
    assert list(moments) == ["params/encoder/conv1", "params/encoder/conv2"]
    for perm, moment in moments.items():
        # Both are read where both networks read them: after the pooling.
        assert moment.count == 16 * 4 * 4
        n = specs[0].sizes[perm]
        order = np.asarray(moment.correlation())[:n, n:].argmax(1)
        assert (order == np.argsort(random_permutations(specs[1], 3)[perm])).all()


def test_averaging_needs_no_moments_and_is_the_mean_of_the_encoders(nets):
    models, specs, _ = nets
    merged = zipjax.merge(models, specs, zipjax.average())
    both = [path_leaves(model) for model in models]
    for path, leaf in merged.trunk.items():
        expected = np.mean([leaves[path] for leaves in both], axis=0)
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-7)


def test_statistics_are_reset_in_the_common_trunk(nets):
    models, specs, _ = nets
    merged = zipjax.merge(models, specs, zipjax.average(), stop_at=1)
    merged = zipjax.reset_batch_stats(FUNCTIONS, merged, [X])
    layer = {x: merged.trunk[f"params/encoder/conv1/{x}"] for x in ("kernel", "bias")}
    kernel, bias = map(np.asarray, layer.values())
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2)
    )
    mean = np.einsum("bhwcij,ijco->o", windows, kernel) / (16 * 8 * 8) + bias
    found = merged.trunk["batch_stats/encoder/norm/mean"]
    np.testing.assert_allclose(found, mean, atol=1e-5)
    with pytest.raises(ValueError, match="1 functions for 2 models or heads"):
        zipjax.reset_batch_stats(FUNCTIONS[:1], merged, [X])


def test_what_is_saved_comes_back(nets, tmp_path):
    models, specs, _ = nets
    merged = zipjax.merge(models, specs, zipjax.average())
    zipjax.save(tmp_path / "merged", merged)
    for like in (None, models):
        loaded = zipjax.load(tmp_path / "merged", like=like)
        assert loaded.spec == merged.spec
        assert jax.tree.structure(loaded) == jax.tree.structure(merged)
        for found, expected in zip(
            jax.tree.leaves(loaded), jax.tree.leaves(merged), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"missing .*hidden.*unexpected .*pixels"):
        zipjax.load(tmp_path / "merged", like=[models[0], models[0]])


# Classifiers of different depth: plain functions of lists and dictionaries.
WIDTHS = (3, 6, 5, 4, 2)
DEEP, DEEP_SPEC = dense_params(WIDTHS, 0), dense_spec(WIDTHS)
Y = images(40, (3,))


def shallow_apply(params, x):
    """The first two layers of ``dense_apply``, then another head with another name."""
    x = jax.nn.relu(x @ params["layers"][0]["w"] + params["layers"][0]["b"])
    x = jax.nn.relu(x @ params["layers"][1]["w"] + params["layers"][1]["b"])
    return {"logits": x @ params["out"]}


def shallow_spec(width=5):
    axes = {p: e for p, e in DEEP_SPEC.entries.items() if p[7] in "01"}
    axes["out"] = (zipjax.Axis("h1", "in"), None)
    return zipjax.PermutationSpec(
        axes, {"h0": zipjax.Perm(6), "h1": zipjax.Perm(width)}
    )


def shallow_params(seed, width=5):
    layers = dense_params((3, 6, width), seed)["layers"]
    out = jax.ShapeDtypeStruct((width, 9), jnp.float32)
    return {"layers": layers, "out": randomise({"w": out}, seed)["w"]}


PAIR = [DEEP, shallow_params(1)]
PAIR_FUNCTIONS = [dense_apply, shallow_apply]
PAIR_SPECS = [DEEP_SPEC, shallow_spec()]


@pytest.mark.parametrize("stop_at", [0, 1, 2, None])
def test_the_common_trunk_is_computed_once(stop_at):
    merged = zipjax.merge(PAIR, PAIR_SPECS, zipjax.average(), stop_at=stop_at)

    def whole(merged, x):
        return zipjax.apply(PAIR_FUNCTIONS, merged, x)

    # A product, its bias and the ReLU, counted by hand.
    n = len(Y)
    trunk = [2 * n * 3 * 6 + 2 * n * 6, 2 * n * 6 * 5 + 2 * n * 5]
    deep = 2 * n * 5 * 4 + 2 * n * 4 + 2 * n * 4 * 2 + n * 2
    heads = deep + 2 * n * 5 * 9
    number = 2 if stop_at is None else stop_at
    expected = sum(trunk[:number]) + 2 * sum(trunk[number:]) + heads
    assert flops(whole, merged, Y) == expected


def test_apply_is_each_function_of_its_own_parameters():
    merged = zipjax.merge(PAIR, PAIR_SPECS, zipjax.average(), stop_at=1)
    deep, shallow = zipjax.apply(PAIR_FUNCTIONS, merged, Y)
    assert relative_error(deep, dense_apply(merged.params(0), Y)) < 1e-6
    expected = shallow_apply(merged.params(1), Y)["logits"]
    assert relative_error(shallow["logits"], expected) < 1e-6
    for number, functions in ((1, [dense_apply]), (3, [*PAIR_FUNCTIONS, dense_apply])):
        with pytest.raises(ValueError, match=f"{number} functions for 2"):
            zipjax.apply(functions, merged, Y)


def test_three_models_of_two_functions():
    models = [DEEP, shallow_params(1), dense_params(WIDTHS, 2)]
    specs = [DEEP_SPEC, shallow_spec(), DEEP_SPEC]
    functions = [*PAIR_FUNCTIONS, dense_apply]
    merged = zipjax.merge(models, specs, zipjax.average(), stop_at=1)
    for head, function in enumerate(functions):
        params = merged.params(head)
        for path, leaf in path_leaves(params).items():
            own = [path_leaves(model).get(path) for model in models]
            expected = np.mean(own, axis=0) if path[:8] == "layers/0" else own[head]
            np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
        assert jax.tree.structure(params) == jax.tree.structure(models[head])
        shape = jax.eval_shape(function, models[head], Y)
        assert jax.eval_shape(function, params, Y) == shape


@pytest.fixture(scope="module")
def pair_moments():
    return collect(PAIR_FUNCTIONS, PAIR, PAIR_SPECS, Y)


def test_widths_of_the_trunk_are_those_of_the_recipe(pair_moments):
    merged = zipjax.merge(
        PAIR, PAIR_SPECS, zipjax.zipit(num_units={"h1": 8}), moments=pair_moments
    )
    assert [spec.sizes["h1"] for spec in merged.spec] == [8, 8]
    for head in (0, 1):
        merged.spec[head].validate(merged.params(head))


def test_equal_specs_are_one_spec():
    models, again = [DEEP, dense_params(WIDTHS, 1)], dense_spec(WIDTHS)
    merged = zipjax.merge(models, [DEEP_SPEC, again], zipjax.average())
    assert merged.spec == DEEP_SPEC
    assert merged.num_outputs == 1
    source = zipjax.source_of(models, [DEEP_SPEC, again])
    assert source == zipjax.source_of(models, DEEP_SPEC)
    assert source != zipjax.source_of(PAIR, PAIR_SPECS)


def test_moments_are_recognised(pair_moments):
    assert list(pair_moments) == ["h0", "h1"]
    assert pair_moments["h0"].source == zipjax.source_of(PAIR, PAIR_SPECS)
    other = [DEEP, shallow_params(2)]
    with pytest.raises(ValueError, match="were collected for"):
        zipjax.merge(other, PAIR_SPECS, zipjax.zipit(), moments=pair_moments)


def changed(**axes):
    """The shallow spec with other entries; in names, _ stands for /."""
    spec, own = shallow_spec(), {k.replace("_", "/"): e for k, e in axes.items()}
    return zipjax.PermutationSpec({**spec.entries, **own}, spec.perms)


OUT = zipjax.Axis("h1", "out")
REFUSED = {
    "beyond": (PAIR, shallow_spec(), 3, r"'layers/2/w' .*is missing .*cut 2 \('h1'\)"),
    "entries": (
        PAIR,
        changed(layers_1_b=(None,)),
        2,
        r"'layers/1/b' has the entries \(Axis\(perm='h1', role='out'\),\) in the spec "
        r"of model 0 but has the entries \(None,\) .* Stop the zip at cut 1 \('h0'\)",
    ),
    "sizes": (
        [DEEP, shallow_params(1, 4)],
        shallow_spec(4),
        2,
        r"'h1' is .*size=5.* but .*size=4.*cut 1",
    ),
    "writer": (
        [DEEP, {**shallow_params(1), "late": jnp.ones(5)}],
        changed(late=(OUT,)),
        2,
        "'late' produces units of perm 'h1' in .* model 1.*no such parameter.*cut 1",
    ),
    "nothing": (
        PAIR,
        changed(layers_0_w=(zipjax.Fixed(3), zipjax.Axis("h0", "out"))),
        None,
        r"'layers/0/w'.* Stop the zip at cut 0 \(nothing is zipped\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_trunk_that_is_not_common_is_refused(name):
    models, spec, stop_at, message = REFUSED[name]
    specs = [DEEP_SPEC, spec]
    with pytest.raises(ValueError, match=message):
        zipjax.merge(models, specs, zipjax.average(), stop_at=stop_at)
    # What the message offers works.
    assert zipjax.merge(models, specs, zipjax.average(), stop_at=0).num_outputs == 2


def test_the_zip_stops_by_itself_before_what_differs():
    specs = [DEEP_SPEC, shallow_spec(4)]
    models = [DEEP, shallow_params(1, 4)]
    merged = zipjax.merge(models, specs, zipjax.average())
    assert set(merged.trunk) == {"layers/0/w", "layers/0/b"}
    assert list(collect(PAIR_FUNCTIONS, models, specs, Y)) == ["h0"]


def test_wrong_numbers_and_mixed_heads_are_refused():
    with pytest.raises(ValueError, match="1 specs for 2 models"):
        zipjax.merge(PAIR, PAIR_SPECS[:1], zipjax.average())
    with pytest.raises(ValueError, match="1 functions for 2 models"):
        zipjax.collect_moments(PAIR_FUNCTIONS[:1], PAIR, PAIR_SPECS, [Y])
    merged = zipjax.merge(PAIR, PAIR_SPECS, zipjax.average())
    with pytest.raises(ValueError, match=r"model 0 .* heads are different functions"):
        zipjax.merge([merged, DEEP], DEEP_SPEC, zipjax.average())


def test_units_that_are_read_at_other_positions_are_refused():
    def upsampled(params, x):
        for layer in params["layers"]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return jnp.repeat(x, 2, axis=0) @ params["out"]

    functions = [dense_apply, upsampled]
    with pytest.raises(ValueError, match=r"'h1' are read at positions .* 40\).* 80\)"):
        collect(functions, PAIR, PAIR_SPECS, Y)
