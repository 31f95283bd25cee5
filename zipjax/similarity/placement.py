"""Where a pass runs: on local devices that share every batch, or on the user's mesh."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zipjax.batches import device_sharding
from zipjax.similarity.running import Running
from zipjax.similarity.steps import BatchStep, Sums
from zipjax.types import Array, PyTree

Step = Callable[..., Sums]


@dataclasses.dataclass(frozen=True)
class LocalDevices:
    """Some of this process's devices: each has an equal share of a batch.

    Attributes:
      devices: the devices.
      spans_hosts: whether sums are those of several processes already.
    """

    devices: tuple[Any, ...]
    spans_hosts: bool = False

    def inputs(self, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns inputs ``[devices, ...]``; those without a batch axis repeated.

        Copies to the devices are started, not awaited.
        """
        return jax.tree_util.tree_map(self._shares, arrays)

    def example(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the shapes of one device's share."""
        return jax.tree_util.tree_map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs
        )

    def models(self, trees: Sequence[PyTree]) -> list[PyTree]:
        """Copies the parameters to every device."""
        return jax.device_put(list(trees), device_sharding(self.devices))

    def sums(self, empty: Sums) -> Sums:
        """Returns sums ``[devices, ...]``."""

        def put(x: np.ndarray) -> Array:
            own = np.broadcast_to(x, (len(self.devices), *x.shape))
            return jax.device_put(own, device_sharding(self.devices, "batch"))

        return jax.tree_util.tree_map(put, empty)

    def compiled(self, step: BatchStep) -> Step:
        """Returns the compiled step; each device reads its share of the positions."""
        most = step.positions
        share = None if most is None else -(-most // len(self.devices))
        return _mapped(dataclasses.replace(step, positions=share), self.devices)

    def parts(self, sums: Sums) -> list[Sums]:
        """Returns every device's sums, on the host."""
        found = jax.device_get(sums)
        return [
            jax.tree_util.tree_map(lambda x, k=k: x[k], found)
            for k in range(len(self.devices))
        ]

    def _shares(self, x: Any) -> Any:
        count, array = len(self.devices), x if hasattr(x, "dtype") else np.asarray(x)
        if not array.ndim:
            own = jnp.stack([array] * count)
        else:
            own = array.reshape(count, -1, *array.shape[1:])
        return jax.device_put(own, device_sharding(self.devices, "batch"))


@dataclasses.dataclass(frozen=True)
class UserMesh:
    """A mesh over which inputs or parameters are sharded: they stay where they are.

    Attributes:
      mesh: the mesh, with axes of type Auto: XLA says how results are sharded, which
        Explicit axes, the default of ``jax.make_mesh``, would leave to every slice.
    """

    mesh: Mesh

    @property
    def spans_hosts(self) -> bool:
        """Whether sums are those of several processes already."""
        return len({device.process_index for device in self.mesh.devices.flat}) > 1

    def inputs(self, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the inputs; those of a single device are copied to all."""
        return self._placed(arrays)

    def example(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the shapes of the whole batch."""
        return jax.tree_util.tree_map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs
        )

    def models(self, trees: Sequence[PyTree]) -> list[PyTree]:
        """Returns the parameters; those of a single device are copied to all."""
        return self._placed(list(trees))

    def sums(self, empty: Sums) -> Sums:
        """Returns the sums, second moments sharded by rows."""
        return jax.tree_util.tree_map(jax.device_put, empty, self.shardings(empty))

    def compiled(self, step: BatchStep) -> Step:
        """Returns the compiled step, which XLA divides among the mesh."""
        return _sharded(dataclasses.replace(step, by_rows=True), self)

    def parts(self, sums: Sums) -> list[Sums]:
        """Returns the sums of the whole mesh, on the host."""
        return [jax.device_get(_copied(self.mesh)(sums))]

    def shardings(self, sums: Sums) -> PyTree:
        """Returns the shardings of sums: of second moments by rows, of others none."""
        whole = NamedSharding(self.mesh, PartitionSpec())

        def rows(running: Running) -> Running:
            rank, size = running.m2.ndim, running.m2.shape[-2]
            axes = self.mesh.axis_names if size % self.mesh.size == 0 else None
            spec = PartitionSpec(*[None] * (rank - 2), axes)
            return Running(whole, whole, whole, NamedSharding(self.mesh, spec))

        return {perm: tuple(map(rows, own)) for perm, own in sums.items()}

    def _placed(self, tree: PyTree) -> PyTree:
        def place(x: Any) -> Array:
            own = x.sharding.spec if _is_sharded(x) else PartitionSpec()
            return jax.device_put(x, NamedSharding(self.mesh, own))

        return jax.tree_util.tree_map(place, tree)


Placement: TypeAlias = LocalDevices | UserMesh


def placement_of(
    arrays: tuple[Any, ...],
    trees: Sequence[PyTree],
    devices: Sequence[Any] | None = None,
) -> Placement:
    """Returns where a batch runs.

    Args:
      arrays: the batch's inputs.
      trees: the models' parameters.
      devices: the devices that share a batch; all local ones by default. As many are
        used as divide its size.
    """
    for leaf in jax.tree_util.tree_leaves((arrays, trees)):
        if _is_sharded(leaf):
            mesh = leaf.sharding.mesh
            return UserMesh(
                mesh.update(axis_types=(AxisType.Auto,) * len(mesh.axis_names))
            )
    local = tuple(devices or jax.local_devices())
    return LocalDevices(local[: _num_shares(arrays, len(local))])


def _is_sharded(x: Any) -> bool:
    """Returns whether an array lies on several devices of a mesh."""
    named = isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding)
    return named and len(x.sharding.device_set) > 1


def _num_shares(arrays: tuple[Any, ...], most: int) -> int:
    """Returns the largest number of devices that a batch can be shared among."""
    leaves = jax.tree_util.tree_leaves(arrays)
    sizes = {jnp.shape(x)[0] for x in leaves if jnp.ndim(x)}
    if len(sizes) != 1:
        return 1
    (size,) = sizes
    return max(k for k in range(1, most + 1) if size % k == 0)


@functools.lru_cache(maxsize=16)
def _mapped(step: BatchStep, devices: tuple[Any, ...]) -> Step:
    def add(sums: Sums, models: Any, inputs: Any, key: Array, start: Any) -> Sums:
        own = jax.random.fold_in(key, jax.lax.axis_index("devices"))
        return step.add(sums, models, inputs, own, start)

    return jax.pmap(
        add,
        axis_name="devices",
        in_axes=(0, None, 0, None, None),
        devices=devices,
        donate_argnums=0,
    )


@functools.lru_cache(maxsize=16)
def _sharded(step: BatchStep, place: UserMesh) -> Step:
    def add(sums: Sums, *arguments: Any) -> Sums:
        new = step.add(sums, *arguments)
        return jax.lax.with_sharding_constraint(new, place.shardings(new))

    return jax.jit(add, donate_argnums=0)


@functools.lru_cache(maxsize=16)
def _copied(mesh: Mesh) -> Callable[[Sums], Sums]:
    """Returns a function that copies sums to all devices of a mesh."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
