"""Ten of Taskonomy's tasks, encoders of ResNet-50 and decoders: all pairs.

    pip install omnidata-tools && omnitools.download rgb depth_euclidean depth_zbuffer \
      edge_occlusion edge_texture keypoints2d keypoints3d normal reshading \
      --components taskonomy --subset tiny --dest DIR --agree_all
    python -m experiments.run --config configs/taskonomy.py --config.data_dir=DIR

MuDSC's Table 4: encoders are merged, all layers but the last, and moments and batch
statistics come from training images. Networks are trained here, from different
initialisations, or read from ``--config.checkpoints``: ``model_a.safetensors`` and so
on, in the order of the tasks, with the keys of visualpriors' TaskonomyNetwork.

Targets are fractions of the largest value that is stored. The published networks have
other scales, such as logarithms of distances, so that their losses against these
targets say little. There are no labels of semantic segmentation and of objects, which
are the two other tasks of the paper. This config was tried on stand-ins only.
"""

import ml_collections

from experiments.defaults import default, training
from experiments.methods.rows import PAPERS


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("Ten tasks of Taskonomy, ResNet-50", "taskonomy", width=1.0)
    config.tasks = "scenes"
    config.scenes.images = "taskonomy"
    config.scenes.tasks = (
        *("depth_zbuffer", "depth_euclidean", "edge_occlusion", "edge_texture"),
        *("keypoints2d", "keypoints3d", "reshading", "normal"),
        *("autoencoding", "denoising"),
    )
    config.num_tasks = 10
    config.scenes.size = 256
    config.scenes.train, config.scenes.test = 61_520, 54_513
    config.workers = 8
    config.groups = ("pairs",)
    config.seeds = (0,)
    config.train = training(epochs=20, batch_size=64, learning_rate=1e-3)
    config.batch_size = 64
    config.calibration_images = 5000  # Of every task.
    config.positions = "few"
    config.rows = PAPERS
    config.partial_rows = ()
    config.zipit.alpha, config.zipit.beta = 0.3, 1.0
    config.grid.balance = (0.5,)
    config.plane.points = 0
    config.init = init
    return config
