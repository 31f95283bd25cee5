r"""CIFAR-100, 50 + 50 classes, ResNet-20 of width 8.

    tfds build cifar100 --file_format=array_record --data_dir=DIR
    python -m experiments.run --config configs/cifar100_resnet20.py \
      --config.data_dir=DIR

Five pairs of networks, trained CLIP-style (ZipIt!, Table 1b; MuDSC, Table 1). With
CLIP's text encoder the papers report, joint and average: Average 16.5 and 24.2, A.
Align (Permute here) 44.3 and 61.1, ZipIt! 54.7 and 66.8, MuDSC-Zip 56.0 and 68.1.

Add ``:finetuned`` after the file for networks that are fine-tuned from one. Made for a
GPU; ``--config.smoke=True`` runs all of it in seconds, on noise.
"""

import ml_collections

from experiments.defaults import cifar100


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = cifar100("CIFAR-100, 50 + 50 classes, ResNet-20", "resnet20", width=8.0)
    config.init = init
    return config
