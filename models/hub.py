"""Published ImageNet weights by name: the zoo's table, and their download.

The semi-supervised (ssl) and semi-weakly supervised (swsl) models of Yalniz et al. 2019 come from
facebookresearch/semi-supervised-ImageNet1K-models; LICENCE says what they may be used for.  The
`_imagenet` ones are torchvision's.  All expect inputs normalised with ImageNet's mean and standard
deviation.
"""

import errno
import hashlib
import http.client
import pickle
import re
import socket
import threading
import urllib.request
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision

URL = "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/"
LICENCE = "CC-BY-NC 4.0"  # of the ssl and swsl weights: no commercial use
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUPERVISION = {"ssl": "semi-supervised", "swsl": "semi-weakly supervised"}
ANSWER_SECONDS = 12  # to wait for a first answer, name look-up included
STALL_SECONDS = 8  # to wait for the next bytes

# network -> parameters, multiply-adds at 224 px; counted, unlike the published table's (README.md)
SIZES = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnext50_32x4d": (25_028_904, 4_230_479_872),
    "resnext101_32x4d": (44_177_704, 7_969_996_800),
    "resnext101_32x8d": (88_791_336, 16_414_015_488),
    "resnext101_32x16d": (194_026_792, 36_163_289_088),
}


class Published(NamedTuple):
    """One of the twelve.  Accuracies are percent on ImageNet's validation images."""

    network: str
    kind: str  # ssl or swsl
    file: str
    top1: float  # as published with the weights
    top5: float
    timm_top1: float  # as timm evaluated the same file (the model index in its documentation)
    timm_top5: float

    @property
    def old_name(self):
        """timm's until version 0.8, such as ssl_resnet50."""
        return f"{self.kind}_{self.network}"

    @property
    def timm_name(self):
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
ZOO = {
    f"{network}_{kind}": Published(network, kind, f"{_PREFIX[kind]}_{file}.pth", *accuracies)
    for network, kind, file, *accuracies in _ROWS
}
_TORCHVISION = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x8d"
)  # fmt: skip
HUB = {name: one.network for name, one in ZOO.items()}  # hub name -> network name
HUB |= {f"{name}_imagenet": name for name in _TORCHVISION}
_ALIASES = {other: name for name, one in ZOO.items() for other in (one.old_name, one.timm_name)}


def find(name):
    """The hub name behind a hub name, one of timm's or one of timm's old ones.

    Raises ValueError for any other.
    """
    name = _ALIASES.get(name, name)
    if name not in HUB:
        raise ValueError(
            f"unknown weights {name!r}; name a file, or one of {', '.join(HUB)} "
            f"(timm's names of them serve too)"
        )
    return name


def zoo_name(weights):
    """The hub name of the one of the twelve that a name, or the path of its file, stands for, or
    None."""
    name = _ALIASES.get(str(weights), str(weights))
    files = {one.file: name for name, one in ZOO.items()}
    return name if name in ZOO else files.get(Path(weights).name)


def evaluation_size(name):
    """How the weights' accuracy was measured: -> the shorter side to resize to, the middle square
    to cut from that; pixels."""
    if name in ZOO:
        return 256, 224
    transforms = _torchvision_weights(name).transforms()
    return transforms.resize_size[0], transforms.crop_size[0]


def categories():
    """The names of ImageNet's 1,000 classes, in the order of the logits."""
    return list(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def hub_weights(name, progress=True):
    """The state_dict behind a hub name: see `fetch` for the rest.  ValueError for another name."""
    name = find(name)
    return fetch(URL + ZOO[name].file if name in ZOO else _torchvision_weights(name).url, progress)


def _torchvision_weights(name):
    return torchvision.models.get_model_weights(HUB[name]).DEFAULT


def fetch(url, progress=True):
    """The content of a file of tensors, downloaded once into torch.hub's folder, read safely.

    url: its last part ends in -<the first digits of its sha256>.pth, which is checked each time
    progress: whether to show a bar on stderr
    Raises ConnectionError when the download fails or brings another file, and keeps nothing of it;
    ValueError for an earlier download that is damaged, a file of anything else than tensors and
    plain types, or a URL without a hash.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not re.search(r"-[a-f0-9]{8,64}\.", path.name):
        raise ValueError(f"{url} does not end in -<sha256>.pth, by which a download is checked")
    if path.exists():
        _check_hash(path)
    else:
        _require_answer(url, path.parent)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)  # torch.hub sets none
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=progress, check_hash=True, weights_only=True
        )
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is no file of tensors and plain types; do not use it") from error
    except RuntimeError as error:
        raise ConnectionError(
            f"{url} sent a truncated or altered file ({error}); nothing of it was kept, try again"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.ENOSPC:
            raise  # the disk's fault, not the network's
        raise _unreachable(url, path.parent, error) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _check_hash(path):
    expected = re.search(r"-([a-f0-9]{8,64})\.", path.name).group(1)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise ValueError(
            f"{path} is damaged: its sha256 begins with {found[:8]} instead of {expected}; "
            f"delete it, and it is downloaded again"
        )


def _require_answer(url, folder):
    """Raises ConnectionError unless the address answers within ANSWER_SECONDS.

    On a thread of its own: no socket timeout covers the look-up of a name, nor the sum over a
    host's several addresses.
    """
    failure = [f"no answer within {ANSWER_SECONDS} s"]

    def ask():
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS):
                failure.clear()
        except Exception as error:  # any failure is an answer to report, on the caller's thread
            failure[0] = error

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    for reason in list(failure):  # a copy: the thread may still be running
        raise _unreachable(url, folder, reason)


def _unreachable(url, folder, reason):
    return ConnectionError(f"cannot download {url} ({reason}); put the file into {folder}")
