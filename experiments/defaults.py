"""The config that all others start from, and the smallest version of a config."""

from collections.abc import Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from experiments.data.datasets import DATASETS, stand_in
from experiments.data.splits import LABEL
from experiments.methods.rows import PAPERS, one_of_a_kind
from experiments.parents.architectures import smallest
from experiments.parents.text_embeddings import CLASSES
from experiments.parents.train import Config

# Of a smoke run: the side of images that would differ in size, and the most tasks.
_SMOKE_SIDE, _SMOKE_TASKS = 32, 3


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
    # The folder of TensorFlow Datasets, or that of a data set in folders of images.
    config.data_dir = config_dict.placeholder(str)
    config.workers = 0  # Processes that decode images, if these are not in memory.
    config.examples = config_dict.placeholder(int)  # Per class; None: all.
    # How the data set's pixels, of 0 to 255, are normalised: one number per channel or
    # one for all; (): as is usual for it.
    config.pixels = ml_collections.ConfigDict({"mean": (), "std": ()})
    config.class_names = config_dict.placeholder(str)  # None: the dataset's own.
    config.text_encoder = "minilm"
    # What networks learn, see `experiments.parents.tasks.kinds`.
    config.tasks = "split"
    config.num_tasks = 2
    # Networks that are merged: "all" at once, "pairs", or all groups of a number.
    config.groups = ("all",)
    config.classes = ()  # The classes of every task; empty: config.tasks decides.
    # Of tasks = "datasets": a name, a data set and classes, () for all, of each task,
    # folders of data sets that are not in data_dir, the side of the classified images,
    # and trainings, by task, of those that differ from config.train.
    config.datasets = ()
    config.data_dirs = ml_collections.ConfigDict()
    config.image_size = config_dict.placeholder(int)
    config.own_train = ml_collections.ConfigDict()
    # Of tasks = "scenes": their names, the images that they are about ("scenes", which
    # are rendered, or a data set), numbers of these, and their side.
    config.scenes = ml_collections.ConfigDict(
        {"tasks": (), "images": "scenes", "train": 2000, "test": 200, "size": 48}
    )
    config.seeds = (0, 1, 2, 3, 4)

    config.model = model
    config.network = ml_collections.ConfigDict(network)

    # A folder of PyTorch networks, see `experiments.parents.trained.pretrained`; None:
    # networks are trained.
    config.checkpoints = config_dict.placeholder(str)
    config.checkpoint_files = ()  # Names there; (): model_a.safetensors and so on.
    config.init = "scratch"  # Or "finetuned": from one network that knows all classes.
    config.start = config_dict.placeholder(str)  # A file that trainings start from.
    config.train = training(epochs=60)
    config.finetune = training(epochs=20, learning_rate=5e-4)

    config.batch_size = 256  # For moments, batch statistics and evaluation.
    # Training images for moments, batch statistics and searches; None: all of them.
    config.calibration_images = config_dict.placeholder(int)
    # Of tasks = "datasets": numbers of the tasks whose images moments, and the batch
    # statistics of what is shared, come from; (): all of them.
    config.calibration_tasks = ()
    # How many of these are for searches, and for a refit; None: all of them.
    config.search_images = config_dict.placeholder(int)
    config.refit_images = config_dict.placeholder(int)
    config.test_images = config_dict.placeholder(int)  # None: all of them.
    config.ddof = 0  # Of measured batch statistics; PyTorch's variances have 1.
    # Of a batch, for moments: "all" as in the papers, "few", or a number.
    config.positions = "all"
    config.reset_parents = False  # Whether networks are reset before they are merged.

    config.rows = PAPERS
    config.partial_rows = ("zipit", "zipit_refit")  # Rows that also stop earlier:
    config.cuts = 4  # at this many cuts or fewer, spread over the depth,
    config.cut_layers = ()  # or, unless empty, after these numbers of layers.
    # Whether the spec is inferred, with cuts inside residual streams, not declared.
    config.inferred = False
    config.zipit = ml_collections.ConfigDict({"alpha": 0.3, "beta": 0.5})
    # The same for partial zips; follows the one above until it is set.
    config.partial_zipit = ml_collections.ConfigDict(
        {name: config.zipit.get_oneway_ref(name) for name in config.zipit}
    )
    # The cost of networks of allotted widths, in forward passes of one network; that of
    # a partial merge includes its heads.
    config.cost, config.partial_cost = 1.0, 1.5
    # The values that a search tries; MuDSC's authors search the balance in this way.
    config.grid = ml_collections.ConfigDict(
        {
            "alpha": (0.1, 0.3, 0.5, 1.0),
            "beta": (0.0, 0.5, 1.0),
            "balance": tuple(k / 10 for k in range(11)),
        }
    )

    # The picture of losses on a plane: points per side (0: no picture), and the number
    # of test images for losses and of calibration images for batch statistics.
    config.plane = ml_collections.ConfigDict({"points": 11, "images": 450})

    # Pictures that take longer: "pairs" of units, merged one by one (MuDSC, Figure 1),
    # "basins", losses around several zips (MuDSC, Figure 3), and the "barrier" between
    # two networks, in their own order and aligned (Git Re-Basin, REPAIR).
    config.pictures = ()
    # The barrier: points on each line, and the number of test images for scores and of
    # calibration images for batch statistics.
    config.line = ml_collections.ConfigDict({"points": 11, "images": 450})

    # Several processes share the data: "auto" on TPU pods and under Slurm, Open MPI or
    # Kubernetes, or "host:port,count,number" for each of them; None: a single one.
    config.distributed = config_dict.placeholder(str)
    config.tensorboard = False  # Training curves; needs the extra of that name.
    config.smoke = False  # The smallest run that touches everything, see `shrunk`.
    return config


