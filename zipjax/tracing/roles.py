"""Roles: which axes produce a perm's units and which consume them.

A second reading ties axes along the flow of values only, not across contractions. What
is tied then was produced together; each contraction has a producer and a consumer:

* data times a weight: the weight consumes;
* two weights, or two values that both depend on data (Q and K): the second consumes,
  unless other parameters consume it, as they do a residual stream; then the first.
"""

from collections.abc import Iterable

from zipjax.tracing.nodes import Node, find, leaves
from zipjax.tracing.reader import Contraction


def consumers(contractions: Iterable[Contraction]) -> set[Node]:
    """Returns the leaves of a reading without tied contractions that consume.

    Args:
      contractions: those of the reading.
    """
    found: set[Node] = set()
    producers: set[Node] = set()
    mixed = []
    for pair in contractions:
        left, right = _leaves(pair.left), _leaves(pair.right)
        if pair.left_data == pair.right_data:
            mixed.append((left, right))
            continue
        data, weight = (left, right) if pair.left_data else (right, left)
        found |= weight - data
        producers |= data
    for left, right in mixed:
        if not right & (producers | left):
            found |= right
        elif not left & (producers | right):
            found |= left
    return found


def _leaves(node: Node) -> set[Node]:
    return {find(leaf) for leaf in leaves(node) if leaf.size > 1}
