"""Networks of torchvision, timm and PyTorch compute the same with our parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from tests.models import catalog
from tests.networks import images, relative_error
from zipjax.interop.torch import from_flax, to_flax
from zipjax.models import mlp, resnet, swin, vgg, vit

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
torchvision = pytest.importorskip("torchvision", reason="needs torchvision")
timm = pytest.importorskip("timm", reason="needs timm")

OUTPUTS = 5
DEPTHS = (1, 1, 1, 1)


class Pair(NamedTuple):
    """The same network twice.

    Attributes:
      make: returns PyTorch's.
      model: ours.
      naming: whose names are written back.
      side: side of the images.
    """

    make: Callable[[], Any]
    model: Any
    naming: str
    side: int = 32


def torchvision_resnet(block):
    return torchvision.models.ResNet(block, list(DEPTHS), num_classes=OUTPUTS)


def timm_resnet(**options):
    block = timm.models.resnet.Bottleneck
    return timm.models.ResNet(block, DEPTHS, num_classes=OUTPUTS, **options)


def torchvision_vgg(channels, pool, batch_norm):
    """The classifier's widths are fixed: shrunk before they take memory."""
    with torch.device("meta"):
        layers = torchvision.models.vgg.make_layers(channels, batch_norm)
        net = torchvision.models.VGG(layers, OUTPUTS, init_weights=False)
        net.avgpool.output_size = (pool, pool)
        net.classifier[0] = torch.nn.Linear(channels[-2] * pool**2, 12)
        net.classifier[3] = torch.nn.Linear(12, 10)
        net.classifier[6] = torch.nn.Linear(10, OUTPUTS)
    return net.to_empty(device="cpu")


def timm_vit(**options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3}
    return timm.models.VisionTransformer(
        **sizes, depth=2, num_classes=OUTPUTS, **options
    )


def torchvision_vit():
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24,
        mlp_dim=40, num_classes=OUTPUTS,
    )  # fmt: skip


def timm_swin():
    return timm.models.SwinTransformer(
        img_size=32, patch_size=2, window_size=8, embed_dim=12, depths=(2, 1, 1),
        num_heads=(2, 3, 4), num_classes=OUTPUTS,
    )  # fmt: skip


def torchvision_swin():
    return torchvision.models.SwinTransformer(
        [2, 2], 12, [2, 1], [2, 3], [4, 4], num_classes=OUTPUTS
    )


