"""Declares permutation specs layer by layer, in the order in which a network runs.

Every method here is a layer, given the units that it reads and those that it writes:

    net = Declaration()
    hidden = net.perm("hidden", 64)
    net.dense("layer1", None, hidden)
    net.dense("layer2", hidden, None)
    spec = net.spec()

Units are entries of role "out", as the layer that writes them has them; None are units
without a perm (inputs and outputs of the network).
"""

import dataclasses

from zipjax.entries import Axis, Entries, Entry, Family, Product, Sum
from zipjax.spec import Perm, PermutationSpec


class Declaration:
    """Entries and perms, collected in the network's order.

    Attributes:
      axes: the entries of every parameter.
      perms: the perms.
    """

    def __init__(self, *, groups: int | None = None) -> None:
        """Starts a declaration.

        Args:
          groups: number of groups of every GroupNorm; None for BatchNorm.
        """
        self.axes: dict[str, Entries] = {}
        self.perms: dict[str, Perm] = {}
        self._groups = groups

    def spec(self) -> PermutationSpec:
        """Returns what was declared."""
        return PermutationSpec(self.axes, self.perms)

    def perm(self, name: str, size: int, *groups: Axis) -> Axis:
        """Declares a perm, nested in others or not, and returns its units."""
        self.perms[name] = Perm(size, tuple(group.perm for group in groups))
        return Axis(name, "out")

    def channels(self, name: str, size: int) -> Entry:
        """Declares the channels between convolutions and returns them.

        Under GroupNorm the groups are a perm, and the units of a group another.
        """
        if self._groups is None:
            return self.perm(name, size)
        groups = self.perm(f"{name}/groups", self._groups)
        return Product((groups, self.perm(name, size // self._groups, groups)))

    def param(self, path: str, *entries: Entry) -> None:
        """Declares a parameter that belongs to no layer below."""
        self.axes[f"params/{path}"] = entries

    def dense(
        self, path: str, reads: Entry, writes: Entry, *, bias: bool = True
    ) -> None:
        """Declares a Dense layer."""
        self.param(f"{path}/kernel", consumed(reads), writes)
        if bias:
            self.param(f"{path}/bias", writes)

    def conv(
        self, path: str, reads: Entry, writes: Entry, *, bias: bool = False
    ) -> None:
        """Declares a convolution."""
        self.param(f"{path}/kernel", None, None, consumed(reads), writes)
        if bias:
            self.param(f"{path}/bias", writes)

    def norm(self, path: str, units: Entry) -> None:
        """Declares the BatchNorm or GroupNorm behind a convolution."""
        self.layer_norm(path, units)
        if self._groups is None:
            self.axes[f"batch_stats/{path}/mean"] = (units,)
            self.axes[f"batch_stats/{path}/var"] = (units,)

    def layer_norm(self, path: str, units: Entry) -> None:
        """Declares a LayerNorm: scale and bias go with the units, and read none."""
        self.param(f"{path}/scale", units)
        self.param(f"{path}/bias", units)

    def attention(
        self, path: str, stream: Entry, heads: int, head_dim: int
    ) -> tuple[Axis, Entry]:
        """Declares the fused Q, K and V of a self-attention.

        The heads of Q, K and V are one perm. Within a head the logits tie the features
        of Q to those of K, which consume them; the features of V are on their own.

        Returns:
          The heads, and the units that the projection behind the attention reads.
        """
        head = self.perm(f"{path}/heads", heads)
        qk = self.perm(f"{path}/qk", head_dim, head)
        vo = self.perm(f"{path}/vo", head_dim, head)
        values = Product((head, vo))
        fused = (Product((head, qk)), Product((head, consumed(qk))), values)
        self.dense(f"{path}/qkv", stream, Sum(fused))
        return head, values

    def mlp(self, path: str, stream: Entry, hidden: int) -> None:
        """Declares the two Dense layers of a transformer block."""
        units = self.perm(path, hidden)
        self.dense(f"{path}/fc1", stream, units)
        self.dense(f"{path}/fc2", units, stream)


def consumed(entry: Entry) -> Entry:
    """Returns units as the layer that reads them has them: all roles "in"."""
    match entry:
        case Axis():
            return Axis(entry.perm, "in")
        case Product(children):
            return Product(tuple(consumed(child) for child in children))
        case Sum(children):
            return Sum(tuple(consumed(child) for child in children))
        case Family():
            members = tuple(consumed(child) for child in entry.members)
            return dataclasses.replace(entry, members=members)
    return entry
