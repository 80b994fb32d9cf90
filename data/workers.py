"""Decoding in processes of our own, so that a file that crashes the decoder costs that file only.

`decode_all` shares tasks among workers.  A worker imports NumPy, OpenCV and this file's neighbours
without torch, and writes the pixels into the cache itself: a task is a pickled dict, the arguments
of `decode_into`, and only checksums and reasons come back over the pipe.

joblib's loky was tried in their place.  It decoded at 0.97 to 1.11 times our rate, but its workers
outlived a killed parent by 40 seconds and more, and a crash ended all of them.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from .decode import (
    DAMAGED_GZIP,
    MAX_FILE_BYTES,
    Unreadable,
    checksums,
    cv2,
    decode,
    fit_square,
    open_shard,
    pixel_hash,
    read_file,
)

CHUNK = 256  # images a task
SECONDS = 10  # processor seconds that one picture may take; some small files would take minutes
CRASHES = "crashes the decoder"
TOO_SLOW = f"takes longer than {SECONDS} s to decode"
WRITE_BYTES = 2**20  # of squares written at a time; they stay in the processor's cache until then
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from data.workers import serve
serve(int(sys.argv[2]))
"""
# glibc gives the memory of every large image back to the system and asks for it again for the next
# one.  With these it keeps that memory, which is faster.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}


# --- in a worker --------------------------------------------------------------------------------


