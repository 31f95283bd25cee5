"""Training with optax, CLIP-style: outputs are compared with text embeddings."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics, parameter_overview

from experiments.parents.data import Pixels, Split

_SCALE = 100.0  # CLIP's logit scale.
Variables: TypeAlias = Any  # {"params": ..., "batch_stats": ...}
Config: TypeAlias = Any  # ml_collections.ConfigDict, whose fields have no types.
WriteScalars: TypeAlias = Callable[[int, dict[str, float]], None]
Track: TypeAlias = Callable[[Iterable[int], str], Iterable[int]]


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """What is logged of every epoch."""

    accuracy: metrics.Accuracy
    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]


@flax.struct.dataclass
class TrainState:
    """Steps so far, parameters, batch statistics and the optimiser's state."""

    step: jax.Array
    params: Any
    others: Any
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class Look:
    """How stored images look in training; hashable, as static data of the step."""

    pixels: Pixels
    flip: bool
    crop: int

    def seen(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """Returns normalised and augmented images."""
        flip_key, crop_key = jax.random.split(key)
        images = self.pixels.normalised(images)
        images = flipped(images, flip_key) if self.flip else images
        return cropped(images, crop_key, self.crop) if self.crop else images


def train(
    model: nn.Module,
    split: Split,
    targets: jax.Array,
    key: jax.Array,
    config: Config,
    track: Track,
    write: WriteScalars,
    title: str,
    start: Variables | None = None,
) -> Variables:
    """Trains one network on the classes that occur in ``split``.

    Args:
      model: a network with ``__call__(x, train)``.
      split: training examples; their labels are rows of ``targets``.
      targets: the task's text embeddings ``[classes, dim]``.
      key: PRNG key of initialisation, shuffling and augmentation.
      config: ``epochs``, ``batch_size``, ``learning_rate``, ``weight_decay``, ``flip``
        (whether images are mirrored at random) and ``crop`` (by how many pixels they
        are padded, to be cropped at random).
      track: wraps the epochs in a progress bar with a title.
      write: receives the number and the mean accuracy and loss of every epoch.
      title: what the bar and the log call this training.
      start: variables to start from; drawn at random if None.

    Returns:
      The trained variables.
    """
    init_key, shuffle_key, augment_key = jax.random.split(key, 3)
    if start is None:
        example = split.pixels.normalised(split.images[:1])
        start = dict(jax.jit(model.init)(init_key, example))
    overview = parameter_overview.get_parameter_overview(start, include_stats=False)
    logging.info("%s:\n%s", title, overview)
    size = min(config.batch_size, len(split.labels))
    steps = len(split.labels) // size
    rate = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps)
    others = {name: x for name, x in start.items() if name != "params"}
    optimizer = _optimizer(config.weight_decay).init(start["params"])
    state = TrainState(jnp.zeros((), int), start["params"], others, optimizer)
    look = Look(split.pixels, config.flip, config.crop)
    step = functools.partial(_step, model, config.weight_decay, look, targets)
    collected = TrainMetrics.empty()
    for number in track(range(config.epochs), title):
        epoch_key = jax.random.fold_in(shuffle_key, number)
        order = np.asarray(jax.random.permutation(epoch_key, len(split.labels)))
        collected = TrainMetrics.empty()
        for k, chosen in enumerate(order[: steps * size].reshape(steps, size)):
            batch = split.images[chosen], split.labels[chosen]
            now = rate(number * steps + k)
            state, collected = step(state, collected, *batch, now, augment_key)
        write(number, {name: float(x) for name, x in collected.compute().items()})
    logging.info("%s: %s", title, collected.compute())
    return {"params": state.params, **state.others}


def flipped(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors images at random."""
    mirrored = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def cropped(images: jax.Array, key: jax.Array, padding: int) -> jax.Array:
    """Crops images at random from their padded selves."""
    count, *shape = images.shape
    sides = (padding, padding)
    padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * padding + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), shape)

    return jax.vmap(crop)(padded, corners)


def _optimizer(weight_decay: float) -> optax.GradientTransformation:
    """AdamW but for its learning rate, which the step is given."""
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(weight_decay))


# One step, not one epoch: tasks of different size share the compiled function.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _step(
    model: nn.Module,
    weight_decay: float,
    look: Look,
    targets: jax.Array,
    state: TrainState,
    collected: TrainMetrics,
    images: jax.Array,
    labels: jax.Array,
    rate: jax.Array,
    key: jax.Array,
) -> tuple[TrainState, TrainMetrics]:
    """One step of the optimiser."""
    images = look.seen(images, jax.random.fold_in(key, state.step))
    loss_of = functools.partial(_loss, model, state.others, images, labels, targets)
    (_, (others, output)), grads = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    optimizer = _optimizer(weight_decay)
    updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
    updates = jax.tree_util.tree_map(lambda update: -rate * update, updates)
    params = optax.apply_updates(state.params, updates)
    collected = collected.merge(TrainMetrics.single_from_model_output(**output))
    return TrainState(state.step + 1, params, others, optimizer_state), collected


def _loss(
    model: nn.Module,
    others: Variables,
    images: jax.Array,
    labels: jax.Array,
    targets: jax.Array,
    params: Any,
) -> tuple[jax.Array, Any]:
    outputs, others = model.apply(
        {"params": params, **others}, images, train=True, mutable=list(others)
    )
    unit = outputs / jnp.maximum(jnp.linalg.norm(outputs, axis=1, keepdims=True), 1e-6)
    logits = _SCALE * unit @ targets.T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), (others, {"loss": losses, "logits": logits, "labels": labels})
