"""TensorBoard's files read back: numbers by value, pictures by their pixels."""

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

from data.sources import NO_CLASS, UNKNOWN
from report import figures
from report.board import Board
from report.diagnostics import SelectedRows
from report.figures import GREEN, RED


def events_of(folder):
    everything = {"images": 0, "scalars": 0, "tensors": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def pictures_of(events, tag):
    """The PNGs of a tag: [(step, uint8 RGB (H,W,3))]"""
    return [
        (
            event.step,
            cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR_RGB),
        )
        for event in events.Images(tag)
    ]


def picture_of(events, tag):
    ((_, picture),) = pictures_of(events, tag)
    return picture


def colours(count):
    """`count` saturated colours, (n,3) uint8, far from each other, from white and from black."""
    hue = np.linspace(0, 180, count, endpoint=False).astype(np.uint8)
    hsv = np.stack([hue, np.full(count, 255, np.uint8), np.full(count, 230, np.uint8)], axis=1)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def plain(colour, side=8):
    """Pictures of one colour each: (n,3) -> uint8 tensor (n,S,S,3)."""
    return torch.from_numpy(np.asarray(colour))[:, None, None].repeat(1, side, side, 1)


def boxes(picture, colour, least=500):
    """Where a colour fills areas of at least so many pixels: [(left, top, right, bottom)]"""
    mask = (np.abs(picture.astype(int) - np.asarray(colour)) <= 3).all(2).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    return [(x, y, x + w, y + h) for x, y, w, h, area in stats[1:].tolist() if area >= least]


def box(picture, colour):
    (only,) = boxes(picture, colour)
    return only


@pytest.fixture
def drawn(monkeypatch):
    """{tag: Figure} of what goes to the board, which is not painted."""
    shown = {}

    def keep(self, tag, figure, step=None):
        shown[tag] = figure

    monkeypatch.setattr(SummaryWriter, "add_figure", keep)
    return shown


# --- numbers ------------------------------------------------------------------------------------


VALIDATION, RATE = "1 accuracy/validation top-1", "3 learning rate/learning rate"


def test_curves_have_the_metrics_by_images_processed(tmp_path):
    with Board(tmp_path) as board:
        for epoch in (1, 2):
            metrics = {"epoch": epoch, "lr": 0.1 / epoch, "val_top1": 50.0 * epoch}
            board.epoch(metrics, 600 * epoch)
    events = events_of(tmp_path)
    assert events.Tags()["scalars"] == [VALIDATION, RATE]  # the accuracy comes first
    curve = [(event.step, event.value) for event in events.Scalars(VALIDATION)]
    assert curve == [(600, 50.0), (1200, 100.0)]
    assert [event.value for event in events.Scalars(RATE)] == [np.float32(0.1), np.float32(0.05)]


def test_on_resume_the_epochs_to_come_replace_those_drawn_before(tmp_path):
    for purge_step, values in ((None, {64: 10.0, 128: 20.0, 192: 30.0}), (65, {128: 21.0})):
        with Board(tmp_path, purge_step) as board:
            for images, value in values.items():
                board.epoch({"val_top1": value}, images)
    curve = [(event.step, event.value) for event in events_of(tmp_path).Scalars(VALIDATION)]
    assert curve == [(64, 10.0), (128, 21.0)]


def text_of(folder, tag):
    (event,) = events_of(folder).Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_the_settings_are_config_json_as_a_table(tmp_path):
    config = {"preset": "demo", "seed": 3, "parent": None, "training": {"epochs": 2}}
    with Board(tmp_path) as board:
        board.settings(config)
    lines = text_of(tmp_path, "settings").splitlines()
    assert lines[0] == "| setting | value |"
    assert lines[2:] == ["| preset | demo |", "| seed | 3 |", "| training.epochs | 2 |"]


