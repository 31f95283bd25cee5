"""Inference of permutation specs and taps from jaxprs."""

from zipjax.tracing.infer import Inference, infer, infer_spec
from zipjax.tracing.taps import find_taps

__all__ = ["Inference", "find_taps", "infer", "infer_spec"]
