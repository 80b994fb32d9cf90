"""What the notebooks ask about an answer: plain functions that print "right" or raise a Hint.

A hint says what is wrong, never what is right.  An answer that is still the three dots is open.
"""

import random
import statistics
from numbers import Real
from pathlib import Path

import numpy as np

import predict
from data.decode import Unreadable
from ranking import select as selection_of

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t, two-sided, by the number of seeds


class Hint(AssertionError):
    """What is wrong with an answer.  A notebook shows it as one line, without a traceback."""

    def _render_traceback_(self):
        return [f"Not yet: {self}"]


def _ask(condition, hint):
    if not condition:
        raise Hint(hint)


def _ask_answered(*answers):
    _ask(
        not any(answer is None or answer is ... for answer in answers),
        "the task is open; replace the three dots by your answer (a function needs a return)",
    )


def _ask_numbers(answer, count):
    _ask_answered(answer)
    _ask(
        isinstance(answer, list | tuple | np.ndarray)
        and len(answer) == count
        and all(isinstance(number, Real) for number in answer),
        f"the answer is to be a list of {count} numbers",
    )


# --- exercise 0 ---------------------------------------------------------------------------------


def axes(to_network):
    """to_network: uint8 (H,W,3) -> uint8 (3,H,W), no pixel moved."""
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    answer = to_network(image.copy())
    _ask_answered(answer)
    answer, right = np.asarray(answer), image.transpose(2, 0, 1)
    known = (
        (image.transpose(2, 1, 0), "height and width are exchanged: the picture lies on its side"),
        (image.reshape(3, 4, 5), "reshape keeps the order in memory and cuts it anew; it moves no "
         "axis.  The first 20 numbers are not the red of 20 pixels"),
        (right[::-1], "red and blue are exchanged"),
    )  # fmt: skip
    for wrong, hint in known:
        _ask(not np.array_equal(answer, wrong), hint)
    _ask(answer.shape == right.shape, f"a (4, 5, 3) image becomes {answer.shape}, not (3, 4, 5)")
    _ask(np.array_equal(answer, right), "the shape is right, but pixels are not where they were")
    print("right: every pixel has kept its place and its colour")


# --- exercise 1 ---------------------------------------------------------------------------------


def mistake(matrix, answer):
    """matrix: int (C,C), rows true;  answer: (true, said), the largest entry off the diagonal."""
    _ask_numbers(answer, 2)
    row, column = map(int, answer)
    _ask(
        {row, column} <= set(range(len(matrix))),
        f"classes are whole numbers from 0 to {len(matrix) - 1}",
    )
    _ask(row != column, "that is on the diagonal, where the teacher is right")
    most = (matrix - np.diag(matrix.diagonal())).max()
    _ask(
        matrix[column, row] < most or matrix[row, column] == most,
        "these two, but the other way round: rows are the truth, columns what the teacher says",
    )
    _ask(
        matrix[row, column] == most,
        f"that happens {matrix[row, column]} times; another mistake happens more often",
    )
    print(f"right: {most} images of class {row} are taken for a {column}")


# --- exercise 2 ---------------------------------------------------------------------------------


def by_hand(scores, p, k, answer):
    """answer: {class: its images, best first}"""
    _ask_answered(answer)
    classes = set(range(len(scores[0])))
    _ask(
        isinstance(answer, dict) and answer.keys() == classes,
        f"the answer is to be a dict with the classes {sorted(classes)} as keys",
    )
    for images in answer.values():
        _ask_answered(images)
        _ask(isinstance(images, list | tuple), "each class is to have a list of images, best first")
        _ask_answered(*images)
    right = {label: [] for label in classes}
    for image, label, _, _ in selection_of(scores, p, k):
        right[label].append(image)
    everyone = {label: [] for label in classes}  # all candidates
    for image, label, _, _ in selection_of(scores, p, len(scores)):
        everyone[label].append(image)
    for label in sorted(classes):
        _hint_for_class(label, list(answer[label]), right[label], everyone[label], p, k)
    print(f"right: P = {p}, K = {k}, {sum(map(len, right.values()))} rows")


