"""Decoding in processes of its own, so that a file that crashes the decoder costs that file only.

A worker (worker.py) imports NumPy and OpenCV only, so that it starts in a fifth of a second. It
writes the pixels into the cache itself: only hashes and reasons come back over its pipe.
"""

import atexit
import os
import pickle
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

from .rows import decode_rows

CHUNK = 256  # images a task; so many that handing over a task costs nothing
CRASHES = "crashes the decoder"
PROGRAM = str(Path(__file__).with_name("worker.py"))
# glibc gives memory back to the system after every large image and takes it again for the next;
# with these it keeps it, which halves the time for an image of 224 pixels.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}

_resting = []  # a worker that is done stays for the next pool: to start one takes longer than many


class Died(Exception):
    """A worker ended before it answered."""


class Worker:
    """One worker process."""

    def __init__(self):
        # A process group of its own: Ctrl-C reaches this process only, which then stops the others.
        self.process = subprocess.Popen(
            [sys.executable, "-P", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**KEEP_MEMORY, **os.environ},
            **({"process_group": 0} if os.name == "posix" else {}),
        )
        try:
            self._receive()
        except Died:
            raise OSError(
                f"the decoding worker {PROGRAM!r} does not start (see above); "
                "check the installation of NumPy and OpenCV"
            ) from None

    def ask(self, task):
        """The answer of `rows.decode_rows`.  Raises Died, or what the worker raised."""
        try:
            pickle.dump(task, self.process.stdin)
            self.process.stdin.flush()
        except OSError:
            self.stop()
            raise Died from None
        answer = self._receive()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _receive(self):
        try:
            return pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            self.stop()
            raise Died from None

    def stop(self):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # of a task that it did not read to the end
                pipe.close()


def rest(keep=1):
    """Stop the workers at rest, all but `keep`."""
    while len(_resting) > keep:
        _resting.pop().stop()


atexit.register(rest, keep=0)


def cores():
    """Processor cores for this process; with torchrun, its share of the machine's."""
    known = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def chunk_size(count):
    """Images a task, such that `count` images keep every core busy."""
    return min(CHUNK, max(16, count // (16 * cores())))


def decode_all(tasks, count, take, in_memory):
    """Decode many chunks side by side; the results do not depend on the number of workers.

    tasks: iterable of (tag, arguments of `rows.decode_rows`), asked for as workers get free
    count: images in all
    take(tag, *answer): called in this thread, in the order of the tasks
    in_memory: whether the sources are pictures; these are worked on in threads of this process
    """
    workers = min(cores(), 1 + count // 64)  # a small pool is done before more have started
    crew, waiting = _Crew(), deque()
    run = _here if in_memory else crew.run
    with _single_threaded_opencv(), ThreadPoolExecutor(workers) as pool:
        try:
            for tag, task in tasks:
                waiting.append((tag, pool.submit(run, task)))
                if len(waiting) > 4 * workers:  # not too far ahead of a slow disk
                    tag, future = waiting.popleft()
                    take(tag, *future.result())
            for tag, future in waiting:
                take(tag, *future.result())
        except BaseException:  # also Ctrl-C and SIGTERM: what is under way is of no use
            crew.stop()
            pool.shutdown(cancel_futures=True)
            raise
    rest()


def _here(task):
    return decode_rows(**task)


class _Crew:
    """The workers of one job: as many as there are threads that call `run`."""

    def __init__(self):
        self.busy, self.stopped = set(), False

    def run(self, task):
        """Answer a task.  A worker that dies is replaced, and its images are done one by one."""
        try:
            return self._ask(task)
        except Died:
            answers = [self._alone(task, i) for i in range(len(task["sources"]))]
        prints, hashes, reasons = zip(*answers, strict=True)
        return (
            np.concatenate(prints),
            np.concatenate(hashes) if task["canonical"] else None,
            {i: reason for i, own in enumerate(reasons) for reason in own.values()},
        )

    def _alone(self, task, i):
        """One image, tried twice: a worker may also be killed for want of memory."""
        offset = task["offset"] + i * task["size"] ** 2 * 3
        for _ in range(2):
            try:
                return self._ask({**task, "offset": offset, "sources": task["sources"][i : i + 1]})
            except Died:
                continue
        nothing = np.zeros((1, 16), np.uint8)
        return nothing, nothing, {0: CRASHES}

    def _ask(self, task):
        try:
            worker = _resting.pop()
        except IndexError:
            worker = Worker()
        self.busy.add(worker)
        try:
            if self.stopped:
                raise InterruptedError
            answer = worker.ask(task)
        except Died:
            if self.stopped:
                raise InterruptedError from None
            raise
        finally:
            self.busy.discard(worker)
            if worker.process.returncode is None:
                _resting.append(worker)
        return answer

    def stop(self):
        self.stopped = True
        for worker in list(self.busy):
            worker.process.kill()


@contextmanager
def _single_threaded_opencv():
    """The images are worked on side by side; OpenCV's own threads would get in their way."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