def cifar100(title: str, model: str, **network: Any) -> Config:
    """Returns a config for CIFAR-100, split into 50 + 50 classes; see `default`.

    Its table has the rows of MuDSC's Table 1, and ours, full and at ZipIt!'s cuts.
    """
    config = default(title, model, **network)
    config.dataset = "cifar100"
    config.train = training(epochs=100, batch_size=250, flip=True, crop=4)
    config.finetune = training(
        epochs=30, batch_size=250, learning_rate=5e-4, flip=True, crop=4
    )
    config.batch_size = 500
    config.calibration_images = 5000
    config.search_images, config.refit_images = 1000, 2000
    config.rows = (*PAPERS, "zipit_refit_ensemble", "zipit_allotted_refit")
    config.partial_rows, config.cut_layers = config.rows, (7, 13)
    config.zipit.alpha, config.zipit.beta = 0.5, 1.0
    config.partial_zipit.alpha, config.partial_zipit.beta = 0.3, 0.125
    config.grid.balance = (0.1, 0.3, 0.5, 0.7, 0.9)
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
    precision: str = "float32",
) -> Config:
    """Returns the fields of one training; precision "bfloat16" is for accelerators."""
    return ml_collections.ConfigDict(locals())


def shrunk(config: Config) -> Config:
    """Returns a config that runs in seconds: all the parts, on very little data.

    Data that would have to be downloaded are replaced by noise of the same shape.
    """
    small = config.copy_and_resolve_references().unlock()
    small.dataset = stand_in(config.dataset)
    small.class_names, small.examples = config.class_names or config.dataset, 2
    if small.class_names not in CLASSES:
        small.dataset, small.class_names, small.classes = "noise100", "cifar100", ()
        small.text_encoder = "minilm"
    small.checkpoints = small.start = None
    if config.datasets:
        small.image_size = _SMOKE_SIDE
    small.datasets = tuple(
        (name, stand_in(dataset), _few(dataset, classes))
        for name, dataset, classes in config.datasets[:_SMOKE_TASKS]
    )
    # Rendered in place of Taskonomy's: noise has the labels of CIFAR's alone.
    own = config.scenes.images
    small.scenes.images = "scenes" if own == "taskonomy" else stand_in(own)
    small.scenes.size = 32
    small.scenes.train, small.scenes.test = 8, 4
    small.scenes.tasks = config.scenes.tasks[:2]
    small.seeds = config.seeds[:1]
    small.network.update(smallest(config.model, config.network.to_dict()))
    small.rows = one_of_a_kind(config.rows, config.partial_rows)
    for recipe in (small.train, small.finetune, *small.own_train.values()):
        recipe.epochs = 1
    # Of heads that are never merged, the last cut is the merge of everything.
    small.cuts = 2 if config.datasets else 1
    small.groups = config.groups[:1]
    small.num_tasks = len(small.datasets) or 2
    small.cut_layers = ()
    small.grid.update({name: values[:2] for name, values in config.grid.items()})
    small.plane.points = min(config.plane.points, 2)
    small.line.points = 2
    return small


def _few(dataset: str, classes: Sequence[int]) -> tuple[int, ...]:
    """Returns a few of a task's classes; all, as (), of masks or where unknown."""
    info = DATASETS[dataset]
    known = (info.num_classes or 0) if info.target == LABEL else 0
    return tuple(classes or range(known))[:4]
