"""What lies on the disk: image files in folders and tar shards."""

import hashlib
import os
import stat
from array import array

import numpy as np

from . import tar
from .decode import has_image_suffix
from .listing import Entries, Listing, Names

LOST = "truncated or damaged archive: the members after this are lost"


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
    root = os.path.abspath(os.fsencode(root))
    entries = Entries(width=3)

    def collect():
        for name, entry in _walk(root, folders):
            reason, status = _examine(name, entry)
            if status is None:
                yield entries.add(name, 0, (0, 0, 0), reason)
            elif not stat.S_ISDIR(status.st_mode):
                # The mode, because a file that may not be read is listed too, until it may.
                facts = status.st_size, status.st_mtime_ns, status.st_mode
                yield entries.add(name, status.st_size, facts, reason)

    names = Names(collect())
    unusable, prefix = entries.unusable, os.path.join(root, b"")

    def sources(start, stop):
        found = names.raws(start, stop)
        return [
            None if i in unusable else (prefix + name, None, None)
            for i, name in enumerate(found, start)
        ]

    return Listing(names, unusable, entries.digest.hexdigest(), entries.parts(names), sources)


def _walk(root, folders):
    """Yield (relative path, os.DirEntry) of what has an image suffix, in bytewise order."""
    if folders is None:
        levels = [_look_into(root, b"")]
    else:
        tops = sorted(os.fsencode(folder) + b"/" for folder in folders)
        levels = [iter([(top, None) for top in tops])]
    while levels:  # no recursion: folders may be nested deeper than Python's stack
        for name, entry in levels[-1]:
            if entry is None:
                levels.append(_look_into(os.path.join(root, name), name))
                break
            yield name, entry
        else:
            levels.pop()


def _look_into(folder, prefix):
    """The image files and, with None, the folders in one folder, as they follow one another when
    all the paths below are sorted."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(b"."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    found.append((prefix + name + b"/", None))
                elif has_image_suffix(name):
                    found.append((prefix + name, entry))
    except OSError as error:
        raise ValueError(
            f"cannot list the folder {os.fsdecode(folder)!r}: {error.strerror}"
        ) from None
    found.sort(key=lambda pair: pair[0])
    return iter(found)


def _examine(name, entry):
    """Why a file cannot be used, or None; and its os.stat, or None."""
    try:
        status = entry.stat()
    except FileNotFoundError:
        return "dangling link", None
    except OSError as error:
        return f"cannot be opened: {error.strerror}", None
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file", status
    return None if _is_utf8(name) else "name is not UTF-8", status


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
    -> Listing; names are shard/member.  Where a shard is cut off or damaged, its members before
    that count, and one more entry, unusable and named after the shard, stands for the lost ones.

    Raises ValueError for a file that is not a tar archive.
    """
    shards = sorted(os.path.abspath(os.fsencode(shard)) for shard in shards)
    base = os.path.commonpath([os.path.dirname(shard) for shard in shards])
    entries, places = Entries(width=4), array("q")

    def collect():
        for number, shard in enumerate(shards):
            status, seen = os.stat(shard), set()
            prefix = os.path.relpath(shard, base).replace(os.fsencode(os.sep), b"/")
            facts = status.st_size, status.st_mtime_ns
            try:
                for member in tar.members(shard):
                    inside = member.name.removeprefix(b"./")
                    if (
                        _is_hidden(inside)
                        or member.kind == "folder"
                        or not has_image_suffix(inside)
                    ):
                        continue
                    name = prefix + b"/" + inside
                    reason = _member_fault(member, name, seen)
                    places.extend((number, member.offset, member.size))
                    yield entries.add(
                        name, member.size, (*facts, member.offset, member.size), reason
                    )
            except tar.Damaged:
                places.extend((number, 0, 0))
                yield entries.add(prefix, 0, (*facts, 0, 0), LOST)

    names = Names(collect())
    where, unusable = np.array(places).reshape(-1, 3), entries.unusable

    def sources(start, stop):
        return [
            None if i in unusable else (shards[number], offset, size)
            for i, (number, offset, size) in enumerate(where[start:stop].tolist(), start)
        ]

    return Listing(names, unusable, entries.digest.hexdigest(), entries.parts(names), sources)


def _is_hidden(name):
    return name.startswith(b".") or b"/." in name


def _member_fault(member, name, seen):
    """Why a member cannot be used, or None; `seen`: names of its archive so far."""
    repeated = name in seen
    seen.add(name)
    if repeated:
        return "same name as an earlier member"
    if not _is_utf8(name):
        return "name is not UTF-8"
    return None if member.kind == "file" else "not a regular file"


def _is_utf8(name):
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
