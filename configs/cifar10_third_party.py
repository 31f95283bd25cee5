"""CIFAR-10, one task: four ResNet-20s that strangers trained, in groups of 2, 3 and 4.

    pip install -e ".[experiments,torch]"
    tfds build cifar10 --file_format=array_record --data_dir=DIR
    python -m experiments.run --config configs/cifar10_third_party.py \
      --config.data_dir=DIR --config.checkpoints=FOLDER

FOLDER holds three runs of DanSun18/pytorch_resnet_cifar10 and the ResNet-20 of
akamaster/pytorch_resnet_cifar10. Files as they are published (".th") are read as well:

    --config.checkpoint_files="('run_1.th','run_2.th','run_3.th','resnet20.th')"

Networks of one task from different seeds are the setting of Git Re-Basin. Without
FOLDER, four are trained. Images come from the training set for moments, batch
statistics and refits, without labels. The report draws the barrier between two of the
networks. `docs/results.md` has the results.
"""

import ml_collections

from experiments.defaults import default, training
from experiments.methods.rows import PAPERS, REFITS


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("CIFAR-10, one task, ResNet-20", "resnet20", padded=True)
    config.dataset, config.tasks = "cifar10", "same"
    config.pixels.mean = (123.675, 116.28, 103.53)
    config.pixels.std = (58.395, 57.12, 57.375)
    config.num_tasks = 4
    config.checkpoint_files = (
        *("run_1.safetensors", "run_2.safetensors", "run_3.safetensors"),
        "akamaster.safetensors",
    )
    config.groups = (2, 3, 4)
    config.seeds = (0,)
    config.train = training(epochs=60, batch_size=250, flip=True, crop=4)
    config.finetune = training(
        epochs=20, batch_size=250, learning_rate=5e-4, flip=True, crop=4
    )
    config.batch_size = 250
    config.calibration_images = 2000
    config.refit_images = 1500
    config.rows, config.partial_rows = (*PAPERS, *REFITS), ()
    config.zipit.alpha, config.zipit.beta = 0.5, 1.0
    config.grid.balance = (0.5,)
    config.plane.points = 0
    config.pictures = ("barrier",)
    config.line.points, config.line.images = 11, 1000
    config.init = init
    return config
