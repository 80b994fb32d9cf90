"""Networks of torchvision and timm under their libraries' own names.

efficientnet_b0, vit_b_16 ...   what `torchvision.models.list_models()` has for classification
timm/resnet10t ...              what `timm.list_models()` has, where timm is installed
"""

import difflib

import torch
import torchvision
from torch import nn

from .needed import needed

PREFIX = "timm/"


def is_known(name):
    """Whether `build` knows the name.  Raises ValueError for a timm name where timm is missing."""
    if name.startswith(PREFIX):
        return needed("timm", name).is_model(name.removeprefix(PREFIX))
    return name in _torchvision_names()


def build(name, num_classes):
    """A network with random weights, and its last layer.

    Raises ValueError for one that does not end in a linear layer, such as squeezenet1_0: step 2
    needs logits in float32.
    """
    if name.startswith(PREFIX):
        timm = needed("timm", name)
        network = timm.create_model(name.removeprefix(PREFIX), num_classes=num_classes)
    else:
        # Two networks would give the logits of a second head in training.
        second = name in ("googlenet", "inception_v3")
        options = {"aux_logits": False, "init_weights": True} if second else {}
        network = torchvision.models.get_model(name, num_classes=num_classes, **options)
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1].out_features != num_classes:
        raise ValueError(f"the network {name} does not end in a linear layer; choose another")
    return network, linear[-1]


def check_input_size(network, size):
    """Raises ValueError for a network that does not take images of `size` pixels a side."""
    network = network.eval()
    device = next(network.parameters()).device
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, size, size, device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--input-size {size}: the network does not take such images ({reason}); 224 is usual"
        ) from error


def near(name, known):
    """The names most like `name`, of `known` and of both libraries, as text for an error."""
    if name.startswith(PREFIX):
        known = [PREFIX + other for other in needed("timm", name).list_models()]
    names = difflib.get_close_matches(name, {*known, *_torchvision_names()}, n=5, cutoff=0.5)
    return f"did you mean {', '.join(names)}? " if names else ""


def library_of(name):
    """The library that builds a network, and its version, such as "timm 1.0.22"."""
    library = needed("timm", name) if name.startswith(PREFIX) else torchvision
    return f"{library.__name__} {library.__version__}"


def _torchvision_names():
    return torchvision.models.list_models(module=torchvision.models)
