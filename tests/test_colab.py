"""The notebooks run as they stand, and what their texts say of the results holds."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

NOTEBOOKS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent.parent / "colab").glob("*.ipynb"))
}
# What is the notebook's alone: installing, and what belongs to IPython.
MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)


def codes(name):
    cells = NOTEBOOKS[name]["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def run(name):
    """Returns a notebook's names after its last cell, which shows a figure."""
    names: dict = {}
    shown = None
    for code in codes(name):
        *statements, last = ast.parse(MAGIC.sub(r"\1pass", code)).body
        exec(compile(ast.Module(statements, []), name, "exec"), names)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), name, "eval"), names)
        else:
            exec(compile(ast.Module([last], []), name, "exec"), names)
    assert isinstance(shown, Figure)
    return names


def test_every_notebook_has_a_test():
    assert NOTEBOOKS
    assert all(f"test_{name}" in globals() for name in NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_as_it_was_written(name):
    first, *_ = codes(name)
    assert "%pip install" in first
    assert "%matplotlib inline" in first
    for cell in NOTEBOOKS[name]["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_quickstart():
    joint = run("quickstart")["joint"]
    assert joint["average"] < joint["zipit"] < joint["refit"]


def test_your_own_flax_model():
    names = run("your_own_flax_model")
    assert {perm.size for perm in names["spec"].perms.values()} == {16, 32}
    scores = {name: np.mean(own) for name, own in names["scores"].items()}
    assert scores["averaged"] + 0.1 < scores["zipped"] < scores["+ refit"]
    assert min(names["scores"]["+ refit"]) > 0.85
    assert all(0 < alike < 1 for alike in names["alike"].values())


def test_two_pytorch_checkpoints():
    names = run("two_pytorch_checkpoints")
    scores = {name: np.mean(own) for name, own in names["scores"].items()}
    assert scores["averaged"] + 0.1 < scores["zipped"] < scores["merged file"]
    assert min(names["scores"]["merged file"]) > 0.85
    # What was written has PyTorch's layout: the kernel (out, in, height, width).
    merged, refitted = names["merged"], names["refitted"].params()["params"]
    assert {k: x.shape for k, x in merged.items()} == {
        k: x.shape for k, x in names["states"][0].items()
    }
    kernel = np.asarray(refitted["conv2_1"]["kernel"])
    np.testing.assert_array_equal(
        merged["features.3.weight"], kernel.transpose(3, 2, 0, 1)
    )


def test_mudsc_and_the_balance():
    names = run("mudsc_and_the_balance")
    assert names["tested"]["average"] + 0.1 < min(
        names["tested"]["zip"], names["tested"]["align"]
    )
    for found in names["searches"].values():
        assert found.best.score > found.trials[-1].score
    assert names["searches"]["zip"].best.settings["balance"] == 0
    assert names["searches"]["align"].best.settings["balance"] > 0
    # Pairs are alike in what they were picked by, and in the middle in both.
    (w0, a0), (w, a), (w1, a1) = names["means"].values()
    assert w1 > w0
    assert a0 > a1
    assert w + a > max(w0 + a0, w1 + a1)


def test_partial_zips_and_different_tasks():
    names = run("partial_zips_and_different_tasks")
    assert names["cuts"] == [0, 1, 2, 3]
    both, *cost = names["cost"]
    assert both > cost[0] > cost[1] > cost[2]
    assert 0.45 < cost[2] / both < 0.55
    parents, *zipped = np.mean(names["zipped"], 1)
    refitted = np.mean(names["refitted"], 1)[1:]
    assert parents > zipped[0] > zipped[2]
    assert (refitted > np.array(zipped)).all()
    assert refitted.min() > parents - 0.05


def test_loss_landscapes():
    names = run("loss_landscapes")
    barriers, lines = names["barriers"], names["lines"]
    assert barriers["aligned by activations"] < barriers["as they are"] / 4
    assert barriers["aligned by weights"] < barriers["as they are"] / 4
    # An order of units changes no network: all lines have the same ends.
    ends = np.array([line[[0, -1]] for line in lines.values()])
    np.testing.assert_allclose(ends, ends[:1].repeat(3, 0), rtol=1e-4)
    # The plane goes through the three networks that it is laid through.
    found = [
        names["test_loss"](names["restored"](names["origin"] + x @ names["directions"]))
        for x in names["corners"]
    ]
    np.testing.assert_allclose(found, ends[0][[0, 1, 1]], rtol=1e-3)


def test_transformers():
    names = run("transformers")
    planted, found = names["planted"], names["found"]
    assert planted[names["heads"]].tolist() != [0, 1, 2, 3]
    for perm, order in planted.items():
        np.testing.assert_array_equal(found[perm][..., order.shape[-1] :], order)
    scores = {name: np.mean(own) for name, own in names["scores"].items()}
    assert scores["averaged"] < scores["zipped"] < scores["+ refit"]
    assert min(names["scores"]["+ refit"]) > 0.85
