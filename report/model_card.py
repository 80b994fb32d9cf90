"""The model card that export.py writes beside the weights: plain values in, Markdown out."""

import re
from pathlib import Path

import jinja2

from data.labelled import display_name
from models.hub import licence_of, name_in_zoo
from models.needed import needed

from .diagnostics import wilson_interval
from .tables import labels_right, printable

TITLES = {  # the stages that train a network
    "teacher": "teacher",
    "student": "student, pre-trained on the selection",
    "finetuned": "student, fine-tuned on the labels",
}
ON_THE_HUB = {"cifar100": "uoft-cs/cifar100", "cifar10": "uoft-cs/cifar10"}


def model_card(file, sha256, content, stages, starts, licence):
    """Markdown: use, metrics, data, selection, origin, licence of published weights.

    file: name of the file of weights;  sha256: its;  content: what it holds, as in model.pt
    stages: [(config.json, result.json)] as dicts, first the published stage, then those that it was
        made from, as far as they are at hand
    starts: weights that a stage began with, "" for a stage that is not at hand
    licence: of the weights
    """
    config, result = stages[0]
    per_class = config["labels_per_class"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=plain,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md").render(
        file=file,
        sha256=sha256,
        content=content,
        config=config,
        result=result,
        title=TITLES[config["stage"]],
        dataset=display_name(config["dataset"], config["data_dir"]),
        labelled=f"{per_class} images a class" if per_class else "all other training images",
        trained=[(TITLES[c["stage"]], r) for c, r in reversed(stages) if c["stage"] in TITLES],
        selection=_selection(stages),
        versions=", ".join(f"{name} {value}" for name, value in config["versions"].items()),
        licence=licence,
        starts=list(map(_licence_of, starts)),
    )


def plain(value):
    """Markdown that shows a text as it is: nothing in it is obeyed.  Other values stay."""
    if not isinstance(value, str) or hasattr(value, "__html__"):  # marked as safe in the template
        return value
    obeyed = r"[\\`*{}\[\]<>#|~$&]|(?<![^\W_])_|_(?![^\W_])"  # _ between letters is not
    return re.sub(obeyed, r"\\\g<0>", printable(value))


def hub_head(content, stages, licence):
    """The YAML head that model hubs read, to stand before `model_card`; arguments as there."""
    hub, (config, result) = needed("huggingface_hub", "--hub-folder"), stages[0]
    network, known = content["arch"]["name"], ON_THE_HUB.get(config["dataset"])
    dataset = printable(display_name(config["dataset"], config["data_dir"]))
    results = [
        hub.EvalResult(
            task_type="image-classification",
            dataset_type=known or "folder",
            dataset_name=dataset,
            dataset_split="test",
            metric_type="accuracy",
            metric_name=f"test {name}",
            metric_value=round(percent, 2),
            metric_args=_interval(percent, result.get("test_images")),
        )
        for name, percent in (("top-1", result["test_top1"]), ("top-5", result["test_top5"]))
    ]
    data = hub.ModelCardData(
        license=licence,
        library_name="timm" if network.startswith("timm/") else "pytorch",
        pipeline_tag="image-classification",
        datasets=known and [known],
        metrics=["accuracy"],
        model_name=network,
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _interval(percent, images):
    """The 95 % interval of an accuracy on so many images, as a hub's results have it; None for a
    stage from before result.json had their number.
    """
    if not images:
        return None
    low, high = wilson_interval(round(percent * images / 100), images)
    return {"images": images, "interval_95": [round(100 * float(x), 2) for x in (low, high)]}


def _selection(stages):
    """What the card says of the rows that a student was trained on, or of there being none."""
    if stages[0][0]["parent"] is None:
        return ["None: this network saw labelled images only."]
    samples = [pair for pair in stages if pair[0]["stage"] == "samples"]
    if not samples:
        return ["Not recorded: the stage samples was not at hand."]
    config, result = samples[0]
    pools = ", ".join(f"{name} ({pool['entries']:,})" for name, pool in config["pools"].items())
    copies = "" if config["keep_duplicates"] else ", or copies of labelled images"
    return [
        f"Pool: {pools}; {result['scored']:,} images scored, {result['skipped']:,} left out "
        f"(unreadable{copies}).",
        f"Rule: {config['strategy']}, the P={config['p']} best classes of an image, the "
        f"K={config['k']} best images of a class: {result['selected']:,} rows of "
        f"{result['unique_images']:,} images.",
        f"Right labels: {labels_right(result)}.",
    ]


def _licence_of(start):
    """What weights that a stage began with add to the publisher's licence: text."""
    if not start:
        return (
            "The teacher was not at hand: if it started from published weights, their licence "
            "holds too (cc-by-nc-4.0 for ssl and swsl ones)."
        )
    licence, name = licence_of(start), name_in_zoo(start) or Path(start).name
    use = ": no commercial use" if "-nc" in licence else ""
    terms = "whose licence holds too" if licence == "unknown" else f"under {licence}{use}"
    return f"A training started from the weights {name}, {terms}."
