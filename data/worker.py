"""A decoding worker, a program: `workers.py` starts it and talks to it over its pipes.

A task is a pickled dict, the arguments of `rows.decode_rows`; the answer what that returns, or the
exception that it raised.  The worker ends when its stdin closes, also when its parent is killed.
"""

import os
import pickle
import signal
import sys
import types


def serve(decode_rows):
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library may print must not get in between

    def answer(value):
        pickle.dump(value, answers)
        answers.flush()

    answer("ready")
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            value = decode_rows(**task)
        except Exception as error:  # raised again by the parent
            value = error
        try:
            answer(value)
        except BrokenPipeError:
            os._exit(0)  # the parent is gone, and closing `answers` would fail once more


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    # The package without its __init__, which imports torch and much else, for seconds.
    package = sys.modules["data"] = types.ModuleType("data")
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    import cv2

    from data.rows import decode_rows

    cv2.setNumThreads(0)  # the images are decoded side by side already
    serve(decode_rows)


if __name__ == "__main__":
    main()
