"""Results for the tests of tables and reports."""

from experiments.results import Result

FIGURES = {  # method: layers, FLOPs in millions, joint, tasks
    "Model A": (None, 41.0, 0.48, (0.96, 0.20)),
    "Model B": (None, 41.0, 0.47, (0.22, 0.95)),
    "Ensemble": (None, 82.0, 0.874, (0.96, 0.95)),
    "Average": (None, 41.0, 0.13, (0.25, 0.84)),
    "Permute": (None, 41.0, 0.55, (0.72, 0.71)),
    "ZipIt! full": (20, 41.0, 0.66, (0.83, 0.80)),
    "ZipIt! 13/20": (13, 55.0, 0.83, (0.93, 0.92)),
}


def results_of(seeds=(0, 1)) -> list[Result]:
    return [
        Result(
            method,
            seed,
            1e6 * flops,
            joint + seed / 1000,
            tuple(task - seed / 500 for task in tasks),
            layers,
        )
        for seed in seeds
        for method, (layers, flops, joint, tasks) in FIGURES.items()
    ]
