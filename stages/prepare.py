"""The way of the settings: from the flags, the preset and the stage before to a job, in the order
in which it happens.  Nothing is written here.

`given`, below, is a dict of all flags of a script, None where a flag was not given.
"""

import platform
import shutil
import subprocess
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

import distributed
from data import selection
from data.duplicates import LeakGuard
from data.labelled import load_labelled, tagged
from data.pool import draw, open_pool, reopen_pool
from data.sources import absolute
from data.splits import split
from engine import count_steps
from files import sha256_of_file
from models import others
from models.hub import HUB, hub_name, published_weights
from models.networks import build_model, check_name, head_of
from presets import PRESETS, Training, override
from topk import MAX_POSITION

from . import checkpoint, flags
from .device import (
    RATE,
    device_name,
    faster_precision,
    multiply_adds,
    settle_compile,
    settle_compute,
)
from .folder import STAGES, check_file, command
from .inherit import inherit
from .lifetime import read_stage
from .program import tell
from .scoring import ScoringJob
from .training import TrainingJob, check_batches

# stage -> which training of a preset it is
TRAININGS = {"teacher": "teacher", "student": "student", "finetuned": "finetune"}
TAGS = "tags:"  # what --dataset says before the name of a pool
SCORES_UP_TO = 1_000_000  # images of a pool whose scores.npz is written unasked
# Presets for a GPU; those for a CPU, with how long their four steps take on two cores.
FOR_A_GPU = ("cifar100", "cifar100-paper")
FOR_A_CPU = {"cifar10": "10 minutes", "lab": "20 minutes", "cifar100-cpu": "a night"}


# --- trainings: steps 1, 3 and 4 ----------------------------------------------------------------


def prepare_training(given, stage, device, parent=None, examples=None, **facts):
    """-> TrainingJob

    stage: OpenStage;  parent: FinishedStage that it is made from, None for step 1
    examples: (labelled, split, settings) -> images, labels to learn; by default the labelled ones
    facts: of config.json what only this step has
    """
    given = _with_absolute_tags(given)
    settings = inherit(given, stage.saved or (parent and parent.config), stage.name)
    path = parent.product if stage.name == "finetuned" else given.get("weights")
    start = starting_point(path, settings["data_dir"])
    preset = PRESETS[settings["preset"]]
    defaults = override(training_of(preset, stage.name, settings["dataset"]), model=start.model)
    saved = stage.saved and stage.saved["training"]
    recipe = recipe_in_force(defaults, given, saved)
    check_name(recipe.model)  # now: data may take minutes to read
    if device.type == "cpu" and settings["preset"] in FOR_A_GPU and not stage.saved:
        ask_before_days(recipe, settings, parent, given["yes"])

    labelled, parts = load_dataset(settings, stage.saved or (parent and parent.config))
    true = labelled.train.subset(parts.labelled)
    images, labels = true.images, true.labels
    if examples:
        images, labels = examples(labelled, parts, settings)
    recipe = recipe_in_force(defaults, given, saved, len(labels))
    recipe.sizes(settings["input_size"])  # raises ValueError
    if not saved and recipe.batch_size < (given["batch_size"] or defaults.batch_size):
        print(
            f"batches of {recipe.batch_size}, all images that an epoch has; learning rate "
            f"{recipe.learning_rate:g}",
            flush=True,
        )

    seed = seed_of(stage.name, settings["seed"], facts.get("member", 0))
    torch.manual_seed(seed)
    network = start.network(recipe.model, len(labelled.classes))
    if facts.get("linear"):
        network.requires_grad_(False)
        head_of(network)[1].requires_grad_(True)
    check_batches(network, recipe, len(labels))
    size = settings["input_size"]
    compute = settle_compute(device, given, stage.saved, network, size, recipe.batch_size)
    mean_std = start.mean_std or (parent and tuple(parent.config["normalisation"].values()))
    config = config_of(
        stage.name,
        settings,
        labelled,
        mean_std or normalisation_of(true.images),
        compute,
        parent=parent and parent.as_parent(stage.folder),
        training=asdict(recipe),
        compile=settle_compile(device, given["compile"], stage.saved),
        **facts,
    )
    if given.get("weights") and start.file:
        config["inputs"]["weights"] = {"sha256": sha256_of_file(start.file)}
    return TrainingJob(
        stage=stage,
        config=stage.settle(config),
        compute=compute,
        recipe=recipe,
        seed=seed,
        network=network,
        labelled=labelled,
        val=labelled.train.subset(parts.val),
        images=images,
        labels=labels,
    )


