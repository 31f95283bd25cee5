"""Saving and loading: the same outputs, clear errors, and no file harmed."""

import dataclasses
import errno
import gc
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import zipjax
from tests.networks import (
    FlattenNet,
    dense_apply,
    dense_params,
    dense_spec,
    flatten_spec,
    images,
    variables,
)
from tests.streams import INPUTS, apart, stream_apply, stream_params
from zipjax.checkpoints import _check_digests, _digests, load_tree, save_tree
from zipjax.trees import path_leaves

NET = FlattenNet()
X = images(6, (4, 4, 3))
WIDTHS = (3, 6, 5, 4)
DENSE = [dense_params(WIDTHS, seed) for seed in range(3)]


def flatten_merged(stop_at=None):
    models = [variables(NET, (4, 4, 3), seed) for seed in (1, 2)]
    return zipjax.merge(models, flatten_spec(4), zipjax.average(), stop_at=stop_at)


def dense_merged(stop_at=None, dtype=jnp.float32):
    models = jax.tree.map(lambda x: x.astype(dtype), DENSE)
    return zipjax.merge(models, dense_spec(WIDTHS), zipjax.average(), stop_at=stop_at)


def files_of(folder):
    """Every file's bytes, by its path within the folder."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same(found, expected):
    for ours, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("stop_at", [None, 0, 1, 2])
def test_what_comes_back_computes_the_same_outputs(tmp_path, stop_at):
    merged = flatten_merged(stop_at)
    zipjax.save(tmp_path / "merged", merged)
    loaded = zipjax.load(tmp_path / "merged")
    assert loaded.spec == merged.spec
    assert loaded.num_outputs == merged.num_outputs
    expected = zipjax.apply(NET.apply, merged, X)
    same(zipjax.apply(NET.apply, loaded, X), expected)
    for head in range(merged.num_outputs):
        same(loaded.params(head), merged.params(head))


@pytest.mark.parametrize("stop_at", [None, 1])
def test_like_gives_the_structure_back(tmp_path, stop_at):
    merged = dense_merged(stop_at)
    zipjax.save(str(tmp_path / "deep" / "er"), merged)
    for like in (DENSE[0], jax.eval_shape(lambda: DENSE[0])):
        loaded = zipjax.load(str(tmp_path / "deep" / "er"), like=like)
        assert jax.tree.structure(loaded) == jax.tree.structure(merged)
        same(
            zipjax.apply(dense_apply, loaded, X[:, 0, 0]),
            zipjax.apply(dense_apply, merged, X[:, 0, 0]),
        )
    # Without it, lists come back as dictionaries.
    plain = zipjax.load(tmp_path / "deep" / "er").params()
    assert set(plain["layers"]) == {"0", "1", "2"}


@pytest.mark.parametrize("like", [None, stream_params(0)])
def test_a_trunk_that_ends_inside_a_stream_comes_back(tmp_path, like):
    models, x = [stream_params(seed) for seed in range(2)], images(6, (INPUTS,))
    spec = zipjax.infer_spec(stream_apply, models[0], x)
    assignments = apart(spec, spec.stop(2), 2)
    merged = zipjax.merge_units(models, spec, assignments, stop_at=2)
    zipjax.save(tmp_path / "merged", merged)
    loaded = zipjax.load(tmp_path / "merged", like=like)
    same(loaded, merged)
    assert (loaded.spec, loaded.own) == (merged.spec, merged.own)
    assert loaded.origin == merged.origin
    if like is None:  # Lists come back as dictionaries.
        assert set(jax.tree.unflatten(loaded.structure, range(12))) == set(models[0])
    else:
        same(*(zipjax.apply(stream_apply, model, x) for model in (loaded, merged)))
        same(*(zipjax.repair(stream_apply, models, m, [x]) for m in (loaded, merged)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes_and_merged_widths_come_back(tmp_path, dtype):
    models = jax.tree.map(lambda x: x.astype(dtype), DENSE)
    spec = dense_spec(WIDTHS)
    assignments = {"h0": np.arange(18) // 2, "h1": np.arange(15) % 7}
    merged = zipjax.merge_units(models, spec, assignments)
    zipjax.save(tmp_path / "merged", merged)
    loaded = zipjax.load(tmp_path / "merged", like=models[0])
    assert loaded.spec.sizes == {"h0": 9, "h1": 7}
    same(loaded, merged)
    message = f"is {jnp.dtype(dtype)} in .*, but float32 in like"
    refuses(tmp_path / "merged", message, like=DENSE[0])


@pytest.mark.parametrize("stop_at", [None, 1])
def test_a_loaded_model_is_refitted_and_repaired_as_before(tmp_path, stop_at):
    merged = dense_merged(stop_at)
    zipjax.save(tmp_path / "merged", merged)
    loaded = zipjax.load(tmp_path / "merged", like=DENSE[0])
    assert loaded.origin == merged.origin
    x = images(30, (3,))
    for calibrate in (zipjax.refit, zipjax.repair):
        found, expected = (
            calibrate(dense_apply, DENSE, model, [x]) for model in (loaded, merged)
        )
        same(found, expected)


def test_weights_and_unknown_origins_come_back(tmp_path):
    weights = (0.25, 0.25, 0.5)
    spec = dense_spec(WIDTHS)
    weighted = zipjax.merge(DENSE, spec, zipjax.average(), weights=weights)
    zipjax.save(tmp_path / "weighted", weighted)
    assert zipjax.load(tmp_path / "weighted").origin == weighted.origin
    zipjax.save(tmp_path / "unknown", dataclasses.replace(weighted, origin=None))
    assert zipjax.load(tmp_path / "unknown").origin is None


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zipjax.save("merged", dense_merged())
    same(zipjax.load("merged").trunk, dense_merged().trunk)


def test_what_was_loaded_can_be_reset_and_saved_again(tmp_path):
    zipjax.save(tmp_path / "one", flatten_merged(1))
    loaded = zipjax.load(tmp_path / "one")
    reset = zipjax.reset_batch_stats(NET.apply, loaded, [X])
    zipjax.save(tmp_path / "two", reset)
    same(zipjax.load(tmp_path / "two").params(1), reset.params(1))


@pytest.mark.parametrize("kind", ["checkpoint", "folder", "file"])
def test_nothing_is_overwritten(tmp_path, kind):
    path = tmp_path / "taken"
    if kind == "checkpoint":
        zipjax.save(path, dense_merged())
    elif kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    else:
        path.write_text("years of work")
    before = files_of(tmp_path)
    assert before
    with pytest.raises(ValueError, match=r"taken' exists already"):
        zipjax.save(path, dense_merged(1))
    assert files_of(tmp_path) == before


def refuses(path, message, **options):
    """Loading fails, names the path and leaves all files as they are."""
    before = files_of(path.parent)
    with pytest.raises(ValueError, match=message) as error:
        zipjax.load(path, **options)
    assert str(path) in str(error.value)
    assert files_of(path.parent) == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "merged"
    zipjax.save(path, dense_merged(1))
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def scramble(path):
    data = bytearray(path.read_bytes())
    middle = slice(len(data) // 3, 2 * len(data) // 3)
    data[middle] = bytes(byte ^ 0x5A for byte in data[middle])
    path.write_bytes(bytes(data))


def loaded_or_error(path):
    try:
        return zipjax.load(path)
    except ValueError as error:
        return error


# Orbax leaves tasks running where one of several reads fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [Path.unlink, truncate, empty, scramble])
def test_a_damaged_file_is_an_error_or_did_not_matter(tmp_path, whole, damage):
    errors = 0
    for number, name in enumerate(sorted(files_of(whole))):
        copy = tmp_path / str(number) / "merged"
        shutil.copytree(whole, copy)
        damage(copy / name)
        before = files_of(copy.parent)
        loaded = loaded_or_error(copy)
        if isinstance(loaded, ValueError):
            errors += 1
            assert str(copy) in str(loaded), name
        else:
            same(loaded.trunk, dense_merged(1).trunk)
        assert files_of(copy.parent) == before
    assert errors >= 2
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_of_an_array_is_an_error(tmp_path):
    path, value = tmp_path / "tree", images(3000, (1,))
    save_tree(path, {"w": value}, {"name": "tree", "parts": (1, 2)})
    assert load_tree(path)[1] == {"name": "tree", "parts": [1, 2]}
    name = max(files_of(path), key=lambda name: (path / name).stat().st_size)
    data = bytearray((path / name).read_bytes())
    found = 0
    for place in np.linspace(len(data) // 4, 3 * len(data) // 4, 6, dtype=int):
        changed = data.copy()
        changed[place] ^= 1
        (path / name).write_bytes(bytes(changed))
        with pytest.raises(ValueError, match=r"tree' is damaged") as error:
            load_tree(path)
        found += "arrays ['w'] are not those that were saved" in str(error.value)
    assert found  # Orbax itself does not notice all of them.
    (path / name).write_bytes(bytes(data))
    np.testing.assert_array_equal(load_tree(path)[0]["w"], value)


def test_changed_arrays_and_metadata_are_named():
    leaves, metadata = {"w": np.arange(3.0), "b": np.ones(2)}, {"name": "tree"}
    digests = {"digests": _digests(leaves, metadata)}
    _check_digests(leaves, {**metadata, **digests})
    with pytest.raises(ValueError, match=r"arrays \['w'\] are not those"):
        _check_digests({**leaves, "w": np.arange(3.0) + 1e-9}, {**metadata, **digests})
    with pytest.raises(ValueError, match=r"arrays \['b'\] are not those"):
        _check_digests({**leaves, "b": np.ones((2, 1))}, {**metadata, **digests})
    with pytest.raises(ValueError, match="metadata are not those"):
        _check_digests(leaves, {"name": "three", **digests})
    _check_digests(leaves, metadata)  # Of earlier versions.


def make_missing(path):
    del path


def make_file(path):
    path.write_text("no checkpoint")


def make_folder(path):
    path.mkdir()


def make_notes(path):
    path.mkdir()
    (path / "notes.txt").write_text("my notes")


def make_foreign(path):
    ocp.save(str(path), {"weights": jnp.ones(3)})


def make_other_format(path):
    tree = {"weights": jnp.ones(3)}
    ocp.save(str(path), tree, custom_metadata={"format": "somebody's"})


def make_without_spec(path):
    tree = {"trunk": {"w": jnp.ones(3)}}
    ocp.save(str(path), tree, custom_metadata={"format": "zipjax.Merged"})


def make_with_broken_spec(path):
    metadata = {"format": "zipjax.Merged", "spec": "{}", "heads": 0}
    ocp.save(str(path), {"trunk": {"w": jnp.ones(3)}}, custom_metadata=metadata)


@pytest.mark.parametrize(
    "make",
    [
        make_missing,
        make_file,
        make_folder,
        make_notes,
        make_foreign,
        make_other_format,
        make_without_spec,
        make_with_broken_spec,
    ],
)
def test_what_is_no_merged_model_is_refused(tmp_path, make):
    path = tmp_path / "here"
    make(path)
    refuses(path, "here")


def test_like_of_another_network_lists_the_differences(whole):
    like = {"layers": dense_params((3, 6, 4), 0)["layers"]}
    refuses(whole, r"unexpected \['layers/2/b', 'layers/2/w'\]", like=like)


@pytest.mark.parametrize("shape", [(5, 5), (6, 6), (5,)])
def test_like_of_other_shapes_is_refused(whole, shape):
    like = dense_params(WIDTHS, 0)
    like["layers"][1]["w"] = np.ones(shape, np.float32)
    message = re.escape(f"but {list(shape)} in like")
    refuses(whole, rf"'layers/1/w' has shape \[6, 5\] in .* {message}", like=like)


def test_like_may_have_the_widths_before_or_after_the_merge(tmp_path):
    spec, path = dense_spec(WIDTHS), tmp_path / "merged"
    assignments = {"h0": np.arange(18) // 2, "h1": np.arange(15) % 7}
    zipjax.save(path, zipjax.merge_units(DENSE, spec, assignments))
    for like in (dense_params((3, 9, 7, 4), 0), DENSE[0]):
        assert zipjax.load(path, like=like).spec.sizes == {"h0": 9, "h1": 7}
    message = (
        r"'layers/0/b' has shape \[9\] in .* \(\[6\] before the merge\), but \[8\]"
    )
    refuses(path, message, like=dense_params((3, 8, 7, 4), 0))
    # Outputs have no perm: they are as they were saved.
    refuses(path, "'layers/2/b' has shape", like=dense_params((3, 9, 7, 5), 0))


def test_like_of_heads_that_are_other_functions(tmp_path):
    specs = [dense_spec(WIDTHS), dense_spec((3, 6, 5, 7, 4))]
    models = [dense_params(WIDTHS, 0), dense_params((3, 6, 5, 7, 4), 1)]
    merged = zipjax.merge(models, specs, zipjax.average(), stop_at="h0")
    zipjax.save(tmp_path / "merged", merged)
    loaded = zipjax.load(tmp_path / "merged", like=models)
    same(loaded.params(1), merged.params(1))
    wrong = [dense_params(WIDTHS, 0), dense_params((3, 6, 5, 8, 4), 1)]
    refuses(tmp_path / "merged", "'layers/2/b' has shape", like=wrong)


@pytest.mark.parametrize("tree", [DENSE[0], None, [1.0]])
def test_what_is_no_merged_model_is_not_saved(tmp_path, tree, untyped):
    with pytest.raises(ValueError, match=r"writes merged models, but this is a"):
        zipjax.save(tmp_path / "params", tree)
    assert not list(tmp_path.iterdir())


SAVE_AND_DIE = """
import os, sys, numpy as np
path, spec = sys.argv[1:3]

