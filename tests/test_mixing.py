"""MixUp and CutMix have torchvision's bits, seed by seed."""

import pytest
import torch
from data.mixing import Mix
from torchvision.transforms import v2

CLASSES = 7
WAYS = [
    {"mixup": 0.4}, {"mixup": 1.0}, {"cutmix": 1.0}, {"cutmix": 0.3}, {"mixup": 0.2, "cutmix": 1.0}
]  # fmt: skip


def theirs(mixup=0, cutmix=0):
    ways = [v2.MixUp(alpha=mixup, num_classes=CLASSES)] if mixup else []
    ways += [v2.CutMix(alpha=cutmix, num_classes=CLASSES)] if cutmix else []
    return v2.RandomChoice(ways)


@pytest.mark.parametrize("mixes", WAYS, ids=str)
@pytest.mark.parametrize("shape", [(6, 3, 16, 16), (5, 3, 7, 7), (1, 3, 8, 8), (4, 3, 32, 32)])
def test_the_bits_and_the_draws_are_torchvisions(mixes, shape):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(shape, generator=generator).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, shape[:1], generator=generator)
    ours, reference = Mix(CLASSES, **mixes), theirs(**mixes)
    for seed in range(40):
        torch.manual_seed(seed)
        want, want_target = reference(images, labels)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        got, got_target = ours(images, labels)
        assert torch.equal(got, want)
        assert torch.equal(got_target, want_target)
        assert got.stride() == want.stride()
        assert torch.equal(torch.get_rng_state(), state)


def test_both_ways_are_taken_about_equally_often():
    mix, images = Mix(2, mixup=1.0, cutmix=1.0), torch.ones(2, 3, 4, 4)
    images[1] = 0  # black and white: only a blend makes grey
    torch.manual_seed(0)
    cuts = sum(set(mix(images, torch.arange(2))[0].unique().tolist()) <= {0, 1} for _ in range(400))
    assert 150 < cuts < 250  # five standard deviations


def test_the_images_given_are_left_alone():
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    before = images.clone()
    for seed in range(8):
        torch.manual_seed(seed)
        Mix(4, mixup=1.0, cutmix=1.0)(images, labels)
    assert torch.equal(images, before)