def _hint_for_class(label, answer, right, everyone, p, k):
    who = f"class {label}"
    for image in answer:
        _ask(
            image in everyone,
            f"{who}: image {image} is no candidate, since {who} is not among its {p} best",
        )
    _ask(len(set(answer)) == len(answer), f"{who} has an image twice")
    _ask(len(answer) <= k, f"{who} keeps {len(answer)} images, K is {k}")
    _ask(len(answer) == len(right), f"{who} could keep more: go through the rows once again")
    _ask(
        set(answer) == set(right),
        f"{who}: a candidate with a higher score, or an earlier one with the same, is left out",
    )
    _ask(answer == right, f"{who} has the right images; the best comes first")


def ranking_cases():
    """Yields (what is special, scores, p, k)."""
    plain = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7], [0.3, 0.6, 0.1]]
    yield "P = 1 and K = 1", plain, 1, 1
    yield "P = 1 and K = 3, where some classes have too few candidates", plain, 1, 3
    yield "P = 2 and K = 2", plain, 2, 2
    yield "ties between images (the earlier one wins)", [[0.5, 0.3, 0.2]] * 4, 1, 2
    yield "ties between classes (the first class wins)", [[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]], 1, 2
    numbers = random.Random(0)
    for _ in range(20):
        rows = [[numbers.random() for _ in range(5)] for _ in range(12)]
        yield "random scores", rows, numbers.randint(1, 5), numbers.randint(1, 6)


def ranking_hint(scores, p, k, answer):
    """What is wrong with a selection."""
    classes, images = len(scores[0]), len(scores)
    right = selection_of(scores, p, k)
    if not isinstance(answer, list) or not all(
        isinstance(row, tuple) and len(row) == 4 for row in answer
    ):
        return "the answer is to be a list of tuples (image, class, score, rank)"
    known = {
        "P is not used": selection_of(scores, classes, k),
        "K is not used": selection_of(scores, p, images),
        "K is for every class, not for all together": right[:k],
        "ranks begin with 1": [(*row[:3], row[3] - 1) for row in right],
        "image and class are exchanged": [(row[1], row[0], *row[2:]) for row in right],
    }
    for hint, wrong in known.items():
        if answer == wrong:
            return hint
    if sorted(answer) == sorted(right):
        return "the rows are right, their order is not: by class, then by rank"
    if {row[:2] for row in answer} == {row[:2] for row in right}:
        return "the images are right, their scores or ranks are not (rank 1 is the highest score)"
    ours, theirs = ({row[:2] for row in rows} for rows in (right, answer))
    if extra := sorted(theirs - ours):
        return "image {} is not to be kept by class {}".format(*extra[0])
    return f"class {min(ours - theirs, key=lambda pair: pair[1])[1]} is to keep more"


def ranking(select):
    """select(scores, p, k), compared with ranking.select; see there."""
    for special, scores, p, k in ranking_cases():
        answer = select([list(row) for row in scores], p, k)
        _ask_answered(answer)
        if answer != selection_of(scores, p, k):
            raise Hint(f"{special}: {ranking_hint(scores, p, k, answer)}\n  scores = {scores}")
    print("right: the same as ranking.select on 25 cases")


def patches(label, is_patch, answer):
    """answer: ten numbers, how many rows of each class are patches."""
    _ask_numbers(answer, 10)
    right = np.bincount(label[is_patch], minlength=10)
    _ask(
        not np.array_equal(answer, np.bincount(label, minlength=10)),
        "these are all rows of a class; count those that are patches",
    )
    _ask(
        sum(answer) == right.sum(),
        f"these are {sum(answer)} patches in all, the selection has {right.sum()}",
    )
    wrong = np.flatnonzero(right != np.asarray(answer))
    _ask(not len(wrong), f"the sum is right, class {wrong[:1]} is not")
    print(f"right: {right.sum()} of {len(label)} rows are patches")


# --- exercise 3 ---------------------------------------------------------------------------------


