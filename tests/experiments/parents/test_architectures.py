"""Networks by name: what their sizes mean, and what they predict."""

import pytest

from experiments.parents.architectures import build, segmenters, smallest
from zipjax.models import deeplab, resnet

SIZES = {"depths": (1, 2), "body": "basic", "width": 1 / 8, "output_stride": 4}


def test_a_segmenter_and_a_classifier_have_one_backbone():
    head = {"hidden": 5, "rates": (1, 2)}
    segmenter, spec = build("deeplab", {**SIZES, **head}, 7, "mask")
    found, own = build("deeplab", {**SIZES, **head}, 3)
    wanted = deeplab.DeepLabV3(
        7, (1, 2), resnet.basic, 1 / 8, output_stride=4, hidden=5, rates=(1, 2)
    )
    assert segmenter == wanted
    classifier = resnet.ResNet(3, (1, 2), resnet.basic, 1 / 8, output_stride=4)
    assert found == classifier
    assert spec == deeplab.spec(wanted)
    assert own == resnet.spec(classifier)


def test_a_classifier_has_no_masks():
    assert segmenters() == ["deeplab"]
    with pytest.raises(ValueError, match=r"'resnet20' classifies .*\['deeplab'\]"):
        build("resnet20", {}, 3, "mask")


def test_the_smallest_network_keeps_its_kind_of_blocks_and_its_stride():
    found = smallest("deeplab", {**SIZES, "depths": (3, 4, 6)})
    assert found["body"] == "basic"
    assert found["output_stride"] == 4
    assert found["depths"] == (1, 1)
    assert "groups" not in found
