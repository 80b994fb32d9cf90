"""Image files in folders and tar shards: their names, sizes and places, in blocks for the cache."""

import hashlib
import itertools
import os
import stat
import tarfile
from array import array

from .decode import DAMAGED_GZIP, has_image_suffix, is_other_image, open_shard

BLOCK = 65_536  # entries that are decoded, cached and searched for duplicates together
NAME_BYTES = 1024  # of a name; a longer one would make every table of names large
HEADER_BYTES = 2**14  # of one header of a tar member: some versions of tarfile are slow on more
THUMBNAILS = (b"@eaDir", b"__MACOSX", b"#recycle", b"@Recycle", b"$RECYCLE.BIN", b"lost+found")
LOST = "truncated or damaged archive: the members after this are lost"


def spelled(name):
    """A path or a part of it as text, no two alike: bytes that are not UTF-8 become escapes such
    as \\xff, and a backslash becomes two.
    """
    return os.fsencode(name).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


class Names:
    """N names in two arrays: the characters, and 8 bytes each for where a name ends.

    A list of str takes 50 bytes more for each.  names[i] -> str, `spelled`; names.raw(i) -> bytes
    """

    def __init__(self, names):
        """names: iterable of str or of bytes"""
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode() if isinstance(name, str) else name
            ends.append(len(text))
        self._text, self._ends = bytes(text), ends

    def __len__(self):
        return len(self._ends) - 1

    def __getitem__(self, i):
        return spelled(self.raw(i))

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def raw(self, i):
        i = range(len(self))[i]  # IndexError out of range; a negative i counts from the end
        return self._text[self._ends[i] : self._ends[i + 1]]


def spans(count):
    """The blocks of `count` entries: yields (first, last + 1)."""
    for start in range(0, count, BLOCK):
        yield start, min(start + BLOCK, count)


def in_blocks(array):
    """An array (N, ..) as a list of arrays, one a block."""
    return [array[start:stop] for start, stop in spans(len(array))]


class Listing:
    """N image files or members of archives, in their order, as the source of a cache.

    names: Names;  unreadable: {position: reason}, as far as known without decoding
    unused: [(name, reason)] of what is no entry but may be an image;  others: how many more files
    outside: names of the images that symbolic links reach outside of the folder
    digest: hexadecimal sha256 of names and sizes
    keys: a str for each block, which changes when one of its entries does, also in place
    """

    in_memory = False

    def __init__(self, entries, place):
        """
        entries: called with this Listing, yields (name, size, facts, reason); name: bytes; facts:
            numbers that change when the file is edited in place; reason: why it is unreadable, or
            None;  it adds to `unused`, `others` and `outside`
        place(position, name) -> (path, offset, length), see workers.decode_into
        """
        self.unreadable, self.place = {}, place
        self.unused, self.others, self.outside = [], 0, []
        whole, blocks = hashlib.sha256(), []

        def collect():
            for position, (name, size, facts, reason) in enumerate(entries(self)):
                if len(name) > NAME_BYTES:
                    reason = f"name longer than {NAME_BYTES} bytes"
                    name = name[:99] + b"..." + hashlib.sha256(name).hexdigest().encode()
                if reason:
                    self.unreadable[position] = reason
                if position % BLOCK == 0:
                    blocks.append(hashlib.sha256())
                # The length of the name first, because a name may hold line ends.
                line = b"%d:%s:[%d]\n" % (len(name), name, size)
                whole.update(line)
                blocks[-1].update(b"%s%r\n" % (line, facts))
                yield name

        self.names = Names(collect())
        self.digest, self.keys = whole.hexdigest(), [block.hexdigest() for block in blocks]

    def __len__(self):
        return len(self.names)

    def sources(self, start, stop):
        """What `workers.decode_into` reads for the entries `start` to `stop` - 1."""
        return [
            None if i in self.unreadable else self.place(i, self.names.raw(i))
            for i in range(start, stop)
        ]

    def leave_out(self, name):
        """Count a file without a suffix of ours; note what may be an image all the same."""
        if is_other_image(name) or b"." not in os.path.basename(name):
            self.unused.append((spelled(name[:NAME_BYTES]), "not used: no suffix of an image"))
        else:
            self.others += 1
            self.example = name[:NAME_BYTES]

    def left_out(self):
        """What is not used, as a sentence for stderr; "" for nothing."""
        count = len(self.unused) + self.others
        if not count:
            return ""
        example = self.unused[0][0] if self.unused else spelled(self.example)
        return f"{count} file(s) are not used, such as {example!r}"


