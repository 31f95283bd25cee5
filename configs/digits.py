"""Handwritten digits, 5 + 5 classes, four-layer MLP with CLIP-style heads.

    python -m experiments.run --config configs/digits.py

Real data that ships with scikit-learn: 1,797 images of 8x8 pixels, a quarter of them
for testing. Ten classes are split at random into two tasks; two networks are trained
from different initialisations, one on each, and merged by every method.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.title = "Digits, 5 + 5 classes, MLP"
    config.dataset = "digits"
    config.text_encoder = "minilm"
    config.num_tasks = 2
    config.seeds = (0, 1, 2, 3, 4)

    config.model = "mlp"
    config.mlp = ml_collections.ConfigDict()
    config.mlp.hidden = (128, 128, 128, 128)

    config.train = ml_collections.ConfigDict()
    config.train.epochs = 60
    config.train.batch_size = 64
    config.train.learning_rate = 2e-3
    config.train.weight_decay = 1e-2

    config.tensorboard = False  # Training curves; needs the extra of that name.

    config.batch_size = 256  # Of moments, batch statistics and evaluation.

    config.zipit = ml_collections.ConfigDict()
    config.zipit.alpha = 0.3
    config.zipit.beta = 0.5
    return config
