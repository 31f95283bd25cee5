"""The permutation spec: construction, validation, sizes, depth and cuts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import dense_params, dense_spec, flatten_spec
from zipjax import Axis, Fixed, Perm, PermutationSpec, Product, Sum
from zipjax.models import mlp, resnet

H_OUT, H_IN = Axis("h", "out"), Axis("h", "in")
AXES = {"first": (None, H_OUT), "bias": (H_OUT,), "last": (H_IN, None)}
PARAMS = {"bias": np.zeros(3), "first": np.zeros((2, 3)), "last": np.zeros((3, 4))}
SPEC = PermutationSpec(AXES, {"h": Perm(3)})


@pytest.mark.parametrize(
    ("axes", "perms", "message"),
    [
        (AXES, {}, r"missing \['h'\]"),
        (AXES, {"h": Perm(3), "g": Perm(2)}, r"unexpected \['g'\]"),
        (AXES | {"last": (None, None)}, {"h": Perm(3)}, r"'first', 'bias'.*by \[\]"),
        (
            {"last": (H_IN, None)},
            {"h": Perm(3)},
            r"produced by \[\] and consumed by \['last'\]",
        ),
        (AXES, {"h": Perm(0)}, "'h' has size 0"),
        (AXES, {"h": Perm(3, ("g",))}, r"'h' .*groups \('g',\)"),
    ],
)
def test_construction_checks_itself(axes, perms, message):
    with pytest.raises(ValueError, match=message):
        PermutationSpec(axes, perms)


def test_validate_accepts_arrays_and_shapes_in_any_order():
    SPEC.validate(PARAMS)
    SPEC.validate(jax.eval_shape(lambda: dict(reversed(PARAMS.items()))))


def test_validate_lists_parameters_and_entries_without_a_match():
    params = {"first": PARAMS["first"], "last": PARAMS["last"], "biass": np.zeros(3)}
    with pytest.raises(ValueError, match="differ") as error:
        SPEC.validate(params | {"extra": np.zeros(1)})
    message = str(error.value)
    assert "missing ['bias']" in message
    assert "unexpected ['biass', 'extra']" in message
    assert "'biass' for 'bias'" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": np.zeros(4)}, r"axis 0 of parameter 'bias' has size 4 .* size 3"),
        ({"last": np.zeros((5, 4))}, r"axis 0 of parameter 'last' has size 5"),
        ({"last": np.zeros(3)}, r"'last' has shape \[3\] but the spec has 2 entries"),
    ],
)
def test_validate_names_the_axis_of_another_size(change, message):
    with pytest.raises(ValueError, match=message):
        SPEC.validate(PARAMS | change)


def test_validate_checks_compounds():
    spec = PermutationSpec(
        {"k": (None, H_OUT), "w": (Product((Fixed(4), H_IN)), None)}, {"h": Perm(3)}
    )
    spec.validate({"k": np.zeros((2, 3)), "w": np.zeros((12, 1))})
    with pytest.raises(ValueError, match=r"'w' has size 13 .* has size 12"):
        spec.validate({"k": np.zeros((2, 3)), "w": np.zeros((13, 1))})


NESTED = PermutationSpec(
    {
        "qk": (None, Product((Axis("head", "out"), Axis("dim", "out")))),
        "scale": (Axis("head", "out"), Axis("dim", "out")),
        "wide": (Product((Axis("head", "in"), Axis("dim", "in"))), Axis("ff", "out")),
        "out": (Sum((Axis("ff", "in"), Fixed(2))), None),
    },
    {"head": Perm(2), "dim": Perm(5, ("head",)), "ff": Perm(7)},
)
SPECS = {
    "plain": SPEC,
    "compounds and groups": NESTED,
    "flatten": flatten_spec(16),
    "resnet": resnet.spec(resnet.ResNet20(10, 0.25)),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_json_round_trip(spec):
    again = PermutationSpec.from_json(spec.to_json())
    assert dict(again.entries) == dict(spec.entries)
    assert list(again.entries) == list(spec.entries)
    assert list(again.perms.items()) == list(spec.perms.items())
    assert again == spec
    assert hash(again) == hash(spec)


@pytest.mark.parametrize(
    "other",
    [
        PermutationSpec(AXES, {"h": Perm(4)}),
        PermutationSpec({"first": (None, H_OUT), "last": (H_IN, None)}, SPEC.perms),
        PermutationSpec(AXES | {"bias": (None,)}, SPEC.perms),
        "no spec",
    ],
)
def test_specs_of_other_content_differ(other):
    assert other != SPEC
    assert len({other, SPEC}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"entries": {}}',
        '{"entries": {"a": [{"x": 1}]}, "perms": {}}',
        "3",
    ],
)
def test_what_is_no_spec_in_json_is_refused(text):
    with pytest.raises(ValueError, match="is not a"):
        PermutationSpec.from_json(text)


def json_of(**changes):
    """The JSON of a spec, with other values at its top."""
    return json.dumps({**json.loads(SPEC.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json_of(perms={"h": {"size": 2.5, "groups": []}}), "sizes are whole"),
        (json_of(perms={"h": {"size": float("inf"), "groups": []}}), "sizes are whole"),
        (json_of(perms={"h": {"size": True, "groups": []}}), "sizes are whole"),
        (json_of(perms={"h": {"size": 3, "groups": ["h"]}}), "nested in one another"),
        (
            json_of(depths={"first": -1, "bias": 1, "last": 2}),
            r"\{'first': -1\} are no numbers",
        ),
        (
            json_of(depths={"first": 1.5, "bias": 1, "last": 2}),
            r"\{'first': 1.5\} are no numbers",
        ),
        (json_of(depths={"first": 1, "bias": 1}), r"missing \['last'\]"),
        ("[" * 100_000, "is not a"),
    ],
    ids=[
        *("fraction", "infinity", "truth", "circle"),
        *("negative", "half a layer", "a layer missing", "deep"),
    ],
)
def test_json_of_impossible_numbers_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        PermutationSpec.from_json(text)


def test_perms_are_not_nested_in_one_another():
    both = Product((Axis("a", "out"), Axis("b", "out")))
    read = Product((Axis("a", "in"), Axis("b", "in")))
    perms = {"a": Perm(2, ("b",)), "b": Perm(3, ("a",))}
    with pytest.raises(ValueError, match=r"perms \[.*\] are nested in one another"):
        PermutationSpec({"w1": (None, both), "w2": (read, None)}, perms)


@pytest.mark.parametrize("size", [2.5, np.nan, "3"], ids=str)
def test_sizes_are_whole_numbers(size):
    with pytest.raises(ValueError, match="sizes are whole numbers"):
        PermutationSpec(AXES, {"h": Perm(size)})


def test_members_of_an_unknown_perm():
    with pytest.raises(ValueError, match=r"no perm 'typo': choose one of \['h'\]"):
        SPEC.members("typo")


def test_a_spec_cannot_be_changed():
    with pytest.raises(TypeError):
        SPEC.entries["bias"] = (None,)
    with pytest.raises(TypeError):
        SPEC.perms["h"] = Perm(4)


def test_changing_the_callers_mappings_later_does_not_reach_the_spec():
    axes, perms = dict(AXES), {"h": Perm(3)}
    spec = PermutationSpec(axes, perms)
    axes["bias"], perms["h"] = (None,), Perm(9)
    assert spec == SPEC


def test_members_and_resize():
    assert SPEC.members("h") == [
        ("first", 1, H_OUT),
        ("bias", 0, H_OUT),
        ("last", 0, H_IN),
    ]
    assert NESTED.members("dim")[0] == ("qk", 1, Axis("dim", "out"))
    assert SPEC.resize({"h": 6}).sizes == {"h": 6}
    assert NESTED.resize({"dim": 9}).perms["dim"] == Perm(9, ("head",))
    assert SPEC.sizes == {"h": 3}


def shapes(**sizes):
    return {path: jax.ShapeDtypeStruct(s, jnp.float32) for path, s in sizes.items()}


@pytest.mark.parametrize(
    ("axes", "params", "sizes"),
    [
        (AXES, PARAMS, {"h": 3}),
        (
            # A flatten: the size follows from the bias.
            {"k": (None, H_OUT), "w": (Product((Fixed(4), H_IN)), None)},
            shapes(k=(2, 3), w=(12, 5)),
            {"h": 3},
        ),
        (
            # Only compounds: 4 h = 12 and h + g + 1 = 9.
            {
                "w": (
                    Product((Fixed(4), H_OUT)),
                    Sum((H_IN, Fixed(1), Axis("g", "out"))),
                ),
                "v": (Axis("g", "in"),),
            },
            shapes(w=(12, 9), v=(5,)),
            {"h": 3, "g": 5},
        ),
        (
            # The products follow from the plain axes, the sum from a product.
            NESTED.entries,
            shapes(qk=(3, 10), scale=(2, 5), wide=(10, 7), out=(9, 1)),
            {"head": 2, "dim": 5, "ff": 7},
        ),
    ],
)
def test_declare_solves_the_sizes(axes, params, sizes):
    assert PermutationSpec.declare(axes, params).sizes == sizes


def test_declare_keeps_groups():
    params = shapes(qk=(3, 10), scale=(2, 5), wide=(10, 7), out=(9, 1))
    spec = PermutationSpec.declare(NESTED.entries, params, {"dim": ("head",)})
    assert spec == NESTED


@pytest.mark.parametrize(
    ("axes", "params", "message"),
    [
        (AXES | {"ghost": (None,)}, PARAMS, r"missing \['ghost'\]"),
        (AXES, PARAMS | {"more": np.zeros(1)}, r"unexpected \['more'\]"),
        (AXES, PARAMS | {"last": np.zeros((5, 4))}, "has size 5 .* has size 3"),
        (
            {"w": (Product((H_OUT, Axis("g", "out"))), Sum((H_IN, Axis("g", "in"))))},
            shapes(w=(6, 5)),
            "do not follow from the other axes",
        ),
        (
            {"w": (Product((Fixed(4), H_OUT)), H_IN)},
            shapes(w=(13, 3)),
            "has size 13 .* has size 12",
        ),
    ],
)
def test_declare_refuses(axes, params, message):
    with pytest.raises(ValueError, match=message):
        PermutationSpec.declare(axes, params)


def test_perms_come_in_depth_order():
    axes = dense_spec((3, 4, 5, 6, 2)).entries
    perms = {"h2": Perm(6), "h0": Perm(4), "h1": Perm(5)}
    assert list(PermutationSpec(axes, perms).perms) == ["h0", "h1", "h2"]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_every_layer_of_a_plain_network_is_a_cut(depth):
    spec = dense_spec((3,) * (depth + 2))
    assert spec.layers == depth + 1
    names = [f"h{k}" for k in range(depth)]
    found = [(cut.number, cut.layers, cut.perm, cut.perms) for cut in spec.cuts]
    assert found == [
        (k, k, names[k - 1], tuple(names[:k])) for k in range(1, depth + 1)
    ]


def test_every_hidden_layer_of_the_mlp_is_a_cut():
    spec = mlp.spec(mlp.MLP((8, 4, 6), 2))
    assert [cut.layers for cut in spec.cuts] == [1, 2, 3]
    assert spec.layers == 4


def test_cuts_of_resnet20_are_those_of_the_papers():
    spec = resnet.spec(resnet.ResNet20(10))
    assert spec.layers == 20
    assert [(cut.perm, cut.layers) for cut in spec.cuts] == [
        ("stage1", 7),
        ("stage2", 13),
        ("stage3", 19),
    ]
    # A stream is zipped with every block that writes to it.
    assert [len(cut.perms) for cut in spec.cuts] == [4, 8, 12]
    assert set(spec.cuts[0].perms) == {"stage1", "layer1_0", "layer1_1", "layer1_2"}


def test_a_cut_through_a_residual_stream_is_none():
    stream_out, stream_in = Axis("s", "out"), Axis("s", "in")
    axes = {
        "embed": (None, stream_out),
        "up": (stream_in, H_OUT),
        "down": (H_IN, stream_out),
        "head": (stream_in, None),
    }
    spec = PermutationSpec(axes, {"s": Perm(4), "h": Perm(3)})
    assert spec.layers == 4
    assert [(cut.perm, cut.layers) for cut in spec.cuts] == [("s", 3)]


def test_stop_finds_a_cut_by_number_by_perm_and_by_default():
    spec = dense_spec((3, 4, 5, 2))
    first, last = spec.cuts
    assert spec.stop(1) == spec.stop("h0") == first
    assert spec.stop(2) == spec.stop("h1") == last
    assert spec.stop(0).perms == ()


@pytest.mark.parametrize(
    ("spec", "stop_at"),
    [
        (dense_spec((3, 4, 5, 2)), "h2"),
        (dense_spec((3, 4, 5, 2)), 3),
        (dense_spec((3, 4, 5, 2)), -1),
        (dense_spec((3, 4, 5, 2)), ""),
        (SPECS["resnet"], "layer1_0"),
        (SPECS["resnet"], "layer2_1"),
    ],
)
def test_an_invalid_stop_names_the_valid_ones(spec, stop_at):
    with pytest.raises(ValueError, match="not a valid cut") as error:
        spec.stop(stop_at)
    message = str(error.value)
    assert repr(stop_at) in message
    assert "0 (nothing is zipped)" in message
    for cut in spec.cuts:
        assert f"{cut.number} ({cut.perm!r}, {cut.layers} layers)" in message


def test_trunk_holds_what_is_not_deeper_than_the_cut():
    widths = (3, 4, 5, 2)
    spec, params = dense_spec(widths), dense_params(widths, 0)
    spec.validate(params)
    assert spec.trunk(0) == frozenset()
    assert spec.trunk("h0") == {"layers/0/w", "layers/0/b"}
    assert spec.trunk(2) == spec.trunk("h0") | {"layers/1/w", "layers/1/b"}


def test_trunk_of_resnet20_holds_whole_stages_with_their_statistics():
    trunk = SPECS["resnet"].trunk("stage2")
    stages = {path.split("/")[1].split("_")[0] for path in trunk}
    assert stages == {"conv1", "bn1", "layer1", "layer2"}
    assert "batch_stats/layer2_2/bn2/var" in trunk
    assert "params/layer2_0/shortcut_bn/bias" in trunk


def test_pairs_name_perms():
    with pytest.raises(ValueError, match=r"paired names \['z'\].*among \['h'\]"):
        PermutationSpec(SPEC.entries, SPEC.perms, paired=(("h", "z"),))
