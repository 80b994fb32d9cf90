"""Labelled sets: every copy gives the same images in the same order, and the same split.

pytest tests/test_labelled.py
"""

import functools
import hashlib
import http.server
import pickle
import shutil
import socket
import tarfile
import threading
import time

import cv2
import numpy as np
import pytest
import torch
import torchvision

from data.decode import decode, fit_square, pixel_hash
from data.labelled import load_labelled
from data.splits import split
from models import download as download_module


def pictures(count, seed=0, side=32):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(path.suffix, image[..., ::-1])[1]
    path.write_bytes(encoded.tobytes())


def make_folders(root, images, labels, classes, suffix):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        write(root / classes[label] / f"{i * 7919 % 10007:05d}{suffix}", image)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-100 in torchvision's format with 3 + 1 images a class, its checksums patched in."""
    classes = sorted(f"class_{i:02d}" for i in range(100))
    random = np.random.default_rng(1)
    folder = tmp_path / "archive" / "cifar-100-python"
    folder.mkdir(parents=True)
    parts = {}
    for part, each in (("train", 3), ("test", 1)):
        labels = random.permutation(np.repeat(np.arange(100), each))
        images = pictures(len(labels), seed=each)
        flat = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        content = {"data": flat, "fine_labels": labels.tolist()}
        (folder / part).write_bytes(pickle.dumps(content))
        parts[part] = images, labels
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": classes}))
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    cifar100 = torchvision.datasets.CIFAR100
    monkeypatch.setattr(cifar100, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(cifar100, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(cifar100, "meta", {**cifar100.meta, "md5": md5(folder / "meta")})
    monkeypatch.setattr(cifar100, "tgz_md5", md5(archive))
    return folder.parent, archive, classes, parts


@pytest.fixture
def serve(tmp_path):
    """serve(folder) -> the address of a web server on this machine."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def same_split(one, other):
    a, b = split(one.train.labels, 5, 1, 1), split(other.train.labels, 5, 1, 1)
    return all(
        torch.equal(one.train.images[getattr(a, part)], other.train.images[getattr(b, part)])
        for part in ("labelled", "val", "heldout")
    )


def stored(labelled):
    """All images of LabelledImages: uint8 (N, S, S, 3)."""
    return labelled.images[slice(None)].numpy()


@pytest.mark.parametrize("bare", [False, True], ids=["data_dir/cifar100", "data_dir"])
def test_archive_and_class_folders_are_the_same_set(cifar, tmp_path, bare):
    official, _, classes, parts = cifar
    copy = tmp_path / "copy"
    for part, (images, labels) in parts.items():
        root = (copy if bare else copy / "cifar100") / part
        make_folders(root, images, labels, classes, ".png" if part == "train" else ".bmp")

    one, other = load_labelled("cifar100", official, 32), load_labelled("cifar100", copy, 32)
    assert one.inputs["kind"] == "torchvision" and other.inputs["kind"] == "folder"
    assert one.classes == other.classes == tuple(classes)
    for ours, theirs in ((one.train, other.train), (one.test, other.test)):
        assert np.array_equal(stored(ours), stored(theirs))
        assert torch.equal(ours.labels, theirs.labels)
        assert np.array_equal(ours.pixel_hashes, theirs.pixel_hashes)
        assert np.array_equal(ours.checksums, theirs.checksums)
    assert same_split(one, other)
    # ... and it is not the order of the pickle that happens to agree.
    assert not np.array_equal(stored(one.train), parts["train"][0])


def test_canonical_order_is_class_then_pixels_then_name(cifar):
    official, *_, parts = cifar
    loaded = load_labelled("cifar100", official, 32)
    images, labels = parts["train"]
    expected = sorted(range(300), key=lambda i: (labels[i], pixel_hash(images[i]), str(i)))
    assert loaded.train.names.tolist() == list(map(str, expected))
    assert np.array_equal(stored(loaded.train), images[expected])
    assert loaded.train.labels.dtype == torch.int64


def test_identical_images_are_ordered_by_name(tmp_path):
    image = pictures(1)[0]
    for part in ("train", "test"):
        for name in ("b", "a", "c"):
            write(tmp_path / part / "one" / f"{name}.png", image)
        write(tmp_path / part / "two" / "x.png", 255 - image)
    names = load_labelled("folder", tmp_path, 32).train.names
    assert names.tolist() == ["one/a.png", "one/b.png", "one/c.png", "two/x.png"]


def test_download_checks_extracts_and_is_kept(cifar, serve, tmp_path, monkeypatch):
    _, archive, *_ = cifar
    address = f"{serve(archive.parent)}/{archive.name}"
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", address)
    first = load_labelled("cifar100", tmp_path / "data", 32)
    assert first.train.images.shape == (300, 32, 32, 3)
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", "http://127.0.0.1:9/gone.tar.gz")
    again = load_labelled("cifar100", tmp_path / "data", 32)  # offline now
    assert np.array_equal(stored(first.train), stored(again.train))


def test_truncated_download_does_not_poison_the_next(cifar, serve, tmp_path, monkeypatch):
    _, archive, *_ = cifar
    whole = archive.read_bytes()
    site = tmp_path / "site"
    site.mkdir()
    (site / archive.name).write_bytes(whole[: len(whole) // 2])
    address = f"{serve(site)}/{archive.name}"
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", address)
    with pytest.raises(ConnectionError, match="corrupted"):
        load_labelled("cifar100", tmp_path / "data", 32)
    (site / archive.name).write_bytes(whole)
    assert len(load_labelled("cifar100", tmp_path / "data", 32).train) == 300


def test_download_gives_up_when_nothing_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never says a word
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", address)
        began = time.monotonic()
        with pytest.raises(ConnectionError) as caught:
            load_labelled("cifar10", tmp_path, 32)
    assert time.monotonic() - began < 5
    assert socket.getdefaulttimeout() is None
    message = str(caught.value)
    assert "\n" not in message
    for part in ("cifar10", str(tmp_path), "<class>", "--dataset digits", "--preset demo"):
        assert part in message
    worst = download_module.ANSWER_SECONDS + 2 * download_module.STALL_SECONDS
    assert worst <= 30


def test_download_gives_up_when_the_name_server_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(6))
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no answer within 0\.3 s"):
        load_labelled("cifar10", tmp_path, 32)
    assert time.monotonic() - began < 4


def test_download_refused_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(ConnectionError, match=r"cannot download cifar10 \(.*refused"):
        load_labelled("cifar10", tmp_path, 32)


def test_unknown_set_lists_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"'mnist'.*cifar100, cifar10, digits, folder"):
        load_labelled("mnist", tmp_path, 32)


def test_digits_need_no_folder_and_keep_their_test_set(tmp_path):
    small, large = load_labelled("digits", tmp_path / "none", 8), load_labelled("digits", "x", 32)
    assert len(small.train) == 1198 and len(small.test) == 599
    assert np.array_equal(small.test.pixel_hashes, large.test.pixel_hashes)
    assert large.test.images.shape == (599, 32, 32, 3)
    assert stored(small.train).max() == 255 and stored(small.train).min() == 0
    assert small.test.labels.bincount().min() >= 57  # stratified
    train, test = ({h.tobytes() for h in s.pixel_hashes} for s in (small.train, small.test))
    assert not train & test
    assert not (tmp_path / "none").exists()


def make_set(root, classes=("a", "b"), each=3):
    for part in ("train", "test"):
        for c, name in enumerate(classes):
            for i, image in enumerate(pictures(each, seed=c + 10 * (part == "test"))):
                write(root / part / name / f"{i}.png", image)


def test_folder_ignores_hidden_and_other_files(tmp_path):
    make_set(tmp_path)
    for name in ("notes.txt", ".hidden.png", "Thumbs.db"):
        (tmp_path / "train" / "a" / name).write_bytes(b"x")
    (tmp_path / "train" / ".git").mkdir()
    write(tmp_path / "train" / "a" / "UPPER.PNG", pictures(1, seed=99)[0])
    loaded = load_labelled("folder", tmp_path, 16)
    assert loaded.classes == ("a", "b")
    assert len(loaded.train) == 7 and "a/UPPER.PNG" in loaded.train.names
    assert loaded.train.images.shape == (7, 16, 16, 3)


def test_resizing_averages_down_and_keeps_equal_sizes(tmp_path):
    image = pictures(1, side=20)[0]
    assert np.array_equal(fit_square(image, 20), image)
    means = image.reshape(10, 2, 10, 2, 3).astype(float).mean((1, 3))
    assert np.abs(fit_square(image, 10) - means).max() <= 1
    wide = np.concatenate([np.zeros((20, 7, 3), np.uint8), image, image[:, :7]], axis=1)
    assert np.array_equal(fit_square(wide, 20), image)  # the middle square
    assert fit_square(image, 64).shape == (64, 64, 3)


def remove(path):
    shutil.rmtree(path)


@pytest.mark.parametrize(
    "harm, error",
    [
        (lambda root: remove(root / "train"), "no folder .*train"),
        (lambda root: remove(root / "test"), "class a has [0-9]+ images and .* no test folder"),
        (lambda root: remove(root / "train" / "b"), "1 class folder"),
        (lambda root: (root / "train" / "c").mkdir(), "'.*c' holds no images"),
        (lambda root: (root / "test" / "zebra").mkdir(), "train lacks: 'zebra'"),
        (lambda root: (remove(root / "test"), (root / "test").mkdir()), "no class folders"),
    ],
)
def test_folder_mistakes_are_named(tmp_path, harm, error):
    make_set(tmp_path)
    harm(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=error) as caught:
        load_labelled("folder", tmp_path, 16)
    assert "\n" not in str(caught.value)


def test_without_a_test_folder_a_fifth_of_every_class_is_the_test_set(tmp_path):
    for number, name in enumerate(("a", "b")):
        for i, image in enumerate(pictures(10 + 5 * number, seed=number)):
            write(tmp_path / "one" / "train" / name / f"{i}.png", image)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "train" / "a" / "0.png").rename(tmp_path / "two" / "train" / "a" / "z.png")
    sets = []
    for copy in ("one", "two"):  # file names have no say
        with pytest.warns(UserWarning, match="no folder .*test': 5 images, 20% of every class"):
            sets.append(load_labelled("folder", tmp_path / copy, 16))
    assert sets[0].inputs["pixels"] == sets[1].inputs["pixels"]
    assert sets[0].inputs["test"] == {"cut_from": "train", "share": 0.2}
    assert np.bincount(sets[0].test.labels).tolist() == [2, 3] and len(sets[0].train) == 20
    hashes = [set(map(bytes, part.pixel_hashes)) for part in (sets[0].train, sets[0].test)]
    assert len(hashes[0] | hashes[1]) == 25


def test_class_folder_copy_of_cifar_must_be_complete(tmp_path):
    make_set(tmp_path / "cifar10")
    with pytest.raises(ValueError, match="has 2 class folders, cifar10 has 10"):
        load_labelled("cifar10", tmp_path, 32)


@pytest.mark.parametrize("bad", [1, 2])
def test_unreadable_labelled_images(tmp_path, bad):
    make_set(tmp_path, each=60)  # 120 a part: one bad image is below 1 %, two are above
    for i in range(bad):
        (tmp_path / "train" / "a" / f"{i}.png").write_bytes(b"no image")
    if bad == 2:
        with pytest.raises(ValueError, match=r"2 of 120 .*a/0\.png.*not an image"):
            load_labelled("folder", tmp_path, 16)
        return
    with pytest.warns(UserWarning, match=r"1 of 120 .*a/0\.png"):
        loaded = load_labelled("folder", tmp_path, 16)
    assert len(loaded.train) == len(loaded.train.images) == 119
    assert "a/0.png" not in loaded.train.names
    for row, name in enumerate(loaded.train.names):  # no image has another one's name
        image = decode((tmp_path / "train" / name).read_bytes())
        assert np.array_equal(stored(loaded.train)[row], fit_square(image, 16))
        assert loaded.train.pixel_hashes[row].tobytes() == pixel_hash(image)


LABELS = torch.arange(5).repeat_interleave(torch.tensor([30, 31, 32, 33, 40]))


@pytest.mark.parametrize("per_class, val", [(None, 0), (None, 4), (10, 0), (10, 5), (25, 5)])
def test_split_is_exact_disjoint_and_complete(per_class, val):
    parts = split(LABELS, 3, per_class, val)
    together = torch.cat([parts.labelled, parts.val, parts.heldout])
    assert torch.equal(together.sort().values, torch.arange(len(LABELS)))
    for part in (parts.labelled, parts.val, parts.heldout):
        assert part.dtype == torch.int64 and (part.diff() > 0).all()
    assert LABELS[parts.val].bincount(minlength=5).tolist() == [val] * 5
    wanted = LABELS.bincount() - val if per_class is None else [per_class] * 5
    assert LABELS[parts.labelled].bincount(minlength=5).tolist() == list(wanted)


def test_split_depends_on_the_seed_alone_and_is_nested():
    few, more = split(LABELS, 3, 5, 4), split(LABELS, 3, 10, 4)
    assert torch.equal(few.val, more.val)
    assert set(few.labelled.tolist()) < set(more.labelled.tolist())
    assert torch.equal(few.labelled, split(LABELS, 3, 5, 4).labelled)
    assert not torch.equal(few.labelled, split(LABELS, 4, 5, 4).labelled)
    assert not torch.equal(few.val, split(LABELS, 4, 5, 4).val)


@pytest.mark.parametrize("per_class, val", [(31, 0), (26, 5), (None, 30), (0, 0), (5, -1)])
def test_split_names_what_it_lacks(per_class, val):
    with pytest.raises(ValueError, match=r"--labels-per-class|--val-per-class") as caught:
        split(LABELS, 0, per_class, val)
    if val == 30 or (per_class and val >= 0):
        assert "class 0 has 30" in str(caught.value)