def die(event, arguments):
    if event == "os.rename" and str(arguments[1]) == path:
        os._exit(9)

sys.addaudithook(die)
import zipjax
weights = {"layers/0/w": np.ones((3, 4), np.float32)}
spec = zipjax.PermutationSpec.from_json(spec)
zipjax.save(path, zipjax.Merged(weights, (), spec, None))
"""


def test_a_save_that_is_killed_leaves_nothing_under_the_name(tmp_path):
    """Killed where everything is written, at the last step."""
    path = tmp_path / "merged"
    spec = dense_spec(WIDTHS).to_json()
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SAVE_AND_DIE, str(path), spec],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 9, done.stderr.decode()[-2000:]
    # It did write, but not under this name.
    assert files_of(tmp_path)
    assert not path.exists()
    refuses(path, "no checkpoint")
    zipjax.save(path, dense_merged())
    same(zipjax.load(path).trunk, dense_merged().trunk)
    assert os.listdir(tmp_path) == ["merged"]


def test_the_spec_is_kept_as_json(whole):
    metadata = ocp.metadata(str(whole)).custom_metadata
    assert json.loads(metadata["spec"])["perms"]["h0"]["size"] == 6
    assert path_leaves(ocp.metadata(str(whole)).metadata["trunk"])


@pytest.mark.parametrize(
    "error",
    [
        ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes [os_error_code='28']"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_disk_that_is_full_is_told_by_the_system(tmp_path, monkeypatch, error):
    def full(*args, **options):
        raise error

    monkeypatch.setattr(ocp, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*merged") as told:
        zipjax.save(tmp_path / "merged", dense_merged(None))
    assert told.value.errno == errno.ENOSPC


def test_other_errors_of_saving_stay_what_they_are(tmp_path, monkeypatch):
    def odd(*args, **options):
        raise ValueError("odd")

    monkeypatch.setattr(ocp, "save", odd)
    with pytest.raises(ValueError, match="odd"):
        zipjax.save(tmp_path / "merged", dense_merged(None))
