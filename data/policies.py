"""TrivialAugment for whole batches, an operation of its own for every image.

Equal in distribution to torchvision v2's class of this name with its defaults, which draws one
operation a call.  Here the draws of a batch are one tensor on the images' device, and everything
that a draw means is looked up in tables made at the first batch: a training step on a GPU never
waits for the host, nor the host for the GPU.  Operation by operation the pixels are torchvision's.
"""

import torch
from torch.nn.functional import grid_sample

LEVELS = 31  # strengths of an operation, from none to the most
CACHED = 1 << 18  # values that a CPU works on at a time; 2**17 to 2**19 are equally fast


class TrivialAugmentWide:
    """uint8 images (B,S,S,3) -> the same shape: one operation at any level (Mueller & Hutter 2021).

    Random numbers: torch's, on the images' device.
    """

    def __init__(self):
        self._tables = {}

    def __call__(self, images):
        tables = self.tables(images.shape[1], images.device)
        # Rows are equally likely: one draw is an image's operation, level and sign at once.
        row = torch.randint(len(tables[0]), (len(images),), device=images.device)
        run = transform_on_cpu if images.device.type == "cpu" else transform
        return run(images, *(table.index_select(0, row) for table in tables))

    def tables(self, side, device):
        """`settings` on a device, made once for each size of images."""
        if (side, device) not in self._tables:
            made = settings(side)
            self._tables[side, device] = tuple(table.to(device) for table in made)
        return self._tables[side, device]


# Strengths at the highest level: slope, pixels, degrees, change of a factor, bits lost.
MOST = {"Shear": 0.99, "Translate": 32, "Rotate": 135, "factor": 0.99, "bits": 6}


def settings(side):
    """All settings, equally likely: 14 operations x levels x 2 signs, N rows in this order.
    -> function (N,) int64, the place in FUNCTIONS; strength (N,) float32, for operations on
    colours; source (N,2,2,side) float32, for `warp`.  Where a sign means nothing a row comes twice.
    """
    functions, strengths, matrices = [], [], []
    for name, function in OPERATIONS.items():
        strength = magnitudes(name)
        other = -strength if function in SIGNED else strength
        strengths.append(torch.stack([strength, other], 1).flatten())
        functions += [FUNCTIONS.index(function)] * len(strengths[-1])
        matrices.append(inverse_matrix(name, strengths[-1], side))
    matrix = torch.cat(matrices).float().view(-1, 2, 3, 1) / (side / 2)  # the grid's unit
    step = torch.arange(side) - (side - 1) / 2
    source = torch.stack([matrix[:, :, 0] * step, matrix[:, :, 1] * step + matrix[:, :, 2]], 1)
    return torch.tensor(functions), torch.cat(strengths).float(), source


def magnitudes(name):
    """An operation's strengths by level, without the sign: float64, from torchvision's float32."""
    if name == "Posterize":  # the mask of the bits that stay
        bits = (8 - torch.arange(LEVELS) / ((LEVELS - 1) / MOST["bits"])).round()
        return (256 - 2 ** (8 - bits)).double()
    if name == "Solarize":  # the threshold, up to the next whole number: the values are whole
        return (255 * torch.linspace(1.0, 0.0, LEVELS).double()).float().ceil().double()
    most = MOST.get(name.rstrip("XY"), MOST["factor"])  # three names ignore it
    return torch.linspace(0.0, most, LEVELS).double()


def inverse_matrix(name, strength, side):
    """Where an output pixel comes from, in pixels from the middle: x' = ax + by + c, y' = dx + ...

    Shears keep the top left corner in place, rotations the middle; shifts are whole pixels.
    """
    half, shift, angle = strength * side / 2, -strength.trunc(), strength.deg2rad()
    zero, one = torch.zeros_like(strength), torch.ones_like(strength)
    matrices = {
        "ShearX": [one, strength, half, zero, one, zero],
        "ShearY": [one, zero, zero, strength, one, half],
        "TranslateX": [one, zero, shift, zero, one, zero],
        "TranslateY": [one, zero, zero, zero, one, shift],
        "Rotate": [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero],
    }
    return torch.stack(matrices.get(name, [one, zero, zero, zero, one, zero]), 1)


def transform(images, function, strength, source):
    """Image i goes through FUNCTIONS[function[i]] with its own strength or source.

    Each function works on all images: picking some out would make the host wait for their number.
    """
    for number, run in enumerate(FUNCTIONS):
        changed = run(images, source if run is warp else strength)
        images = torch.where(_each(function == number), changed, images)
    return images.contiguous()


