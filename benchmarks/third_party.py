"""Infers specs of unmodified models from packages on PyPI.

    pip install -e ".[test,zoo]"
    python -m benchmarks.third_party                  # all models of the zoo
    python -m benchmarks.third_party --smoke          # the three fastest, for CI
    python -m benchmarks.third_party --only equimo

Prints a Markdown table. Parameters are random, norms and statistics included. "Free" is
the share of the elements along all axes of all parameters that belong to a perm; the
error is the largest change of an output under random permutations, relative to the
largest output; seconds are those of the inference, tracing included. The last column
says why axes have no perm; inputs, outputs and the windows of kernels are left out.
"""

import argparse
import collections
import importlib.metadata
import importlib.util
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.timing import timed
from benchmarks.zoo.case import Case
from benchmarks.zoo.third_party import CASES, ThirdParty
from zipjax.spec.entries import Entry, Family, Fixed, Index, Sum, entry_size
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.spec.verify import verify_spec
from zipjax.tracing.infer import infer_spec
from zipjax.trees import path_leaves

COLUMNS = (
    "package",
    "framework",
    "model",
    "parameters",
    "perms",
    "by hand",
    "free",
    "error",
    "seconds",
    "without a perm",
)
SMOKE = ("jax-resnet: ResNeXt", "equimo: ConvNeXt", "attnax: VisionTransformer")
TRIVIAL = ("an input", "an output", "a single unit")


def row(name: str, entry: ThirdParty) -> list[str]:
    """Returns the cells of a model's row.

    Args:
      name: the model's name in the zoo.
      entry: the model.
    """
    case = entry.make()
    spec, seconds = timed(infer_spec, case.apply_fn, case.params, *case.inputs)
    key = jax.random.key(0)
    error = verify_spec(case.apply_fn, case.params, spec, *case.inputs, key=key)
    count = sum(np.size(leaf) for leaf in path_leaves(case.params).values())
    version = importlib.metadata.version(entry.package)
    return [
        f"{entry.package} {version}",
        entry.framework,
        name.partition(": ")[2],
        f"{count:,}",
        str(len(spec.perms)),
        str(case.perms),
        f"{free_share(spec, case):.3f}",
        f"{error:.0e}",
        f"{seconds:.2f}",
        "; ".join(reasons(spec)),
    ]


def free_share(spec: PermutationSpec, case: Case) -> float:
    """Returns the share of the elements along axes that belong to a perm.

    Args:
      spec: the inferred spec.
      case: the model.
    """
    free = total = 0
    for path, leaf in path_leaves(case.params).items():
        for entry, size in zip(spec.entries[path], leaf.shape, strict=True):
            total += size
            free += _free(entry, size, spec.sizes)
    return free / total


def _free(entry: Entry, size: int, sizes: dict[str, int]) -> int:
    match entry:
        case None | Fixed() | Index():
            return 0
        case Sum(parts):
            return sum(_free(p, entry_size(p, sizes) or 0, sizes) for p in parts)
        case Family(_, members):
            return _free(members[0], size, sizes)
    return size


def reasons(spec: PermutationSpec, most: int = 2) -> list[str]:
    """Lists the most frequent reasons why axes have no perm.

    Args:
      spec: the inferred spec.
      most: number of reasons.
    """
    counts: collections.Counter[str] = collections.Counter()
    frozen = spec.notes.frozen if spec.notes else {}
    for row in frozen.values():
        for reason in row:
            window = (reason or "").startswith("conv_") and len(row) > 2
            if reason and not window and not reason.startswith(TRIVIAL):
                counts[reason] += 1
    return [f"{reason} ({n})" for reason, n in counts.most_common(most)]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table.

    Args:
      argv: command line, ``sys.argv[1:]`` if None.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of the names to run")
    parser.add_argument("--smoke", action="store_true", help="three models")
    options = parser.parse_args(argv)
    names = SMOKE if options.smoke else CASES
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for name in names:
        if options.only not in name:
            continue
        if importlib.util.find_spec(CASES[name].module) is None:
            print(f"| {CASES[name].package} is not installed |")
            continue
        print("| " + " | ".join(row(name, CASES[name])) + " |", flush=True)


if __name__ == "__main__":
    main()
