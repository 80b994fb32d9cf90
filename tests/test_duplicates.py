"""The leak guard: copies of labelled images are found in the pool, near ones too.

pytest tests/test_duplicates.py
"""

import os
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data import duplicates as duplicates_module
from data.decode import checksums, decode
from data.duplicates import LeakGuard
from data.images import Images
from data.labelled import LabelledImages, LabelledSet, load_labelled
from data.listing import Names, in_blocks
from data.pool import Pool
from data.sources import Source
from data.splits import Split


def known(images, train=10, val=10):
    """A guard over made-up labelled images: the first train, the next validate, the rest test."""
    sums, names = checksums(images), np.array([f"{i}.png" for i in range(len(images))])
    labels, cut = torch.zeros(len(images), dtype=torch.int64), train + val
    whole = LabelledImages(Images.of(images), labels, names, sums, sums)
    order = torch.arange(cut).flip(0)  # no order that positions could be mistaken for
    labelled = LabelledSet(
        "made-up", ("thing",), whole.subset(torch.arange(cut)),
        whole.subset(torch.arange(cut, len(images))), {},
    )  # fmt: skip
    return LeakGuard(labelled, Split(order[val:], order[:val], order[:0]))


def found_in(guard, images):
    return {d.position: d for d in guard.find(Images.of(images), checksums(images))}


def made_up(images, name="made-up"):
    names = Names(f"{i}.png" for i in range(len(images)))
    return Source(name, names, {}, Images.of(images), in_blocks(checksums(images)))


def photographs(count, seed=0):
    """Different images with structure at every scale, like photographs: (N, 32, 32, 3)."""
    random, images = np.random.default_rng(seed), []
    for _ in range(count):
        layers = [
            cv2.resize(random.normal(size=(s, s, 3)), (32, 32), interpolation=cv2.INTER_CUBIC)
            * 32
            / s
            for s in (4, 8, 16, 32)
        ]
        images.append(np.clip(128 + 8 * sum(layers), 0, 255).astype(np.uint8))
    return np.stack(images)


def jpeg(image, quality):
    """The image once it has been a JPEG file."""
    return decode(
        cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    )