class MemorySource:
    """`count` decoded images as the source of a cache: get(i) -> uint8 (H, W, 3)."""

    in_memory = True
    unreadable = {}  # noqa: RUF012

    def __init__(self, count, get):
        self.count, self.get = count, get
        self.keys = [str(start) for start, _ in spans(count)]

    def __len__(self):
        return self.count

    def sources(self, start, stop):
        return [self.get(i) for i in range(start, stop)]


# --- folders ------------------------------------------------------------------------------------


def list_folder(root, folders=None):
    """The image files below a folder, sorted bytewise by relative path; names have / everywhere.

    root: path;  folders: names of direct subfolders, to look only into these
    -> Listing

    A symbolic link to a file counts.  A link to a folder is followed once for each real folder,
    unless its images are listed anyway.  Hidden files, folders of thumbnails, and files without an
    image suffix are no entries.
    Raises ValueError where a folder cannot be listed.
    """
    root = os.path.abspath(os.fsencode(root))
    inside = os.path.join(os.path.realpath(root), b"")

    def entries(listing):
        for name, entry, linked in _walk(root, inside, folders):
            if not has_image_suffix(name):
                listing.leave_out(name)
                continue
            if linked or (
                entry.is_symlink() and not os.path.realpath(entry.path).startswith(inside)
            ):
                listing.outside.append(spelled(name))
            status, reason = _examine(name, entry)
            if status is None:
                yield name, 0, (0, 0, 0), reason
            else:
                # The mode too: a file that may not be read is tried again once its mode changes.
                facts = status.st_size, status.st_mtime_ns, status.st_mode
                yield name, status.st_size, facts, reason

    return Listing(entries, lambda _, name: (os.path.join(root, name), None, None))


def _walk(root, inside, folders):
    """Yields (relative path, os.DirEntry, whether a link to a folder led here) of the files that
    are not hidden, in bytewise order.
    """
    followed = {_identity(root)}
    tops = [b""] if folders is None else sorted(os.fsencode(f) + b"/" for f in folders)
    levels = [iter([(top, None, False) for top in tops])]
    while levels:  # no recursion: folders may be nested deeper than Python's stack allows
        for name, entry, linked in levels[-1]:
            if entry is None or name.endswith(b"/"):
                folder = os.path.join(root, name[:-1])
                if entry and entry.is_symlink():
                    real = os.path.join(os.path.realpath(folder), b"")
                    if real.startswith(inside) and not is_hidden(real[len(inside) :]):
                        continue  # met without the link
                    linked = True
                if linked:
                    if (identity := _identity(folder)) in followed:
                        continue
                    followed.add(identity)
                levels.append(_look_into(folder, name, linked))
                break
            yield name, entry, linked
        else:
            levels.pop()


