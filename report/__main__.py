"""The report page: everything about a run in one HTML file, to be read offline and handed in.

    python -m report runs/demo                # -> runs/demo/report.html
    python -m report runs/demo runs/other     # and both side by side -> runs/report.html

A rival (`make rival RUN=runs/demo`) in runs/demo-rival is shown with its run.

Reads    the finished stages of each run folder; the labelled set and the pools they name
Writes   report.html, see --output; it needs no other file and no network
"""

import os
import sys
from pathlib import Path
from urllib.parse import quote

from stages import flags


def parse(argv):
    parser = flags.bare_parser(__doc__)
    parser.prog = "-m report"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    add = parser.add_argument
    add("--output", type=flags.path, metavar="FILE",
        help="default report.html in RUN, of several in the folder that they share")  # fmt: skip
    add("--data-dir", type=flags.path, metavar="DIR",
        help="where data sets are (default: where they were)")  # fmt: skip
    add("--cache-dir", type=flags.path, metavar="DIR", help="where decoded images are (the same)")
    add("--unlabeled", nargs="+", metavar="SPEC", help="the pools of step 2 (the same)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse(None)  # --help and wrong flags, before torch is imported
    print("reading the runs", file=sys.stderr, flush=True)

from files import write_text
from report.page.render import render, render_together, short_names
from stages.folder import state_of
from stages.program import program
from stages.whole_run import command_of, is_rival, read_run, rival_folder


@program
def main(argv=None):
    args = parse(argv)
    folders = dict(zip(short_names(args.runs), args.runs, strict=True))
    places = args.data_dir, args.cache_dir, args.unlabeled
    runs = {name: read_run(folder, *places) for name, folder in folders.items()}
    pages = {name: run.folder / "report.html" for name, run in runs.items()}
    output = args.output or shared_folder(args.runs) / "report.html"
    if len(runs) == 1:
        pages = dict.fromkeys(runs, output)
    elif output in pages.values():
        raise ValueError(f"{output} is the page of one run; give --output another name")
    for name, run in runs.items():
        _write(pages[name], render, run, rival_beside(run, places), command_of)
    if len(runs) > 1:
        here = output.resolve().parent
        links = {n: quote(os.path.relpath(path.resolve(), here)) for n, path in pages.items()}
        _write(output, render_together, runs, links, is_rival)


def rival_beside(run, places):
    """The rival of a run that lies beside its folder, None for none."""
    folder = rival_folder(run.folder)
    rival = read_run(folder, *places) if state_of(folder / "teacher") == "finished" else None
    return rival if rival and is_rival(rival, run) else None


def _write(path, make, *facts):
    try:
        text = make(*facts)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be written: a config.json or result.json holds what no step writes "
            f"({type(error).__name__}: {error}); `python -X dev` shows where"
        ) from error
    write_text(path, text)
    print(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")


def shared_folder(folders):
    """The run folder itself, or the folder that several share.  ValueError for two drives."""
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.commonpath([folder.resolve() for folder in folders]))


if __name__ == "__main__":
    main()
