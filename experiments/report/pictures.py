"""The report's pictures with their captions."""

from collections.abc import Mapping, Sequence

import numpy as np

import zipjax
from experiments.parents.tasks.suite import Drawable, Forward, Task
from experiments.report import (
    accuracy,
    barrier,
    contours,
    curves,
    matched_units,
    predictions,
    unit_pairs,
)
from experiments.report.barrier import Line
from experiments.report.plane import Landscape
from experiments.report.report import Picture
from experiments.report.unit_pairs import UnitPairs
from experiments.results import Result

_MATRICES = 4
_EXAMPLES = 4


def depth_pictures(results: Sequence[Result], total_layers: int) -> list[Picture]:
    """Draws scores against depth, for every group of networks.

    Args:
      results: of all groups.
      total_layers: number of layers of the network, where the axis ends.
    """
    drawn = []
    for group in dict.fromkeys(result.group for result in results):
        own = [result for result in results if result.group == group]
        drawn.append(
            Picture(
                accuracy.accuracy_against_depth(own, total_layers),
                f"{group or 'All networks'}: scores against the number of zipped "
                "layers: 0 is the ensemble. On grey: other merges into one network. "
                "Bars: one standard deviation over seeds.",
                "The nearer a line stays to the dashed level of the ensemble, the less "
                "is lost by zipping so many layers.",
                "Line plot of scores against depth",
            )
        )
    return drawn


def iteration_pictures(
    sweeps: Mapping[str, Sequence[zipjax.Sweep]],
    searches: Mapping[tuple[str, ...], Mapping[str, zipjax.Search]],
) -> list[Picture]:
    """Draws how recipes iterated, once each, and how their settings were chosen.

    Args:
      sweeps: the sweeps of every method by its title.
      searches: by title and names of the settings, and by networks.
    """
    drawn = []
    if sweeps:
        objective = Picture(
            curves.objective_curves(sweeps),
            "Mean similarity of matched units after every sweep over the perms, as a "
            "share of the best (in brackets), which is kept. First seed.",
            "A line that is level at its end has converged; the higher it starts, the "
            "less the sweeps have changed.",
            "Line plot of the objective against the sweep",
        )
        drawn.append(objective)
    by_names: dict[tuple[str, ...], dict[str, list[zipjax.Search]]] = {}
    for (title, *names), found in searches.items():
        by_names.setdefault(tuple(names), {})[title] = list(found.values())
    for names, found in by_names.items():
        chosen = Picture(
            curves.search_curves(found),
            f"Choice of {' and '.join(names)} on training images: thin lines are "
            "networks, thick ones their means, rings the chosen values.",
            "The steeper a line, the more the choice matters; rings at an end of the "
            "axis say that values beyond it may do better.",
            f"Line plot of training accuracy against {names[0]}",
        )
        drawn.append(chosen)
    return drawn


def match_pictures(
    assignments: Mapping[str, np.ndarray],
    moments: Mapping[str, zipjax.Moments],
    num_models: int,
    where: str,
) -> list[Picture]:
    """Draws how units were matched, and a few perms' correlations.

    Args:
      assignments: the merged unit of every unit, by perm.
      moments: of the perms' units.
      num_models: number of models.
      where: a sentence that says which networks these are.

    Returns:
      The pictures; none if there are no assignments.
    """
    if not assignments:
        return []
    correlations = {
        perm: np.asarray(moments[perm].correlation(), np.float64)
        for perm in assignments
    }
    kinds = Picture(
        matched_units.merge_kinds(assignments, num_models),
        f"The networks that the merged units of every layer come from. {where}",
        "The longer a part of two letters such as A-B, the more units the networks "
        "share; A-A is what network A had twice, and single units found no partner.",
        "Stacked bars of the kinds of merged units in every layer",
    )
    matched = Picture(
        matched_units.matched_correlations(correlations, assignments, num_models),
        f"Correlations of units that were merged with each other. {where}",
        "The further to the right, the more alike units were and the less is lost in "
        "their mean: layers on the left are where the merge is weakest.",
        "Histogram of matched correlations",
    )
    places = np.linspace(0, len(assignments) - 1, min(_MATRICES, len(assignments)))
    shown = [list(assignments)[place] for place in places.round().astype(int)]
    matrices = [
        Picture(
            matched_units.correlation_matrix(
                correlations[perm], assignments[perm], num_models, perm
            ),
            f"Correlations of all units of {perm}, in the order of the merge. {where}",
            "Merged units lie side by side along the diagonal: where it stays red "
            "besides the line itself, they are alike; where it fades, they are not.",
            f"Correlation matrix of the units of {perm}",
        )
        for perm in shown
    ]
    return [kinds, matched, *matrices]


