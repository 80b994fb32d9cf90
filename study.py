"""The reproduction study: run the arms of the paper's claims, go on after a stop, print verdicts.

    python study.py --preset study                      # run what is missing, then report
    python study.py --preset study --dry-run            # what there is to do, and for how long
    python study.py --preset study --claims k p         # some claims only
    python study.py --preset study --report             # tables and figures from runs.csv alone
    python study.py --preset study --commands "K x 4"   # the commands that repeat one arm

A run is one step with one seed, a program with one thread; several run at once.  Whatever stops
this, the same command goes on where it was, and no run that exists is run again.

Reads    claims.py; the data sets
Writes   RUNS_DIR/<identity>/<stage>; in RESULTS: runs.csv, verdicts.md, figures/*.svg
"""

import sys
from pathlib import Path

from stages import flags
from stages.program import begin


def parse(argv):
    parser = flags.bare_parser(__doc__)
    add, count = parser.add_argument, flags.number(int, 1, 1000)
    add("--preset", default="study", help="settings that the arms change (default study)")
    add("--claims", nargs="+", metavar="NAME", help="some of the claims (default all)")
    add("--seeds", type=count, metavar="N", help="seeds of every claim (default: those registered)")
    add("--jobs", type=count, metavar="N", help="runs at a time (default: one a core or a GPU)")
    add("--cluster", choices=("slurm",), help="run there, JOBS at a time; needs submitit")
    add("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="options of sbatch, such as "
        "partition=gpu gpus=1 account=lab time=240")  # fmt: skip
    minutes = flags.number(float, 0, exclusive=True)
    add("--budget-minutes", type=minutes, metavar="M", help="stop then, everything saved")
    add("--dry-run", action="store_true", help="print what there is to do, and stop")
    add("--report", action="store_true", help="remake tables and figures, and stop")
    add("--commands", metavar="ARM", help="print the commands that repeat an arm, and stop")
    add("--data-dir", type=Path, default=Path("datasets"), metavar="DIR")
    add("--runs-dir", type=Path, metavar="DIR", help="default runs/study/<preset>")
    add("--results", type=Path, metavar="DIR", help="default results; of another preset "
        "than study results/<preset>, of the demo RUNS_DIR")  # fmt: skip
    args = parser.parse_args(argv)
    for word in args.slurm:
        if not all(word.partition("=")) or not args.cluster:
            parser.error(f"argument --slurm {word}: give KEY=VALUE, and --cluster slurm")
    args.runs_dir = args.runs_dir or Path("runs/study") / args.preset
    folders = {"study": Path("results"), "demo": args.runs_dir}
    args.results = args.results or folders.get(args.preset, Path("results") / args.preset)
    return args


if __name__ == "__main__":
    begin(parse)  # --help and wrong flags, before torch is imported

from claims import TUNING, base, claims
from stages.device import RATE, faster_precision, set_up_device
from stages.folder import read_records
from trials.arms import Planner
from trials.cluster import ClusterPlace
from trials.page import print_verdicts, write_page
from trials.progress import Line, Rates, Stop, time_words
from trials.rows import accuracies, read_rows, row_of, write_rows
from trials.runs import commands
from trials.statistics import Table
from trials.work import Place, Work, cores

ROOT = Path(__file__).parent


def main(argv=None):
    """Exit codes: 0 done, or the budget is spent; 1 a run has failed; 2 a bad flag; 130 and 143
    stopped by a signal, everything saved.
    """
    args = parse(argv)
    try:
        study = Study(args)
        if args.commands:
            return study.print_commands(args.commands)
        if args.dry_run:
            return study.print_plan()
        code = 0 if args.report else study.run()
        if code < 128:  # a signal wants an end, not a report
            rows = read_rows(study.csv)
            # The page has all claims, since p values are corrected over the whole preset.
            judged = write_page(args.results, args.preset, claims(args.preset), rows, TUNING)
            asked = {claim.name for claim in study.claims}
            print_verdicts([result for result in judged if result.claim.name in asked])
    except (ValueError, OSError) as error:
        print(f"study.py: {error}", file=sys.stderr)
        code = 2
    if code:
        raise SystemExit(code)


