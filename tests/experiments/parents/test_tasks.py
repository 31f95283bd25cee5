"""Tasks: labels of their own, and accuracies computed by hand."""

import numpy as np
import pytest

from experiments.data.splits import in_memory
from experiments.parents import tasks
from experiments.parents.text_embeddings import load_class_embeddings

EMBEDDINGS = np.eye(4, 6, dtype=np.float32)


def split_of(labels):
    images = np.arange(float(len(labels))).reshape(-1, 1, 1, 1)
    return in_memory(images, np.array(labels))


def forward(outputs):
    """Answers with given outputs; an image is the number of its example."""
    return lambda images: outputs[np.asarray(images).ravel().astype(int)]


def test_a_task_relabels_its_examples():
    task = tasks.some_classes((1, 3), EMBEDDINGS)
    part = task.of(split_of([0, 3, 1, 2, 3]))
    assert part.numbers.tolist() == [1, 2, 4]
    assert part.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(task.targets, EMBEDDINGS[[1, 3]])


def test_a_split_gives_every_label_to_one_task(key):
    made = tasks.make_tasks("split", 2, EMBEDDINGS, "minilm", key)
    owners = sum((task.classes >= 0).astype(int) for task in made)
    assert owners.tolist() == [1, 1, 1, 1]


def test_prime_and_odd_are_asked_about_every_digit(key):
    _, embeddings = load_class_embeddings("digits")
    prime, odd = tasks.make_tasks("prime_odd", 2, embeddings, "minilm", key)
    assert np.flatnonzero(prime.classes).tolist() == [2, 3, 5, 7]
    assert np.flatnonzero(odd.classes).tolist() == [1, 3, 5, 7, 9]
    assert prime.of(split_of(range(10))).labels.tolist() == prime.classes.tolist()
    names, targets = load_class_embeddings("prime")
    assert names == ("not a prime number", "a prime number")
    np.testing.assert_array_equal(prime.targets, targets)


@pytest.mark.parametrize(("name", "count"), [("prime_odd", 3), ("prime", 2)])
def test_tasks_that_there_are_not(name, count, key):
    with pytest.raises(ValueError, match="'split', or 'prime_odd' with 2 tasks"):
        tasks.make_tasks(name, count, EMBEDDINGS, "minilm", key)


def test_disjoint_tasks_are_told_apart_among_all_classes():
    made = [tasks.some_classes(classes, EMBEDDINGS) for classes in ((3, 0), (1, 2))]
    outputs = np.array(
        [
            [5.0, 0, 0, 1, 9, 0],  # 0: right
            [1, 0, 3, 2, 0, 9],  # 3: within the task only
            [0, 1, 2, 3, 0, 0],  # 1: nowhere
        ]
    )
    found = tasks.evaluate_split(forward(outputs), split_of([0, 3, 1]), made, 2)
    assert (found.joint, found.tasks) == (1 / 3, (1.0, 0.0))


def test_tasks_of_all_examples_are_answered_one_by_one():
    # Labels 0..3: task A asks whether it is 2 or more, task B whether it is odd.
    made = [
        tasks.Task(np.array([0, 0, 1, 1]), EMBEDDINGS[:2]),
        tasks.Task(np.array([0, 1, 0, 1]), EMBEDDINGS[2:]),
    ]
    outputs = np.array(
        [
            [0.0, 1, 0, 1, 0, 0],  # yes, yes: right about 3
            [1, 0, 0, 1, 0, 0],  # no, yes: about 2 both wrong
            [1, 0, 0, 1, 0, 0],  # no, yes: about 0 the second wrong
        ]
    )
    found = tasks.evaluate_split(forward(outputs), split_of([3, 2, 0]), made, 2)
    assert found.joint == pytest.approx(1 / 3)
    assert found.tasks == pytest.approx((2 / 3, 1 / 3))


def test_tasks_that_share_some_labels_are_refused():
    made = [tasks.some_classes(classes, EMBEDDINGS) for classes in ((0, 1, 2), (2, 3))]
    with pytest.raises(ValueError, match="every label once"):
        tasks.evaluate_split(forward(np.eye(6)), split_of([0]), made, 2)
