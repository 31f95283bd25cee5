r"""CIFAR-10, 5 + 5 classes, ResNet-20 of width 2: two networks trained in PyTorch.

    pip install -e ".[experiments,torch]"
    tfds build cifar10 --file_format=array_record --data_dir=DIR
    python -m experiments.run --config configs/cifar10_resnet20.py \
      --config.data_dir=DIR --config.checkpoints=FOLDER

FOLDER holds the networks (see `experiments.parents.trained.pretrained`); without it, a
pair is trained for every seed, and with `--config.classes="()"` each on another random
split, as in the papers. With it, seeds only draw the order in which recipes iterate.
The networks' batch statistics are reset on the calibration images before the merge.

All rows take about two hours on two CPU cores: `--config.rows`, `--config.partial_rows`
and `--config.cut_layers` choose among them. `docs/results.md` has the results.
"""

import ml_collections

from experiments.defaults import default, training
from experiments.methods.rows import PAPERS


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("CIFAR-10, 5 + 5 classes, ResNet-20", "resnet20", width=2.0)
    config.dataset = "cifar10"
    config.classes = ((2, 3, 4, 6, 7), (0, 1, 5, 8, 9))
    config.train = training(epochs=60, batch_size=250, flip=True, crop=4)
    config.finetune = training(
        epochs=20, batch_size=250, learning_rate=5e-4, flip=True, crop=4
    )
    config.batch_size = 250
    config.plane.points, config.plane.images = 9, 250
    config.calibration_images = 5000
    config.search_images, config.refit_images = 1000, 1500
    config.ddof, config.reset_parents = 1, True
    papers = ["git_rebasin_correlation" if r == "git_rebasin" else r for r in PAPERS]
    config.rows = (
        *papers,
        *("zipit_searched", "mudsc_zip_searched", "zipit_sequential"),
        *("zipit_allotted", "zipit_refit", "zipit_refit_ensemble"),
        "zipit_allotted_refit",
    )
    refits = "zipit_refit_ensemble", "zipit_allotted_refit"
    config.partial_rows = (*papers, "zipit_sequential", "zipit_allotted", *refits)
    config.cut_layers = (7, 13)
    config.zipit.alpha, config.zipit.beta = 0.5, 1.0
    config.partial_zipit.alpha, config.partial_zipit.beta = 0.3, 0.125
    config.grid.balance = (0.1, 0.3, 0.5, 0.7, 0.9)
    config.grid.beta = (0.5, 1.0)
    config.init = init
    return config
