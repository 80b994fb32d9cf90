"""The report page: everything about a run in one HTML file, to be read offline and handed in.

    python -m report runs/demo                # -> runs/demo/report.html
    python -m report runs/demo runs/other     # side by side -> runs/report.html

Reads    the finished stages of each run folder; the labelled set and the pools they name
Writes   report.html, see --output; it needs no other file and no network
"""

import os
from pathlib import Path

from stages import flags
from stages.flags import path


def parse(argv):
    parser = flags.bare_parser(__doc__)
    parser.prog = "-m report"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    add = parser.add_argument
    add("--output", type=path, metavar="FILE",
        help="default report.html in RUN, of several in the folder that they share")  # fmt: skip
    add("--data-dir", type=path, metavar="DIR",
        help="where data sets are (default: where they were)")  # fmt: skip
    add("--cache-dir", type=path, metavar="DIR", help="where decoded images are (the same)")
    add("--unlabeled", nargs="+", metavar="SPEC", help="the pools of step 2 (the same)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="predicts the test images (default auto)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse(None)  # --help and wrong flags, before torch is imported

from files import write_text
from report import page
from stages.device import set_up_device
from stages.program import program
from stages.whole_run import command_of, read_run


@program
def main(argv=None):
    args = parse(argv)
    device = set_up_device(args.device)
    places = args.cache_dir, args.unlabeled
    runs = [read_run(folder, args.data_dir, device, *places) for folder in args.runs]
    output = args.output or shared_folder(args.runs) / "report.html"
    write_text(output, page.render(runs, command_of))
    print(f"written to {output} ({output.stat().st_size / 1e6:.1f} MB); open it in a browser")


def shared_folder(folders):
    """The run folder itself, or the folder that several share.  ValueError for two drives."""
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.commonpath([folder.resolve() for folder in folders]))


if __name__ == "__main__":
    main()
