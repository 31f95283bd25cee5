"""Prints the inferred spec of a model of the package.

    python -m zipjax.inspect resnet20 --shape 1 32 32 3
    python -m zipjax.inspect my_package.models:MyModel --shape 1 28 28 1

The table has one row a perm, in depth order, and a rule where a partial zip can stop.
"""

import argparse
import importlib
import sys

import jax
import jax.numpy as jnp

from zipjax.spec import PermutationSpec
from zipjax.tracing import infer_spec


def table(spec: PermutationSpec) -> str:
    """Returns a spec as a table, with the span of depths of every perm as a bar."""
    spans, cuts = spec.spans, {cut.perm: cut for cut in spec.cuts}
    width = max([len(name) for name in spec.perms], default=4)
    header = f"{'perm':{width}}  units  members  depth  tap"
    lines = [header, "-" * len(header)]
    taps = spec.notes.taps if spec.notes else {}
    for name, perm in spec.perms.items():
        low, high = spans[name]
        bar = "." * (low - 1) + "#" * (high - low + 1) + "." * (spec.layers - high)
        units = "x".join(map(str, [*_group_sizes(spec, name), perm.size]))
        members = len(spec.members(name))
        tap = taps.get(name, "-")
        lines.append(f"{name:{width}}  {units:>5}  {members:7}  {bar}  {tap}")
        if name in cuts:
            lines.append(f"=== cut {cuts[name].number}: {cuts[name].layers} layers")
    return "\n".join(lines)


def _group_sizes(spec: PermutationSpec, name: str) -> list[int]:
    counts = {**spec.sizes, **spec.indices}
    return [counts[group] for group in spec.perms[name].groups]


def _model(name: str, outputs: int) -> object:
    if name == "resnet20":
        return importlib.import_module("zipjax.models.resnet").ResNet20(outputs)
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)()


def main() -> None:
    """Traces the model and prints the table, and with --explain all members."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="resnet20, or module:LinenClass")
    parser.add_argument("--shape", type=int, nargs="+", required=True)
    parser.add_argument("--outputs", type=int, default=10)
    parser.add_argument("--explain", action="store_true")
    options = parser.parse_args()
    model = _model(options.model, options.outputs)
    x = jax.ShapeDtypeStruct(tuple(options.shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)  # pyright: ignore
    spec = infer_spec(model.apply, params, x)  # pyright: ignore
    sys.stdout.write(table(spec) + "\n")
    if options.explain:
        sys.stdout.write("\n" + spec.explain() + "\n")


if __name__ == "__main__":
    main()
