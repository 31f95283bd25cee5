"""Handwritten digits, 5 + 5 classes, a small Swin transformer.

    python -m experiments.run --config configs/digits_swin.py
    python -m experiments.run --config configs/digits_swin.py:finetuned

As configs/digits_vit.py, with attention in windows of 2x2 of the 4x4 patches, shifted
in every second block, and patches that are merged four to one between two stages.

Results (joint / average accuracy in %, means of five seeds on a CPU), from scratch:
Average 19.6 / 34.6, Git Re-Basin 17.6 / 34.7, Permute 41.2 / 64.1, MuDSC-Align 43.3 /
68.2, ZipIt! 19/19 40.2 / 64.1, W. Zip 21.8 / 37.6, MuDSC-Zip 49.2 / 75.1, Ensemble 88.3
/ 98.3; fine-tuned: Average 96.6 / 98.0, Git Re-Basin 96.6 / 98.0, Permute 96.6 / 98.0,
MuDSC-Align 96.6 / 98.0, ZipIt! 19/19 96.7 / 98.0, W. Zip 96.6 / 98.0, MuDSC-Zip 96.7 /
98.0, Ensemble 94.6 / 98.0.
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
