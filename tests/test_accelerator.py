"""The script for accelerators: its configs, and our figures beside the papers'."""

import argparse

import pytest

from benchmarks import accelerator
from experiments.checks import check_config
from experiments.results import Result


@pytest.mark.parametrize(("dataset", "pairs"), [("cifar10", 5), ("cifar100", 1)])
def test_the_papers_setting(dataset, pairs):
    options = argparse.Namespace(data_dir="data", smoke=False)
    config = accelerator.chosen(dataset, options)
    check_config(config)
    assert len(config.seeds) == pairs
    assert config.network.width == {"cifar10": 4, "cifar100": 8}[dataset]
    assert config.train.precision == "bfloat16"
    assert config.num_tasks == 2


def test_accuracies_in_percent_beside_the_papers():
    results = [
        Result("ZipIt! 20/20", seed, 1.0, joint, (0.5, 1.0), 20)
        for seed, joint in enumerate((0.2, 0.4))
    ]
    results += [Result("Other", seed, 1.0, 0.1, (0.0, 0.0)) for seed in (0, 1)]
    found = accelerator.compared(results, accelerator.PAPER["cifar10"])
    assert found["ZipIt! 20/20"] == pytest.approx(
        {"joint": 30, "average": 75, "joint, paper": 79.1, "average, paper": 92.1}
    )
    assert found["Other"] == pytest.approx({"joint": 10, "average": 0})
    cells = accelerator.row("Other", found["Other"])
    assert cells == ["Other", "10.0", "0.0", "", ""]
