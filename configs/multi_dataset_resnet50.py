"""Dogs, pets and birds: ResNet-50s of four data sets (ZipIt!, Table 2).

    tfds build stanford_dogs,oxford_iiit_pet,caltech_birds2011 \
      --file_format=array_record --data_dir=DIR
    python -m experiments.run --config configs/multi_dataset_resnet50.py \
      --config.data_dir=DIR --config.data_dirs.nabirds=NABIRDS \
      --config.checkpoints=FOLDER

NABIRDS is the unpacked folder of NABirds. FOLDER holds ``model_a.safetensors`` to
``model_d.safetensors``, torchvision's ResNet-50 with as many outputs as the data set
has classes, in the order below; without it, networks are trained, from the file that
``--config.start`` names (torchvision's, of ImageNet) if there is one.

The paper reports, in the mean over the four tasks, for pairs and for all four: Average
11.3 and 1.2, Permute 35.7 and 15.3, ZipIt! 49/50 37.1 and 16.8, 22/50 62.4 and 45.5,
10/50 68.7 and 65.3, Ensemble 75.5.
Made for an accelerator; ``--config.smoke=True`` runs all of it on noise.
"""

import ml_collections
from ml_collections import config_dict

from experiments.defaults import default, training
from experiments.methods.rows import PAPERS


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("Dogs, pets and birds, ResNet-50", "resnet50")
    config.tasks = "datasets"
    config.datasets = (
        ("SD", "stanford_dogs", ()),
        ("OP", "oxford_iiit_pet", ()),
        ("CUB", "caltech_birds2011", ()),
        ("NAB", "nabirds", ()),
    )
    config.data_dirs.nabirds = config_dict.placeholder(str)
    config.num_tasks = 4
    config.groups = ("pairs", "all")
    config.seeds = (0,)
    config.train = training(epochs=30, batch_size=64, learning_rate=2e-4, flip=True)
    config.batch_size = 128
    config.calibration_images = 2000
    config.search_images = 1000
    config.positions = "few"
    config.workers = 8
    config.rows = (*PAPERS, "zipit_searched", "zipit_refit")
    config.partial_rows = ("zipit", "mudsc_zip", "zipit_refit")
    # The paper's 49, 22 and 10 of 50 layers; the first is a merge of everything.
    config.cut_layers = (22, 10)
    config.zipit.alpha, config.zipit.beta = 0.1, 1.0
    config.grid.alpha = (0.1, 0.3, 0.5)
    config.grid.beta = (1.0,)
    config.plane.points = 0
    config.init = init
    return config
