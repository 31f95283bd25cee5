"""Handwritten digits, 5 + 5 classes, ResNet-20 with GroupNorm.

    python -m experiments.run --config configs/digits_resnet20_gn.py
    python -m experiments.run --config configs/digits_resnet20_gn.py:finetuned

As configs/digits_resnet20.py, but channels are normalised in four groups, which must be
matched as a whole (MuDSC, Section 3.3).
"""

import ml_collections

from experiments.defaults import default


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default(
        "Digits, 5 + 5 classes, ResNet-20 with GroupNorm",
        "resnet20",
        width=1.0,
        groups=4,
    )
    config.train.epochs = 30
    config.train.batch_size = config.finetune.batch_size = 32
    config.finetune.epochs = 10
    config.batch_size = 450
    config.init = init
    return config
