r"""CIFAR-100, 50 + 50 classes, ResNet-20 of width 8 with GroupNorm.

    tfds build cifar100 --file_format=array_record --data_dir=DIR
    python -m experiments.run --config configs/cifar100_resnet20_gn.py \
      --config.data_dir=DIR

As configs/cifar100_resnet20.py, with groups of channels that must be matched as a
whole. MuDSC (Table 1) reports, joint and average: Average 5.6 and 11.1, A. Align
(Permute here) 29.4 and 42.1, MuDSC-Align 31.8 and 45.3, ZipIt! 29.9 and 41.2.

Add ``:finetuned`` after the file for networks that are fine-tuned from one. Made for a
GPU; ``--config.smoke=True`` runs all of it in seconds, on noise.
"""

import ml_collections

from experiments.defaults import cifar100


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = cifar100(
        "CIFAR-100, 50 + 50 classes, ResNet-20 with GroupNorm",
        "resnet20",
        width=8.0,
        groups=32,
    )
    config.init = init
    return config
