"""Pytrees as paths, and the first checks of the models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zipjax.trees import (
    check_models,
    check_same_keys,
    from_leaves,
    nested,
    path_leaves,
    stack_layers,
    unstack_layers,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array


TREE = {"a": {"layers": [Layer(jnp.ones((2, 3)), jnp.zeros(3))]}, "b": (jnp.ones(1),)}


def test_paths_of_dictionaries_lists_tuples_and_dataclasses():
    shapes = {path: leaf.shape for path, leaf in path_leaves(TREE).items()}
    assert shapes == {
        "a/layers/0/kernel": (2, 3),
        "a/layers/0/bias": (3,),
        "b/0": (1,),
    }


def test_leaves_of_one_path_are_told_apart_or_refused():
    with pytest.raises(
        ValueError, match=r"\['a'\]\['b'\] and \['a/b'\] .*rename a key"
    ):
        path_leaves({"a/b": 1.0, "a": {"b": 2.0}, "c": 3.0})
    assert path_leaves({"a/b": 1.0, "a": 2.0}) == {"a/b": 1.0, "a": 2.0}


def test_from_leaves_rebuilds_the_tree_whatever_the_order_of_the_leaves():
    leaves = dict(reversed(path_leaves(TREE).items()))
    rebuilt = from_leaves(leaves, TREE)
    assert jax.tree.structure(rebuilt) == jax.tree.structure(TREE)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, rebuilt, TREE)))


def test_nested_makes_plain_dictionaries():
    assert nested({"a/b/c": 1, "a/b/d": 2, "e": 3}) == {
        "a": {"b": {"c": 1, "d": 2}},
        "e": 3,
    }


def test_key_difference_names_both_sides_and_the_close_ones():
    with pytest.raises(ValueError, match="spec") as error:
        check_same_keys("the spec", ["dense/kernel", "x"], ["dense/kernal"], "Fix it.")
    message = str(error.value)
    assert "missing ['dense/kernel', 'x']" in message
    assert "unexpected ['dense/kernal']" in message
    assert "'dense/kernal' for 'dense/kernel'" in message
    assert message.endswith("Fix it.")


def test_same_keys_in_another_order_are_no_difference():
    check_same_keys("keys", ["a", "b"], ["b", "a"], "")
    with pytest.raises(ValueError, match=r"missing \['b'\]; unexpected nothing"):
        check_same_keys("keys", ["a", "b"], ["a"], "")


MODEL = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([{}, {}], "model 0 has no parameters"),
        ([MODEL, {"w": MODEL["w"]}], r"model 1 .*missing \['b'\]"),
        ([MODEL, MODEL | {"c": MODEL["b"]}], r"model 1 .*unexpected \['c'\]"),
        (
            [MODEL, MODEL | {"b": np.ones((3, 1), np.float32)}],
            r"'b' is float32\[3\] in model 0 but float32\[3, 1\] in model 1",
        ),
        (
            [MODEL, MODEL, MODEL | {"b": np.ones(3)}],
            r"'b' is float32\[3\] in model 0 but float64\[3\] in model 2",
        ),
        ([MODEL, MODEL | {"b": 1.5}], "'b' of model 1 is a float"),
        ([MODEL, MODEL | {"b": "text"}], "'b' of model 1 is a str"),
    ],
)
def test_models_that_cannot_be_merged(models, message):
    with pytest.raises(ValueError, match=message):
        check_models(models)


def test_models_of_one_architecture_give_their_leaves():
    first, second = check_models([MODEL, {"w": MODEL["w"], "b": 2 * MODEL["b"]}])
    assert list(first) == list(second)
    np.testing.assert_array_equal(second["b"], 2 * first["b"])


def test_layers_are_taken_apart_and_stacked_again():
    params = {
        "params": {
            "blocks": {"dense": {"kernel": np.arange(12.0).reshape(3, 2, 2)}},
            "blocks_norm": {"scale": np.ones(2)},
        }
    }
    apart = unstack_layers(params, "params/blocks")
    assert list(apart["params"]) == ["blocks_norm", "blocks_0", "blocks_1", "blocks_2"]
    np.testing.assert_array_equal(
        apart["params"]["blocks_1"]["dense"]["kernel"], [[4, 5], [6, 7]]
    )
    again = stack_layers(apart, "params/blocks")
    for path, leaf in path_leaves(params).items():
        np.testing.assert_array_equal(path_leaves(again)[path], leaf)


def test_layers_that_cannot_be_stacked_are_named():
    with pytest.raises(
        ValueError, match=r"'blocks' have the shapes .*'blocks/b': \[2\]"
    ):
        unstack_layers({"blocks": {"a": np.ones((3, 2)), "b": np.ones(2)}}, "blocks")
    with pytest.raises(ValueError, match=r"'blocks' have the shapes \{\}"):
        unstack_layers({"other": np.ones(3)}, "blocks")
    narrow = {"b_0": {"w": np.ones((2, 3))}, "b_1": {"w": np.ones((2, 4))}}
    with pytest.raises(ValueError, match=r"layers \[1\] differ from layer 0"):
        stack_layers(narrow, "b")
    with pytest.raises(ValueError, match="no layers at c_0"):
        stack_layers(narrow, "c")
