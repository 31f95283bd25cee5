"""PyTorch's side of the parity tests: torchvision's, timm's and plain networks."""

import collections

import numpy as np
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


def taskonomy_stage(inputs, features, blocks, shrinks):
    """A stage of torchvision's bottlenecks, whose last one shrinks the image."""
    nn, bottleneck = torch.nn, torchvision.models.resnet.Bottleneck
    project = nn.Sequential(
        nn.Conv2d(inputs, 4 * features, 1, bias=False), nn.BatchNorm2d(4 * features)
    )
    layers = [bottleneck(inputs, features, downsample=project)]
    layers += [bottleneck(4 * features, features) for _ in range(1, blocks)]
    if shrinks:
        layers[-1] = bottleneck(
            4 * features, features, stride=2, downsample=nn.MaxPool2d(1, 2)
        )
    return nn.Sequential(*layers)


class PaddedBlock(torch.nn.Module):
    """A basic block whose shortcut has no parameters."""

    def __init__(self, inputs, features, stride):
        super().__init__()
        nn = torch.nn
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.stride, self.added = stride, features - inputs

    def forward(self, x):
        functional = torch.nn.functional
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        half = self.added // 2
        return functional.relu(functional.pad(x, (0, 0, 0, 0, half, half)) + y)


class PaddedResNet(torch.nn.Module):
    """He et al.'s network for CIFAR, as its publishers name the layers."""

    def __init__(self, width, blocks):
        super().__init__()
        nn = torch.nn
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage in (1, 2, 3):
            features, layers = width * 2 ** (stage - 1), []
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                layers.append(PaddedBlock(channels, features, stride))
                channels = features
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels, OUTPUTS)

    def forward(self, x):
        x = torch.nn.functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class TaskonomyEncoder(torch.nn.Module):
    """The layers of visualpriors' encoder under their names."""

    def __init__(self, depths, width=64, code=8):
        super().__init__()
        nn = torch.nn
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, depth in enumerate(depths):
            features = width * 2**stage
            layer = taskonomy_stage(channels, features, depth, stage < 2)
            setattr(self, f"layer{stage + 1}", layer)
            channels = 4 * features
        self.compress1 = nn.Conv2d(channels, code, 3, padding=1, bias=False)
        self.compress_bn = nn.BatchNorm2d(code)

    def forward(self, x):
        relu = torch.nn.functional.relu
        x = relu(self.bn1(self.conv1(x)))
        x = torch.nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return relu(self.compress_bn(self.compress1(x)))


class Cropped(torch.nn.Module):
    """An image without its first row and column."""

    def forward(self, x):
        return x[:, :, 1:, 1:]


def taskonomy_decoder(widths, code, outputs):
    """The layers of visualpriors' decoder, whose keys have their numbers."""
    nn = torch.nn
    layers, channels = {}, code
    for name, width in widths.items():
        tail = [nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        if name.startswith("deconv"):
            enlarge = nn.ConvTranspose2d(channels, width, 3, 2, 1, bias=False)
            parts = [nn.ZeroPad2d((1, 0, 1, 0)), enlarge, Cropped(), *tail]
        else:
            parts = [nn.Conv2d(channels, width, 3, padding=1, bias=False), *tail]
        layers[name], channels = nn.Sequential(*parts), width
    last = nn.Conv2d(channels, outputs, 3, padding=1)
    # Without the tanh, which would hide what comes before it.
    layers["decoder_output"] = nn.Sequential(last)
    return named(layers)


class Flat(torch.nn.Module):
    """An image as a vector, with its channels last."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def taskonomy_classes(inputs, hidden, outputs):
    nn = torch.nn
    return named(
        {
            "flat": Flat(),
            "fc0": nn.Linear(inputs, hidden, bias=False),
            "bn0": nn.BatchNorm1d(hidden),
            "relu": nn.ReLU(),
            "fc2": nn.Linear(hidden, outputs),
        }
    )


def named(layers):
    return torch.nn.Sequential(collections.OrderedDict(layers))


def taskonomy_pair(decoder, **sizes):
    encoder = TaskonomyEncoder(**sizes)
    return named({"encoder": encoder, "decoder": decoder})


def taskonomy_widths(factor):
    bases = (1024, 1024, 512, 256, 256, 128, 64, 64, 32, 32, 16, 32, 16)
    names = [f"{'de' * (k in (8, 10, 12, 14))}conv{k}" for k in range(2, 15)]
    return {name: int(x * factor) for name, x in zip(names, bases, strict=True)}


TASKONOMY = {"depths": (2, 2, 3, 1), "width": 8}


def deeplab(**options):
    """The head's channels are fixed."""
    resnet = torchvision.models.resnet
    dilated = [False, True, True]
    net = resnet.ResNet(
        resnet.Bottleneck, list(DEPTHS), replace_stride_with_dilation=dilated
    )
    return torchvision.models.segmentation.deeplabv3._deeplabv3_resnet(
        net, OUTPUTS, **options
    )


# By the names of tests.interop.parity.
SMALL = {
    "resnet-basic": lambda: torchvision_resnet(torchvision.models.resnet.BasicBlock),
    "resnet-padded": lambda: PaddedResNet(8, 2),
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
    "taskonomy-dense": lambda: taskonomy_pair(
        taskonomy_decoder(taskonomy_widths(1 / 16), 8, 3), **TASKONOMY
    ),
    "taskonomy-classes": lambda: taskonomy_pair(
        taskonomy_classes(3 * 3 * 8, 11, OUTPUTS), **TASKONOMY
    ),
    "deeplab": lambda: deeplab(aux=None),
    "deeplab-auxiliary": lambda: deeplab(aux=True),
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
    "taskonomy": lambda: taskonomy_pair(
        taskonomy_decoder(taskonomy_widths(1), 8, 3), depths=(3, 4, 6, 3)
    ),
    "deeplab50": lambda: torchvision.models.segmentation.deeplabv3_resnet50(
        weights_backbone=None, aux_loss=True
    ),
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
    """Returns a network's outputs for images with channels last, joined."""
    # A perceptron knows no channels: its inputs are flat in one order.
    flat = isinstance(net, torch.nn.Sequential) and isinstance(net[0], torch.nn.Flatten)
    x = x if flat else x.transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        found = net(torch.from_numpy(x))
    # Segmenters return a dictionary.
    parts = found.values() if isinstance(found, dict) else [found]
    images = [y.movedim(1, -1).numpy() if y.ndim == 4 else y.numpy() for y in parts]
    return np.concatenate(images, axis=-1)