def plane_picture(landscape: Landscape, where: str) -> Picture:
    """Draws the tasks' losses on the plane through A, B and their zip."""
    return Picture(
        contours.loss_contours(landscape),
        "Loss of each task on the plane through model A, model B with its units in "
        "A's order, and their zip (ZipIt!, Figure 2); the axes are distances in the "
        f"space of parameters. {where}",
        "Yellow is a low loss: the zip is good at both tasks if it lies in the yellow "
        "of both panels, and a dark ridge between A and B is what their mean suffers "
        "from.",
        "Contours of the loss of task A and of task B on a plane of networks",
    )


def prediction_picture(
    task: Task, objective: Drawable, answers: Mapping[str, Forward], where: str
) -> Picture:
    """Draws what networks predict for a few test images of a task.

    Args:
      task: the task.
      objective: the task's, which can be drawn.
      answers: what every network answers about the task, by the heading of its column.
      where: a sentence that says which networks these are.
    """
    places = np.linspace(0, len(task.test) - 1, min(_EXAMPLES, len(task.test)))
    images, targets = task.test.read(places.round().astype(int))
    seen = task.test.pixels.normalised(images)
    columns = {"Input": images, "Truth": objective.drawn_targets(targets)}
    for name, answer in answers.items():
        columns[name] = objective.drawn_outputs(answer(seen))
    return Picture(
        predictions.predictions(columns),
        f"{task.name}: test images spread over the data set, the truth, and what the "
        f"network of this task and merged networks predict. {where}",
        "What the task's own network gets right and a column to its right does not is "
        "lost in that merge.",
        f"Images of {task.name} with the truth and predictions",
    )


def basins_picture(landscape: Landscape, where: str) -> Picture:
    """Draws the tasks' losses around several zips."""
    return Picture(
        contours.loss_contours(landscape, mean=True),
        "Loss on the plane of the two principal components of the networks A and B and "
        "of their zips, all with their units in A's order (MuDSC, Figure 3): the mean "
        f"of the tasks, and each of them. {where}",
        "Yellow is a low loss: of the zips, the one in the lightest place of the mean "
        "is the best, if it lies in no dark place of a single task.",
        "Contours of the mean loss and of the tasks' losses on a plane of networks",
    )


def pairs_picture(pairs: UnitPairs, where: str) -> Picture:
    """Draws units that were merged in pairs."""
    return Picture(
        unit_pairs.merged_pairs(pairs),
        "Pairs of units of two networks: how alike their weights and their activations "
        "are, and, in colour, how much of both is left in the unit that is their mean, "
        "with all other units merged by Permute (MuDSC, Figure 1). Star: the pair of "
        f"which most is left. {where}",
        "If points brighten from the bottom to the top, activations tell which units "
        "may be merged; if from left to right, weights do.",
        "Scatter plot of pairs of units by the similarity of weights and activations",
    )


def barrier_picture(lines: Sequence[Line], where: str) -> Picture:
    """Draws losses and scores on the lines between two networks."""
    return Picture(
        barrier.barrier_curves(lines),
        "Mean loss and score of the tasks on the straight line from network A to B, "
        "whose units are in their own order, in A's by activations (Permute), or in "
        "A's by weights (Git Re-Basin). Dashed: batch statistics measured again at "
        f"every point, as in REPAIR. {where}",
        "The bump between the ends is the barrier: the less of it is left, the more "
        "alike the networks are in that order of their units.",
        "Line plots of the loss and the score between two networks",
    )
