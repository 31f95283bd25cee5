"""What moments cost: memory, operations and communication; passes within a limit."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from zipjax.similarity.gram import num_products

Shapes = Mapping[str, tuple[int, int]]
"""By perm: elements of its indices, or 1, and units of all models together, N*n."""

_FLOAT = 4  # Bytes of a float32.


@dataclasses.dataclass(frozen=True)
class PassPlan:
    """What one pass over the batches collects.

    Attributes:
      perms: the perms.
      height: number of rows of a panel of the only perm's second moment; None: all.
      start: the first of them.
    """

    perms: tuple[str, ...]
    height: int | None = None
    start: int = 0


@dataclasses.dataclass(frozen=True)
class MomentsCost:
    """What it costs to collect moments.

    Bytes are of float32; the models, a batch and its activations are not counted.

    Attributes:
      passes: number of passes over the batches.
      device_bytes: the largest memory of moments on a device, in any pass: the sums and
        the products of a batch that are added to them.
      host_bytes: memory of all perms' moments on a host.
      flops: operations of the products of two units, few of which are computed twice.
      host_communication: bytes that every host sends to add the sums of all hosts, and
        that it receives.
    """

    passes: int
    device_bytes: int
    host_bytes: int
    flops: int
    host_communication: int


def moments_cost(
    units: Mapping[str, int] | Sequence[int],
    samples: int,
    *,
    memory_limit: int | None = None,
    hosts: int = 1,
) -> MomentsCost:
    """Predicts the cost of collecting moments.

    Args:
      units: number of units of all models together, N*n, by perm or as a list.
      samples: number of samples of every perm.
      memory_limit: see :func:`zipjax.collect_moments`.
      hosts: number of processes.

    Raises:
      ValueError: if the limit is too small for a single row.
    """
    pairs = units.items() if isinstance(units, Mapping) else enumerate(units)
    shapes = {str(name): (1, n) for name, n in pairs}
    plan = passes(shapes, memory_limit)
    matrices = sum(_FLOAT * n * n for _, n in shapes.values())
    return MomentsCost(
        passes=len(plan),
        device_bytes=max(pass_bytes(own, shapes) for own in plan),
        host_bytes=matrices,
        flops=sum(2 * samples * num_products(n) for _, n in shapes.values()),
        host_communication=2 * matrices * (hosts - 1) // hosts,
    )


def passes(shapes: Shapes, memory_limit: int | None) -> list[PassPlan]:
    """Returns the passes that keep moments within a limit, in the order of the perms.

    Args:
      shapes: of every perm.
      memory_limit: bytes on each device; None: no limit.

    Raises:
      ValueError: if it is no number, or too small for a single row.
    """
    if memory_limit is None:
        return [PassPlan(tuple(shapes))]
    row = 2 * _FLOAT * max(elements * units for elements, units in shapes.values())
    if not memory_limit >= row:
        raise ValueError(
            f"memory_limit = {memory_limit} bytes, but one row of the widest perm's "
            f"second moment takes {row}: pass more, or None for no limit"
        )
    plan: list[PassPlan] = []
    together: tuple[str, ...] = ()
    for perm in shapes:
        alone = PassPlan((perm,))
        if pass_bytes(alone, shapes) > memory_limit:
            plan += _panels(perm, shapes[perm], memory_limit)
            continue
        if pass_bytes(PassPlan((*together, perm)), shapes) > memory_limit:
            plan.append(PassPlan(together))
            together = ()
        together = (*together, perm)
    return [*plan, PassPlan(together)] if together else plan


def pass_bytes(own: PassPlan, shapes: Shapes) -> int:
    """Returns the memory of a pass: all sums, and the largest batch's products."""
    chosen = [shapes[perm] for perm in own.perms]
    sums = [elements * (own.height or units) * units for elements, units in chosen]
    if own.height is None:
        products = max(elements * num_products(units) for elements, units in chosen)
    else:
        products = max(sums)
    return _FLOAT * (sum(sums) + products)


def _panels(perm: str, shape: tuple[int, int], memory_limit: int) -> Iterator[PassPlan]:
    """Yields passes for panels of equal height, which share a compiled program."""
    elements, units = shape
    height = int(memory_limit // (2 * _FLOAT * elements * units))
    for start in range(0, units, height):
        # The last one overlaps the one before.
        yield PassPlan((perm,), height, min(start, units - height))
