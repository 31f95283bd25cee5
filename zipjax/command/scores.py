"""How near a merged model's outputs are to its parents', without labels."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from zipjax.markdown import markdown_table
from zipjax.merging.merged import Merged, functions_of
from zipjax.types import ApplyFn, PyTree


@dataclasses.dataclass(frozen=True)
class Score:
    """How one network's outputs compare with another's, over all examples.

    Attributes:
      network: the one that is compared.
      reference: the one that it is compared with.
      error: norm of the difference, relative to the norm of the reference's outputs
        about their mean over the examples.
      correlation: of the two networks' outputs, each about its mean over the examples.
      agreement: share of the positions where the largest output is the same one; None
        if outputs have a single unit, or are several arrays.
    """

    network: str
    reference: str
    error: float
    correlation: float
    agreement: float | None


def compare(
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    merged: Merged,
    batches: Iterable[tuple[Any, ...]],
) -> list[Score]:
    """Compares a merged model with its parents, and these with each other.

    Args:
      apply_fn: the networks' function.
      models: the parents.
      merged: the merged model. Each of its heads is compared with its own parent; a
        shared output with every parent, and with the mean of their outputs.
      batches: inputs, held out.
    """
    parents = [_outputs(apply_fn, model, batches) for model in models]
    own = _merged_outputs(apply_fn, merged, batches)
    names = [f"model {k}" for k in range(len(models))]
    scores = [
        _score(f"head {k}" if merged.heads else "merged", names[k], made, parent)
        for k, (made, parent) in enumerate(
            zip(own if merged.heads else own * len(parents), parents, strict=True)
        )
    ]
    # Outputs of other shapes are those of other tasks.
    if all(_shapes(x) == _shapes(parents[0]) for x in parents):
        mean = [np.mean(parts, 0) for parts in zip(*parents, strict=True)]
        if not merged.heads:
            scores.append(_score("merged", "mean of the models", own[0], mean))
        scores += [
            _score(names[k], names[0], parents[k], parents[0])
            for k in range(1, len(parents))
        ]
    return scores


def score_table(scores: Sequence[Score]) -> str:
    """Returns scores as a table in Markdown."""
    columns = ["Outputs of", "compared with", "error", "correlation", "agreement"]
    rows = [
        [
            score.network,
            score.reference,
            f"{score.error:.3f}",
            f"{score.correlation:.3f}",
            "-" if score.agreement is None else f"{100 * score.agreement:.1f} %",
        ]
        for score in scores
    ]
    return markdown_table(columns, rows, text_columns=2)


_Outputs = list[np.ndarray]


def _outputs(
    apply_fn: ApplyFn, model: PyTree, batches: Iterable[tuple[Any, ...]]
) -> _Outputs:
    run = jax.jit(apply_fn)
    return _joined([_floats(run(model, *inputs)) for inputs in batches])


def _merged_outputs(
    apply_fn: ApplyFn, merged: Merged, batches: Iterable[tuple[Any, ...]]
) -> list[_Outputs]:
    heads = functions_of(apply_fn, merged)
    return [_outputs(call, params, batches) for call, params in heads]


def _floats(outputs: PyTree) -> _Outputs:
    """Returns the arrays of one batch's outputs ``[examples, ...]``, as numbers."""
    leaves = [np.asarray(x) for x in jax.tree_util.tree_leaves(outputs)]
    return [np.atleast_1d(x).astype(np.float32) for x in leaves]


def _joined(batches: Sequence[_Outputs]) -> _Outputs:
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _shapes(outputs: _Outputs) -> list[tuple[int, ...]]:
    return [array.shape for array in outputs]


def _score(network: str, reference: str, a: _Outputs, b: _Outputs) -> Score:
    about_a, about_b = _centred(a), _centred(b)
    difference = np.concatenate(
        [(x - y).ravel() for x, y in zip(a, b, strict=True)], dtype=np.float64
    )
    norm = float(np.linalg.norm(about_b))
    product = float(np.linalg.norm(about_a)) * norm
    return Score(
        network,
        reference,
        float(np.linalg.norm(difference)) / norm if norm else float("nan"),
        float(about_a @ about_b) / product if product else float("nan"),
        _agreement(a, b),
    )


def _centred(outputs: _Outputs) -> np.ndarray:
    parts = [(x - x.mean(0, keepdims=True)).ravel() for x in outputs]
    return np.concatenate(parts, dtype=np.float64)


def _agreement(a: _Outputs, b: _Outputs) -> float | None:
    if len(a) != 1 or a[0].ndim < 2 or a[0].shape[-1] < 2:
        return None
    return float(np.mean(a[0].argmax(-1) == b[0].argmax(-1)))
