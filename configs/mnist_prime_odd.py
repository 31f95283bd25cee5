"""MNIST: is the digit prime, is it odd? Four-layer MLP of width 1024 (MuDSC, Figure 3).

    tfds build mnist --file_format=array_record --data_dir=DIR
    python -m experiments.run --config configs/mnist_prime_odd.py --config.data_dir=DIR

Each network is trained on one of the questions, with the text embeddings of its two
answers as targets. The report draws the mean loss and both tasks' losses on the plane
of the principal components of the two networks and of three zips, and units that were
merged in pairs (MuDSC, Figure 1).
"""

import ml_collections

from experiments.defaults import default, training


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("MNIST, prime and odd, MLP", "mlp", hidden=(1024,) * 3)
    config.dataset, config.class_names = "mnist", "digits"
    config.tasks = "prime_odd"
    config.seeds = (0,)
    config.train = training(epochs=3, batch_size=128, learning_rate=1e-3)
    config.finetune = training(epochs=2, batch_size=128, learning_rate=2e-4)
    config.calibration_images = 5000
    config.search_images = 2000
    config.grid.balance = (0.3, 0.5, 0.7)
    config.pictures = ("basins", "pairs")
    config.plane.points, config.plane.images = 11, 2500
    config.init = init
    return config
