"""Checkpoints of other libraries, written and read by these."""

import contextlib
import mmap
import os
import pickle
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

import zipjax
from zipjax.formats import msgpack
from zipjax.trees import path_leaves

rng = np.random.default_rng(0)
PARAMS = {
    "hidden": {
        "kernel": rng.normal(size=(5, 4)).astype(np.float32),
        "half": rng.normal(size=(3,)).astype(ml_dtypes.bfloat16),
        "turned": np.asfortranarray(rng.normal(size=(2, 3)).astype(np.float16)),
    },
    "head": {"bias": rng.normal(size=(2,)).astype(np.float64)},
    "rng": np.array([1, 2], np.uint32),
    "mask": np.array([True, False]),
    "step": np.array(7, np.int32),
}


def assert_same(found, expected):
    """The same paths, values, dtypes and shapes."""
    found, expected = path_leaves(found), path_leaves(expected)
    assert list(found) == list(expected)
    for path, value in expected.items():
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            assert jnp.array_equal(found[path], value), path
            continue
        np.testing.assert_array_equal(found[path], np.asarray(value), path)
        assert found[path].dtype == value.dtype, path
        assert found[path].shape == value.shape, path


def by_keys(tree, separator):
    return {p.replace("/", separator): x for p, x in path_leaves(tree).items()}


def save_npz(path, tree):
    np.savez(path, **by_keys(tree, "/"))


def save_compressed(path, tree):
    np.savez_compressed(path, **by_keys(tree, "."))


def save_safetensors(path, tree):
    arrays = by_keys(tree, ".")
    save_file({k: np.require(x, None, "C") for k, x in arrays.items()}, path)


def save_flax(path, tree):
    path.write_bytes(serialization.to_bytes(tree))


