"""Matching beside ZipIt!'s reference implementation, where its checkout is given."""

import importlib
import os
import sys
from typing import Any

import numpy as np

from benchmarks.parts.matching import MATCHERS, correlations
from benchmarks.timing import cpu_timed

DIRECTORY = "ZIPJAX_REFERENCE"
"""The environment variable that holds the checkout's folder."""


def measure(smoke: bool) -> dict[str, Any]:
    """Returns the reference's CPU seconds as multiples of ours, on equal matrices.

    Empty without a checkout. Needs PyTorch, which the reference is written in.
    """
    folder = os.environ.get(DIRECTORY)
    if folder is None:
        return {}
    sys.path.insert(0, folder)
    theirs = importlib.import_module("matching_functions")
    torch = importlib.import_module("torch")
    pairs = {"zip": theirs.match_tensors_zipit, "align": theirs.match_tensors_permute}
    found: dict[str, Any] = {}
    for units in [64] if smoke else [128, 512]:
        similarity = correlations(2 * units, units)
        for name, function in pairs.items():
            covariance = torch.tensor(similarity, dtype=torch.float32)
            _, reference = cpu_timed(lambda f=function, c=covariance: _call(f, c))
            _, ours = cpu_timed(
                lambda m=MATCHERS[name], s=similarity: m(np.array(s), 2)
            )
            found[f"{name}, n = {units}"] = reference / max(ours, 1e-6)
    return found


def _call(function: Any, covariance: Any) -> None:
    function({"covariance": covariance.clone()}, r=0.5, a=0.3, b=0.125)
