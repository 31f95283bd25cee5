"""Twelve tasks on rendered rooms, small encoders and decoders: all pairs.

    python -m experiments.run --config configs/scenes.py
    python -m experiments.run --config configs/scenes.py --config.data_dir=DIR \
      --config.scenes.images=cifar10 --config.scenes.size=32 --config.num_tasks=4 \
      --workdir=workdir/scenes_cifar10 \
      --config.scenes.tasks="('edge_texture','keypoints2d','autoencoding','denoising')"

MuDSC's Table 4 in a reduced setting that needs no download: 4,000 scenes of 32x32
pixels with exact labels in place of Taskonomy's photographs, and networks of about a
hundredth of the size, trained from different initialisations. The run warns of networks
that are no better than the mean of the training labels, or that ignore their images:
scores of their tasks mean little. It takes about an hour on two CPU cores. The second
command runs the tasks that need nothing but images on CIFAR-10's. docs/results.md has
the results of both.

Only encoders are merged, all layers but the last, and every network keeps its decoder.
Scores are scaled performances: 100 is as good as the task's own network, 0 as good as
the mean of the training labels. The order of the tasks is the paper's, and so is the
balance, 0.5 without a search.
"""

import ml_collections

from experiments.defaults import default, training
from experiments.methods.rows import PAPERS


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default(
        "Twelve tasks on scenes, encoders and decoders",
        "taskonomy",
        width=1 / 8,
        depths=(1, 1, 1, 1),
        code=32,
        decoder_width=1 / 8,
        decoder_least=16,
        hidden=64,
    )
    config.tasks = "scenes"
    config.scenes.tasks = (
        *("class_object", "segment_semantic", "depth_zbuffer", "depth_euclidean"),
        *("edge_occlusion", "edge_texture", "keypoints2d", "keypoints3d"),
        *("reshading", "normal", "autoencoding", "denoising"),
    )
    config.num_tasks = 12
    config.groups = ("pairs",)
    config.seeds = (0,)
    config.scenes.size, config.scenes.train, config.scenes.test = 32, 4000, 256
    config.train = training(epochs=12, batch_size=32)
    # Without these it learns its images by heart, and is worse than the mean on others.
    config.own_train.class_object = training(
        epochs=12, batch_size=32, flip=True, crop=4, weight_decay=0.05
    )
    config.batch_size = 128
    config.calibration_images = 128  # Of every task.
    config.test_images = 256
    config.rows = PAPERS
    config.partial_rows = ()
    config.zipit.alpha, config.zipit.beta = 0.3, 1.0
    config.grid.balance = (0.5,)
    config.plane.points = 0
    config.init = init
    return config
