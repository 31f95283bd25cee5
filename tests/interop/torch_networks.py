"""PyTorch's side of the parity tests: torchvision's, timm's and plain networks."""

import timm
import torch
import torchvision

from tests.interop.parity import DEPTHS, OUTPUTS, Shape, Shapes


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


def perceptron():
    nn = torch.nn
    layers = [nn.Linear(48, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(6, OUTPUTS))


# By the names of tests.interop.parity.
SMALL = {
    "resnet-basic": lambda: torchvision_resnet(torchvision.models.resnet.BasicBlock),
    "resnet-bottleneck": lambda: torchvision_resnet(
        torchvision.models.resnet.Bottleneck
    ),
    "resnet-timm-group": lambda: timm_resnet(norm_layer=timm.layers.GroupNorm),
    "resnet-timm-deep": lambda: timm_resnet(
        stem_type="deep", stem_width=32, avg_down=True
    ),
    "vgg-batch": lambda: torchvision_vgg([6, "M", 8, 9, "M"], 3, True),
    "vgg": lambda: torchvision_vgg([6, "M", 8, "M", 7, "M"], 7, False),
    "vit-timm": timm_vit,
    "vit-timm-mean": lambda: timm_vit(class_token=False, global_pool="avg"),
    "vit-torchvision": torchvision_vit,
    "swin-timm": timm_swin,
    "swin-torchvision": torchvision_swin,
    "mlp": perceptron,
}
FULL = {
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "resnet26d": timm.models.resnet26d,
    "resnet50-group": timm.models.resnet50_gn,
    "vgg16-batch": torchvision.models.vgg16_bn,
    "vit-small": timm.models.vit_small_patch16_224,
    "vit-base": torchvision.models.vit_b_16,
    "swin-tiny": timm.models.swin_tiny_patch4_window7_224,
}


def shapes_of(net) -> Shapes:
    """Returns what the state of a network holds."""
    return {
        key: Shape(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in net.state_dict().items()
    }


def shapes_at_full_size(name) -> Shapes:
    """Returns what the state of a network holds, without the memory for it."""
    with torch.device("meta"):
        return shapes_of(FULL[name]())


def fill(net, state):
    """Fills a network with a drawn state; the counters and positions are its own."""
    tensors = {
        key: torch.from_numpy(value)
        for key, value in state.items()
        if value.dtype == "float32"
    }
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    own = ("num_batches_tracked", "relative_position_index")
    assert not unexpected
    assert all(key.endswith(own) for key in missing)
    return net.eval()


def outputs(net, x):
    """Returns a network's outputs for images with channels last."""
    # A perceptron knows no channels: its inputs are flat in one order.
    flat = isinstance(net, torch.nn.Sequential)
    x = x if flat else x.transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        return net(torch.from_numpy(x)).numpy()
