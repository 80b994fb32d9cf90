"""Images a second of a network: bare, in our loops, through a DataLoader, the predecessor's way.

    python benchmarks/throughput.py --model resnet20 resnet50-cifar --json rates.json
    python benchmarks/throughput.py --model resnet20 --switches     # what each switch gives
    python benchmarks/throughput.py --gpu-table --json table.json   # all of it, in ten minutes
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python ...     # as an older laptop

The ways are described in benchmarks/baselines.py.  *bare* is the bare step in the precision that
the programs choose on this machine, float32 or bfloat16; *auto / better* is what that choice gives
of the better one, so that a wrong guess is seen.  The ways take turns; a rate is the median of a
way's turns, a ratio that of the rounds.  Images are noise: nothing is downloaded.

Writes   with --json FILE: {model, input_size, batch_size, device, precision, threads, train,
         infer}, the last two {float32, bfloat16, bare, ours, dataloader, predecessor} in images/s,
         null for a way that failed (exit code 1), "ratios", each with its median, lowest and
         highest, and "turns", the rates of the single turns; a list of such objects for several
         models
"""

import argparse
import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

import torch

from benchmarks import ablations, baselines, gpu_table, timing
from files import write_json
from models.networks import MODELS
from stages import flags
from stages.device import set_up_device

COLUMNS = {
    "float32": "bare float32",
    "bfloat16": "bare bfloat16",
    "bare": "bare (auto)",
    "ours": "ours",
    "dataloader": "DataLoader",
    "predecessor": "predecessor",
}


def rates(job, args):
    """{task: rates, ratios, turns}, and the lines of the printed tables."""
    result = {task: _side_by_side(job, task, args) for task in baselines.TASKS}
    lines = [" " * 7 + "".join(f"{title:>15}" for title in COLUMNS.values())]
    for task, found in result.items():
        cells = (_text(found[name], "15.1f") for name in COLUMNS)
        lines.append(f"  {task}" + "".join(cells))
    for name in result["train"]["ratios"]:
        lines.append(f"  {name}")
        for task, found in result.items():
            ratio = found["ratios"][name] or dict.fromkeys(("median", "lowest", "highest"))
            middle, low, high = (_text(number, ".2f") for number in ratio.values())
            lines.append(f"    {task}{middle:>8}   rounds {low} to {high}")
    return result, lines


def _side_by_side(job, task, args):
    lanes = {name: way(job) for name, way in baselines.TASKS[task].items()}
    prefetched = {name: 2 * baselines.workers(name) for name in lanes}  # DataLoader's default
    turns = timing.turns(lanes, job.device, args.repeats, args.seconds, prefetched)
    _free(lanes)
    chosen = _name(job.precision)
    other = "bfloat16" if chosen == "float32" else "float32"
    both = turns[chosen] and turns[other]
    better = both and [max(pair) for pair in zip(turns[chosen], turns[other], strict=True)]
    ratios = {
        "ours / bare": timing.ratio(turns["ours"], turns[chosen]),
        "auto / better": timing.ratio(turns[chosen], better),
        "ours / DataLoader": timing.ratio(turns["ours"], turns["dataloader"]),
        "ours / predecessor": timing.ratio(turns["ours"], turns["predecessor"]),
    }
    found = {name: timing.median(turns[chosen if name == "bare" else name]) for name in COLUMNS}
    return {**found, "ratios": ratios, "turns": turns}


def _name(precision):
    return str(precision).removeprefix("torch.")


def _text(number, form):
    return "failed".rjust(int(form.split(".")[0] or 0)) if number is None else format(number, form)


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
    add("--threads", type=flags.number(int, 1), metavar="N", help="default: as the programs choose")
    seconds = flags.number(float, 0, exclusive=True)
    add("--seconds", type=seconds, default=2, help="of a turn (default 2)")
    add("--json", type=Path, metavar="FILE", help="also write the rates there")
    add("--resume", action="store_true", help="--gpu-table: keep the rows that FILE has")
    add("--quick", action="store_true", help="one turn of a step: does it run at all?")
    what = parse.add_mutually_exclusive_group()
    what.add_argument("--switches", action="store_true", help="the bare step's switches instead")
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
        return min(1, gpu_table.fill(args.json, resume=args.resume))
    device = set_up_device(args.device)
    measure = switch_rows if args.switches else rates
    print(timing.machine(device))
    objects = []
    for name in args.model:
        job = baselines.settled_job(name, args.input_size, args.batch_size, device, args.threads)
        head = {"model": name, "input_size": job.input_size, "batch_size": job.batch_size}
        head |= {"device": str(device), "precision": _name(job.precision)}
        head |= {"threads": torch.get_num_threads()}
        print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in head.items()))
        result, lines = measure(job, args)
        print("\n".join(lines), flush=True)
        objects.append({**head, **result})
        if args.json:
            written = objects if len(args.model) > 1 else objects[0]
            write_json(args.json, written)
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
