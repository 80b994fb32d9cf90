"""Decoding in processes of our own, so that a file that crashes the decoder costs that file only.

A worker (worker.py) imports NumPy and OpenCV and nothing else of size, and writes the pixels into
the cache itself: only checksums and reasons come back over its pipe.

joblib's loky was tried in their place.  It decoded at 0.97 to 1.11 times our rate, but when its
parent was killed, its workers stayed for 40 seconds, and busy ones longer.  Ours end as soon as
their stdin closes.  A crash also ended all of loky's workers, and printed a traceback.
"""

import atexit
import os
import pickle
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import cv2
import numpy as np

from .worker import decode_into

CHUNK = 256  # images a task
CRASHES = "crashes the decoder"
# A package without its __init__, which would import torch and take seconds.
PROGRAM = """
import sys, types
sys.modules["data"] = types.ModuleType("data")
sys.modules["data"].__path__ = sys.argv[1:]
from data.worker import serve
serve()
"""
# glibc gives the memory of every large image back to the system and asks for it again for the next
# one.  With these it keeps that memory, which is faster.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}

_resting = []  # workers without a task; one is kept for the next pool, which need not start its own


class Died(Exception):
    """A worker ended before it answered."""


class Worker:
    """One worker process.  Raises OSError when it does not start."""

    def __init__(self):
        # In a process group of its own: Ctrl-C reaches the parent only, which stops its workers.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**KEEP_MEMORY, **os.environ},
            process_group=0 if os.name == "posix" else None,
        )
        try:
            self._receive()
        except Died:
            raise OSError(
                "a decoding worker does not start (see above); "
                "check the installation of NumPy and OpenCV"
            ) from None

    def ask(self, task):
        """The answer of `worker.decode_into`.  Raises Died, or what the worker raised."""
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
            with suppress(OSError):  # it had not read all of its task
                pipe.close()


def rest(keep=1):
    """Stop the workers without a task, all but `keep`."""
    while len(_resting) > keep:
        _resting.pop().stop()


atexit.register(rest, keep=0)


def cores():
    """Processor cores for this process; under torchrun its share of the machine's."""
    known = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def chunk_size(count):
    """Images a task, so that `count` images keep every core busy."""
    return min(CHUNK, max(16, count // (16 * cores())))


def decode_all(tasks, count, take, in_memory):
    """Do many tasks side by side; the results do not depend on the number of workers.

    tasks: iterable of (tag, arguments of `worker.decode_into`), read on as workers become free
    count: images in all tasks
    take(tag, *answer): called in this thread, in the order of the tasks
    in_memory: whether the sources are decoded images; threads of this process then do the tasks

    Raises OSError, or what `tasks` or `take` raise; no task is running any more then.
    """
    workers = min(cores(), 1 + count // 64)  # a small pool is done before a second worker starts
    crew, waiting = _Crew(), deque()
    run = (lambda task: decode_into(**task)) if in_memory else crew.run
    with ExitStack() as stack, ThreadPoolExecutor(workers) as threads:
        # There is a thread or a process for every core already: OpenCV's own threads are off.
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        cv2.setNumThreads(0)
        try:
            for tag, task in tasks:
                waiting.append((tag, threads.submit(run, task)))
                if len(waiting) > 4 * workers:  # bounds the answers that wait in memory
                    tag, future = waiting.popleft()
                    take(tag, *future.result())
            for tag, future in waiting:
                take(tag, *future.result())
        except BaseException:  # also Ctrl-C and SIGTERM
            crew.stop()
            threads.shutdown(cancel_futures=True)
            raise
    rest()


class _Crew:
    """The workers of one `decode_all`: each thread that calls `run` takes one for a task."""

    def __init__(self):
        self.busy, self.stopped = set(), False

    def run(self, task):
        """Do a task.  When its worker dies, another one does its images one by one."""
        try:
            return self._ask(task)
        except Died:
            answers = [self._alone(task, i) for i in range(len(task["sources"]))]
        checksums, hashes, reasons = zip(*answers, strict=True)
        hashes = np.concatenate(hashes) if task["hashes"] else None
        reasons = {i: reason for i, own in enumerate(reasons) for reason in own.values()}
        return np.concatenate(checksums), hashes, reasons

    def _alone(self, task, i):
        """One image, tried twice: the system may have killed the worker for want of memory."""
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
            return worker.ask(task)
        except Died:
            if self.stopped:
                raise InterruptedError from None
            raise
        finally:
            self.busy.discard(worker)
            if worker.process.returncode is None:
                _resting.append(worker)

    def stop(self):
        self.stopped = True
        for worker in list(self.busy):
            worker.process.kill()
