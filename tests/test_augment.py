"""Augmentation moves pixels about, never mixes channels, and repeats with the seed."""

import pytest
import torch

from data.augment import POLICIES, Augment, Normalise, shift_and_flip

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def made_up(count=16, side=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), generator=generator).to(torch.uint8)


def coordinates(side):
    """One image whose pixel at (row, column) is (row, column, 0)."""
    image = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    image[0, :, :, 0] = torch.arange(side)[:, None]
    image[0, :, :, 1] = torch.arange(side)
    return image


# --- shift_and_flip -----------------------------------------------------------------------------


def test_no_shift_and_no_flip_is_the_identity():
    images = made_up()
    assert torch.equal(shift_and_flip(images, 0, flip=False), images)


def test_a_flip_without_a_shift_is_the_image_or_its_mirror_about_half_of_the_time():
    torch.manual_seed(0)
    images = made_up(count=400, side=5)
    out = shift_and_flip(images, 0)
    same = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(2)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < int(mirrored.sum()) < 250  # five standard deviations


def test_without_flip_no_column_order_is_ever_turned():
    torch.manual_seed(0)
    out = shift_and_flip(coordinates(16).expand(300, -1, -1, -1), 2, flip=False)
    column = out[:, 8, :, 1].int()
    inner = column[:, 3:13]  # beyond the mirrored border
    assert (inner.diff(dim=1) == 1).all()


def test_shifts_reach_every_offset_up_to_the_most_and_none_beyond():
    torch.manual_seed(0)
    out = shift_and_flip(coordinates(16).expand(600, -1, -1, -1), 3, flip=False).int()
    down, right = out[:, 8, 8, 0] - 8, out[:, 8, 8, 1] - 8
    offsets = set(zip(down.tolist(), right.tolist(), strict=True))
    assert offsets == {(i, j) for i in range(-3, 4) for j in range(-3, 4)}


def test_the_border_is_a_mirror_that_shows_the_edge_pixel_once():
    torch.manual_seed(1)
    for image in shift_and_flip(coordinates(8).expand(50, -1, -1, -1), 3, flip=False).int():
        shift = int(image[4, 4, 0]) - 4
        expected = torch.nn.functional.pad(torch.arange(8.0)[None], (3, 3), mode="reflect")[0]
        assert image[:, 4, 0].tolist() == expected[3 + shift : 11 + shift].int().tolist()


def test_rows_and_columns_move_as_a_whole():
    torch.manual_seed(2)
    out = shift_and_flip(coordinates(12).expand(40, -1, -1, -1), 4)
    assert (out[:, :, :1, 0] == out[..., 0]).all()  # one source row for a whole row
    assert (out[:, :1, :, 1] == out[..., 1]).all()  # one source column for a whole column


def test_every_output_row_comes_from_the_same_image():
    torch.manual_seed(3)
    images = made_up(count=10, side=8)
    out = shift_and_flip(images, 0)
    rows_in = images.sort(dim=2).values  # a row's pixels, whatever their order
    assert torch.equal(out.sort(dim=2).values, rows_in)
    number = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 8, 8, 3)
    assert torch.equal(shift_and_flip(number, 4), number)


def test_images_of_a_batch_move_independently():
    torch.manual_seed(4)
    out = shift_and_flip(coordinates(16).expand(30, -1, -1, -1), 2)
    assert len({tuple(image[8, 8].tolist()) for image in out}) > 5


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_shift_larger_than_the_image_stays_inside_it(side):
    torch.manual_seed(5)
    out = shift_and_flip(coordinates(side).expand(50, -1, -1, -1), 100)
    assert out.shape == (50, side, side, 3)
    assert int(out.max()) <= side - 1


# --- Normalise ----------------------------------------------------------------------------------


