"""Handwritten digits, 5 + 5 classes, a small vision transformer.

    python -m experiments.run --config configs/digits_vit.py
    python -m experiments.run --config configs/digits_vit.py:finetuned

As configs/digits.py, with attention heads, which must be matched as a whole (MuDSC,
Section 3.3). Four patches of 4x4 pixels, as smaller ones overfit the few images; one
residual stream, so that the only partial zip leaves but the head to the networks.
"""

import ml_collections

from experiments.defaults import default


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default(
        "Digits, 5 + 5 classes, ViT",
        "vit",
        width=64,
        depth=4,
        heads=4,
        patch=4,
        class_token=False,
    )
    config.train.epochs = 30
    config.train.weight_decay = 0.1
    config.batch_size = 450
    config.init = init
    return config
