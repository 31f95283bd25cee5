"""Handwritten digits, 5 + 5 classes, ResNet-20 with BatchNorm.

    python -m experiments.run --config configs/digits_resnet20.py
    python -m experiments.run --config configs/digits_resnet20.py:finetuned

As configs/digits.py, with the network of the papers' CIFAR tables (MuDSC, Table 1):
twelve perms in three stages, and batch statistics that are measured after every merge.

Results (joint / average accuracy in %, means of five seeds on a CPU), from scratch:
Average 16.0 / 27.4, Git Re-Basin 15.9 / 33.7, Permute 36.7 / 60.0, MuDSC-Align 39.2 /
67.8, ZipIt! 20/20 45.0 / 72.6, W. Zip 26.4 / 47.2, MuDSC-Zip 48.0 / 77.8, Ensemble 91.8
/ 98.5; fine-tuned: Average 98.2 / 99.0, Git Re-Basin 98.3 / 99.0, Permute 98.2 / 99.0,
MuDSC-Align 98.2 / 99.0, ZipIt! 20/20 98.2 / 99.0, W. Zip 98.2 / 99.0, MuDSC-Zip 98.2 /
99.0, Ensemble 97.7 / 99.1.
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
