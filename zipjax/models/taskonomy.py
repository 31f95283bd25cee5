"""Taskonomy's networks (Zamir et al. 2018): one encoder, and a decoder for every task.

They are those of the PyTorch port of the published parameters, visualpriors. The
encoder is a ResNet-50 whose stages shrink the image in their last block, not in their
first, and only in the first two stages; a convolution then compresses 2048 channels to
8, at a sixteenth of the image's size. Dense tasks have a decoder of convolutions, four
of which are transposed and double the image; classes have two Dense layers. There is no
dropout: it does nothing in evaluation.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from zipjax.models.declaration import Declaration
from zipjax.models.layers import ConvTranspose, Dense, conv, norm
from zipjax.models.resnet import (
    Block,
    Convolution,
    Plan,
    bottleneck,
    chain,
    declare_stages,
)
from zipjax.spec.entries import Entry, Fixed, Product
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import AnyArray

SHRINKAGE = 16
"""The image's side over that of its code."""

_SHRINKING_STAGES = 2
_SLOPE = 0.2
_DECODER = {
    "conv2": 1024, "conv3": 1024, "conv4": 512, "conv5": 256, "conv6": 256,
    "conv7": 128, "deconv8": 64, "conv9": 64, "deconv10": 32, "conv11": 32,
    "deconv12": 16, "conv13": 32, "deconv14": 16,
}  # fmt: skip


class TaskonomyEncoder(nn.Module):
    """A ResNet of bottlenecks and a convolution that compresses its output.

    Attributes:
      width: multiplies the stages' 64, 128, 256 and 512 channels, of which bottlenecks
        have four times as many between them.
      depths: number of blocks of every stage. The one block of a short stage both
        projects and shrinks.
      code: number of channels of the output.
    """

    width: float = 1.0
    depths: tuple[int, ...] = (3, 4, 6, 3)
    code: int = 8

    @property
    def stem(self) -> tuple[Convolution, ...]:
        """The convolution before the blocks."""
        return (Convolution(int(64 * self.width), 7, 2),)

    @property
    def plans(self) -> list[Plan]:
        """The blocks."""
        plans = []
        for stage, depth in enumerate(self.depths):
            features = int(64 * 2**stage * self.width)
            for block in range(depth):
                last = block == depth - 1
                stride = 2 if last and stage < _SHRINKING_STAGES else 1
                body = bottleneck(features, stride)
                across = Convolution(body[-1].features, 1, stride)
                name = f"layer{stage + 1}_{block}"
                shortcut = across if block == 0 else None
                plans.append(Plan(name, stage + 1, body, shortcut))
        return plans

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch height2 width2 code"]:
        """Returns the code; ``train`` uses the statistics of the batch."""
        x = nn.relu(chain(x, self.stem, None, train))
        # As with PyTorch's ceil_mode: a last window may reach over the border.
        padding: Any = tuple((0, 1 - length % 2) for length in x.shape[1:3])
        x = nn.max_pool(x, (3, 3), (2, 2), padding)
        for plan in self.plans:
            x = Block(plan, None, name=plan.name)(x, train)
        x = conv(self.code, 3, name="compress1")(x)
        return nn.relu(norm(None, train=train, name="compress_bn")(x))


class DenseDecoder(nn.Module):
    """Convolutions that enlarge a code to an image, each with BatchNorm and a ReLU.

    Attributes:
      outputs: number of channels of the image.
      width: multiplies the layers' 1024 to 16 channels.
      bounded: whether the image is between -1 and 1, by tanh. Taskonomy's semantic
        segmentation alone is not: its outputs are logits.
      least: the fewest channels of a layer: at a small width, those next to the image
        would have too few to draw anything.
    """

    outputs: int
    width: float = 1.0
    bounded: bool = True
    least: int = 1

    @property
    def layers(self) -> dict[str, int]:
        """The channels of every layer but the last, by its name in visualpriors."""
        return {
            name: max(int(base * self.width), self.least)
            for name, base in _DECODER.items()
        }

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width code"], train: bool = False
    ) -> Float[Array, "batch height2 width2 outputs"]:
        """Returns an image; ``train`` uses the statistics of the batch."""
        for name, features in self.layers.items():
            if is_transposed(name):
                x = _doubled(features, name)(x)
            else:
                x = conv(features, 3, name=name)(x)
            x = norm(None, train=train, name=norm_of(name))(x)
            x = nn.leaky_relu(x, _SLOPE)
        x = conv(self.outputs, 3, bias=True, name="decoder_output")(x)
        return jnp.tanh(x) if self.bounded else jnp.asarray(x)


