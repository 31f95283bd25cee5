"""Multi-layer perceptron."""

import flax.linen as nn
from jaxtyping import Array, Float

from zipjax.models.layers import Dense
from zipjax.spec.entries import Axis, Entries
from zipjax.spec.permutation_spec import Perm, PermutationSpec
from zipjax.types import AnyArray


class MLP(nn.Module):
    """Dense layers with ReLU between them; inputs are flattened.

    Attributes:
      hidden: widths of the hidden layers.
      outputs: number of outputs.
    """

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch ..."], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Returns the outputs for a batch; ``train`` makes no difference."""
        del train
        x = x.reshape(x.shape[0], -1)
        for number, width in enumerate(self.hidden):
            x = nn.relu(Dense(width, name=f"dense_{number}")(x))
        return Dense(self.outputs, name="head")(x)


def spec(model: MLP) -> PermutationSpec:
    """Returns the declared permutation spec: one perm for every hidden layer."""
    entries: dict[str, Entries] = {}
    previous = None
    for number in range(len(model.hidden)):
        perm = f"dense_{number}"
        entries[f"params/{perm}/kernel"] = (previous, Axis(perm, "out"))
        entries[f"params/{perm}/bias"] = (Axis(perm, "out"),)
        previous = Axis(perm, "in")
    entries["params/head/kernel"] = (previous, None)
    entries["params/head/bias"] = (None,)
    widths = enumerate(model.hidden)
    return PermutationSpec(entries, {f"dense_{k}": Perm(width) for k, width in widths})
