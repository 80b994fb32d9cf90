"""What the notebooks ask about an answer: plain functions that print "right" or raise a Hint.

A hint says what is wrong, never what is right.  An answer that is still the three dots is open.
"""

import math
import random
import statistics
from numbers import Real
from pathlib import Path

import numpy as np
import torch

import engine
import predict
from data.decode import Unreadable
from ranking import select as selection_of

from . import kit

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


def _numbers(answer, count):
    """The answer as a list of `count` finite floats: from a list, a tuple or an array."""
    _ask_answered(answer)
    hint = f"the answer is to be a list of {count} numbers"
    _ask(np.iterable(answer) and not isinstance(answer, str | dict | set), hint)
    answer = list(answer)
    _ask_answered(*answer)
    _ask(len(answer) == count and all(isinstance(number, Real) for number in answer), hint)
    _ask(all(map(math.isfinite, answer)), f"{hint}, and nan and infinity are none")
    return list(map(float, answer))


def _whole(number, most, what):
    """A whole number from 0 to `most`, also as a float or of NumPy; anything else is a Hint."""
    _ask_answered(number)
    fits = isinstance(number, Real) and number in range(most + 1)
    _ask(fits, f"{what} is a whole number from 0 to {most}, not {number!r}")
    return int(number)


def _near(answer, right):
    """Whether a number is right to the digits that it shows, at least one after the point.  It may
    be a difference of rounded numbers, so its last digit may be one off.
    """
    digits = min(6, max(1, len(f"{answer:.6f}".rstrip("0").partition(".")[2])))
    return abs(answer - right) <= 10**-digits * 1.001


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
    _ask_answered(answer)
    _ask(np.iterable(answer) and len(answer) == 2, "the answer is to be a pair of two classes")
    row, column = (_whole(label, len(matrix) - 1, "a class") for label in answer)
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
    mine = {}
    for label, images in answer.items():
        _ask_answered(images)
        _ask(np.iterable(images), "each class is to have a list of images, best first")
        mine[label] = [_whole(image, len(scores) - 1, "an image") for image in images]
    right, everyone = _lists(scores, p, k), _lists(scores, p, len(scores))
    _ask(mine == right or mine != _lists(scores, k, p), EXCHANGED)
    for label in sorted(classes):
        _hint_for_class(label, mine[label], right[label], everyone[label], p, k)
    print(f"right: P = {p}, K = {k}, {sum(map(len, right.values()))} rows")


EXCHANGED = "P and K are exchanged: P is classes of an image, K is images of a class"


def _lists(scores, p, k):
    """{class: its images, best first}, by ranking.select"""
    lists = {label: [] for label in range(len(scores[0]))}
    for image, label, _, _ in selection_of(scores, p, k):
        lists[label].append(image)
    return lists


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
    """Yields (what is special, scores, p, k); no more scores than one can read, 4 x 3."""
    plain = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7]]
    yield "P = 1 and K = 1", plain, 1, 1
    yield "P = 1 and K = 3, where some classes have too few candidates", plain, 1, 3
    yield "P = 2 and K = 2", plain, 2, 2
    yield "ties between images (the earlier one wins)", [[0.5, 0.3, 0.2]] * 4, 1, 2
    yield "ties between classes (the first class wins)", [[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]], 1, 2
    numbers = random.Random(0)
    for _ in range(20):
        rows = [[numbers.randrange(1, 100) / 100 for _ in range(3)] for _ in range(4)]
        yield "any scores", rows, numbers.randint(1, 3), numbers.randint(1, 4)


def ranking_hint(scores, p, k, answer):
    """What is wrong with a selection."""
    classes, images = len(scores[0]), len(scores)
    right = selection_of(scores, p, k)
    if any(not np.iterable(row) or len(row) != 4 for row in answer):
        return "the answer is to be a list of tuples (image, class, score, rank)"
    answer = _rows(answer)
    known = {
        EXCHANGED: selection_of(scores, k, p),
        "P is not used": selection_of(scores, classes, k),
        "K is not used": selection_of(scores, p, images),
        "K is for every class, not for all together": right[:k],
        "ranks begin with 1": [(*row[:3], row[3] - 1) for row in right],
        "image and class are exchanged": [(row[1], row[0], *row[2:]) for row in right],
    }
    for hint, wrong in known.items():
        if answer == _rows(wrong):
            return hint
    if sorted(answer) == sorted(_rows(right)):
        return "the rows are right, their order is not: by class, then by rank"
    if {row[:2] for row in answer} == {row[:2] for row in right}:
        return "the images are right, their scores or ranks are not (rank 1 is the highest score)"
    ours, theirs = ({row[:2] for row in rows} for rows in (right, answer))
    if extra := sorted(theirs - ours):
        return "image {} is not to be kept by class {}".format(*extra[0])
    return f"class {min(ours - theirs, key=lambda pair: pair[1])[1]} is to keep more"


