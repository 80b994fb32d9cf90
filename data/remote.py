"""Tar shards wherever fsspec reaches them (folders, s3://, gs://, hf://), for large pools.

Whoever scores a shard reads it once.  Afterwards only the selected images are fetched, and these
are decoded into the cache.  `pip install '.[ray]'` brings fsspec and s3fs; gs:// needs gcsfs, and
hf:// needs huggingface_hub.
"""

import csv
import hashlib
import os
import posixpath
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from fsspec.core import url_to_fs
from tqdm import tqdm

from files import whole_file

from .cache import Cache
from .decode import decode, fit_square
from .listing import MemorySource, Names, list_tars, spans
from .pool import Pool
from .sources import Source, numbered, unique

HEADER = ["image", "shard", "offset", "length", "crc32"]


class Shards:
    """The tar shards of one or more specs, in the order of their positions; nothing is read yet.

    urls, names: str of each shard: where it is, and what the names of its images begin with
    sources: [Source] as a Pool has them, without names or images
    """

    unreadable = {}  # noqa: RUF012 - known once they are read

    def __init__(self, specs, strategy="ranked", pool_size=None):
        """Raises ValueError for a spec that is no tar shard, FileNotFoundError where none is, and
        ValueError for a strategy or a pool size that needs to know all images.
        """
        if strategy not in ("ranked", "unbalanced") or pool_size:
            raise ValueError(
                "--engine ray ranks whole pools by scores: leave --pool-size out, and choose "
                "--strategy ranked or unbalanced"
            )
        self.urls, self.names, self.sources = [], [], []
        for spec in specs:
            files = _find(spec)
            folder = posixpath.commonpath([posixpath.dirname(path) for path in files])
            folder_name = posixpath.basename(posixpath.dirname(next(iter(files))))
            if len(files) == 1 and posixpath.basename(spec) in map(posixpath.basename, files):
                folder_name = posixpath.basename(spec)[:-4]
            name = unique(folder_name, self.sources)
            inside = [posixpath.relpath(path, folder) for path in files]
            self.urls += [url for url, _ in files.values()]
            self.names += [f"{name}/{shard}" for shard in inside]
            sizes = zip(inside, (size for _, size in files.values()), strict=True)
            digest = hashlib.sha256(repr(list(sizes)).encode()).hexdigest()
            inputs = {"kind": "shards", "path": spec, "digest": digest, "entries": len(files)}
            self.sources.append(Source(name, Names([]), inputs, spec=spec))

    def __len__(self):
        return 0  # of the images; nobody has counted them


def _find(spec):
    """{path: (url, bytes)} of the shards of a spec, sorted bytewise by path."""
    if not spec.endswith(".tar"):
        raise ValueError(
            f"--unlabeled {spec}: --engine ray reads uncompressed tar shards (*.tar, local or on "
            f"s3://, gs://, hf://); score other pools without --engine"
        )
    files = {}
    for pattern in numbered(spec):
        fs, path = url_to_fs(os.path.expanduser(pattern))
        if not files and pattern != spec:
            fs.ls(posixpath.dirname(path))  # an object store then knows the sizes of all
        infos = fs.glob(path, detail=True) if set("*?[") & set(path) else {path: fs.info(path)}
        if not infos:
            raise FileNotFoundError(
                f"no tar shard matches {pattern!r}; check the path, quote the pattern"
            )
        files |= {path: (fs.unstrip_protocol(path), info["size"]) for path, info in infos.items()}
    return dict(sorted(files.items(), key=lambda pair: os.fsencode(pair[0])))


@contextmanager
def local_copy(url):
    """The path of a shard on this machine, for as long as the context lasts."""
    fs, path = url_to_fs(url)
    if "file" in fs.protocol:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, posixpath.basename(path))
        fs.get_file(path, local)
        yield local


# --- the selected images ------------------------------------------------------------------------


