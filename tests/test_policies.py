"""The policies are torchvision's: the pixels operation by operation, the draws by counting.

On the CPU where this was written all pixels are equal.  Two kinds of operation have room for
another processor: blends (a product and a sum may be rounded once or twice) and geometry (a place
just between two pixels), see `ROUNDED` and `BETWEEN`.
"""

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms import v2

from data import policies

ROUNDED = ("Color", "Contrast", "Sharpness")  # at most 0.1 % of the values differ, and by 1
BETWEEN = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")  # at most 0.1 % differ
WAYS = (policies.transform, policies.transform_on_cpu)


def made_up(side, seed=0):
    """Images of noise, of little contrast, of a ramp, of one value, of dark, and two-valued."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (6, side, side, 3), generator=generator).to(torch.uint8)
    images[1] = images[1] // 4 + 100
    images[2] = (torch.arange(side) * 255 // side).to(torch.uint8)[:, None, None]
    images[3] = 77
    images[4] //= 8
    images[5] = 255 * (images[5] > 200)
    return images


def every_setting(reference, side):
    """(name, magnitude) of every row of the tables, as torchvision's class has them, in order."""
    assert list(policies.OPERATIONS) == list(reference._AUGMENTATION_SPACE)
    for name, (levels, signed) in reference._AUGMENTATION_SPACE.items():
        levels = levels(policies.LEVELS, side, side)
        for level in range(policies.LEVELS):
            magnitude = 0.0 if levels is None else float(levels[level])
            yield name, magnitude
            yield name, -magnitude if signed else magnitude


@pytest.mark.parametrize("side", [9, 32, 64])
def test_every_operation_at_every_strength_has_torchvisions_pixels(side):
    policy, reference = policies.TrivialAugmentWide(), v2.TrivialAugmentWide()
    images = made_up(side)[:: 1 if side < 64 else 2]
    tables = policy.tables(side, images.device)
    rows = list(every_setting(reference, side))
    assert len(rows) == len(tables[0]) == 14 * 2 * policies.LEVELS
    values, wrong, furthest = Counter(), Counter(), Counter()
    for row, (operation, magnitude) in enumerate(rows):
        want = reference._apply_image_or_video_transform(
            images.permute(0, 3, 1, 2), operation, magnitude, "nearest", reference._fill
        ).permute(0, 2, 3, 1)
        for way in WAYS:
            got = way(
                images, *(table[row].expand(len(images), *table[row].shape) for table in tables)
            )
            assert got.dtype == torch.uint8
            assert got.is_contiguous()
            off = (got.int() - want.int()).abs()
            values[operation] += off.numel()
            wrong[operation] += int(off.count_nonzero())
            furthest[operation] = max(furthest[operation], int(off.max()))
    for operation in policies.OPERATIONS:
        share = wrong[operation] / values[operation]
        allowed = 1e-3 if operation in ROUNDED + BETWEEN else 0
        assert share <= allowed, f"{operation}: {share:.2%} of the values differ"
        assert operation in BETWEEN or furthest[operation] <= 1, operation


def test_images_of_one_or_two_pixels_are_taken():
    for side in (1, 2):
        images = made_up(side)
        for _ in range(20):
            assert policies.TrivialAugmentWide()(images).shape == images.shape


# --- the draws ----------------------------------------------------------------------------------


def theirs_drawn(reference, count, monkeypatch):
    """What torchvision draws in `count` calls: Counter of (name, magnitude)."""
    drawn = Counter()

    def note(image, name, magnitude, **_):
        drawn[name, magnitude] += 1
        return image

    monkeypatch.setattr(reference, "_apply_image_or_video_transform", note)
    for _ in range(count):
        reference(torch.zeros(3, 32, 32, dtype=torch.uint8))
    return drawn


def ours_drawn(policy, reference, count, monkeypatch):
    """The same of a policy for a batch of `count` images."""
    rows = list(every_setting(reference, 32))
    drawn, randint = Counter(), torch.randint

    def note(*args, **kwargs):
        row = randint(*args, **kwargs)
        assert args == (len(rows), (count,))
        drawn.update(rows[i] for i in row.tolist())
        return row

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", note)
        patch.setattr(policies, "transform_on_cpu", lambda images, *settings: images)
        policy(torch.zeros(count, 32, 32, 3, dtype=torch.uint8))
    return drawn