def test_normalise_is_the_hand_formula_and_channels_last():
    images = made_up(count=3, side=4)
    out = Normalise(MEAN, STD)(images)
    assert out.shape == (3, 3, 4, 4)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    for channel in range(3):
        expected = (images[..., channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(out[:, channel].double(), expected, rtol=1e-5, atol=1e-5)


def test_normalise_leaves_its_input_alone():
    images = made_up(count=2)
    before = images.clone()
    Normalise(MEAN, STD)(images)
    assert torch.equal(images, before)


# --- Augment ------------------------------------------------------------------------------------


def augmented(policy, images, seed=0, classes=5, **mixes):
    torch.manual_seed(seed)
    labels = torch.arange(len(images)) % classes
    return Augment(Normalise(MEAN, STD), policy, classes, **mixes)(images, labels)


@pytest.mark.parametrize("policy", ["none", "crop", "crop-flip"])
def test_a_pure_red_image_stays_pure_red(policy):
    red = torch.zeros(8, 16, 16, 3, dtype=torch.uint8)
    red[..., 0] = 200
    out, _ = augmented(policy, red)
    assert torch.equal(out, Normalise(MEAN, STD)(red))


def test_policy_none_normalises_and_nothing_else():
    images = made_up()
    out, labels = augmented("none", images)
    assert torch.equal(out, Normalise(MEAN, STD)(images))
    assert labels.tolist() == [i % 5 for i in range(16)]


def test_crop_never_flips_and_crop_flip_does():
    image = coordinates(16).expand(200, -1, -1, -1)
    for policy, turned in (("crop", False), ("crop-flip", True)):
        out, _ = augmented(policy, image)
        inner = out[:, 1, 8, 3:13].diff(dim=1)  # the column's number along a row
        assert bool((inner < 0).any()) == turned
        assert (inner > 0).any()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_batch_and_another_one_another(policy):
    images = made_up()
    one, again = augmented(policy, images, seed=1)[0], augmented(policy, images, seed=1)[0]
    assert one.shape == (16, 3, 16, 16)
    assert one.dtype == torch.float32
    assert torch.equal(one, again)
    assert torch.equal(one, augmented(policy, images, seed=2)[0]) == (policy == "none")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_images_given_are_left_alone(policy):
    images = made_up()
    before = images.clone()
    augmented(policy, images, mixup=0.5, cutmix=0.5)
    assert torch.equal(images, before)


@pytest.mark.parametrize("mixes", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_targets_are_probabilities_of_the_classes_in_the_mixture(mixes):
    images, labels = made_up(), torch.arange(16) % 5
    changed = False
    for seed in range(6):
        out, target = augmented("crop-flip", images, seed=seed, **mixes)
        assert out.shape == (16, 3, 16, 16)
        assert target.shape == (16, 5)
        assert (target >= 0).all()
        torch.testing.assert_close(target.sum(1), torch.ones(16))
        assert ((target > 0).sum(1) <= 2).all()
        allowed = torch.nn.functional.one_hot(labels, 5) + torch.nn.functional.one_hot(
            labels.roll(1), 5
        )
        assert (allowed[target > 0] > 0).all()
        changed |= bool(((target > 0).sum(1) == 2).any())
        again, target_again = augmented("crop-flip", images, seed=seed, **mixes)
        assert torch.equal(out, again)
        assert torch.equal(target, target_again)
    assert changed


def test_mixed_targets_say_how_much_of_each_image_is_there():
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    images[1] = 255
    for name in ("mixup", "cutmix"):
        for seed in range(5):
            torch.manual_seed(seed)
            plain = Normalise((0, 0, 0), (1, 1, 1))  # black is 0, white is 1
            augment = Augment(plain, "none", 2, **{name: 1.0})
            out, target = augment(images, torch.tensor([0, 1]))
            torch.testing.assert_close(out.mean((1, 2, 3)), target[:, 1], rtol=0, atol=1e-5)
            whole = ((out == 0) | (out == 1)).all()  # each pixel is that of one of the images
            assert whole == (name == "cutmix"), (name, seed)


def test_an_unknown_policy_lists_the_choices():
    with pytest.raises(ValueError, match="unknown augmentation 'flop'; choose from none, crop"):
        Augment(Normalise(MEAN, STD), "flop", 5)


@pytest.mark.parametrize("mixed", [0.0, 0.5, 1.0])
def test_the_share_of_mixed_batches_is_the_one_asked_for(mixed):
    torch.manual_seed(0)
    images, labels = torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.arange(4)
    augment = Augment(Normalise([0.5] * 3, [0.25] * 3), "none", 4, cutmix=1.0, mixed=mixed)
    seen = [augment(images, labels)[1].ndim == 2 for _ in range(200)]  # class probabilities
    assert abs(sum(seen) / 200 - mixed) < 0.12