def gains(top1, answer):
    """top1: test accuracy of teacher, student and finetuned;  answer: points of steps 3 and 4."""
    _ask_numbers(answer, 2)
    right = [top1["student"] - top1["teacher"], top1["finetuned"] - top1["student"]]
    whole = top1["finetuned"] - top1["teacher"]
    for step, mine, ours in zip((3, 4), answer, right, strict=True):
        if abs(mine - ours) < 0.06:
            continue
        _ask(abs(mine + ours) >= 0.06, f"step {step}: the sign is the other way round")
        _ask(
            abs(mine - whole) >= 0.06 or step == 3,
            "step 4: compare with the student before it, not with the teacher",
        )
        raise Hint(f"step {step}: subtract what the step began with from what it ended with")
    print(f"right: step 3 gave {right[0]:+.2f} points, step 4 {right[1]:+.2f}")


def trapped(recall, answer):
    """recall: percent right (C,) of each class after each step;  answer: a class."""
    _ask_answered(answer)
    lost = recall["teacher"] - recall["student"]
    _ask(answer in range(len(lost)), f"a class is a whole number from 0 to {len(lost) - 1}")
    lowest = recall["student"].min()
    _ask(
        lost[answer] == lost.max() or recall["student"][answer] > lowest,
        "the student is worst at that class, but the teacher was bad at it, too: compare both",
    )
    _ask(
        lost[answer] == lost.max(),
        f"class {answer} lost {lost[answer]:.1f} points; another one lost more",
    )
    print(f"right: class {answer} lost {lost.max():.1f} points")


# --- exercise 4 ---------------------------------------------------------------------------------


def mean_and_sd(function):
    """function(values) -> (mean, standard deviation of a sample)"""
    values = [90.0, 93.0, 94.5]
    answer = function(list(values))
    _ask_numbers(answer, 2)
    mean, sd = answer
    _ask(abs(mean - statistics.mean(values)) < 1e-6, "the mean is wrong")
    _ask(
        abs(sd - statistics.pstdev(values)) > 1e-6,
        "a sample is meant: divide by n - 1, since the mean comes from the same numbers",
    )
    _ask(abs(sd - statistics.variance(values)) > 1e-6, "that is the variance; take its root")
    _ask(abs(sd - statistics.stdev(values)) < 1e-6, "the standard deviation is wrong")
    print("right: divided by n - 1, and the root taken")


def verdict(ours, rival, differences, answer):
    """ours, rival: a number a seed;  differences: ours - rival;  answer: better, worse or open."""
    _ask_numbers(differences, len(ours))
    _ask_answered(answer)
    right = np.subtract(ours, rival)
    _ask(
        not np.allclose(differences, -right, atol=0.06) or np.allclose(right, 0),
        "subtract the rival from the student, not the student from the rival",
    )
    _ask(
        np.allclose(differences, right, atol=0.06),
        "a difference is of two numbers with the same seed, one difference a seed",
    )
    _ask(answer in ("better", "worse", "open"), 'the verdict is "better", "worse" or "open"')
    mean = statistics.mean(right)
    reach = T_95[len(right)] * statistics.stdev(right) / len(right) ** 0.5
    found = "better" if mean > reach else "worse" if mean < -reach else "open"
    interval = f"{mean - reach:+.1f} to {mean + reach:+.1f}"
    _ask(
        answer == found,
        f"the interval is {interval}; does it contain 0, and on which side of 0 does it lie?",
    )
    print(f"right: {mean:+.1f} points, 95 % interval {interval}: {found}")


# --- exercise 5 ---------------------------------------------------------------------------------


def photos(folder):
    """The folder holds at least three readable images, named after what they show."""
    paths = [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
    _ask(paths, f"the task is open; {Path(folder).resolve()} is empty")
    for path in paths:
        try:
            predict.square(path.read_bytes(), 8)
        except (OSError, Unreadable) as error:
            raise Hint(f"{path.name} is no image that can be read: {error}") from None
        digit = path.stem[:1].isdigit()
        _ask(
            digit or path.stem.startswith("no"),
            f'{path.name}: a name begins with the digit that the image shows, or with "no"',
        )
    _ask(len(paths) >= 3, f"that is {len(paths)} of at least three images")
    print(f"right: {len(paths)} images")
