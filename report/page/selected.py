"""The report page: the images that step 2 has kept, and those that it has left out."""

import numpy as np
import torch

from data.sources import NO_CLASS, UNKNOWN
from report import diagnostics, figures
from report.diagnostics import SelectedRows, count_by_class, count_labels, rank_bin, verdicts

from .embed import data_uri
from .parts import MANY, NONE, chart, percent

PICTURES = 800  # of the selection, at most
LEFT_OUT = 60  # images shown, at most
_BINS = 200  # of the scores from 0 to 1
_VERDICT = {True: "right", False: "wrong", None: "unknown"}


def selection(run, uid):
    """Pictures by class, charts, the share of each source of the pool: a dict."""
    rows = SelectedRows(*run.rows)
    correct, per_class = verdicts(rows), max(4, PICTURES // len(run.classes))
    groups = []
    for label, name in enumerate(run.classes):
        mine = np.flatnonzero(rows.label == label)
        shown = mine[_best_and_others(len(mine), per_class)]
        pictures = [_picture(run, rows, correct[i], i) for i in shown]
        groups.append({"label": name, "kept": len(mine), "pictures": pictures})
    return {
        "groups": groups,
        "all": max(group["kept"] for group in groups) <= per_class,
        "charts": _charts(run, rows, correct, uid),
        "sources": _sources(run, rows),
    }


def _best_and_others(count, most):
    """Which of `count` ranks to show: all, or half of `most` the best and half down to the last."""
    if count <= most:
        return np.arange(count)
    others = np.linspace(most // 2, count - 1, most - most // 2)
    return np.concatenate([np.arange(most // 2), others.astype(int)])


def _picture(run, rows, right, i):
    _, mark, meaning = figures.LOOKS[right]
    name, position, truth = run.classes[rows.label[i]], rows.position[i], rows.truth[i]
    meaning += " of an image of no class" if truth == NO_CLASS else ""
    meaning += f", in truth {run.classes[truth]}" if right is False and truth >= 0 else ""
    return {
        "src": data_uri(run.pool.images[torch.tensor([position])][0].numpy()),
        "alt": f"{run.pool.name_of(position)}, rank {rows.rank[i]} of {name}: {meaning}",
        "caption": f"#{rows.rank[i]} {rows.score[i]:.3f} {mark}",
        "verdict": "none" if truth == NO_CLASS else _VERDICT[right],
        "label": name,
    }


# --- charts -------------------------------------------------------------------------------------


def _charts(run, rows, correct, uid):
    k = run.stages["samples"].result["k"]
    charts = [_by_rank(rows, correct, k, uid)] if (rows.truth != UNKNOWN).any() else []
    if run.scores is not None:
        charts.append(_scores(run.scores, rows.score, uid))
    return [_per_class(run.classes, rows, k, uid), *charts]


def _by_rank(rows, correct, k, uid):
    judged, last = rows.truth != UNKNOWN, max(k, int(rows.rank.max()))
    rank, right = rows.rank[judged], correct[judged].astype(bool)
    bins = min(last, diagnostics.TENTHS)
    which = rank_bin(rank, last, bins)
    seen = np.bincount(which, minlength=bins)
    hits = np.bincount(which[right], minlength=bins)
    firsts = [last * number // bins + 1 for number in range(bins + 1)]
    lines = [
        (f"{first} to {after - 1}", n, hit, percent(hit, n))
        for first, after, n, hit in zip(firsts, firsts[1:], seen, hits, strict=False)
    ]
    note = "An image of no class counts as wrong."
    if unknown := int((~judged).sum()):
        note += f" Of {unknown:,} rows nothing is known; they are not in here."
    table = ("rank", "rows", "right", "share"), lines
    figure = figures.accuracy_by_rank(rank, right, last)
    return chart(figure, "How right the labels are, by rank", f"{uid}-rank", table, note=note)


def _scores(pool, kept, uid):
    """pool: the best score of each image (N,);  kept: the score of each row (M,)"""
    tenths = np.linspace(0, 1, 11)
    both = np.histogram(pool, tenths)[0], np.histogram(kept, tenths)[0]
    lines = [
        (f"{low:.1f} to {low + 0.1:.1f}", f"{images:,}", f"{rows:,}")
        for low, images, rows in zip(tenths, *both, strict=False)
    ]
    table = ("score", "pool images", "selected rows"), lines
    figure = figures.score_histogram(np.histogram(pool, _BINS, (0, 1))[0], kept)
    return chart(figure, "Scores of the pool and of the selection", f"{uid}-scores", table)


def _per_class(classes, rows, k, uid):
    counts, lines = count_by_class(rows, len(classes)), []
    kept = counts.sum(1)
    for label, name in enumerate(classes):
        score = rows.score[rows.label == label]
        scores = [f"{x:.3f}" for x in (score[0], score[-1])] if len(score) else NONE * 2
        right = percent(counts[label, 0], kept[label] - counts[label, 3])
        lines.append((name, kept[label], *counts[label], right, *scores))
    short = int((kept < k).sum())
    note = f"Warning: {short} of {len(classes)} classes have fewer than K={k} images."
    head = ("class", "kept", *figures.KINDS, "labels right", "best score", "lowest")
    figure = figures.kept_per_class(counts, classes, k)
    kind = "tall" if len(classes) > MANY else ""
    title = "Images kept of each class"
    return chart(figure, title, f"{uid}-kept", (head, lines), kind, note if short else "")


def _sources(run, rows):
    """The share of each source of the pool in the selection: a table."""
    starts, lines = run.pool.starts, []
    for source, first, after in zip(run.pool.sources, starts, starts[1:], strict=False):
        here = (rows.position >= first) & (rows.position < after)
        counts = count_labels(SelectedRows(*(column[here] for column in rows)))
        kept, right = int(here.sum()), percent(counts["right"], here.sum() - counts["unknown"])
        lines.append(
            (source.name, f"{len(source):,}", f"{kept:,}", percent(kept, len(here)), right)
        )
    return {"head": ("source", "images", "rows kept", "share", "labels right"), "rows": lines}


# --- left out -----------------------------------------------------------------------------------


def left_out(run):
    """Counts by reason, and the first of the images themselves."""
    kinds = {"unreadable": "cannot be read", "duplicate": "equal to a labelled image"}
    kinds |= {"near_duplicate": "nearly equal to a labelled image"}
    counts, lines = run.stages["samples"].result["left_out"], []
    for kind, text in kinds.items():
        by_subset = counts[kind] if isinstance(counts[kind], dict) else {"": counts[kind]}
        lines += [(f"{text} {subset and f'({subset})'}", n) for subset, n in by_subset.items() if n]
    pictures = []
    for (name, reason), position in zip(run.skipped[:LEFT_OUT], run.skipped_at, strict=False):
        image = run.pool.images[torch.tensor([position])][0].numpy()
        pictures.append({"src": data_uri(image), "alt": name, "caption": f"{name}: {reason}"})
    facts = {"head": ("reason", "images"), "rows": lines}
    return facts | {"pictures": pictures, "all": len(run.skipped)}