def _is_folder(entry):
    """Whether an os.DirEntry is a folder or a link to one; a link that leads nowhere is none."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))


def _identity(folder):
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _look_into(folder, prefix, linked):
    """(path, os.DirEntry, linked) of the files and folders (path/) in a folder, sorted by path."""
    try:
        with os.scandir(folder) as entries:
            inside = [
                (prefix + entry.name + b"/" * _is_folder(entry), entry, linked)
                for entry in entries
                if not is_hidden(entry.name)
            ]
    except OSError as error:
        shown = os.fsdecode(folder)
        raise ValueError(f"cannot list the folder {shown!r}: {error.strerror}") from None
    return iter(sorted(inside, key=lambda triple: triple[0]))


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
    names = [name for name in names if not is_hidden(os.fsencode(name))]
    for name in names:
        if not _is_utf8(os.fsencode(name)):
            shown = f"class folder '{spelled(name)}' in {str(folder)!r}"
            raise ValueError(f"{shown}: not UTF-8; rename it")
    return names


def is_hidden(name):
    """Whether a part of a path (bytes) is hidden, or a folder of thumbnails."""
    parts = name.split(b"/")
    return any((part.startswith(b".") and part != b"..") or part in THUMBNAILS for part in parts)


def _is_utf8(name):
    return name == name.decode("utf-8", "ignore").encode()


# --- tar shards ---------------------------------------------------------------------------------


def list_tars(shards):
    """The image members of tar files, some of which may be compressed (.tar.gz).

    shards: paths, read in bytewise order; members are in archive order
    -> Listing; names are shard/member.  Where a shard is cut off or damaged, the members before
    that place count, and one more unreadable entry, named after the shard, stands for the rest.
    A compressed shard has no random access: listing unpacks it once, and so does every process that
    decodes from it, from its beginning on; nothing is unpacked to the disk.

    Neighbours with the same key (the name up to its first dot) are one webdataset sample.  Of
    x.seg.png and x.webp the one with a plain suffix counts; of several, the first.
    Hidden members, and members without an image suffix, are no entries.
    Raises ValueError for a file that is not a tar archive, OSError for one that cannot be read.
    """
    shards = sorted(os.path.abspath(os.fsencode(shard)) for shard in shards)
    base = os.path.commonpath([os.path.dirname(shard) for shard in shards])
    places = array("q")  # three numbers an entry: shard, offset, length

    def entries(listing):
        for number, shard in enumerate(shards):
            status, seen = os.stat(shard), set()
            facts = status.st_size, status.st_mtime_ns
            prefix = os.path.relpath(shard, base).replace(os.fsencode(os.sep), b"/")
            for _, sample in itertools.groupby(_members(shard), _sample_key):
                sample = list(sample)
                image = next((name for name, *_ in sample if _is_plain(name)), None)
                for name, offset, size, is_file in sample:
                    if name is None:
                        places.extend((number, 0, 0))
                        yield prefix, 0, (*facts, 0, 0), LOST
                        continue
                    whole = prefix + b"/" + name
                    if not has_image_suffix(name):
                        listing.leave_out(whole)
                        continue
                    if image not in (None, name):
                        why = f"not used: the image of this sample is {spelled(image[:NAME_BYTES])}"
                        listing.unused.append((spelled(whole[:NAME_BYTES]), why))
                        continue
                    places.extend((number, offset, size))
                    reason = _member_fault(name, is_file, seen)
                    yield whole, size, (*facts, offset, size), reason

    def place(position, _):
        number, offset, length = places[3 * position : 3 * position + 3]
        return shards[number], offset, length

    return Listing(entries, place)


class _Header(tarfile.TarInfo):
    """A header whose additions (long names, PAX fields) have a bounded size."""

    def _proc_member(self, archive):
        if self.type in b"xgXLK" and self.size > HEADER_BYTES:
            raise tarfile.ReadError("a header of unusual size")
        return super()._proc_member(archive)


def _members(path):
    """(name, offset, size, whether it is a regular file) of each member that is neither hidden nor
    a folder; and of Nones at the end of an archive that is cut off or damaged.
    """
    lost = None, None, None, None
    refused = tarfile.TarError, ValueError, OverflowError, MemoryError  # a bad header raises any
    refused += DAMAGED_GZIP
    with open_shard(path) as file:
        try:
            archive = tarfile.TarFile(
                fileobj=file, encoding="utf-8", errors="surrogateescape", tarinfo=_Header
            )
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
                yield lost
                return
            archive.members.clear()  # tarfile would keep every TarInfo
            if member is None:
                break
            name = member.name.encode("utf-8", "surrogateescape").removeprefix(b"./")
            if not is_hidden(name) and not member.isdir():
                is_file = member.isreg() and not member.issparse()
                yield name, member.offset_data, member.size, is_file
        # tarfile also stops, without an error, at a block that is neither a header nor zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            yield lost


def _sample_key(member):
    """webdataset's: the path up to the first dot of the file name."""
    name = member[0]
    folder, slash, base = (name or b"").rpartition(b"/")
    return name and folder + slash + base.partition(b".")[0]


def _is_plain(name):
    """Whether a name has an image suffix and no other dot."""
    return bool(name) and has_image_suffix(name) and os.path.basename(name).count(b".") == 1


def _member_fault(name, is_file, seen):
    """Why a member is unreadable, or None;  `seen`: the names before it in its archive."""
    repeated = name in seen
    seen.add(name)
    if repeated:
        return "same name as an earlier member"
    if not _is_utf8(name):
        return "name is not UTF-8"
    if name.startswith(b"/") or b".." in name.split(b"/"):
        return "name leads out of the archive"
    return None if is_file else "not a regular file"
