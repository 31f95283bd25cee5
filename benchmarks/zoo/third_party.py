"""Models of packages from PyPI, unmodified.

Nothing is downloaded: parameters are random. Widths are small where the packages let
one choose them. The number of perms of each model is derived by hand.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.zoo import frameworks
from benchmarks.zoo.case import Case, linen, normal, tokens

KEY = jax.random.key(0)
SMALL = (2, 32, 32, 3)
VOCABULARY = 20


@dataclasses.dataclass(frozen=True)
class ThirdParty:
    """A model of a package.

    Attributes:
      package: name of the distribution on PyPI.
      framework: what the model is written in.
      make: makes the model; imports the package.
      module: the package's module.
    """

    package: str
    framework: str
    make: Callable[[], Case]
    module: str


def haiku_net(name: str, perms: int, **options: Any) -> Case:
    import haiku as hk

    def network(x: Any, is_training: bool) -> Any:
        return getattr(hk.nets, name)(**options)(x, is_training)

    return frameworks.haiku(network, normal(*SMALL), perms)


def jax_resnet_(perms: int, *, deep_stem: Any = False, **options: Any) -> Case:
    import jax_resnet

    if deep_stem:
        options["stem_cls"] = functools.partial(jax_resnet.ResNetDStem, stem_width=8)
    block = getattr(jax_resnet, options.pop("block"))
    block_options = options.pop("block_options", {})
    model = jax_resnet.ResNet(
        block_cls=functools.partial(block, **block_options), n_classes=5, **options
    )
    return linen(model, (normal(2, 64, 64, 3),), perms)


def equimo_(
    name: str, perms: int, inputs: tuple[int, ...] = (2, 3, 32, 32), **options: Any
) -> Case:
    import equinox as eqx
    from equimo import models

    make = functools.partial(getattr(models, name), num_classes=5, **options)
    model = eqx.filter_eval_shape(make, key=KEY)

    def call(model: Any, x: Any) -> Any:
        return jax.vmap(lambda image: model(image, key=KEY, inference=True))(x)

    return frameworks.equinox(model, (normal(*inputs),), perms, call)


def foundax_(name: str, perms: int, shape: tuple[int, ...], **options: Any) -> Case:
    import foundax

    model = getattr(foundax, name)(key=KEY, **options)
    return frameworks.equinox(model, (normal(*shape),), perms, lambda m, x: m(x))


def attnax_vit(perms: int, **options: Any) -> Case:
    from attnax import VisionTransformer, VisionTransformerConfig
    from flax import nnx

    sizes = {"d_model": 24, "num_heads": 4, "num_layers": 2, "d_ff": 40}
    image = {"image_size": 32, "patch_size": 8, "num_classes": 5}
    config = VisionTransformerConfig(**sizes, **image, **options)
    model = VisionTransformer(nnx.Rngs(0), config)
    return frameworks.nnx(model, (normal(*SMALL),), perms, lambda m, x: m(x))


def attnax_decoder(perms: int, **options: Any) -> Case:
    from attnax import TransformerConfig, TransformerDecoder
    from flax import nnx

    sizes = {"d_model": 24, "num_heads": 4, "num_layers": 2, "d_ff": 40, "max_len": 12}
    config = TransformerConfig(vocab_size=VOCABULARY, **sizes, **options)
    model = TransformerDecoder(nnx.Rngs(0), config)

    def call(model: Any, ids: Any) -> Any:
        # The package stops at the last norm: logits are read with the embedding.
        return model(ids) @ model.token_embed.embed.embedding[...].T

    ids = tokens(2, 12, vocabulary=VOCABULARY)
    return frameworks.nnx(model, (ids,), perms, call)


def mamba2(perms: int) -> Case:
    import mamba2_jax
    from flax import nnx

    config = mamba2_jax.Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        state_size=8,
        head_dim=8,
        chunk_size=4,
    )
    model = mamba2_jax.Mamba2ForCausalLM(config, rngs=nnx.Rngs(0))
    ids = tokens(2, 12, vocabulary=VOCABULARY)
    return frameworks.nnx(model, (ids,), perms, lambda m, x: m(x)["logits"])


def keras_application(name: str, perms: int, **options: Any) -> Case:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras  # pyright: ignore[reportMissingImports]

    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=SMALL[1:], classes=5, **options)
    return frameworks.keras(model, (normal(*SMALL),), perms)


def penzai_llama(perms: int) -> Case:
    from penzai import pz  # pyright: ignore[reportMissingImports]
    from penzai.models.transformer.variants import (  # pyright: ignore[reportMissingImports]
        llamalike_common as llama,
    )

    config = llama.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=2,
        embedding_dim=16,
        projection_dim=6,
        mlp_hidden_dim=20,
        num_decoder_blocks=2,
        vocab_size=VOCABULARY,
        mlp_variant="swiglu",
        tie_embedder_and_logits=True,
        rope_wavelength=1e4,
        rms_norm_eps=1e-6,
        attention_type=llama.AttentionTypeGlobalCausal(),
        parameter_dtype=jnp.float32,
        activation_dtype=jnp.float32,
    )
    model = llama.build_llamalike_transformer(config, init_base_rng=KEY)
    positions = pz.nx.wrap(jnp.arange(12)).tag("seq")
    ids = pz.nx.wrap(tokens(2, 12, vocabulary=VOCABULARY)).tag("batch", "seq")
    return frameworks.penzai(
        model, (ids,), perms, lambda m, ids: m(ids, token_positions=positions)
    )


def _named(
    package: str,
    framework: str,
    models: dict[str, Callable[[], Case]],
    module: str = "",
) -> dict[str, ThirdParty]:
    module = module or package.replace("-", "_")
    return {
        f"{package}: {name}": ThirdParty(package, framework, make, module)
        for name, make in models.items()
    }


_RESNET: dict[str, Any] = {
    "stage_sizes": [2, 1, 1, 1],
    "hidden_sizes": (8, 12, 16, 20),
    "block": "ResNetBottleneckBlock",
}
_VIT = {
    "img_size": 32,
    "in_channels": 3,
    "patch_size": 8,
    "num_heads": 4,
    "depths": [2],
}

CASES = {
    **_named(
        "dm-haiku",
        "Haiku",
        {
            # Four streams and eight blocks.
            "ResNet18": lambda: haiku_net("ResNet18", 12, num_classes=10),
            # Four streams and the stem, and two perms in each of sixteen blocks.
            "ResNet50": lambda: haiku_net("ResNet50", 37, num_classes=10),
            # The stem and thirteen pointwise convolutions.
            "MobileNetV1": lambda: haiku_net("MobileNetV1", 14, num_classes=10),
        },
        module="haiku",
    ),
    **_named(
        "jax-resnet",
        "Linen",
        {
            # The stem, four streams and two perms in each of five blocks.
            "ResNet (bottleneck)": lambda: jax_resnet_(15, **_RESNET),
            # Two more in the stem.
            "ResNet-D": lambda: jax_resnet_(
                17, **(_RESNET | {"block": "ResNetDBottleneckBlock"}), deep_stem=True
            ),
            # In each block: groups, the units of a group before and after it.
            "ResNeXt": lambda: jax_resnet_(
                20,
                **(_RESNET | {"hidden_sizes": (32, 32, 32, 32)}),
                block_options={"groups": 4, "base_width": 8},
            ),
            # In each block: the halves of the first convolution, which are groups of
            # the second and told apart by the split; the second one; and the squeeze.
            "ResNeSt": lambda: jax_resnet_(
                27,
                **(_RESNET | {"block": "ResNeStBottleneckBlock"}),
                block_options={"radix": 2},
                deep_stem=True,
            ),
        },
    ),
    **_named(
        "equimo",
        "Equinox",
        {
            # The stream and in each block: heads, QK, VO, MLP.
            "VisionTransformer": lambda: equimo_(
                "VisionTransformer", 9, dim=24, reg_tokens=2, qk_norm=True, **_VIT
            ),
            # Rotary embeddings order what is within Q and K.
            "VisionTransformer (DINOv3)": lambda: equimo_(
                "VisionTransformer",
                7,
                dim=32,
                use_global_pos_embed=False,
                use_local_pos_embed=True,
                init_values=0.1,
                ffn_layer="swiglu",
                **_VIT,
            ),
            # Four streams and four blocks.
            "ConvNeXt": lambda: equimo_(
                "ConvNeXt",
                8,
                (2, 3, 64, 64),
                in_channels=3,
                depths=[1, 1, 1, 1],
                dims=[8, 12, 16, 20],
            ),
        },
    ),
    **_named(
        "foundax",
        "Equinox",
        {
            # The lifted field, what two layers make of it, and the projection.
            "FNO2D": lambda: foundax_(
                "fno2d",
                4,
                (16, 16, 2),
                in_features=2,
                hidden_channels=12,
                n_modes=4,
                n_layers=2,
                d_model=(16, 16),
            ),
        },
    ),
    **_named(
        "attnax",
        "NNX",
        {
            # The stream and in each block: heads, QK, VO, MLP.
            "VisionTransformer": lambda: attnax_vit(9),
            "VisionTransformer (online softmax)": lambda: attnax_vit(
                9, attention_type="memory_efficient", attention_block_size=8
            ),
            # Key heads, query heads of a key head, VO, MLP.
            "TransformerDecoder (GQA, RoPE)": lambda: attnax_decoder(
                9,
                pos_emb_type="rope",
                num_kv_heads=2,
                norm_type="rms",
                ff_activation="swiglu",
            ),
            # Each head has its own slope: QK, VO, MLP.
            "TransformerDecoder (ALiBi)": lambda: attnax_decoder(
                7, pos_emb_type="alibi", ff_activation="geglu"
            ),
            # The table of sines orders the stream.
            "TransformerDecoder (sines)": lambda: attnax_decoder(8),
        },
    ),
    **_named(
        "mamba2-jax",
        "NNX",
        # The stream and in each block: heads, units of a head, states.
        {"Mamba2ForCausalLM": lambda: mamba2(7)},
    ),
    **_named(
        "keras",
        "Keras",
        {
            # The stem, sixteen expansions, seven streams, the last convolution.
            "MobileNetV2": lambda: keras_application("MobileNetV2", 25, alpha=0.35),
            # The stem, fifteen expansions, sixteen squeezes, seven streams, the top.
            "EfficientNetB0": lambda: keras_application("EfficientNetB0", 40),
        },
    ),
    **_named(
        "penzai",
        "Penzai",
        # The stream and in each block: key heads, query heads of one, VO, MLP.
        {"Llama-like": lambda: penzai_llama(9)},
    ),
}
