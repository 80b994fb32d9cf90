"""Publish a trained network: a file of weights with its hash in the name, and a model card.

    python export.py runs/cifar100/finetuned published

Reads    a finished stage (teacher, student or finetuned) and, for the card, those it was made from
Writes   OUT/<network>_<data set>-<first 8 digits of its sha256>.pth and the same name with .md

The weights load with torch.load(..., weights_only=True) on any machine, through torch.hub (see
hubconf.py), and wherever this project takes a checkpoint.  The hash in the name lets torch.hub tell
a whole download from a broken one.
"""

import os
from pathlib import Path

from data import write_text
from models.download import sha256_of_file
from models.weights import rebuild
from report.model_card import TITLES, model_card
from report.tables import print_table
from stages import checkpoint, flags
from stages.finished import read_stage
from stages.folder import state_of
from stages.program import program, working
from stages.records import read_record


def parse(argv):
    parser = flags.bare_parser(__doc__)
    parser.add_argument("stage", type=Path, metavar="STAGE", help="such as runs/cifar100/finetuned")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--licence", default="MIT", help="of the weights, for the card; "
                        "your decision (default MIT, as the code)")  # fmt: skip
    return parser.parse_args(argv)


@program
def main(argv=None):
    args = parse(argv)
    stages = lineage(args.stage)
    content = checkpoint.load(stages[0].product)
    rebuild(content, stages[0].product)  # nothing is published that does not load
    with working():
        weights = write_weights(content, stages[0].config["dataset"], args.out)
        records = [(stage.config, stage.result) for stage in stages]
        text = model_card(weights.name, sha256_of_file(weights), content, records, args.licence)
        card = weights.with_suffix(".md")
        write_text(card, text)
    rows = [("weights", weights), ("model card", card), ("bytes", f"{weights.stat().st_size:,}")]
    print_table(f"{args.stage} is published", rows)


def lineage(folder):
    """The FinishedStage in `folder` and those it was made from, as far as they are at hand.

    Raises FileNotFoundError for a folder without a finished stage, ValueError for a stage without a
    network or one whose parent has changed since.
    """
    if state_of(folder) != "finished":
        raise FileNotFoundError(
            f"{folder} is no finished stage (no result.json); name one such as RUN/finetuned"
        )
    name = read_record(folder / "config.json")["stage"]
    if name not in TITLES:
        raise ValueError(f"{folder} holds the stage {name}, which has no network; name another")
    stages = [read_stage(folder, name)]
    while parent := stages[-1].config["parent"]:
        try:
            stages.append(read_stage(stages[-1].folder / parent["path"], parent["stage"]))
        except FileNotFoundError:  # only some of the stages were kept
            break
    return stages


def write_weights(content, dataset, out):
    """Write the content of model.pt into the folder `out`, on the CPU, under its hash; -> the path.

    Raises OSError where it cannot be written.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in content["state_dict"].items()}
    out.mkdir(parents=True, exist_ok=True)
    name = f"{content['arch']['name']}_{dataset}"
    unnamed = out / f"{name}.unnamed"
    checkpoint.save({**content, "state_dict": tensors}, unnamed)
    path = out / f"{name}-{sha256_of_file(unnamed)[:8]}.pth"
    os.replace(unnamed, path)
    return path


if __name__ == "__main__":
    main()
