"""The sources of a pool, by what the user calls them: names, folders of any depth, tar shards."""

import glob
import os
import re
from pathlib import Path

import distributed

from .decode import SHARD_SUFFIXES
from .files import list_tars
from .listing import shown
from .named_pools import NAMED
from .source import of_folder, of_labelled, of_listing


def open_sources(specs, data_dir, input_size, labelled=None, split=None):
    """Open the sources in the order given, each under a name of its own; -> [Source]

    specs: heldout or labelled (both need `labelled` and `split`), cifar10, tiny-imagenet, stl10,
        patches, the path of a folder, or a path, a glob pattern or a range {000..009} of tar
        shards that ends in .tar, .tar.gz or .tgz
    Several processes (see distributed.py) each decode a part of the blocks.
    Raises ValueError or FileNotFoundError for a source that cannot be used, ConnectionError for a
    download that fails, OSError where the cache cannot be written.
    """
    sources = []
    with distributed.in_turns():  # the first process downloads
        for spec in map(os.fspath, specs):
            source = _find(spec, Path(data_dir), input_size, labelled, split)
            name, taken, number = source.name, {other.name for other in sources}, 1
            while source.name in taken:
                number += 1
                source.name = f"{name}-{number}"
            source.spec = spec
            sources.append(source)
    for cache in filter(None, (source.cache for source in sources)):
        cache.build(distributed.rank(), distributed.size())
    distributed.wait()
    for source in sources:
        source.open()
    return sources


def _find(spec, data_dir, size, labelled, split):
    if spec in ("heldout", "labelled"):
        return _part(spec, labelled, split)
    if spec in NAMED:
        return NAMED[spec](data_dir, size)
    return (_tars if spec.endswith(SHARD_SUFFIXES) else _path)(spec, data_dir, size)


def _part(name, labelled, split):
    """The training images that are not labelled, or those that are."""
    index = getattr(split, name, ())
    if labelled is None or not len(index):
        raise ValueError(
            f"the pool {name!r} is empty: every training image is labelled; train the teacher "
            "with --labels-per-class N, or choose another pool with --unlabeled"
        )
    part = labelled.train.subset(index)
    return of_labelled(name, part, labelled.inputs, part.labels.numpy())


def _path(spec, data_dir, size):
    folder = Path(spec).expanduser()
    if not spec or not folder.is_dir():
        raise FileNotFoundError(
            f"unlabelled pool {spec!r} is neither a folder nor one of heldout, "
            f"{', '.join(NAMED)}, nor tar shards (*.tar, *.tar.gz)"
        )
    return of_folder(shown(folder.resolve().name or "root"), folder, data_dir, size)


def _tars(spec, data_dir, size):
    path = os.path.expanduser(spec)
    shards = [path] if os.path.isfile(path) else []
    for one in () if shards else _numbered(path):
        found = [p for p in glob.glob(one) if os.path.isfile(p)]
        if not found:
            raise FileNotFoundError(
                f"no tar shard matches {one!r}; check the path, quote the pattern"
            )
        shards += found
    name = (
        Path(path.rpartition(".t")[0]).name
        if shards == [path]
        else Path(shards[0]).resolve().parent.name
    )
    return of_listing(shown(name), "tar", path, list_tars(shards), data_dir, size)


def _numbered(path):
    """webdataset's {000000..000009} as the ten paths it stands for."""
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path)
    if not found:
        return [path]
    before, first, last, after = found.groups()
    return [f"{before}{n:0{len(first)}}{after}" for n in range(int(first), int(last) + 1)]
