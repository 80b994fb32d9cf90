"""The one downloader: gives up soon when nothing answers, checks hashes, keeps no partial file."""

import errno
import hashlib
import http.client
import re
import socket
import sys
import threading
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import torch

# A download must fail within 30 s when nothing answers (contract, section 4).  torchvision may try
# an address twice (https, then http), and 12 + 2 * 8 = 28.
ANSWER_SECONDS = 12  # until the first answer, name look-up included
STALL_SECONDS = 8  # between two pieces of the content


def sha256_of_file(path):
    """sha256 of a file's content, as 64 hexadecimal digits.  Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(path, digits, way_out):
    """Raises ValueError, which ends in `way_out`, unless a file's sha256 begins with `digits`."""
    if not (digest := sha256_of_file(path)).startswith(digits):
        message = f"its sha256 begins with {digest[:8]}, not as its name says"
        raise ValueError(f"{path} is damaged: {message}; {way_out}")


def require_answer(url):
    """Raises ConnectionError, its text the reason, unless `url` answers within ANSWER_SECONDS.

    A thread asks, because a socket's timeout covers neither the look-up of the name nor the sum
    over the addresses of one host.
    """
    answers = []

    def ask():
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "pytorch/vision"})
            urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()
            answers.append(None)
        except Exception as error:  # the caller's thread raises it
            answers.append(str(error) or type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if reason := (answers or [f"no answer within {ANSWER_SECONDS} s"])[0]:
        raise ConnectionError(reason)


@contextmanager
def downloading(what, way_out):
    """Inside, sockets time out after STALL_SECONDS, and a failed download is one ConnectionError.

    what: what is downloaded;  way_out: what the user can do instead; both go into the error's line
    A full disk or a folder without write permission is raised as it is.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)  # neither torch.hub nor torchvision sets one
    try:
        yield
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.ENOSPC:
            raise
        reason = " ".join(str(error).split())
        raise ConnectionError(f"cannot download {what} ({reason}); {way_out}") from error
    finally:
        socket.setdefaulttimeout(before)


def download_once(url, folder, progress=True):
    """The path in `folder` of the file at `url`, which is downloaded where it is not there yet.

    url: ends in -<the first 8 or more digits of the file's sha256>.<suffix>; checked at each call
    progress: whether to show the download on stderr
    Raises ConnectionError when the download fails or brings another file (nothing of it is kept),
    ValueError for a damaged file that is there already, or for a URL without a hash.
    """
    path = Path(folder, Path(urllib.parse.urlparse(url).path).name)
    digits = re.search(r"-([a-f0-9]{8,64})\.", path.name)
    if digits is None:
        raise ValueError(f"{url} does not end in -<sha256>.pth, by which a download is checked")
    if path.exists():
        check_hash(path, digits[1], "delete it, and it is downloaded again")
        return path
    with downloading(url, f"try again, or put the file into {folder}"):
        require_answer(url)
        if progress:
            print(f"downloading {url} to {path}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digits[1], progress)
    return path
