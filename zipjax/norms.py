"""Which leaves of a model are statistics that a BatchNorm keeps, and no parameters."""

from collections.abc import Iterable


def batch_stats(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the paths of mean and variance of every BatchNorm.

    They are recognised by their names, "mean" and "var" beside each other, as Linen
    (``batch_stats/norm/mean``) and NNX (``norm/mean``, ``norm/mean/value``) have them.
    """
    known = set(paths)
    pairs = []
    for mean in sorted(known):
        parts = mean.split("/")
        for k in range(max(len(parts) - 2, 0), len(parts)):
            var = "/".join([*parts[:k], "var", *parts[k + 1 :]])
            if parts[k] == "mean" and var in known:
                pairs.append((mean, var))
    return pairs
