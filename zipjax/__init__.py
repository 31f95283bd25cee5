"""zipjax: merge trained JAX networks into one multi-task model, without training."""

from zipjax.activations import collect_moments, source_of
from zipjax.allotting import allot_units
from zipjax.assign import match
from zipjax.batch_stats import reset_batch_stats
from zipjax.checkpoints import load, save
from zipjax.depth import Cut
from zipjax.descent import Schedule, Sweep
from zipjax.entries import Axis, Entry, Family, Fixed, Index, Product, Sum
from zipjax.evaluation import Evaluation, evaluate, evaluate_tasks
from zipjax.matching import (
    match_align,
    match_grouped_align,
    match_grouped_zip,
    match_identity,
    match_zip,
)
from zipjax.matrices import merge_matrices
from zipjax.merging import merge, merge_units
from zipjax.partial import Merged, apply, flops
from zipjax.recipes import (
    Recipe,
    average,
    git_rebasin,
    mudsc,
    permute,
    weight_zip,
    zipit,
)
from zipjax.refitting import ensemble_target, refit
from zipjax.repair import repair
from zipjax.searching import Search, Trial, search
from zipjax.sequential import match_sequential
from zipjax.similarity import Similarity, activation_similarity, weight_similarity
from zipjax.spec import Perm, PermutationSpec
from zipjax.stats import Moments
from zipjax.tracing import infer_spec
from zipjax.types import SpecError
from zipjax.verify import permute_params, random_permutations, verify_spec

__all__ = [
    "Axis",
    "Cut",
    "Entry",
    "Evaluation",
    "Family",
    "Fixed",
    "Index",
    "Merged",
    "Moments",
    "Perm",
    "PermutationSpec",
    "Product",
    "Recipe",
    "Schedule",
    "Search",
    "Similarity",
    "SpecError",
    "Sum",
    "Sweep",
    "Trial",
    "activation_similarity",
    "allot_units",
    "apply",
    "average",
    "collect_moments",
    "ensemble_target",
    "evaluate",
    "evaluate_tasks",
    "flops",
    "git_rebasin",
    "infer_spec",
    "load",
    "match",
    "match_align",
    "match_grouped_align",
    "match_grouped_zip",
    "match_identity",
    "match_sequential",
    "match_zip",
    "merge",
    "merge_matrices",
    "merge_units",
    "mudsc",
    "permute",
    "permute_params",
    "random_permutations",
    "refit",
    "repair",
    "reset_batch_stats",
    "save",
    "search",
    "source_of",
    "verify_spec",
    "weight_similarity",
    "weight_zip",
    "zipit",
]
