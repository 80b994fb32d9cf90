"""Whole batches of uint8 images, augmented and normalised on the device that holds them."""

import torch
from torchvision.transforms import v2

POLICIES = ("none", "crop", "crop-flip", "randaugment", "trivialaugment")

# v2's policies draw one operation a call.  A call an image costs more than a small network's step
# on a CPU and a call a batch gives all its images the same operation; a call on eight is between.
_POLICY_GROUP = 8


class Normalise:
    """uint8 images (B,S,S,3) -> float32 (B,3,S,S), (value/255 - mean) / std, channels_last.

    `mean`, `std`: three numbers each, on the scale 0 to 1.
    """

    def __init__(self, mean, std, device="cpu"):
        self.mean = torch.tensor(mean, device=device) * 255
        self.scale = 1 / (torch.tensor(std, device=device) * 255)

    def __call__(self, images):
        batch, side = images.shape[:2]
        # A row of 3 S numbers instead of 3: on a CPU broadcasting along 3 takes five times as long.
        mean, scale = self.mean.repeat(side), self.scale.repeat(side)
        rows = images.reshape(batch, side, 3 * side).float().sub_(mean).mul_(scale)
        return rows.view(images.shape).permute(0, 3, 1, 2)  # as a view: channels_last in memory


class Augment:
    """A training batch: uint8 images (B,S,S,3), labels (B,) -> float (B,3,S,S), targets.

    policy   none; crop: shifts of up to an eighth of the side, mirrored at the border; crop-flip:
             and left-right; randaugment (Cubuk et al. 2019) or trivialaugment (Mueller & Hutter
             2021): torchvision v2's on top of crop-flip
    mixup, cutmix   the alpha of their Beta distribution, 0 for off; with both on a batch gets one
             of them, by the toss of a coin (Zhang et al. 2017; Yun et al. 2019)
    Targets are the labels (B,), or class probabilities (B,C) with mixup or cutmix.  Random numbers
    come from torch's global generators.
    """

    def __init__(self, normalise, policy, num_classes, mixup=0.0, cutmix=0.0):
        if policy not in POLICIES:
            raise ValueError(f"unknown augmentation {policy!r}; choose from {', '.join(POLICIES)}")
        self.normalise, self.policy = normalise, policy
        self.operation = {
            "randaugment": v2.RandAugment(),
            "trivialaugment": v2.TrivialAugmentWide(),
        }.get(policy)
        mixes = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
        mixes += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
        self.mix = v2.RandomChoice(mixes) if mixes else None

    def __call__(self, images, labels):
        if self.policy != "none":
            images = shift_and_flip(images, images.shape[1] // 8, flip=self.policy != "crop")
        if self.operation:
            groups = images.permute(0, 3, 1, 2).split(_POLICY_GROUP)
            images = torch.cat([self.operation(group) for group in groups]).permute(0, 2, 3, 1)
        images = self.normalise(images)
        return self.mix(images, labels) if self.mix else (images, labels)


def shift_and_flip(images, most, flip=True):
    """Shift every image by up to `most` pixels each way, mirrored at the border, and flip half.

    images: uint8 (B,S,S,3) -> the same shape.  One gather does both, by a flat index of whole
    pixels: on a CPU a third of the time of indexing image, row and column.
    """
    batch, side = images.shape[:2]
    device = images.device
    most = min(most, side - 1)
    shift = torch.randint(-most, most + 1, (2, batch, 1), device=device)
    rows, columns = (side - 1 - (torch.arange(side, device=device) + shift)).abs()  # mirror below 0
    rows, columns = (side - 1 - rows).abs(), (side - 1 - columns).abs()  # and above side - 1
    if flip:
        flipped = torch.rand(batch, 1, device=device) < 0.5
        columns = torch.where(flipped, side - 1 - columns, columns)
    rows = side * (rows + side * torch.arange(batch, device=device)[:, None])  # first pixel of each
    pixel = (rows[:, :, None] + columns[:, None, :]).flatten()  # (B*S*S,) in the whole batch
    return images.reshape(-1, 3).index_select(0, pixel).view(images.shape)
