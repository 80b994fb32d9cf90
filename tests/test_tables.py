"""What the scripts print, word for word."""

import os
import subprocess
import sys
from pathlib import Path

from report.tables import accuracy_summary, print_table, selection_summary, training_summary

TRAINED = {
    "model": "resnet8",
    "num_parameters": 78_042,
    "images_processed": 15_000,
    "val_top1": 90.0,
    "test_top1": 92.1536,
    "test_top5": 99.4992,
    "seconds": 16.18,
    "images_per_second": 927.07,
}
TRAINING = """
step 1: the teacher is trained
  network     resnet8, 78,042 parameters
  trained on  50 labelled images, 30 epochs, 15,000 in all
  validation  90.00 % top-1 of 1,100
  test        92.15 % top-1, 99.50 % top-5
  time        16 s, 927 images/s
  written to  runs/demo/teacher
  next        python make_sample_data.py
"""


def test_the_table_of_a_training(capsys):
    trained_on = "50 labelled images, 30 epochs"
    rows = training_summary(TRAINED, trained_on, 1_100, Path("runs/demo/teacher"))
    title = "step 1: the teacher is trained"
    print_table(title, [*rows, ("next", "python make_sample_data.py")])
    assert capsys.readouterr().out == TRAINING


def test_of_five_classes_the_five_best_are_all():
    rows = dict(training_summary(TRAINED, "", 1, Path("runs"), 5))
    assert rows["test"] == "92.15 % top-1"


SELECTED = {
    "scored": 1_305,
    "skipped": 8,
    "left_out": {
        "unreadable": 1,
        "duplicate": {"train": 2, "val": 1, "test": 0},
        "near_duplicate": {"train": 0, "val": 1, "test": 3},
    },
    "selected": 1_600,
    "unique_images": 1_234,
    "per_class_counts": [60, 12, 59],
    "k": 60,
    "labels": {"right": 1_350, "wrong": 150, "no_class": 90, "unknown": 10},
    "seconds": 0.36,
    "images_per_second": 3617.6,
}
SELECTION = """
step 2
  pool          heldout 1,048, patches 258
  scored        1,305 images
  left out      8 (skipped.csv): 1 unreadable, 3 copies and 4 near-copies of labelled images
  selected      1,600 rows, 1,234 different images
  per class     12 to 60 of K=60
  warning       2 of 3 classes have fewer than K images
  labels right  84.91 % of 1,590 rows: 1,350 right, 150 wrong, 90 of no class (90.00 % \
without these); of 10 more nothing is known
  time          0 s, 3618 images/s
  written to    runs/demo/samples
"""


def test_the_table_of_a_selection(capsys):
    sources = {"heldout": 1_048, "patches": 258}
    print_table("step 2", selection_summary(SELECTED, sources, "runs/demo/samples"))
    assert capsys.readouterr().out == SELECTION


def test_a_full_selection_of_unknown_truth_has_no_warning_and_says_that_nothing_is_known():
    result = SELECTED | {"per_class_counts": [60] * 3}
    del result["labels"]
    rows = dict(selection_summary(result, {"photos": 9}, "samples"))
    assert "warning" not in rows and rows["labels right"] == "nothing is known"


def test_the_last_table_has_the_networks_in_the_order_of_the_steps():
    results = {"finetuned": {"test_top1": 94.157}, "teacher": {"test_top1": 92.1536}}
    rows = [("teacher", "92.15 %"), ("student, fine-tuned", "94.16 %")]
    assert accuracy_summary(results) == rows
    both = accuracy_summary(results | {"student": {"test_top1": 94.3239}})
    assert both == [rows[0], ("student, pre-trained", "94.32 %"), rows[1]]


IMPORTS = """
import sys
import report.tables
slow = {"numpy", "torch", "tensorboard", "matplotlib"} & sys.modules.keys()
assert not slow, slow
import report.board
assert "matplotlib" not in sys.modules
"""


def test_slow_libraries_are_loaded_by_those_alone_who_need_them(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
