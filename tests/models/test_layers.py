"""What the networks compute, where it is easy to get wrong."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.zoo.case import normal, random_params
from tests.models.canonical import canonical
from zipjax.models import mlp, resnet, swin, vgg, vit
from zipjax.models.layers import conv
from zipjax.spec.entries import Axis
from zipjax.spec.permutation_spec import Perm, PermutationSpec


@pytest.mark.parametrize(("height", "width", "size"), [(7, 7, 7), (5, 8, 3), (2, 1, 4)])
def test_adaptive_pooling_averages_pytorchs_windows(
    height: int, width: int, size: int
) -> None:
    x = normal(2, height, width, 3)

    def window(k: int, length: int) -> slice:
        return slice(int(np.floor(k * length / size)), -int(-(k + 1) * length // size))

    expected = np.stack(
        [
            x[:, window(i, height), window(j, width)].mean(axis=(1, 2))
            for i in range(size)
            for j in range(size)
        ],
        axis=1,
    )
    found = vgg.adaptive_avg_pool(x, size).reshape(2, size * size, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_place_attends_to_its_window_and_not_around_the_border(shift: int) -> None:
    side, window = 6, 2
    attend = swin.WindowAttention(heads=2, window=window, shift=shift)
    x = jnp.asarray(normal(1, side, side, 4))
    params = random_params(jax.eval_shape(attend.init, jax.random.key(0), x))

    def outputs(x: jax.Array) -> jax.Array:
        return attend.apply(params, x).sum(axis=(0, 3))

    reads = np.abs(jax.jacobian(outputs)(x)).sum(axis=(2, 5)) > 1e-9
    number = (np.arange(side) + shift) // window
    rows = number[:, None, None, None] == number[None, None, :, None]
    columns = number[None, :, None, None] == number[None, None, None, :]
    np.testing.assert_array_equal(reads, rows & columns)


def test_cutting_into_squares_is_undone() -> None:
    x = jnp.asarray(normal(2, 4, 6, 3))
    squares = swin.tiles(x, 2)
    np.testing.assert_array_equal(squares[1, 1, 2], x[1, 2:4, 4:6])
    np.testing.assert_array_equal(swin.untiled(squares), x)


def test_group_norm_takes_the_place_of_batch_norm_under_the_same_names() -> None:
    x = jnp.zeros((1, 8, 8, 3))
    batch, group = (
        jax.eval_shape(resnet.ResNet20(2, 0.25, groups).init, jax.random.key(0), x)
        for groups in (None, 2)
    )
    assert set(batch) == {"params", "batch_stats"}
    assert set(group) == {"params"}
    assert group["params"] == batch["params"]


@pytest.mark.parametrize(
    ("model", "side", "message"),
    [
        (vit.ViT(2, width=10, depth=1, heads=3, patch=4), 8, "10 features.*3 heads"),
        (swin.Swin(2, 4, (1,), (2,), window=3, patch=1), 8, "3x3.*8x8 patches"),
        (swin.Swin(2, 4, (1, 1), (2, 2), window=5, patch=1), 5, "2x2.*5x5 patches"),
        (swin.Swin(2, 4, (1, 1), (2,), window=2, patch=1), 8, "shorter than"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    model: nn.Module, side: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


def test_a_spec_of_other_sizes_is_refused() -> None:
    x = jnp.zeros((1, 8, 8, 3))
    params = jax.eval_shape(resnet.ResNet20(2, 0.5).init, jax.random.key(0), x)
    with pytest.raises(ValueError, match="other widths"):
        resnet.spec(resnet.ResNet20(2, 0.25)).validate(params)


def test_canonical_specs_differ_by_all_but_names() -> None:
    def declared(name: str, role: str = "out", size: int = 4) -> PermutationSpec:
        axes = {
            "a": (None, Axis(name, "out")),
            "b": (Axis(name, role),),
            "c": (Axis(name, "in"), None),
        }
        return PermutationSpec(axes, {name: Perm(size)})

    assert canonical(declared("x")) == canonical(declared("y"))
    assert canonical(declared("x")) != canonical(declared("x", role="in"))
    assert canonical(declared("x")) != canonical(declared("x", size=5))


def test_layers_are_as_wide_as_their_parameters() -> None:
    x = normal(2, 5, 5, 3)
    narrow, wide = (conv(width, 3, name="c") for width in (4, 7))
    params = wide.init(jax.random.key(0), x)
    expected = wide.apply(params, x)
    np.testing.assert_array_equal(narrow.apply(params, x), expected)
    narrow = mlp.MLP((4,), 2)
    params = mlp.MLP((7,), 2).init(jax.random.key(0), x)
    expected = mlp.MLP((7,), 2).apply(params, x)
    np.testing.assert_array_equal(narrow.apply(params, x), expected)
