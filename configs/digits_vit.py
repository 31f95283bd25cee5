"""Handwritten digits, 5 + 5 classes, a small vision transformer.

    python -m experiments.run --config configs/digits_vit.py
    python -m experiments.run --config configs/digits_vit.py:finetuned

As configs/digits.py, with attention heads, which must be matched as a whole (MuDSC,
Section 3.3). Four patches of 4x4 pixels, as smaller ones overfit the few images; one
residual stream, so that the only closed cut leaves just the heads unmerged.
``--config.inferred --config.cut_layers="(5, 9, 13)"`` stops inside it, after blocks.

Results (joint / average accuracy in %, means of five seeds on a CPU), from scratch:
Average 24.8 / 42.1, Git Re-Basin 30.1 / 51.3, Permute 42.2 / 70.4, MuDSC-Align 43.6 /
73.9, ZipIt! 18/18 41.4 / 73.8, W. Zip 32.7 / 53.3, MuDSC-Zip 43.6 / 76.9, Ensemble 85.2
/ 97.4; inside the stream ZipIt! 13/18 56.3 / 81.7, 9/18 52.5 / 81.4, 5/18 67.6 / 89.6;
fine-tuned: Average 97.0 / 98.6, Git Re-Basin 97.0 / 98.6, Permute 97.0 / 98.6,
MuDSC-Align 97.0 / 98.6, ZipIt! 18/18 97.1 / 98.6, W. Zip 97.0 / 98.6, MuDSC-Zip 97.1 /
98.6, Ensemble 93.9 / 98.4.
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
