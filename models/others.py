"""Networks of torchvision and timm under their libraries' own names.

efficientnet_b0, vit_b_16 ...   what `torchvision.models.list_models()` has for classification
timm/resnet10t ...              what `timm.list_models()` has, where timm is installed
"""

import difflib
import importlib

import torch
import torchvision
from torch import nn

PREFIX = "timm/"
# Networks whose training gives the logits of a second head, too; here they are built without it.
_AUXILIARY = {name: {"aux_logits": False, "init_weights": True} for name in
              ("googlenet", "inception_v3")}  # fmt: skip


def is_known(name):
    """Whether `build` knows the name.  Raises ValueError for a timm name where timm is missing."""
    if name.startswith(PREFIX):
        return _timm(name).is_model(name.removeprefix(PREFIX))
    return name in _torchvision_names()


def build(name, num_classes):
    """A network with random weights.  Raises ValueError for one that does not end in a linear
    layer, such as squeezenet1_0: step 2 needs logits in float32.
    """
    if name.startswith(PREFIX):
        network = _timm(name).create_model(name.removeprefix(PREFIX), num_classes=num_classes)
    else:
        options = _AUXILIARY.get(name, {})
        network = torchvision.models.get_model(name, num_classes=num_classes, **options)
    return network, _last_linear(network, name, num_classes)


def published_weights(name, own=None):
    """-> the state_dict that the library publishes for a network, its mean and its std.

    own: the state_dict where the caller has it already; then nothing is fetched
    Raises ValueError where there is none, ConnectionError or OSError where it cannot be fetched.
    """
    if name.startswith(PREFIX):
        timm, name = _timm(name), name.removeprefix(PREFIX)
        own = own or timm.create_model(name, pretrained=True).state_dict()
        facts = timm.get_pretrained_cfg(name)
        return own, (list(facts.mean), list(facts.std))
    from .hub import weights_from_url

    weights = torchvision.models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    return own or weights_from_url(weights.url), (list(transforms.mean), list(transforms.std))


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
        timm = _timm(name)
        known = [PREFIX + one for one in timm.list_models()]
    found = difflib.get_close_matches(name, {*known, *_torchvision_names()}, n=5, cutoff=0.5)
    return f"did you mean {', '.join(found)}? " if found else ""


def library_of(name):
    """The library that builds a network, and its version, such as "timm 1.0.22"."""
    library = _timm(name) if name.startswith(PREFIX) else torchvision
    return f"{library.__name__} {library.__version__}"


def _torchvision_names():
    return torchvision.models.list_models(module=torchvision.models)


def _timm(name):
    return needed("timm", name)


def needed(module, purpose):
    """An optional package.  Raises ValueError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ValueError(f"{purpose} needs {package}: pip install {package}") from None


def _last_linear(network, name, num_classes):
    """The layer that gives the logits."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1].out_features != num_classes:
        raise ValueError(f"the network {name} does not end in a linear layer; choose another")
    return linear[-1]
