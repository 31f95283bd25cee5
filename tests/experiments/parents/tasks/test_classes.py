"""Tasks: labels of their own, and accuracies computed by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.splits import in_memory
from experiments.parents.tasks import classes
from experiments.parents.tasks.classes import Classes, ClassSuite, some_classes
from experiments.parents.text_embeddings import load_class_embeddings
from zipjax.models import mlp

EMBEDDINGS = np.eye(4, 6, dtype=np.float32)


def split_of(labels):
    images = np.arange(float(len(labels))).reshape(-1, 1, 1, 1)
    return in_memory(images, np.array(labels))


class Table(nn.Module):
    """Answers with given outputs; an image is the number of its example."""

    @nn.compact
    def __call__(self, images, train=False):
        table = self.param("table", nn.initializers.zeros, (9, 6))
        return table[images.reshape(-1).astype(int)]


TABLE = Table()
SPEC = mlp.spec(mlp.MLP((2,), 3))  # Evaluation does not read it.


def suite_of(made, labels):
    split = split_of(labels)
    return ClassSuite.of(made, split, split, split, TABLE, SPEC)


def model_of(outputs):
    table = np.zeros((9, 6), np.float32)
    table[: len(outputs)] = outputs
    return {"params": {"table": jnp.asarray(table)}}


def scores(made, labels, outputs):
    suite = suite_of(made, labels)
    return suite.evaluate(TABLE.apply, model_of(outputs), 2)


def test_a_task_relabels_its_examples():
    task = classes.some_classes((1, 3), EMBEDDINGS)
    part = task.of(split_of([0, 3, 1, 2, 3]))
    assert part.numbers.tolist() == [1, 2, 4]
    assert part.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(task.targets, EMBEDDINGS[[1, 3]])


def test_a_split_gives_every_label_to_one_task(key):
    made = classes.make_classes("split", 2, EMBEDDINGS, "minilm", key)
    owners = sum((task.numbers >= 0).astype(int) for task in made)
    assert owners.tolist() == [1, 1, 1, 1]


def test_prime_and_odd_are_asked_about_every_digit(key):
    _, embeddings = load_class_embeddings("digits")
    prime, odd = classes.make_classes("prime_odd", 2, embeddings, "minilm", key)
    assert np.flatnonzero(prime.numbers).tolist() == [2, 3, 5, 7]
    assert np.flatnonzero(odd.numbers).tolist() == [1, 3, 5, 7, 9]
    assert prime.of(split_of(range(10))).labels.tolist() == prime.numbers.tolist()
    names, targets = load_class_embeddings("prime")
    assert names == ("not a prime number", "a prime number")
    np.testing.assert_array_equal(prime.targets, targets)


@pytest.mark.parametrize(("name", "count"), [("prime_odd", 3), ("prime", 2)])
def test_tasks_that_there_are_not(name, count, key):
    with pytest.raises(ValueError, match="'split', or 'prime_odd' with 2 tasks"):
        classes.make_classes(name, count, EMBEDDINGS, "minilm", key)


def test_disjoint_tasks_are_told_apart_among_all_classes():
    made = [some_classes(own, EMBEDDINGS) for own in ((3, 0), (1, 2))]
    outputs = np.array(
        [
            [5.0, 0, 0, 1, 9, 0],  # 0: right
            [1, 0, 3, 2, 0, 9],  # 3: within the task only
            [0, 1, 2, 3, 0, 0],  # 1: nowhere
        ]
    )
    found = scores(made, [0, 3, 1], outputs)
    assert (found.joint, found.tasks) == (1 / 3, (1.0, 0.0))
    assert found.average == 0.5


def test_some_of_the_tasks_are_asked_about_their_own_examples():
    made = [some_classes((k,), EMBEDDINGS) for k in range(4)]
    outputs = np.array([[5.0, 0, 0, 9, 0, 0], [0, 2, 0, 3, 0, 0], [3, 0, 1, 9, 0, 0]])
    suite = suite_of(made, [0, 1, 2]).subset([0, 2])
    model = model_of(outputs)
    assert suite.test.numbers.tolist() == [0, 2]
    assert suite.calibration[0].numbers.tolist() == [0, 2]
    # Class 3 is none of the pair's; of the second example 0 is likelier than 2.
    assert suite.evaluate(TABLE.apply, model, 2).joint == 0.5


def test_tasks_of_all_examples_are_answered_one_by_one():
    # Labels 0..3: task A asks whether it is 2 or more, task B whether it is odd.
    made = [
        Classes(np.array([0, 0, 1, 1]), EMBEDDINGS[:2]),
        Classes(np.array([0, 1, 0, 1]), EMBEDDINGS[2:]),
    ]
    outputs = np.array(
        [
            [0.0, 1, 0, 1, 0, 0],  # yes, yes: right about 3
            [1, 0, 0, 1, 0, 0],  # no, yes: about 2 both wrong
            [1, 0, 0, 1, 0, 0],  # no, yes: about 0 the second wrong
        ]
    )
    found = scores(made, [3, 2, 0], outputs)
    assert found.joint == pytest.approx(1 / 3)
    assert found.tasks == pytest.approx((2 / 3, 1 / 3))


def test_tasks_that_share_some_labels_are_refused():
    made = [some_classes(own, EMBEDDINGS) for own in ((0, 1, 2), (2, 3))]
    with pytest.raises(ValueError, match="must share no label"):
        scores(made, [0], np.eye(1, 6))


def test_losses_are_cross_entropies_among_the_classes_of_a_task():
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(9, 6)), rng.normal(size=(5, 6))
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    labels = [0, 1, 2, 3, 4, 0, 2, 2, 4]
    made = [some_classes(own, targets) for own in ((0, 2, 4), (1, 3))]
    expected = []
    for own in ([0, 2, 4], [1, 3]):
        every = []
        for output, label in zip(outputs, labels, strict=True):
            if label in own:
                logits = {
                    c: 100
                    * (output @ targets[c])
                    / (np.linalg.norm(output) * np.linalg.norm(targets[c]))
                    for c in own
                }
                total = sum(np.exp(v - logits[label]) for v in logits.values())
                every.append(np.log(total))
        expected.append(np.mean(every))
    model, suite = model_of(outputs), suite_of(made, labels)
    np.testing.assert_allclose(suite.losses(model, 4), expected, rtol=1e-4)
    # The first two examples of all, one for each task.
    some = suite.testing(2).losses(model, 4)
    assert [len(task.test) for task in suite.testing(2).tasks] == [1, 1]
    assert not np.allclose(some, expected)


def test_an_output_of_zeros_has_a_gradient():
    """A norm has none there; what is as small as 1e-30 has a norm of zero, too."""
    targets = np.eye(3, 4, dtype=np.float32)
    outputs = np.array([[0, 0, 0, 0], [1e-30, 0, 0, 0], [3, 0, -4, 1]], np.float32)
    labels = jnp.array([0, 1, 2])
    objective = classes.Cosines(targets)
    found = jax.grad(lambda y: objective.losses(y, labels).sum())(outputs)
    assert np.isfinite(found).all()

    def plain(y):
        logits = 100 * y / jnp.linalg.norm(y) @ targets.T
        return jax.nn.logsumexp(logits) - logits[2]

    np.testing.assert_allclose(found[2], jax.grad(plain)(outputs[2]), rtol=1e-5)
    # Towards the label's embedding.
    assert found[0].argmin() == 0
    assert found[1].argmin() == 1