def test_operations_magnitudes_and_signs_are_drawn_as_often_as_torchvision_draws_them(
    monkeypatch,
):
    torch.manual_seed(0)
    policy, reference = policies.TrivialAugmentWide(), v2.TrivialAugmentWide()
    ours = ours_drawn(policy, reference, 40_000, monkeypatch)
    theirs = theirs_drawn(reference, 4_000, monkeypatch)
    assert ours.total() == 40_000
    assert theirs.total() == 4_000
    assert theirs.keys() <= ours.keys()
    for what in (  # each a share of the draws of one kind
        lambda name, magnitude: name,
        lambda name, magnitude: (name, magnitude > 0),
        lambda name, magnitude: abs(magnitude) if name == "Rotate" else None,
        lambda name, magnitude: magnitude if name in ("Posterize", "Solarize") else None,
    ):
        one, two = Counter(), Counter()
        for counted, drawn in ((one, ours), (two, theirs)):
            for key, count in drawn.items():
                counted[what(*key)] += count
        for key in one:
            share, theirs_share = one[key] / ours.total(), two[key] / theirs.total()
            deviation = (share * (1 - share) / theirs.total() * 1.1) ** 0.5
            assert abs(share - theirs_share) < 5 * deviation, key


def test_every_image_has_an_operation_of_its_own():
    torch.manual_seed(0)
    image = made_up(32)[:1].expand(200, -1, -1, -1)
    out = policies.TrivialAugmentWide()(image)
    assert len({bytes(one.flatten().tolist()) for one in out}) > 120
    assert 5 < int((out == image).flatten(1).all(1).sum()) < 60  # the identity is one of 14


def test_what_an_image_becomes_does_not_depend_on_the_batch_around_it(monkeypatch):
    torch.manual_seed(1)
    policy, images = policies.TrivialAugmentWide(), made_up(16).repeat(20, 1, 1, 1)
    tables = policy.tables(16, images.device)
    row = torch.randint(len(tables[0]), (len(images),))
    chosen = [table[row] for table in tables]
    before = images.clone()
    want = policies.transform(images, *chosen)
    assert torch.equal(policies.transform_on_cpu(images, *chosen), want)
    for i in range(0, len(images), 7):
        alone = policies.transform_on_cpu(images[i : i + 1], *(x[i : i + 1] for x in chosen))
        assert torch.equal(alone[0], want[i])
    monkeypatch.setattr(policies, "CACHED", 1)  # one image at a time
    assert torch.equal(policies.transform_on_cpu(images, *chosen), want)
    assert torch.equal(images, before)


# --- nothing crosses between host and device ----------------------------------------------------


class Watch(TorchDispatchMode):
    """Notes each operation that makes a tensor out of none, or whose tensors are not all on a GPU.

    Those out of a tensor (zeros_like, new_zeros) are filled on the device and make nobody wait.
    """

    def __init__(self):
        super().__init__()
        self.seen, self.draws = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if func is torch.ops.aten.randint.default:
            self.draws += 1
        elif not given or any(x.device.type != "cuda" for x in given + made):
            self.seen.append(str(func))
        return out


def watched(function):
    """What `function` does to a batch that claims to be on a GPU, after a first call."""
    with FakeTensorMode():
        images = torch.empty(16, 32, 32, 3, dtype=torch.uint8, device="cuda")
        function(images)
        with Watch() as watch:
            out = function(images)
        assert (out.shape, out.dtype, out.device) == (images.shape, images.dtype, images.device)
    return watch


def test_a_call_makes_no_tensor_on_the_device_but_its_draws():
    policy = policies.TrivialAugmentWide()
    watch = watched(policy)
    assert watch.seen == []
    assert watch.draws == 1


def test_the_watch_sees_what_it_is_there_for():
    for careless in (
        lambda x: x + torch.tensor(1, dtype=torch.uint8, device="cuda"),
        lambda x: x + torch.arange(3, device="cuda").to(torch.uint8),
        lambda x: x.cpu().cuda(),
    ):
        assert watched(careless).seen
    for waiting in (lambda x: x + x[0, 0, 0, 0].item(), lambda x: x[x[:, 0, 0, 0] > 3]):
        with pytest.raises(Exception, match=r"item|nonzero|data-dependent|_local_scalar_dense"):
            watched(waiting)
    with pytest.raises(DataDependentOutputException):  # what it was like: a draw of the host's
        watched(lambda x: v2.TrivialAugmentWide()(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_nobody_waits_and_the_pixels_are_the_cpus():
    policy, images = policies.TrivialAugmentWide(), made_up(32).repeat(50, 1, 1, 1)
    on_gpu = images.cuda()
    tables = policy.tables(32, images.device)
    row = torch.randint(len(tables[0]), (len(images),))
    settings = [table[row] for table in tables]
    there = [setting.cuda() for setting in settings]
    policy(on_gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        policy(on_gpu)
        out = policies.transform(on_gpu, *there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    off = (out.cpu().int() - policies.transform(images, *settings).int()).abs()
    assert off.count_nonzero() <= 1e-3 * off.numel()