CHANGES = {
    "jpeg": lambda x: jpeg(x, 60),
    "brighter": lambda x: np.clip(x * 1.08 + 6, 0, 255).astype(np.uint8),
    "shifted": lambda x: np.roll(x, 1, axis=1),
    "rescaled": lambda x: cv2.resize(
        cv2.resize(x, (48, 48)), (32, 32), interpolation=cv2.INTER_AREA
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_duplicates_are_found_with_the_images_they_repeat(change):
    labelled, others = photographs(60), photographs(40, seed=1)
    altered = np.stack([CHANGES[change](image) for image in labelled[:30]])
    pool = np.concatenate([others, altered, labelled[30:32]])
    guard = known(labelled)
    found = found_in(guard, pool)
    assert sorted(found) == list(range(40, 72))
    for position in range(40, 72):
        match = guard.images[[found[position].match]][0].numpy()
        assert (match == labelled[position - 40]).all()
    parts = [guard.subset_of(found[position]) for position in range(40, 72)]
    assert parts == ["train"] * 10 + ["val"] * 10 + ["test"] * 12
    assert all(found[position].similarity > 0.64 for position in range(40, 70))
    assert found[70].similarity is found[71].similarity is None
    assert guard.reason(found[70]) == "duplicate of a labelled image: test 30.png"
    assert guard.reason(found[55]).startswith(
        "near-duplicate of a labelled image: val 15.png, similarity"
    )


def test_several_sources_leave_out_and_count_what_the_guard_finds():
    labelled, others = photographs(60), photographs(9, seed=1)
    first = np.concatenate([others[:5], labelled[[3]]])
    second = np.concatenate([CHANGES["jpeg"](labelled[40])[None], others[5:], labelled[[12, 59]]])
    pool = Pool([made_up(first), made_up(second, "more")])
    pool.find_duplicates(known(labelled))
    assert list(pool.duplicates) == [5, 6, 11, 12]
    assert pool.scorable(4, 8).tolist() == [True, False, False, True]
    assert pool.scorable(0, 13).sum() == 9
    assert pool.count_skipped() == {
        "unreadable": 0,
        "duplicate": {"train": 1, "val": 1, "test": 1},
        "near_duplicate": {"train": 0, "val": 0, "test": 1},
    }
    reasons = dict(pool.skipped())
    assert reasons[12] == "duplicate of a labelled image: test 59.png"


@pytest.mark.parametrize("at_once", [4, 2**24])
def test_copies_inside_the_pool_are_counted_across_sources(monkeypatch, at_once):
    monkeypatch.setattr("data.pool.COUNTED", at_once)
    images = photographs(10)
    sources = [made_up(images[[0, 1, 1, 2]]), made_up(images[[3, 0, 0, 4, 5, 1]], "more")]
    assert Pool(sources).count_copies() == 4


def test_sources_of_several_blocks_are_one_pool(monkeypatch):
    monkeypatch.setattr("data.listing.BLOCK", 3)
    images, chosen = photographs(10), [9, 3, 4, 3]
    pool = Pool([made_up(images, "first"), made_up(images[chosen], "some")])
    assert len(pool) == 14 and len(pool.sources[0].checksums) == 4
    expected = np.concatenate([images, images[chosen]])
    assert (pool.images[slice(None)].numpy() == expected).all()
    assert (pool.checksums(np.arange(14)) == checksums(expected)).all()
    assert (pool.checksums(np.array([2, 3, 11])) == checksums(expected[[2, 3, 11]])).all()
    assert pool.names_of(9, 11) == ["first/9.png", "some/0.png"]
    assert pool.positions(["some/3.png", "first/0.png"]).tolist() == [13, 0]


def test_comparison_matches_the_slow_reference():
    ours, theirs = photographs(6), photographs(6, seed=2)
    theirs[:3] = np.roll(ours[:3], (1, -1), axis=(1, 2))

    def reference(one, other):
        scores = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                total = 0
                for view in (lambda x: x - x.mean((0, 1)), detail):
                    a = view(one)[1 + down : 31 + down, 1 + right : 31 + right].ravel()
                    b = view(other)[1:31, 1:31].ravel()
                    total += a @ b / np.sqrt((a @ a) * (b @ b))
                scores.append(total / 2)
        return max(scores)

    def detail(x):
        return np.clip(x - cv2.blur(x, (5, 5)), -8, 8)

    expected = [
        reference(a.astype(float), b.astype(float)) for a, b in zip(ours, theirs, strict=True)
    ]
    assert np.allclose(duplicates_module._compare(ours, theirs), expected, atol=1e-5)
    assert min(expected[:3]) > 0.95 > 0.5 > max(expected[3:])


def test_images_without_contrast_are_compared_by_colour():
    def flat(*colour):
        return np.full((32, 32, 3), colour, np.uint8)

    labelled = np.concatenate([photographs(20), [flat(200, 30, 30)]])
    pool = np.stack([flat(201, 30, 30), flat(30, 200, 30), flat(0, 0, 0)])
    found = found_in(known(labelled), pool)
    assert list(found) == [0] and found[0].match == 20


def test_digits_are_alike_but_not_duplicates(tmp_path):
    digits = load_labelled("digits", tmp_path, 32)
    test, train = (one.images[slice(None)].numpy() for one in (digits.test, digits.train))
    guard = known(test)
    assert len(found_in(guard, train)) < 5
    copies = np.stack([CHANGES["jpeg"](image) for image in test[:100]])
    assert len(found_in(guard, copies)) > 95


def real_cifar(count):
    """The first images of the real CIFAR-100 test set, or None: (count, 32, 32, 3)."""
    root = Path(os.environ.get("BSSL_REAL", Path(__file__).parents[2] / "shared" / "data"))
    packed, images = root / "cifar100-test.tar.xz", []
    if packed.exists():
        with tarfile.open(packed, "r|xz") as archive:
            for member in archive:
                if member.isreg() and len(images) < count:
                    images.append(decode(archive.extractfile(member).read()))
    elif (root / "cifar100" / "test").is_dir():
        paths = sorted((root / "cifar100" / "test").glob("*/*"))[:count]
        images = [decode(path.read_bytes()) for path in paths]
    return np.stack(images) if len(images) == count else None


def test_near_duplicates_among_real_images():
    images = real_cifar(1000)
    if images is None:
        pytest.skip("no real CIFAR-100; set BSSL_REAL to a folder with cifar100/test/<class>/*")
    labelled, others = images[::2], images[1::2]
    guard = known(labelled)
    assert len(found_in(guard, others)) < 20
    for name in ("jpeg", "brighter", "rescaled"):
        copies = np.stack([CHANGES[name](image) for image in labelled])
        assert len(found_in(guard, copies)) >= 495, name
