"""Small networks whose parameters are all non-trivial, and copies of them."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zipjax import (
    Axis,
    Fixed,
    Moments,
    Perm,
    PermutationSpec,
    Product,
    collect_moments,
    permute_params,
    reset_batch_stats,
)
from zipjax.models import mlp, swin, vit
from zipjax.trees import from_leaves, path_leaves


def randomise(like, seed):
    """Draws parameters of the shapes of ``like``; no two units are alike.

    Initial values (scales of 1, biases and means of 0) would hide mistakes.
    """
    rng = np.random.default_rng(seed)
    leaves = {}
    for path, leaf in path_leaves(like).items():
        name, shape = path.split("/")[-1], leaf.shape
        if name in ("kernel", "w"):
            value = rng.normal(size=shape) * math.sqrt(2 / math.prod(shape[:-1]))
        elif name in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = 0.2 * rng.normal(size=shape)
        leaves[path] = jnp.asarray(value, leaf.dtype)
    return from_leaves(leaves, like)


def variables(module, shape, seed):
    """Returns random variables of a Flax module for inputs ``[batch, *shape]``."""
    inputs = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return randomise(jax.eval_shape(module.init, jax.random.key(0), inputs), seed)


def images(count, shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, *shape)).astype(np.float32)


def awake(net, model):
    """Lifts what convolutions make above 0: dead units look all the same."""
    if isinstance(net.model, mlp.MLP | vit.ViT | swin.Swin):
        return model
    leaves = path_leaves(model)
    lift = {p: 3 if p.replace("bias", "scale") in leaves else 12 for p in leaves}
    lifted = {p: x + lift[p] if p.endswith("bias") else x for p, x in leaves.items()}
    model = from_leaves(lifted, model)
    x = images(64, (net.side, net.side, 3))
    return reset_batch_stats(net.model.apply, model, [x])


def collect(apply_fn, models, spec, *inputs):
    """Moments from one batch on one device: the fewest compilations."""
    device = jax.local_devices()[:1]
    return collect_moments(apply_fn, models, spec, [inputs], devices=device)


def first_models(moments, spec, count):
    """The moments of the first models alone."""
    found = {}
    for perm, moment in moments.items():
        n = count * spec.sizes[perm]
        mean, tail, m2 = moment.mean[:n], moment.mean_tail[:n], moment.m2[:n, :n]
        found[perm] = Moments(moment.count, mean, tail, m2)
    return found


def random_permutations(spec, seed):
    """Draws permutations other than the identity."""
    rng = np.random.default_rng(seed)
    drawn = {perm: rng.permutation(size) for perm, size in spec.sizes.items()}
    return {
        perm: indices[::-1] if (indices == np.arange(indices.size)).all() else indices
        for perm, indices in drawn.items()
    }


def permuted_copies(model, spec, count):
    """Returns a model and copies of it with reordered units."""
    copies = [
        permute_params(model, spec, random_permutations(spec, seed))
        for seed in range(1, count)
    ]
    return [model, *copies]


def relative_error(found, expected):
    """Largest difference, relative to the largest expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


def flops(function, *arguments):
    """Floating-point operations of the compiled function, as XLA counts them."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


# A plain function of nested lists and dictionaries: no framework.


def dense_params(widths, seed):
    pairs = itertools.pairwise(widths)
    layers = [
        {
            "b": jax.ShapeDtypeStruct((after,), jnp.float32),
            "w": jax.ShapeDtypeStruct((before, after), jnp.float32),
        }
        for before, after in pairs
    ]
    return randomise({"layers": layers}, seed)


def dense_apply(params, x):
    *hidden, head = params["layers"]
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ head["w"] + head["b"]


def dense_spec(widths):
    """Perms "h0", "h1", ... of the hidden layers."""
    last = len(widths) - 2
    axes = {}
    for k in range(last + 1):
        consumed = Axis(f"h{k - 1}", "in") if k else None
        produced = Axis(f"h{k}", "out") if k < last else None
        axes[f"layers/{k}/w"] = (consumed, produced)
        axes[f"layers/{k}/b"] = (produced,)
    return PermutationSpec(axes, {f"h{k}": Perm(widths[k + 1]) for k in range(last)})


class FlattenNet(nn.Module):
    """Convolution, BatchNorm, pooling, and a flatten into a Dense layer."""

    dtype: object = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), dtype=self.dtype, name="conv")(x)
        # Without momentum, training mode stores the statistics of its batch.
        norm = nn.BatchNorm(
            not train, momentum=0.0, epsilon=1e-3, dtype=self.dtype, name="norm"
        )
        x = nn.max_pool(nn.relu(norm(x)), (2, 2), (2, 2))
        x = nn.Dense(5, dtype=self.dtype, name="hidden")(x.reshape(x.shape[0], -1))
        return nn.Dense(3, dtype=self.dtype, name="head")(nn.relu(x))


def flatten_spec(positions):
    """The spec of a FlattenNet whose pooled images have that many positions."""
    conv, hidden = Axis("conv", "out"), Axis("hidden", "out")
    flat = Product((Fixed(positions), Axis("conv", "in")))
    norms = ("params/norm/scale", "params/norm/bias")
    stats = ("batch_stats/norm/mean", "batch_stats/norm/var")
    axes = {
        "params/conv/kernel": (None, None, None, conv),
        "params/conv/bias": (conv,),
        **dict.fromkeys(norms + stats, (conv,)),
        "params/hidden/kernel": (flat, hidden),
        "params/hidden/bias": (hidden,),
        "params/head/kernel": (Axis("hidden", "in"), None),
        "params/head/bias": (None,),
    }
    return PermutationSpec(axes, {"conv": Perm(4), "hidden": Perm(5)})