def recipe_in_force(preset, flags, saved=None, examples=None):
    """The presets.Training of a stage: the preset's under the flags.

    flags: as in `inherit.inherit`, all fields among them;  saved: the fields of the stage that is
    resumed, which then stand in for the preset's;  examples: how many there are, once that is known
    A batch is no larger than all passes of an epoch over the examples.  Where no learning rate is
    given, it follows the batch: the paper's rule, so much for every 256 images (after Goyal et al.
    2017).
    """
    names = [setting.name for setting in fields(Training)]
    base = Training(**{n: saved[n] for n in names if n in saved}) if saved else preset
    recipe = override(base, **{name: flags[name] for name in names})
    batch_size = min(recipe.batch_size, examples * recipe.passes) if examples else recipe.batch_size
    rate = recipe.learning_rate
    if flags["learning_rate"] is None and batch_size != base.batch_size:
        rate = base.learning_rate * batch_size / base.batch_size
    return override(recipe, batch_size=batch_size, learning_rate=rate)


def training_of(preset, stage, dataset):
    """The presets.Training that a preset has for a stage: in step 1 that of step 3 for tags."""
    tags = stage == "teacher" and dataset.startswith(TAGS)
    return getattr(preset, "student" if tags else TRAININGS[stage])


def _with_absolute_tags(given):
    """The settings with an absolute path to the pool of tags:POOL, for any working directory."""
    if not (given["dataset"] or "").startswith(TAGS):
        return given
    return given | {"dataset": TAGS + absolute(given["dataset"].removeprefix(TAGS))}


def seed_of(stage, seed, member=0):
    """The seed of a training's weights and order: no two stages of a run have the same."""
    return 1000 * seed + 10 * member + list(STAGES).index(stage)


def ask_before_days(recipe, settings, parent, yes):
    """On a CPU the presets for a GPU take days: say so before anything is read.

    yes: whether to go on;  raises ValueError, which says the same, where it is not to
    """
    size, labels = settings["input_size"], settings["labels_per_class"]
    examples = 100 * (labels or 500 - settings["val_per_class"])
    if parent and "selected" in parent.result:
        examples = parent.result["selected"]
    steps, batch_size = count_steps(examples, recipe)
    cost = 3 * multiply_adds(build_model(recipe.model, 100), size)  # forward, and twice backward
    precision = faster_precision(torch.device("cpu"))
    days = steps * batch_size * cost / (RATE[precision] * torch.get_num_threads()) / 86400
    others = [f"{name} ({its})" for name, its in FOR_A_CPU.items()]
    time = f"about {days:.1f} days" if days > 0.1 else "hours"
    words = (
        f"no GPU is in use, and the preset {settings['preset']} is made for one: this step alone "
        f"would take {time} on this CPU.  Presets for a CPU, with the time of all four steps on "
        f"two cores: {', '.join(others)}"
    )
    if not yes:
        raise ValueError(f"{words}; --yes starts this one all the same")
    print(words, flush=True)


# --- what a training starts from ----------------------------------------------------------------


class Start(NamedTuple):
    """What a training starts from; all None for random weights."""

    weights: dict | None = None  # a state_dict, or the content of a model.pt
    source: str | None = None  # its name
    model: str | None = None  # the network that it fits, where it says so
    mean_std: tuple | None = None  # the normalisation it was trained with, where it says so
    file: Path | None = None  # the file that the weights were read from

    def network(self, model, num_classes):
        """The network that begins.  ValueError where the weights are those of another one: found
        before anything is written.
        """
        if self.model not in (None, model):
            raise ValueError(
                f"--model {model} contradicts {self.source}, a {self.model}; leave the flag out"
            )
        network = build_model(model, num_classes)
        if self.weights is not None:
            checkpoint.start_from(network, self.weights, self.source)
        return network


def starting_point(path, data_dir):
    """The Start from a model.pt, its stage's folder, other people's checkpoint or published weights
    by name (in DATA_DIR/weights/<name>.pth, or downloaded); from nothing where `path` is None.
    """
    if path is None:
        return Start()
    if path in HUB or not Path(path).exists():
        name = path if others.is_known(path) else hub_name(path)
        file = Path(data_dir, "weights", f"{name.removeprefix(others.PREFIX)}.pth")
        file = file if file.is_file() else None
        weights, mean_std = published_weights(name, own=file and checkpoint.load(file))
        return Start(weights, name, HUB.get(name, name), mean_std, file)
    path = Path(path, "model.pt") if Path(path).is_dir() else path  # a stage's folder
    weights = checkpoint.load(path)
    if not {"arch", "format"} <= weights.keys():
        return Start(weights, str(path), file=path)
    checkpoint.rebuild(weights, path)  # raises ValueError for a damaged one
    normalisation = tuple(weights["normalisation"].values())
    return Start(weights, str(path), weights["arch"]["name"], normalisation, path)


# --- step 2 -------------------------------------------------------------------------------------


