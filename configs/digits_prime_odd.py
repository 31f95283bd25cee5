"""Handwritten digits: is it prime, is it odd? Four-layer MLP (MuDSC, Section 4.3).

    python -m experiments.run --config configs/digits_prime_odd.py
    python -m experiments.run --config configs/digits_prime_odd.py:finetuned

The paper's example on MNIST, on the digits that ship with scikit-learn: both questions
can be asked about every image, and each network is trained on one of them, with the
text embeddings of its two answers as targets.

Results (joint / average accuracy in %, means of five seeds on a CPU), from scratch:
Average 64.0 / 79.1, Git Re-Basin 73.6 / 85.8, Permute 80.6 / 89.7, MuDSC-Align 84.2 /
91.7, ZipIt! 4/4 93.5 / 96.4, W. Zip 86.2 / 92.8, MuDSC-Zip 93.5 / 96.5, Ensemble 97.6 /
98.8; fine-tuned: Average 94.3 / 97.0, Git Re-Basin 94.3 / 97.0, Permute 94.3 / 97.0,
MuDSC-Align 94.4 / 97.0, ZipIt! 4/4 94.2 / 96.9, W. Zip 94.3 / 97.0, MuDSC-Zip 94.4 /
97.0, Ensemble 97.1 / 98.5.
"""

import ml_collections

from experiments.defaults import default


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("Digits, prime and odd, MLP", "mlp", hidden=(128,) * 3)
    config.tasks = "prime_odd"
    config.init = init
    return config
