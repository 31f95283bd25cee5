"""Similarities of the concatenated units of all models, for the matchers."""

import numpy as np
from jaxtyping import Float

from zipjax.stats import Moments


def activation_similarity(moments: Moments) -> Float[np.ndarray, "units units"]:
    """Returns the correlations of the units' activations, in float64 on the host."""
    return np.asarray(moments.correlation(), np.float64)
