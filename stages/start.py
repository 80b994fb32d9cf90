"""What the training of step 1 or 4 starts from."""

from pathlib import Path
from typing import NamedTuple

from models import others
from models.hub import HUB, hub_name, published_weights
from models.networks import build_model

from . import checkpoint


class Start(NamedTuple):
    """What a training starts from; all None for random weights."""

    weights: dict | None = None  # a state_dict, or the content of a model.pt
    source: str | None = None  # its name
    model: str | None = None  # the network that it fits, where it says so
    mean_std: tuple | None = None  # the normalisation it was trained with, where it says so
    file: Path | None = None  # the file that the weights were read from

    def network(self, model, num_classes):
        """The network that begins.  ValueError where the weights are those of another one: found
        before anything is written.
        """
        if self.model not in (None, model):
            raise ValueError(
                f"--model {model} contradicts {self.source}, a {self.model}; leave the flag out"
            )
        network = build_model(model, num_classes)
        if self.weights is not None:
            checkpoint.start_from(network, self.weights, self.source)
        return network


def starting_point(stage, weights, folder):
    """Step 4 starts from the student's stage, step 1 from that of --weak-pretrain, from --weights,
    or from nothing.

    folder: where published weights may lie as <name>.pth, so that no download is needed
    """
    path = stage.product if stage else weights
    if path is None:
        return Start()
    if path in HUB or not Path(path).exists():
        name = path if others.is_known(path) else hub_name(path)
        file = Path(folder, f"{name.removeprefix(others.PREFIX)}.pth")
        file = file if file.is_file() else None
        weights, mean_std = published_weights(name, own=file and checkpoint.load(file))
        return Start(weights, name, HUB.get(name, name), mean_std, file)
    path = Path(path, "model.pt") if Path(path).is_dir() else path  # a stage's folder
    weights = checkpoint.load(path)
    if not {"arch", "format"} <= weights.keys():
        return Start(weights, str(path), file=path)
    checkpoint.rebuild(weights, path)  # raises ValueError for a damaged one
    normalisation = tuple(weights["normalisation"].values())
    return Start(weights, str(path), weights["arch"]["name"], normalisation, path)
