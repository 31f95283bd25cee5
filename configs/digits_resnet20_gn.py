"""Handwritten digits, 5 + 5 classes, ResNet-20 with GroupNorm.

    python -m experiments.run --config configs/digits_resnet20_gn.py
    python -m experiments.run --config configs/digits_resnet20_gn.py:finetuned

As configs/digits_resnet20.py, but channels are normalised in four groups, which must be
matched as a whole (MuDSC, Section 3.3).

Results (joint / average accuracy in %, means of five seeds on a CPU), from scratch:
Average 16.8 / 33.0, Git Re-Basin 17.3 / 31.4, Permute 33.2 / 58.3, MuDSC-Align 33.1 /
64.6, ZipIt! 20/20 39.2 / 66.6, W. Zip 26.4 / 44.0, MuDSC-Zip 44.9 / 70.7, Ensemble 87.7
/ 98.9; fine-tuned: Average 97.5 / 98.4, Git Re-Basin 97.5 / 98.4, Permute 97.5 / 98.4,
MuDSC-Align 97.5 / 98.4, ZipIt! 20/20 97.5 / 98.4, W. Zip 97.5 / 98.4, MuDSC-Zip 97.5 /
98.4, Ensemble 97.4 / 98.8.
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
