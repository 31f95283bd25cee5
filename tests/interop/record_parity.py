"""Records what PyTorch's networks compute, for the tests to do without PyTorch.

pip install -e ".[test,parity]"
python -m tests.interop.record_parity
"""

import numpy as np

from tests.interop import torch_networks
from tests.interop.parity import FULL, RECORDED, SMALL, draw_state, encode


def main() -> None:
    """Writes the names and shapes of all states, and the outputs of small networks."""
    recorded = {}
    for name, ours in SMALL.items():
        net = torch_networks.SMALL[name]()
        shapes = torch_networks.shapes_of(net)
        filled = torch_networks.fill(net, draw_state(shapes))
        recorded[f"small/{name}"] = encode(shapes)
        recorded[f"outputs/{name}"] = torch_networks.outputs(filled, ours.images())
    for name in FULL:
        recorded[f"full/{name}"] = encode(torch_networks.shapes_at_full_size(name))
    RECORDED.parent.mkdir(exist_ok=True)
    np.savez_compressed(RECORDED, **recorded)


if __name__ == "__main__":
    main()