def _rows(rows):
    """Rows that can be compared: whole numbers, and scores as float32 has them."""
    return [(int(row[0]), int(row[1]), round(float(row[2]), 6), int(row[3])) for row in rows]


def ranking(select):
    """select(scores, p, k), compared with ranking.select; see there."""
    for special, scores, p, k in ranking_cases():
        answer = select([list(row) for row in scores], p, k)
        _ask_answered(answer)
        _ask(np.iterable(answer), "the answer is to be a list of (image, class, score, rank)")
        answer = list(answer)
        if any(np.shape(row) != (4,) for row in answer) or _rows(answer) != _rows(
            selection_of(scores, p, k)
        ):
            table = "\n".join(f"  image {i}: {row}" for i, row in enumerate(scores))
            hint = ranking_hint(scores, p, k, answer)
            raise Hint(f"{special}, with P = {p}, K = {k} and these scores\n{table}\n{hint}")
    print("right: the same as ranking.select on 25 cases")


def patches(label, is_patch, answer):
    """answer: ten numbers, how many rows of each class are patches."""
    answer = _numbers(answer, 10)
    right = np.bincount(label[is_patch], minlength=10)
    _ask(
        not np.array_equal(answer, np.bincount(label, minlength=10)),
        "these are all rows of a class; count those that are patches",
    )
    _ask(
        sum(answer) == right.sum(),
        f"these are {sum(answer):g} patches in all, the selection has {right.sum()}",
    )
    wrong = np.flatnonzero(right != np.asarray(answer))
    _ask(not len(wrong), f"the sum is right, class {wrong[:1].tolist()} is not")
    print(f"right: {right.sum()} of {len(label)} rows are patches")


# --- exercise 3 ---------------------------------------------------------------------------------


def gains(top1, answer):
    """top1: test accuracy of teacher, student and finetuned;  answer: points of steps 3 and 4."""
    answer = _numbers(answer, 2)
    right = [top1["student"] - top1["teacher"], top1["finetuned"] - top1["student"]]
    whole = top1["finetuned"] - top1["teacher"]
    for step, mine, ours in zip((3, 4), answer, right, strict=True):
        if _near(mine, ours):
            continue
        _ask(not _near(mine, -ours), f"step {step}: the sign is the other way round")
        _ask(
            step == 3 or not _near(mine, whole),
            "step 4: compare with the student before it, not with the teacher",
        )
        raise Hint(f"step {step}: subtract what the step began with from what it ended with")
    print(f"right: step 3 gave {right[0]:+.2f} points, step 4 {right[1]:+.2f}")


def trapped(recall, answer):
    """recall: percent right (C,) of each class after each step;  answer: a class."""
    lost = recall["teacher"] - recall["student"]
    answer = _whole(answer, len(lost) - 1, "a class")
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
    mean, sd = _numbers(function(list(values)), 2)
    _ask(_near(mean, statistics.mean(values)), "the mean is wrong")
    if not _near(sd, statistics.stdev(values)):
        sample = "a sample is meant: divide by n - 1, since the mean comes from the same numbers"
        _ask(not _near(sd, statistics.pstdev(values)), sample)
        _ask(not _near(sd, statistics.variance(values)), "that is the variance; take its root")
        raise Hint("the standard deviation is wrong")
    print("right: divided by n - 1, and the root taken")


def _all_near(answer, right):
    return all(map(_near, answer, right))


