"""Whole batches of uint8 images, augmented and normalised on their device."""

import torch
from torchvision.transforms import v2

from .policies import TrivialAugmentWide

POLICIES = ("none", "crop", "crop-flip", "trivialaugment")


class Normalise:
    """uint8 images (B,S,S,3) -> float32 (B,3,S,S), (value/255 - mean) / std, channels_last.

    `mean`, `std`: three numbers each, on the scale 0 to 1.
    """

    def __init__(self, mean, std, device="cpu"):
        self.mean = torch.tensor(mean, device=device) * 255
        self.scale = 1 / (torch.tensor(std, device=device) * 255)

    def __call__(self, images):
        batch, side = images.shape[:2]
        # For a whole line of 3 S numbers: on a CPU that takes half as long as for 3 at a time.
        mean, scale = self.mean.repeat(side), self.scale.repeat(side)
        lines = images.reshape(batch, side, 3 * side).float().sub_(mean).mul_(scale)
        return lines.view(images.shape).permute(0, 3, 1, 2)  # a view, so channels_last in memory


class Augment:
    """A training batch: uint8 images (B,S,S,3), labels -> float (B,3,S,S), targets.

    policy   none; crop: shifted by up to an eighth of the side, mirrored at the border; crop-flip:
             also flipped left to right, half of them; trivialaugment: crop-flip, then a random
             operation (Mueller & Hutter 2021)
    mixup, cutmix   the alpha of their Beta distribution, 0 for off (Zhang et al. 2017; Yun et al.
             2019); with both on, each batch gets one of them at random
    mixed    share of the batches that get one
    Labels are classes (B,) or class probabilities (B,C); so are the targets, which with mixup or
    cutmix are always (B,C).  Random numbers come from torch's global generators.  Raises ValueError
    for an unknown policy.
    """

    def __init__(self, normalise, policy, num_classes, mixup=0.0, cutmix=0.0, mixed=1.0):
        if policy not in POLICIES:
            raise ValueError(f"unknown augmentation {policy!r}; choose from {', '.join(POLICIES)}")
        self.normalise, self.policy = normalise, policy
        self.operation = TrivialAugmentWide() if policy == "trivialaugment" else None
        ways = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
        ways += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
        self.mix = v2.RandomChoice(ways) if ways else None
        self.mixed = mixed

    def __call__(self, images, labels):
        if self.policy != "none":
            images = shift_and_flip(images, images.shape[1] // 8, flip=self.policy != "crop")
        if self.operation:
            images = self.operation(images)
        images = self.normalise(images)
        # No number is drawn where every batch is mixed.
        mix = self.mix and (self.mixed == 1 or torch.rand(()).item() < self.mixed)
        return self.mix(images, labels) if mix else (images, labels)


def shift_and_flip(images, most, flip=True):
    """Shift every image by up to `most` pixels each way, mirrored at the border, and flip half.

    images: uint8 (B,S,S,3) -> the same shape

    One gather of whole pixels by a flat index does both.  On a CPU it takes a third of the time of
    an index of image, row and column.
    """
    batch, side = images.shape[:2]
    device = images.device
    most = min(most, side - 1)
    shift = torch.randint(-most, most + 1, (2, batch, 1), device=device)
    # Mirrored at side - 1, then at 0.
    rows, columns = (side - 1 - (torch.arange(side, device=device) + shift)).abs()
    rows, columns = (side - 1 - rows).abs(), (side - 1 - columns).abs()
    if flip:
        flipped = torch.rand(batch, 1, device=device) < 0.5
        columns = torch.where(flipped, side - 1 - columns, columns)
    rows = side * (rows + side * torch.arange(batch, device=device)[:, None])  # first pixel of each
    pixel = (rows[:, :, None] + columns[:, None, :]).flatten()  # (B*S*S,) in the whole batch
    return images.reshape(-1, 3).index_select(0, pixel).view(images.shape)
