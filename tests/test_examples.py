"""The examples run as their READMEs say, with the figures that these tell."""

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

import zipjax
from zipjax.command.main import main

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
PERMS = {
    "with_linen": 2,
    "with_haiku": 2,
    "with_nnx": 1,
    "with_equinox": 2,
    "without_framework": 1,
}


def test_every_framework_has_an_example():
    assert set(PERMS) == {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("name", PERMS)
def test_the_example_merges_its_networks(name):
    (path,) = (path for path in EXAMPLES if path.stem == name)
    done = runpy.run_path(str(path))
    assert len(done["spec"].perms) == PERMS[name]
    assert done["outputs"].shape == (8, 3)
    assert np.isfinite(done["outputs"]).all()
    # The merged parameters are a pytree of the framework's own structure.
    assert type(done["merged"].params()) is type(done["models"][0])


def test_the_list_has_every_example():
    listed = set(re.findall(r"\]\(([\w.]+)", (FOLDER / "README.md").read_text()))
    own = {path.name for path in FOLDER.iterdir() if path.name != "__pycache__"}
    assert listed - {".."} == own - {"README.md"}


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """Returns a function that runs the lines of an example's README in a copy."""
    before = set(sys.modules)

    def follow(name):
        """Returns the names of the last script, whose scores the README tells."""
        shutil.copytree(FOLDER / name, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        text, names = (tmp_path / "README.md").read_text(), {}
        (lines,) = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in lines.splitlines():
            program, *arguments = shlex.split(line)
            if program == "zipjax":
                assert main(arguments) == 0
            else:
                assert program == "python"
                monkeypatch.setattr(sys, "argv", arguments)
                names = runpy.run_path(arguments[0])
        rows = re.findall(r"^\| ([\w ]+) \|(.*%.*)\|$", text, re.MULTILINE)
        told = {row: [float(x) for x in re.findall(r"[\d.]+", x)] for row, x in rows}
        assert set(told) == set(names["scores"])
        for row, figures in told.items():
            found = 100 * np.array(names["scores"][row])
            np.testing.assert_allclose(found, figures, atol=4, err_msg=row)
        return names

    yield follow
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


def merged_by_hand(net, models):
    """Returns the spec, the batches and the zip that the command makes."""
    batches = net.batches()[:8]  # The last fifth is for the comparison.
    spec = zipjax.infer_spec(net.apply, models[0], batches[0])
    moments = zipjax.collect_moments(net.apply, models, spec, batches)
    return batches, zipjax.merge(models, spec, zipjax.zipit(), moments=moments)


def assert_same(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )


@pytest.mark.slow
def test_the_nnx_classifier(followed):
    scores = followed("nnx_classifier")["scores"]
    assert scores["merged"][2] > scores["averaged"][2] + 0.1
    manifest = json.loads(Path("merged/manifest.json").read_text())
    assert manifest["steps"] == ["reset"]
    net = sys.modules["nnx_net"]
    first, second, found = (
        zipjax.read_checkpoint(path, template=net.template())
        for path in ("first", "second", "merged/params")
    )
    batches, merged = merged_by_hand(net, [first, second])
    merged = zipjax.reset_batch_stats(net.apply, merged, batches)
    assert_same(found, merged.params())


@pytest.mark.slow
def test_the_equinox_classifier(followed):
    scores = followed("equinox_classifier")["scores"]
    assert scores["merged"][2] > scores["averaged"][2] + 0.05
    manifest = json.loads(Path("merged/manifest.json").read_text())
    assert manifest["steps"] == ["refit"]
    net = sys.modules["eqx_net"]
    models = [
        eqx.filter(eqx.tree_deserialise_leaves(path, net.make_net()), eqx.is_array)
        for path in ("first.eqx", "second.eqx", "merged/params.eqx")
    ]
    batches, merged = merged_by_hand(net, models[:2])
    merged = zipjax.refit(net.apply, models[:2], merged, batches)
    assert_same(models[2], merged.params())


@pytest.mark.slow
def test_the_decoders_of_two_texts(followed):
    names = followed("decoder")
    scores = {name: np.mean(own) for name, own in names["scores"].items()}
    order = ("averaged", "zipped", "refitted", "shared attention")
    assert sorted(order, key=scores.__getitem__) == list(order)
    # A later character changes no earlier logits.
    lines = names["batches"][0][:2]
    changed = np.where(np.arange(lines.shape[1]) < 5, lines, 0)
    before, after = (names["run"](names["models"][0], x) for x in (lines, changed))
    np.testing.assert_allclose(before[:, :5], after[:, :5], rtol=1e-5, atol=1e-5)
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 0.1
    # Heads, and the units within them.
    sizes = [perm.size for perm in names["spec"].perms.values()]
    assert sorted(sizes) == [4, 16, 16, 64, 128]
