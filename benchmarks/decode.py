"""How fast a pool is decoded: the whole build of a cache beside bare cv2.imdecode.

    python benchmarks/decode.py --json FILE
    python benchmarks/decode.py --quick           # seconds, to see that it runs

Crops of scikit-learn's two photographs are written as JPEG (64 and 224 pixels square, 500 x 375)
and PNG (32 pixels), as files and as tar shards.  Timed in turn, --repeats times each, medians:

imdecode   cv2.imdecode of the same bytes in memory, one thread, nothing else done
at once    the same in as many processes as there are cores, all together: what the cores give
files      open_pool on the folder: listing, reading, decoding, fitting, checksums, writing
shards     open_pool on the tar shards
PIL        torchvision's ImageFolder in a DataLoader with as many workers, resized and cropped

The ratios are those of files and shards to (cores x imdecode), and to `at once`.
"""

import argparse
import io
import json
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torchvision import transforms
from torchvision.datasets import ImageFolder

from data.pool import open_pool
from data.workers import KEEP_MEMORY, cores

KINDS = {  # name: suffix, height, width
    "JPEG 64 x 64": (".jpg", 64, 64),
    "JPEG 224 x 224": (".jpg", 224, 224),
    "JPEG 500 x 375": (".jpg", 375, 500),
    "PNG 32 x 32": (".png", 32, 32),
}
DIFFERENT = 200  # images of a kind; the files repeat them
SHARD = 10_000  # members
BARE = 20_000  # images that imdecode decodes, at most: they lie in memory
SMALL_PART = 4096  # images that PIL decodes: it takes long enough


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input-size", type=int, default=64, help="side of the decoded squares (default 64)")
    add("--seconds", type=float, default=3, help="about what one build takes (default 3)")
    add("--repeats", type=int, default=5)
    add("--folder", type=Path, help="where the images go for the time being (some 2 GB)")
    add("--json", type=Path, metavar="FILE")
    add("--quick", action="store_true", help="one kind, hardly any images, once")
    args = parser.parse_args(argv)
    if args.quick:
        args.seconds, args.repeats = 0.02, 1
    return args


def photographs(suffix, height, width):
    """DIFFERENT encoded crops, of half a photograph to a whole one: list of bytes."""
    random, contents = np.random.default_rng(0), []
    pictures = load_sample_images().images
    for number in range(DIFFERENT):
        picture = pictures[number % len(pictures)]
        share = random.uniform(0.5, 1)
        high = int(share * min(picture.shape[0], picture.shape[1] * height / width))
        wide = int(high * width / height)
        top = random.integers(picture.shape[0] - high + 1)
        left = random.integers(picture.shape[1] - wide + 1)
        crop = picture[top : top + high, left : left + wide, ::-1]
        small = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90] if suffix == ".jpg" else []
        contents.append(cv2.imencode(suffix, small, quality)[1].tobytes())
    return contents


def write_files(folder, contents, suffix, count):
    """<folder>/<thousand>/<number>.<suffix>"""
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:04d}").mkdir(parents=True)
        path = folder / f"{number // 1000:04d}" / f"{number:07d}{suffix}"
        path.write_bytes(contents[number % len(contents)])


def write_shards(folder, contents, suffix, count):
    folder.mkdir()
    for first in range(0, count, SHARD):
        with tarfile.open(folder / f"{first // SHARD:05d}.tar", "w") as shard:
            for number in range(first, min(first + SHARD, count)):
                member = tarfile.TarInfo(f"{number:07d}{suffix}")
                member.size = len(contents[number % len(contents)])
                shard.addfile(member, io.BytesIO(contents[number % len(contents)]))


def imdecode(folder, count):
    """Images a second of one thread that does nothing but decode: the first `count` files."""
    paths = sorted(folder.glob("*/*"))[:count]
    contents = [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]
    cv2.setNumThreads(0)
    began = time.perf_counter()
    for content in contents:
        cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)
    return len(contents) / (time.perf_counter() - began)


def build(spec, size):
    """Images a second of open_pool on a pool that has no cache yet."""
    with tempfile.TemporaryDirectory(dir=Path(spec).parents[1]) as data_dir:
        began = time.perf_counter()
        pool = open_pool([spec], data_dir, size)
        seconds = time.perf_counter() - began
        assert not pool.unreadable
        return len(pool) / seconds


def pil(folder, size, workers):
    """Images a second of the usual way, the first SMALL_PART images."""
    fit = transforms.Compose(
        [transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()]
    )
    images = ImageFolder(folder, fit)
    images = torch.utils.data.Subset(images, range(min(len(images), SMALL_PART)))
    loader = torch.utils.data.DataLoader(images, 256, num_workers=workers)
    began = time.perf_counter()
    seen = sum(len(batch) for batch, _ in loader)
    return seen / (time.perf_counter() - began)


def measure(folder, kind, args, processes, workers):
    """-> {name: [images a second, one a repeat]}, images, mean bytes."""
    suffix, height, width = KINDS[kind]
    contents = photographs(suffix, height, width)
    write_files(folder / "some", contents, suffix, DIFFERENT)
    rate = processes.apply(imdecode, (folder / "some", DIFFERENT))
    count = max(256, int(rate * workers * args.seconds))
    write_files(folder / "files", contents, suffix, count)
    write_shards(folder / "shards", contents, suffix, count)
    decoded = folder / "files", min(count // workers, BARE)
    rates = {name: [] for name in ("imdecode", "at once", "files", "shards", "PIL")}
    for _ in range(args.repeats):
        rates["imdecode"].append(processes.apply(imdecode, decoded))
        together = processes.starmap(imdecode, [decoded] * workers, chunksize=1)
        rates["at once"].append(sum(together))
        rates["files"].append(build(folder / "files", args.input_size))
        rates["shards"].append(build(str(folder / "shards" / "*.tar"), args.input_size))
        rates["PIL"].append(pil(folder / "files", args.input_size, workers))
    return rates, count, sum(map(len, contents)) / DIFFERENT


def main(argv=None):
    args = parse(argv)
    workers, results = cores(), {}
    os.environ.update(KEEP_MEMORY)  # for the bare decoder too
    # Started anew rather than forked: glibc reads KEEP_MEMORY when a process begins.
    with multiprocessing.get_context("spawn").Pool(workers) as processes:
        for kind in list(KINDS)[: 1 if args.quick else None]:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                rates, count, size = measure(Path(folder), kind, args, processes, workers)
            middle = {name: median(values) for name, values in rates.items()}
            ratios = {
                f"{name} to {base}": median(
                    a / b / (workers if base == "imdecode" else 1)
                    for a, b in zip(rates[name], rates[base], strict=True)
                )
                for name in ("files", "shards")
                for base in ("imdecode", "at once")
            }
            results[kind] = {
                "images": count, "mean_bytes": size, "median": middle, "ratio": ratios,
                "images_per_second": rates,
            }  # fmt: skip
            print(f"{kind}: {count:,} images of {size:,.0f} bytes, to {args.input_size} pixels")
            print("  img/s  ", *(f"{name} {value:,.0f}  " for name, value in middle.items()))
            print("  ratio  ", *(f"{name} {value:.2f}  " for name, value in ratios.items()))
    if args.json:
        settings = {"cores": workers, "input_size": args.input_size, "repeats": args.repeats,
                    "opencv": cv2.__version__}  # fmt: skip
        args.json.write_text(json.dumps({**settings, "kinds": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
