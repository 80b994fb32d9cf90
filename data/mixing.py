"""MixUp and CutMix: torchvision v2's, with the same draws and the same bits, without its import."""

import math

import torch
from torch.nn.functional import one_hot


class Mix:
    """Each image with the one before it: float images (B,3,S,S), labels (B,) or class probabilities
    (B,C) -> mixed, (B,C).

    mixup, cutmix   the alpha of their Beta distribution, 0 for off; with both on a batch gets one
                    of them, by the toss of a coin (Zhang et al. 2017; Yun et al. 2019)
    All random numbers come from the CPU's generator: the host needs them to cut.
    """

    def __init__(self, num_classes, mixup=0.0, cutmix=0.0):
        self.num_classes = num_classes
        self.ways = [(way, _beta(alpha)) for way, alpha in ((blend, mixup), (cut, cutmix)) if alpha]

    def __call__(self, images, labels):
        # The coin is tossed for a single way, too: torchvision's RandomChoice does.
        way, beta = self.ways[int(torch.ones(len(self.ways)).multinomial(1))]
        images, kept = way(images, float(beta.sample()))
        if labels.dim() == 1:
            labels = one_hot(labels, self.num_classes).float()
        return images, mixture(labels, kept)


def mixture(values, kept):
    """`kept` of each row and the rest of the row before it."""
    return values.roll(1, 0).mul_(1.0 - kept).add_(values.mul(kept))


def blend(images, kept):
    """MixUp: -> images, the share of each that is its own."""
    return mixture(images, kept), kept


def cut(images, kept):
    """CutMix: a box of about 1 - kept of the area, cut off at the border, from the image before."""
    height, width = images.shape[2:]
    x, y = int(torch.randint(width, (1,))), int(torch.randint(height, (1,)))
    half = 0.5 * math.sqrt(1.0 - kept)
    half_width, half_height = int(half * width), int(half * height)
    rows = slice(max(y - half_height, 0), min(y + half_height, height))
    columns = slice(max(x - half_width, 0), min(x + half_width, width))
    mixed = images.clone()
    mixed[..., rows, columns] = images.roll(1, 0)[..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1.0 - area / (width * height)


def _beta(alpha):
    return torch.distributions.Beta(torch.tensor([float(alpha)]), torch.tensor([float(alpha)]))
