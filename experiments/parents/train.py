"""Training with optax."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from clu import metrics, parameter_overview
from flax.training import train_state

from experiments.data.pixels import Pixels
from experiments.data.splits import Split, Track
from experiments.data.streams import on_device
from experiments.parents.tasks.suite import Objective
from zipjax.batches import replicated, spread

Variables: TypeAlias = Any  # {"params": ..., "batch_stats": ...}
Averages: TypeAlias = dict[str, metrics.Average]
Config: TypeAlias = Any  # ml_collections.ConfigDict, whose fields have no types.
WriteScalars: TypeAlias = Callable[[int, dict[str, float]], None]

# The figure that says in which steps of an epoch the loss was finite: the first ones.
_SOUND = "sound"

# Made once, with numbers that are data: the optimiser is static in the compiled step.
_ADAMW = optax.inject_hyperparams(
    optax.adamw, static_args=("b1", "b2", "eps", "eps_root")
)(learning_rate=0.0, weight_decay=0.0)


class TrainState(train_state.TrainState):
    """Flax's state, with the variables that are not trained.

    Attributes:
      params: the parameters: plain dictionaries, where flax's class says FrozenDict.
      opt_state: the optimiser's state; its hyperparameters are set before every step.
      others: collections by name: ``{"batch_stats": ...}``, or none.
    """

    params: Any
    opt_state: Any
    others: Variables


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How images look during training; hashable, as static data of the step.

    Attributes:
      pixels: how images are normalised.
      flip: whether they are mirrored at random.
      crop: by how many pixels they are padded, to be cropped at random.
    """

    pixels: Pixels
    flip: bool
    crop: int

    def augmented(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """Returns normalised and augmented images."""
        flip_key, crop_key = jax.random.split(key)
        images = self.pixels.normalised(images)
        images = flipped(images, flip_key) if self.flip else images
        return cropped(images, crop_key, self.crop) if self.crop else images

    def moved(self, targets: jax.Array, key: jax.Array, fill: float) -> jax.Array:
        """Returns dense targets, mirrored and cropped as images are with this key.

        Values that name a direction, such as normals, do not survive mirroring: train
        these without ``flip``.

        Args:
          targets: ``[batch, height, width]``, or with channels.
          key: the key that the images were augmented with.
          fill: the value outside of the images, such as that of pixels without class.
        """
        flip_key, crop_key = jax.random.split(key)
        maps = targets.reshape(*targets.shape[:3], -1)
        maps = flipped(maps, flip_key) if self.flip else maps
        maps = cropped(maps, crop_key, self.crop, fill) if self.crop else maps
        return maps.reshape(targets.shape)


def train_network(
    model: nn.Module,
    split: Split,
    objective: Objective,
    key: jax.Array,
    config: Config,
    track: Track,
    write: WriteScalars,
    title: str,
    start: Variables | None = None,
) -> Variables:
    """Trains one network, on all local devices: they share every batch.

    Args:
      model: a network with ``__call__(x, train)``.
      split: training examples.
      objective: what the network's outputs mean.
      key: PRNG key of initialisation, shuffling and augmentation.
      config: ``epochs``, ``batch_size`` (of all devices together), ``learning_rate``,
        ``weight_decay``, ``flip`` and ``crop``, see `Augmentation`, and the
        ``precision`` that the network computes in; parameters, statistics and losses
        are float32.
      track: wraps the epochs in a progress bar with a title.
      write: receives the number and the mean figures of every epoch.
      title: what the bar and the log call this training.
      start: variables to start from; drawn at random if None.

    Returns:
      The trained variables.

    Raises:
      ValueError: if the loss is not finite, naming the training, epoch and step.
    """
    init_key, shuffle_key, augment_key = jax.random.split(key, 3)
    if start is None:
        start = dict(jax.jit(model.init)(init_key, split.example()))
    overview = parameter_overview.get_parameter_overview(start, include_stats=False)
    logging.info("%s:\n%s", title, overview)
    size = min(config.batch_size, len(split))
    steps = len(split) // size
    rate = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps)
    state = _initial_state(model, start, config.weight_decay)
    state, augment_key = jax.tree_util.tree_map(replicated, (state, augment_key))
    look = Augmentation(split.pixels, config.flip, config.crop)
    figures: dict[str, float] = {}
    for number in track(range(config.epochs), title):
        collected: Averages = {}
        batches = split.shuffled(size, shuffle_key, number)
        for batch in on_device(batches, spread):
            state.opt_state.hyperparams["learning_rate"] = rate(state.step)
            state, own = _step(
                look, config.precision, objective, state, *batch, augment_key
            )
            collected = _merged(collected, own) if collected else own
        figures = {name: float(x.compute()) for name, x in collected.items()}
        sound = round(figures.pop(_SOUND) * steps)
        write(number, figures)
        _check_loss(title, number, number * steps + sound + 1, figures["loss"])
    logging.info("%s: %s", title, figures)
    return {"params": state.params, **state.others}


