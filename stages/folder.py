"""A stage's folder: its states and its files.

A folder is empty, unfinished (config.json is there) or finished (result.json, written last).
"""

import shutil

from .lock import NAME as LOCK

# stage -> the file that the next stage is made from, and the command that runs the stage
STAGES = {
    "teacher": ("model.pt", "python main.py"),
    "samples": ("selection.csv", "python make_sample_data.py"),
    "student": ("model.pt", "python student_train.py"),
    "finetuned": ("model.pt", "python main.py --student-network True"),
}
# What a finished stage answers for: result.json has the hash of each.
PRODUCTS = (
    "config.json",
    "metrics.jsonl",
    "model.pt",
    "predictions.npz",
    "scores.npz",
    "selection.csv",
    "skipped.csv",
)
_ARTEFACTS = ("result.json", *PRODUCTS, "projector_config.pbtxt", "events.out.tfevents.*")
# Of an unfinished stage: one a process, and what a killed one has left.
WORKING_FILES = ("resume*.pt", "scores-*.bin", "*.partial-*")


def state_of(folder):
    """ "empty", "unfinished" or "finished"."""
    if (folder / "result.json").exists():
        return "finished"
    return "unfinished" if (folder / "config.json").exists() else "empty"


def next_action(folder, resume, overwrite):
    """What a stage is to do with its folder: "start", "resume" or "nothing".  Changes nothing.

    Raises ValueError for work that is already there, naming --resume and --overwrite.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite contradict each other; give one of them")
    state = state_of(folder)
    if state == "empty" or overwrite:
        return "start"
    if resume:
        return "nothing" if state == "finished" else "resume"
    raise ValueError(
        f"{folder} is {state}: add --resume to "
        f"{'keep it as it is' if state == 'finished' else 'go on'} or --overwrite to start anew"
    )


def finished_already(folder):
    """What a stage says that has nothing to do."""
    return f"{folder} is finished already; --overwrite starts it anew"


def left_behind(folder):
    """Whether a finished stage has files that a process killed at its very end did not remove."""
    found = (path for pattern in (LOCK, *WORKING_FILES) for path in folder.glob(pattern))
    return any(path.is_file() for path in found)


def clear(folder):
    """Remove an earlier run: result.json first, so that what is left never looks finished."""
    remove(folder, _ARTEFACTS + WORKING_FILES)
    shutil.rmtree(folder / "00000", ignore_errors=True)  # the embedding projector's


def remove(folder, patterns):
    """Remove the files of a folder that match one of the patterns; its folders stay, since one
    may be an export that another program is writing.
    """
    for pattern in patterns:
        for path in folder.glob(pattern):
            if not path.is_dir():
                path.unlink(missing_ok=True)
