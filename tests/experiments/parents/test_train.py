"""Training: augmentation, and where it starts from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.data.pixels import Pixels
from experiments.data.splits import in_memory
from experiments.data.streams import Reader
from experiments.defaults import training
from experiments.parents import train
from experiments.parents.tasks.classes import Cosines
from experiments.parents.train import Augmentation, train_network
from zipjax.models import mlp

IMAGES = np.random.default_rng(0).normal(size=(8, 2, 2, 1)).astype(np.float32)
NETWORK = mlp.MLP((5,), 3)
TARGETS = jnp.eye(2, 3)
OBJECTIVE = Cosines(TARGETS)


def run(config, start=None, seed=0):
    split = in_memory(IMAGES, np.arange(8) % 2, Pixels((0.5,), (2.0,)))
    silent = (lambda steps, title: steps), (lambda step, scalars: None)
    key = jax.random.key(seed)
    return split, train_network(
        NETWORK, split, OBJECTIVE, key, config, *silent, "x", start
    )


def test_augmented_images_are_flipped_windows_of_the_padded_ones(key):
    image = np.arange(1.0, 37.0, dtype=np.float32).reshape(6, 6)
    images = jnp.repeat(jnp.asarray(image)[None, :, :, None], 100, 0)
    augmentation = Augmentation(Pixels(), flip=True, crop=2)
    windows = {
        np.pad(side, 2)[r : r + 6, c : c + 6].tobytes()
        for side in (image, image[:, ::-1])
        for r in range(5)
        for c in range(5)
    }
    made = np.asarray(augmentation.augmented(images, key))[..., 0]
    made = {image.tobytes() for image in made}
    assert made <= windows
    assert len(made) > 35  # of 50
    plain = Augmentation(Pixels(), flip=False, crop=0).augmented(images, key)
    np.testing.assert_array_equal(plain, images)


def test_dense_targets_are_flipped_and_cropped_with_their_images(key):
    images = np.random.default_rng(0).integers(1, 200, (50, 6, 5, 1)).astype(np.float32)
    look = Augmentation(Pixels(), flip=True, crop=2)
    moved = np.asarray(look.augmented(images, key))[..., 0]
    assert (moved != images[..., 0]).any((1, 2)).mean() > 0.9
    masks = np.asarray(look.moved(jnp.asarray(images[..., 0]), key, 255))
    np.testing.assert_array_equal(masks, np.where(moved == 0, 255, moved))
    channels = np.asarray(look.moved(jnp.asarray(images), key, 0))
    np.testing.assert_array_equal(channels[..., 0], moved)
    still = Augmentation(Pixels(), flip=False, crop=0)
    np.testing.assert_array_equal(still.moved(jnp.asarray(images), key, 0), images)


def test_examples_that_are_not_in_memory_train_the_same_network():
    config = training(epochs=2, batch_size=3)
    split, trained = run(config)
    streamed = dataclasses.replace(split, reading=Reader())
    silent = (lambda steps, title: steps), (lambda step, scalars: None)
    key = jax.random.key(0)
    again = train_network(NETWORK, streamed, OBJECTIVE, key, config, *silent, "x")
    jax.tree.map(np.testing.assert_array_equal, again, trained)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_step_is_adamw_on_normalised_images(precision):
    config = training(
        epochs=1,
        batch_size=8,
        learning_rate=0.1,
        weight_decay=0.3,
        precision=precision,
    )
    start = NETWORK.init(jax.random.key(3), jnp.zeros((1, 2, 2, 1)))
    split, trained = run(config, start)

    def loss(params):
        params = jax.tree.map(lambda x: x.astype(precision), params)
        images = jnp.asarray((IMAGES - 0.5) / 2, precision)
        outputs = NETWORK.apply({"params": params}, images).astype(jnp.float32)
        cosine = outputs @ TARGETS.T / jnp.linalg.norm(outputs, axis=1, keepdims=True)
        logits = 100 * cosine
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, split.labels
        ).mean()

    optimizer = optax.adamw(0.1, weight_decay=0.3)
    params = start["params"]
    grads = jax.grad(loss)(params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    expected = optax.apply_updates(params, updates)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4),
        trained["params"],
        expected,
    )
    assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype("float32")}


def test_networks_from_one_start_stay_near_each_other():
    config = training(epochs=2, batch_size=4, learning_rate=1e-3)
    _, start = run(config)
    kept = jax.tree.map(np.array, start)
    tuned = [run(config, start, seed)[1] for seed in (1, 2)]
    fresh = run(config, seed=1)[1]

    def distance(x, y):
        return float(optax.tree.norm(optax.tree.sub(x["params"], y["params"])))

    assert 0 < distance(tuned[0], tuned[1]) < 0.1 * distance(tuned[0], fresh)
    assert distance(start, kept) == 0


def test_trainings_of_other_lengths_and_settings_share_one_compiled_step():
    run(training(epochs=1, batch_size=4))
    before = train._step._cache_size()
    run(training(epochs=3, batch_size=4, learning_rate=1e-4, weight_decay=0.2))
    assert train._step._cache_size() == before


@pytest.mark.parametrize(("batch", "epoch"), [(2, 1), (8, 2)])
def test_a_training_that_is_lost_names_its_step(batch, epoch):
    """The first loss is that of the start; steps of 1e30 leave nothing after it."""
    config = training(epochs=3, batch_size=batch, learning_rate=1e30)
    with pytest.raises(
        ValueError, match=rf"x: the loss of epoch {epoch} is nan, from step 2 of"
    ):
        run(config)
