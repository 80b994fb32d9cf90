"""Publish a trained network: a file of weights with its hash in the name, and a model card.

    python export.py runs/cifar100/finetuned published

Reads    a finished stage (teacher, student or finetuned) and, for the card, those it was made from
Writes   OUT/<network>_<data set>-<first 8 digits of its sha256>.pth and the same name with .md

The weights load with torch.load(..., weights_only=True) on any machine, through torch.hub (see
hubconf.py), and wherever this project takes a checkpoint.  By the hash in its name torch.hub tells
a whole download from a broken one.
"""

import os
from pathlib import Path

import checkpoint
import cli
import runlog
from models.hub import LICENCE, zoo_name
from models.weights import rebuild

TITLES = {
    "teacher": "teacher",
    "student": "student, pre-trained on the selection",
    "finetuned": "student, fine-tuned on the labels",
}
PAPER = "https://arxiv.org/abs/1905.00546"


def parse(argv):
    parser = cli.bare_parser(__doc__)
    parser.add_argument("stage", type=Path, metavar="STAGE", help="such as runs/cifar100/finetuned")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--licence", default="MIT", help="of the weights, for the card; "
                        "your decision (default MIT, as the code)")  # fmt: skip
    return parser.parse_args(argv)


@cli.program
def main(argv=None):
    args = parse(argv)
    stages = lineage(args.stage)
    state = checkpoint.load(stages[0].product)
    rebuild(state, stages[0].product)  # nothing is published that does not load
    with cli.working():
        weights = write_weights(state, stages[0].config, args.out)
        card = weights.with_suffix(".md")
        card.write_text(model_card(stages, state, weights, args.licence), encoding="utf-8")
    rows = [("weights", weights), ("model card", card), ("bytes", f"{weights.stat().st_size:,}")]
    cli.table(f"{args.stage} is published", rows)


def lineage(folder):
    """The stage in `folder` and those it was made from, as far as they are at hand: [runlog.Stage].

    Raises FileNotFoundError or ValueError for a folder without a finished, trained stage.
    """
    if runlog.state_of(folder) != "finished":
        raise FileNotFoundError(
            f"{folder} is no finished stage (no result.json); name one such as RUN/finetuned"
        )
    name = runlog.read_json(folder / "config.json")["stage"]
    if name not in TITLES:
        raise ValueError(f"{folder} holds the stage {name}, which has no network; name another")
    stages = [runlog.read_stage(folder, name)]
    while parent := stages[-1].config["parent"]:
        try:
            stages.append(runlog.read_stage(stages[-1].folder / parent["path"], parent["stage"]))
        except FileNotFoundError:  # only some of the stages were kept
            break
    return stages


def write_weights(state, config, out):
    """Write the content of model.pt to OUT, on the CPU, under its hash; -> the path."""
    name = f"{state['arch']['name']}_{config['dataset']}"
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state["state_dict"].items()}
    out.mkdir(parents=True, exist_ok=True)
    unnamed = out / f"{name}.unnamed"
    checkpoint.save({**state, "state_dict": tensors}, unnamed)
    path = out / f"{name}-{checkpoint.fingerprint(unnamed)[:8]}.pth"
    os.replace(unnamed, path)
    return path


# --- the model card -----------------------------------------------------------------------------