def _check_loss(title: str, number: int, step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise ValueError(
            f"{title}: the loss of epoch {number + 1} is {loss}, from step {step} of "
            "the training on, so that the network is lost: lower the training's "
            "learning_rate (config.train or config.finetune), or check the data"
        )


def flipped(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors images at random."""
    mirrored = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def cropped(
    images: jax.Array, key: jax.Array, padding: int, fill: float = 0
) -> jax.Array:
    """Crops images at random from images padded with one value."""
    count, *shape = images.shape
    sides = (padding, padding)
    widths = ((0, 0), sides, sides, (0, 0))
    padded = jnp.pad(images, widths, constant_values=fill)
    corners = jax.random.randint(key, (count, 2), 0, 2 * padding + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), shape)

    return jax.vmap(crop)(padded, corners)


def _initial_state(
    model: nn.Module, start: Variables, weight_decay: float
) -> TrainState:
    others = {name: x for name, x in start.items() if name != "params"}
    state = TrainState.create(
        apply_fn=model.apply, params=start["params"], tx=_ADAMW, others=others
    )
    state.opt_state.hyperparams["weight_decay"] = jnp.asarray(weight_decay, float)
    # An array from the start on, so that nothing compiles again for the second step.
    return state.replace(step=jnp.zeros((), int))


# One step, not one epoch: tasks of different size share the compiled function.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(
    look: Augmentation,
    precision: str,
    objective: Objective,
    state: TrainState,
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
) -> tuple[TrainState, Averages]:
    """Takes one step of the optimiser."""
    own_key = jax.random.fold_in(key, state.step)
    images = look.augmented(images, own_key)
    if targets.ndim > 1:
        targets = look.moved(targets, own_key, objective.outside)
    loss_of = functools.partial(_loss, precision, objective, state, images, targets)
    (loss, (others, figures)), grads = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    figures = {**figures, _SOUND: jnp.isfinite(loss)}
    found = {
        name: metrics.Average.from_model_output(x.astype(jnp.float32))
        for name, x in figures.items()
    }
    return state.apply_gradients(grads=grads, others=others), found


@jax.jit
def _merged(collected: Averages, own: Averages) -> Averages:
    return {name: x.merge(own[name]) for name, x in collected.items()}


def _loss(
    precision: str,
    objective: Objective,
    state: TrainState,
    images: jax.Array,
    targets: jax.Array,
    params: Any,
) -> tuple[jax.Array, Any]:
    rounded = jax.tree_util.tree_map(lambda x: x.astype(precision), params)
    outputs, others = state.apply_fn(
        {"params": rounded, **state.others},
        images.astype(precision),
        train=True,
        mutable=list(state.others),
    )
    outputs = outputs.astype(jnp.float32)
    losses = objective.losses(outputs, targets)
    figures = {"loss": losses, **objective.figures(outputs, targets)}
    return losses.mean(), (others, figures)
