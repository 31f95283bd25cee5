"""Handwritten digits, 5 + 5 classes, four-layer MLP with CLIP-style heads.

    python -m experiments.run --config configs/digits.py
    python -m experiments.run --config configs/digits.py:finetuned

Real data that ships with scikit-learn: 1,797 images of 8x8 pixels, a quarter of them
for testing. Ten classes are split at random into two tasks; two networks are trained
from different initialisations (or fine-tuned from one network that knows all classes),
one on each, and merged by every method.
"""

import ml_collections

from experiments.defaults import default


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("Digits, 5 + 5 classes, MLP", "mlp", hidden=(128, 128, 128, 128))
    config.init = init
    return config
