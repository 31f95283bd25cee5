"""Moments of activations, against numpy on activations computed otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import (
    FlattenNet,
    dense_apply,
    dense_params,
    dense_spec,
    flatten_spec,
    images,
    relative_error,
    variables,
)
from zipjax.models import resnet
from zipjax.positions import positions_of
from zipjax.similarity import collecting, running
from zipjax.similarity.costs import moments_cost

WIDTHS = (3, 5, 4, 2)
SPEC = dense_spec(WIDTHS)
MODELS = [dense_params(WIDTHS, seed) for seed in range(3)]
X = images(24, (3,))


def hidden_units(params, x):
    units = []
    for layer in params["layers"][:-1]:
        w, b = np.asarray(layer["w"], np.float64), np.asarray(layer["b"])
        x = np.maximum(x @ w + b, 0)
        units.append(x)
    return units


def check_mlp(moments, models=MODELS, x=X):
    per_model = [hidden_units(model, x) for model in models]
    assert list(moments) == ["h0", "h1"]
    for moment, units in zip(
        moments.values(), zip(*per_model, strict=True), strict=True
    ):
        expected = np.concatenate(units, axis=1)
        assert moment.count == len(x)
        assert relative_error(moment.mean, expected.mean(0)) < 1e-5
        covariance = np.cov(expected.T, bias=True)
        assert relative_error(moment.covariance(), covariance) < 1e-5


def collect(batches, **options):
    return zipjax.collect_moments(dense_apply, MODELS, SPEC, batches, **options)


@pytest.mark.parametrize(
    "sizes",
    [(24,), (8, 8, 8), (7, 6, 5, 4, 2), (1, 23)],
    ids=str,
)
def test_batches_of_any_size_give_what_numpy_gives(sizes):
    # Four devices divide none of 7, 6, 5, 2, 1 and 23.
    assert jax.local_device_count() == 4
    check_mlp(collect(iter(np.split(X, np.cumsum(sizes)[:-1]))))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_devices_may_be_chosen(count):
    check_mlp(collect([X[:9], X[9:]], devices=jax.local_devices()[:count]))


@pytest.mark.parametrize(("batch", "share"), [(24, 6), (6, 2), (7, 7), (9, 3)])
def test_a_batch_is_shared_among_as_many_devices_as_divide_it(batch, share):
    seen = set()

    def apply_fn(params, x):
        seen.add(len(x))
        return dense_apply(params, x)

    zipjax.collect_moments(apply_fn, MODELS, SPEC, [X[:batch]])
    assert seen == {share}


def test_one_device_and_four_agree():
    batches = [X[:12], X[12:]]
    one = collect(batches, devices=jax.local_devices()[:1])
    four = collect(batches, devices=jax.local_devices())
    for perm in SPEC.perms:
        a, b = one[perm], four[perm]
        assert a.source == b.source
        assert relative_error(a.covariance(), b.covariance()) < 1e-6
        assert relative_error(a.mean, b.mean) < 1e-6


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"image": x, "label": np.arange(len(x))},
        lambda x: {"image": jnp.asarray(x), "label": ["a"] * len(x)},
    ],
    ids=["numpy", "jax"],
)
def test_inputs_selects_from_a_batch(wrap):
    check_mlp(collect([wrap(X[:10]), wrap(X[10:])], inputs_of=lambda b: b["image"]))


def test_several_positional_inputs():
    def apply_fn(params, x, offset):
        return dense_apply(params, x + offset["by"])

    offsets = images(24, (3,), seed=5)
    batches = [(X[:16], {"by": offsets[:16]}), (X[16:], {"by": offsets[16:]})]
    moments = zipjax.collect_moments(apply_fn, MODELS, SPEC, batches)
    check_mlp(moments, x=X + offsets)


def test_inputs_without_a_batch_axis():
    def apply_fn(params, x, mask, key, scale):
        noise = 0 * jax.random.normal(key, x.shape)
        return dense_apply(params, (x * scale) @ mask + noise)

    mask = np.eye(3, dtype=np.float32)[[2, 0, 1]]
    inputs = [(x, mask, jax.random.key(0), np.float32(2)) for x in (X[:16], X[16:])]
    moments = zipjax.collect_moments(apply_fn, MODELS, SPEC, inputs)
    check_mlp(moments, x=2 * X @ mask)


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match=r"'h0' were seen in 1 sample"):
        collect([X[:1]])


def test_few_samples_are_told(caplog):
    collect([X[:4]])
    assert "'h0' (4 samples, 5 units)" in caplog.text
    assert "'h1'" not in caplog.text


def test_the_order_of_the_models_is_that_of_the_units():
    backwards = MODELS[::-1]
    moments = zipjax.collect_moments(dense_apply, backwards, SPEC, [X])
    check_mlp(moments, backwards)


def test_integer_inputs():
    def embed(params, tokens):
        return dense_apply(params, jax.nn.one_hot(tokens, 3))

    tokens = np.arange(24) % 3
    moments = zipjax.collect_moments(embed, MODELS, SPEC, [tokens])
    check_mlp(moments, x=np.eye(3)[tokens])


def flax_record(net, params, x):
    _, record = net.apply(params, x, capture_intermediates=True)
    return record["intermediates"]


def test_resnet20_streams_and_inner_units():
    """Streams end after the sums; Flax's own record of the outputs has them."""
    net = resnet.ResNet20(3, 0.25)
    models = [variables(net, (8, 8, 3), seed) for seed in range(2)]
    x = images(10, (8, 8, 3))
    moments = zipjax.collect_moments(
        net.apply, models, resnet.spec(net), [x[:6], x[6:]]
    )
    records = [flax_record(net, params, x) for params in models]
    for perm, moment in moments.items():
        if perm.startswith("stage"):
            blocks = [r[f"layer{perm[-1]}_2"]["__call__"][0] for r in records]
        else:
            blocks = [np.maximum(r[perm]["bn1"]["__call__"][0], 0) for r in records]
        units = np.concatenate(
            [np.reshape(b, (-1, b.shape[-1])) for b in blocks], axis=1
        )
        assert moment.count == len(units)
        covariance = np.cov(units.astype(np.float64).T, bias=True)
        assert relative_error(moment.covariance(), covariance) < 1e-5, perm


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_networks_have_float32_moments(dtype):
    net = FlattenNet(dtype)
    models = [variables(net, (4, 4, 3), seed) for seed in range(2)]
    x = images(64, (4, 4, 3))
    moments = zipjax.collect_moments(net.apply, models, flatten_spec(4), [x])["hidden"]
    layers = [flax_record(net, params, x)["hidden"]["__call__"][0] for params in models]
    units = np.maximum(np.concatenate(layers, axis=1).astype(np.float64), 0)
    assert moments.covariance().dtype == jnp.float32
    # Compiled, XLA may keep more digits within a layer than op by op.
    rounding = 8 * float(jnp.finfo(dtype).eps)
    assert relative_error(moments.covariance(), np.cov(units.T, bias=True)) < rounding


