"""The image files in folders and in tar shards, as listings."""

import os
import stat
import tarfile
from array import array

from .decode import DAMAGED_GZIP, has_image_suffix, open_shard
from .listing import Listing, shown

LOST = "truncated or damaged archive: the members after this are lost"


def list_folder(root, folders=None):
    """The image files below a folder, sorted bytewise by relative path; names have / everywhere.

    root: path;  folders: names of direct subfolders, to look only into these
    -> Listing; its `outside` has the names of the symbolic links that lead out of the folder

    A symbolic link to a file counts; a link to a folder is not followed, because links may form
    loops.  Hidden files, and files without an image suffix, are no entries.
    Raises ValueError where a folder cannot be listed.
    """
    root = os.path.abspath(os.fsencode(root))
    inside, outside = os.path.join(os.path.realpath(root), b""), []

    def entries():
        for name, entry in _walk(root, folders):
            if entry.is_symlink() and not os.path.realpath(entry.path).startswith(inside):
                outside.append(name.decode("utf-8", "backslashreplace"))
            status, reason = _examine(name, entry)
            if status is None:
                yield name, 0, (0, 0, 0), reason
            elif not stat.S_ISDIR(status.st_mode):
                # The mode too: a file that may not be read is tried again once its mode changes.
                facts = status.st_size, status.st_mtime_ns, status.st_mode
                yield name, status.st_size, facts, reason

    listing = Listing(entries(), lambda _, name: (os.path.join(root, name), None, None))
    listing.outside = outside
    return listing


def _walk(root, folders):
    """Yields (relative path, os.DirEntry) of what has an image suffix, in bytewise order."""
    tops = [b""] if folders is None else sorted(os.fsencode(f) + b"/" for f in folders)
    levels = [iter([(top, None) for top in tops])]
    while levels:  # no recursion: folders may be nested deeper than Python's stack allows
        for name, entry in levels[-1]:
            if entry is None:
                levels.append(_look_into(os.path.join(root, name), name))
                break
            yield name, entry
        else:
            levels.pop()


def _look_into(folder, prefix):
    """The image files (path, os.DirEntry) and folders (path/, None) in a folder, sorted by path."""
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
        shown = os.fsdecode(folder)
        raise ValueError(f"cannot list the folder {shown!r}: {error.strerror}") from None
    return iter(sorted(found, key=lambda pair: pair[0]))


def _examine(name, entry):
    """The os.stat of a file or None, and why it is unreadable or None."""
    try:
        status = entry.stat()
    except FileNotFoundError:
        return None, "dangling link"
    except OSError as error:
        return None, f"cannot be opened: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return status, "not a regular file"
    return status, None if _is_utf8(name) else "name is not UTF-8"


def class_folders(folder):
    """Names of the subfolders that are not hidden, sorted; none where there is no such folder.

    Raises ValueError for a name that is not UTF-8.
    """
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    names = [name for name in names if not name.startswith(".")]
    for name in names:
        if not _is_utf8(os.fsencode(name)):
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            raise ValueError(f"class folder '{shown}' in {str(folder)!r}: not UTF-8; rename it")
    return names


def called(dataset, data_dir):
    """What tables, titles and file names call a data set: `folder` by the name of its folder."""
    return (dataset == "folder" and shown(os.path.basename(os.path.realpath(data_dir)))) or dataset


def list_tars(shards):
    """The image members of tar files, some of which may be compressed (.tar.gz).

    shards: paths, read in bytewise order; members are in archive order
    -> Listing; names are shard/member.  Where a shard is cut off or damaged, the members before
    that place count, and one more unreadable entry, named after the shard, stands for the rest.
    A compressed shard has no random access: listing unpacks it once, and so does every process that
    decodes from it, from its beginning on; nothing is unpacked to the disk.

    Hidden members, and members without an image suffix, are no entries.
    Raises ValueError for a file that is not a tar archive, OSError for one that cannot be read.
    """
    shards = sorted(os.path.abspath(os.fsencode(shard)) for shard in shards)
    base = os.path.commonpath([os.path.dirname(shard) for shard in shards])
    places = array("q")  # three numbers an entry: shard, offset, length

    def entries():
        for number, shard in enumerate(shards):
            status, seen = os.stat(shard), set()
            facts = status.st_size, status.st_mtime_ns
            prefix = os.path.relpath(shard, base).replace(os.fsencode(os.sep), b"/")
            for member in _members(shard):
                if member is None:
                    places.extend((number, 0, 0))
                    yield prefix, 0, (*facts, 0, 0), LOST
                    continue
                inside = member.name.encode("utf-8", "surrogateescape").removeprefix(b"./")
                if _is_hidden(inside) or member.isdir() or not has_image_suffix(inside):
                    continue
                reason = _member_fault(member, inside, seen)
                where = member.offset_data, member.size
                places.extend((number, *where))
                yield prefix + b"/" + inside, member.size, (*facts, *where), reason

    def place(position, _):
        number, offset, length = places[3 * position : 3 * position + 3]
        return shards[number], offset, length

    return Listing(entries(), place)


def _members(path):
    """The TarInfo of each member, and None at the end of an archive that is cut off or damaged."""
    refused = tarfile.TarError, ValueError, OverflowError, MemoryError  # a bad header raises any
    refused += DAMAGED_GZIP
    with open_shard(path) as file:
        try:
            archive = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
        except refused:
            kind = "a compressed" if path.endswith(b"gz") else "an uncompressed"
            raise ValueError(
                f"{os.fsdecode(path)!r} cannot be read as {kind} tar archive; make it again"
            ) from None
        while True:
            try:
                member = archive.next()
                if member is not None and archive.offset <= member.offset:
                    raise ValueError("a negative size, which would lead back to the same member")
            except refused:
                yield None
                return
            archive.members.clear()  # tarfile would keep every TarInfo
            if member is None:
                break
            yield member
        # tarfile also stops, without an error, at a block that is neither a header nor zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            yield None


def _is_hidden(name):
    return any(part.startswith(b".") and part != b".." for part in name.split(b"/"))


def _member_fault(member, name, seen):
    """Why a member is unreadable, or None;  `seen`: the names before it in its archive."""
    repeated = name in seen
    seen.add(name)
    if repeated:
        return "same name as an earlier member"
    if not _is_utf8(name):
        return "name is not UTF-8"
    if name.startswith(b"/") or b".." in name.split(b"/"):
        return "name leads out of the archive"
    return None if member.isreg() and not member.issparse() else "not a regular file"


def _is_utf8(name):
    return name == name.decode("utf-8", "ignore").encode()
