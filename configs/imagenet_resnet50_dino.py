"""ImageNet, five ResNet-50s of 200 classes each that start from DINO: all ten pairs.

    tfds build imagenet2012 --file_format=array_record --data_dir=DIR
    python -m experiments.parents.text_embeddings --classes imagenet2012 --encoder clip
    python -m experiments.run --config configs/imagenet_resnet50_dino.py \
      --config.data_dir=DIR --config.start=dino_resnet50_pretrain.pth

MuDSC's Table 3. The second command needs the names of the classes in
`experiments/parents/text_embeddings.py`. The last file is DINO's, of PyTorch; the layer
that it lacks is drawn. With ``--config.checkpoints=FOLDER`` and ``--config.classes``
networks are read instead of trained, see `experiments.parents.trained.pretrained`. Made
for an accelerator; ``--config.smoke=True`` runs all of it on noise.
"""

import ml_collections

from experiments.defaults import default, training


def get_config(init: str = "scratch") -> ml_collections.ConfigDict:
    config = default("ImageNet, 5 x 200 classes, ResNet-50 from DINO", "resnet50")
    config.dataset = "imagenet2012"
    config.text_encoder = "clip"
    config.num_tasks = 5
    config.groups = ("pairs",)
    config.seeds = (0,)
    config.train = training(epochs=20, batch_size=256, learning_rate=3e-4, flip=True)
    config.finetune = config.train.copy_and_resolve_references()
    config.calibration_images = 10_000
    config.search_images = 5000
    config.positions = "few"
    config.workers = 8
    config.plane.points = 0
    config.init = init
    return config
