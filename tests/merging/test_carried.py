"""What people carry along with their weights: counters, keys, masks, copies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zipjax
from tests.networks import dense_apply, dense_params, images, relative_error
from zipjax.trees import path_leaves

WIDTHS = (3, 6, 5, 4)
X = images(40, (3,))
ORDER = np.array([2, 0, 1, 4, 3])  # of the table's rows


def apply_fn(variables, x):
    """A network that reads a table, and nothing else of what is carried along."""
    y = dense_apply({"layers": variables["params"]["layers"]}, x)
    return y[:, variables["state"]["table"]]


def extras(step):
    return {
        "state": {"counter": jnp.int32(step), "table": jnp.array([3, 0, 2, 1, 1])},
        "rng": {"raw": jax.random.PRNGKey(step), "key": jax.random.key(step)},
        "flags": {"frozen": jnp.array(step > 1), "nothing": None},
        "step": step,
    }


def model(seed, step=0):
    params = dense_params(WIDTHS, seed)
    return {"params": params, **extras(step), "ema": {"params": params}}


FIRST = model(0)
SPEC = zipjax.infer_spec(apply_fn, FIRST, X)
UNREAD = {"state/counter", "rng/raw", "rng/key", "flags/frozen", "step"}


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = (jnp.asarray(leaf) for leaf in (x, y))
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_they_belong_to_no_perm():
    assert SPEC.sizes == {"params/layers/0": 6, "params/layers/1": 5}
    assert SPEC.entries["state/table"] == (None,)
    ema = {path for path in SPEC.entries if path.startswith("ema")}
    assert SPEC.unread == UNREAD | ema
    assert zipjax.PermutationSpec.from_json(SPEC.to_json()) == SPEC
    assert zipjax.explain(SPEC).endswith(
        "not read by the function: ema/* (6 in all), flags/frozen, rng/key, rng/raw, "
        "state/counter, step"
    )


def test_a_table_of_units_freezes_them():
    """Its entries name units, which may then have no other order."""

    def by_table(params, x):
        return jax.nn.relu(x @ params["w"])[:, params["table"]] @ params["v"]

    params = {"w": jnp.ones((3, 4)), "v": jnp.ones((4, 2)), "table": jnp.arange(4)}
    assert not zipjax.infer_spec(by_table, params, X).perms


def test_the_whole_way(tmp_path, key, caplog):
    orders = zipjax.random_permutations(SPEC, key)
    copy = zipjax.permute_params(FIRST, SPEC, orders)
    copy["ema"] = FIRST["ema"]
    same({k: copy[k] for k in extras(0)}, extras(0))
    assert zipjax.verify_spec(apply_fn, FIRST, SPEC, X, key=key) < 1e-5
    moments = zipjax.collect_moments(
        apply_fn, [FIRST, copy], SPEC, [X], devices=jax.local_devices()[:1]
    )
    expected = apply_fn(FIRST, X)
    for recipe in (zipjax.permute(), zipjax.mudsc(0.5)):
        merged = zipjax.merge([FIRST, copy], SPEC, recipe, moments=moments, key=key)
        assert relative_error(zipjax.apply(apply_fn, merged, X), expected) < 1e-5
        same({k: merged.params()[k] for k in extras(0)}, extras(0))
    assert not caplog.records
    for calibrate in (zipjax.refit, zipjax.repair):
        again = calibrate(apply_fn, [FIRST, copy], merged, [X])
        assert relative_error(zipjax.apply(apply_fn, again, X), expected) < 1e-3
    same(zipjax.reset_batch_stats(apply_fn, merged, [X]), merged)
    zipjax.save(tmp_path / "merged", merged)
    loaded = zipjax.load(tmp_path / "merged", like=FIRST)
    assert jax.tree.structure(loaded) == jax.tree.structure(merged)
    same(loaded, merged)


def test_what_differs_and_is_no_float_needs_a_choice(caplog):
    models = [FIRST, model(1, step=7)]
    named = ["flags/frozen", "rng/key", "rng/raw", "state/counter", "step"]
    with pytest.raises(ValueError, match=r"numbers\. Pass carry=0") as error:
        zipjax.merge(models, SPEC, zipjax.average())
    assert str(error.value).startswith(f"{named} differ between the models")
    for carry in (0, 1):
        merged = zipjax.merge(models, SPEC, zipjax.average(), carry=carry)
        found, kept = merged.params(), models[carry]
        for name in (*extras(0), "ema"):
            same(found[name], kept[name])
        mean = jax.tree.map(lambda *x: np.mean(x, 0), *(m["params"] for m in models))
        for path, leaf in path_leaves(mean).items():
            assert relative_error(path_leaves(found["params"])[path], leaf) < 1e-6
    assert not caplog.records
    for carry in (2, -1):
        with pytest.raises(ValueError, match=r"carry = .* from 0 to 1"):
            zipjax.merge(models, SPEC, zipjax.average(), carry=carry)


def test_averages_that_are_not_read_are_the_first_models(caplog):
    models = [FIRST, {**FIRST, "ema": model(1)["ema"]}]
    merged = zipjax.merge(models, SPEC, zipjax.average())
    (record,) = caplog.records
    assert "models differ in ['ema/* (6 in all)'], which" in record.message
    same(merged.params()["ema"], FIRST["ema"])


def test_heads_keep_their_own():
    models = [FIRST, model(1, step=7)]
    models[1]["state"]["table"] = models[1]["state"]["table"][::-1]
    merged = zipjax.merge(models, SPEC, zipjax.average(), stop_at=1)
    assert not SPEC.unread & set(merged.trunk)
    for number, own in enumerate(models):
        head = merged.params(number)
        same(
            {k: head[k] for k in (*extras(0), "ema")},
            {k: own[k] for k in (*extras(0), "ema")},
        )


def test_tables_that_differ_are_refused():
    other = model(1)
    other["state"]["table"] = other["state"]["table"][::-1]
    with pytest.raises(ValueError, match=r"outputs depend on \['state/table'\]"):
        zipjax.merge([FIRST, other], SPEC, zipjax.average())
    merged = zipjax.merge([FIRST, other], SPEC, zipjax.average(), carry=1)
    same(merged.params()["state"]["table"], other["state"]["table"])
    other["state"]["table"] = jnp.ones(5)
    with pytest.raises(ValueError, match=r"'state/table' is int32\[5\] .* float32"):
        zipjax.merge([FIRST, other], SPEC, zipjax.average())


def test_shapes_of_what_is_not_read_may_differ():
    other = model(1)
    other["state"]["counter"] = jnp.int32(0)
    other["ema"]["params"] = jax.tree.map(lambda x: x[:1], other["params"])
    merged = zipjax.merge([FIRST, other], SPEC, zipjax.average())
    assert not merged.heads
    same(merged.params()["ema"], FIRST["ema"])


def test_the_fingerprint_sees_them():
    sources = {
        zipjax.source_of([FIRST, {**FIRST, "rng": extras(step)["rng"]}], SPEC)
        for step in range(3)
    }
    assert len(sources) == 3


def test_declared_specs_average_no_integers():
    entries = {p: e for p, e in SPEC.entries.items() if p not in UNREAD}
    models = [
        {k: v for k, v in m.items() if k in ("params", "ema")}
        for m in (FIRST, model(1))
    ]
    for own, step in zip(models, (1, 2), strict=True):
        own["state"] = {"table": jnp.arange(5) * step}
    spec = zipjax.PermutationSpec(entries, SPEC.perms)
    with pytest.raises(ValueError, match="state/table"):
        zipjax.merge(models, spec, zipjax.average())
    models[1]["state"] = models[0]["state"]
    merged = zipjax.merge(models, spec, zipjax.average())
    same(merged.params()["state"], models[0]["state"])


def test_a_collection_that_one_model_lacks_is_named():
    other = {k: v for k, v in model(1).items() if k != "ema"}
    with pytest.raises(ValueError, match=r"missing \['ema/\* \(6 in all\)'\]"):
        zipjax.merge([FIRST, other], SPEC, zipjax.average())
    with pytest.raises(ValueError, match=r"unexpected \['ema/\* \(6 in all\)'\]"):
        zipjax.permute_params(FIRST, zipjax.infer_spec(apply_fn, other, X), {})