def test_the_table_of_runs_has_settings_and_final_numbers(tmp_path):
    settings = {"preset": "demo", "seed": 3, "labels_per_class": None, "mixup": 0.5, "ema": True}
    result = {"seed": 3, "val_top1": 90.0, "test_top1": 92.5, "counts": [1, 2]}
    with Board(tmp_path) as board:
        board.hparams(settings, result)
    events = events_of(tmp_path)

    def part(name):
        return HParamsPluginData.FromString(events.summary_metadata[name].plugin_data.content)

    shown = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in part("_hparams_/session_start_info").session_start_info.hparams.items()
    }
    assert shown == {**settings, "labels_per_class": "None"}
    columns = part("_hparams_/experiment").experiment  # the same whatever the stage has
    settings = [setting.name for setting in columns.hparam_infos]
    assert {"stage", "seed", "strategy", "p", "k", "student learning_rate"} <= set(settings)
    names = ("test top-1", "test top-5", "validation top-1")
    names += ("labels right, of all rows", "labels right, of rows with a class")
    tags = [f"5 final, for HPARAMS/{name}" for name in names]
    assert [metric.name.tag for metric in columns.metric_infos] == tags
    tags = tags[:3:2]
    assert [event.value for tag in tags for event in events.Scalars(tag)] == [92.5, 90.0]
    text = text_of(tmp_path, "final numbers")
    assert "| test_top1 | 92.5 |" in text and "| counts | 1 2 |" in text


def test_precision_and_recall_are_those_of_each_class(tmp_path):
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 3), torch.arange(40) % 3
    with Board(tmp_path) as board:
        board.test_results(logits, labels, ["ant", "bee", "crab"], 7, plain(colours(40)))
    events = events_of(tmp_path)
    score = logits.softmax(1)[:, 1].numpy()
    (event,) = events.Tensors("test precision-recall/bee")
    assert event.step == 7
    curves = tensor_util.make_ndarray(event.tensor_proto)  # (6,127), thresholds from 0 to 1
    bee = labels.numpy() == 1
    for number in (0, 40, 63, 100, 126):
        found = score >= number / 126
        right = (found & bee).sum()
        counts = [right, (found & ~bee).sum(), (~found & ~bee).sum(), (~found & bee).sum()]
        rates = [right / max(1, found.sum()), right / bee.sum()]
        np.testing.assert_allclose(curves[:, number], counts + rates, atol=1e-6)


# --- pictures of a training ---------------------------------------------------------------------


def test_the_confusion_matrix_is_dark_where_the_predictions_are(tmp_path):
    predicted = torch.tensor([0, 0, 2, 3])  # of classes 0, 1, 2, 3: class 1 is taken for class 0
    labels = torch.arange(4).repeat(5)
    names = ["ant", "bee", "crab", "dove"]
    logits = 9 * torch.nn.functional.one_hot(predicted, 4).float().repeat(5, 1)
    with Board(tmp_path) as board:
        board.test_results(logits, labels, names, 3, plain(colours(20)))
    ((step, picture),) = pictures_of(events_of(tmp_path), "test/1 confusion matrix")
    assert step == 3
    green = [int(GREEN[i : i + 2], 16) for i in (1, 3, 5)]  # the colour scale's ends
    red = [int(RED[i : i + 2], 16) for i in (1, 3, 5)]
    dark = boxes(picture, green, least=2000) + boxes(picture, red, least=2000)
    side = max(right - left for left, _, right, _ in dark)
    assert [round((bottom - top) / side) for _, top, _, bottom in dark] == [1] * 4
    x, y, _, _ = min(dark)
    cells = {(round((top - y) / side), round((left - x) / side)) for left, top, _, _ in dark}
    assert cells == {(0, 0), (1, 0), (2, 2), (3, 3)}


def test_a_training_batch_is_shown_in_order(tmp_path):
    some = colours(11)
    with Board(tmp_path) as board:
        board.training_batch(plain(some), torch.arange(11), CLASSES)
    picture = picture_of(events_of(tmp_path), "training/augmented inputs")
    places = [box(picture, colour) for colour in some]
    assert sorted(places, key=lambda place: (place[1], place[0])) == places
    assert len({top for _, top, _, _ in places}) == 2 and places[8][0] == places[0][0]


