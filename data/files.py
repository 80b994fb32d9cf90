"""What lies on the disk: image files in folders and tar shards, their names, digests, downloads."""

import hashlib
import os
import tarfile
from dataclasses import dataclass

import numpy as np

from .decode import Unreadable, decode, decode_file, has_image_suffix


class Names:
    """Many names as two arrays.

    A Python list of a million paths costs 100 MB, and its reference counts are copied into every
    worker process page by page; this costs the characters.  names[i] -> str, names.raw(i) -> bytes.
    """

    def __init__(self, names):
        names = [name.encode() if isinstance(name, str) else name for name in names]
        self._text = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)])

    def __len__(self):
        return len(self._ends) - 1

    def __getitem__(self, i):
        return self.raw(i).decode("utf-8", "backslashreplace")

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def raw(self, i):
        i = range(len(self))[i]  # IndexError out of range, negative positions from the end
        return self._text[self._ends[i] : self._ends[i + 1]]


@dataclass(frozen=True)
class Listing:
    """Image entries in their order: names (N,); unusable {position: reason}; `digest`, of sorted
    names and sizes, tells what the images are; `stamp` also changes when one is edited in place."""

    names: Names
    unusable: dict[int, str]
    digest: str
    stamp: str
    read: object  # read(i) -> uint8 (H, W, 3), or raises Unreadable

    def __len__(self):
        return len(self.names)


def sha256_of_file(path):
    """Hexadecimal sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_folder(root, folders=None):
    """The image files below a folder, sorted bytewise by relative path.

    root: path;  folders: names of direct subfolders, to look only into these
    -> Listing; names are relative, with / on every system

    Symbolic links to files count, links to folders are not followed (they may form loops); what
    is hidden, and what has no image suffix, is no entry.
    Raises ValueError where a folder cannot be listed.
    """
    root = os.fsencode(root)
    tops = [root] if folders is None else [os.path.join(root, os.fsencode(f)) for f in folders]
    paths = sorted(path for top in tops for path in _walk(top, root))
    unusable, facts = {}, []
    for i, name in enumerate(paths):
        path = os.path.join(root, name)
        reason, status = _examine(path, name)
        if reason:
            unusable[i] = reason
        size = status.st_size if status else 0
        # The mode, because a file that may not be read is listed too, until it may.
        facts.append((name, size, (status.st_mtime_ns, status.st_mode) if status else 0))
    names = Names(paths)

    def read(i):
        if i in unusable:
            raise Unreadable(unusable[i])
        return decode_file(os.path.join(root, names.raw(i)))

    return Listing(names, unusable, _digest(f[:2] for f in facts), _digest(facts), read)


def _walk(top, root):
    def stop(error):
        raise ValueError(
            f"cannot list the folder {os.fsdecode(error.filename)!r}: {error.strerror}"
        )

    for folder, subfolders, files in os.walk(top, onerror=stop):
        subfolders[:] = [name for name in subfolders if not name.startswith(b".")]
        prefix = os.path.relpath(folder, root).replace(os.fsencode(os.sep), b"/") + b"/"
        prefix = b"" if prefix == b"./" else prefix
        for name in files:
            if not name.startswith(b".") and has_image_suffix(name):
                yield prefix + name


def _examine(path, name):
    """Why a file cannot be used, or None; and its os.stat, or None."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "dangling link", None
    except OSError as error:
        return f"cannot be opened: {error.strerror}", None
    if not _is_utf8(name):
        return "name is not UTF-8", status
    return None, status


def class_folders(folder):
    """Names of the subfolders that are not hidden, sorted; none where there is no such folder.

    Raises ValueError for a name that is not UTF-8.
    """
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    names = [name for name in names if not name.startswith(".")]
    for name in names:
        if os.fsencode(name).decode("utf-8", "replace") != name:
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            raise ValueError(
                f"class folder '{shown}' in {str(folder)!r}: the name is not UTF-8; rename it"
            )
    return names


def list_tars(shards):
    """The image members of uncompressed tar files.

    shards: paths, read in bytewise order of their names; members in archive order
    -> Listing; names are shard/member

    Raises ValueError for a file that is not a tar archive, or a truncated one.
    """
    shards = sorted(map(os.fspath, shards), key=os.fsencode)
    base = os.path.commonpath([os.path.dirname(os.path.abspath(shard)) for shard in shards])
    names, unusable, facts, places, seen = [], {}, [], [], set()
    for number, shard in enumerate(shards):
        prefix = os.fsencode(os.path.relpath(shard, base)).replace(os.fsencode(os.sep), b"/")
        facts.append((prefix, os.path.getsize(shard), os.stat(shard).st_mtime_ns))
        for member in _members(shard):
            inside = member.name.removeprefix("./").encode("utf-8", "surrogateescape")
            name = prefix + b"/" + inside
            hidden = any(part.startswith(b".") for part in inside.split(b"/"))
            if member.isdir() or hidden or not has_image_suffix(inside):
                continue
            reason = None if member.isreg() else "not a regular file"
            reason = reason if _is_utf8(name) else "name is not UTF-8"
            reason = "same name as an earlier member" if name in seen else reason
            seen.add(name)
            if reason:
                unusable[len(names)] = reason
            names.append(name)
            facts.append((name, member.size))
            places.append((number, member.offset_data, member.size))
    places, names = np.array(places, np.int64).reshape(-1, 3), Names(names)

    def read(i):
        if i in unusable:
            raise Unreadable(unusable[i])
        number, offset, size = map(int, places[i])
        with open(shards[number], "rb") as file:
            file.seek(offset)
            return decode(file.read(size))

    return Listing(names, unusable, _digest(f[:2] for f in facts), _digest(facts), read)


def _members(shard):
    try:
        # "r:" takes no compressed archives: their members cannot be reached by position.
        with tarfile.open(shard, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # else it remembers every member of a shard
                yield member
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{shard!r} cannot be read as an uncompressed tar archive ({error}); make it again"
        ) from None


def _is_utf8(name):
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _digest(facts):
    """sha256 over sorted tuples that start with a name (bytes)."""
    digest = hashlib.sha256()
    for name, *numbers in sorted(facts):
        # The length first: a name may hold any character but NUL, line ends included.
        digest.update(b"%d:%s:%s\n" % (len(name), name, repr(numbers).encode()))
    return digest.hexdigest()
