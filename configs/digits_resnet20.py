"""Handwritten digits, 5 + 5 classes, ResNet-20 with BatchNorm.

    python -m experiments.run --config configs/digits_resnet20.py
    python -m experiments.run --config configs/digits_resnet20.py:finetuned

As configs/digits.py, with the network of the papers' CIFAR tables (MuDSC, Table 1):
twelve perms in three stages, and batch statistics that every merge measures anew.
"""

import ml_collections

from experiments.defaults import default


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("Digits, 5 + 5 classes, ResNet-20", "resnet20", width=1.0)
    config.train.epochs = 30
    config.train.batch_size = config.finetune.batch_size = 32
    config.finetune.epochs = 10
    config.batch_size = 450
    config.init = init
    return config
