"""What the figures show, read from their parts: bars, texts, pictures, frames."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex

from report import figures
from report.figures import BLUE, GREEN, GREY, ORANGE, PALE, RED, SKY

UNKNOWN = [[None] * 2, [], [None] * 3]  # of the images of `best`
RIGHT, WRONG = "\N{CHECK MARK}", "\N{BALLOT X}"


def axes_of(figure):
    return figure.axes[0]


def texts_of(axes):
    """{(x, y): text} of what is written into the axes."""
    return {text.get_position(): text.get_text() for text in axes.texts if text.get_text()}


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --- charts -------------------------------------------------------------------------------------


@pytest.fixture
def confusion():
    """Three classes: 40 of 2,000 wrong; none at all; 1 of 3 wrong."""
    matrix = [[1960, 0, 40], [0, 0, 0], [1, 0, 2]]
    return axes_of(figures.confusion_matrix(matrix, ["ant", "bee", "a class of a long name"]))


def test_the_confusion_matrix_is_in_percent_of_the_true_class(confusion):
    shown = np.ma.filled(confusion.images[0].get_array(), np.nan)
    # Right is above zero, which is green, wrong below it, which is red.
    expected = [[98, 0, -2], [np.nan] * 3, [-100 / 3, 0, 200 / 3]]
    np.testing.assert_allclose(shown, expected)


def test_the_confusion_matrix_has_its_numbers_written_in(confusion):
    expected = {(0, 0): "98 %\n1,960", (2, 0): "2.0 %\n40"}  # x, y: column, row
    expected |= {(0, 2): "33 %\n1", (2, 2): "67 %\n2"}
    assert texts_of(confusion) == expected
    assert confusion.get_title() == "Confusion matrix of 2,003 images, 97.95 % on the diagonal"
    names = ["ant", "bee", "a class of a lo…"]
    for axis in (confusion.xaxis, confusion.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == names
    assert (confusion.get_xlabel(), confusion.get_ylabel()) == ("predicted class", "true class")


def test_a_class_of_one_image_is_no_grey_row():
    axes = axes_of(figures.confusion_matrix([[0, 1], [0, 0]], ["a", "b"]))
    assert np.isnan(np.ma.filled(axes.images[0].get_array(), np.nan)).tolist() == [
        [False, False],
        [True, True],
    ]


def test_many_classes_have_every_second_name_and_no_numbers():
    axes = axes_of(figures.confusion_matrix(np.eye(150), [f"n{i}" for i in range(150)]))
    assert axes.xaxis.get_ticklocs().tolist() == list(range(0, 150, 2))
    assert axes.yaxis.get_ticklabels()[-1].get_text() == "n148"
    assert texts_of(axes) == {}


@pytest.mark.parametrize(("names", "rotation"), [("abc", 0), (["automobile", "b", "c"], 90)])
def test_names_stand_upright_where_they_fit(names, rotation):
    axes = axes_of(figures.confusion_matrix(np.eye(3), names))
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {rotation}


def test_bars_stack_right_wrong_and_no_class_of_each_class():
    figure = figures.kept_per_class([[50, 2, 8, 0], [12, 0, 0, 0], [0, 0, 0, 60]], "abc", 60)
    axes = axes_of(figure)
    bars = [
        (round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width(),
         to_hex(bar.get_facecolor()).upper())
        for bar in axes.patches if bar.get_width()
    ]  # fmt: skip
    assert sorted(bars) == [
        (0, 0, 50, GREEN), (0, 50, 2, RED), (0, 52, 8, GREY), (1, 0, 12, GREEN), (2, 0, 60, PALE),
    ]  # fmt: skip
    assert list(axes.lines[0].get_xdata()) == [60, 60]
    legend = {"right: 62", "wrong: 2", "of no class: 8", "nothing known: 60", "K = 60"}
    assert set(legend_of(figure)) == legend
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first class on top


def test_a_class_lost_on_the_way_is_a_long_bar_with_a_mark_a_network():
    right = {"teacher": np.array([90, 95.0]), "student": np.array([10, np.nan])}
    axes = axes_of(figures.accuracy_by_class(right | {"finetuned": np.array([92, 96.0])}, "ab"))
    (bar, _) = axes.collections[0].get_segments()
    assert bar[:, 0].tolist() == [10, 92] and axes.get_xlim()[0] == 0
    marks = {line.get_label(): (line.get_color(), list(line.get_xdata())) for line in axes.lines}
    assert marks["teacher"] == (ORANGE, [90, 95])
    assert marks["student, pre-trained"][0] == SKY and marks["student, fine-tuned"][0] == BLUE


def test_dots_have_intervals_and_each_seed():
    rows = [("teacher", [("teacher", 90, 88, 92, [90])])]
    rows += [("rival", [("rival", 93, 91, 95, [92, 94])])]
    axes = axes_of(figures.accuracies(rows))
    lines = [list(line.get_xdata()) for line in axes.lines]
    assert lines == [[88, 92], [90], [91, 95], [93], [92, 94]]
    assert list(texts_of(axes).values()) == ["90.00 %", "93.00 %"]


def test_the_steps_follow_each_other_on_one_axis():
    curves = {"teacher": ([10, 20], [50, 60]), "student": ([30], [70])}
    figure = figures.learning_curves([curves, {"teacher": ([10], [40])}])
    assert [list(line.get_xdata()) for line in axes_of(figure).lines] == [[10, 20], [30], [10]]
    assert legend_of(figure) == ["teacher", "student, pre-trained"]


@pytest.mark.parametrize("name", ["$x", "a$^$", "\\$", "$\\frac{$"])
def test_a_dollar_in_a_name_is_drawn_as_it_is(name):
    picture = plain(1)
    drawn = [
        figures.kept_per_class([[1, 0, 0, 0]], [name], 1),
        figures.confusion_matrix([[1]], [name]),
        figures.image_batch(picture, [name], name),
        figures.best_images([picture], [[0.5]], [[True]], [name], name),
        figures.accuracies([(name, [("teacher", 50, 40, 60, [50])])]),
    ]
    for figure in drawn:
        figure.canvas.draw()  # a formula that cannot be read raises ValueError


def test_accuracy_by_rank_is_the_share_of_right_labels_with_its_interval():
    rank = np.repeat([1, 2, 4], 10)  # K = 4: a bin a rank, and none of rank 3
    correct = np.array([True] * 10 + [True] * 5 + [False] * 5 + [False] * 9 + [True])
    figure = figures.accuracy_by_rank(rank, correct, 4)
    axes = axes_of(figure)
    points, mean = axes.lines[0].get_xydata(), axes.lines[-1].get_ydata()
    np.testing.assert_allclose(points, [(1, 1), (2, 0.5), (4, 0.1)])
    across, upright = (bars.get_segments() for bars in axes.collections)
    reach = [[0.7225, 1], [0.2366, 0.7634], [0.0179, 0.4042]]  # Wilson's, of 10, 5 and 1 of 10
    np.testing.assert_allclose([bar[:, 1] for bar in upright], reach, atol=5e-5)
    np.testing.assert_allclose([bar[:, 0] for bar in across], [(0.5, 1.5), (1.5, 2.5), (3.5, 4.5)])
    assert list(mean) == [16 / 30] * 2 and "all: 53.3 %" in legend_of(figure)
    assert axes.get_title() == "Pseudo-label accuracy by rank, 30 selected images"


def test_ranks_share_twenty_bins():
    rank = np.arange(1, 1001)
    axes = axes_of(figures.accuracy_by_rank(rank, rank <= 75, 1000))
    points = axes.lines[0].get_xydata()
    np.testing.assert_allclose(points[:, 0], np.arange(25.5, 1000, 50))  # the middle of 1 to 50 ...
    np.testing.assert_allclose(points[:, 1], [1, 0.5] + [0] * 18)


def bars_of(polygon):
    """The heights of a step histogram in its 50 bins."""
    path = polygon.get_xy()
    middles = (np.arange(50) + 0.5) / 50
    over = [
        (min(a[0], b[0]), max(a[0], b[0]), a[1])
        for a, b in itertools.pairwise(path)
        if a[1] == b[1]
    ]
    return [max(y for left, right, y in over if left < x < right) for x in middles]


def test_the_histogram_counts_the_pool_and_the_selection():
    counts = np.zeros(200, int)
    counts[[0, 3, 4, 103, 199]] = [5, 2, 30, 7, 1]  # bins of 1/200: four of them make one of 1/50
    selected = np.array([0.001, 0.5, 0.51, 0.99, 1.0], np.float32)
    figure = figures.score_histogram(counts, selected)
    pool, kept = (bars_of(patch) for patch in axes_of(figure).patches)
    expected = np.zeros(50)
    expected[[0, 1, 25, 49]] = [7, 30, 7, 1]
    assert pool == pytest.approx(expected)
    expected[:] = 0
    expected[[0, 25, 49]] = [1, 2, 2]
    assert kept == pytest.approx(expected)
    labels = ["pool, best class of each image: 45", "selected rows: 5"]
    assert legend_of(figure) == labels


# --- pictures -----------------------------------------------------------------------------------


def plain(count, start=0, side=8):
    """Pictures of one colour each, all different."""
    values = 10 * (start + np.arange(count, dtype=np.uint8))
    return np.broadcast_to(values[:, None, None, None], (count, side, side, 3))


def cells_of(axes):
    """{(row, column): value of the picture there}, by where the pictures lie in the axes."""
    boxes = [image.get_extent() for image in axes.images]
    lefts, tops = (sorted({round(box[side], 6) for box in boxes}) for side in (0, 3))
    return {
        (tops.index(round(top, 6)), lefts.index(round(left, 6))): int(image.get_array()[0, 0, 0])
        for image, (left, _, _, top) in zip(axes.images, boxes, strict=True)
    }


def above(axes):
    """{value of a picture: the text above it}"""
    found = {}
    for image in axes.images:
        left, right, _, top = image.get_extent()
        near = {text: abs(y - top) for (x, y), text in texts_of(axes).items() if left < x < right}
        found[int(image.get_array()[0, 0, 0])] = min(near, key=near.get)
    return found


def framed(axes):
    """{value of a picture: the colour of its frame}"""
    boxes = {
        (round(patch.get_x(), 6), round(patch.get_y(), 6)): to_hex(patch.get_edgecolor()).upper()
        for patch in axes.patches
    }
    corners = {
        int(image.get_array()[0, 0, 0]): (image.get_extent()[0], image.get_extent()[3])
        for image in axes.images
    }
    return {value: boxes.get((round(x, 6), round(y, 6))) for value, (x, y) in corners.items()}


def test_a_batch_is_folded_into_rows_of_eight_in_order():
    figure = figures.image_batch(plain(18), [f"class {i}" for i in range(18)], "A heading")
    axes = axes_of(figure)
    assert cells_of(axes) == {divmod(i, 8): 10 * i for i in range(18)}
    assert above(axes) == {10 * i: f"class {i}" for i in range(18)}
    assert figure.get_suptitle() == "A heading"
    assert not axes.patches


def test_a_heading_has_room_above_a_single_picture():
    one, three = (
        figures.image_batch(plain(1), ["a"], "Predictions of a network" * times) for times in (1, 3)
    )
    assert three.get_figwidth() > 2 * one.get_figwidth()


def test_near_duplicates_lie_below_the_pools_images():
    axes = axes_of(figures.pairs(plain(9), plain(9, start=10), [f"val 0.9{i}" for i in range(9)]))
    assert cells_of(axes) == {divmod(i, 8): 10 * i for i in range(9)}  # the top left pixels
    for number, image in enumerate(axes.images):
        pixels = image.get_array()
        assert (pixels[:8] == 10 * number).all() and (pixels[-8:] == 10 * (10 + number)).all()
        left, right, bottom, top = image.get_extent()
        assert (bottom - top) / (right - left) == pytest.approx(len(pixels) / 8)  # not distorted
    assert above(axes)[80] == "val 0.98"


@pytest.fixture
def best():
    """best(correct): three classes with two, no and three images."""

    def draw(correct):
        images = [plain(2), plain(0), plain(3, start=5)]
        scores = [np.array([0.9, 0.5]), np.array([]), np.array([0.7, 0.61239, 0.1])]
        names = ["ant", "bee", "a class of a long name"]
        return figures.best_images(images, scores, correct, names, "Best of all")

    return draw


def test_right_pseudo_labels_are_green_with_a_check_mark_wrong_ones_red_with_a_cross(best):
    correct = [np.array([True, False]), np.array([], bool), np.array([False, True, True])]
    figure = best(correct)
    axes = axes_of(figure)
    assert framed(axes) == {0: GREEN, 10: RED, 50: RED, 60: GREEN, 70: GREEN}
    colours = {text.get_text()[-1]: text.get_color() for text in axes.texts if text.get_text()}
    assert (colours[RIGHT], colours[WRONG]) == (GREEN, RED)
    assert above(axes) == {
        0: f"0.900 {RIGHT}",
        10: f"0.500 {WRONG}",
        50: f"0.700 {WRONG}",
        60: f"0.612 {RIGHT}",
        70: f"0.100 {RIGHT}",
    }
    legend = f"{RIGHT} right pseudo-label   {WRONG} wrong pseudo-label"
    assert figure.get_suptitle() == f"Best of all\n{legend}"


def test_a_row_belongs_to_the_class_named_beside_it(best):
    axes = axes_of(best(UNKNOWN))
    beside = {text: y for (x, y), text in texts_of(axes).items() if x < 0}
    assert list(beside) == ["ant", "bee", "a class of a lo…"]
    for image in axes.images:
        _, _, bottom, top = image.get_extent()
        name = "ant" if image.get_array()[0, 0, 0] < 50 else "a class of a lo…"
        assert top < beside[name] < bottom
    notes = {text: y for (x, y), text in texts_of(axes).items() if x == 0}
    assert notes == {"no candidates": beside["bee"]}


def test_without_the_truth_there_is_no_frame_and_a_question_mark(best):
    figure = best(UNKNOWN)
    assert framed(axes_of(figure)) == dict.fromkeys((0, 10, 50, 60, 70))
    assert above(axes_of(figure))[60] == "0.612 ?"
    assert figure.get_suptitle() == "Best of all\n? nothing known of the image"
