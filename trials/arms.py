"""An arm of the study becomes runs of the four steps.

An arm says what it changes in which step.  A value may hang on the preset or on another arm, so
that one arm suits every preset:

    Times(2)             twice the preset's value
    Images(0.5)          `epochs` for half the images that the preset's step processes
    Compute("pipeline")  `epochs` for the whole compute of the arm "pipeline"
    Share(0.4)           `k` for 40 % as many rows as the pool has images
    ALL                  `labels_per_class` for all labels that validation leaves

An arm that says nothing about a step's length processes the preset's number of images there, also
where K, the pool or the labels have other sizes.  Compute is images x multiply-adds, three times
as many for an image of a training (forward, and two passes of its size backward) as for one that
is only scored.
"""

from dataclasses import asdict, dataclass, field, fields, replace

from presets import PRESETS, Training

from .runs import Run
from .sizes import ALL, Compute, Images, Sizes, Times, multiply_adds, tagged_images, times

# The steps in their order, with the part of a preset that holds their training.  "tags" is a step 1
# on the folder names of a pool, with the recipe of step 3; the teacher starts from its weights.
# "further" is a step 1 that starts from the teacher's weights; "again" is a second round, whose
# teacher is the fine-tuned student; "transferred" is a step 1 on another labelled set that starts
# from an arm's end.
STEPS = {"tags": "student", "teacher": "teacher", "further": "finetune", "samples": None}
STEPS |= {"student": "student", "finetuned": "finetune"}
STEPS |= {"samples again": None, "student again": "student", "finetuned again": "finetune"}
STEPS |= {"transferred": "finetune"}
# The fields of a preset that all steps depend on, and those that one does.
_SHARED = ("dataset", "input_size", "labels_per_class", "val_per_class")
_OWN = {step: (STEPS[step],) if STEPS[step] else ("unlabeled", "p", "k") for step in STEPS}
_OWN |= dict.fromkeys(("further", "transferred"), ("teacher",))  # whose values their flags change


@dataclass(frozen=True)
class Arm:
    """What an arm changes, step by step: fields of presets.Training, and of a samples step
    `p`, `k`, `strategy`, `unlabeled`, `pool_size`, `keep_duplicates`, of a teacher
    `labels_per_class`, `input_size`, `weights` and `linear`, of a student `input_size`,
    `soft_labels` and `joint`, of a transfer `dataset`, `labels_per_class`, `val_per_class` and
    `linear`, of tags `dataset`.
    """

    name: str
    teacher: dict = field(default_factory=dict)
    further: dict | None = None  # None: there is no such step
    samples: dict = field(default_factory=dict)
    student: dict = field(default_factory=dict)
    finetuned: dict = field(default_factory=dict)
    ends: str = "finetuned"  # its last step, whose accuracy is the arm's
    transferred: dict | None = None  # unless this one follows
    members: int = 1  # teachers that differ in their start; step 2 takes the mean of their softmax
    tags: dict | None = None  # None: there is no such step

    def but(self, words, **changes):
        """Another arm, "<name>, <words>": the changes of each step come on top of this one's."""
        for step, new in changes.items():
            if isinstance(new, dict):
                changes[step] = (getattr(self, step) or {}) | new
        return replace(self, name=f"{self.name}, {words}", **changes)

    def steps(self):
        """The names of its steps, in order."""
        for step in STEPS:
            if step not in ("tags", "further") or getattr(self, step) is not None:
                yield step
            if step == self.ends:
                break
        if self.transferred is not None:
            yield "transferred"

    def changes(self, step):
        """Of one of its steps; a second round has those of the first."""
        return getattr(self, step.removesuffix(" again")) or {}