def test_a_mixed_image_is_titled_with_both_its_classes(tmp_path, drawn):
    shares = torch.tensor([[0.7, 0.0, 0.3], [0.0, 1.0, 0.0]])
    with Board(tmp_path) as board:
        board.training_batch(plain(colours(2)), shares, ["ant", "bee", "crab"])
    axes = drawn["training/augmented inputs"].axes[0]
    assert [text.get_text() for text in axes.texts] == ["70% ant + crab", "bee"]


def test_misclassified_images_and_the_most_confused_classes(tmp_path, drawn):
    logits, labels = torch.eye(3)[[0, 2, 2, 1]] * torch.tensor([[9], [1], [5], [9]]), [0, 0, 1, 1]
    with Board(tmp_path) as board:
        classes, images = ["ant", "bee", "crab"], plain(colours(4))
        board.test_results(logits, torch.tensor(labels), classes, 1, images)
    axes = drawn["test/2 misclassified"].axes[0]
    assert [text.get_text() for text in axes.texts] == ["bee as crab", "ant as crab"]
    assert (axes.images[0].get_array() == images[2].numpy()).all()
    lines = text_of(tmp_path, "most confused classes of the test").splitlines()
    assert lines[2:] == ["| ant | crab | 1 | 50.0 |", "| bee | crab | 1 | 50.0 |"]


def test_the_projector_has_features_classes_and_pictures(tmp_path):
    some = colours(9)
    features, labels = torch.randn(9, 5).to(torch.bfloat16), torch.arange(9) % 2
    with Board(tmp_path) as board:
        predicted = torch.zeros(9, dtype=torch.int64)
        board.test_features(features, labels, plain(some, side=48), ["ant", "bee"], predicted)
    (folder,) = (tmp_path / "00000").iterdir()
    np.testing.assert_allclose(np.loadtxt(folder / "tensors.tsv"), features.float(), rtol=1e-6)
    head, *lines = (folder / "metadata.tsv").read_text().splitlines()
    assert head.split("\t") == ["true class", "predicted class", "right or wrong"]
    right, wrong = "ant\tant\tright", "bee\tant\twrong"
    assert lines == [right, wrong] * 4 + [right]
    sprite = cv2.imread(str(folder / "sprite.png"), cv2.IMREAD_COLOR_RGB)
    assert sprite.shape == (96, 96, 3)  # 3 x 3 pictures of 32 px
    middles = sprite[16::32, 16::32].reshape(9, 3).astype(int)
    assert np.abs(middles - some).max() <= 1
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert "single_image_dim: 32" in config and "test features" in config


def test_the_projector_shows_a_thousand_images_evenly(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        SummaryWriter, "add_embedding", lambda self, features, **rest: shown.update(x=features)
    )
    with Board(tmp_path) as board:
        position = torch.arange(3500)
        images = torch.zeros(3500, 8, 8, 3, dtype=torch.uint8)
        board.test_features(position[:, None].float(), position % 4, images, "abcd", position % 3)
    # From the first to the last: they lie by class, so that none is left out.
    positions = shown["x"][:, 0]
    assert (len(positions), positions[0], positions[-1]) == (1000, 0, 3499)
    assert set(positions.diff().tolist()) == {3, 4}


# --- pictures of a selection --------------------------------------------------------------------

CLASSES = [f"class {i}" for i in range(22)]


def selection(folder, truth):
    """The events of a selection: class 0 has images 0 and 1, class 1 image 2, class 21 image 3."""
    label, rank = np.array([0, 0, 1, 21]), np.array([1, 2, 1, 1])
    score = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    rows = SelectedRows(np.array([0, 1, 2, 3]), label, score, rank, np.array(truth))
    with Board(folder) as board:
        board.selection(rows, plain(colours(4)), np.arange(1000), CLASSES, 2)
    return events_of(folder)


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """Of a selection of known truth, the first and the third row right."""
    return selection(tmp_path_factory.mktemp("selection"), [0, 3, 1, 5])


BEST = "selection/best images of each class"


