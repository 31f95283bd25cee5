"""The code on the pages runs as it stands there, and their figures are ours."""

import pickle
import re
import runpy
import shlex
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

import zipjax
from zipjax.command.main import main
from zipjax.interop.torch import from_flax, save_state_dict
from zipjax.models import resnet

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in DOCS.rglob("*.md")}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(r"(?<![\d.])\d+\.\d(?![\d.])")
# The code of these goes on with the names of the first page.
LATER = (
    "devices.md",
    "guides/calibration.md",
    "guides/failures.md",
    "guides/folding.md",
    "guides/many_models.md",
    "recipes.md",
)
OWN_TEST = ("checkpoints.md", "command.md", "devices.md", "index.md", "pytorch.md")


def blocks(page):
    return BLOCK.findall(PAGES[page])


def with_python():
    return {page for page in PAGES if any(kind == "python" for kind, _ in blocks(page))}


def drawn(net, seed):
    """Returns random variables, positive as variances are, without compiling."""
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: np.float32(rng.uniform(0.1, 1, s.shape)), shapes)


def run(page, names, edit=str):
    for kind, code in blocks(page):
        if kind == "python":
            exec(compile(edit(code), page, "exec"), names)
    return names


@pytest.fixture(scope="module")
def start():
    return run("index.md", {})


def test_the_first_page_has_its_own_figures(start):
    averaged = jax.tree.map(lambda x, y: (x + y) / 2, *start["models"])
    params = dict(zip(("first", "second"), start["models"], strict=True))
    params |= {"averaged": averaged, "zipped": start["merged"].params()}
    rows = re.findall(
        r"^\| (\w+) \| ([\d.]+)% \| ([\d.]+)% \|", PAGES["index.md"], re.M
    )
    assert [name for name, *_ in rows] == list(params)
    for name, *figures in rows:
        found = [100 * start["accuracy"](params[name], x) for x in start["tasks"]]
        np.testing.assert_allclose(found, np.float64(figures), atol=3, err_msg=name)


@pytest.mark.parametrize("page", sorted(with_python() - {*OWN_TEST, *LATER}))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page, {})


@pytest.mark.parametrize("page", sorted({*LATER} - {*OWN_TEST}))
def test_the_code_of_a_later_page_runs(page, start, tmp_path, monkeypatch):
    assert "[Start here](" in PAGES[page]
    monkeypatch.chdir(tmp_path)
    run(page, dict(start))


def test_the_page_about_devices(start, tmp_path, monkeypatch):
    """In one process; several are in test_hosts.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax.distributed, "initialize", lambda: None)
    run("devices.md", dict(start))
    assert zipjax.load("merged").num_outputs == 1


def test_the_page_about_pytorch(tmp_path, monkeypatch):
    """Without PyTorch: its files are read as .npz, which holds the same arrays."""
    monkeypatch.chdir(tmp_path)
    small = resnet.ResNet20(10, width=0.25, blocks=1)
    for seed, name in enumerate(("first", "second")):
        save_state_dict(f"{name}.safetensors", from_flax(small, drawn(small, seed)))
    padded = resnet.ResNet20(10, padded=True)
    state = from_flax(padded, drawn(padded, 0))
    state = {f"module.{key}": value for key, value in state.items()}
    save_state_dict("resnet20-12fca82f.npz", state)
    rng = np.random.default_rng(0)
    sizes = {"0.weight": (8, 5), "0.bias": 8, "2.weight": (3, 8), "2.bias": 3}
    for k in (1, 2):
        arrays = {key: rng.normal(size=size) for key, size in sizes.items()}
        save_state_dict(
            f"mlp_{k}.safetensors", {key: np.float32(a) for key, a in arrays.items()}
        )
    run("pytorch.md", {}, lambda code: code.replace(".th", ".npz"))
    merged = zipjax.interop.torch.load_state_dict("mlp.safetensors")
    assert {key: value.shape for key, value in merged.items()} == {
        key: np.shape(np.empty(size)) for key, size in sizes.items()
    }


def test_the_reference_has_every_public_name_once():
    lines = [x for page in PAGES for x in re.findall(r"^::: (.*)", PAGES[page], re.M)]
    found = Counter(name.removeprefix("zipjax.") for name in lines)
    public = set(zipjax.__all__) - {"__version__"}
    assert {name for name in found if "." not in name} == public
    assert set(found.values()) == {1}


@pytest.mark.parametrize("page", ["choosing", "calibration", "many_models"])
def test_figures_of_the_guides_are_results(page):
    code = re.compile(r"```.*?```", re.DOTALL)
    found = set(FIGURE.findall(code.sub("", PAGES[f"guides/{page}.md"])))
    # Settings, and an exponent of the benchmarks.
    known = {*FIGURE.findall(PAGES["results.md"]), "0.3", "0.5", "0.1", "1.6"}
    assert found
    assert not found - known


def test_the_pictures_are_what_the_script_draws():
    names = runpy.run_path(str(DOCS / "tools" / "pictures.py"))
    for name in ("matrices", "spec", "partial"):
        assert (DOCS / "images" / f"{name}.svg").read_text() == names[name]()


def test_the_page_about_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.pkl").write_bytes(pickle.dumps({"w": np.ones(3)}))
    names = run("checkpoints.md", {})
    np.testing.assert_array_equal(names["again"]["hidden"]["kernel"], np.ones((4, 8)))
    assert set(names["variables"]) == {"params", "batch_stats"}
    assert int(names["merged"].params()["step"]) == 200


def test_the_page_about_the_command(tmp_path, monkeypatch):
    """Files have the names of their first lines; commands run in their order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = blocks("command.md")
    for _, code in (block for block in found if block[0] == "python"):
        name = code.splitlines()[0].removeprefix("# ")
        Path(name).write_text(code)
    rng = np.random.default_rng(0)
    for name in ("first.npz", "second.npz"):
        params = {"hidden": rng.normal(size=(5, 8)), "head": rng.normal(size=(8, 3))}
        zipjax.write_checkpoint(name, {k: np.float32(x) for k, x in params.items()})
    np.save("images.npy", rng.normal(size=(256, 5)).astype(np.float32))
    lines = [x for kind, code in found if not kind for x in code.splitlines()]
    assert len(lines) == 7
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "zipjax"
        assert main(arguments) == 0, line
    sys.modules.pop("my_nets")
    assert Path("refitted/params.npz").exists()


def test_flags_exist(capsys):
    text = (DOCS / "command.md").read_text()
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    known = capsys.readouterr().out
    for command in ("inspect", "verify", "apply-spec", "convert"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known += capsys.readouterr().out
    for flag in set(re.findall(r"--[a-z][a-z_-]*", text)):
        assert flag in known, flag
