"""CIFAR-100, five networks of 20 classes each, from one start: all ten pairs.

    tfds build cifar100 --file_format=array_record --data_dir=DIR
    python -m experiments.run --config configs/cifar100_five.py --config.data_dir=DIR

MuDSC's Table 3 in a reduced setting: there, five ResNet-50s that start from DINO are
trained on 200 classes of ImageNet each; here, small ResNet-20s that start from one
network, which was trained for a short time on all 100 classes. It takes about half an
hour on two CPU cores; docs/results.md has the results.
"""

import ml_collections

from experiments.defaults import cifar100, training
from experiments.methods.rows import PAPERS


def get_config(init: str = "finetuned") -> ml_collections.ConfigDict:
    config = cifar100("CIFAR-100, 5 x 20 classes, ResNet-20", "resnet20", width=0.5)
    config.num_tasks = 5
    config.groups = ("pairs",)
    config.seeds = (0,)
    config.train = training(epochs=2, batch_size=128, flip=True, crop=4)
    config.finetune = training(
        epochs=3, batch_size=128, learning_rate=1e-3, flip=True, crop=4
    )
    config.batch_size = 250
    config.calibration_images = 2000
    config.search_images = 1000
    config.rows, config.partial_rows = PAPERS, ()
    config.zipit.alpha, config.zipit.beta = 0.3, 0.5
    config.grid.balance = (0.3, 0.7)
    config.plane.points = 0
    config.init = init
    return config
