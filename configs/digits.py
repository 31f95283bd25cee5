"""Handwritten digits, 5 + 5 classes, four-layer MLP with CLIP-style heads.

    python -m experiments.run --config configs/digits.py
    python -m experiments.run --config configs/digits.py:finetuned

Real data that ships with scikit-learn: 1,797 images of 8x8 pixels, a quarter of them
for testing. Ten classes are split at random into two tasks; two networks are trained
from different initialisations (or fine-tuned from one network that knows all classes),
one on each, and merged by every method.

Results (joint / average accuracy in %, means of five seeds on a CPU), from scratch:
Average 25.6 / 45.4, Git Re-Basin 39.9 / 64.9, Permute 54.3 / 83.4, MuDSC-Align 57.4 /
86.1, ZipIt! 5/5 67.9 / 92.1, W. Zip 54.9 / 74.5, MuDSC-Zip 69.9 / 93.5, ZipIt! + refit
82.0 / 97.8, ZipIt! + refit to the ensemble 86.8 / 97.8, Ensemble 87.7 / 98.8;
fine-tuned: Average 97.2 / 98.3, Git Re-Basin 97.2 / 98.3, Permute 97.2 / 98.3,
MuDSC-Align 97.2 / 98.3, ZipIt! 5/5 97.2 / 98.3, W. Zip 97.2 / 98.3, MuDSC-Zip 97.2 /
98.3, ZipIt! + refit 97.2 / 98.2, ZipIt! + refit to the ensemble 91.2 / 97.5, Ensemble
96.0 / 98.5.
"""

import ml_collections

from experiments.defaults import default
from experiments.methods.rows import PAPERS


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("Digits, 5 + 5 classes, MLP", "mlp", hidden=(128, 128, 128, 128))
    config.rows = (*PAPERS, "zipit_refit", "zipit_refit_ensemble")
    config.partial_rows = ("zipit",)
    config.init = init
    return config
