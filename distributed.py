"""Several processes as one, under torchrun: who am I, how many are we, what do we agree on.

    torchrun --nproc-per-node 2 -- make_sample_data.py --preset lab

Without torchrun there is one process and every function here is free.
"""

import atexit
import datetime
import os
import sys
import time
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

JOINING = datetime.timedelta(minutes=10)  # until all processes are there
PATIENCE = datetime.timedelta(days=2)  # how long step 2 waits for its slowest process


def start():
    """Join the processes that torchrun started with this one, if it did, until they end.

    Raises ValueError where the environment is not as torchrun makes it, or not all come in time.
    """
    told = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if not any(told.values()) or dist.is_initialized():
        return
    if not all(text and text.isdecimal() for text in told.values()):
        words = ", ".join(f"{name} is {text or 'not set'}" for name, text in told.items())
        raise ValueError(f"{words}: torchrun sets both to numbers; start with it, or unset them")
    if told["WORLD_SIZE"] == "1":
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # torchrun --max-restarts keeps its store: new processes would find the addresses of dead ones.
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=JOINING))
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        store.set(f"here {number}", "")
        store.wait([f"here {other}" for other in range(count)], JOINING)
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=PATIENCE
        )
    except RuntimeError as error:
        raise ValueError(
            f"process {told['RANK']} of {told['WORLD_SIZE']} has not found all others within "
            f"{JOINING}: start all of them with torchrun ({str(error).partition(chr(10))[0]})"
        ) from error
    atexit.register(dist.destroy_process_group)
    if not is_first():  # one process speaks: the others would say the same
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
        sys.stderr = _NoTerminal(sys.stderr)


class _NoTerminal:
    """A stream for errors only: tqdm draws no bars where there is no terminal."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def isatty(self):
        return False


def rank():
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first():
    """Whether this process writes the files and prints."""
    return rank() == 0


def local_rank():
    """This process's number on its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if dist.is_initialized() else 0


def largest(number):
    """The largest of the processes' numbers; every process waits for all others here."""
    if not dist.is_initialized():
        return number
    numbers = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return type(number)(numbers.item())


def gathered(thing):
    """What every process has, a list in the order of their numbers.  thing: can be pickled"""
    things = [thing] * size()
    if dist.is_initialized():
        dist.all_gather_object(things, thing)
    return things


def wait():
    """Go on when every process has come here."""
    largest(0)


class Clock:
    """Tells when so many seconds are over, in all processes at the same step.

    Several processes have to agree on the time.  They ask each other seldom: at the step at which,
    by the steps so far, the seconds should be over.
    """

    def __init__(self, seconds, step):
        """The first period begins now, at `step`."""
        self.seconds = seconds
        self._begin(step)

    def _begin(self, step):
        self.first_step, self.began = step, time.monotonic()
        self.ask_at = step + 1

    def over(self, step):
        """Whether the period is over at `step`; if so, the next one begins."""
        if step < self.ask_at:
            return False
        seconds = largest(time.monotonic() - self.began)
        if seconds > self.seconds:
            self._begin(step)
            return True
        if size() > 1:
            steps_a_second = (step - self.first_step) / max(seconds, 1e-3)
            expected = self.first_step + round(steps_a_second * self.seconds)
            self.ask_at = max(step + 1, expected)
        return False


@contextmanager
def in_turns():
    """Inside this context the first process is alone; then comes the first of every other machine,
    which may have a disk of its own; then the others.  When one fails, torchrun ends the others.
    """
    turn = 0 if is_first() else 1 if local_rank() == 0 else 2
    for _ in range(turn):
        wait()
    yield
    for _ in range(2 - turn):
        wait()


def total_(tensor):
    """Add the processes' tensors up, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def same_(tensors):
    """Give every process the first one's tensors, in place."""
    for tensor in tensors if dist.is_initialized() else ():
        dist.broadcast(tensor, 0)


def share(count, unit=1, number=None):
    """A contiguous range of `count` things, as (first, last + 1): this process's, or another's.

    Its ends are multiples of `unit` (or `count` itself): a unit is never split.
    """
    units, number = -(-count // unit), rank() if number is None else number
    first, last = (units * n // size() * unit for n in (number, number + 1))
    return min(first, count), min(last, count)


def parallel(model):
    """`model` with gradients that are the mean over the processes."""
    if not dist.is_initialized():
        return model
    device = next(model.parameters()).device
    devices = [device.index] if device.type == "cuda" else None
    # Buffers are batch norm's statistics: of use only when the network is evaluated, see `same_`.
    return DistributedDataParallel(model, devices, broadcast_buffers=False)
