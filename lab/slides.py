"""Ten slides of the lab's own pictures: what to project, and what to ask.

    python -m lab.slides runs/class/seed-2        # -> runs/class/seed-2/slides.pdf

Reads    RUN/pictures, which the exercises 0 to 5 write, in a notebook or with `python -m lab`
"""

import textwrap
from pathlib import Path

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.image import imread

from stages import flags

STEPS = """\
1   A teacher learns from a few images with labels.
2   It labels many images that have none.
    Each class keeps the K images that it is surest of.
3   A student learns from these alone.
4   The student learns from the few true labels."""
RULES = """\
image   class 0   class 1   class 2
  0      0.70      0.20      0.10
  1      0.50      0.40      0.10
  2      0.50      0.30      0.20
  3      0.10      0.60      0.30
  4      0.40      0.35      0.25
  5      0.50      0.10      0.40

An image is a candidate for its P best classes.
A class keeps its K = 2 best candidates."""
PAGES = (  # the picture, or a text; the title; what to ask
    (STEPS, "A student that is better than its teacher", "How can that be?"),
    (
        "0-both-ways.png",
        "Transpose and reshape",
        "What would the network have to say to be noticed?",
    ),
    ("1-labelled.png", "All that the teacher has seen", "Which two classes will it confuse?"),
    ("1-matrix.png", "What the teacher says", "What does a row add up to?"),
    (RULES, "Rank by hand", "Which images does each class keep with P = 1, with P = 2?"),
    ("2-flowers.png", "Surely a digit", "Which output means: none of these?"),
    (
        "3-trap.png",
        "The confirmation trap",
        "The student after step 3 is the diamond. Why the zero?",
    ),
    ("3-mine.png", "Without the trap", "What did the student see that its teacher never saw?"),
    ("4-pairs.png", "Is it real?", "Three seeds: what may we claim?"),
    ("5-photos.png", "Your own images", "When is 90 % sure a sign of being right?"),
)


def parse(argv):
    parser = flags.bare_parser(__doc__)
    parser.prog = "-m lab.slides"
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, runs/class/seed-2")
    return parser.parse_args(argv)


def slide(picture, title, question):
    """-> Figure of 16:9.  picture: an array (H,W,4), or a text"""
    figure = Figure(figsize=(13.33, 7.5))
    figure.text(0.05, 0.9, title, fontsize=30, weight="bold")
    figure.text(0.05, 0.05, "\n".join(textwrap.wrap(question, 70)), fontsize=22, color="#0072B2")
    if isinstance(picture, str):
        figure.text(
            0.08, 0.5, picture, fontsize=19, family="monospace", va="center", linespacing=1.6
        )
        return figure
    axes = figure.add_axes((0.04, 0.13, 0.92, 0.74))
    axes.set_axis_off()
    axes.imshow(picture, interpolation="lanczos")
    return figure


def main(argv=None):
    run = parse(argv).run
    missing = [name for name, _, _ in PAGES if name.endswith(".png")]
    missing = [name for name in missing if not (run / "pictures" / name).exists()]
    if missing:
        raise SystemExit(f"{run / 'pictures'} lacks {', '.join(missing)}; do those exercises first")
    with PdfPages(run / "slides.pdf") as pdf:
        for what, title, question in PAGES:
            picture = imread(run / "pictures" / what) if what.endswith(".png") else what
            pdf.savefig(slide(picture, title, question), dpi=150)
    print(f"{len(PAGES)} slides: {run / 'slides.pdf'}")


if __name__ == "__main__":
    main()
