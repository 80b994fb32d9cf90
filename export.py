"""Publish a trained network: a file of weights with its hash in the name, and a model card.

    python export.py runs/cifar100/finetuned published
    python export.py runs/cifar100/finetuned published --format safetensors     # or onnx
    python export.py runs/cifar100/finetuned hub/my-network --hub-folder

Reads    a finished stage (teacher, student or finetuned) and, for the card, those it was made from
Writes   OUT/<network>_<data set>-<first 8 digits of its sha256>.pth and the same name with .md;
         with --hub-folder OUT/config.json, model.safetensors and README.md; --push uploads these

.pth loads with torch.load(..., weights_only=True) on any machine and through torch.hub (see
hubconf.py); it and .safetensors serve wherever this project takes a checkpoint.  The hash in the
name lets torch.hub tell a whole download from a broken one.
"""

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from stages import flags
from stages.program import begin

FORMATS = ("pth", "safetensors", "onnx")  # also the suffixes of the files
HUB_FOLDER = ("config.json", "model.safetensors", "README.md")
LICENCES = ("mit", "apache-2.0", "bsd-3-clause", "gpl-3.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0")
LICENCES += ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "other", "unknown")


def parse(argv):
    parser = flags.bare_parser(__doc__)
    add = parser.add_argument
    add("stage", type=flags.path, metavar="STAGE", help="such as runs/cifar100/finetuned")
    add("out", type=flags.path, metavar="OUT", help="folder to write to")
    text = "of the weights, as model hubs name it (default: mit, or that of the published weights "
    text += "that the training started from)"
    add("--licence", choices=LICENCES, type=lambda name: "-".join(name.lower().split()), help=text)
    add("--format", choices=FORMATS, default="pth", help="default pth")
    add("--hub-folder", action=flags.Boolean, help="write what a model hub wants")
    text = "upload the hub folder to huggingface.co, with that hub's own client and token"
    add("--push", metavar="OWNER/NAME", help=text)
    return parser.parse_args(argv)


if __name__ == "__main__":
    begin(parse, goes_on=False)

from files import sha256_of_file, write_json, write_text
from models import formats
from models.hub import licence_of
from models.needed import needed
from models.weights import rebuild
from report.model_card import TITLES, hub_head, model_card
from report.tables import print_table
from stages import checkpoint
from stages.folder import read_record, state_of
from stages.lifetime import read_stage
from stages.program import as_failures, program


@program
def main(argv=None):
    args = parse(argv)
    stages, starts = lineage(args.stage)
    licence = settle_licence(args.licence, starts)
    if args.push:
        needed("huggingface_hub.utils", "--push").validate_repo_id(args.push)
    content = checkpoint.load(stages[0].product)
    rebuild(content, stages[0].product)  # nothing is published that does not load
    tensors = {name: tensor.cpu().contiguous() for name, tensor in content["state_dict"].items()}
    content = {**content, "state_dict": tensors}
    form = "hub" if args.hub_folder or args.push else args.format
    with as_failures():
        args.out.mkdir(parents=True, exist_ok=True)
        # In a folder of this process's own, because other exports may be writing to OUT.
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=args.out) as folder:
            weights, card = write(content, stages, starts, licence, Path(folder), form)
            for file in sorted(os.listdir(folder)):
                os.replace(Path(folder, file), args.out / file)
        rows = [("weights", args.out / weights), ("model card", args.out / card)]
        rows += [("bytes", f"{(args.out / weights).stat().st_size:,}"), ("licence", licence)]
        if args.push:
            rows.append(("uploaded to", push(args.out, args.push)))
    print_table(f"{args.stage} is published", rows)


def lineage(folder):
    """-> the FinishedStage in `folder` and all that it was made from, as far as they are at hand;
    the weights that those began with, "" for a stage that is not at hand.

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
    stages, starts = [read_stage(folder, name)], []
    for stage in stages:  # grows
        config = stage.config
        for parent in filter(None, (config["parent"], *config.get("more_parents", ()))):
            try:
                stages.append(read_stage(stage.folder / parent["path"], parent["stage"]))
            except FileNotFoundError:
                starts.append("")
        if weights := config.get("weights"):
            with suppress(FileNotFoundError, ValueError):  # no stage, or none any more
                start = read_stage(weights, *TITLES)
                if {"sha256": start.sha256} == config["inputs"].get("weights"):
                    stages.append(start)
                    continue
            starts.append(weights)
    return stages, starts


def _strictness(licence):
    return "-nc" not in licence, licence != "unknown"


def settle_licence(wish, starts):
    """The licence of the weights: the publisher's wish, else that of `lineage`'s starts, else MIT.

    Raises ValueError for a wish that allows a commercial use which one of the starts forbids.
    """
    licences = sorted({licence_of(start) for start in starts}, key=_strictness)
    if wish and "-nc" not in wish and licences and "-nc" in licences[0]:
        raise ValueError(
            f"--licence {wish}: the training began with weights under {licences[0]}, no commercial "
            f"use; leave the flag out"
        )
    return wish or (licences[0] if licences else "mit")


def write(content, stages, starts, licence, folder, form):
    """Write weights and card into an empty folder; -> the names of these two files.

    form: one of FORMATS, or "hub" for HUB_FOLDER
    Raises OSError where they cannot be written, ValueError for a package that the format lacks.
    """
    records = [(stage.config, stage.result) for stage in stages]
    name = re.sub(r"[^\w.-]+", "_", f"{content['arch']['name']}_{stages[0].result['dataset']}")[:60]
    weights = folder / ("model.safetensors" if form == "hub" else f"{name}.{form}")
    if form == "pth":
        checkpoint.save(content, weights)
    else:
        (formats.write_onnx if form == "onnx" else formats.write_safetensors)(content, weights)
    sha256 = sha256_of_file(weights)
    if form == "hub":
        write_json(folder / "config.json", formats.hub_config(content))
        card, head = folder / "README.md", hub_head(content, records, licence)
    else:
        weights = weights.rename(folder / f"{name}-{sha256[:8]}.{form}")
        card, head = weights.with_suffix(".md"), ""
    write_text(card, head + model_card(weights.name, sha256, content, records, starts, licence))
    return weights.name, card.name


def push(folder, name):
    """Upload a hub folder; -> its address.  Raises ConnectionError."""
    hub = needed("huggingface_hub", "--push")
    try:
        hub.create_repo(name, exist_ok=True)
        done = hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(HUB_FOLDER))
    except Exception as error:  # of the client's libraries, of many kinds
        reason = " ".join(str(error).split())
        raise ConnectionError(
            f"{folder} is written, but not uploaded ({reason}); see `hf auth login`, and try again"
        ) from error
    return done.commit_url


if __name__ == "__main__":
    main()