@dataclass(frozen=True)
class Planner:
    """Makes the runs of arms.

    named: a preset's name;  base: presets.Preset, the one that the arms change (the named one, or
    a short form of it);  arms: {name: Arm}
    """

    named: str
    base: object
    arms: dict
    made: dict = field(default_factory=dict, compare=False, repr=False)  # (arm, seed) -> Run

    def run(self, name, seed):
        """The last Run of an arm, its parents in it."""
        if (name, seed) not in self.made:
            self.made[name, seed] = self._run(name, seed)
        return self.made[name, seed]

    def _run(self, name, seed):
        arm, parent, members = self.arms[name], None, ()
        steps = self._steps(arm)
        for step in arm.steps():
            flags, images, cost = steps[step]
            values = asdict(PRESETS[self.named])
            values = {n: v for n, v in values.items() if n in (*_SHARED, *_OWN[step])}
            others, was = members if step == "samples" else (), ()
            if step == "teacher":
                images, cost = images // arm.members, cost // arm.members
                if arm.tags:
                    pool = arm.tags["dataset"].removeprefix("tags:")
                    was = ("--weak-epochs", f"{arm.tags['epochs']}"), ("--weak-pretrain", pool)
            parent = Run(step, self.named, seed, flags, values, parent, images, cost, others, was)
            if step == "teacher":
                numbers = (("--member", f"{number}") for number in range(1, arm.members))
                members = tuple(replace(parent, flags=(*flags, number)) for number in numbers)
        return parent

    def compute(self, name):
        """Multiply-adds of all steps of an arm."""
        arm = self.arms[name]
        steps = self._steps(arm)
        return sum(steps[step][2] for step in arm.steps())

    def _steps(self, arm):
        """step -> flags that differ from the preset's, images, multiply-adds."""
        done = {}
        for step in arm.steps():
            base = self._base(arm, step)
            sizes = Sizes.of(base, None if step == "transferred" else arm)
            if STEPS[step] is None:
                teacher = "student" if "student" in done else "teacher"
                model, images = self._training(arm, teacher).model, sizes.pool
                flags, times = self._sample_flags(arm, sizes), arm.members
                cost = multiply_adds(model, base.input_size, sizes.classes)
            else:
                recipe, rows = self._training(arm, step), sizes.rows(step)
                if step == "tags":
                    rows = tagged_images(arm.tags["dataset"])
                recipe = self._with_length(recipe, arm, step, rows, done)
                images = recipe.epochs * recipe.passes * rows
                flags = self._training_flags(arm, step, recipe, sizes)
                times = 1 if arm.changes(step).get("linear") else 3  # no gradient below the head
                cost = _cost_an_image(recipe, base.input_size, sizes.classes)
                images *= arm.members if step == "teacher" else 1
            done[step] = flags, images, times * images * cost
        return done

    def _base(self, arm, step):
        """The Preset that holds in a step."""
        if step == "transferred":
            changes = arm.transferred.items()
            return replace(self.base, **{n: v for n, v in changes if n in _SHARED})
        size = arm.teacher.get("input_size", self.base.input_size)
        if step not in ("tags", "teacher", "further", "samples"):
            size = arm.student.get("input_size", size)
        return replace(self.base, input_size=size)

    def _training(self, arm, step):
        """The Training of a step but for its length."""
        recipe = getattr(self.base, STEPS[step])
        changes = {n: v for n, v in arm.changes(step).items() if n in _TRAINING}
        changes.pop("epochs", None)
        changes = {
            name: times(getattr(recipe, name), value) if isinstance(value, Times) else value
            for name, value in changes.items()
        }
        if step == "tags":
            changes["model"] = self._training(arm, "teacher").model
        elif STEPS[step] == "finetune":  # it goes on with what the step before has trained
            first = step == "further" or (step == "transferred" and arm.ends == "teacher")
            before = "teacher" if first else "student"
            changes["model"] = self._training(arm, before).model
        return replace(recipe, **changes)

    def _with_length(self, recipe, arm, step, rows, done):
        """The Training with its epochs and passes."""
        epochs = arm.changes(step).get("epochs", Images(1))
        if not isinstance(epochs, Images | Compute):
            return replace(recipe, epochs=epochs)
        if isinstance(epochs, Compute):
            size, classes = self._base(arm, step).input_size, Sizes.of(self.base).classes
            cost = 3 * _cost_an_image(recipe, size, classes)
            spent = sum(compute for _, _, compute in done.values())
            left = epochs.factor * self.compute(epochs.arm) - spent
            passes = -(-left // (cost * rows))
        else:
            passes = round(epochs.factor * preset_images(self.base, epochs.step or step) / rows)
        return _of_length(recipe, max(1, int(passes)))

    def _training_flags(self, arm, step, recipe, sizes):
        preset = PRESETS[self.named]
        first = step in ("tags", "teacher", "further", "transferred")  # a step 1, with its flags
        defaults = asdict(getattr(preset, "teacher" if first and step != "tags" else STEPS[step]))
        flags = {n: v for n, v in asdict(recipe).items() if v != defaults[n]}
        if "batch_size" in flags:  # alone it would scale the rate
            flags["learning_rate"] = recipe.learning_rate
        if STEPS[step] == "finetune":
            flags.pop("model", None)  # that of the step before, whatever the preset says
        if first:
            base, changes = self._base(arm, step), {} if step == "transferred" else arm.teacher
            shared = {n: getattr(base, n) for n in _SHARED}
            shared["labels_per_class"] = changes.get("labels_per_class", base.labels_per_class)
            if shared["labels_per_class"] == ALL:
                shared["labels_per_class"] = sizes.labels_per_class
            flags |= {n: v for n, v in shared.items() if v != getattr(preset, n)}
        fields = ("soft_labels", "joint", "weights", "linear", *("dataset",) * (step == "tags"))
        fields += ("input_size",) if step.startswith("student") else ()
        return _flags(flags | {n: v for n, v in arm.changes(step).items() if n in fields})

    def _sample_flags(self, arm, sizes):
        preset, changes = PRESETS[self.named], arm.samples
        flags = {"p": sizes.p, "k": sizes.k, "unlabeled": changes.get("unlabeled")}
        flags = {n: v for n, v in flags.items() if v != getattr(preset, n)}
        flags |= {name: changes.get(name) for name in ("strategy", "keep_duplicates")}
        flags |= {"pool_size": sizes.pool if "pool_size" in changes else None}
        return _flags(flags)


def preset_images(base, step):
    """Images that a step of a presets.Preset processes."""
    recipe = getattr(base, STEPS[step])
    return recipe.epochs * recipe.passes * Sizes.of(base).rows(step)


def _cost_an_image(recipe, input_size, classes):
    """Multiply-adds of a Training for one image, on average over its steps."""
    sizes = recipe.sizes(input_size)
    return round(sum(share * multiply_adds(recipe.model, px, classes) for px, share in sizes))


_TRAINING = {setting.name for setting in fields(Training)}


def _of_length(recipe, total):
    """A Training of `total` passes over its images or slightly more, with about as many epochs
    (and so evaluations) as before."""
    if total == recipe.epochs * recipe.passes:
        return recipe
    wish = max(1, round(total / recipe.epochs))
    near = range(max(1, wish // 2), min(2 * wish, total) + 1)
    passes = min(near, key=lambda passes: (-total % passes, abs(passes - wish)))
    return replace(recipe, epochs=-(-total // passes), passes=passes)


def _flags(settings):
    """{"learning_rate": 0.1} -> (("--learning-rate", "0.1"),); what is None is left out."""
    flags = []
    for name, value in sorted(settings.items()):
        text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if value is not None:
            flags.append(("--" + name.replace("_", "-"), text))
    return tuple(flags)
