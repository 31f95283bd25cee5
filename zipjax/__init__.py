"""zipjax: merge trained JAX networks into one multi-task model, without training."""

from zipjax.calibration.batch_stats import reset_batch_stats
from zipjax.calibration.refit import refit
from zipjax.calibration.repair import repair
from zipjax.calibration.targets import ensemble_target
from zipjax.checkpoints import load, save
from zipjax.diagnosis import CutDiagnosis, Diagnosis, PermDiagnosis, diagnose
from zipjax.evaluation import (
    Evaluation,
    evaluate,
    evaluate_tasks,
    scaled_performance,
)
from zipjax.formats.checkpoint import read_checkpoint, write_checkpoint
from zipjax.matching.align import match_align
from zipjax.matching.grouped import match_grouped_align, match_grouped_zip
from zipjax.matching.identity import match_identity
from zipjax.matching.zipping import match_zip
from zipjax.merging.assembling import merge_units
from zipjax.merging.interpolation import interpolate
from zipjax.merging.matrices import merge_matrices
from zipjax.merging.merged import Merged, Origin, apply, flops
from zipjax.merging.networks import source_of
from zipjax.recipes.ascent import Schedule, Sweep
from zipjax.recipes.match_and_merge import match, merge
from zipjax.recipes.presets import (
    Recipe,
    average,
    git_rebasin,
    mudsc,
    permute,
    weight_zip,
    zipit,
)
from zipjax.recipes.searching import Search, Trial, search
from zipjax.recipes.sequential import match_sequential
from zipjax.recipes.widths import allot_units
from zipjax.segmentation import Segmentation, evaluate_segmentation, mean_iou
from zipjax.similarity.collecting import collect_moments
from zipjax.similarity.costs import MomentsCost, moments_cost
from zipjax.similarity.measures import (
    Similarity,
    activation_similarity,
    weight_similarity,
)
from zipjax.similarity.moments import Moments
from zipjax.spec.depth import Cut
from zipjax.spec.entries import Axis, Entry, Family, Fixed, Index, Product, Sum
from zipjax.spec.explanation import explain
from zipjax.spec.permutation_spec import Perm, PermutationSpec
from zipjax.spec.verify import permute_params, random_permutations, verify_spec
from zipjax.tracing.infer import infer_spec
from zipjax.trees import stack_layers, unstack_layers
from zipjax.types import SpecError
from zipjax.version import __version__

__all__ = [
    "Axis",
    "Cut",
    "CutDiagnosis",
    "Diagnosis",
    "Entry",
    "Evaluation",
    "Family",
    "Fixed",
    "Index",
    "Merged",
    "Moments",
    "MomentsCost",
    "Origin",
    "Perm",
    "PermDiagnosis",
    "PermutationSpec",
    "Product",
    "Recipe",
    "Schedule",
    "Search",
    "Segmentation",
    "Similarity",
    "SpecError",
    "Sum",
    "Sweep",
    "Trial",
    "__version__",
    "activation_similarity",
    "allot_units",
    "apply",
    "average",
    "collect_moments",
    "diagnose",
    "ensemble_target",
    "evaluate",
    "evaluate_segmentation",
    "evaluate_tasks",
    "explain",
    "flops",
    "git_rebasin",
    "infer_spec",
    "interpolate",
    "load",
    "match",
    "match_align",
    "match_grouped_align",
    "match_grouped_zip",
    "match_identity",
    "match_sequential",
    "match_zip",
    "mean_iou",
    "merge",
    "merge_matrices",
    "merge_units",
    "moments_cost",
    "mudsc",
    "permute",
    "permute_params",
    "random_permutations",
    "read_checkpoint",
    "refit",
    "repair",
    "reset_batch_stats",
    "save",
    "scaled_performance",
    "search",
    "source_of",
    "stack_layers",
    "unstack_layers",
    "verify_spec",
    "weight_similarity",
    "weight_zip",
    "write_checkpoint",
    "zipit",
]
