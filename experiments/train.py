"""Training with optax, CLIP-style: outputs are compared with text embeddings."""

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics, parameter_overview

from experiments.data import Split

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
    """Parameters, other variables (batch statistics) and the optimiser's state."""

    params: Any
    others: Any
    optimizer: Any


def train(
    model: nn.Module,
    split: Split,
    targets: jax.Array,
    key: jax.Array,
    config: Config,
    track: Track,
    write: WriteScalars,
    title: str,
) -> Variables:
    """Trains one network on the classes that occur in ``split``.

    Args:
      model: a network with ``__call__(x, train)``.
      split: training examples; their labels are rows of ``targets``.
      targets: the task's text embeddings ``[classes, dim]``.
      key: PRNG key of initialisation and shuffling.
      config: ``epochs``, ``batch_size``, ``learning_rate``, ``weight_decay``.
      track: wraps the epochs in a progress bar with a title.
      write: receives the number and the mean accuracy and loss of every epoch.
      title: what the bar and the log call this training.

    Returns:
      The trained variables.
    """
    init_key, shuffle_key = jax.random.split(key)
    variables = model.init(init_key, split.images[:1])
    logging.info("%s:\n%s", title, parameter_overview.get_parameter_overview(variables))
    steps = max(len(split.labels) // config.batch_size, 1)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    others = {name: x for name, x in variables.items() if name != "params"}
    params = variables["params"]
    state = TrainState(params, others, optimizer.init(params))
    arrays = jnp.asarray(split.images), jnp.asarray(split.labels)
    epoch = functools.partial(
        _epoch, model, optimizer, targets, min(config.batch_size, len(split.labels))
    )
    run_epoch = jax.jit(epoch)
    collected = TrainMetrics.empty()
    for number in track(range(config.epochs), title):
        epoch_key = jax.random.fold_in(shuffle_key, number)
        state, collected = run_epoch(state, *arrays, epoch_key)
        write(number, {name: float(x) for name, x in collected.compute().items()})
    logging.info("%s: %s", title, collected.compute())
    return {"params": state.params, **state.others}


def _epoch(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    targets: jax.Array,
    batch_size: int,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
) -> tuple[TrainState, TrainMetrics]:
    """One pass over the shuffled examples, as one compiled call."""
    steps = len(labels) // batch_size
    order = jax.random.permutation(key, len(labels))[: steps * batch_size]

    def step(state: TrainState, chosen: jax.Array) -> tuple[TrainState, TrainMetrics]:
        loss_of = functools.partial(
            _loss, model, state.others, images[chosen], labels[chosen], targets
        )
        (_, (others, output)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        updates, optimizer_state = optimizer.update(
            grads, state.optimizer, state.params
        )
        params = optax.apply_updates(state.params, updates)
        collected = TrainMetrics.single_from_model_output(**output)
        return TrainState(params, others, optimizer_state), collected

    state, collected = jax.lax.scan(step, state, order.reshape(steps, batch_size))
    return state, collected.reduce()


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