NAN = X.copy()
NAN[3, 1] = np.nan
BATCHES = {
    "no batches": ([], {}, "no batches"),
    "exhausted": (iter(()), {}, "no batches"),
    "empty": ([X, X[:0]], {}, r"batch 1 has inputs of shapes \[\(0, 3\)\]"),
    "NaN": ([X, X, NAN], {}, "batch 2 holds NaN"),
    "infinity": (
        [np.where(np.isnan(NAN), np.inf, NAN)],
        {},
        "batch 0 holds NaN or inf",
    ),
    "scalar": ([np.float32(3)], {}, "leading batch axis"),
    "no arrays": ([()], {}, "leading batch axis"),
    "selected": ([{"x": X[:0]}], {"inputs_of": lambda b: b["x"]}, "batch 0 has inputs"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_bad_batches_are_named(name):
    batches, options, message = BATCHES[name]
    with pytest.raises(ValueError, match=message):
        collect(batches, **options)


def broken(value):
    model = dense_params(WIDTHS, 9)
    model["layers"][1]["w"] = model["layers"][1]["w"].at[0, 0].set(value)
    return model


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_with_nan_are_named(value):
    models = [MODELS[0], MODELS[1], broken(value)]
    with pytest.raises(ValueError, match=r"'layers/1/w'\] of model 2 are not finite"):
        zipjax.collect_moments(dense_apply, models, SPEC, [X])


@pytest.mark.parametrize(
    ("models", "spec", "message"),
    [
        ([], SPEC, "there are no models"),
        ([MODELS[0], dense_params((3, 5, 2), 0)], SPEC, "model 1 has other parameters"),
        ([MODELS[0], dense_params((3, 6, 4, 2), 0)], SPEC, r"\[\[5\], \[6\]\]"),
        (MODELS, dense_spec((3, 6, 4, 2)), "network of other widths"),
        (MODELS, dense_spec((3, 5, 2)), r"unexpected \['layers/2/b', 'layers/2/w'\]"),
    ],
)
def test_models_and_spec_must_fit(models, spec, message):
    with pytest.raises(ValueError, match=message):
        zipjax.collect_moments(dense_apply, models, spec, [X])


def test_the_source_tells_models_order_and_spec_apart():
    renamed = zipjax.PermutationSpec.from_json(SPEC.to_json().replace("h1", "other"))
    sources = [
        zipjax.source_of(models, spec)
        for models, spec in [
            (MODELS, SPEC),
            (MODELS[::-1], SPEC),
            (MODELS[:2], SPEC),
            (MODELS, renamed),
        ]
    ]
    assert len(set(sources)) == 4
    copies = jax.tree.map(np.array, MODELS)
    assert zipjax.source_of(copies, SPEC) == sources[0]
    assert collect([X])["h0"].source == sources[0]


@pytest.mark.parametrize(
    ("samples", "count"), [(1, 1), (7, 3), (100, 64), (3 * 32 * 32, 64), (2**20, 2**15)]
)
def test_positions_are_one_of_each_stretch(samples, count):
    drawn = [
        positions_of(np.random.default_rng(k).random(count, np.float32), samples)
        for k in range(4)
    ]
    ends = np.ceil(np.arange(count + 1) * samples / count)
    for places in drawn:
        assert places.shape == (count,)
        # Within rounding of the stretches' ends.
        assert (places >= ends[:-1] - 1).all()
        assert (places < ends[1:] + 1).all()
    if samples > 4 * count:
        assert len({tuple(x) for x in drawn}) == 4


def conv_apply(params, x):
    y = jax.lax.conv_general_dilated(
        x, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(y).mean((1, 2)) @ params["head"]


def conv_params(seed):
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(size=(3, 3, 3, 4)).astype(np.float32),
        "head": rng.normal(size=(4, 2)).astype(np.float32),
    }


CONV_SPEC = zipjax.PermutationSpec(
    {
        "w": (None, None, None, zipjax.Axis("h", "out")),
        "head": (zipjax.Axis("h", "in"), None),
    },
    {"h": zipjax.Perm(4)},
)
CONV_MODELS = [conv_params(seed) for seed in range(2)]
PICTURES = [images(8, (16, 16, 3), seed) for seed in range(4)]


def conv_moments(batches=PICTURES, **options):
    devices = options.pop("devices", jax.local_devices()[:1])
    return zipjax.collect_moments(
        conv_apply, CONV_MODELS, CONV_SPEC, batches, devices=devices, **options
    )["h"]


def test_few_positions_estimate_the_correlations_of_all():
    every, some = conv_moments(positions="all"), conv_moments(positions=512)
    assert every.count == 4 * 8 * 16 * 16
    assert some.count == 4 * 512
    gap = np.abs(np.asarray(every.correlation() - some.correlation())).max()
    # Four standard errors of 2,048 samples, which are not quite independent.
    assert 0 < gap < 4 / np.sqrt(2048)


def test_positions_follow_the_key_and_the_batch():
    one, same = (conv_moments(positions=64, key=jax.random.key(5)) for _ in range(2))
    other = conv_moments(positions=64, key=jax.random.key(6))
    twice = conv_moments([PICTURES[0], PICTURES[0]], positions=64)
    once = conv_moments([PICTURES[0]], positions=64)
    np.testing.assert_array_equal(one.m2, same.m2)
    assert not np.array_equal(one.m2, other.m2)
    assert not np.array_equal(twice.mean, once.mean)


def test_few_are_a_fixed_number_of_samples_however_many_batches(monkeypatch):
    monkeypatch.setattr(collecting, "FEW_SAMPLES", 1024)
    assert conv_moments().count == 1024
    assert conv_moments(PICTURES[:2]).count == 1024
    # Of a stream nobody knows how many batches will come.
    assert conv_moments(batch for batch in PICTURES).count == 4 * 8 * 16 * 16
    assert conv_moments(devices=jax.local_devices()).count == 1024


@pytest.mark.parametrize("positions", [0, -3, "most", None])
def test_positions_that_are_no_number_are_refused(positions, untyped):
    with pytest.raises(ValueError, match="positions = "):
        conv_moments(positions=positions)


# The widest perm has 3 * 5 units: a row takes 120 bytes, all of it 1,800, both 2,376.
@pytest.mark.parametrize("limit", [120, 700, 2000, 10**6])
@pytest.mark.parametrize("devices", [1, 4])
def test_a_memory_limit_changes_nothing_but_the_passes(limit, devices, caplog):
    options = {"devices": jax.local_devices()[:devices]}
    whole = collect([X[:12], X[12:]], **options)
    with caplog.at_level("INFO"):
        parts = collect([X[:12], X[12:]], memory_limit=limit, **options)
    assert list(parts) == list(whole)
    for perm, moment in whole.items():
        assert relative_error(parts[perm].m2, moment.m2) < 1e-6
        np.testing.assert_array_equal(parts[perm].count, moment.count)
        np.testing.assert_array_equal(parts[perm].mean, moment.mean)
    told = moments_cost({"h0": 15, "h1": 12}, 24, memory_limit=limit)
    assert f"in {told.passes} passes" in caplog.text
    assert (told.passes == 1) == (limit == 10**6)
    assert told.device_bytes <= limit


def test_several_passes_need_batches_that_can_be_read_again():
    with pytest.raises(ValueError, match="can be read only once"):
        collect(iter([X]), memory_limit=500)


def test_a_limit_below_one_row_is_refused():
    with pytest.raises(ValueError, match=r"memory_limit = 100 .* takes 120"):
        collect([X], memory_limit=100)


def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_inputs_that_are_sharded_stay_where_they_are(kind):
    types = (getattr(jax.sharding.AxisType, kind),) * 2
    own = mesh().update(axis_types=types)
    by_rows = jax.sharding.NamedSharding(own, jax.sharding.PartitionSpec("data"))
    sharded = [jax.device_put(x, by_rows) for x in (X[:12], X[12:])]
    check_mlp(collect(sharded))


def test_parameters_may_be_sharded():
    axes = jax.sharding.PartitionSpec(None, "model")
    columns = jax.sharding.NamedSharding(mesh(), axes)
    models = jax.tree.map(
        lambda x: jax.device_put(x, columns) if x.ndim == 2 and x.shape[1] == 4 else x,
        MODELS,
    )
    check_mlp(zipjax.collect_moments(dense_apply, models, SPEC, [X]))


def precisions(dtype):
    """The precisions of the samples' second moment, in a step with such activations."""
    parts = [[jnp.ones((1, 8, 4), dtype)]]
    empty = running.nothing([[jax.ShapeDtypeStruct((1, 1, 8, 4), dtype)]])
    one = jax.tree.map(lambda x: x[0], empty)
    closed = jax.make_jaxpr(running.with_batch)(one, parts, 0)
    found = [own for own in eqns(closed.jaxpr) if is_product(own, (4, 8), (8, 4))]
    assert found
    return {own.params["precision"][0] for own in found}


def is_product(own, left, right):
    """Whether an equation is a product of matrices of these shapes."""
    shapes = [x.aval.shape for x in own.invars]
    return own.primitive.name == "dot_general" and shapes == [left, right]


def eqns(jaxpr):
    """All equations, those of inner functions too."""
    for own in jaxpr.eqns:
        yield own
        for inner in jax.core.jaxprs_in_params(own.params):
            yield from eqns(inner)


def test_only_float32_needs_the_highest_precision():
    highest, default = jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT
    assert precisions(jnp.float32) == {highest}
    assert precisions(jnp.bfloat16) == {default}
    assert precisions(jnp.float16) == {default}


def test_half_precision_is_summed_in_float32():
    x = jnp.asarray(images(4096, (3,)) + 2, jnp.bfloat16)
    parts = [[x[None]]]
    empty = running.nothing([[jax.ShapeDtypeStruct((1, 1, 4096, 3), x.dtype)]])
    found = running.with_batch(jax.tree.map(lambda x: x[0], empty), parts, 0)
    exact = np.asarray(x, np.float64)
    assert found.m2.dtype == jnp.float32
    assert relative_error(found.m2 / 4096, np.cov(exact.T, bias=True)) < 1e-5


def test_many_batches_are_added_in_float64():
    # Alone, a float32 sum of so many batches of one sample would be 1e-3 off.
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(300, 1, 3)).astype(np.float32) + 100
    moments = collect(list(samples), devices=jax.local_devices()[:1])
    check_mlp(moments, x=samples[:, 0])