class ClassDecoder(nn.Module):
    """Two Dense layers that read a flattened code, the first with BatchNorm and a ReLU.

    Attributes:
      outputs: number of classes.
      hidden: width of the hidden layer.
      side: side of the code; that of an image is :data:`SHRINKAGE` times as long.
    """

    outputs: int
    hidden: int = 2048
    side: int = 16

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width code"], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Returns logits; ``train`` uses the statistics of the batch.

        Raises:
          ValueError: if the code has another side.
        """
        if x.shape[1:3] != (self.side, self.side):
            raise ValueError(
                f"the code is {x.shape[1]}x{x.shape[2]}, but the decoder's side is "
                f"{self.side}: pass images of {SHRINKAGE * self.side}x"
                f"{SHRINKAGE * self.side} pixels, or a decoder of another side"
            )
        x = Dense(self.hidden, use_bias=False, name="fc0")(x.reshape(len(x), -1))
        x = nn.relu(norm(None, train=train, name="bn0")(x))
        return nn.Dense(self.outputs, name="fc2")(x)


class EncoderDecoder(nn.Module):
    """A network for one task.

    Attributes:
      encoder: what networks for several tasks can share.
      decoder: the task's own part.
    """

    encoder: TaskonomyEncoder
    decoder: DenseDecoder | ClassDecoder

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch *outputs"]:
        """Returns the decoder's output; ``train`` uses the statistics of the batch."""
        return self.decoder(self.encoder(x, train), train)


def is_transposed(layer: str) -> bool:
    """Returns whether a decoder's layer is a transposed convolution."""
    return layer.startswith("deconv")


def norm_of(layer: str) -> str:
    """Returns the name of the BatchNorm that follows a decoder's layer."""
    return f"bn{layer.removeprefix('de').removeprefix('conv')}"


def _doubled(features: int, name: str) -> ConvTranspose:
    """Returns a transposed 3x3 convolution that doubles the image.

    In each direction, pixel j of the output sums the kernel's k times pixel i of the
    input wherever j = 2i + k. PyTorch's kernel is that of the gradient, which is
    flipped and has the inputs last.
    """
    padding: Any = ((2, 1), (2, 1))
    return ConvTranspose(
        features,
        (3, 3),
        (2, 2),
        padding,
        use_bias=False,
        transpose_kernel=True,
        name=name,
    )


def spec(
    model: TaskonomyEncoder | DenseDecoder | ClassDecoder | EncoderDecoder,
) -> PermutationSpec:
    """Returns the declared permutation spec.

    The encoder's perms are those of a ResNet. Between encoder and decoder the code is a
    perm, too; of either alone it is the output or the input, in a fixed order. Networks
    with equal encoders have all of the encoder in common, whatever their decoders.
    """
    net = Declaration()
    if isinstance(model, TaskonomyEncoder):
        _declare_encoder(net, "", model, None)
    elif isinstance(model, EncoderDecoder):
        code = net.perm("encoder/code", model.encoder.code)
        _declare_encoder(net, "encoder/", model.encoder, code)
        _declare_decoder(net, "decoder/", model.decoder, code)
    else:
        _declare_decoder(net, "", model, None)
    return net.spec()


def _declare_encoder(
    net: Declaration, path: str, model: TaskonomyEncoder, code: Entry
) -> None:
    stream = declare_stages(net, path, model.stem, model.plans)[-1]
    net.conv(f"{path}compress1", stream, code)
    net.norm(f"{path}compress_bn", code)


def _declare_decoder(
    net: Declaration, path: str, model: DenseDecoder | ClassDecoder, x: Entry
) -> None:
    if isinstance(model, ClassDecoder):
        hidden = net.perm(f"{path}fc0", model.hidden)
        flat = None if x is None else Product((Fixed(model.side**2), x))
        net.dense(f"{path}fc0", flat, hidden, bias=False)
        net.norm(f"{path}bn0", hidden)
        net.dense(f"{path}fc2", hidden, None)
        return
    for name, features in model.layers.items():
        reads, x = x, net.perm(f"{path}{name}", features)
        declare = net.conv_transpose if is_transposed(name) else net.conv
        declare(f"{path}{name}", reads, x)
        net.norm(f"{path}{norm_of(name)}", x)
    net.conv(f"{path}decoder_output", x, None, bias=True)
