"""What moments of a large decoder cost, by the formulas of `zipjax.similarity.costs`.

    python -m benchmarks.costs --width 16384 --layers 80 --models 2 --devices 256

Prints memory, operations and communication of the residual stream, of the heads'
features and of the MLPs' hidden units, all perms at once and one after the other
(`spec.only([perm])`). Nothing is run. `python -m benchmarks.run` holds the prediction
of memory against what XLA allots.
"""

import argparse
from collections.abc import Sequence

from zipjax.similarity.costs import MomentsCost, moments_cost

COLUMNS = ("perms", "units", "each, GB", "on hosts, GB", "PFLOP", "sent by a host, GB")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a Markdown table.

    Args:
      argv: command line, ``sys.argv[1:]`` if None.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=16384)
    parser.add_argument("--hidden", type=int, default=4, help="MLP units per width")
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--devices", type=int, default=256)
    parser.add_argument("--devices_per_host", type=int, default=8)
    parser.add_argument("--samples", type=int, default=2**15)
    parser.add_argument("--memory_limit", type=float, default=16e9)
    options = parser.parse_args(argv)
    hosts = max(options.devices // options.devices_per_host, 1)
    units = options.models * options.width
    kinds = {
        "stream": [units],
        "heads' features": [units] * options.layers,
        "hidden units": [options.hidden * units] * options.layers,
    }

    def cost(sizes: list[int]) -> MomentsCost:
        limit = int(options.memory_limit)
        return moments_cost(sizes, options.samples, memory_limit=limit, hosts=hosts)

    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    kinds["all"] = [size for sizes in kinds.values() for size in sizes]
    for name, sizes in kinds.items():
        found, widest = cost(sizes), cost([max(sizes)])
        cells = (
            f"{len(sizes)} {name}" if name != "all" else "all",
            f"{max(sizes):,}",
            f"{widest.host_bytes / 1e9:,.1f}",
            f"{found.host_bytes / 1e9:,.0f}",
            f"{found.flops / 1e15:,.2f}",
            f"{found.host_communication / 1e9:,.0f}",
        )
        print("| " + " | ".join(cells) + " |")
    found = cost(kinds["all"])
    print(
        f"\n{found.passes} passes with at most {found.device_bytes / 1e9:.1f} GB of "
        f"moments on each device; {found.flops / options.devices / 1e12:,.1f} TFLOP on "
        f"each of {options.devices} devices, of {hosts} hosts"
    )


if __name__ == "__main__":
    main()