def perceptron(*first):
    nn = torch.nn
    layers = [nn.Linear(48, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU()]
    return nn.Sequential(*first, *layers, nn.Linear(6, OUTPUTS))


PAIRS = {
    "resnet-basic": Pair(
        lambda: torchvision_resnet(torchvision.models.resnet.BasicBlock),
        resnet.ResNet(OUTPUTS, DEPTHS, resnet.basic),
        "torchvision",
    ),
    "resnet-bottleneck": Pair(
        lambda: torchvision_resnet(torchvision.models.resnet.Bottleneck),
        resnet.ResNet(OUTPUTS, DEPTHS),
        "torchvision",
    ),
    "resnet-timm-group": Pair(
        lambda: timm_resnet(norm_layer=timm.layers.GroupNorm),
        resnet.ResNet(OUTPUTS, DEPTHS, groups=32),
        "torchvision",
    ),
    "resnet-timm-deep": Pair(
        lambda: timm_resnet(stem_type="deep", stem_width=32, avg_down=True),
        resnet.ResNet(OUTPUTS, DEPTHS, deep=True),
        "torchvision",
        side=36,
    ),
    "vgg-batch": Pair(
        lambda: torchvision_vgg([6, "M", 8, 9, "M"], 3, True),
        vgg.VGG(OUTPUTS, ((6,), (8, 9)), (12, 10), pool=3, batch_norm=True),
        "torchvision",
    ),
    "vgg": Pair(
        lambda: torchvision_vgg([6, "M", 8, "M", 7, "M"], 7, False),
        vgg.VGG(OUTPUTS, ((6,), (8,), (7,)), (12, 10)),
        "torchvision",
    ),
    "vit-timm": Pair(timm_vit, vit.ViT(OUTPUTS, 24, 2, 3, patch=8), "timm"),
    "vit-timm-mean": Pair(
        lambda: timm_vit(class_token=False, global_pool="avg"),
        vit.ViT(OUTPUTS, 24, 2, 3, patch=8, class_token=False),
        "timm",
    ),
    "vit-torchvision": Pair(
        torchvision_vit,
        vit.ViT(OUTPUTS, 24, 2, 3, patch=8, hidden=40),
        "torchvision",
    ),
    # The last stage is smaller than a window, and so is its table.
    "swin-timm": Pair(
        timm_swin,
        swin.Swin(OUTPUTS, 12, (2, 1, 1), (2, 3, 4), window=8, patch=2),
        "timm",
    ),
    "swin-torchvision": Pair(
        torchvision_swin,
        swin.Swin(OUTPUTS, 12, (2, 1), (2, 3), window=4, patch=2),
        "torchvision",
    ),
    "mlp": Pair(
        lambda: perceptron(torch.nn.Flatten()),
        mlp.MLP((7, 6), OUTPUTS),
        "flatten",
        side=4,
    ),
}


def randomised(net):
    """Fills a network: no parameter, scale or statistic is left as it starts."""
    rng = np.random.default_rng(0)
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.zero_()
        if not value.is_floating_point():
            continue
        if "running_var" in key or (value.ndim == 1 and key.endswith("weight")):
            drawn = rng.uniform(0.5, 1.5, value.shape)
        else:
            drawn = rng.normal(size=value.shape)
            fan_in = math.prod(value.shape[1:])
            matrix = value.ndim > 1 and key.endswith("weight")
            drawn *= math.sqrt(2 / fan_in) if matrix else 0.3
        value.copy_(torch.from_numpy(np.asarray(drawn, np.float32)))
    return net.eval()


@pytest.fixture(scope="module", params=PAIRS)
def converted(request):
    pair = PAIRS[request.param]
    net = randomised(pair.make())
    return pair, net, to_flax(pair.model, net.state_dict())


def channels_first(x, pair):
    # A perceptron knows no channels: its inputs are flat in one order.
    return x if isinstance(pair.model, mlp.MLP) else x.transpose(0, 3, 1, 2).copy()


def test_the_outputs_are_the_same(converted):
    pair, net, variables = converted
    x = images(2, (pair.side, pair.side, 3))
    with torch.no_grad():
        expected = net(torch.from_numpy(channels_first(x, pair))).numpy()
    found = jax.jit(pair.model.apply)(variables, x)
    assert np.abs(expected).std() > 0.01
    assert relative_error(found, expected) < 1e-4


def test_the_state_goes_back(converted):
    pair, net, variables = converted
    state = from_flax(pair.model, variables, naming=pair.naming)
    expected = net.state_dict()
    position = {key for key in expected if key.endswith("relative_position_index")}
    assert set(state) == set(expected) - position
    for key, value in state.items():
        np.testing.assert_array_equal(value, expected[key].numpy())
        assert value.dtype == expected[key].numpy().dtype
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    net.load_state_dict(tensors, strict=not position)


FULL = {
    "resnet18": ("torchvision", torchvision.models.resnet18),
    "resnet50": ("torchvision", torchvision.models.resnet50),
    "resnet26d": ("torchvision", timm.models.resnet26d),
    "resnet50-group": ("torchvision", timm.models.resnet50_gn),
    "vgg16-batch": ("torchvision", torchvision.models.vgg16_bn),
    "vit-small": ("timm", timm.models.vit_small_patch16_224),
    "vit-base": ("torchvision", torchvision.models.vit_b_16),
    "swin-tiny": ("timm", timm.models.swin_tiny_patch4_window7_224),
}


@pytest.mark.parametrize("name", FULL)
def test_keys_and_shapes_at_full_size(name):
    naming, make = FULL[name]
    network = catalog.FULL[name]
    # Bytes: VGG has 138 million parameters.
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "i1"), network.shapes)
    state = from_flax(network.model, variables, naming=naming)
    with torch.device("meta"):
        expected = make().state_dict()
    found = {key: value.shape for key, value in state.items()}
    assert found == {key: tuple(value.shape) for key, value in expected.items()}


def test_tensors_in_bfloat16_are_widened():
    pair = PAIRS["vit-timm"]
    net = randomised(pair.make()).bfloat16()
    kernel = to_flax(pair.model, net.state_dict())["params"]["head"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel.T, net.head.weight.detach().float().numpy())
