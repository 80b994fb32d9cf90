"""Publish a trained network: a file of weights with its hash in the name, and a model card.

    python export.py runs/cifar100/finetuned published
    python export.py runs/cifar100/finetuned published --format safetensors     # or onnx
    python export.py runs/cifar100/finetuned hub/my-network --hub-folder

Reads    a finished stage (teacher, student or finetuned) and, for the card, those it was made from
Writes   OUT/<network>_<data set>-<first 8 digits of its sha256>.pth and the same name with .md;
         with --hub-folder OUT/config.json, model.safetensors and README.md, ready to upload with
         that hub's own client

.pth loads with torch.load(..., weights_only=True) on any machine and through torch.hub (see
hubconf.py); it and .safetensors serve wherever this project takes a checkpoint.  The hash in the
name lets torch.hub tell a whole download from a broken one.
"""

import os
from pathlib import Path

from stages import flags

FORMATS = ("pth", "safetensors", "onnx")  # also the suffixes of the files


def parse(argv):
    parser = flags.bare_parser(__doc__)
    parser.add_argument("stage", type=Path, metavar="STAGE", help="such as runs/cifar100/finetuned")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--licence", default="MIT", help="of the weights, for the card; "
                        "your decision (default MIT, as the code)")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, default="pth", help="default pth")
    parser.add_argument("--hub-folder", action=flags.Boolean, help="write what a model hub wants")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse(None)  # --help and wrong flags, before torch is imported

from files import sha256_of_file, whole_file, write_json, write_text
from models import formats
from models.weights import rebuild
from report.model_card import TITLES, hub_head, model_card
from report.tables import print_table
from stages import checkpoint
from stages.folder import read_record, state_of
from stages.lifetime import read_stage
from stages.program import program, working


@program
def main(argv=None):
    args = parse(argv)
    stages = lineage(args.stage)
    content = checkpoint.load(stages[0].product)
    rebuild(content, stages[0].product)  # nothing is published that does not load
    tensors = {name: tensor.cpu().contiguous() for name, tensor in content["state_dict"].items()}
    content = {**content, "state_dict": tensors}
    with working():
        args.out.mkdir(parents=True, exist_ok=True)
        if args.hub_folder:
            weights, card = args.out / "model.safetensors", args.out / "README.md"
            write(content, weights, "safetensors")
            write_json(args.out / "config.json", formats.hub_config(content))
        else:
            weights = write_weights(content, stages[0].result["dataset"], args.out, args.format)
            card = weights.with_suffix(".md")
        records = [(stage.config, stage.result) for stage in stages]
        text = model_card(weights.name, sha256_of_file(weights), content, records, args.licence)
        if args.hub_folder:
            text = hub_head(content, records[0][1], args.licence) + text
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


def write_weights(content, dataset, out, form):
    """Write the content of model.pt into the folder `out` under its hash; -> the path.

    Raises OSError where it cannot be written, ValueError for a package that the format lacks.
    """
    name = f"{content['arch']['name']}_{dataset}".replace("/", "_")
    unnamed = out / f"{name}.unnamed"
    write(content, unnamed, form)
    path = out / f"{name}-{sha256_of_file(unnamed)[:8]}.{form}"
    os.replace(unnamed, path)
    return path


def write(content, path, form):
    """Write one file, whole or not at all."""
    if form == "pth":
        checkpoint.save(content, path)
        return
    writer = {"safetensors": formats.write_safetensors, "onnx": formats.write_onnx}[form]
    with whole_file(path) as partial:
        writer(content, partial)


if __name__ == "__main__":
    main()
