"""torch.hub entry points.

    model = torch.hub.load(REPO, "resnet50_swsl")                      # published weights
    model = torch.hub.load(REPO, "resnet20", weights="resnet20_cifar100-1a2b3c4d.pth")

REPO is this repository: "owner/name" on GitHub, or a folder together with source="local".
`torch.hub.list` and `torch.hub.help` name and describe the entry points of a repository on GitHub;
they take no folder: there, `dir()` and `help()` of this module do.  They need torch and torchvision
and nothing else.
"""

import importlib.util
import pathlib  # not Path itself: torch.hub would list that class as an entry point
import re
import sys

dependencies = ["torch", "torchvision"]


def _own_models():
    """This repository's models.networks, models.hub and models.weights.

    They are loaded under a private name, because the caller may have a package `models` too.  The
    name tells the folder: a second load of the same repository gives the same classes.
    """
    folder = pathlib.Path(__file__).resolve().parent / "models"
    name = "_models_in_" + re.sub(r"\W", "_", str(folder.parent))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return [importlib.import_module(name + part) for part in (".networks", ".hub", ".weights")]


_models, _hub, _weights = _own_models()


def _published(name):
    """The entry point of one of the paper's models."""
    facts = _hub.ZOO[name]
    parameters, multiply_adds = _hub.SIZES[facts.network]

    def entry(pretrained=True, progress=True, num_classes=1000):
        model = _models.build_model(facts.network, num_classes)
        if pretrained:
            _weights.start_from(model, _hub.published_weights(name, progress)[0], name)
        return model

    entry.__doc__ = f"""{facts.network}, {_hub.SUPERVISION[facts.kind]} (Yalniz et al. 2019).

    {parameters:,} parameters; {multiply_adds / 1e9:.2f} G multiply-adds at 224 px.
    ImageNet validation: {facts.top1} % top-1, {facts.top5} % top-5 as published;
    {facts.timm_top1:.2f} % and {facts.timm_top5:.2f} % as timm measured ({facts.timm_name}).
    The weights' licence is {_hub.LICENCE}: no commercial use.

    Input: RGB, (B, 3, H, W), H and W of at least 32, on the scale 0 to 1, less the mean
    {_hub.MEAN}, divided by the standard deviation {_hub.STD};
    the accuracies are for the shorter side resized to 256 and the middle 224 x 224.
    Output: float32 logits (B, num_classes).  Call .eval() before you predict.

    pretrained (bool): load the published weights, downloaded once into torch.hub's folder and
        checked by their hash; False builds the network with random weights, offline
    progress (bool): show the download's progress on stderr
    num_classes (int): any number but 1000 replaces the last layer by a random one

    Raises ConnectionError when the download fails or brings another file than the published one.
    """
    return entry


def _own(network):
    """The entry point of a network without published weights."""

    def entry(weights=None, pretrained=False, progress=True, num_classes=None):
        if weights is None:
            if pretrained:
                raise ValueError(
                    f"{network} has no published weights; name a file that export.py wrote "
                    f"(weights=PATH)"
                )
            return _models.build_model(network, num_classes or 1000)
        is_url = str(weights).startswith(("https://", "http://"))
        state = _hub.weights_from_url(weights, progress) if is_url else _weights.load(weights)
        exported = _weights.rebuild(state, weights)
        if state["arch"]["name"] != network:
            raise ValueError(
                f"{weights} holds a {state['arch']['name']}, not a {network}; "
                f"call the entry point of that name (with _ for -)"
            )
        if num_classes not in (None, len(state["classes"])):
            model = _models.build_model(network, num_classes)
            _weights.start_from(model, exported.state_dict(), weights)
            return model
        names = ("classes", "normalisation", "input_size", "metrics")
        exported.info = {name: state[name] for name in names}
        return exported

    entry.__doc__ = f"""{network} with weights of your own, written by export.py.

    Input: RGB, (B, 3, S, S), on the scale 0 to 1, less the mean, divided by the standard deviation.
    Output: float32 logits (B, num_classes).  Call .eval() before you predict.

    weights (path or URL): an exported file; the model then has `info`, a dict of "classes" (names
        in the order of the logits), "normalisation" ("mean" and "std"), "input_size" (S) and
        "metrics" (percent).  Without it the network has random weights
    pretrained (bool): True without `weights` is an error: none are published
    progress (bool): show the progress of a download on stderr
    num_classes (int): by default the file's number, else 1000; another number than the file's
        replaces the last layer by a random one, and there is no `info`

    Raises ValueError for a file of another network, or a damaged one.
    """
    return entry


_entries = {name: _published(name) for name in _hub.ZOO}
_entries |= {name.replace("-", "_"): _own(name) for name in _models.MODELS}
for _name, _entry in _entries.items():
    _entry.__name__ = _entry.__qualname__ = _name
globals().update(_entries)
