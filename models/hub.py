"""Published weights by name: the table, which docs/zoo.md shows to readers, and their download.

The semi-supervised (ssl) and semi-weakly supervised (swsl) models of Yalniz et al. 2019 come from
facebookresearch/semi-supervised-ImageNet1K-models; LICENCE says what they may be used for.  The
`_imagenet` ones are torchvision's.  All of these expect ImageNet's mean and standard deviation.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision

from .download import download_once
from .needed import needed
from .networks import MODELS
from .others import PREFIX
from .weights import load

URL = "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/"
LICENCE = "CC-BY-NC 4.0"  # of the ssl and swsl weights: no commercial use
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUPERVISION = {"ssl": "semi-supervised", "swsl": "semi-weakly supervised"}

# network -> parameters, multiply-adds at 224 px; counted by a test, because the published ones are
# wrong in places (docs/zoo.md)
SIZES = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnext50_32x4d": (25_028_904, 4_230_479_872),
    "resnext101_32x4d": (44_177_704, 7_969_996_800),
    "resnext101_32x8d": (88_791_336, 16_414_015_488),
    "resnext101_32x16d": (194_026_792, 36_163_289_088),
}


class PaperModel(NamedTuple):
    """One of the paper's twelve models.  Accuracies: percent of ImageNet's validation images."""

    network: str
    kind: str  # ssl or swsl
    file: str
    top1: float  # as published with the weights
    top5: float
    timm_top1: float  # as timm evaluated the same file (the model index in its documentation)
    timm_top5: float

    @property
    def old_name(self):
        """timm's former name, such as ssl_resnet50; timm still takes it."""
        return f"{self.kind}_{self.network}"

    @property
    def timm_name(self):
        """timm's name, such as resnet50.fb_ssl_yfcc100m_ft_in1k."""
        data = {"ssl": "fb_ssl_yfcc100m", "swsl": "fb_swsl_ig1b"}[self.kind]
        return f"{self.network}.{data}_ft_in1k"


_PREFIX = {"ssl": "semi_supervised", "swsl": "semi_weakly_supervised"}
_ROWS = [
    ("resnet18", "ssl", "resnet18-d92f0530", 72.8, 91.5, 72.62, 91.42),
    ("resnet50", "ssl", "resnet50-08389792", 79.3, 94.9, 79.24, 94.83),
    ("resnext50_32x4d", "ssl", "resnext50_32x4-ddb3e555", 80.3, 95.4, 80.30, 95.41),
    ("resnext101_32x4d", "ssl", "resnext101_32x4-dc43570a", 81.0, 95.7, 80.91, 95.73),
    ("resnext101_32x8d", "ssl", "resnext101_32x8-2cfe2f8b", 81.7, 96.1, 81.61, 96.04),
    ("resnext101_32x16d", "ssl", "resnext101_32x16-15fffa57", 81.9, 96.2, 81.84, 96.09),
    ("resnet18", "swsl", "resnet18-118f1556", 73.4, 91.9, 73.28, 91.76),
    ("resnet50", "swsl", "resnet50-16a12f1b", 81.2, 96.0, 81.14, 95.97),
    ("resnext50_32x4d", "swsl", "resnext50_32x4-72679e44", 82.2, 96.3, 82.17, 96.23),
    ("resnext101_32x4d", "swsl", "resnext101_32x4-3f87e46b", 83.4, 96.8, 83.22, 96.77),
    ("resnext101_32x8d", "swsl", "resnext101_32x8-b4712904", 84.3, 97.2, 84.27, 97.17),
    ("resnext101_32x16d", "swsl", "resnext101_32x16-f3559a9c", 84.8, 97.4, 83.34, 96.84),
]
ZOO = {  # hub name, such as resnet50_ssl -> one of the paper's twelve
    f"{network}_{kind}": PaperModel(network, kind, f"{_PREFIX[kind]}_{file}.pth", *accuracies)
    for network, kind, file, *accuracies in _ROWS
}
HUB = {name: entry.network for name, entry in ZOO.items()}  # every hub name -> its network's name
HUB |= {f"{name}_imagenet": name for name in torchvision.models.list_models() if name in MODELS}
_ALIASES = {
    alias: name for name, entry in ZOO.items() for alias in (entry.old_name, entry.timm_name)
}


def hub_name(name):
    """The key of HUB that `name` means: itself, or for one of timm's names, old or new, ours.

    Raises ValueError for any other name.
    """
    if (known := _ALIASES.get(name, name)) not in HUB:
        raise ValueError(
            f"unknown weights {name!r}; name a file, or one of {', '.join(HUB)} "
            f"(timm's names of them serve too)"
        )
    return known


def name_in_zoo(weights):
    """The key of ZOO for weights given by any of their names or as the path of their file.

    None for weights that are not one of the paper's twelve.
    """
    name = str(weights).removeprefix(PREFIX)
    name = _ALIASES.get(name, name)
    files = {entry.file: name for name, entry in ZOO.items()}
    return name if name in ZOO else files.get(Path(weights).name)


def licence_of(weights):
    """The licence of weights, given by name or file, as model hubs spell it; mostly "unknown"."""
    if name_in_zoo(weights):
        return LICENCE.lower().replace(" ", "-")
    if str(weights).startswith(PREFIX):
        with suppress(ValueError, AttributeError):  # timm is missing, or has no such weights
            facts = needed("timm", weights).get_pretrained_cfg(weights.removeprefix(PREFIX))
            return facts.license or "unknown"
    return "unknown"


def evaluation_size(name):
    """How the accuracy of the weights behind a hub name was measured: two lengths in pixels.

    -> the shorter side an image is resized to, the side of the middle square cut from that
    """
    if name in ZOO:
        return 256, 224
    transforms = _torchvision_weights(name).transforms()
    return transforms.resize_size[0], transforms.crop_size[0]


def categories():
    """The names of ImageNet's 1,000 classes, in the order of the logits."""
    return list(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def published_weights(name, progress=True, own=None):
    """-> the state_dict behind a name of HUB, torchvision or timm, and its (mean, std).

    own: the state_dict where the caller has it already; then nothing is fetched
    Raises ValueError where there is none, ConnectionError or OSError where it cannot be fetched.
    """
    if name in ZOO:
        return own or weights_from_url(URL + ZOO[name].file, progress), (list(MEAN), list(STD))
    if name.startswith(PREFIX):
        timm, name = needed("timm", name), name.removeprefix(PREFIX)
        own = own or timm.create_model(name, pretrained=True).state_dict()
        facts = timm.get_pretrained_cfg(name)
    else:
        weights = _torchvision_weights(name)
        own, facts = own or weights_from_url(weights.url, progress), weights.transforms()
    return own, (list(facts.mean), list(facts.std))


def weights_from_url(url, progress=True):
    """The content of a file of tensors, downloaded once into torch.hub's folder; runs no code.

    Arguments and errors are those of `download.download_once` and of `weights.load`.
    """
    return load(download_once(url, Path(torch.hub.get_dir(), "checkpoints"), progress))


def _torchvision_weights(name):
    return torchvision.models.get_model_weights(HUB.get(name, name)).DEFAULT
