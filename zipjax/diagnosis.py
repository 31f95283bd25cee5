"""Why a merged model fails: which layers keep the models' features, and which do not.

A merged network can do no more than what its features hold. If the models' own features
are linear functions of the merged ones, a linear layer can go on as each model would;
what is not, is lost for all layers behind. Jordan et al. 2022 (REPAIR) name the other
failure: averaged features vary less than those that they are averages of.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from zipjax.arguments import check_kind, check_number, check_sequence
from zipjax.batches import InputsOf, input_batches
from zipjax.merging.merged import Merged, known_origin
from zipjax.merging.networks import Networks
from zipjax.positions import Positions
from zipjax.recipes.prices import find_kernels, merged_kernel, total_price
from zipjax.similarity.collecting import collect_moments
from zipjax.similarity.moments import Moments
from zipjax.spec.depth import Cut
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import ApplyFn, Array, PyTree

# Units that vary less than this, relative to the one that varies most, are constant.
_CONSTANT = 1e-10

# Of the merged units' correlations, directions of less variance than this are noise.
_RANK = 1e-5

_Covariance = Float[np.ndarray, "units units"]


@dataclasses.dataclass(frozen=True)
class PermDiagnosis:
    """How much of the models' features one perm of a merged model keeps.

    Attributes:
      perm: its name.
      depth: after how many layers its units are read.
      explained: for every model the share of its units' variance, each unit scaled to
        variance 1, that the best linear map of the merged units predicts, in [0, 1].
      variance: that of the merged units, over that of the models' units: the means of
        both. Far below 1 is variance collapse.
    """

    perm: str
    depth: int
    explained: tuple[float, ...]
    variance: float


@dataclasses.dataclass(frozen=True)
class CutDiagnosis:
    """What a zip up to a cut would keep, and cost.

    Attributes:
      cut: the cut.
      explained: the least share of a model's features that any perm of the trunk keeps,
        see :class:`PermDiagnosis`. Shares may rise again where features have fewer
        directions; what layers before did not keep is no longer there to be used.
      cost: multiplications of data by kernels, all heads included, in runs of one
        model.
    """

    cut: Cut
    explained: float
    cost: float


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; as a string, two tables.

    Attributes:
      perms: every zipped perm, in depth order.
      cuts: every cut within the zip, from the input to the output.
    """

    perms: tuple[PermDiagnosis, ...]
    cuts: tuple[CutDiagnosis, ...]

    def recommended(self, cost: float) -> Cut:
        """Returns the cut that keeps most of the models' features within a budget.

        Of cuts that keep as much, the first one: it leaves most layers to the models.

        Args:
          cost: the budget of the merged network, in runs of one model.

        Raises:
          ValueError: if no cut is within the budget.
        """
        check_number("cost", cost, lambda x: x > 0, "a positive number, such as 1.5")
        within = [own for own in self.cuts if own.cost <= cost]
        if not within:
            least = min((own.cost for own in self.cuts), default=np.nan)
            raise ValueError(
                f"no cut costs {cost} runs of one model or less: the cheapest costs "
                f"{least:.3g}. Raise cost, or merge everything with stop_at=None"
            )
        return max(within, key=lambda own: own.explained).cut

    def __str__(self) -> str:
        rows = [
            f"{own.perm:24} {own.depth:5}  {' '.join(_percent(own.explained)):24} "
            f"{own.variance:8.2f}"
            for own in self.perms
        ]
        ends = [
            f"{own.cut.number:4} {own.cut.name:24} {own.cut.layers:5} {own.cost:6.2f}  "
            f"{_percent([own.explained])[0]}"
            for own in self.cuts
        ]
        return "\n".join(
            [
                f"{'perm':24} depth  {'explained, by model':24} variance",
                *rows,
                "",
                f" cut {'name':24} depth   cost  explained",
                *ends,
            ]
        )