def members_of(path, listing, positions, url, shard):
    """Where images of a shard lie: yields (name, url, offset, length, CRC-32 of the file).

    path: of the local copy;  listing: `list_tars` of it;  shard: what the names begin with
    """
    prefix = len(posixpath.basename(path))
    with open(path, "rb") as file:
        for i in positions:
            _, offset, length = listing.place(i, listing.names.raw(i))
            file.seek(offset)
            yield (
                shard + listing.names[i][prefix:],
                url,
                offset,
                length,
                zlib.crc32(file.read(length)),
            )


def locate(names, shards):
    """`members_of` the images of these names.  Reads every shard that holds one of them, once.

    Raises ValueError for a name that is in none of the Shards.
    """
    wanted, rows, urls = set(names), {}, dict(zip(shards.names, shards.urls, strict=True))
    holding = sorted({name[: name.find(".tar/") + 4] for name in wanted} & urls.keys())
    for shard in tqdm(holding, desc="find images", unit="shard", disable=None):
        with local_copy(urls[shard]) as path:
            listing, cut = list_tars([path]), len(posixpath.basename(path))
            here = [i for i, name in enumerate(listing.names) if shard + name[cut:] in wanted]
            members = members_of(path, listing, here, urls[shard], shard)
            rows |= {member[0]: member for member in members}
    if missing := wanted - rows.keys():
        raise ValueError(f"there is no image {min(missing)!r} in the pools; see --unlabeled")
    return [rows[name] for name in names]


def write_members(path, members):
    """members.csv, which `selected_pool` reads."""
    with whole_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *members])


def selected_pool(config, folder, cache_dir):
    """-> Pool of the selected images alone, in the order of members.csv; those that are not in the
    cache are fetched.

    config, folder: of step 2
    Raises ValueError for a member that is no longer what step 2 scored, OSError for one that cannot
    be fetched.
    """
    members, sources, size = {}, [], config["input_size"]
    with open(Path(folder) / "members.csv", newline="", encoding="utf-8") as file:
        for name, *where in islice(csv.reader(file), 1, None):
            source, _, inside = name.partition("/")
            members.setdefault(source, []).append((inside, *where))
    for name, rows in members.items():
        inputs, names = config["pools"][name], Names(inside for inside, *_ in rows)
        cache = Cache(cache_dir, "selected", _Members(rows, size), None, size)
        sources.append(Source(name, names, inputs, cache=cache, spec=inputs["spec"]))
        sources[-1].open()
    return Pool(sources)


class _Members(MemorySource):
    """Members of shards as the source of a cache: fetched many at a time, and nothing else is."""

    def __init__(self, members, size):
        """members: [(name, url of the shard, offset, length, CRC-32)];  size: pixels"""
        super().__init__(len(members), None)
        self.members, self.size = members, size
        blocks = [members[first:last] for first, last in spans(len(members))]
        self.keys = [hashlib.sha256(repr(block).encode()).hexdigest() for block in blocks]

    def sources(self, start, stop):
        _, urls, offsets, lengths, checksums = zip(*self.members[start:stop], strict=True)
        starts = list(map(int, offsets))
        ends = [first + int(length) for first, length in zip(starts, lengths, strict=True)]
        fs, paths = url_to_fs(urls[0])[0], [url_to_fs(url)[1] for url in urls]
        contents = fs.cat_ranges(paths, starts, ends, on_error="return")
        for member, content, checksum in zip(paths, contents, checksums, strict=True):
            if isinstance(content, OSError):
                raise content
            if isinstance(content, Exception) or zlib.crc32(content) != int(checksum):
                raise ValueError(
                    f"{member} has changed since step 2 scored it; run "
                    f"`python make_sample_data.py --overwrite`"
                )
        with ThreadPoolExecutor() as threads:
            return list(threads.map(self._square, contents))

    def _square(self, content):
        return fit_square(decode(content, self.size), self.size)
