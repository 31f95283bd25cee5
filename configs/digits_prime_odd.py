"""Handwritten digits: is it prime, is it odd? Four-layer MLP (MuDSC, Section 4.3).

    python -m experiments.run --config configs/digits_prime_odd.py
    python -m experiments.run --config configs/digits_prime_odd.py:finetuned

The paper's example on MNIST, on the digits that ship with scikit-learn: every image has
an answer to both questions, and each network was trained on one of them, with the text
embeddings of its two answers as targets.
"""

import ml_collections

from experiments.defaults import default


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("Digits, prime and odd, MLP", "mlp", hidden=(128,) * 3)
    config.tasks = "prime_odd"
    config.init = init
    return config
