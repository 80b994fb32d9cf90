"""predict.py: the right classes, for the right pictures, whatever lies among them."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import predict
from data.decode import decode, fit_square
from files import sha256_of_file
from models import hub
from models.networks import build_model
from report import predictions
from report.tables import printable


@pytest.fixture
def ask(capsys):
    """ask(*arguments) -> exit code, stdout, stderr."""

    def ask(*arguments):
        capsys.readouterr()
        try:
            predict.main([*map(str, arguments), "--device", "cpu"])
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return ask


@pytest.fixture(scope="module")
def stage(folder_run):
    return folder_run / "finetuned"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """scikit-learn's two photographs, one of them in a subfolder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deeper").mkdir()
    for name, image in zip(
        ("china.jpg", "deeper/flower.jpg"), load_sample_images().images, strict=True
    ):
        assert cv2.imwrite(str(folder / name), image[..., ::-1])
    return folder


def expected(stage, path):
    """The class probabilities, in the obvious way: float32, one image, torch only."""
    state = torch.load(stage / "model.pt", weights_only=True)
    model = build_model(**state["arch"]).eval()
    model.load_state_dict(state["state_dict"])
    mean, std = (torch.tensor(x) for x in state["normalisation"].values())
    image = torch.from_numpy(fit_square(decode(path.read_bytes()), state["input_size"])) / 255
    with torch.inference_mode():
        logits = model(((image - mean) / std).permute(2, 0, 1)[None])
    return dict(zip(state["classes"], logits.softmax(1)[0].tolist(), strict=True))


def test_the_probabilities_are_the_checkpoints(ask, stage, photos, folder_data):
    paths = [photos / "china.jpg", folder_data / "test" / "bee" / "0.png"]
    code, out, _ = ask(*paths, "--checkpoint", stage, "--json", "--topk", 99)
    assert code == 0
    for path, found in zip(paths, json.loads(out), strict=True):
        assert found["image"] == str(path)
        classes = {one["class"]: one["probability"] for one in found["predictions"]}
        wanted = expected(stage, path)
        assert classes.keys() == wanted.keys()
        assert classes == pytest.approx(wanted, abs=0.03)  # bf16 on some CPUs
        assert sum(classes.values()) == pytest.approx(1, abs=1e-5)
        assert list(classes.values()) == sorted(classes.values(), reverse=True)


def test_batches_change_nothing_and_keep_the_order(ask, stage, folder_data):
    images = sorted((folder_data / "test").rglob("*.png"))
    flags = (folder_data / "test", "--checkpoint", stage, "--json", "--topk", 2)
    outs = [json.loads(ask(*flags, "--batch-size", size)[1]) for size in (1, 5, 64)]
    assert len(images) == 24
    for out in outs:
        assert [one["image"] for one in out] == list(map(str, images))
        assert all(len(one["predictions"]) == 2 for one in out)
        for one, first in zip(out, outs[0], strict=True):
            probs = [[p["probability"] for p in x["predictions"]] for x in (one, first)]
            assert probs[0] == pytest.approx(probs[1], abs=0.02)


def test_images_in_class_folders_are_marked_right_or_wrong(ask, stage, folder_data, photos):
    folder = folder_data / "test" / "bee"
    found = json.loads(ask(folder, "--checkpoint", stage, "--json")[1])
    assert all(one["truth"] == "bee" for one in found)
    _, out, _ = ask(folder, "--checkpoint", stage, "--topk", 1)
    heads = [line for line in out.splitlines() if line.startswith(str(folder))]
    for one, head in zip(found, heads, strict=True):
        right = one["predictions"][0]["class"] == "bee"
        assert head.endswith("(right)" if right else "(wrong: bee)")
    assert "truth" not in json.loads(ask(photos, "--checkpoint", stage, "--json")[1])[0]


def test_files_folders_and_patterns(ask, stage, photos):
    def names(*arguments):
        out = ask(*arguments, "--checkpoint", stage, "--json")[1]
        return [os.path.relpath(one["image"], photos) for one in json.loads(out)]

    china, flower = "china.jpg", os.path.join("deeper", "flower.jpg")
    assert names(photos) == [china, flower]
    assert names(photos / "deeper", photos / china) == [flower, china]
    assert names(photos / "c*.jpg") == [china]
    assert names(photos / "**" / "*.jpg") == [china, flower]


