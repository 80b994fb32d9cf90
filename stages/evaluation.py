"""Validation and test images through the network, each process a share of them."""

import numpy as np
import torch

import distributed
from engine import predict
from files import whole_file
from models import head_of

from . import signals

EVALUATED = 500  # images at a time; a part of 5,000 and of 10,000 images


def evaluate(state, images, prepare):
    """Logits (N,C) on the CPU, whatever the number of processes; each predicts its share.

    They are collected on the device and copied once, since a copy makes a GPU wait.
    None where a signal has cut one of the processes short, see `signals.came_to_its_end`.
    """
    network = state.network
    distributed.same_(network.buffers())  # each process's batch norm has seen its own share
    first, last = distributed.share(len(images), EVALUATED)
    _, head = head_of(network)
    logits = torch.zeros(len(images), head.out_features, device=state.sums.device)
    chunks = predict(network, images, prepare, EVALUATED, first, last, state.precision)

    def collect():
        for start, chunk in chunks:
            logits[start : start + len(chunk)] = chunk

    cut = distributed.largest(int(not signals.came_to_its_end(collect)))
    return None if cut else distributed.total_(logits).cpu()


def write_predictions(path, predicted):
    """predictions.npz: of each image its given label, the class predicted, and the probability of
    the label, in the order of the data set, so that two networks can be compared image by image.

    predicted: {"test" or "val": (logits (N,C), labels (N,))};  arrays are named test_label ...
    """
    arrays = {}
    for name, (logits, labels) in predicted.items():
        of_label = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        arrays |= {
            f"{name}_label": labels.numpy().astype(np.int32),
            f"{name}_top1": logits.argmax(1).numpy().astype(np.int32),
            f"{name}_probability": of_label.numpy().astype(np.float32),
        }
    with whole_file(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def test_once(state, images, prepare):
    """The test set is read here, once: -> logits (N,C), features before the last layer (N,D)."""
    inputs, (_, head) = [], head_of(state.network)
    hook = head.register_forward_pre_hook(lambda _, x: inputs.append(x[0].float()))
    logits = evaluate(state, images, prepare)
    hook.remove()
    features = torch.zeros(len(images), head.in_features, device=state.sums.device)
    first, last = distributed.share(len(images), EVALUATED)
    features[first:last] = torch.cat([features[:0], *inputs])
    return logits, distributed.total_(features).cpu()
