"""Refitting: linear layers solved anew by least squares after a merge."""

from zipjax.refitting.targets import ensemble_target
from zipjax.refitting.transform import refit

__all__ = ["ensemble_target", "refit"]
