"""The same runs on a SLURM cluster, handed over by submitit (`pip install submitit`)."""

import sys
from dataclasses import dataclass, field

from .work import Place

MINUTES = 24 * 60  # a run may take; it goes on with --resume when it is asked for again


@dataclass
class ClusterPlace(Place):
    """A Place whose runs are jobs of one core each.  Its folders are shared by all machines.

    options: of sbatch, such as {"partition": "gpu", "gpus": "1"}
    Raises ValueError where submitit or SLURM is missing.
    """

    options: dict = field(default_factory=dict)
    cluster: str = "slurm"
    executor: object = field(init=False)

    def __post_init__(self):
        try:
            import submitit
        except ImportError:
            raise ValueError("--cluster needs submitit: pip install .[slurm]") from None
        try:
            self.executor = submitit.AutoExecutor(self.runs / "jobs", cluster=self.cluster)
        except RuntimeError as error:
            raise ValueError(f"--cluster {self.cluster}: {error}") from None
        options = {name.replace("-", "_"): value for name, value in self.options.items()}
        self.executor.update_parameters(
            timeout_min=MINUTES, cpus_per_task=1, name="study", slurm_additional_parameters=options
        )

    def start(self, run, lock, core):
        """A run as a job, which takes the run's lock itself once it is its turn."""
        run_dir = run.run_dir(self.runs).absolute()
        # flock waits: where an earlier study.py has sent the same job, this one finds it done.
        words = ["flock", str(run_dir / "lock"), "sh", "-c", 'exec "$@" >> "$0" 2>&1']
        words += [str(run_dir / "log.txt"), "env", "-C", str(self.root)]
        words += [f"{name}={value}" for name, value in self.environment.items()]
        words += [sys.executable, *self.words(run)]
        return _Job(self.executor.submit(_requeued(words)))


def _requeued(words):
    """The command as a function that SLURM may stop and start again: its --resume goes on."""
    from submitit.helpers import CommandFunction, DelayedSubmission

    class Command(CommandFunction):
        def checkpoint(self):
            return DelayedSubmission(self)

    return Command(words, verbose=False)


class _Job:
    """A submitted job as `Work` knows children."""

    returncode = None

    def __init__(self, job):
        self.job = job

    def poll(self):
        if self.returncode is None and self.job.done():
            self.returncode = int(self.job.exception() is not None)
        return self.returncode

    def send_signal(self, signum):
        self.job.cancel()

    def wait(self):
        """It is cancelled; SLURM sends the signal that saves its state."""
