"""What the scripts print.  Imports nothing, so that a program that only prints starts at once."""

_STEPS = {
    "teacher": "teacher",
    "student": "student, pre-trained",
    "finetuned": "student, fine-tuned",
}


def print_table(title, rows):
    """Print two columns under a title; rows: (name, value) pairs."""
    width = max(len(name) for name, _ in rows)
    print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def length(recipe):
    """How long a training is: text."""
    passes = f" of {recipe.passes} passes" if recipe.passes > 1 else ""
    return f"{recipe.epochs} epochs{passes}"


def training_summary(result, trained_on, val_images, folder):
    """The rows for step 1, 3 or 4.

    result: the content of result.json;  trained_on: text;  val_images: their number
    """
    return [
        ("network", f"{result['model']}, {result['num_parameters']:,} parameters"),
        ("trained on", f"{trained_on}, {result['images_processed']:,} in all"),
        ("validation", f"{result['val_top1']:.2f} % top-1 of {val_images:,}"),
        ("test", f"{result['test_top1']:.2f} % top-1, {result['test_top5']:.2f} % top-5"),
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
    if "pseudo_label_accuracy" in result:
        right = f"{result['pseudo_label_accuracy']:.2f} % where the truth is known"
        rows.append(("labels right", right))
    return [*rows, ("time", _time(result)), ("written to", folder)]


def accuracy_summary(results):
    """A row for each trained network; results: {stage: content of result.json}."""
    found = [(name, results[stage]) for stage, name in _STEPS.items() if stage in results]
    return [(name, f"{result['test_top1']:.2f} %") for name, result in found]


def _time(result):
    return f"{result['seconds']:.0f} s, {result['images_per_second']:.0f} images/s"
