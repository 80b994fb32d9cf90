"""Images a second of a network: bare, in our loops, through a DataLoader, the predecessor's way.

    python benchmarks/throughput.py --model resnet20 resnet50-cifar --json rates.json
    python benchmarks/throughput.py --model resnet20 --switches     # what each switch gives
    python benchmarks/throughput.py --model resnet20 --resources    # peak memory, GPU idle share
    python benchmarks/throughput.py --gpu-table --json table.json   # all of it, in ten minutes
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python ...     # as an older laptop

The four ways are described in benchmarks/baselines.py.  Beside them the bare step runs in float32
and in bfloat16, so that a wrong choice of precision is seen.  They take turns, and a rate is the
median of a way's turns, so that a busy neighbour slows them alike.  Images are noise: nothing is
downloaded.

Writes   with --json FILE: {model, input_size, batch_size, device, train, infer}, the last two
         {bare, ours, dataloader, predecessor, float32, bfloat16} in images/s, null for a way that
         failed (exit code 1); a list of such objects for several models
"""

import argparse
import gc
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

import torch

from benchmarks import ablations, baselines, gpu_table, resources, timing
from models import MODELS
from stages import flags
from stages.device import set_up_device


def rates(job, args):
    """{way: images/s} of both tasks, and the rows of the printed table."""
    result, lines = {}, []
    prefetched = {
        name: 2 * baselines.workers(name) for name in baselines.WAYS
    }  # DataLoader's default
    for task, makers in baselines.TASKS.items():
        lanes = {name: make(job) for name, make in zip(baselines.WAYS, makers, strict=True)}
        bare = makers[0]
        lanes |= {"float32": bare(job, precision=None)}
        lanes |= {"bfloat16": bare(job, precision=torch.bfloat16)}
        found = timing.rates(lanes, job.device, args.repeats, args.seconds, prefetched)
        result[task] = found
        _free(lanes)
        lines.append(
            f"  {task}" + "".join(f"{_text(found[name], '.1f'):>12}" for name in baselines.WAYS)
        )
        ratios = (_ratio(found["ours"], found[name]) for name in baselines.WAYS if name != "ours")
        lines[-1] += "".join(f"{_text(ratio, '.2f'):>18}" for ratio in ratios)
        better = max(found["float32"] or 0, found["bfloat16"] or 0)
        lines.append(
            f"    bare in float32 {_text(found['float32'], '.1f')}, in bfloat16 "
            f"{_text(found['bfloat16'], '.1f')}; the choice / the better one "
            f"{_text(_ratio(found['bare'], better), '.2f')}"
        )
    head = " " * 7 + "".join(f"{name:>12}" for name in baselines.WAYS)
    head += "".join(f"{'ours/' + name:>18}" for name in baselines.WAYS if name != "ours")
    return result, [head, *lines]


def _ratio(one, other):
    return one / other if one and other else None


def _text(number, form):
    return "failed" if number is None else format(number, form)


def _free(lanes):
    """End the generators, so that their networks and workers are gone before the next ones'."""
    for lane in lanes.values():
        lane.close()
    lanes.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def switch_rows(job, args):
    result = {
        task: ablations.measure(job, task, args.repeats, args.seconds) for task in baselines.TASKS
    }
    lines = [line for task in result for line in (f"  {task}", ablations.table(result[task]))]
    return result, lines


def resource_rows(job, args):
    result = {task: {"peak_mb": resources.memory(job, task)} for task in baselines.TASKS}
    for task, found in result.items():
        if job.device.type == "cuda":
            found["idle_percent"] = resources.idle_percent(job, task, args.seconds)
    return result, [f"  {task}: {json.dumps(found)}" for task, found in result.items()]


def arguments(argv):
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parse.add_argument
    add("--model", nargs="+", choices=MODELS, default=["resnet20"], metavar="NAME")
    add("--input-size", type=flags.number(int, 8, 1024), default=32, metavar="N", help="default 32")
    add("--batch-size", type=flags.number(int, 2), default=128, metavar="N", help="default 128")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    add("--repeats", type=flags.number(int, 1), default=5, help="turns of each way (default 5)")
    add(
        "--seconds",
        type=flags.number(float, 0, exclusive=True),
        default=2,
        help="of a turn (default 2)",
    )
    add("--json", type=Path, metavar="FILE", help="also write the rates there")
    add("--quick", action="store_true", help="one turn of a step: does it run at all?")
    what = parse.add_mutually_exclusive_group()
    what.add_argument("--switches", action="store_true", help="the bare step's switches instead")
    what.add_argument("--resources", action="store_true", help="memory, GPU idle share instead")
    what.add_argument("--gpu-table", action="store_true", help="everything for one GPU, 10 minutes")
    args = parse.parse_args(argv)
    if args.gpu_table and not args.json:
        parse.error("--gpu-table fills a file; add --json FILE")
    if args.quick:
        args.repeats, args.seconds = 1, 0.01
    return args


def main(argv=None):
    args = arguments(argv)
    if args.gpu_table:
        return min(1, gpu_table.fill(args.json))
    device = set_up_device(args.device)
    measure = switch_rows if args.switches else resource_rows if args.resources else rates
    print(timing.machine(device))
    objects = []
    for name in args.model:
        job = baselines.Job(name, args.input_size, args.batch_size, device)
        precision = str(job.precision or torch.float32).removeprefix("torch.")
        print(f"{name}, {job.input_size} px, batch {job.batch_size}, {device}, {precision}")
        result, lines = measure(job, args)
        print("\n".join(lines), flush=True)
        head = {"model": name, "input_size": job.input_size, "batch_size": job.batch_size}
        objects.append({**head, "device": str(device), **result})
        if args.json:
            written = objects if len(args.model) > 1 else objects[0]
            args.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return int(any(_failed(found) for found in objects))


def _failed(found):
    """Whether a rate is missing anywhere in the result."""
    return any(
        rate is None
        for task in baselines.TASKS
        for name, rate in found[task].items()
        if name in baselines.WAYS
    )


if __name__ == "__main__":
    sys.exit(main())