def test_right_pseudo_labels_have_a_green_frame_and_wrong_ones_a_red(events):
    first, second = (picture for _, picture in pictures_of(events, BEST))
    red, orange, blue, violet = colours(4)
    for picture, colour, wanted in (
        (first, red, GREEN),
        (first, orange, RED),
        (first, blue, GREEN),
        (second, violet, RED),
    ):
        left, top, right, bottom = box(picture, colour)
        wanted = [int(wanted[i : i + 2], 16) for i in (1, 3, 5)]
        across, down = (left + right) // 2, (top + bottom) // 2
        for x, y in ((left - 2, down), (right + 1, down), (across, top - 2), (across, bottom + 1)):
            assert np.abs(picture[y, x].astype(int) - wanted).max() < 60, (x, y)


def test_images_lie_in_the_row_of_their_class_best_first_twenty_classes_a_figure(events):
    pictures = pictures_of(events, BEST)
    assert [step for step, _ in pictures] == [0, 1]
    first, second = (picture for _, picture in pictures)
    places = [box(first, colour) for colour in colours(4)[:3]]
    assert places[0][1] == places[1][1] < places[2][1]  # tops
    assert places[0][0] == places[2][0] < places[1][0]  # left edges
    assert not boxes(first, colours(4)[3]) and box(second, colours(4)[3])
    assert first.shape[0] > 5 * second.shape[0]  # 20 classes and 2


def test_a_selection_of_known_truth_has_all_charts(events):
    charts = ("scores", "images per class", "accuracy by rank")
    assert set(events.Tags()["images"]) == {BEST, *(f"selection/{name}" for name in charts)}


def test_the_charts_have_the_numbers_of_the_selection(tmp_path, drawn):
    label, rank = np.array([0, 0, 0, 1]), np.array([1, 2, 3, 1])  # more than K = 2: unbalanced
    score, truth = np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([0, 0, 1, -1])
    rows = SelectedRows(np.arange(4), label, score, rank, truth)
    with Board(tmp_path) as board:
        board.selection(rows, plain(colours(4)), torch.tensor([3, 0, 5, 1]), ["ant", "bee"], 2)
    counts, accuracy, scores = (
        drawn[f"selection/{name}"].axes[0]
        for name in ("images per class", "accuracy by rank", "scores")
    )
    assert [bar.get_width() for bar in counts.patches] == [
        2,
        0,
        1,
        0,
        0,
        1,
    ]  # right, wrong, unknown
    assert list(counts.lines[0].get_xdata()) == [2, 2]
    np.testing.assert_allclose(accuracy.lines[0].get_xydata(), [(1, 1), (2, 1), (3, 0)])
    legend = [text.get_text() for text in scores.figure.legends[0].get_texts()]
    assert legend == ["pool, best class of each image: 9", "selected rows: 4"]


def test_without_the_truth_there_are_no_frames_and_no_accuracy(tmp_path):
    events = selection(tmp_path, [-1, -1, -1, -1])
    assert "selection/accuracy by rank" not in events.Tags()["images"]
    for _, picture in pictures_of(events, BEST):
        for frame in (GREEN, RED):
            colour = [int(frame[i : i + 2], 16) for i in (1, 3, 5)]
            assert not boxes(picture, colour, least=1)


def test_one_image_of_unknown_truth_does_not_hide_the_others(tmp_path, drawn):
    truth = np.array([0, NO_CLASS, UNKNOWN])
    score = np.array([0.9, 0.8, 0.7], np.float32)
    rows = SelectedRows(np.arange(3), np.zeros(3, int), score, np.arange(1, 4), truth)
    with Board(tmp_path) as board:
        board.selection(rows, plain(colours(3)), torch.tensor([3]), ["ant"], 3)
    titles = [text.get_text() for text in drawn[BEST].axes[0].texts if text.get_text()[:1] == "0"]
    assert titles == ["0.900 \N{CHECK MARK}", "0.800 \N{BALLOT X}", "0.700 ?"]
    points = drawn["selection/accuracy by rank"].axes[0].lines[0].get_xydata()
    np.testing.assert_allclose(points, [(1, 1), (2, 0)])