def verdict(ours, rival, differences, answer):
    """ours, rival: a number a seed;  differences: ours - rival;  answer: better, worse or open."""
    differences = _numbers(differences, len(ours))
    _ask_answered(answer)
    right = np.subtract(ours, rival).tolist()
    _ask(
        _all_near(differences, right) or not _all_near(differences, np.negative(right)),
        "subtract the rival from the student, not the student from the rival",
    )
    _ask(
        _all_near(differences, right),
        "a difference is of two numbers with the same seed, one difference a seed",
    )
    _ask(answer in ("better", "worse", "open"), 'the verdict is "better", "worse" or "open"')
    mean = statistics.mean(right)
    reach = T_95[len(right)] * statistics.stdev(right) / len(right) ** 0.5
    outcome = "better" if mean > reach else "worse" if mean < -reach else "open"
    interval = f"{mean - reach:+.1f} to {mean + reach:+.1f}"
    _ask(
        answer == outcome,
        f"the interval is {interval}; does it contain 0, and on which side of 0 does it lie?",
    )
    print(f"right: {mean:+.1f} points, 95 % interval {interval}: {outcome}")


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


# --- exercise 8 ---------------------------------------------------------------------------------


def _six_steps():
    """A training of six steps on noise: images, labels, recipe's changes, and what engine.fit makes
    of them: the augmented batches, and the bits of the network after each step.
    """
    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 16, 16, 3), dtype=torch.uint8, generator=numbers)
    labels = torch.randint(10, (24,), generator=numbers)
    recipe = {"epochs": 2, "passes": 1, "batch_size": 8}
    state, augment = kit.beginning(images, **recipe)
    mixed = []

    def noted(images, labels):
        mixed.append(augment(images, labels))
        return mixed[-1]

    bits = [_bits(state) for _ in engine.fit(state, images, labels, noted)]
    return images, labels, recipe, mixed, bits


def _bits(state):
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def _same(before, after):
    """The names of the tensors that have the same bits."""
    return {name for name in before if torch.equal(before[name], after[name])}


def batch(function):
    """function(model, optimizer, augment, images, labels, rate): a step, with engine.fit's bits."""
    images, labels, recipe, mixed, bits = _six_steps()
    state, _ = kit.beginning(images, **recipe)
    learnt, before, calls = {name for name, _ in state.model.named_parameters()}, _bits(state), []

    def replayed(images, labels):
        _ask(images.dtype == torch.uint8, "`augment` takes the images as they came, uint8")
        _ask(len(calls) < number, "`augment` is to be called once a step, not again")
        calls.append(number)
        return mixed[number - 1]

    def step(model, *others):
        model.eval()  # as whoever looked at the last step may have left it
        function(model, *others)

    number = 1
    for _ in kit.steps_of(state, replayed, images, labels, step):
        now, rate = _bits(state), engine.learning_rate(state.recipe, number - 1, len(bits))
        stayed, rate_there = _same(now, before), state.optimizer.param_groups[0]["lr"]
        _ask(calls or len(stayed) < len(now), "the task is open; nothing in the model has changed")
        _ask(len(calls) == number, "`augment` is to be called once a step, on the whole batch")
        _ask(not learnt <= stayed, "no weight has moved; who calls `optimizer.step()`?")
        _ask(
            stayed <= learnt, "batch norm has not looked at the batch: `model.train()` comes first"
        )
        _ask(
            rate_there == rate,
            f"the optimizer's rate is {rate_there:g} in step {number}, not {rate:g}",
        )
        right = len(_same(now, bits[number - 1])) == len(now)
        _ask(right or number > 1, "the first step ends with other bits; which loss, which targets?")
        _ask(right, f"step {number} is the first with other bits; is a gradient from before there?")
        number += 1
    print(f"right: the bits of engine.fit after each of {len(bits)} steps")


def changed(function, rows, test):
    """As `batch`, with other bits than engine.fit's; a student is trained with it.

    rows, test: Kept and Tested, see kit.own_student
    """
    images, labels, recipe, mixed, bits = _six_steps()
    state, augment = kit.beginning(images, **recipe)
    before, replay = _bits(state), iter(mixed)

    def replayed(images, labels):
        return next(replay, None) or augment(images, labels)

    replayed.normalise = augment.normalise
    for _ in kit.steps_of(state, replayed, images, labels, function):
        pass
    weights = {name for name, _ in state.model.named_parameters()}
    _ask(not weights <= _same(_bits(state), before), "the task is open; no weight has moved")
    _ask(not weights <= _same(_bits(state), bits[-1]), "these are engine.fit's bits; change a line")
    print(f"right: it is another step; its student: {kit.own_student(function, rows, test):.2f} %")
