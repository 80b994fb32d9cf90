"""Downloads that give up soon when nothing answers, and never leave half a data set behind."""

import errno
import http.client
import socket
import threading
import urllib.request
from contextlib import contextmanager

ANSWER_SECONDS = 12  # to wait for a first answer, name look-up included
STALL_SECONDS = 8  # to wait for the next bytes; torchvision may try twice (https, then http)


def require_answer(url):
    """Raises ConnectionError unless the address answers within ANSWER_SECONDS.

    On a thread of its own: no socket timeout covers the look-up of a name, nor the sum over a
    host's several addresses.
    """
    failure = [f"no answer within {ANSWER_SECONDS} s"]

    def ask():
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "pytorch/vision"})
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
                failure.clear()
        except Exception as error:  # any failure is an answer to report, on the caller's thread
            failure[0] = str(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    for reason in list(failure):  # a copy: the thread may still be running
        raise ConnectionError(reason)


@contextmanager
def downloading(what, way_out):
    """Turns whatever a download raises into one ConnectionError with one line.

    what: name of the data set;  way_out: what the user can do instead
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.ENOSPC:
            raise
        reason = " ".join(str(error).split())
        raise ConnectionError(f"cannot download {what} ({reason}); {way_out}") from None
    finally:
        socket.setdefaulttimeout(before)