def serve(parent):
    """Answer tasks until stdin closes or the process `parent` has ended, even while decoding."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C the parent stops its workers
    cv2.setNumThreads(0)  # there is a worker for every core already
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints would otherwise print into the answers

    def answer(value):
        try:
            pickle.dump(value, answers)
            answers.flush()
        except BrokenPipeError:
            os._exit(0)  # the parent is gone; a normal exit would flush `answers` and fail again

    answer("ready")
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except (EOFError, pickle.UnpicklingError):  # also in the middle of a task
            return
        try:
            value = decode_into(**task)
        except Exception as error:  # the parent raises it
            value = error
        answer(value)


def _end_with(parent):
    while os.name == "nt" or os.getppid() == parent:  # Windows keeps the number of a dead parent
        time.sleep(0.5)
    os._exit(0)


def decode_into(file, offset, size, sources, hashes, seconds=0):
    """Decode images into consecutive squares of a file; zeros for an image that is unreadable.

    file: path, exists;  offset: byte at which the first square begins;  size: side of the squares
    sources: N of: (path, offset, length) of an encoded image, offset None for a whole file;
        a decoded image, uint8 (H, W, 3);  None for a square of zeros
    hashes: whether `pixel_hash` is wanted
    seconds: of a processor, after which an image ends this process by a signal; 0 for no limit
    -> checksums uint8 (N, 16), pixel hashes uint8 (N, 16) or None, {index: reason}

    Raises OSError when the squares cannot be written.
    """
    sums = np.zeros((len(sources), 16), np.uint8)
    own_hashes = np.zeros((len(sources), 16), np.uint8) if hashes else None
    reasons, reader = {}, _Reader()
    step = min(len(sources), max(1, WRITE_BYTES // (size * size * 3)))
    buffer = np.empty((step, size, size, 3), np.uint8)
    limit = seconds if hasattr(signal, "setitimer") else 0  # not on Windows
    with open(file, "r+b") as out:
        out.seek(offset)
        for first in range(0, len(sources), step):
            squares = buffer[: len(sources) - first]
            for i, square in enumerate(squares, first):
                if limit:
                    signal.setitimer(signal.ITIMER_PROF, limit)
                try:
                    _decode_one(sources[i], reader, square, own_hashes[i] if hashes else None)
                except Unreadable as reason:
                    square[:] = 0
                    reasons[i] = str(reason)
            sums[first : first + len(squares)] = checksums(squares)
            # write(), not a memory map: on a full disk a map kills the process with SIGBUS.
            out.write(squares)
    if limit:
        signal.setitimer(signal.ITIMER_PROF, 0)
    reader.close()
    return sums, own_hashes, reasons


def _decode_one(source, reader, square, own_hash):
    """Fill `square` uint8 (S, S, 3) and, unless it is None, `own_hash` uint8 (16,)."""
    if source is None:
        square[:] = 0
        return
    whole = fitted = source
    if isinstance(source, tuple):
        content = reader.read(*source)
        # Decoded once more for the hash: `fitted` may be reduced while it is decoded, in a labelled
        # set as in a pool, so that a copy in a pool has the same pixels as the labelled image.
        whole = decode(content) if own_hash is not None else None
        fitted = decode(content, len(square))
    if own_hash is not None:
        own_hash[:] = np.frombuffer(pixel_hash(whole), np.uint8)
    square[:] = fit_square(fitted, len(square))


class _Reader:
    """Reads image files, and the members of an archive one after the other in large blocks."""

    def __init__(self):
        self.path = self.file = None

    def read(self, path, offset, length):
        """`length` bytes of a file from `offset` on, or the whole file where `offset` is None."""
        if offset is None:
            return read_file(path)
        try:
            if path != self.path:
                self.close()
                self.file, self.path = open_shard(path, buffering=2**20), path
            self.file.seek(offset)
            return self.file.read(min(length, MAX_FILE_BYTES + 1))
        except DAMAGED_GZIP:
            raise Unreadable("damaged or truncated archive") from None
        except OSError as error:
            raise Unreadable(f"cannot be opened: {error.strerror or error}") from None

    def close(self):
        if self.file is not None:
            self.file.close()


# --- in the parent ------------------------------------------------------------------------------


class Died(Exception):
    """A worker ended before it answered.  Its argument: why, for a single image."""


class Worker:
    """One worker process.  Raises OSError when it does not start."""

    def __init__(self):
        # In a process group of its own: Ctrl-C reaches the parent only, which stops its workers.
        root = str(Path(__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, root, str(os.getpid())],
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
        """The answer of `decode_into`.  Raises Died, or what the worker raised."""
        try:
            pickle.dump(task, self.process.stdin)
            self.process.stdin.flush()
        except OSError:
            raise self._died() from None
        answer = self._receive()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _receive(self):
        try:
            return pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise self._died() from None

    def _died(self):
        with suppress(subprocess.TimeoutExpired):  # its pipe closes a moment before it ends
            self.process.wait(timeout=5)
        self.stop()
        slow = os.name == "posix" and self.process.returncode == -signal.SIGPROF
        return Died(TOO_SLOW if slow else CRASHES)

    def stop(self):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # it had not read all of its task
                pipe.close()


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

    tasks: iterable of (tag, arguments of `decode_into`), read on as workers become free
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
        stack.callback(crew.stop)
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


class _Crew:
    """The workers of one `decode_all`: each thread that calls `run` takes one for a task."""

    def __init__(self):
        self.busy, self.idle, self.stopped = set(), [], False

    def run(self, task):
        """Do a task.  When its worker dies, another one does its images one by one."""
        try:
            return self._ask(task)
        except Died:
            answers = [self._alone(task, i) for i in range(len(task["sources"]))]
        checksums, hashes, reasons = zip(*answers, strict=True)
        hashes = np.concatenate(hashes) if task["hashes"] else None
        reasons = {i: reason for i, by_image in enumerate(reasons) for reason in by_image.values()}
        return np.concatenate(checksums), hashes, reasons

    def _alone(self, task, i):
        """One image, tried twice: the system may have killed the worker for want of memory."""
        offset, why = task["offset"] + i * task["size"] ** 2 * 3, None
        while True:
            try:
                return self._ask({**task, "offset": offset, "sources": task["sources"][i : i + 1]})
            except Died as died:
                if why or str(died) == TOO_SLOW:
                    nothing = np.zeros((1, 16), np.uint8)
                    return nothing, nothing, {0: str(died)}
                why = str(died)

    def _ask(self, task):
        try:
            worker = self.idle.pop()
        except IndexError:
            worker = Worker()
        self.busy.add(worker)
        try:
            if self.stopped:
                raise InterruptedError
            return worker.ask(task | {"seconds": SECONDS})
        except Died:
            if self.stopped:
                raise InterruptedError from None
            raise
        finally:
            self.busy.discard(worker)
            if worker.process.returncode is None:
                self.idle.append(worker)

    def stop(self):
        self.stopped = True
        for worker in list(self.busy):
            worker.process.kill()
        while self.idle:
            self.idle.pop().stop()