def prepare_scoring(given, stage, device):
    """-> ScoringJob, the leak guard not asked yet.  stage: OpenStage"""
    stage.check_parent()
    teachers = [find_teacher(path, stage.folder) for path in given["teacher"] or [None]]
    configs, paths, parents = zip(*teachers, strict=True)
    teacher = checkpoint.load_models(paths, device)
    settings = inherit(_with_absolute_tags(given), configs[0])
    for name, value in (("model", teacher.name), ("input_size", teacher.input_size)):
        if given[name] not in (None, value):
            flag = f"--{name.replace('_', '-')} {given[name]}"
            raise ValueError(f"{flag} contradicts {paths[0]}, which has {value}; leave it out")
    settings["input_size"] = teacher.input_size
    preset = PRESETS[settings["preset"]]
    p, k = given["p"] or preset.p, given["k"] or preset.k
    if p > len(teacher.classes):
        raise ValueError(f"--p {p} is above the number of classes, {len(teacher.classes)}")

    chunk, size = given["batch_size"] or flags.CHUNK, teacher.input_size
    compute = settle_compute(device, given, stage.saved, teacher.model, size, chunk)
    labelled, parts = load_dataset(settings, configs[0], teacher.classes)
    tell("reading the pool")
    specs = [absolute(spec) for spec in given["unlabeled"] or preset.unlabeled]
    engine = given["engine"] or ("ray" if given["scores"] else None)
    if engine:
        from data.remote import Shards  # here: most pools need no fsspec

        pool = Shards(specs, given["strategy"], given["pool_size"])
    else:
        pool = open_pool(specs, settings["data_dir"], size, labelled, parts, cache_of(settings))
    if given["pool_size"]:
        pool = draw(pool, given["pool_size"], settings["seed"])
    if len(pool) > MAX_POSITION:
        raise ValueError(f"{len(pool)} images are more than one ranking holds; split the pool")
    if given["strategy"] == "tags":
        pool.check_tags(teacher.classes)
    names = ("pool_size", "min_score", "strategy", "keep_duplicates", "max_bad_fraction")
    config = config_of(
        stage.name,
        settings,
        labelled,
        (teacher.mean, teacher.std),
        compute,
        parent=parents[0],
        more_parents=list(parents[1:]),
        unlabeled=specs,
        pools={source.name: {"spec": source.spec, **source.inputs} for source in pool.sources},
        p=p,
        k=k,
        batch_size=chunk,
        engine=engine,
        scores=given["scores"],
        save_scores=given["save_scores"] or (not engine and len(pool) <= SCORES_UP_TO),
        **{name: given[name] for name in names},
    )
    guard = None if given["keep_duplicates"] else LeakGuard(labelled, parts)
    return ScoringJob(stage, stage.settle(config), compute, teacher, pool, guard)


def find_teacher(path, folder):
    """-> the config of a teacher's stage, None for a lone model.pt; the model.pt; its parent entry.

    path: None for the teacher of the same run;  folder: of step 2's stage
    """
    path = path or folder.parent / "teacher"
    if path.is_file() and not (path.parent / "config.json").exists():
        entry = {"stage": "teacher", "path": str(path.resolve())}
        return None, path, entry | {"sha256": check_file(path)}
    stage = read_stage(path, "teacher", "finetuned")
    return stage.config, stage.product, stage.as_parent(folder)


def reopen(samples, labelled, parts, settings, specs=None):
    """A finished step 2's pool and selection, in the order of selection.csv: -> Pool; position in
    it, name, label and rank, (M,) each.

    samples: FinishedStage;  settings: of `inherit`: the pool has their input size, which may differ
    from the teacher's, since a selection names images, not pixels
    specs: where the pools are now, None for where they were
    Raises ValueError when a pool is not what step 2 scored, or rows are missing.
    """
    again = f"run `{command(samples.folder, '--overwrite')}`"
    names, label, _, rank = selection.read_selection(samples.product, len(labelled.classes))
    if len(names) != samples.result["selected"]:
        raise ValueError(
            f"{samples.product} has {len(names)} rows and step 2 wrote "
            f"{samples.result['selected']}; {again}"
        )
    specs = specs and [absolute(spec) for spec in specs]

    def opened(size, labelled):
        config, places = samples.config | {"input_size": size}, (cache_of(settings), specs)
        return reopen_pool(
            config, settings["data_dir"], labelled, parts, *places, folder=samples.folder
        )

    pool, size = opened(settings["input_size"], labelled), samples.config["input_size"]
    scored = pool
    if settings["input_size"] != size:  # held-out images are the labelled set's, of its size
        scored = opened(size, load_dataset(settings | {"input_size": size}, samples.config)[0])
    try:
        position = pool.positions(names)
        scored.check_pixels(position, samples.result.get("selected_pixels"))
    except ValueError as error:
        raise ValueError(f"{samples.product}: {error}; {again}") from error
    return pool, position, names, label, rank


# --- the labelled set ---------------------------------------------------------------------------