class Study:
    """The claims asked for, the runs they need, and the rows there are."""

    def __init__(self, args):
        self.args, self.csv = args, args.results / "runs.csv"
        registered = claims(args.preset)
        known = {claim.name: claim for claim in registered}
        for name in args.claims or ():
            if name not in known:
                raise ValueError(f"--claims {name}: choose from {', '.join(known)}")
        self.claims = [claim for claim in registered if claim.name in (args.claims or known)]
        arms = {arm.name: arm for claim in registered for arm in claim.arms}
        self.planner = Planner(args.preset, base(args.preset), arms)
        self.registered = {}  # arm -> the claims that compare it, with their digests
        for claim in registered:
            for arm in claim.arms:
                self.registered.setdefault(arm.name, []).append(f"{claim.name} {claim.digest[:8]}")
        self.precision = faster_precision(set_up_device("auto"))
        self.seeds = args.seeds or max(claim.seeds for claim in registered)
        self.done = {}  # identity -> row

    # --- what there is to do --------------------------------------------------------------------

    def wanted(self, claim, rows):
        """Yield the (arm, seed) pairs of a claim.  All candidates run on the first TUNING seeds;
        only the best of them runs on the seeds after these.
        """
        seeds, table = self.args.seeds or claim.seeds, Table(accuracies(rows, self.args.preset))
        tuning, short = range(min(TUNING, seeds)), set()
        for side in (side for test in claim.tests for side in test.sides if len(side) > 1):
            short |= set(side) - {table.best(side, tuning)}
        for seed in range(seeds):
            for arm in claim.arms:
                if seed in tuning or arm.name not in short:
                    yield arm.name, seed

    def plan(self):
        """{identity: run} for the claims: parents first, claim by claim, seed by seed.  An arm
        whose row there is in this machine's precision, from any machine, is not run again.
        """
        rows = self.rows()
        return {
            run.identity: run
            for claim in self.claims
            for arm, seed in self.wanted(claim, rows)
            if not self.has_row(arm, seed, rows)
            for run in self.planner.run(arm, seed).chain()
        }

    def has_row(self, arm, seed, rows):
        """Whether there is a row of an arm and seed in this machine's precision."""
        last = self.planner.run(arm, seed).identity[:16], self.precision
        return any((row["identity"], row["precision"]) == last for row in rows)

    def rows(self):
        """A row for every finished run of any arm and precision: from runs.csv, which is never
        changed, or else from its folder here.  Runs of before NUMBERS was raised stay until they
        have been run again.  What no arm asks for any more is left out, other presets' rows stay.
        """
        old = read_rows(self.csv)
        rows = [row for row in old if row["preset"] != self.args.preset]
        seeds = {int(row["seed"]) for row in old} | set(range(self.seeds))
        runs, ends = {}, {}
        for arm in self.planner.arms:
            for last in (self.planner.run(arm, seed) for seed in seeds):
                ends.setdefault(last.key, []).append(arm)
                runs |= {run.key: run for run in last.chain()}
        mine = {(row["key"], row["precision"]): row for row in old if row["key"] in runs}
        for key, run in runs.items():
            row = self._row(run)
            if row and mine.get((key, row["precision"]), {}).get("identity") != row["identity"]:
                mine[key, row["precision"]] = row
        for (key, _), row in mine.items():
            arms = sorted(ends.get(key, ()))
            claims = dict.fromkeys(claim for arm in arms for claim in self.registered[arm])
            rows.append(row | {"arms": "; ".join(arms), "registered": "; ".join(claims)})
        return rows

    def _row(self, run):
        folder = run.folder(self.args.runs_dir)
        if run.identity not in self.done and (folder / "result.json").exists():
            config, result = read_records(folder)
            self.done[run.identity] = row_of(run, result, config)
        return self.done.get(run.identity)

    def print_plan(self):
        rows, seen, total = self.rows(), set(), 0.0
        rates = Rates(rows, RATE[self.precision])
        print(f"{'runs done':>10} {'images left':>12} {'time on one core':>17}  arm")
        for claim in self.claims:
            print(claim.name)
            arms = {}
            for arm, seed in self.wanted(claim, rows):
                chain = self.planner.run(arm, seed).chain()
                done = self.has_row(arm, seed, rows)
                runs = [(run, done) for run in chain if run.identity not in seen]
                arms.setdefault(arm, []).extend(runs)
                seen |= {run.identity for run in chain}
            for arm, runs in arms.items():
                left = [run for run, done in runs if not (done or run.result(self.args.runs_dir))]
                seconds, images = sum(map(rates.seconds, left)), sum(run.images for run in left)
                total += seconds
                done = f"{len(runs) - len(left)} of {len(runs)}"
                print(f"{done:>10} {images:>12,} {time_words(seconds):>17}  {arm}")
        print(f"{len(seen)} runs, {time_words(total)} on one core still to do")

    def print_commands(self, arm):
        """The commands that repeat an arm, with seed 0, in a folder of their own."""
        if arm not in self.planner.arms:
            known = ", ".join(map(repr, sorted(self.planner.arms)))
            raise ValueError(f"--commands {arm}: choose from {known}")
        print(*commands(self.planner.run(arm, 0), Path("runs/again")), sep="\n")

    # --- doing it -------------------------------------------------------------------------------

    def run(self):
        """Run all that is missing; -> exit code."""
        where = ROOT, self.args.runs_dir, self.args.data_dir, *cores(self.args.jobs)
        options = dict(word.split("=", 1) for word in self.args.slurm)
        place = ClusterPlace(*where, options) if self.args.cluster else Place(*where)
        failed = {}
        with Stop(self.args.budget_minutes) as stop:
            while not (stop() or failed):
                runs = list(self.plan().values())  # again once candidates can be chosen among
                work = Work(runs, place)
                if not work.waiting:
                    break
                self._follow(runs, work, stop)
                failed = work.failed
        write_rows(self.csv, self.rows())
        for run, reason in failed.values():
            print(f"study.py: {run.run_dir(place.runs)}/log.txt: {reason}", file=sys.stderr)
        if stop():
            print(f"stopped by {stop.reason}, everything saved; the same command goes on")
        return 128 + stop.signum if stop.signum else int(bool(failed))

    def _follow(self, runs, work, stop):
        rates = Rates(self.rows(), RATE[self.precision])
        line, left = Line(len(runs), rates, len(work.place.cores)), list(work.waiting)
        for finished in work.go_on(stop):
            if finished:
                row = self._row(finished)
                rates.add(int(row["images"]), int(row["multiply_adds"]), float(row["seconds"]))
                write_rows(self.csv, self.rows())
                left = [run for run in left if run.result(work.place.runs) is None]
            line.show(left, len(work.at_work), finished)
        line.end()


if __name__ == "__main__":
    main()
