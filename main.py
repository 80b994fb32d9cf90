"""Steps 1 and 4: train on the labelled images.

    python main.py                            # step 1 -> RUN/teacher
    python main.py --student-network True     # step 4 -> RUN/finetuned, starts from RUN/student

Expect   --preset demo: a quarter of a minute, about 92 % of the digits right, 94 % after step 4.
         --preset cifar10: 6 minutes and 48 % of 10 classes of photographs, 52 % after step 4.
         --preset lab: 7 minutes and 25 % of CIFAR-100's 100 classes, 27 % after step 4, on two
         cores.  The default preset is for a GPU.  RESULTS.md has every number.
Reads    the labelled set (downloaded to datasets/ on first use); step 4 also RUN/student
Writes   RUN/{teacher,finetuned}: config.json, metrics.jsonl, model.pt, TensorBoard's events, and,
         last, result.json
"""

from stages import flags
from stages.program import begin

TEXTS = {
    "student-network": "step 4: fine-tune the student of step 3 on the true labels",
    "student": "step 4: the stage to start from (default RUN/student)",
    "weights": "step 1: start from a stage, a checkpoint, or published weights (from "
    "DATA_DIR/weights/NAME.pth where that is): resnet50_swsl (CC-BY-NC 4.0), efficientnet_b0, "
    "timm/resnet10t",
    "member": "step 1: another start on the same labels; several make an ensemble (default 0)",
    "linear": "train the last layer alone, all others as --weights has them: how good are its "
    "features?",
}


def parse(argv):
    parser = flags.stage_parser(__doc__, "teacher", "finetune")
    add = parser.group("steps 1 and 4", TEXTS)
    add("student-network", action=flags.Boolean)
    add("student", type=flags.path, metavar="PATH")
    add("weights", type=flags.place, metavar="PATH|NAME")
    add("member", rare=True, type=flags.number(int, 0, 99), default=0, metavar="N")
    add("linear", rare=True, action=flags.Boolean)
    args = parser.parse_args(argv)
    if args.student and not args.student_network:
        parser.error("argument --student: belongs to step 4; add --student-network True")
    if args.weights and args.student_network:
        parser.error("argument --weights: belongs to step 1; step 4 starts from the student")
    if args.linear and not (args.weights or args.student_network):
        parser.error("argument --linear: needs a network to start from; add --weights PATH")
    return args


if __name__ == "__main__":
    begin(parse)

import distributed
from report import tables
from report.board import Board
from stages import training
from stages.device import set_up_device
from stages.folder import STAGES, read_record
from stages.lifetime import open_stage
from stages.prepare import prepare_training
from stages.program import program


@program
def main(argv=None):
    args = parse(argv)
    distributed.start()
    device = set_up_device(args.device, args.deterministic)
    folder = flags.run_dir(args) / ("finetuned" if args.student_network else "teacher")
    with open_stage(folder, args.resume, args.overwrite) as stage:
        if stage:
            student = stage.parent("student", args.student) if args.student_network else None
            settings = {"weights": args.weights, "linear": args.linear, "member": args.member}
            job = prepare_training(vars(args), stage, device, student, **settings)
            result = training.run(job, Board)
            print_summary(args, job, result)


def print_summary(args, job, result):
    folder, step_1 = job.stage.folder, job.stage.name == "teacher"
    title = "step 1: the teacher is trained" if step_1 else "step 4: the student is fine-tuned"
    trained_on = f"{len(job.labels):,} labelled images, {tables.length(job.recipe)}"
    rows = tables.training_summary(
        result, trained_on, len(job.val.labels), folder, len(job.classes)
    )
    if step_1:
        rows.append(("next", flags.next_command("make_sample_data.py", args)))
        tables.print_table(title, rows)
        return
    rows.append(("next", flags.pasted("python -m report", folder.parent)))
    rows.append(("or", flags.pasted("tensorboard --logdir", folder.parent.parent)))
    tables.print_table(title, rows)
    files = {stage: folder.parent / stage / "result.json" for stage in STAGES}
    results = {stage: read_record(file) for stage, file in files.items() if file.exists()}
    title = f"test top-1 of {result['dataset']}, seed {job.config['seed']}"
    tables.print_table(title, tables.accuracy_summary(results))


if __name__ == "__main__":
    main()
