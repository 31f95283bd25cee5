"""Random small programs: what a user might write, and what nobody should."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIZES = (2, 3, 4, 6, 8, 12)
LIMIT = 4000
"""Largest number of elements of a value."""


class RandomProgram:
    """A function ``program(params, x)`` whose operations a seed decides.

    They depend on shapes only, so that every call runs the same operations.

    Attributes:
      params: random parameters, those that a first call asked for.
      x: a random input.
    """

    def __init__(self, seed: int, length: int = 12, dtype: Any = np.float32) -> None:
        self._seed, self._length, self._dtype = seed, length, dtype
        rng = np.random.default_rng(seed + 10**6)
        self._rng = rng
        self.x = rng.normal(size=(2, int(rng.choice(SIZES)), 4)).astype(dtype)
        self.params: dict[str, Any] = {}
        self._growing = True
        self(self.params, self.x)
        self._growing = False

    def __call__(self, params: dict[str, Any], x: Any) -> Any:
        self._choice = np.random.default_rng(self._seed)
        self._used, self._given = 0, params
        pool = [self._dense(jnp.asarray(x))]
        while len(pool) < self._length:
            operation = OPERATIONS[self._below(len(OPERATIONS))]
            value = pool[max(self._below(len(pool)), self._below(len(pool)))]
            new = operation(self, value, pool)
            pool += [y for y in new if 0 < y.size <= LIMIT and y.ndim <= 5]
            if not new:
                pool.append(jnp.tanh(self._dense(value)))
        return [self._read(value) for value in pool[-3:]]

    def param(self, *shape: int) -> jax.Array:
        """Returns a parameter: a new one or, at times, one that was used before."""
        # By number: a rebuilt pytree has its keys in another order.
        names = [f"p{k}" for k in range(self._used)]
        names = [name for name in names if self._given[name].shape == shape]
        if names and self._below(4) == 0:
            return jnp.asarray(self._given[names[self._below(len(names))]])
        name = f"p{self._used}"
        self._used += 1
        if self._growing:
            scale = max(shape[0], 1) ** -0.5 if len(shape) > 1 else 1.0
            value = scale * self._rng.normal(size=shape)
            self._given[name] = value.astype(self._dtype)
        return jnp.asarray(self._given[name])

    def _below(self, bound: int) -> int:
        return int(self._choice.integers(bound))

    def axis(self, value: jax.Array) -> int:
        return self._below(value.ndim)

    def size(self) -> int:
        return int(self._choice.choice(SIZES))

    def coin(self) -> bool:
        return self._below(2) == 0

    def _dense(self, value: jax.Array) -> jax.Array:
        if value.ndim == 0:
            value = value[None]
        return value @ self.param(value.shape[-1], self.size())

    def _read(self, value: jax.Array) -> jax.Array:
        if value.ndim == 0:
            return value
        value = jnp.tanh(value @ self.param(value.shape[-1]))
        return jnp.tanh(value).mean()


Operation = Callable[[RandomProgram, jax.Array, list[jax.Array]], list[jax.Array]]


def dense(p: RandomProgram, x: jax.Array, pool: list) -> list:
    return [p._dense(x)]


def dense_any_axis(p: RandomProgram, x: jax.Array, pool: list) -> list:
    axis = p.axis(x) if x.ndim else 0
    return [jnp.moveaxis(p._dense(jnp.moveaxis(x, axis, -1)), -1, axis)] * (x.ndim > 0)


def dense_heads(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if not x.ndim:
        return []
    kernel = p.param(x.shape[-1], int(p.size()), int(p.size()))
    return [jnp.tensordot(x, kernel, 1)]


def tied(p: RandomProgram, x: jax.Array, pool: list) -> list:
    """A layer and its own transpose."""
    if not x.ndim:
        return []
    kernel = p.param(x.shape[-1], p.size())
    return [jnp.tanh(x @ kernel), jnp.tanh(x @ kernel) @ kernel.T]


def low_rank(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if not x.ndim:
        return []
    rank = p.size()
    return [x @ (p.param(x.shape[-1], rank) @ p.param(rank, p.size()))]


def bias(p: RandomProgram, x: jax.Array, pool: list) -> list:
    return [x + p.param(*x.shape[p.axis(x) :])] if x.ndim else []


def scale(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if not x.ndim:
        return []
    axis = p.axis(x)
    shape = [n if k == axis else 1 for k, n in enumerate(x.shape)]
    return [x * p.param(x.shape[axis]).reshape(shape)]


def softmax(p: RandomProgram, x: jax.Array, pool: list) -> list:
    return [jax.nn.softmax(x, axis=p.axis(x))] if x.ndim else []


def norm(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if not x.ndim:
        return []
    axes = tuple({p.axis(x), p.axis(x)})
    return [x / jnp.sqrt(0.1 + (x**2).mean(axes, keepdims=True))]


def reduce(p: RandomProgram, x: jax.Array, pool: list) -> list:
    return [x.mean(p.axis(x)) if p.coin() else x.max(p.axis(x))] if x.ndim > 1 else []


def split_axis(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if not x.ndim:
        return []
    axis = p.axis(x)
    n = x.shape[axis]
    outer = [k for k in range(2, n) if n % k == 0]
    if not outer:
        return []
    k = outer[p._below(len(outer))]
    return [x.reshape(*x.shape[:axis], k, n // k, *x.shape[axis + 1 :])]


def merge_axes(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if x.ndim < 2:
        return []
    k = p._below(x.ndim - 1)
    return [x.reshape(*x.shape[:k], -1, *x.shape[k + 2 :])]


def reshape(p: RandomProgram, x: jax.Array, pool: list) -> list:
    order = p._choice.permutation(x.ndim)
    return [x.reshape([x.shape[k] for k in order])] if x.ndim else []


def transpose(p: RandomProgram, x: jax.Array, pool: list) -> list:
    return [x.transpose(p._choice.permutation(x.ndim))]


def combine(p: RandomProgram, x: jax.Array, pool: list) -> list:
    """A sum or a product with another value of one shape."""
    same = [y for y in pool if y.shape == x.shape]
    y = same[p._below(len(same))]
    return [x + y if p.coin() else x * jnp.tanh(y)]


def concatenate(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if not x.ndim:
        return []
    axis = p.axis(x)

    def rest(y: jax.Array) -> tuple[int, ...]:
        return (*y.shape[:axis], *y.shape[axis + 1 :])

    fits = [y for y in pool if y.ndim == x.ndim and rest(y) == rest(x)]
    y = fits[p._below(len(fits))]
    return [jnp.concatenate([x, y], axis)]


def pieces(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if not x.ndim:
        return []
    axis = p.axis(x)
    n = x.shape[axis]
    counts = [k for k in (2, 3, n) if k <= n and n % k == 0 and k < 5]
    if not counts:
        return []
    parts = jnp.split(x, counts[p._below(len(counts))], axis)
    if parts[0].shape[axis] == 1:
        parts = [part.squeeze(axis) for part in parts]
    return parts


def window(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if not x.ndim:
        return []
    axis = p.axis(x)
    low = p._below(x.shape[axis])
    high = low + 1 + p._below(x.shape[axis] - low)
    return [jax.lax.slice_in_dim(x, low, high, 1 + p._below(2), axis)]


def pad(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if not x.ndim:
        return []
    widths = [(0, 0)] * x.ndim
    widths[p.axis(x)] = (p._below(3), p._below(3))
    return [jnp.pad(x, widths)]


def contract(p: RandomProgram, x: jax.Array, pool: list) -> list:
    """A product with another value over one axis, others batched or not."""
    y = pool[p._below(len(pool))]
    pairs = [(a, b) for a in range(x.ndim) for b in range(y.ndim)]
    pairs = [(a, b) for a, b in pairs if x.shape[a] == y.shape[b]]
    if not pairs:
        return []
    a, b = pairs[p._below(len(pairs))]
    others = [(c, d) for c, d in pairs if c != a and d != b]
    batch = ([], [])
    if others and p.coin():
        c, d = others[p._below(len(others))]
        batch = ([c], [d])
    out = jax.eval_shape(
        lambda x, y: jax.lax.dot_general(x, y, (([a], [b]), batch)), x, y
    )
    if out.size > LIMIT or out.ndim > 5:
        return []
    return [jnp.tanh(jax.lax.dot_general(x, y, (([a], [b]), batch)))]


def attention(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if x.ndim != 3:
        return []
    heads, d = p.size(), p.size()
    qkv = (x @ p.param(x.shape[-1], 3 * heads * d)).reshape(*x.shape[:2], 3, heads, d)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return [qkv, out, out.reshape(*x.shape[:2], -1) @ p.param(heads * d, x.shape[-1])]


def ordered(p: RandomProgram, x: jax.Array, pool: list) -> list:
    """Operations for which the order along an axis matters."""
    if not x.ndim:
        return []
    axis = p.axis(x)
    functions = (
        lambda: jnp.cumsum(x, axis),
        lambda: jnp.flip(x, axis),
        lambda: jnp.roll(x, 1, axis),
        lambda: jnp.sort(x, axis),
        lambda: x * jnp.argmax(x, axis, keepdims=True),
        lambda: jnp.take(x, jnp.array([0, 1, 0]), axis),
        lambda: jax.lax.top_k(x, 1)[0],
        lambda: (
            x
            * jnp.arange(x.shape[axis]).reshape(
                [-1 if k == axis else 1 for k in range(x.ndim)]
            )
        ),
    )
    return [functions[p._below(len(functions))]()]


def repeat(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if not x.ndim:
        return []
    axis = p.axis(x)
    if p.coin():
        return [jnp.repeat(x, 2, axis)]
    return [jnp.tile(x, [2 if k == axis else 1 for k in range(x.ndim)])]


def conv(p: RandomProgram, x: jax.Array, pool: list) -> list:
    if x.ndim != 3:
        return []
    channels = x.shape[-1]
    groups = [k for k in range(1, channels + 1) if channels % k == 0]
    count = groups[p._below(len(groups))]
    kernel = p.param(1 + p._below(2), channels // count, count * (1 + p._below(3)))
    return [
        jax.lax.conv_general_dilated(
            x,
            kernel,
            (1,),
            "SAME",
            feature_group_count=count,
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
    ]


def scan(p: RandomProgram, x: jax.Array, pool: list) -> list:
    """Residual layers with stacked weights, or a recurrence along an axis."""
    if x.ndim < 2:
        return []
    n = x.shape[-1]
    hidden = p.size()
    if p.coin():
        kernels = p.param(3, n, hidden), p.param(3, hidden, n)

        def layer(h: jax.Array, row: Any) -> Any:
            y = jnp.tanh(h @ row[0])
            return h + y @ row[1], y

        return list(jax.lax.scan(layer, x, kernels))
    kernel, recurrent = p.param(n, hidden), p.param(hidden, hidden)

    def step(h: jax.Array, row: jax.Array) -> Any:
        h = jnp.tanh(row @ kernel + h @ recurrent)
        return h, h

    rows = jnp.moveaxis(x, 0, 0)
    return list(jax.lax.scan(step, jnp.zeros((*x.shape[1:-1], hidden)), rows))


def covariance(p: RandomProgram, x: jax.Array, pool: list) -> list:
    return [jnp.einsum("...i,...j->...ij", x, x)] if x.ndim else []


def update(p: RandomProgram, x: jax.Array, pool: list) -> list:
    return (
        [x.at[0].set(0.5)]
        if x.ndim and p.coin()
        else [x.at[..., :1].add(1.0)] * (x.ndim > 0)
    )


OPERATIONS: tuple[Operation, ...] = (
    dense,
    dense,
    dense_any_axis,
    dense_heads,
    dense_heads,
    tied,
    low_rank,
    bias,
    bias,
    scale,
    softmax,
    norm,
    norm,
    reduce,
    split_axis,
    split_axis,
    split_axis,
    merge_axes,
    merge_axes,
    reshape,
    transpose,
    transpose,
    combine,
    combine,
    combine,
    concatenate,
    pieces,
    pieces,
    window,
    pad,
    contract,
    contract,
    attention,
    ordered,
    repeat,
    conv,
    scan,
    covariance,
    update,
)
