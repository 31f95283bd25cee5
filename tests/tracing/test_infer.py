"""Names, order, roles, depths, notes and taps of inferred specs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.zoo.case import normal
from tests.zoo import convnets, sequences, vits
from zipjax import explain
from zipjax.models import mlp, resnet
from zipjax.spec.entries import Axis, Family, Fixed, Index, Product, Sum
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.tracing.infer import infer, infer_spec

DECLARED = {
    "mlp": (mlp.MLP((7, 9), 3), mlp.spec, normal(2, 4, 4, 1)),
    "resnet20": (resnet.ResNet20(10, 0.25), resnet.spec, normal(2, 8, 8, 3)),
}


def _shapes(model: nn.Module, x: np.ndarray) -> dict:
    return jax.eval_shape(model.init, jax.random.key(0), x)


def _renamed(spec: PermutationSpec) -> tuple[dict, dict]:
    """Numbers the perms in the order of the parameters."""
    numbers: dict[str, str] = {}

    def number(entry: object) -> object:
        if isinstance(entry, Axis):
            name = numbers.setdefault(entry.perm, f"perm {len(numbers)}")
            return Axis(name, entry.role)
        return entry

    paths = sorted(spec.entries)
    axes = {path: tuple(map(number, spec.entries[path])) for path in paths}
    return axes, {numbers[name]: perm for name, perm in spec.perms.items()}


@pytest.mark.parametrize("name", DECLARED)
def test_equals_the_declared_spec_up_to_names(name: str) -> None:
    model, declare, x = DECLARED[name]
    inferred, declared = infer_spec(model.apply, _shapes(model, x), x), declare(model)
    assert _renamed(inferred) == _renamed(declared)
    assert inferred.layers == declared.layers
    closed = [cut for cut in inferred.cuts if cut.boundary is None]
    assert [cut.layers for cut in closed] == [cut.layers for cut in declared.cuts]
    assert list(inferred.spans.values()) == list(declared.spans.values())


FULL = {
    # Three streams, nine blocks; with groups, groups and units in a group of each.
    "batch": (convnets.ResNet(convnets.batch_norm), 12),
    "group": (convnets.ResNet(convnets.eight_groups, width=16), 24),
    # The stream is pad + (pad + C + pad) + pad.
    "padded": (convnets.ResNet(convnets.batch_norm, padded=True), 14),
    # Channels of the first stage are groups of 2 in groups of 4 in groups of 8, so
    # 2 x 2 x 2 x 2; the paddings are 2 x 4 and 2 x 8, twice each; nine blocks of 2.
    "group-padded": (convnets.ResNet(convnets.eight_groups, width=16, padded=True), 30),
}


@pytest.mark.parametrize("name", FULL)
def test_perms_of_resnet_20(name: str) -> None:
    model, perms = FULL[name]
    x = normal(1, 16, 16, 3)
    spec = infer_spec(model.apply, _shapes(model, x), x)
    assert len(spec.perms) == perms
    assert spec.layers == 20


def test_network_order_not_the_order_of_names() -> None:
    def apply_fn(params: dict, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ params["z"])
        return jnp.tanh(hidden @ params["a"]) @ params["k"]

    params = {"a": np.ones((3, 4)), "k": np.ones((4, 2)), "z": np.ones((5, 3))}
    spec = infer_spec(apply_fn, params, normal(2, 5))
    assert list(spec.entries) == ["z", "a", "k"]
    assert spec.entries["a"] == (Axis("z", "in"), Axis("a", "out"))
    assert dict(spec.depths) == {"z": 1, "a": 2, "k": 3}


def test_flatten_is_a_product() -> None:
    case = convnets.CASES["vgg"]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    kernel = spec.entries["params/Dense_0/kernel"]
    flat = Product((Fixed(4), Axis("params/Conv_1", "in")))
    assert kernel == (flat, Axis("params/Dense_0", "out"))


def test_fused_qkv_is_a_sum_and_keys_consume() -> None:
    case = vits.CASES["vit-timm"]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    heads, inner, values = (f"params/FusedAttention_0/qkv{k}" for k in ("", ".2", ".3"))
    query, key, value = (
        Product((Axis(heads, "out"), inside))
        for inside in (Axis(inner, "out"), Axis(inner, "in"), Axis(values, "out"))
    )
    assert spec.entries["params/FusedAttention_0/qkv/bias"] == (
        Sum((query, key, value)),
    )
    assert spec.perms[inner].groups == spec.perms[values].groups == (heads,)
    assert spec.layers == 14


def test_fused_qkv_with_an_axis_of_its_own_is_a_family() -> None:
    case = vits.CASES["vit-general"]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    index, heads, inside = spec.entries["params/FusedAttention_0/qkv/bias"]
    assert index == Sum((Fixed(1), Fixed(1), Fixed(1)))
    assert isinstance(heads, Axis)
    assert isinstance(inside, Family)
    query, key, value = inside.members
    assert (query, key) == (Axis(query.perm, "out"), Axis(query.perm, "in"))
    assert value.perm != query.perm
    assert PermutationSpec.from_json(spec.to_json()) == spec


def test_tied_embeddings_produce() -> None:
    case = sequences.CASES["gpt2-tied"]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    stream = Axis("params/Embed_0", "out")
    assert spec.entries["params/Embed_0/embedding"] == (None, stream)
    assert spec.depths["params/Embed_0/embedding"] == 1


def test_layers_under_scan_have_orders_of_their_own() -> None:
    case = sequences.CASES["scan"]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    ((layers, count),) = spec.indices.items()
    assert count == 3
    stream = spec.perms["params/Dense_0"]
    assert stream.groups == ()
    assert all(p.groups[0] == layers for p in spec.perms.values() if p != stream)
    kernel = spec.entries["params/ScanBlock_0/Dense_0/kernel"]
    assert kernel[0] == Index(layers, 3)
    assert PermutationSpec.from_json(spec.to_json()) == spec


def test_units_belong_to_their_expert() -> None:
    case = sequences.CASES["experts"]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    assert spec.perms["params/up"].groups == ("params/router",)
    # The last product sums over experts and their units at once.
    assert spec.entries["params/up"][0].role == "out"
    assert [axis.role for axis in spec.entries["params/down"][:2]] == ["in", "in"]


def test_notes_travel_and_do_not_tell_specs_apart() -> None:
    case = convnets.CASES["mlp"]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    again = PermutationSpec.from_json(spec.to_json())
    assert again.notes == spec.notes
    assert explain(again) == explain(spec)
    assert hash(again) == hash(spec)
    bare = PermutationSpec(spec.entries, spec.perms, spec.depths)
    assert bare == spec
    assert "declared" in explain(bare)


def test_explain_names_the_users_line() -> None:
    case = convnets.CASES["vgg"]()
    text = explain(infer_spec(case.apply_fn, case.params, *case.inputs))
    assert "4 perms, 5 layers" in text
    assert "zoo/convnets.py" in text
    assert "params/Conv_0/kernel[0]: conv_general_dilated at" in text
    assert "params/Dense_2/bias[0]: an output of the function" in text


def test_taps_read_units_before_their_last_consumer() -> None:
    case = vits.CASES["vit-linen-mean"]()
    result = infer(case.apply_fn, case.params, *case.inputs)
    assert set(result.taps) == set(result.spec.perms)
    shapes = {
        name: result.program.avals[reads.last[0].value].shape
        for name, reads in result.taps.items()
    }
    # The stream before the mean over tokens; the heads where no units of theirs lie, in
    # the attention from 4 tokens to 4.
    assert shapes["params/Conv_0"] == (2, 4, vits.WIDTH)
    heads = "params/MultiHeadDotProductAttention_0/query"
    assert shapes[heads] == (2, vits.HEADS, 4, 4)
    values = "params/MultiHeadDotProductAttention_0/value"
    assert shapes[values] == (2, 4, vits.HEADS, vits.HEAD_DIM)
    inner = Axis(f"{heads}.2", "out")
    # Queries and keys are compared both.
    queries, keys = result.taps[f"{heads}.2"].last
    assert queries.value != keys.value
    for tap in (queries, keys):
        assert tap.entries == (None, None, Axis(heads, "out"), inner)
