"""Exit codes, and errors in one line.

0 done; 2 a bad flag or a missing input, nothing changed; 1 a failure while running, finished work
kept; 130 Ctrl-C and 143 SIGTERM, state saved.  An error is one line on stderr; `python -X dev
main.py` adds the traceback.
"""

import errno
import functools
import os
import re
import sys
from contextlib import contextmanager

import torch

import distributed

from .signals import Interrupted, handled, say, stopped

# What a disk says that takes no more.
_FULL = {getattr(errno, name, 0) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO")}
# What torch and Python say where memory or threads are short.
_SCARCE = re.compile("can't allocate memory|not enough memory|can't start new thread")


class Failure(Exception):
    """A stage could not go on; what it had finished is kept."""


def program(main):
    """Make `main(argv=None)` a program: it raises SystemExit with the code of its error."""

    @functools.wraps(main)
    def wrapper(argv=None):
        try:
            with handled():
                main(argv)
                distributed.wait()  # the first process writes the last files
                sys.stdout.flush()
        except BrokenPipeError:  # `| head`: nobody reads what is printed
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(nowhere, stream)  # Python flushes both when it ends
            raise SystemExit(128 + 13) from None
        except (Failure, FloatingPointError) as error:
            _exit(1, error)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or _SCARCE.search(str(error)):
                _exit(1, Failure(f"this machine has too little left: {error}"[:200]))
            if distributed.size() == 1:
                raise
            reason = f"{error}".partition("\n")[0]
            ended = f"another process has failed or was killed ({reason}); go on with --resume"
            _exit(1, Failure(ended))
        except (ValueError, OSError) as error:
            _exit(1 if getattr(error, "errno", None) in _FULL else 2, error)
        except Interrupted as interrupted:
            stopped(interrupted.signum)

    return wrapper


def _exit(code, error):
    say(" ".join(str(error).split()))
    if sys.flags.dev_mode and isinstance(error, Exception):
        raise error
    raise SystemExit(code)


@contextmanager
def working():
    """From here on an error of the disk or of the data is a Failure (exit code 1)."""
    try:
        yield
    except BrokenPipeError:  # of the output, see `program`
        raise
    except (OSError, ValueError, torch.OutOfMemoryError) as error:
        raise Failure(str(error)) from error
