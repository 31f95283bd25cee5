"""The command, as it is typed: what it writes, and what it says to mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.train_state import TrainState

import zipjax
from zipjax import pages
from zipjax.command import merging
from zipjax.command.inputs import read_batches
from zipjax.command.main import main
from zipjax.command.settings import Settings
from zipjax.trees import path_leaves

ROOT = Path(__file__).parents[2]

MODULE = """
import equinox as eqx
import jax
import numpy as np

number = 3

def apply(params, x):
    x = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    x = jax.nn.relu(x @ params["second"]["kernel"])
    return x @ params["head"]["kernel"]

def batches():
    rng = np.random.default_rng(0)
    for _ in range(6):
        yield rng.normal(size=(16, 5)).astype(np.float32)

def named():
    return [{"label": np.zeros(16), "image": batch} for batch in batches()]

def none():
    return []

def broken():
    raise RuntimeError("no data today")

def net():
    return eqx.nn.MLP(5, 3, 8, 2, key=jax.random.key(0))

def run(params, x):
    _, static = eqx.partition(net(), eqx.is_array)
    return jax.vmap(eqx.combine(params, static))(x)
"""
X = np.random.default_rng(1).normal(size=(80, 5)).astype(np.float32)


def network(seed):
    rng = np.random.default_rng(seed)
    shapes = {"first": (5, 8), "second": (8, 7), "head": (7, 3)}
    params = {k: {"kernel": rng.normal(size=s)} for k, s in shapes.items()}
    params["first"]["bias"] = rng.normal(size=8)
    return jax.tree.map(np.float32, params)


def apply(params, x):
    """The module's function, in numpy."""
    x = np.maximum(x @ params["first"]["kernel"] + params["first"]["bias"], 0)
    x = np.maximum(x @ params["second"]["kernel"], 0)
    return x @ params["head"]["kernel"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two networks, one the other with its units reordered."""
    (tmp_path / "my_nets.py").write_text(MODULE)
    (tmp_path / "bad_nets.py").write_text("import no_such_package")
    first, rng = network(0), np.random.default_rng(2)
    a, b = rng.permutation(8), rng.permutation(7)
    second = {
        "first": {k: x[..., a] for k, x in first["first"].items()},
        "second": {"kernel": first["second"]["kernel"][a][:, b]},
        "head": {"kernel": first["head"]["kernel"][b]},
    }
    zipjax.write_checkpoint(tmp_path / "a.npz", first)
    zipjax.write_checkpoint(tmp_path / "b.npz", second)
    zipjax.write_checkpoint(tmp_path / "c.npz", network(1))
    np.save(tmp_path / "x.npy", X)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_nets", "bad_nets", "merge_config"):
        sys.modules.pop(name, None)


FLAGS = ["--apply", "my_nets:apply", "--batches", "my_nets:batches", "--out", "out"]
MERGE = ["merge", "a.npz", "b.npz", *FLAGS]


def test_a_merge_of_a_network_with_its_own_copy(folder, capsys):
    assert main([*MERGE, "--recipe", "permute", "--batch-size", "10"]) == 0
    printed = capsys.readouterr()
    assert "2 perms, 3 layers, 2 cuts" in printed.out
    assert "an input of the function: first/kernel[0]" in printed.out
    assert "memory: models " in printed.out
    assert "moments: batch 5 of 5" in printed.err
    assert set(os.listdir("out")) == {
        *("params.npz", "manifest.json", "README.md", "report.html"),
        *("spec.json", "spec.txt"),
    }
    first, merged = (zipjax.read_checkpoint(x) for x in ("a.npz", "out/params.npz"))
    np.testing.assert_allclose(apply(merged, X), apply(first, X), rtol=1e-4, atol=1e-4)
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["settings"]["recipe"] == "permute"
    assert manifest["settings"]["apply"] == "my_nets:apply"
    assert manifest["zipjax"] == zipjax.__version__
    assert manifest["versions"]["jax"] == jax.__version__
    assert [m["parameters"] for m in manifest["models"]] == [
        5 * 8 + 8 + 8 * 7 + 7 * 3
    ] * 2
    assert manifest["models"][0]["fingerprint"] != manifest["models"][1]["fingerprint"]
    assert (manifest["batches"]["batches"], manifest["held_out"]["examples"]) == (5, 16)
    assert [score["network"] for score in manifest["scores"]] == [
        *("merged", "merged", "merged", "model 1")
    ]
    for score in manifest["scores"]:
        assert score["error"] < 1e-4
        assert score["correlation"] > 0.9999
        assert score["agreement"] == 1
    assert all(x["correlation"] > 0.99 for x in manifest["matched"])
    spec = zipjax.PermutationSpec.from_json(Path("out/spec.json").read_text())
    assert spec.sizes == {"first": 8, "second": 7}
    card = Path("out/README.md").read_text()
    assert "`permute()`" in card
    assert "zipjax merge a.npz b.npz" in card
    page = Path("out/report.html").read_text()
    assert page.count("<svg") == page.count('<p class="reading">') == 3
    assert pages.STYLE in page
    assert pages.SCRIPT in page
    assert page.count("<thead>") == 2
    assert '<a href="manifest.json"><code>manifest.json</code></a>' in page
    assert "<li>Function: <code>my_nets:apply</code></li>" in page
    assert "<td>mean of the models</td>" in page


def test_scores_are_those_of_numpy(folder):
    """Of weights that were averaged as they are, on files of arrays."""
    out = ["--batches", "x.npy", "--batch_size", "16", "--held_out", "x.npy"]
    flags = ["--apply", "my_nets:apply", "--out", "out", "--no-report", *out]
    assert main(["merge", "a.npz", "c.npz", "--recipe", "average", *flags]) == 0
    models = [zipjax.read_checkpoint(name) for name in ("a.npz", "c.npz")]
    mean = jax.tree.map(lambda x, y: (x + y) / 2, *models)
    merged = zipjax.read_checkpoint("out/params.npz")
    for path, leaf in path_leaves(mean).items():
        np.testing.assert_allclose(path_leaves(merged)[path], leaf, atol=1e-6)
    made, *parents = (apply(m, X).astype(np.float64) for m in (mean, *models))
    manifest = json.loads(Path("out/manifest.json").read_text())
    wanted = [*((made, y) for y in parents), (made, sum(parents) / 2), parents[::-1]]
    for score, (x, y) in zip(manifest["scores"], wanted, strict=True):
        deviation = np.linalg.norm(y - y.mean(0))
        assert score["error"] == pytest.approx(np.linalg.norm(x - y) / deviation, 1e-4)
        flat = [(z - z.mean(0)).ravel() for z in (x, y)]
        assert score["correlation"] == pytest.approx(np.corrcoef(*flat)[0, 1], abs=1e-3)
        same = np.mean(x.argmax(1) == y.argmax(1))
        assert score["agreement"] == pytest.approx(same)
    assert "report.html" not in os.listdir("out")


def test_parts_of_the_moments_match_as_all_of_them(folder, capsys):
    whole, parts = (["--no-report", "--out", name] for name in ("whole", "parts"))
    for flags in (whole, [*parts, "--memory_limit", "1500"]):
        assert main([*MERGE, "--recipe", "zipit", *flags]) == 0
    # Second moments take 4 * 16^2 and 4 * 14^2 bytes.
    assert "moments, part 2 of 2" in capsys.readouterr().err
    a, b = (zipjax.read_checkpoint(f"{x}/params.npz") for x in ("whole", "parts"))
    for path, leaf in path_leaves(a).items():
        np.testing.assert_allclose(path_leaves(b)[path], leaf, rtol=1e-6)


CONFIG = """
import ml_collections

def get_config():
    config = ml_collections.ConfigDict()
    config.models = ("a.npz", "c.npz")
    config.apply = "my_nets:apply"
    config.batches = "my_nets:named"
    config.inputs = ("image",)
    config.recipe = "zipit"
    config.settings = {"alpha": 0.3, "beta": 0.5}
    config.stop_at = 1
    config.out = "from_config"
    return config
"""


def test_a_config_whose_fields_flags_override(folder, capsys):
    Path("merge_config.py").write_text(CONFIG)
    flags = ["--out", "partial", "--set", "beta=1", "--refit", "--no-report"]
    assert main(["merge", "--config", "merge_config.py", *flags]) == 0
    manifest = json.loads(Path("partial/manifest.json").read_text())
    assert manifest["settings"]["settings"] == {"alpha": 0.3, "beta": 1}
    assert manifest["steps"] == ["refit"]
    assert manifest["parameters"] == ["params_0.npz", "params_1.npz", "merged"]
    heads = [zipjax.read_checkpoint(f"partial/params_{k}.npz") for k in (0, 1)]
    same = [
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, heads), strict=True)
    ]
    assert path_leaves(heads[0]).keys() == path_leaves(heads[1]).keys()
    # Only the first layer is shared.
    assert dict(zip(path_leaves(heads[0]), same, strict=True)) == {
        "first/bias": True,
        "first/kernel": True,
        "head/kernel": False,
        "second/kernel": False,
    }
    loaded = zipjax.load("partial/merged")
    np.testing.assert_array_equal(
        loaded.params(1)["head/kernel"]
        if False
        else loaded.params(1)["head"]["kernel"],
        heads[1]["head"]["kernel"],
    )
    assert not Path("from_config").exists()


def test_batches_of_files_and_folders(folder):
    Path("parts").mkdir()
    np.save("parts/b.npy", X[50:])
    np.save("parts/a.npy", X[:50])
    Path("parts/notes.txt").write_text("not read")
    settings = Settings(batches="parts", batch_size=32, held_out="x.npy")
    batches, held_out = read_batches(settings)
    assert [len(x) for (x,) in batches] == [32, 18, 30]
    np.testing.assert_array_equal(np.concatenate([x for (x,) in batches]), X)
    assert [len(x) for (x,) in held_out] == [32, 32, 16]
    np.savez("two.npz", mask=X[:, 0], image=X)
    settings = Settings(batches="two.npz", inputs=("image", "mask"), num_batches=1)
    ((image, mask),), _ = read_batches(settings)
    np.testing.assert_array_equal(image, X)
    np.testing.assert_array_equal(mask, X[:, 0])


def test_a_dry_run_writes_nothing(folder, capsys):
    before = sorted(os.listdir())
    assert main([*MERGE, "--dry-run"]) == 0
    assert "dry run: nothing was computed" in capsys.readouterr().out
    assert [x for x in sorted(os.listdir()) if x != "__pycache__"] == before


def save_orbax(path, seed):
    state = TrainState.create(apply_fn=None, params=network(seed), tx=optax.adam(1.0))
    with ocp.CheckpointManager(path) as manager:
        manager.save(5, args=ocp.args.StandardSave(state.replace(step=5)))


def test_train_states_of_orbax(folder, capsys):
    for name, seed in (("run_a", 0), ("run_b", 1)):
        save_orbax(folder / name, seed)
    flags = [*FLAGS, "--no-report", "--recipe", "git_rebasin"]
    assert main(["merge", "run_a", "run_b", *flags]) == 1
    told = capsys.readouterr().err
    assert "The parameters are ['params/first/bias'" in told or "['params/*" in told
    assert "--select chooses a part" in told
    assert main(["merge", "run_a", "run_b", *flags, "--select", "params"]) == 0
    with ocp.CheckpointManager(folder / "out" / "params") as manager:
        found = manager.restore(5, args=ocp.args.StandardRestore())
    assert jax.tree.map(np.shape, found) == {
        "params": jax.tree.map(np.shape, network(0))
    }


def test_models_of_equinox(folder):
    keys = jax.random.key(1), jax.random.key(2)
    for name, key in zip(("a.eqx", "b.eqx"), keys, strict=True):
        eqx.tree_serialise_leaves(name, eqx.nn.MLP(5, 3, 8, 2, key=key))
    flags = ["--apply", "my_nets:run", "--batches", "x.npy", "--out", "out"]
    flags += ["--template", "my_nets:net", "--no-report", "--recipe", "average"]
    assert main(["merge", "a.eqx", "b.eqx", *flags]) == 0
    nets = [
        eqx.tree_deserialise_leaves(x, eqx.nn.MLP(5, 3, 8, 2, key=keys[0]))
        for x in ("a.eqx", "b.eqx", "out/params.eqx")
    ]
    a, b, merged = (net.layers[1].weight for net in nets)
    np.testing.assert_allclose(merged, (a + b) / 2, rtol=1e-6)


MISTAKES = {
    "wrong path": (
        ["merge", "a.npz", "z.npz", *FLAGS],
        "there is no checkpoint at 'z.n",
    ),
    "no module": ([*MERGE, "--apply", "no_nets:apply"], "module 'no_nets' cannot be"),
    "broken module": (
        [*MERGE, "--apply", "bad_nets:f"],
        "No module named 'no_such_pac",
    ),
    "no function": ([*MERGE, "--apply", "my_nets:aply"], "no 'aply'; it has "),
    "no colon": ([*MERGE, "--apply", "my_nets.apply"], "pass package.module:function"),
    "no callable": ([*MERGE, "--apply", "my_nets:number"], "is the int 3: pass a func"),
    "no batches": ([*MERGE, "--batches", "my_nets:none"], "no batches: at least one"),
    "broken batches": (
        [*MERGE, "--batches", "my_nets:broken"],
        "RuntimeError in ",
    ),
    "no arrays": ([*MERGE, "--batches", "empty"], "holds no arrays: pass .npy"),
    "dictionaries": ([*MERGE, "--batches", "my_nets:named"], "--inputs"),
    "no input": (
        [*MERGE, "--batches", "my_nets:named", "--inputs", "img"],
        "there is no ['img']",
    ),
    "no batch file": ([*MERGE, "--batches", "y.npy"], "there is nothing at 'y.npy'"),
    "other inputs": (
        [*MERGE, "--batches", "wide.npy"],
        "the inputs have the shapes [[",
    ),
    "one model": (["merge", "a.npz", *FLAGS], "at least two models"),
    "other network": (["merge", "a.npz", "other.npz", *FLAGS], "missing ['first/bias'"),
    "no recipe": ([*MERGE, "--recipe", "zippit"], "choose from average, permute"),
    "no setting": ([*MERGE, "--set", "alfa=1"], "unexpected keyword argument 'alfa'"),
    "setting out of range": ([*MERGE, "--set", "alpha=2"], "alpha = 2"),
    "no cut": ([*MERGE, "--stop_at", "9"], "stop_at"),
    "no config": (["merge", "--config", "no.py"], "there is no config file 'no.py'"),
    "weights": ([*MERGE, "--weights", "0.5,0.1"], "their sum must be 1"),
    "exists": ([*MERGE[:-1], "x.npy"], "exists already"),
    "nothing given": (["merge"], "models is missing: pass --models"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(folder, capsys, name):
    np.save("wide.npy", X[:, :4])
    Path("empty").mkdir()
    zipjax.write_checkpoint("other.npz", {"first": {"kernel": np.ones((5, 8))}})
    before = sorted(x for x in os.listdir() if x != "__pycache__")
    arguments, told = MISTAKES[name]
    assert main(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    assert told in lines[-1]
    assert [x for x in sorted(os.listdir()) if x != "__pycache__"] == before


def test_a_config_that_fails(folder, capsys):
    Path("merge_config.py").write_text("def get_config():\n    return {'aply': 1}")
    assert main(["merge", "--config", "merge_config.py"]) == 1
    told = capsys.readouterr().err
    assert "there is no field 'aply'" in told
    assert "models is missing" in told
    assert told.count("\n") == 1


def test_wrong_command_lines_end_with_two(folder, capsys):
    for arguments in (["mrge"], ["merge", "--recip"], [*MERGE, "--set", "alpha"]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
    assert "NAME=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError("no space"), 1)]
)
def test_a_merge_that_ends_early_leaves_nothing(folder, monkeypatch, error, code):
    def stop(*arguments):
        raise error

    before = sorted(x for x in os.listdir() if x != "__pycache__")
    monkeypatch.setattr(merging, "write_page", stop)
    assert main([*MERGE, "--recipe", "average"]) == code
    assert sorted(x for x in os.listdir() if x != "__pycache__") == before


def test_bugs_are_not_hidden(folder, monkeypatch):
    def stop(*arguments):
        return np.ones(2) + np.ones(3)

    monkeypatch.setattr(merging, "compare", stop)
    with pytest.raises(ValueError, match="broadcast"):
        main([*MERGE, "--recipe", "average"])


def test_inspect(folder, capsys):
    assert main(["inspect", "a.npz"]) == 0
    printed = capsys.readouterr().out
    assert "a.npz: npz, 4 arrays, 0.5 kB" in printed
    assert "  head/kernel    float32[7, 3]" in printed
    flags = ["--apply", "my_nets:apply", "--batches", "x.npy"]
    assert main(["inspect", "a.npz", *flags, "--explain", "--spec", "s.json"]) == 0
    printed = capsys.readouterr().out
    assert "first: 8 units, depth 1" in printed
    spec = zipjax.PermutationSpec.from_json(Path("s.json").read_text())
    assert spec.sizes == {"first": 8, "second": 7}


def test_verify_and_apply_spec(folder, capsys):
    flags = ["--apply", "my_nets:apply", "--batches", "x.npy"]
    main(["inspect", "a.npz", *flags, "--spec", "s.json"])
    assert main(["verify", "a.npz", "c.npz", *flags, "--spec", "s.json"]) == 0
    assert capsys.readouterr().out.count("2 perms hold") == 2
    assert main(["apply-spec", "a.npz", "--spec", "s.json"]) == 0
    assert main(["apply-spec", "a.npz", "--spec", "s.json", "--out", "r.npz"]) == 0
    a, moved = (zipjax.read_checkpoint(x) for x in ("a.npz", "r.npz"))
    assert not np.array_equal(a["head"]["kernel"], moved["head"]["kernel"])
    np.testing.assert_allclose(apply(moved, X), apply(a, X), rtol=1e-5, atol=1e-5)
    np.savez("orders.npz", second=np.arange(7)[::-1])
    orders = ["--permutations", "orders.npz", "--out", "q.npz"]
    assert main(["apply-spec", "a.npz", "--spec", "s.json", *orders]) == 0
    moved = zipjax.read_checkpoint("q.npz")
    np.testing.assert_array_equal(moved["head"]["kernel"], a["head"]["kernel"][::-1])
    # A spec that does not hold: the units of one axis alone.
    text = Path("s.json").read_text()
    spec = zipjax.PermutationSpec.from_json(text)
    wrong = {**spec.entries, "head/kernel": (spec.entries["second/kernel"][0], None)}
    assert wrong != dict(spec.entries)
    zipjax.write_checkpoint("d.npz", {"first": {"kernel": np.ones((5, 8))}})
    capsys.readouterr()
    assert main(["apply-spec", "d.npz", "--spec", "s.json"]) == 1
    assert main(["verify", "a.npz", *flags, "--spec", "x.npy"]) == 1
    assert "'x.npy' is no spec" in capsys.readouterr().err


def test_convert(folder, capsys):
    assert main(["convert", "a.npz", "a.safetensors"]) == 0
    assert main(["convert", "a.safetensors", "orbax_a"]) == 0
    assert main(["convert", "orbax_a", "back.msgpack", "--select", "head"]) == 0
    found, a = zipjax.read_checkpoint("back.msgpack"), zipjax.read_checkpoint("a.npz")
    np.testing.assert_array_equal(found["kernel"], a["head"]["kernel"])
    assert main(["convert", "a.npz", "a.safetensors"]) == 1
    assert main(["convert", "a.npz", "a.pkl"]) == 1
    assert "can be .npz" in capsys.readouterr().err


def test_python_finds_the_command(folder):
    command = [sys.executable, "-m", "zipjax", "inspect", "a.npz"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "4 arrays" in done.stdout
