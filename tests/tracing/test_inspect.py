"""The table of perms and their picture."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.zoo import vits
from zipjax import Axis, PermutationSpec, infer_spec, inspect
from zipjax.models import resnet

CUTS = {1: 7, 2: 13, 3: 19}


@pytest.fixture(scope="module")
def vit() -> PermutationSpec:
    case = vits.CASES["vit-linen-mean"]()
    return infer_spec(case.apply_fn, case.params, *case.inputs)


def plain() -> tuple:
    """Two layers as a function, without a framework."""
    shapes = {"a": (5, 7), "b": (7, 2)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    x = jax.ShapeDtypeStruct((1, 5), jnp.float32)
    return lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, (x,)


def test_prints_one_row_a_perm_and_the_cuts(capsys: pytest.CaptureFixture) -> None:
    inspect.main(["resnet20", "--shape", "1", "8", "8", "3", "--explain"])
    table, _, rest = capsys.readouterr().out.partition("\n\n")
    rows = [line for line in table.splitlines()[1:] if not line.startswith("===")]
    assert len(rows) == 12
    cuts = [x for x in table.splitlines() if x.startswith("===")]
    # After the stem and every block; closed after every stage, dotted otherwise.
    assert [int(x.split()[3]) for x in cuts] == list(range(1, 21, 2))
    closed = [x.partition(": ")[2] for x in cuts if "inside" not in x]
    assert closed == [f"{layers} of 20 layers" for layers in CUTS.values()]
    assert cuts[4].endswith(
        "9 of 20 layers, after params/layer2_0/conv2/kernel, "
        "inside params/layer2_0/conv2"
    )
    # A cut comes before the first perm that ends behind it.
    lines = table.splitlines()
    assert lines.index(cuts[0]) == 1
    assert lines[lines.index(cuts[3]) - 1].split()[:2] == ["4", "params/conv1"]
    assert rows[0].split()[:6] == [
        *("1", "params/layer1_0/conv1", "16", "2", "6", ".#.................."),
    ]
    assert rows[3].split()[3:6] == ["1-7", "25", "#######............."]
    assert "resnet.py" in rows[0]
    assert "frozen axes:" in rest


def test_nested_perms_name_their_groups(vit: PermutationSpec) -> None:
    lines = inspect.table(vit).splitlines()[1:]
    rows = [line.split() for line in lines if not line.startswith("===")]
    heads, first, second = rows[:3]
    assert heads[2:4] == ["4", "2"]  # No groups; the second layer.
    assert first[2:4] == second[2:4] == ["4x6", heads[0]]


def test_table_of_a_deep_network_stays_narrow() -> None:
    ends = [None, *(f"perm{k}" for k in range(99)), None]
    axes = {
        f"layer{k}": (a and Axis(a, "in"), b and Axis(b, "out"))
        for k, (a, b) in enumerate(itertools.pairwise(ends))
    }
    spec = PermutationSpec.declare(axes, {path: np.zeros((4, 4)) for path in axes})
    lines = inspect.table(spec).splitlines()
    bars = [line.split()[5] for line in lines[1:] if not line.startswith("===")]
    assert len(bars) == 99
    assert {(len(bar), bar.count("#")) for bar in bars} == {(34, 1)}


def test_picture_shows_spans_and_cuts() -> None:
    spec = resnet.spec(resnet.ResNet20(10))
    (axes,) = inspect.draw(spec).axes
    bars = [(bar.get_x() + 0.5, bar.get_width()) for bar in axes.patches]
    assert bars == [
        (low, high - low + 1) for low, high in map(spec.spans.get, spec.perms)
    ]
    lines = [float(line.get_xdata()[0]) - 0.5 for line in axes.lines]
    assert lines == list(CUTS.values())
    assert {line.get_linestyle() for line in axes.lines} == {"--"}
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"{name}  {size}" for name, size in spec.sizes.items()]
    assert axes.get_xlim() == (0.5, 20.5)


def test_picture_shows_cuts_inside_streams_as_dotted_lines(
    vit: PermutationSpec,
) -> None:
    (axes,) = inspect.draw(vit).axes
    styles = [line.get_linestyle() for line in axes.lines]
    assert styles == [":"] * 6 + ["--"]


def test_picture_tells_nested_perms_apart(vit: PermutationSpec) -> None:
    (axes,) = inspect.draw(vit).axes
    colors = [bar.get_facecolor() for bar in axes.patches]
    nested = [bool(perm.groups) for perm in vit.perms.values()]
    assert len(set(colors)) == 2
    assert [color == colors[1] for color in colors] == nested


def test_picture_of_an_imported_function_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "perms.png"
    inspect.main([f"{__name__}:plain", "--output", str(output)])
    assert output.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [output]
    assert "=== cut 1: 1 of 2 layers" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["no_such_module:x", "zipjax:no_such_name"])
def test_unknown_models_are_named(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        inspect.main([name])
    assert f"{name!r} is not a model" in capsys.readouterr().err