def save_standard(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def save_pytree(path, tree):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def save_files(path, tree):
    """One folder of zarr for every array, as before OCDBT."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


def save_steps(path, tree):
    with ocp.CheckpointManager(path) as manager:
        for step in (3, 20):
            own = jax.tree.map(lambda x, step=step: x if step == 20 else 0 * x, tree)
            manager.save(step, args=ocp.args.StandardSave(own))


def load_npz(path):
    with np.load(path) as arrays:
        views = {"hidden/half": ml_dtypes.bfloat16}
        return {k: arrays[k].view(views.get(k, arrays[k].dtype)) for k in arrays}


def load_standard(path):
    with ocp.StandardCheckpointer() as checkpointer:
        return by_keys(checkpointer.restore(path), "/")


SAVERS = {
    "a.npz": save_npz,
    "compressed.npz": save_compressed,
    "a.safetensors": save_safetensors,
    "a.msgpack": save_flax,
    "standard": save_standard,
    "pytree": save_pytree,
    "files": save_files,
    "steps": save_steps,
}
LOADERS = {
    "a.npz": load_npz,
    "a.safetensors": lambda path: load_file(path),
    "a.msgpack": lambda path: by_keys(
        serialization.msgpack_restore(path.read_bytes()), "/"
    ),
    "folder": load_standard,
}


@pytest.mark.parametrize("name", SAVERS)
def test_what_other_libraries_wrote_is_read(tmp_path, name):
    path = tmp_path / name
    SAVERS[name](path, PARAMS)
    expected = zipjax.trees.nested(dict(sorted(path_leaves(PARAMS).items())))
    assert_same(zipjax.read_checkpoint(path), expected)
    # A template has the structure that is wanted, here with an abstract key.
    template = {**PARAMS, "rng": jax.eval_shape(lambda: jax.random.key(0))}
    found = zipjax.read_checkpoint(str(path), template=template)
    assert jax.tree.structure(found) == jax.tree.structure(PARAMS)
    key = jax.random.wrap_key_data(PARAMS["rng"])
    assert_same(found, {**PARAMS, "rng": key})


@pytest.mark.parametrize("name", LOADERS)
def test_other_libraries_read_what_is_written(tmp_path, name):
    path = tmp_path / "new" / name
    zipjax.write_checkpoint(path, jax.tree.map(lambda x: x, PARAMS))
    assert_same(LOADERS[name](path), by_keys(PARAMS, "/"))
    assert os.listdir(path.parent) == [name]


@pytest.mark.parametrize("name", SAVERS)
def test_a_checkpoint_goes_back_in_the_form_that_came_in(tmp_path, name):
    source, target = tmp_path / name, tmp_path / "merged"
    SAVERS[name](source, PARAMS)
    wider = {**PARAMS, "hidden": {**PARAMS["hidden"], "kernel": np.ones((5, 6))}}
    zipjax.write_checkpoint(target, wider, like=source)
    assert_same(
        zipjax.read_checkpoint(target),
        dict(
            sorted(
                zipjax.trees.nested(dict(sorted(path_leaves(wider).items()))).items()
            )
        ),
    )
    if name == "compressed.npz":  # The separator is kept.
        with np.load(target) as arrays:
            assert "hidden.kernel" in arrays.files
    if name == "steps":
        with ocp.CheckpointManager(target) as manager:
            assert manager.all_steps() == [20]
            found = manager.restore(20, args=ocp.args.StandardRestore())
        np.testing.assert_array_equal(found["hidden"]["kernel"], np.ones((5, 6)))


def test_a_step_of_a_manager(tmp_path):
    save_steps(tmp_path / "run", PARAMS)
    first = zipjax.read_checkpoint(tmp_path / "run", step=3)
    assert not np.any(first["hidden"]["kernel"])
    last = zipjax.read_checkpoint(tmp_path / "run" / "20")
    np.testing.assert_array_equal(last["hidden"]["kernel"], PARAMS["hidden"]["kernel"])
    with pytest.raises(ValueError, match=r"has no step 4: it has \[3, 20\]"):
        zipjax.read_checkpoint(tmp_path / "run", step=4)
    save_npz(tmp_path / "a.npz", PARAMS)
    with pytest.raises(ValueError, match=r"step = 4, but .*a.npz' is a file"):
        zipjax.read_checkpoint(tmp_path / "a.npz", step=4)


def train_state(seed=0):
    params = {"w": jax.random.normal(jax.random.key(seed), (3, 2)), "b": jnp.ones(2)}
    return TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))


@pytest.mark.parametrize("save", [save_standard, save_flax])
def test_a_train_state(tmp_path, save, caplog):
    state, path = train_state(), tmp_path / "state"
    save(path, state)
    found = zipjax.read_checkpoint(path)
    assert set(found) == {"params", "step"}
    assert int(found["step"]) == 0
    (record,) = caplog.records
    assert "'opt_state' left out: an optimiser's state" in record.getMessage()
    assert_same(found["params"], state.params)
    caplog.clear()
    assert_same(zipjax.read_checkpoint(path, select="params"), state.params)
    assert_same(
        zipjax.read_checkpoint(path, select=("params", "step"))["params"], state.params
    )
    assert not caplog.records
    shapes = jax.eval_shape(train_state)
    whole = zipjax.read_checkpoint(path, template=shapes)
    assert isinstance(whole, TrainState)
    assert_same(whole.params, state.params)
    assert not jax.tree.leaves(whole.opt_state)
    own = zipjax.read_checkpoint(path, select="params", template=shapes.params)
    assert_same(own, state.params)
    with pytest.raises(
        ValueError, match=r"no 'parms', which select= names: it has \['"
    ):
        zipjax.read_checkpoint(path, select="parms")
    with pytest.raises(ValueError, match="of which two are the same"):
        zipjax.read_checkpoint(path, select=("params/w", "w"))
    # Written where the same selection finds it again.
    merged = jax.tree.map(lambda x: 2 * x, state.params)
    out = tmp_path / "out"
    zipjax.write_checkpoint(out, merged, like=path, select="params")
    assert_same(zipjax.read_checkpoint(out), {"params": merged})


def test_several_items_of_a_step(tmp_path):
    a, b = {"x": np.arange(3.0, dtype=np.float32)}, {"y": np.ones(2, np.float32)}
    with ocp.CheckpointManager(tmp_path / "run", item_names=("a", "b", "c")) as manager:
        items = {"a": ocp.args.StandardSave(a), "b": ocp.args.PyTreeSave(b)}
        manager.save(1, args=ocp.args.Composite(**items, c=ocp.args.JsonSave({"z": 1})))
    assert_same(zipjax.read_checkpoint(tmp_path / "run"), {"a": a, "b": b})
    assert_same(zipjax.read_checkpoint(tmp_path / "run", select="b"), b)
    out, both = tmp_path / "out", {"a": a, "b": {"y": 2 * b["y"]}}
    zipjax.write_checkpoint(out, both, like=tmp_path / "run")
    with ocp.CheckpointManager(out, item_names=("a", "b")) as manager:
        own = ocp.args.StandardRestore()
        found = manager.restore(1, args=ocp.args.Composite(a=own, b=own))
    assert_same(dict(found.items()), both)


def test_lists_of_orbax_and_dictionaries_of_flax(tmp_path):
    params = [{"w": np.ones(2, np.float32)}, None, {"w": np.zeros(2, np.float32)}]
    save_standard(tmp_path / "a", {"layers": params})
    assert_same(zipjax.read_checkpoint(tmp_path / "a"), {"layers": params})
    save_flax(tmp_path / "b", {"layers": params})
    found = zipjax.read_checkpoint(tmp_path / "b")
    assert found["layers"].keys() == {"0", "1", "2"}
    assert found["layers"]["1"] is None
    again = zipjax.read_checkpoint(tmp_path / "b", template={"layers": params})
    assert jax.tree.structure(again) == jax.tree.structure({"layers": params})


def test_typed_keys(tmp_path):
    params = {"w": np.ones(2, np.float32), "key": jax.random.key(3)}
    save_standard(tmp_path / "a", params)
    found = zipjax.read_checkpoint(tmp_path / "a", template=params)
    assert_same(found, params)
    for name in ("a.npz", "a.msgpack", "folder"):
        zipjax.write_checkpoint(tmp_path / "new" / name, params)
        own = zipjax.read_checkpoint(tmp_path / "new" / name, template=params)
        assert_same(own, params)


def test_texts_are_left_out(tmp_path, caplog):
    save_pytree(tmp_path / "a", {"w": np.ones(2, np.float32), "name": "digits"})
    assert set(zipjax.read_checkpoint(tmp_path / "a")) >= {"w"}
    assert "('name',) are no arrays" in caplog.text
    save_flax(tmp_path / "b", {"w": np.ones(2, np.float32), "name": "digits"})
    assert len(jax.tree.leaves(zipjax.read_checkpoint(tmp_path / "b"))) == 1


class Net(eqx.Module):
    first: eqx.nn.Linear
    drop: eqx.nn.Dropout
    second: eqx.nn.Linear
    act: object = jax.nn.relu

    def __call__(self, x):
        return self.second(self.drop(self.act(self.first(x))))


def equinox_net(seed=0, width=4):
    keys = jax.random.split(jax.random.key(seed))
    return Net(
        eqx.nn.Linear(3, width, key=keys[0]),
        eqx.nn.Dropout(0.25, inference=True),
        eqx.nn.Linear(width, 2, key=keys[1]),
    )


def test_equinox(tmp_path):
    net, path, out = equinox_net(), tmp_path / "a.eqx", tmp_path / "merged.eqx"
    eqx.tree_serialise_leaves(path, net)
    template = eqx.filter_eval_shape(equinox_net)
    found = zipjax.read_checkpoint(path, template=template)
    assert_same(found, eqx.filter(net, eqx.is_array))
    double = jax.tree.map(lambda x: 2 * x, found)
    zipjax.write_checkpoint(out, double, like=path, template=template)
    again = eqx.tree_deserialise_leaves(out, equinox_net(seed=1))
    assert again.drop.p == 0.25
    assert_same(eqx.filter(again, eqx.is_array), double)
    zipjax.write_checkpoint(tmp_path / "whole.eqx", net)
    assert (tmp_path / "whole.eqx").read_bytes() == path.read_bytes()


def test_equinox_needs_its_model(tmp_path):
    path = tmp_path / "a.eqx"
    eqx.tree_serialise_leaves(path, equinox_net())
    with pytest.raises(ValueError, match=r"have no names: pass a .* template=model"):
        zipjax.read_checkpoint(path)
    with pytest.raises(ValueError, match=r"holds 6 leaves, but the template has 2"):
        zipjax.read_checkpoint(path, template=equinox_net().first)
    with pytest.raises(
        ValueError, match=r"weight' is float32\[4, 3\] .* float32\[5, 3\]"
    ):
        zipjax.read_checkpoint(path, template=equinox_net(width=5))
    with pytest.raises(ValueError, match="is read as a whole"):
        zipjax.read_checkpoint(path, template=equinox_net(), select="first")


@pytest.mark.parametrize("save", [save_standard, save_flax])
@pytest.mark.parametrize("pure", [False, True])
def test_nnx(tmp_path, save, pure):
    """Variables are boxes around the arrays; pure dictionaries have none."""
    net = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))
    )
    state = nnx.state(net)
    stored = nnx.to_pure_dict(state) if pure or save is save_flax else state
    save(tmp_path / "a", stored)
    template = nnx.state(nnx.eval_shape(lambda: net))
    found = zipjax.read_checkpoint(tmp_path / "a", template=template)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert_same(found, state)
    zipjax.write_checkpoint(tmp_path / "b", found, like=tmp_path / "a")
    assert_same(
        zipjax.read_checkpoint(tmp_path / "b"), zipjax.read_checkpoint(tmp_path / "a")
    )


def test_haiku_keys_hold_slashes(tmp_path):
    params = {"mlp/~/linear_0": {"w": np.ones((2, 3), np.float32)}}
    for name in ("a.npz", "a.msgpack", "folder"):
        zipjax.write_checkpoint(tmp_path / name, params)
        assert_same(zipjax.read_checkpoint(tmp_path / name, template=params), params)
    found = zipjax.read_checkpoint(tmp_path / "folder", select="mlp/~/linear_0")
    assert_same(found, params["mlp/~/linear_0"])


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_are_refused_with_the_way_out(tmp_path, protocol):
    trace, path = tmp_path / "it-ran", tmp_path / "haiku.pkl"
    path.write_bytes(pickle.dumps({"w": Malicious(trace)}, protocol))
    with pytest.raises(ValueError, match=r"pickle.load.* zipjax.write_checkpoint"):
        zipjax.read_checkpoint(path)
    np.savez(tmp_path / "a.npz", w=np.array([Malicious(trace)], object))
    with pytest.raises(ValueError, match="a pickle can run any code"):
        zipjax.read_checkpoint(tmp_path / "a.npz")
    assert not trace.exists()


def test_unclear_formats_say_what_was_looked_for(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe nothing that is known")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("x")
    for name, found in (("a.bin", "24 bytes"), ("folder", r"\['notes.txt'\]")):
        with pytest.raises(ValueError, match=f"{found}.* Looked for .* Orbax .* Flax"):
            zipjax.read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"nothing' in|holds \['a.bin', 'fol"):
        zipjax.read_checkpoint(tmp_path / "b.npz")
    with pytest.raises(FileNotFoundError, match="nor a folder"):
        zipjax.read_checkpoint(tmp_path / "no" / "b.npz")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(ValueError, match=r"PyTorch's: zipjax\.interop\.torch"):
        zipjax.read_checkpoint(tmp_path / "a.pt")
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ValueError, match="HDF5"):
        zipjax.read_checkpoint(tmp_path / "a.h5")


def test_merged_models_are_zipjax_loads(tmp_path):
    spec = zipjax.PermutationSpec({"w": (None,)}, {})
    models = [{"w": np.ones(2, np.float32)}] * 2
    zipjax.save(tmp_path / "merged", zipjax.merge(models, spec, zipjax.average()))
    with pytest.raises(ValueError, match=r"read it with zipjax\.load"):
        zipjax.read_checkpoint(tmp_path / "merged")


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.msgpack", "a.eqx"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_half_files_are_told(tmp_path, name, share):
    path, net = tmp_path / name, equinox_net()
    if name == "a.eqx":
        eqx.tree_serialise_leaves(path, net)
    else:
        zipjax.write_checkpoint(path, PARAMS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=name):
        zipjax.read_checkpoint(path, template=net if name == "a.eqx" else None)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.msgpack", "a.eqx"])
def test_changed_bytes_do_no_more_than_raise(tmp_path, name):
    path, changes = tmp_path / name, np.random.default_rng(0)
    params = {"w": np.arange(4, dtype=np.float32), "v": {"b": np.ones((1, 2))}}
    zipjax.write_checkpoint(path, params)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(150):
        damaged = whole.copy()
        damaged[changes.integers(whole.size)] = changes.integers(256)
        path.write_bytes(damaged.tobytes())
        with contextlib.suppress(ValueError):
            found = zipjax.read_checkpoint(path, template=params)
            assert jax.tree.structure(found) == jax.tree.structure(params)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.msgpack"])
def test_arrays_stay_in_their_file(tmp_path, name):
    path, params = tmp_path / name, {"w": np.arange(64.0), "v": np.ones((0, 8))}
    zipjax.write_checkpoint(path, params)
    found = zipjax.read_checkpoint(path)
    assert_same(found, dict(sorted(params.items())))
    base = found["w"]
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)


@pytest.mark.parametrize("name", ["a.npz", "a.msgpack", "folder"])
def test_shardings_of_the_template(tmp_path, name):
    mesh = jax.make_mesh((4,), ("x",))
    params = {"w": np.arange(32, dtype=np.float32).reshape(8, 4)}
    zipjax.write_checkpoint(tmp_path / name, params)
    sharding = NamedSharding(mesh, P("x"))
    shape = jax.ShapeDtypeStruct((8, 4), np.float32, sharding=sharding)
    found = zipjax.read_checkpoint(tmp_path / name, template={"w": shape})
    assert found["w"].sharding == sharding
    assert_same(found, params)


def test_large_arrays_of_flax_are_in_chunks(tmp_path, monkeypatch):
    params = {"w": np.arange(50, dtype=np.float32).reshape(5, 10), "v": np.ones(2)}
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    save_flax(tmp_path / "a", params)
    assert_same(zipjax.read_checkpoint(tmp_path / "a"), dict(sorted(params.items())))
    monkeypatch.setattr(msgpack, "_CHUNK", 64)
    zipjax.write_checkpoint(tmp_path / "b.msgpack", params)
    found = serialization.msgpack_restore((tmp_path / "b.msgpack").read_bytes())
    assert_same(found, params)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            {"w": np.ones((2, 3), np.float32)},
            r"'w' is float32\[2, 2\] .* float32\[2, 3\]",
        ),
        ({"w": np.ones((2, 2), np.float16)}, r"but float16\[2, 2\] in the template"),
        ({"v": np.ones((2, 2), np.float32)}, r"missing \['v'\]; unexpected \['w'\]"),
    ],
)
def test_templates_of_other_networks(tmp_path, template, told):
    zipjax.write_checkpoint(tmp_path / "a.npz", {"w": np.ones((2, 2), np.float32)})
    with pytest.raises(ValueError, match=told):
        zipjax.read_checkpoint(tmp_path / "a.npz", template=template)


def test_what_cannot_be_written(tmp_path):
    good, path = {"w": np.ones(2, np.float32)}, tmp_path / "a.npz"
    zipjax.write_checkpoint(path, good)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        zipjax.write_checkpoint(path, good)
    with pytest.raises(ValueError, match=r"'\.pkl': it can be \.npz, .* like="):
        zipjax.write_checkpoint(tmp_path / "a.pkl", good)
    with pytest.raises(ValueError, match=r"'f' is the .* not an array"):
        zipjax.write_checkpoint(tmp_path / "b.npz", {**good, "f": jax.nn.relu})
    with pytest.raises(ValueError, match="there are no parameters"):
        zipjax.write_checkpoint(tmp_path / "b.npz", {})
    with pytest.raises(ValueError, match="written alike, differ: missing"):
        zipjax.write_checkpoint(tmp_path / "b.npz", {"v": good["w"]}, like=path)
    twice = {"a/b": np.ones(2), "a": {"b": np.ones(2)}}
    with pytest.raises(ValueError, match="have the same path 'a/b'"):
        zipjax.write_checkpoint(tmp_path / "b.npz", twice)
    with pytest.raises(ValueError, match=r"of dtype \|S3"):
        zipjax.write_checkpoint(tmp_path / "b.safetensors", {"w": np.ones(2, "S3")})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", stop)
    for name in ("a.npz", "a.safetensors", "a.msgpack", "a.eqx"):
        with pytest.raises(OSError, match="full"):
            zipjax.write_checkpoint(tmp_path / name, PARAMS)
    assert os.listdir(tmp_path) == []


def test_merged_models_are_written(tmp_path):
    spec = zipjax.PermutationSpec({"w": (None,)}, {})
    models = [{"w": np.full(2, k, np.float32)} for k in (1, 3)]
    merged = zipjax.merge(models, spec, zipjax.average())
    zipjax.write_checkpoint(tmp_path / "a.npz", merged)
    assert_same(
        zipjax.read_checkpoint(tmp_path / "a.npz"), {"w": np.full(2, 2.0, np.float32)}
    )
    heads = zipjax.merge(models, spec, zipjax.average(), stop_at=0)
    with pytest.raises(ValueError, match="has 2 heads"):
        zipjax.write_checkpoint(tmp_path / "b.npz", heads)