def model_card(stages, state, weights, licence):
    """Markdown: use, metrics, data, selection, origin, licence."""
    config, network = stages[0].config, state["arch"]["name"]
    by_name = {stage.name: stage for stage in stages}
    side, normalisation = state["input_size"], state["normalisation"]
    sections = [
        f"# {weights.stem}\n",
        f"A {network} with {stages[0].result['num_parameters']:,} parameters that tells "
        f"{len(state['classes'])} classes apart: {TITLES[config['stage']]}, after Yalniz et al. "
        f"2019, [Billion-scale semi-supervised learning for image classification]({PAPER}).\n",
        "## Use\n",
        "```python",
        f'model = torch.hub.load(REPO, "{network.replace("-", "_")}", weights="{weights.name}")',
        "model.eval()",
        "model.info  # class names, normalisation, input size, metrics",
        "```\n",
        f"or `python predict.py photo.jpg --checkpoint {weights.name}`.\n",
        f"Input: RGB, (B, 3, {side}, {side}), on the scale 0 to 1, less the mean "
        f"{normalisation['mean']}, divided by the standard deviation {normalisation['std']}.  "
        f"Output: float32 logits.\n",
        f"sha256 {checkpoint.fingerprint(weights)}\n",
        "## Metrics\n",
        *_metrics(stages),
        "## Data\n",
        *_data(config),
        "## Selection\n",
        *_selection(by_name.get("samples"), "samples" if config["parent"] else None),
        "## Origin\n",
        *_origin(config),
        "## Licence\n",
        *_licence(stages, licence),
    ]
    return "\n".join(sections)


def _metrics(stages):
    trained = [stage for stage in reversed(stages) if stage.name in TITLES]
    return [
        "| | network | validation top-1 | test top-1 | test top-5 |",
        "|---|---|---|---|---|",
        *(
            f"| {TITLES[one.name]} | {one.result['model']} | {one.result['val_top1']:.2f} | "
            f"{one.result['test_top1']:.2f} | {one.result['test_top5']:.2f} |"
            for one in trained
        ),
        f"\nPercent; one run, seed {stages[0].config['seed']}.  Choices were made on validation "
        f"images; the test set was read once a stage, with the last weights.\n",
    ]


def _data(config):
    labelled = config["inputs"]["labelled"]
    per_class = config["labels_per_class"]
    amount = f"{per_class} images a class" if per_class else "all other training images"
    return [
        f"- Data set `{config['dataset']}`, images {config['input_size']} px square.",
        f"- Labelled: {amount}; {config['val_per_class']} a class are validation images.",
        f"- sha256 of labels and pixels: {labelled['pixels']}\n",
    ]


def _selection(samples, wanted):
    if samples is None:
        nothing = "None: this network saw labelled images only."
        return [
            (f"Not recorded: the stage `{wanted}` was not at hand." if wanted else nothing) + "\n"
        ]
    config, result = samples.config, samples.result
    pools = ", ".join(f"{name} ({pool['entries']:,})" for name, pool in config["pools"].items())
    lines = [
        f"- Pool: {pools}; {result['scored']:,} images scored, {result['skipped']:,} left out "
        f"(unreadable{'' if config['keep_duplicates'] else ', or copies of labelled images'}).",
        f"- Rule: `{config['strategy']}`, the P={config['p']} best classes of an image, the "
        f"K={config['k']} best images of a class: {result['selected']:,} rows of "
        f"{result['unique_images']:,} images.",
    ]
    if "pseudo_label_accuracy" in result:
        lines.append(f"- Right labels: {result['pseudo_label_accuracy']:.2f} % of those known.")
    return [*lines, ""]


def _origin(config):
    versions = ", ".join(f"{name} {value}" for name, value in config["versions"].items())
    lines = [f"- Versions: {versions}; {config['device']}, {config['precision']}."]
    if parent := config["parent"]:
        lines.append(f"- Made from the stage `{parent['stage']}`, sha256 {parent['sha256']}.")
    return [*lines, ""]


def _licence(stages, licence):
    """The publisher's choice, and what the weights that the chain began with add to it."""
    lines = [f"{licence}.  The images belong to their owners.", ""]
    first = stages[-1]
    if first.name != "teacher":
        return [*lines, f"The teacher was not at hand: if it started from published weights, their "
                f"licence holds too ({LICENCE} for ssl and swsl ones).", ""]  # fmt: skip
    if start := first.config["weights"]:
        name = zoo_name(start)
        terms = f"under {LICENCE}: no commercial use" if name else "whose licence holds too"
        lines += [f"The teacher started from the weights {name or Path(start).name}, {terms}.", ""]
    return lines


if __name__ == "__main__":
    main()
