"""Accuracies, computed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import zipjax

LOGITS = np.array(
    [
        # label, joint prediction, prediction within the label's task
        [3.0, 1, 2, 0],  # 0, 0, 0
        [1, 2, 5, 0],  # 1, 2, 1
        [0, 0.5, 1, 2],  # 2, 3, 3
        [9, 0, 1, 2],  # 3, 0, 3
        [0, 1, 3, 2],  # 2, 2, 2
    ]
)
LABELS = np.array([0, 1, 2, 3, 2])


def evaluate(outputs, labels, tasks, **options):
    """Evaluates given outputs, in two batches."""
    several = isinstance(outputs, list)

    def forward(rows):
        return [head[rows] for head in outputs] if several else outputs[rows]

    cut = len(labels) // 2
    rows = np.arange(len(labels))
    batches = [(rows[:cut], labels[:cut]), (rows[cut:], labels[cut:])]
    return zipjax.evaluate(forward, iter(batches), tasks=tasks, **options)


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_logits_of_all_classes(asarray):
    found = evaluate(asarray(LOGITS), asarray(LABELS), [[0, 1], [2, 3]])
    assert found == zipjax.Evaluation(2 / 5, (1.0, 2 / 3), 5)
    assert found.average == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("tasks", "accuracies"),
    [([[2, 3], [0, 1]], (2 / 3, 1.0)), ([[3, 0], [1, 2]], (1 / 2, 2 / 3))],
)
def test_classes_of_a_task_in_any_order(tasks, accuracies):
    # Among 3 and 0, labels 0 and 3 give 0 and 0; among 1 and 2, labels 1, 2, 2 give 2.
    found = evaluate(LOGITS, LABELS, tasks)
    assert found.joint == 2 / 5
    assert found.tasks == pytest.approx(accuracies)


def test_classes_that_belong_to_no_task_are_not_predicted():
    # Without class 0 the joint predictions are 2, 3, 3, 2.
    found = evaluate(LOGITS[1:], LABELS[1:], [[1], [3, 2]])
    assert found == zipjax.Evaluation(2 / 4, (1.0, 2 / 3), 4)


def test_heads_are_compared_by_their_softmax():
    # Head B's logits are larger; its probabilities are not, but in the third row:
    # .73 against .52, twice; .73 against .9999; .993 against .982.
    head_a = np.array([[0.0, 1], [0, 1], [0, 1], [5, 0]])
    head_b = np.array([[10.0, 10.1], [10, 10.1], [10, 19], [100, 104]])
    labels = np.array([1, 1, 1, 3])
    found = evaluate([head_a, head_b], labels, [[0, 1], [2, 3]])
    assert found == zipjax.Evaluation(2 / 4, (1.0, 1.0), 4)


@pytest.mark.parametrize("wide", [False, True], ids=["own classes", "all classes"])
def test_heads_give_their_own_classes_or_all(wide):
    own = [np.array([[0.0, 4], [3, 0]]), np.array([[0.0, 1], [0, 7]])]
    tasks = [[2, 0], [1, 3]]
    outputs = own
    if wide:
        # The other columns are large, and not theirs.
        outputs = [np.full((2, 4), 99.0) for _ in tasks]
        for output, head, task in zip(outputs, own, tasks, strict=True):
            output[:, task] = head
    # Row 0: class 0 with .98 against 3 with .73; row 1: 2 with .95 against 3, .999.
    found = evaluate(outputs, np.array([0, 3]), tasks)
    assert found == zipjax.Evaluation(1.0, (1.0, 1.0), 2)


def test_softmax_of_large_logits_is_finite():
    outputs = [np.array([[1e4, 0.0]]), np.array([[-1e4, 1e4 - 3.0]])]
    with pytest.raises(ValueError, match=r"\[1, 0\] examples"):
        evaluate(outputs, np.array([0]), [[0, 1], [2, 3]])
    doubled = [np.concatenate([x, x[:, ::-1]]) for x in outputs]
    found = evaluate(doubled, np.array([0, 2]), [[0, 1], [2, 3]])
    # Both rows tie at 1 - 0: the first task's class wins.
    assert found == zipjax.Evaluation(1 / 2, (1.0, 1.0), 2)


ANGLES = np.deg2rad([0, 90, 180, 270])
TEXTS = 7 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


def direction(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_the_class_with_the_largest_cosine_wins():
    # Nearest class: 0, 1, 3, 0; within their tasks: 0, 1, 3, 3.
    outputs = direction(10, 80, 260, 340) * [[0.01], [50.0], [1.0], [3.0]]
    labels = np.array([0, 1, 2, 3])
    found = evaluate(outputs, labels, [[0, 1], [2, 3]], class_embeddings=TEXTS)
    assert found == zipjax.Evaluation(2 / 4, (1.0, 1 / 2), 4)


def test_lengths_of_outputs_and_embeddings_do_not_matter():
    outputs = direction(40, 50, 130, 140, 220)
    labels = np.array([0, 1, 1, 2, 2])
    tasks = [[0, 1], [2, 3]]
    plain = evaluate(outputs, labels, tasks, class_embeddings=TEXTS)
    scaled = evaluate(
        outputs * [[1e-3], [1], [9], [1e3], [2]],
        labels,
        tasks,
        class_embeddings=TEXTS * [[1], [10], [100], [0.1]],
    )
    assert plain == scaled
    assert plain.joint == 1


def test_heads_of_embeddings_are_compared_at_scale_100():
    # Cosines of head A: (.1, 0, 0); of head B: (.51, .49). At scale 100 A's softmax is
    # .9999 and B's .88; at scale 1 they would be .36 and .505.
    head_a = np.array([0.1, 0, 0, 0, np.sqrt(0.99)])
    head_b = np.array([np.sqrt(0.4998), 0, 0, 0.51, 0.49])
    heads = [np.stack([head] * 3) for head in (head_a, head_b)]
    labels, tasks = np.array([0, 0, 3]), [[0, 1, 2], [3, 4]]
    found = evaluate(heads, labels, tasks, class_embeddings=np.eye(5))
    assert found == zipjax.Evaluation(2 / 3, (1.0, 1.0), 3)


def test_an_output_of_zeros_is_no_nan():
    outputs = np.concatenate([np.zeros((1, 2)), direction(90)])
    found = evaluate(outputs, np.array([0, 1]), [[0], [1]], class_embeddings=TEXTS)
    assert found == zipjax.Evaluation(1.0, (1.0, 1.0), 2)


TASKS = [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("outputs", "labels", "tasks", "options", "message"),
    [
        (LOGITS, LABELS, [[0, 1], [1, 2, 3]], {}, r"classes \[1\] twice"),
        (LOGITS, LABELS, [[0, 1, 1], [2, 3]], {}, r"classes \[1\] twice"),
        (
            LOGITS,
            np.array([0, 1, 2, 3, 7]),
            TASKS,
            {},
            r"labels \[7\] .*\[0, 1, 2, 3\]",
        ),
        (LOGITS, LABELS, [[0, 1], [2]], {}, r"labels \[3\] belong to none"),
        (LOGITS[:2], LABELS[:2], TASKS, {}, r"\[2, 0\] examples"),
        (LOGITS[:0], LABELS[:0], TASKS, {}, r"\[0, 0\] examples"),
        ([LOGITS] * 3, LABELS, TASKS, {}, "3 heads for 2 tasks"),
        (LOGITS[:, :3], LABELS, TASKS, {}, r"shape \[2, 3\] are not logits"),
        (LOGITS, LABELS, TASKS, {"class_embeddings": TEXTS}, "not in one space"),
        (
            LOGITS,
            LABELS,
            TASKS,
            {"class_embeddings": np.full((4, 4), np.nan)},
            r"ndarray float64\[4, 4\], which are no finite vectors",
        ),
        (
            LOGITS,
            LABELS,
            TASKS,
            {"class_embeddings": np.eye(3, 4)},
            r"classes \[3\] outside of 0..2",
        ),
        (LOGITS, LABELS, [[0, 1], [2, 2.5]], {}, "as whole numbers from 0"),
        (LOGITS, LABELS, [[0, 1], [2, -3]], {}, "as whole numbers from 0"),
        (LOGITS, LABELS, [[0, 1], []], {}, "give every task some classes"),
        (LOGITS * 1j, LABELS, TASKS, {}, r"ndarray complex128.*of real numbers"),
    ],
    ids=[
        "overlap",
        "twice",
        "unknown label",
        "left out",
        "no examples",
        "no batches",
        "heads",
        "logits",
        "space",
        "embeddings of NaN",
        "few embeddings",
        "no whole class",
        "negative class",
        "no class",
        "complex outputs",
    ],
)
def test_bad_input(outputs, labels, tasks, options, message, untyped):
    with pytest.raises(ValueError, match=message):
        evaluate(outputs, labels, tasks, **options)


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (np.where(LOGITS == 9, np.nan, LOGITS), LABELS, "1 of 3 examples are NaN"),
        (
            [LOGITS, np.where(LOGITS == 1, -np.inf, LOGITS)],
            LABELS,
            "examples are NaN or infinite",
        ),
        (LOGITS, LABELS + 0.5, r"float64\[2\], such as \[0.5, 1.5\]: .* whole"),
        (LOGITS, LABELS + np.nan, "whole numbers"),
        (LOGITS, LABELS.astype(str), "whole numbers"),
        (LOGITS, LABELS[:, None], r"int64\[2, 1\].*\[batch\]"),
        (LOGITS, LABELS - 7, r"labels \[-7, -6\] belong to none"),
    ],
)
def test_what_cannot_be_scored(outputs, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate(outputs, labels, [[0, 1], [2, 3]])


def test_every_example_has_a_label():
    with pytest.raises(ValueError, match=r"labels of 1 examples.* shape \[5, 4\]"):
        zipjax.evaluate(lambda x: x, [(LOGITS, LABELS[:1])], tasks=[[0, 1], [2, 3]])


def test_no_batches():
    with pytest.raises(ValueError, match=r"\[0, 0\] examples"):
        zipjax.evaluate(lambda x: x, [], tasks=TASKS)


def evaluate_tasks(outputs, labels, **options):
    """Evaluates given outputs for tasks that share their examples, in two batches."""
    several = isinstance(outputs, list)

    def forward(rows):
        return [head[rows] for head in outputs] if several else outputs[rows]

    rows = np.arange(len(labels))
    batches = [(rows[:3], labels[:3]), (rows[3:], labels[3:])]
    return zipjax.evaluate_tasks(forward, iter(batches), **options)


# What each of four examples is, by two tasks: of two classes and of three.
SHARED_LABELS = np.array([[0, 2], [1, 0], [1, 1], [0, 0]])


def test_tasks_that_share_their_examples_with_a_head_each():
    first = np.array([[5.0, 1], [0, 1], [1, 0], [2, 1]])  # 0, 1, 0, 0: the third wrong
    second = np.array([[0.0, 1, 2], [0, 9, 0], [3, 4, 0], [1, 0, 0]])  # 2, 1, 1, 0
    found = evaluate_tasks([first, second], SHARED_LABELS)
    assert found == zipjax.Evaluation(2 / 4, (3 / 4, 3 / 4), 4)


def test_tasks_that_share_one_output_are_told_apart_by_their_embeddings():
    embeddings = [np.eye(5)[:2] * 7, np.eye(5)[2:] * 0.1]  # lengths do not count
    output = np.array(
        [
            [2.0, 1, 0, 0, 9],  # 0, 2
            [1, 2, 1, 0, 0],  # 1, 0
            [1, 2, 0, 0, 5],  # 1, 2: the second is wrong
            [1, 2, 0, 5, 0],  # 1, 1: both are wrong
        ]
    )
    found = evaluate_tasks(output, SHARED_LABELS, class_embeddings=embeddings)
    assert found == zipjax.Evaluation(2 / 4, (3 / 4, 2 / 4), 4)
    heads = [output, output[[1, 0, 2, 3]]]
    swapped = evaluate_tasks(heads, SHARED_LABELS, class_embeddings=embeddings)
    assert swapped == zipjax.Evaluation(0.0, (3 / 4, 0.0), 4)


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (np.eye(4), {}, "labels of 2 tasks, but 1 outputs, and"),
        ([np.eye(4)], {}, "1 outputs"),
        (np.eye(4), {"class_embeddings": [np.eye(4)]}, "embeddings of 1"),
        (np.eye(4), {"class_embeddings": [np.eye(3)] * 2}, "not in one space"),
        (
            np.eye(4),
            {"class_embeddings": [np.eye(4), np.full((4, 4), np.inf)]},
            r"class_embeddings\[1\] .*no finite vectors",
        ),
    ],
)
def test_shared_tasks_that_do_not_fit_the_outputs(outputs, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_tasks(outputs, SHARED_LABELS, **options)


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (np.full((4, 3), np.nan), SHARED_LABELS, "NaN or infinite"),
        (np.eye(4, 3), SHARED_LABELS + 3, r"labels \[3, 4\] belong to none"),
        (np.eye(4, 3), SHARED_LABELS / 2, "whole numbers"),
        (np.eye(4, 3), SHARED_LABELS[:, 0], r"\[batch, tasks\]"),
    ],
)
def test_shared_tasks_that_cannot_be_scored(outputs, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate_tasks([outputs, outputs], labels)


def test_shared_tasks_need_examples():
    with pytest.raises(ValueError, match="no examples"):
        zipjax.evaluate_tasks(np.asarray, [])


@pytest.mark.parametrize(
    ("loss", "parent", "estimator", "expected"),
    [
        (0.2, 0.2, 1.0, 1.0),
        (1.0, 0.2, 1.0, 0.0),
        (0.4, 0.2, 1.0, 0.75),
        (0.0, 0.2, 1.0, 1.25),
        (1.4, 0.2, 1.0, -0.5),
        (70.0, 90.0, 10.0, 0.75),  # Of a metric that grows, the scale is the same.
    ],
)
def test_a_loss_between_the_parents_and_the_means(
    loss, parent, estimator, expected, untyped
):
    found = zipjax.scaled_performance(loss, parent, estimator)
    assert found == pytest.approx(expected)
    scalars = (np.float32(loss), jnp.float32(parent), estimator)
    assert zipjax.scaled_performance(*scalars) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ((0.5, 0.3, 0.3), "parent_loss = estimator_loss = 0.3"),
        ((np.nan, 0.3, 0.4), "loss is .*nan: pass a finite number"),
        ((0.5, np.inf, 0.4), "parent_loss is .*inf"),
        ((0.5, 0.3, -np.inf), "estimator_loss is .*-inf"),
        (([0.5], 0.3, 0.4), r"loss is the list \[0.5\]"),
        (("0.5", 0.3, 0.4), "loss is the str '0.5'"),
    ],
)
def test_losses_without_a_scale(losses, message, untyped):
    with pytest.raises(ValueError, match=message):
        zipjax.scaled_performance(*losses)