def test_the_table_has_bars_and_the_classes_asked_for(ask, stage, photos):
    code, out, _ = ask(photos / "china.jpg", "--checkpoint", stage, "--topk", 2)
    name, *rows = out.splitlines()
    assert (code, name, len(rows)) == (0, str(photos / "china.jpg"), 2)
    for row, (label, p) in zip(rows, sorted(
        expected(stage, photos / "china.jpg").items(), key=lambda x: -x[1]
    ), strict=False):  # fmt: skip
        found, percent, sign, *bar = row.split()
        assert (found, sign) == (label, "%")
        assert float(percent) == pytest.approx(100 * p, abs=3)
        assert len("".join(bar)) == pytest.approx(predictions.BAR * p, abs=2)


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0, ""), (1, "█" * 24), (0.5, "█" * 12), (1 / 192, "▏"), (25 / 192, "███▏")],
)
def test_a_bar_is_as_long_as_its_share(share, drawn):
    assert predictions.bar(share) == drawn


def broken_files(folder, good):
    """Files that cannot be read, with names that are hard to print; -> their number."""
    content = good.read_bytes()
    (folder / "cut.jpg").write_bytes(content[:5000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    (folder / "line\nend.jpg").write_bytes(content[:5000])
    (folder / "dangling.jpg").symlink_to(folder / "nowhere")
    return 5


def test_broken_files_are_reported_and_the_others_go_on(ask, stage, photos, tmp_path):
    shutil.copy(photos / "china.jpg", tmp_path / "good.jpg")
    count = broken_files(tmp_path, tmp_path / "good.jpg")
    shutil.copy(photos / "china.jpg", os.path.join(os.fsencode(tmp_path), b"latin-\xe9.jpg"))
    code, out, error = ask(tmp_path, "--checkpoint", stage)
    assert code == 0
    shown = [line for line in out.splitlines() if not line.startswith(" ")]
    assert shown == [str(tmp_path / "good.jpg"), str(tmp_path / r"latin-\xe9.jpg")]
    assert len(error.splitlines()) == count
    for name in ("cut.jpg", "empty.png", "text.jpg", r"line\nend.jpg", "dangling.jpg"):
        assert name in error
    code, out, error = ask(tmp_path, "--checkpoint", stage, "--json", "--batch-size", 2)
    found = json.loads(out)
    assert (code, len(found), error) == (0, count + 2, "")
    assert ["error" in one for one in found].count(False) == 2
    assert all(("error" in one) != ("predictions" in one) for one in found)


def test_a_picture_that_takes_too_long_costs_itself_only(ask, stage, photos, monkeypatch):
    def slow(content, size):
        if content == late:
            time.sleep(20)
        return square(content, size)

    square, late = predict.square, (photos / "china.jpg").read_bytes()
    monkeypatch.setattr(predict, "square", slow)
    monkeypatch.setattr(predict, "SECONDS", 2)
    code, out, _ = ask(photos, "--checkpoint", stage, "--json")
    first, second = json.loads(out)
    assert code == 0 and first["error"] == "takes longer than 2 s to decode"
    assert second["predictions"]


def test_nothing_readable_is_a_failure(ask, stage, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    code, out, error = ask(tmp_path, "--checkpoint", stage)
    assert (code, out) == (1, "")
    assert "text.jpg" in error and "none of the 1 images could be read" in error


@pytest.mark.parametrize("missing", ["nowhere.jpg", "*.jpg", "."])
def test_a_name_that_leads_to_no_image_is_an_error(ask, stage, tmp_path, monkeypatch, missing):
    monkeypatch.chdir(tmp_path)
    code, out, error = ask(missing, "--checkpoint", stage)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert f"{missing}: no such image" in error


def test_without_a_checkpoint_the_ways_out_are_named(ask, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = ask(photos)
    assert (code, error.count("\n")) == (2, 1)
    for word in ("runs/cifar100/finetuned", "main.py", "--checkpoint", "--hub"):
        assert word in error


def test_a_stage_that_has_not_finished_is_refused(ask, photos, run_copy):
    (run_copy / "finetuned" / "result.json").unlink()
    code, _, error = ask(photos, "--checkpoint", run_copy / "finetuned")
    assert code == 2 and "no finished stage" in error


@pytest.mark.parametrize(
    "flags",
    [("--topk", 0), ("--batch-size", 0), ("--hub", "a", "--checkpoint", "b"), ("--hub", "x")],
)
def test_bad_flags_are_one_line(ask, photos, flags):
    code, out, error = ask(photos, *flags)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert flags[0] in error or "unknown weights 'x'" in error


def test_tensorboard_gets_the_readable_pictures(ask, stage, photos, folder_data, tmp_path):
    broken_files(tmp_path, photos / "china.jpg")
    teal, orange = (0, 128, 128), (255, 140, 0)  # one of them twice
    for name, colour in (("teal", teal), ("orange", orange), ("orange-again", orange)):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    images = (photos, tmp_path, folder_data / "test")
    code, _, _ = ask(*images, "--checkpoint", stage, "--tensorboard", tmp_path / "board")
    assert code == 0
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert board.Tags()["images"] == ["predictions/1 to 29"]
    encoded = board.Images("predictions/1 to 29")[0].encoded_image_string
    figure = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    areas = [(figure == colour).all(2).sum() for colour in (teal, orange)]  # pixels
    assert areas[0] > 5_000 and areas[1] == pytest.approx(2 * areas[0], rel=0.05)


# --- names, pipes, signals ------------------------------------------------------------------------

RED = "caf\N{LATIN SMALL LETTER E WITH ACUTE}\x1b[31m"  # a class whose name colours a terminal


@pytest.fixture
def red(stage, folder_data, tmp_path):
    """A lone checkpoint whose first class is RED, and a folder of that name with two images."""
    state = torch.load(stage / "model.pt", weights_only=True)
    state["classes"][0] = RED
    torch.save(state, tmp_path / "lone.pt")
    folder = tmp_path / RED
    folder.mkdir()
    for number in range(2):
        shutil.copy(folder_data / "test" / "ant" / f"{number}.png", folder)
    return tmp_path / "lone.pt", folder


def test_names_never_reach_the_terminal_as_commands(ask, red, tmp_path):
    checkpoint, folder = red
    for flags in ((), ("--json",), ("--topk", 1)):
        code, out, error = ask(folder, "--checkpoint", checkpoint, *flags)
        assert code == 0 and "\x1b" not in out + error
    code, out, error = ask(folder / "no", "--checkpoint", checkpoint)
    assert code == 2 and "\x1b" not in error and r"\u001b[31m" in error
    code, out, error = ask(folder, "--checkpoint", tmp_path / "no\x9b31m")  # another such byte
    assert code == 2 and "\x9b" not in error
    assert json.loads(ask(folder, "--checkpoint", checkpoint, "--json")[1])[0]["truth"] == RED


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", r"a\tb\n"),
        ("\u202eabc", r"\u202eabc"),  # turns the direction of what follows
        ("\ud800", "\N{REPLACEMENT CHARACTER}"),
        ("latin-\udce9", r"latin-\xe9"),
        ("caf\udcc3\udca9", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("\udcc2\udc9b", r"\x9b"),
        (Path("a b"), "a b"),
        (3, "3"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_an_escape(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_network_without_finite_answers_is_an_error_and_no_nan(
    ask, stage, photos, tmp_path, flags
):
    state = torch.load(stage / "model.pt", weights_only=True)
    state["state_dict"]["fc.weight"].fill_(3e38)  # finite, and its logits are not
    state["state_dict"]["bn1.bias"].fill_(1e3)
    torch.save(state, tmp_path / "large.pt")
    code, out, error = ask(photos / "china.jpg", "--checkpoint", tmp_path / "large.pt", *flags)
    assert code == 1 and "NaN" not in out and "not finite" in out + error
    assert not flags or "error" in json.loads(out)[0]


@pytest.mark.parametrize("flag", ["--checkpoint=~nouser/x", "~nouser/x.jpg", "--tensorboard=~/b"])
def test_a_tilde_is_a_home_folder_or_one_line(ask, stage, photos, tmp_path, monkeypatch, flag):
    monkeypatch.setenv("HOME", str(tmp_path))
    if "nouser" in flag:
        code, _, error = ask(photos, flag)
        assert (code, error.count("\n")) == (2, 1) and "~nouser" in error
    else:
        assert ask(photos, "--checkpoint", stage, flag)[0] == 0
        assert (tmp_path / "b").is_dir() and not os.path.exists("~")


@pytest.mark.parametrize(
    "shortage",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_too_little_memory_is_one_line(ask, stage, photos, monkeypatch, shortage):
    def fail(*args):
        raise shortage

    monkeypatch.setattr(predict, "classify", fail)
    code, _, error = ask(photos, "--checkpoint", stage)
    assert (code, error.count("\n")) == (1, 1) and "too little memory" in error


@pytest.mark.slow
def test_locales_pipes_closed_streams_and_ctrl_c_as_a_shell_has_them(red):
    checkpoint, folder = red
    script = Path(predict.__file__)
    command = [sys.executable, script, folder, "--checkpoint", checkpoint, "--device", "cpu"]
    line = " ".join(map(shlex.quote, map(os.fspath, command)))
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    starts = {
        "locale": (line, plain),
        "pipe": (f"{line} | true; exit ${{PIPESTATUS[0]}}", os.environ),
        "no stderr": (f"{line} --json 2>&-", plain),
        "no stdout": (f"{line} >&-", os.environ),
        "ctrl-c": (f"exec timeout --foreground -s INT 1 {line}", os.environ),
    }
    running = {
        name: subprocess.Popen(["bash", "-c", text], env=environment, cwd=script.parent,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name, (text, environment) in starts.items()
    }  # fmt: skip
    ended = {name: (*one.communicate(timeout=180), one.returncode) for name, one in running.items()}
    assert not any(b"Traceback" in error for _, error, _ in ended.values()), ended
    out, error, code = ended["locale"]
    assert (code, error) == (0, b"") and "café\\x1b[31m".encode() in out  # UTF-8 after all
    assert ended["pipe"] == (b"", b"", 141)
    assert ended["no stderr"][2] == 0
    assert json.loads(ended["no stderr"][0])[0]["truth"] == RED
    assert ended["no stdout"] == (b"", b"", 0)
    assert ended["ctrl-c"][2] == 124 and ended["ctrl-c"][1] in (
        b"predict.py: stopped by SIGINT\n", b""
    )  # fmt: skip


# --- published models ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(427, 640), (640, 427), (100, 300), (256, 256), (224, 500)])
def test_hub_models_see_what_torchvisions_evaluation_shows(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 3)
    theirs = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    wanted = theirs(Image.fromarray(image))  # with PIL, as the published accuracies were measured
    resize, crop = hub.evaluation_size("resnet50_swsl")
    content = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    seen = torch.from_numpy(predict.resize_and_crop(content, resize, crop))
    seen = predict.Normalise(hub.MEAN, hub.STD)(seen[None])[0]
    difference = (seen - wanted).abs()
    assert difference.max() < 1.01 / 255 / min(hub.STD)  # one step of a byte, and that seldom
    assert (difference > 1e-5).float().mean() < 0.01


def test_torchvisions_weights_are_evaluated_at_their_own_size():
    assert hub.evaluation_size("resnet50_imagenet") == (232, 224)
    assert hub.evaluation_size("resnet18_imagenet") == (256, 224)


def test_a_published_model_names_imagenets_classes(ask, photos, tmp_path, monkeypatch):
    """Downloaded earlier: the file lies in torch.hub's folder."""
    torch.manual_seed(3)
    state = build_model("resnet18", 1000).state_dict()
    state["fc.bias"][[497, 970]] = torch.tensor([60.0, 50.0])
    cached = tmp_path / "checkpoints"
    cached.mkdir()
    torch.save(state, cached / "weights.pth")
    digest = sha256_of_file(cached / "weights.pth")[:8]
    (cached / "weights.pth").rename(cached / f"weights-{digest}.pth")
    one = hub.ZOO["resnet18_ssl"]._replace(file=f"weights-{digest}.pth")
    monkeypatch.setitem(hub.ZOO, "resnet18_ssl", one)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    code, out, error = ask(photos, "--hub", "ssl_resnet18", "--json", "--topk", 2)
    assert code == 0 and "CC-BY-NC 4.0" in error
    for one in json.loads(out):
        assert [p["class"] for p in one["predictions"]] == ["church", "alp"]
    names = hub.categories()
    assert len(names) == 1000 and (names[0], names[999]) == ("tench", "toilet tissue")