def diagnose(
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    merged: Merged,
    batches: Iterable[Any],
    *,
    inputs_of: InputsOf | None = None,
    positions: Positions = "few",
    key: Array | None = None,
) -> Diagnosis:
    """Measures how much of every model's features each layer of a merged model keeps.

    Diagnose the merge of everything to see where a partial zip should stop:
    ``diagnosis.recommended(cost)``. Batch statistics should have been reset. Before and
    after a refit, the same function shows what that brought. A stream's units are read
    at its end, so that for a cut inside a stream its share is a lower bound.

    Args:
      apply_fn: ``apply_fn(params, *inputs)`` of all models, in evaluation mode.
      models: the models that were merged.
      merged: their merged model, of the models' widths.
      batches: an iterable of batches, which is read once, into memory.
      inputs_of: maps a batch to the inputs of ``apply_fn``; by default it is its own
        input.
      positions: see :func:`zipjax.collect_moments`. Shares are too large where a perm
        has few more samples than units.
      key: PRNG key of the positions.

    Returns:
      The diagnosis.

    Raises:
      ValueError: if the models are not those that were merged, if these have several
        specs or the merged model other widths, if it ends inside a residual stream, or
        if batches are none.
    """
    check_kind("merged", merged, Merged)
    check_sequence("models", models)
    origin = known_origin(merged)
    spec = _one_spec(merged)
    networks = Networks.parents_of(merged, models)
    data = list(input_batches(batches, inputs_of))
    moments = collect_moments(
        apply_fn,
        [merged.params(), *networks.trees],
        spec,
        data,
        inputs_of=tuple,
        stop_at=origin.stop_at,
        positions=positions,
        key=key,
    )
    perms = tuple(
        _diagnosed(perm, spec.spans[perm][1], moments[perm], len(networks))
        for perm in networks.perms
        if perm in moments
    )
    return Diagnosis(perms, _cuts(apply_fn, networks, perms, data[0]))


def _one_spec(merged: Merged) -> PermutationSpec:
    """Returns the models' spec, if it is one and the merged model's, too."""
    own, spec = known_origin(merged).spec, merged.spec
    if isinstance(own, tuple) or isinstance(spec, tuple):
        raise ValueError(
            "the merged model's heads have specs of their own: only models of one spec "
            "can be diagnosed"
        )
    if changed := {p: n for p, n in spec.sizes.items() if n != own.sizes[p]}:
        raise ValueError(
            f"the merged model has other widths than the models, {changed}: diagnose a "
            "merge without num_units"
        )
    return own


def _diagnosed(
    perm: str, depth: int, moments: Moments, num_models: int
) -> PermDiagnosis:
    """Returns one perm's diagnosis.

    Args:
      perm: its name.
      depth: where it is read.
      moments: of the merged model's units and then those of every model.
      num_models: number of models.
    """
    elements = np.asarray(moments.m2, np.float64)
    elements = elements.reshape(-1, *elements.shape[-2:])
    explained, variances = [], np.zeros(2)
    for own in elements:
        blocks = np.split(np.arange(len(own)), 1 + num_models)
        explained.append([_explained(own, blocks[0], part) for part in blocks[1:]])
        diagonal = np.diagonal(own)
        variances += diagonal[blocks[0]].sum(), diagonal[len(blocks[0]) :].sum()
    merged, models = variances
    ratio = float(num_models * merged / models) if models else 1.0
    return PermDiagnosis(perm, depth, tuple(np.mean(explained, 0).tolist()), ratio)


def _explained(
    covariance: _Covariance, sources: np.ndarray, targets: np.ndarray
) -> float:
    """Returns the share of some units' variance that others predict linearly.

    Args:
      covariance: of all units; its scale does not matter.
      sources: numbers of the units that predict.
      targets: numbers of those that are predicted, each counted alike.
    """
    variance = np.diagonal(covariance)
    varies = variance > _CONSTANT * variance.max(initial=0)
    sources, targets = sources[varies[sources]], targets[varies[targets]]
    if not targets.size:
        return 1.0
    scale = 1 / np.sqrt(variance[targets])
    if not sources.size:
        return 0.0
    own = 1 / np.sqrt(variance[sources])
    within = covariance[np.ix_(sources, sources)] * own[:, None] * own
    across = covariance[np.ix_(sources, targets)] * own[:, None] * scale
    values, vectors = np.linalg.eigh(within)
    kept = values > _RANK * values.max()
    projected = (vectors[:, kept].T @ across) / np.sqrt(values[kept, None])
    return float(np.clip(np.square(projected).sum(0), 0, 1).mean())


def _cuts(
    apply_fn: ApplyFn,
    networks: Networks,
    perms: Sequence[PermDiagnosis],
    inputs: Sequence[Any],
) -> tuple[CutDiagnosis, ...]:
    """Returns the diagnoses of all cuts up to where the zip stopped."""
    spec = networks.spec
    kernels = find_kernels(apply_fn, networks.trees[0], spec, inputs)
    one = total_price(kernels.values(), spec.sizes)
    known: Mapping[str, float] = {own.perm: min(own.explained) for own in perms}
    found = []
    for cut in spec.cuts[: networks.stop.number]:
        shares = [known[perm] for perm in cut.perms if perm in known]
        if not shares:  # Nothing that can be read holds their units.
            continue
        stopped = networks.stopping_at(cut.number)
        used = [merged_kernel(own, path, stopped) for path, own in kernels.items()]
        price = total_price(used, spec.sizes) / one
        found.append(CutDiagnosis(cut, min(shares), price))
    return tuple(found)


def _percent(shares: Iterable[float]) -> list[str]:
    return [f"{100 * share:5.1f}%" for share in shares]