def test_near_duplicates_are_shown_beside_their_likes_from_the_nearest_on(tmp_path):
    ours, theirs = colours(8)[:4], colours(8)[4:]
    pairs = [(0, 3, 0.91, "train"), (2, 1, 0.99, "test"), (3, 0, 0.95, "val")]
    with Board(tmp_path) as board:
        board.near_duplicates(pairs, plain(ours), plain(theirs))
    picture = picture_of(events_of(tmp_path), "selection left out/near-duplicates")
    lefts = []
    for position, match in ((2, 1), (3, 0), (0, 3)):
        left, _, right, bottom = box(picture, ours[position])
        below = box(picture, theirs[match])
        assert (below[0], below[2]) == (left, right) and 0 < below[1] - bottom < (right - left) / 4
        lefts.append(left)
    assert lefts == sorted(lefts)
    assert not boxes(picture, ours[1])


def test_of_many_near_duplicates_sixteen_are_shown_and_of_none_no_figure(tmp_path, drawn):
    pictures = torch.zeros(100, 8, 8, 3, dtype=torch.uint8)
    with Board(tmp_path) as board:
        board.near_duplicates([], pictures, pictures)
        assert not drawn
        board.near_duplicates([(i, i, i / 100, "val") for i in range(100)], pictures, pictures)
    titles = [text.get_text() for text in drawn["selection left out/near-duplicates"].axes[0].texts]
    assert len(titles) == 16 and (titles[0], titles[-1]) == ("val 0.99", "val 0.00")


# --- predict.py ---------------------------------------------------------------------------------


def test_predictions_have_class_and_percentage_however_long_the_name(tmp_path, drawn):
    best = [("bear", 0.4017), ("a class of a very long name", 0.999)]
    with Board(tmp_path) as board:
        board.predictions(list(plain(colours(2)).numpy()), best, "resnet8 of a run", 64)
    figure = drawn["predictions/65 to 66"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["bear 40%", "a class of a… 100%"]
    assert figure.get_suptitle() == "Predictions of resnet8 of a run"


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_picture_that_cannot_be_drawn_costs_one_line_and_no_stage(tmp_path, monkeypatch, capsys):
    def fail(*numbers):
        raise ValueError("Expected end of text,\n^")

    monkeypatch.setattr(figures, "confusion_matrix", fail)
    with Board(tmp_path) as board:
        classes, images = ["ant", "bee"], plain(colours(2))
        board.test_results(torch.eye(2), torch.tensor([1, 0]), classes, 1, images)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'test/1 confusion matrix'" in error
    assert events_of(tmp_path).Tags()["images"] == ["test/2 misclassified"]


def test_an_error_of_the_disk_is_the_stages(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Board(tmp_path) as board, pytest.raises(OSError, match="No space"):
        monkeypatch.setattr(board._writer, "add_figure", full)
        board.near_duplicates([(0, 0, 1, "val")], plain(colours(1)), plain(colours(1)))


def test_letters_that_the_font_lacks_are_told_of_once(tmp_path, capfd):
    names = ["\u732b", "\u72ac\u72d0", "\U0001f99a"]
    with Board(tmp_path) as board:
        for step in (1, 2):
            board.test_results(torch.eye(3), torch.arange(3), names, step, plain(colours(3)))
    assert capfd.readouterr().err.count("\n") == 1


def test_names_with_tabs_and_line_ends_are_a_line_each_in_the_projector(tmp_path):
    with Board(tmp_path) as board:
        labels, names = torch.arange(2), ["a\tb\nc", "d\r\u2028e"]
        board.test_features(torch.randn(2, 3), labels, plain(colours(2)), names, labels)
    (table,) = tmp_path.glob("00000/*/metadata.tsv")
    assert table.read_text().split("\n")[1:3] == ["a b c\ta b c\tright", "d e\td e\tright"]


def test_many_classes_have_no_precision_recall_curves(tmp_path):
    with Board(tmp_path) as board:
        names, images = list(map(str, range(21))), plain(colours(21))
        board.test_results(torch.eye(21), torch.arange(21), names, 1, images)
    assert not [tag for tag in events_of(tmp_path).Tags()["tensors"] if "recall" in tag]
