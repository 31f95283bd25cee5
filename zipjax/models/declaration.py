"""Declares permutation specs layer by layer, in the order in which a network runs.

Every layer is a method that takes the units that the layer reads and those it writes:

>>> net = Declaration()
>>> hidden = net.perm("hidden", 64)
>>> net.dense("layer1", None, hidden)
>>> net.dense("layer2", hidden, None)
>>> net.spec().sizes
{'hidden': 64}

Units are entries with the role "out", which they have in the layer that writes them, or
None for units without a perm (inputs and outputs of the network).
"""

from zipjax.spec.entries import Axis, Entries, Entry, Product, Sum
from zipjax.spec.permutation_spec import Perm, PermutationSpec


class Declaration:
    """Entries and perms, collected in the network's order.

    Attributes:
      entries: every parameter's entries, by path.
      perms: the perms, by name.
      paired: the perms that are widened alike; see :class:`PermutationSpec`.
    """

    def __init__(self, *, groups: int | None = None) -> None:
        """Starts a declaration.

        Args:
          groups: number of groups of every GroupNorm; None for BatchNorm.
        """
        self.entries: dict[str, Entries] = {}
        self.perms: dict[str, Perm] = {}
        self.paired: list[tuple[str, str]] = []
        self._groups = groups

    def spec(self) -> PermutationSpec:
        """Returns what was declared."""
        return PermutationSpec(self.entries, self.perms, paired=tuple(self.paired))

    def perm(self, name: str, size: int, *groups: Axis) -> Axis:
        """Declares a perm, nested in the given groups, and returns its units."""
        self.perms[name] = Perm(size, tuple(group.perm for group in groups))
        return Axis(name, "out")

    def channels(self, name: str, size: int) -> Entry:
        """Declares the channels between convolutions and returns them.

        With GroupNorm the groups are one perm and the units within a group another,
        unless there is one group, or one channel per group.
        """
        if self._groups in (None, 1, size):
            return self.perm(name, size)
        groups = self.perm(f"{name}/groups", self._groups)
        return Product((groups, self.perm(name, size // self._groups, groups)))

    def param(self, path: str, *entries: Entry) -> None:
        """Declares a parameter that no other method declares."""
        self.entries[f"params/{path}"] = entries

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

    def conv_transpose(self, path: str, reads: Entry, writes: Entry) -> None:
        """Declares a transposed convolution, whose kernel is that of the gradient."""
        self.param(f"{path}/kernel", None, None, writes, consumed(reads))

    def norm(self, path: str, units: Entry) -> None:
        """Declares the BatchNorm or GroupNorm after a convolution."""
        self.layer_norm(path, units)
        if self._groups is None:
            self.entries[f"batch_stats/{path}/mean"] = (units,)
            self.entries[f"batch_stats/{path}/var"] = (units,)

    def layer_norm(self, path: str, units: Entry) -> None:
        """Declares a LayerNorm: a scale and a bias for every unit."""
        self.param(f"{path}/scale", units)
        self.param(f"{path}/bias", units)

    def transformer_block(
        self,
        path: str,
        stream: Entry,
        heads: int,
        head_dim: int,
        hidden: int,
        *,
        bias_table: str | None = None,
    ) -> None:
        """Declares a pre-norm block that reads a stream and writes to it.

        Args:
          path: the block.
          stream: the residual stream.
          heads: number of heads.
          head_dim: features of a head.
          hidden: width of the MLP's hidden layer.
          bias_table: name of the table of logit biases, with one column per head; None
            if there is no such table.
        """
        self.layer_norm(f"{path}/norm1", stream)
        self.attention(f"{path}/attn", stream, heads, head_dim, bias_table)
        self.layer_norm(f"{path}/norm2", stream)
        self.mlp(f"{path}/mlp", stream, hidden)

    def attention(
        self,
        path: str,
        stream: Entry,
        heads: int,
        head_dim: int,
        bias_table: str | None,
    ) -> None:
        """Declares self-attention with Q, K and V in one Dense layer.

        The heads of Q, K, V and the projection are one perm, to which the columns of
        the bias table belong, too. Within a head, the logits tie the features of Q to
        those of K, which consume them; the projection reads the features of V.
        """
        head = self.perm(f"{path}/heads", heads)
        qk = self.perm(f"{path}/qk", head_dim, head)
        vo = self.perm(f"{path}/vo", head_dim, head)
        queries, values = Product((head, qk)), Product((head, vo))
        keys = Product((head, consumed(qk)))
        self.dense(f"{path}/qkv", stream, Sum((queries, keys, values)))
        if bias_table is not None:
            self.param(f"{path}/{bias_table}", None, head)
        self.dense(f"{path}/proj", values, stream)

    def mlp(self, path: str, stream: Entry, hidden: int) -> None:
        """Declares the two Dense layers of a transformer block."""
        units = self.perm(path, hidden)
        self.dense(f"{path}/fc1", stream, units)
        self.dense(f"{path}/fc2", units, stream)


def consumed(entry: Entry) -> Entry:
    """Returns units with the role "in", as in the layer that reads them."""
    match entry:
        case Axis():
            return Axis(entry.perm, "in")
        case Product(children):
            return Product(tuple(consumed(child) for child in children))
        case Sum(children):
            return Sum(tuple(consumed(child) for child in children))
    return entry