def load_dataset(settings, earlier=None, classes=None):
    """-> data.LabelledSet, data.Split

    settings: of `inherit`;  earlier: config.json of the stage before, where there is one;  classes:
    the class names that its network knows
    Raises ValueError when the data set is not the one that the stage before was made with.
    """
    tell(f"reading {settings['dataset']}")
    if settings["dataset"].startswith(TAGS):
        labelled, parts = _load_tags(settings)
        _check_same(labelled, earlier, classes)
        return labelled, parts
    with distributed.in_turns():  # the first process downloads and decodes
        name, folder, size = (settings[n] for n in ("dataset", "data_dir", "input_size"))
        labelled = load_labelled(name, folder, size, cache_of(settings))
    _check_same(labelled, earlier, classes)
    per_class = settings["labels_per_class"], settings["val_per_class"]
    seed, names = settings["seed"], labelled.classes
    return labelled, split(labelled.train.labels, seed, *per_class, names, labelled.val)


def cache_of(settings):
    """The folder of decoded images; not beside a user's class folders, which may be read-only."""
    default = "datasets" if settings["dataset"] == "folder" else settings["data_dir"]
    return Path(settings.get("cache_dir") or Path(default, "cache"))


def _load_tags(settings):
    """The names of a pool's folders as labels, as hashtags are the paper's.  Images that repeat the
    preset's own labelled set are left out.
    """
    preset, data_dir = PRESETS[settings["preset"]], settings["data_dir"]
    names = ("dataset", "labels_per_class", "val_per_class")
    labelled, parts = load_dataset(settings | {name: getattr(preset, name) for name in names})
    spec = settings["dataset"].removeprefix(TAGS)
    pool = open_pool([spec], data_dir, settings["input_size"], labelled, parts, cache_of(settings))
    pool.find_duplicates(LeakGuard(labelled, parts))
    return tagged(pool, settings["seed"])


def _check_same(labelled, earlier, classes):
    if classes is not None and list(labelled.classes) != list(classes):
        raise ValueError(
            f"the teacher knows {len(classes)} classes ({classes[0]}, ...) and the data set "
            f"{labelled.name} has {len(labelled.classes)} ({labelled.classes[0]}, ...); choose "
            f"the --dataset and --data-dir that the teacher was trained on"
        )
    if earlier and labelled.inputs["pixels"] != earlier["inputs"]["labelled"]["pixels"]:
        raise ValueError(
            f"the data set {labelled.name} has changed since the stage {earlier['stage']} was "
            f"made; name its --data-dir, or start from step 1 with --overwrite"
        )


def normalisation_of(images):
    """Mean and standard deviation of the images per channel, on the scale 0 to 1.

    images: data.Images;  -> two lists of three numbers, rounded to four digits, so that they print
    as they are
    """
    total, square = torch.zeros(2, 3, dtype=torch.float64)
    step = max(1, 2**22 // images.shape[1] ** 2)  # 50 MB of float32
    for first in range(0, len(images), step):
        batch = images[first : first + step].float() / 255
        total += batch.mean((1, 2)).double().sum(0)  # a mean an image is exact enough in float32
        square += batch.square().mean((1, 2)).double().sum(0)
    mean = total / len(images)
    std = (square / len(images) - mean**2).clamp(min=1e-4).sqrt()
    return [round(x, 4) for x in mean.tolist()], [round(x, 4) for x in std.tolist()]


# --- config.json --------------------------------------------------------------------------------


def config_of(stage, settings, labelled, normalisation, compute, parent=None, **facts):
    """The content of config.json: every setting in force, the versions, the inputs.

    stage: its name;  settings: of `inherit`;  labelled: data.LabelledSet
    normalisation: mean and std, three numbers each;  compute: device.Compute
    parent: of FinishedStage.as_parent;  facts: what only this stage has
    """
    mean, std = normalisation
    return {
        "stage": stage,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **settings,
        **facts,
        "data_dir": str(settings["data_dir"]),
        "cache_dir": settings.get("cache_dir") and str(settings["cache_dir"]),
        "normalisation": {"mean": mean, "std": std},
        "device": compute.device.type,
        "device_name": device_name(compute.device),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": compute.precision_name,
        "threads": compute.threads,
        "processes": distributed.size(),
        "versions": versions(),
        "inputs": {"labelled": labelled.inputs},
        "parent": parent,
    }


def versions():
    """The project's commit (None outside git) and the libraries' versions."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    commit = None
    if (root / ".git").exists() and shutil.which("git"):
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    known = {
        "project": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    packages = ("torchvision", "numpy", "scikit-learn", "timm", "opencv-python")
    for package in (*packages, "opencv-python-headless"):
        try:
            known[package.removesuffix("-headless")] = version(package)
        except PackageNotFoundError:
            known.setdefault(package.removesuffix("-headless"), None)
    return known
