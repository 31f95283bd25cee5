"""Handwritten digits, 5 + 5 classes, a small Swin transformer.

    python -m experiments.run --config configs/digits_swin.py
    python -m experiments.run --config configs/digits_swin.py:finetuned

As configs/digits_vit.py, with attention in windows of 2x2 of the 4x4 patches, shifted
in every second block, and patches that are merged four to one between two stages.
"""

import ml_collections

from experiments.defaults import default


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default(
        "Digits, 5 + 5 classes, Swin",
        "swin",
        width=32,
        depths=(2, 2),
        heads=(2, 4),
        window=2,
        patch=2,
    )
    config.train.epochs = 40
    config.train.learning_rate = 1e-3
    config.batch_size = 450
    config.init = init
    return config
