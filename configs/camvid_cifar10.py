"""CamVid's pixels beside CIFAR-10: a small dilated ResNet under DeepLabV3's head.

    python -m experiments.run --config configs/camvid_cifar10.py --config.data_dir=DIR

ZipIt!'s segmenter beside a classifier (Section 4) in a reduced setting: street scenes
of 96x128 pixels in 11 classes and images of 32x32, networks of a fortieth of the size,
trained from different initialisations. The classifier has the segmenter's dilations, so
that one trunk serves both. DIR holds `cifar10` and `camvid` as docs/data.md says.

Moments, and the batch statistics of the trunk, come from images of both tasks. With
`--config.calibration_tasks="(0,)"` they come from CamVid alone, with `"(1,)"` from
CIFAR-10.
"""

import ml_collections

from experiments.defaults import default, training


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default(
        "CamVid and CIFAR-10, DeepLabV3",
        "deeplab",
        depths=(2, 2, 2),
        body="basic",
        width=0.5,
        output_stride=8,
        hidden=64,
        rates=(2, 4, 6),  # The paper's reach beyond images of 12x16 places.
    )
    config.tasks = "datasets"
    config.datasets = (("CamVid", "camvid", ()), ("CIFAR-10", "cifar10", ()))
    config.seeds = (0,)
    config.examples = 2000  # Of a class, at most.
    config.train = training(epochs=5, batch_size=128, flip=True, crop=4)
    config.own_train.CamVid = training(epochs=40, batch_size=16, flip=True, crop=8)
    config.batch_size = 200
    # All of CamVid's; of CIFAR-10's, which have a twelfth of the pixels, more.
    config.calibration_images = 1000
    config.test_images = 2000
    config.rows = ("average", "permute", "zipit")
    config.partial_rows = ("zipit",)
    config.zipit.alpha, config.zipit.beta = 0.3, 1.0
    config.plane.points = 0
    config.init = init
    return config
