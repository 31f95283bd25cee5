"""Inference of permutation specs from jaxprs."""

from zipjax.tracing.infer import infer_spec

__all__ = ["infer_spec"]