def transform_on_cpu(images, function, strength, source):
    """The same where a number is no wait: each function works on its own images alone, a few at a
    time, so that what lies between two steps of a function stays in the cache."""
    order = function.argsort()
    images, strength, source = (x.index_select(0, order) for x in (images, strength, source))
    at_a_time = max(1, CACHED // images.shape[1:].numel())
    ends = function.bincount(minlength=len(FUNCTIONS)).cumsum(0).tolist()
    for run, start, end in zip(FUNCTIONS, [0, *ends[:-1]], ends, strict=True):
        for first in range(start, end, at_a_time):
            few = slice(first, min(first + at_a_time, end))
            images[few] = run(images[few], (source if run is warp else strength)[few])
    return images.index_select(0, order.argsort())


# --- the operations: uint8 images (B,S,S,3) and a setting (B, ...) -> the same shape --------------


def warp(images, source):
    """Every output pixel is the nearest source pixel, black where that is outside.

    source (B,2,2,S): what an output pixel's column and row add to x and y.
    """
    side = images.shape[1]
    grid = (source[:, 0, :, None] + source[:, 1, :, :, None]).permute(0, 2, 3, 1)  # (B,S,S,2)
    red, green, blue = images.unbind(3)
    # A pixel as one number below 2**24, which float32 holds exactly: a third of the work.
    pixels = red.float().add_(green, alpha=1 << 8).add_(blue, alpha=1 << 16)
    pixels = grid_sample(pixels[:, None], grid, mode="nearest", align_corners=False)
    values = pixels.int().view(torch.uint8).view(-1, side, side, 4)  # the fourth byte is 0
    return torch.stack(values.unbind(3)[:3], 3)


def brightness(images, strength):
    return _uint8(images * _each(1 + strength))


def color(images, strength):
    """Towards grey, or away from it."""
    return _blend(images, _grey(images)[..., None], strength)


def contrast(images, strength):
    """Towards the mean grey value, or away from it."""
    return _blend(images, _each(_grey(images).mean((1, 2))), strength)


def sharpness(images, strength):
    """Towards the mean of the 3x3 neighbours, the middle counting five times; not at the border."""
    output = images.float()
    inner = output[:, 1:-1, 1:-1]
    rows = output[:, :-2] + output[:, 1:-1] + output[:, 2:]
    blurred = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    blurred = blurred.add_(inner, alpha=4).div_(13).round_()
    inner.addcmul_(blurred.sub_(inner), _each(-strength))
    return _uint8(output)


def posterize(images, mask):
    return images & _each(mask).to(torch.uint8)


def solarize(images, threshold):
    """Values from the threshold on are inverted."""
    bright = images >= _each(threshold).to(torch.uint8)
    return images ^ bright.view(torch.uint8).neg_()  # a bool is 0 or 1, its negative 0 or 255


def autocontrast(images, _):
    """Each channel stretched to the whole range; a channel of one value stays."""
    planes = _planes(images)
    low, high = planes.amin(1, True).float(), planes.amax(1, True).float()
    scale = (high - low).mul_(1 / 255)
    flat = high == low
    stretched = (planes - low.masked_fill(flat, 0)).div_(scale.masked_fill(flat, 1))
    return _images(_uint8(stretched), images.shape)


def equalize(images, _):
    """Each channel's values spread by their ranks, as Pillow does it."""
    planes = _planes(images)
    values = planes.long()
    count = values.new_zeros(len(values), 256, dtype=torch.int32)
    count.scatter_add_(1, values, torch.ones_like(values, dtype=torch.int32))  # how often
    total = count.cumsum(1)
    highest = total.argmax(1, keepdim=True)  # of the values that occur
    step = (planes.shape[1] - count.gather(1, highest)).div_(255, rounding_mode="floor")
    # Without a step (few pixels beside the highest value) the channel stays.
    table = (total - count + step // 2).div_(step.clamp(min=1), rounding_mode="floor")
    spread = table.clamp_(max=255).to(torch.uint8).gather(1, values)
    return _images(torch.where(step == 0, planes, spread), images.shape)


def identity(images, _):
    return images


OPERATIONS = {
    "Identity": identity,
    "ShearX": warp, "ShearY": warp, "TranslateX": warp, "TranslateY": warp, "Rotate": warp,
    "Brightness": brightness, "Color": color, "Contrast": contrast, "Sharpness": sharpness,
    "Posterize": posterize, "Solarize": solarize, "AutoContrast": autocontrast,
    "Equalize": equalize,
}  # fmt: skip
FUNCTIONS = tuple(dict.fromkeys(OPERATIONS.values()))
SIGNED = (warp, brightness, color, contrast, sharpness)


def _each(values):
    """One number an image (B,) -> (B,1,1,1)."""
    return values[:, None, None, None]


def _planes(images):
    """(B,S,S,3) -> (3 B, S*S), a row a channel: what reduces over a channel's pixels is fast."""
    return images.flatten(1, 2).mT.flatten(0, 1)


def _images(planes, shape):
    return torch.stack(planes.view(-1, 3, *shape[1:3]).unbind(1), 3)


def _uint8(values):
    return values.clamp_(0, 255).to(torch.uint8)  # cuts off, as torchvision does


def _grey(images):
    red, green, blue = images.unbind(3)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _blend(images, other, strength):
    """(1 + strength) images - strength other."""
    return _uint8((images * _each(1 + strength)).addcmul_(other, _each(-strength)))
