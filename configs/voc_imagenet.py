"""VOC's pixels beside ImageNet: DeepLabV3 and ResNet-50 (ZipIt!, Section 4).

    python -m experiments.run --config configs/voc_imagenet.py \
      --config.checkpoints=FOLDER --config.data_dirs.voc=VOCdevkit/VOC2012 \
      --config.data_dirs.imagenet2012=DIR

FOLDER holds torchvision's networks, without the segmenter's second head:

    import torchvision.models as models
    from safetensors.torch import save_file

    segmenter = models.segmentation.deeplabv3_resnet50(weights="DEFAULT").state_dict()
    own = {name: x for name, x in segmenter.items() if not name.startswith("aux_")}
    save_file(own, "FOLDER/model_a.safetensors")
    classifier = models.resnet50(weights="IMAGENET1K_V1").state_dict()
    save_file(classifier, "FOLDER/model_b.safetensors")

The classifier runs with the segmenter's dilations, so that one trunk serves both; its
parameters are those of the strided network, whose accuracy on whole images differs a
little. Images of both tasks are normalised alike.

Moments, and the batch statistics of the trunk, come from images of both tasks. With
`--config.calibration_tasks="(0,)"` they come from VOC alone, with `"(1,)"` from
ImageNet.
"""

import ml_collections
from ml_collections import config_dict

from experiments.defaults import default


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default(
        "VOC and ImageNet, DeepLabV3 with ResNet-50",
        "deeplab",
        depths=(3, 4, 6, 3),
        body="bottleneck",
        width=1.0,
        output_stride=8,
        hidden=256,
        rates=(12, 24, 36),
    )
    config.tasks = "datasets"
    config.datasets = (("VOC", "voc", ()), ("ImageNet", "imagenet2012", ()))
    config.data_dirs.voc = config_dict.placeholder(str)
    config.data_dirs.imagenet2012 = config_dict.placeholder(str)
    config.seeds = (0,)
    config.batch_size = 32
    config.calibration_images = 1024
    config.search_images = 512
    config.positions = "few"
    config.ddof = 1
    config.rows = ("average", "permute", "zipit", "mudsc_zip")
    config.partial_rows = ("zipit", "mudsc_zip")
    # After the backbone's first stages; all of it is 49 layers.
    config.cut_layers = (10, 22, 40)
    config.zipit.alpha, config.zipit.beta = 0.3, 1.0
    config.plane.points = 0
    config.init = init
    return config
