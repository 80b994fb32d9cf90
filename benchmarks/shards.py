"""Memory and rate of the program that merges what Ray's actors answer, over simulated shards.

    python benchmarks/shards.py --images 100000 1000000 10000000 --json docs/results/shards.json

Every shard has 10,000 names of 28 characters and random scores for 100 classes, P=10, K=1,000.  It
is reduced as an actor reduces it, sent through bytes as Ray sends it, and merged by `Walk`.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
SHARD, CLASSES, P, K = 10_000, 100, 10, 1000


def measure(images):
    """-> peak of the process in MiB, before and after; images merged in a processor second."""
    import torch

    from stages import ray_engine
    from stages.scoring import new_selector

    torch.set_num_threads(1)
    config = {
        "strategy": "ranked",
        "p": P,
        "k": K,
        "seed": 0,
        "min_score": 0.0,
        "save_scores": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        stage = SimpleNamespace(folder=Path(folder), saved=None, check_ours=lambda: None)
        teacher = SimpleNamespace(classes=range(CLASSES))
        job = SimpleNamespace(stage=stage, config=config, teacher=teacher)
        walk, spent, before = ray_engine.Walk(job), 0.0, None
        walk.begin()
        for number in range(images // SHARD):
            first, _ = ray_engine.first_position(number, images // SHARD)
            selector = new_selector(job, first, "cpu")
            generator = torch.Generator().manual_seed(number)
            selector.add(first, torch.randn(SHARD, CLASSES, generator=generator))
            members = [
                (
                    at,
                    [f"pool/{number:06}.tar/{at:09}.jpg", f"s3://bucket/{number:06}.tar", at, 9, 9],
                )
                for at in sorted(ray_engine.positions_in(selector))
            ]
            answer = {"number": number, "state": selector.state_dict(), "entries": SHARD}
            content = io.BytesIO()
            torch.save(answer | {"skipped": [], "members": json.dumps(members)}, content)
            content.seek(0)
            began = time.process_time()
            walk.add(torch.load(content, weights_only=True))
            spent += time.process_time() - began
            before = before or peak()
        walk.save()
    return {"images": images, "after_one_shard_mib": before, "peak_mib": peak(),
            "images_merged_per_processor_second": round(images / spent)}  # fmt: skip


def peak():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if len(args.images) == 1:
        print(json.dumps(measure(*args.images)))
        return
    rows = []
    for images in args.images:  # a process each: a peak never falls
        words = [sys.executable, __file__, "--images", str(images)]
        rows.append(json.loads(subprocess.run(words, capture_output=True, check=True).stdout))
        print(rows[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
