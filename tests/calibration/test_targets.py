"""Targets of the outputs."""

import jax.numpy as jnp
import numpy as np
import pytest

import zipjax


def test_the_ensemble_answers_with_the_surest_model():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(5, 6)) * 3
    tasks = [[3, 0], [1, 4, 2]]
    # An output of zeros is as near to one class as to another.
    first_output = jnp.asarray([embeddings[0] * 2, np.zeros(6)], jnp.float32)
    second_output = jnp.asarray([np.zeros(6), embeddings[4]], jnp.float32)
    target = zipjax.ensemble_target(embeddings, tasks, sharpness=32)
    found = np.asarray(target([first_output, second_output]))
    lengths = np.linalg.norm(embeddings[[0, 4]], axis=1) * [2, 1] / 2
    expected = embeddings[[0, 4]]
    expected *= (lengths / np.linalg.norm(expected, axis=1))[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_ensemble_needs_a_task_a_model():
    target = zipjax.ensemble_target(np.eye(3), [[0], [1, 2]])
    with pytest.raises(ValueError, match="one task per model"):
        target([jnp.ones((1, 3))])
    with pytest.raises(ValueError, match=r"widths \[3, 4\], .* have 3: pass"):
        target([jnp.ones((1, 3)), jnp.ones((1, 4))])


@pytest.mark.parametrize(
    ("embeddings", "tasks", "options", "message"),
    [
        (np.eye(6), [[0], [99]], {}, r"classes \[99\] outside of 0..5"),
        (np.eye(6), [[0], [-1]], {}, "whole numbers from 0 on"),
        (np.eye(6), [[0], [1.5]], {}, "whole numbers from 0 on"),
        (np.eye(6), [0, 1], {}, r"tasks = \[0, 1\]: give every task"),
        (np.eye(6), [], {}, r"tasks = \[\]: give"),
        ("words", [[0], [1]], {}, "the str 'words', which are no finite vectors"),
        (np.eye(6), [[0, 1], [1, 2]], {}, r"classes \[1\] twice"),
        (np.eye(6), [[0, 1], []], {}, "give every task some"),
        (np.eye(6) * np.nan, [[0], [1]], {}, "no finite vectors"),
        (np.eye(6), [[0], [1]], {"sharpness": np.nan}, "sharpness = nan"),
        (np.eye(6), [[0], [1]], {"sharpness": "8"}, "sharpness = '8': pass a pos"),
    ],
)
def test_tasks_and_embeddings_that_make_no_target(
    embeddings, tasks, options, message, untyped
):
    with pytest.raises(ValueError, match=message):
        zipjax.ensemble_target(embeddings, tasks, **options)
