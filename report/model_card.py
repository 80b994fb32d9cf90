"""The model card that export.py writes beside the weights: plain values in, Markdown out."""

import json
from pathlib import Path

from data.labelled import called
from models.hub import LICENCE, name_in_zoo

from .tables import labels_right

PAPER = "https://arxiv.org/abs/1905.00546"
TITLES = {  # the stages that train a network
    "teacher": "teacher",
    "student": "student, pre-trained on the selection",
    "finetuned": "student, fine-tuned on the labels",
}


def model_card(file, sha256, content, stages, licence):
    """Markdown: use, metrics, data, selection, origin, licence of published weights.

    file: name of the file of weights;  sha256: its;  content: what it holds, as in model.pt
    stages: [(config.json, result.json)] as dicts, first the published stage, then those that it was
        made from, as far as they are at hand
    licence: the publisher's choice for the weights
    """
    config, result = stages[0]
    network, side = content["arch"]["name"], content["input_size"]
    mean, std = content["normalisation"]["mean"], content["normalisation"]["std"]
    return f"""# {Path(file).stem}

A {network} with {result["num_parameters"]:,} parameters that tells {len(content["classes"])} \
classes apart: {TITLES[config["stage"]]}, after Yalniz et al. 2019, \
[Billion-scale semi-supervised learning for image classification]({PAPER}).

## Use

```python
model = torch.hub.load(REPO, "{network.replace("-", "_")}", weights="{file}")
model.eval()
model.info  # class names, normalisation, input size, metrics
```

or `python predict.py photo.jpg --checkpoint {file}`.

Input: RGB, (B, 3, {side}, {side}), on the scale 0 to 1, less the mean {mean}, \
divided by the standard deviation {std}.  Output: float32 logits.

sha256 {sha256}

## Metrics

{_metrics(stages)}

## Data

{_data(config)}

## Selection

{_selection(stages)}

## Origin

{_origin(config)}

## Licence

{licence}.  The images belong to their owners.{_licence_of_the_start(stages)}
"""


def hub_head(content, result, licence):
    """The YAML head that model hubs read, to stand before `model_card`.

    content: as in model.pt;  result: result.json of the stage;  licence: as in `model_card`
    """
    library = "timm" if content["arch"]["name"].startswith("timm/") else "pytorch"
    name, dataset = content["arch"]["name"], json.dumps(result["dataset"])  # any name is YAML
    return f"""---
license: {licence.lower()}
library_name: {library}
pipeline_tag: image-classification
datasets:
- {dataset}
metrics:
- accuracy
model-index:
- name: {name}
  results:
  - task: {{type: image-classification}}
    dataset: {{type: {dataset}, name: {dataset}}}
    metrics:
    - {{type: accuracy, name: test top-1, value: {result["test_top1"]:.2f}}}
---

"""


def _metrics(stages):
    rows = [
        f"| {TITLES[config['stage']]} | {result['model']} | {result['val_top1']:.2f} | "
        f"{result['test_top1']:.2f} | {result['test_top5']:.2f} |\n"
        for config, result in reversed(stages)
        if config["stage"] in TITLES
    ]
    return f"""| | network | validation top-1 | test top-1 | test top-5 |
|---|---|---|---|---|
{"".join(rows)}
Percent; one run, seed {stages[0][0]["seed"]}.  Choices were made on validation images; the test \
set was read once a stage, with the last weights."""


def _data(config):
    name, per_class = called(config["dataset"], config["data_dir"]), config["labels_per_class"]
    amount = f"{per_class} images a class" if per_class else "all other training images"
    return f"""- Data set `{name}`, images {config["input_size"]} px square.
- Labelled: {amount}; {config["val_per_class"]} a class are validation images.
- sha256 of labels and pixels: {config["inputs"]["labelled"]["pixels"]}"""


def _selection(stages):
    if stages[0][0]["parent"] is None:
        return "None: this network saw labelled images only."
    found = [pair for pair in stages if pair[0]["stage"] == "samples"]
    if not found:
        return "Not recorded: the stage `samples` was not at hand."
    ((config, result),) = found
    pools = ", ".join(f"{name} ({pool['entries']:,})" for name, pool in config["pools"].items())
    copies = "" if config["keep_duplicates"] else ", or copies of labelled images"
    card = f"""- Pool: {pools}; {result["scored"]:,} images scored, {result["skipped"]:,} left out \
(unreadable{copies}).
- Rule: `{config["strategy"]}`, the P={config["p"]} best classes of an image, the \
K={config["k"]} best images of a class: {result["selected"]:,} rows of \
{result["unique_images"]:,} images."""
    return f"{card}\n- Right labels: {labels_right(result)}."


def _origin(config):
    versions = ", ".join(f"{name} {value}" for name, value in config["versions"].items())
    card = f"- Versions: {versions}; {config['device']}, {config['precision']}."
    if parent := config["parent"]:
        card += f"\n- Made from the stage `{parent['stage']}`, sha256 {parent['sha256']}."
    return card


def _licence_of_the_start(stages):
    """What the weights that the teacher started from add to the publisher's licence."""
    first = stages[-1][0]
    if first["stage"] != "teacher":
        return (
            f"\n\nThe teacher was not at hand: if it started from published weights, their licence "
            f"holds too ({LICENCE} for ssl and swsl ones)."
        )
    if not first["weights"]:
        return ""
    name = name_in_zoo(first["weights"])
    terms = f"under {LICENCE}: no commercial use" if name else "whose licence holds too"
    name = name or Path(first["weights"]).name
    return f"\n\nThe teacher started from the weights {name}, {terms}."
