"""Four data sets, each with logits of its own, small ResNet-20s: pairs and all four.

    tfds build mnist cifar10 cifar100 --file_format=array_record --data_dir=DIR
    python -m experiments.run --config configs/multi_dataset_small.py \
      --config.data_dir=DIR

ZipIt!'s Table 2 in a reduced setting: real images, but of 32x32 pixels, and networks of
a hundredth of the size that are trained for a few minutes each, from different
initialisations. The tasks share no classes and no outputs: MNIST's digits, CIFAR-10's
animals, its vehicles, and 20 classes of CIFAR-100 (flowers, fruit, household things).
Networks are merged up to their last layer, which stays with its task, or in part.
"""

import ml_collections

from experiments.defaults import default, training
from experiments.methods.rows import PAPERS

_ANIMALS, _VEHICLES = (2, 3, 4, 5, 6, 7), (0, 1, 8, 9)
# Flowers, fruit and vegetables, household electrical devices, household furniture.
_THINGS = (
    *(54, 62, 70, 82, 92),
    *(0, 51, 53, 57, 83),
    *(22, 39, 40, 86, 87),
    *(5, 20, 25, 84, 94),
)


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("Four data sets, ResNet-20", "resnet20", width=0.5)
    config.tasks = "datasets"
    config.datasets = (
        ("MNIST", "mnist", ()),
        ("Animals", "cifar10", _ANIMALS),
        ("Vehicles", "cifar10", _VEHICLES),
        ("Things", "cifar100", _THINGS),
    )
    config.image_size = 32
    config.num_tasks = 4
    config.groups = ("pairs", "all")
    config.seeds = (0,)
    config.examples = 800  # Of a class, at most.
    config.train = training(epochs=6, batch_size=128, crop=4)
    config.batch_size = 240
    config.calibration_images = 1000
    config.search_images = 2000
    config.refit_images = 2000
    config.rows = (*PAPERS, "zipit_searched", "zipit_refit")
    config.partial_rows = ("zipit", "mudsc_zip", "zipit_refit")
    # About as deep as 10, 22 and 49 of ResNet-50's 50 layers.
    config.cut_layers = (7, 13)
    config.zipit.alpha, config.zipit.beta = 0.3, 1.0
    config.grid.balance = (0.3, 0.7)
    config.grid.alpha = (0.1, 0.3, 0.5)
    config.grid.beta = (1.0,)
    config.plane.points = 0
    config.init = init
    return config
