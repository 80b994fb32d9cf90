"""Networks by name: `build_model("resnet50", num_classes=100)`.

resnet18 ... resnext101_32x16d   torchvision's classes with the ImageNet stem (7x7 stride 2, max
                                 pooling), for inputs of 64 px and more; torchvision's and the
                                 published semi-supervised weights load into them
resnet18-cifar ...               the same with a 3x3 stride-1 stem and no pooling, for 32 px
resnet8 ... resnet110, -wN       small networks for CPUs, width 16 or N (models/small_resnet.py)
vit_b_16, timm/resnet10t ...     any other network of torchvision or timm (models/others.py)
"""

from functools import partial

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from . import others
from .small_resnet import SmallResNet

# name -> block, blocks a group, convolution groups, width of a group
_TORCHVISION = {
    "resnet18": (BasicBlock, [2, 2, 2, 2], 1, 64),
    "resnet34": (BasicBlock, [3, 4, 6, 3], 1, 64),
    "resnet50": (Bottleneck, [3, 4, 6, 3], 1, 64),
    "resnet101": (Bottleneck, [3, 4, 23, 3], 1, 64),
    "resnext50_32x4d": (Bottleneck, [3, 4, 6, 3], 32, 4),
    "resnext101_32x4d": (Bottleneck, [3, 4, 23, 3], 32, 4),
    "resnext101_32x8d": (Bottleneck, [3, 4, 23, 3], 32, 8),
    "resnext101_32x16d": (Bottleneck, [3, 4, 23, 3], 32, 16),
}
_DEPTHS = (8, 14, 20, 32, 44, 56, 110)  # of the small ones; the first three also in greater widths


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, also under autocast.

    bf16 has 8 significant bits: logits rounded to them would give many images the same score, and
    step 2 ranks by the scores.  The state_dict is nn.Linear's.
    """

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def _torchvision_resnet(name, stem, num_classes):
    block, layers, groups, width = _TORCHVISION[name]
    model = ResNet(block, layers, num_classes, groups=groups, width_per_group=width)
    if stem == "cifar":
        # A 32 px image keeps its 32 x 32 positions until the second group.  The ImageNet stem would
        # reduce them to 8 x 8 before the first block.
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


# name -> what builds the network for `num_classes`
MODELS = {name: partial(_torchvision_resnet, name, "imagenet") for name in _TORCHVISION}
MODELS |= {f"{name}-cifar": partial(_torchvision_resnet, name, "cifar") for name in _TORCHVISION}
MODELS |= {f"resnet{depth}": partial(SmallResNet, depth, 16) for depth in _DEPTHS}
MODELS |= {f"resnet{d}-w{w}": partial(SmallResNet, d, w) for d in _DEPTHS[:3] for w in (24, 32, 64)}


def check_name(name):
    """ValueError for a name that neither MODELS nor torchvision nor timm has."""
    if name not in MODELS and not others.is_known(name):
        raise ValueError(
            f"unknown model {name!r}; {others.near(name, MODELS)}choose from {', '.join(MODELS)}, "
            f"torchvision's other names, or timm/ and one of timm's"
        )


def build_model(name, num_classes):
    """A network with random weights (from torch's global generator).

    Maps normalised float images (B,3,H,W) to float32 logits (B,num_classes).
    Raises ValueError for a name that `check_name` refuses.
    """
    check_name(name)
    if name in MODELS:
        model = MODELS[name](num_classes=num_classes)
        last = model.fc
    else:
        model, last = others.build(name, num_classes)
    last.__class__ = Float32Linear
    return model


def head_of(model):
    """The name and the module of the layer that gives a network of `build_model` its logits."""
    return next((n, m) for n, m in model.named_modules() if isinstance(m, Float32Linear))
