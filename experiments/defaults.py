"""What configs start from, and the least that shows that one runs."""

from typing import Any

import ml_collections
from ml_collections import config_dict

from experiments.methods.rows import PAPERS, one_of_a_kind
from experiments.parents.architectures import smallest
from experiments.parents.train import Config


def default(title: str, model: str, **network: Any) -> Config:
    """Returns a config for handwritten digits, split into 5 + 5 classes.

    Args:
      title: the report's heading.
      model: the network, a key of ``experiments.parents.architectures.ARCHITECTURES``.
      **network: its sizes.
    """
    config = ml_collections.ConfigDict()
    config.title = title
    config.dataset = "digits"
    config.data_dir = config_dict.placeholder(str)  # Of TensorFlow Datasets.
    config.examples = config_dict.placeholder(int)  # Of every class; None: all.
    config.class_names = config_dict.placeholder(str)  # The dataset's own if None.
    config.text_encoder = "minilm"
    config.tasks = "split"  # Or "prime_odd".
    config.num_tasks = 2
    config.classes = ()  # Of every task; none: as config.tasks says.
    config.seeds = (0, 1, 2, 3, 4)

    config.model = model
    config.network = ml_collections.ConfigDict(network)

    # A folder of PyTorch networks, see experiments.parents.parents.pretrained; None: train them.
    config.checkpoints = config_dict.placeholder(str)
    config.init = "scratch"  # Or "finetuned": from one network that knows all classes.
    config.train = training(epochs=60)
    config.finetune = training(epochs=20, learning_rate=5e-4)

    config.batch_size = 256  # Of moments, batch statistics and evaluation.
    # Training images for moments, batch statistics and searches; None: all of them.
    config.calibration_images = config_dict.placeholder(int)
    config.search_images = config_dict.placeholder(int)  # Of these, for searches.
    config.refit_images = config_dict.placeholder(int)  # Of these, for a refit.
    config.test_images = config_dict.placeholder(int)  # None: all of them.
    config.ddof = 0  # Of measured batch statistics; PyTorch's variances have 1.
    config.reset_parents = False  # Whether networks are reset before they are merged.

    config.rows = PAPERS
    config.partial_rows = ("zipit", "zipit_refit")  # Rows that also stop earlier:
    config.cuts = 4  # at most at so many cuts, spread over the depth,
    config.cut_layers = ()  # or, if there are any, behind so many layers.
    config.zipit = ml_collections.ConfigDict({"alpha": 0.3, "beta": 0.5})
    # Of partial zips; follows the one above until it is set.
    config.partial_zipit = ml_collections.ConfigDict(
        {name: config.zipit.get_oneway_ref(name) for name in config.zipit}
    )
    # What networks of allotted widths may cost, in runs of one; merged in part: heads
    # included.
    config.cost, config.partial_cost = 1.0, 1.5
    # What searched settings are chosen among; MuDSC's papers choose the balance so.
    config.grid = ml_collections.ConfigDict(
        {
            "alpha": (0.1, 0.3, 0.5, 1.0),
            "beta": (0.0, 0.5, 1.0),
            "balance": tuple(k / 10 for k in range(11)),
        }
    )

    # Of the picture of losses on a plane: points a side (0: no picture), and how many
    # test images losses, and calibration images batch statistics, are measured on.
    config.plane = ml_collections.ConfigDict({"points": 11, "images": 450})

    config.tensorboard = False  # Training curves; needs the extra of that name.
    config.smoke = False  # As little of everything as shows that it runs.
    return config


def cifar100(title: str, model: str, **network: Any) -> Config:
    """Returns a config for CIFAR-100, split into 50 + 50 classes; see `default`."""
    config = default(title, model, **network)
    config.dataset = "cifar100"
    config.train = training(epochs=100, batch_size=250, flip=True, crop=4)
    config.finetune = training(
        epochs=30, batch_size=250, learning_rate=5e-4, flip=True, crop=4
    )
    config.batch_size = 500
    config.plane.points, config.plane.images = 9, 500
    return config


def training(
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-2,
    flip: bool = False,
    crop: int = 0,
) -> Config:
    """Returns the fields of one training."""
    return ml_collections.ConfigDict(locals())


def shrunk(config: Config) -> Config:
    """Returns a config that runs in seconds: all its parts, on next to nothing.

    Of CIFAR only the images' shape is left, so that it need not be there.
    """
    small = config.copy_and_resolve_references()
    small.dataset = config.dataset.replace("cifar", "noise")
    small.class_names, small.examples = config.dataset, 2
    small.checkpoints = None
    small.seeds = config.seeds[:1]
    small.network.update(smallest(config.model, config.network.to_dict()))
    small.rows = one_of_a_kind(config.rows, config.partial_rows)
    small.train.epochs = small.finetune.epochs = 1
    small.cuts = 1
    small.cut_layers = ()
    small.grid.update({name: values[:2] for name, values in config.grid.items()})
    small.plane.points = min(config.plane.points, 2)
    return small
