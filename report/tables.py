"""What the scripts print.  Imports no library, so that what only prints starts at once."""

import re

# What each training is called; the rival is a teacher that had the images of all four steps.
TRAININGS = {
    "teacher": "teacher",
    "student": "student, pre-trained",
    "finetuned": "student, fine-tuned",
}
RIVAL = "rival"
TRAININGS |= {RIVAL: "labels alone, equal compute"}


def print_table(title, rows):
    """Print two columns under a title; rows: (name, value) pairs."""
    width = max(len(name) for name, _ in rows)
    print(f"\n{printable(title)}")
    for name, value in rows:
        print(f"  {name:<{width}}  {printable(value)}")


def printable(text):
    """`text` in one line, with backslash escapes for what a terminal would obey (such as colours)
    and for bytes that are no UTF-8.

    Where the locale is not UTF-8, a path has surrogates in the place of its letters' bytes.
    """
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\N{REPLACEMENT CHARACTER}", str(text))
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def length(recipe):
    """How long a training is: text."""
    passes = f" of {recipe.passes} passes" if recipe.passes > 1 else ""
    return f"{recipe.epochs} epochs{passes}"


def training_summary(result, trained_on, val_images, folder, classes=1000):
    """The rows for step 1, 3 or 4.

    result: the content of result.json;  trained_on: text;  val_images, classes: their numbers
    """
    top5 = f", {result['test_top5']:.2f} % top-5" if classes > 5 else ""
    return [
        ("network", f"{result['model']}, {result['num_parameters']:,} parameters"),
        ("trained on", f"{trained_on}, {result['images_processed']:,} in all"),
        ("validation", f"{result['val_top1']:.2f} % top-1 of {val_images:,}"),
        ("test", f"{result['test_top1']:.2f} % top-1{top5}"),
        ("time", _time(result)),
        ("written to", folder),
    ]


def selection_summary(result, sources, folder):
    """The rows for step 2.

    result: the content of result.json;  sources: {name: number of images} of the pool's sources
    """
    counts, left_out = result["per_class_counts"], result["left_out"]
    near, exact = (sum(left_out[kind].values()) for kind in ("near_duplicate", "duplicate"))
    unreadable = f"{left_out['unreadable']:,} unreadable"
    copies = f"{exact:,} copies and {near:,} near-copies of labelled images"
    rows = [
        ("pool", ", ".join(f"{name} {images:,}" for name, images in sources.items())),
        ("scored", f"{result['scored']:,} images"),
        ("left out", f"{result['skipped']:,} (skipped.csv): {unreadable}, {copies}"),
        ("selected", f"{result['selected']:,} rows, {result['unique_images']:,} different images"),
        ("per class", f"{min(counts)} to {max(counts)} of K={result['k']}"),
    ]
    if short := sum(count < result["k"] for count in counts):
        rows.append(("warning", f"{short} of {len(counts)} classes have fewer than K images"))
    rows.append(("labels right", labels_right(result)))
    return [*rows, ("time", _time(result)), ("written to", folder)]


def labels_right(result):
    """How many pseudo-labels of a selection are right: text.

    The share is that of all rows, images of no class counted as wrong; beside it stands the share
    of the rows whose image has a class.  Rows of which nothing is known are in neither.
    result: the content of result.json
    """
    if "labels" not in result:
        known = result.get("pseudo_label_accuracy")  # of a run made before the others were counted
        return "nothing is known" if known is None else f"{known:.2f} % of those that have a class"
    right, wrong, none, unknown = result["labels"].values()
    judged = right + wrong + none
    if not judged:
        return "nothing is known"
    text = f"{100 * right / judged:.2f} % of {judged:,} rows: {right:,} right, {wrong:,} wrong"
    if none:
        text += f", {none:,} of no class"
        text += f" ({100 * right / (right + wrong):.2f} % without these)" if right + wrong else ""
    return text + (f"; of {unknown:,} more nothing is known" if unknown else "")


def accuracy_summary(results):
    """A row for each trained network; results: {stage: content of result.json}."""
    named = [(name, results[stage]) for stage, name in TRAININGS.items() if stage in results]
    return [(name, f"{result['test_top1']:.2f} %") for name, result in named]


def shorten(name, most=16):
    """`name` in at most `most` characters."""
    name = str(name)
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def flat(content, before=""):
    """Yields (dotted name, text) of what a JSON object holds, Nones left out."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        elif value is not None:
            values = value if isinstance(value, list) else [value]
            yield before + name, " ".join(map(str, values))


def _time(result):
    return f"{result['seconds']:.0f} s, {result['images_per_second']:.0f} images/s"
