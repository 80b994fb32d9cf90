"""Published ImageNet weights by name, for `--weights NAME`.

The semi-supervised (ssl) and semi-weakly supervised (swsl) models of Yalniz et al. 2019 come from
facebookresearch/semi-supervised-ImageNet1K-models, licence CC-BY-NC 4.0; the `_imagenet` ones are
torchvision's.  All expect inputs normalised with ImageNet's mean and standard deviation.
"""

import http.client
import socket

import torch
import torchvision

URL = "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_FILES = {
    "resnet18_ssl": "semi_supervised_resnet18-d92f0530.pth",
    "resnet50_ssl": "semi_supervised_resnet50-08389792.pth",
    "resnext50_32x4d_ssl": "semi_supervised_resnext50_32x4-ddb3e555.pth",
    "resnext101_32x4d_ssl": "semi_supervised_resnext101_32x4-dc43570a.pth",
    "resnext101_32x8d_ssl": "semi_supervised_resnext101_32x8-2cfe2f8b.pth",
    "resnext101_32x16d_ssl": "semi_supervised_resnext101_32x16-15fffa57.pth",
    "resnet18_swsl": "semi_weakly_supervised_resnet18-118f1556.pth",
    "resnet50_swsl": "semi_weakly_supervised_resnet50-16a12f1b.pth",
    "resnext50_32x4d_swsl": "semi_weakly_supervised_resnext50_32x4-72679e44.pth",
    "resnext101_32x4d_swsl": "semi_weakly_supervised_resnext101_32x4-3f87e46b.pth",
    "resnext101_32x8d_swsl": "semi_weakly_supervised_resnext101_32x8-b4712904.pth",
    "resnext101_32x16d_swsl": "semi_weakly_supervised_resnext101_32x16-f3559a9c.pth",
}
_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d")
HUB = {name: name.rsplit("_", 1)[0] for name in _FILES}  # hub name -> network name
HUB |= {f"{name}_imagenet": name for name in _TORCHVISION}


def hub_weights(name):
    """The state_dict behind a hub name, downloaded once into torch.hub's folder, hash checked.

    Raises ValueError for an unknown name, ConnectionError when the download fails.
    """
    if name not in HUB:
        raise ValueError(f"unknown weights {name!r}; name a file, or one of {', '.join(HUB)}")
    if name in _FILES:
        url = URL + _FILES[name]
    else:
        url = torchvision.models.get_model_weights(HUB[name]).DEFAULT.url
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # seconds; torch.hub sets none
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # RuntimeError: wrong hash
        raise ConnectionError(
            f"cannot download the weights {name} from {url} ({error}); "
            f"put the file into {torch.hub.get_dir()}/checkpoints or start without --weights"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
