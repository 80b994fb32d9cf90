"""What a program does before it imports torch, and with output that nobody can or wants to read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import flags, program

ROOT = Path(__file__).parents[1]


def run(code, *words, shell="", **environment):
    """Run code after `begin`, a program that prints and then writes the file `done`."""
    code = f"import sys\nfrom stages.program import begin\n{code}\nopen('done', 'w').close()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = ["sh", "-c", f'"$@" {shell}', "sh", sys.executable, "-c", code, *words]
    return subprocess.run(command, env=environment, capture_output=True, timeout=60)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "LANG": "C"}, {}])
def test_names_are_what_they_are_in_every_locale(elsewhere, environment):
    (elsewhere / "café").mkdir()
    code = "begin(lambda _: None); import os; print(ascii([*os.listdir('.'), sys.argv[1]]))"
    done = run(code, "é", **environment, PYTHONUTF8="0")
    assert done.stdout.decode().strip() == ascii(["café", "é"]), done.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_the_output_cannot_show_is_an_escape(elsewhere, stream):
    code = f"begin(lambda _: None); print('runs/é', file=sys.{stream})"
    done = run(code, PYTHONIOENCODING="ascii")
    assert getattr(done, stream) == rb"runs/\xe9" + b"\n" and done.returncode == 0


def test_names_command_no_terminal():
    done = run(r"begin(lambda _: None); print('a\x1b[2J\rb\u202e\udcff', 'é'); print('\rbar')")
    assert done.stdout.decode() == "a\\u001b[2J\\u000db\\u202e\\udcff é\n\rbar\n"


@pytest.mark.parametrize("shell", ["| head -1", "| true", ">&-", "2>&-", ">&- 2>&-", "> /dev/full"])
def test_a_program_that_can_no_longer_print_goes_on_and_finishes(elsewhere, shell):
    """`| head` and full disks while it prints, and streams that were closed from the beginning."""
    code = "begin(lambda _: None)\nfor n in range(20_000): print(n, flush=n % 100 == 0)\n"
    code += "print(1, file=sys.stderr)"
    done = run(code, shell=f"{shell}; echo >&2 $?" if "|" not in shell else shell)
    assert (elsewhere / "done").exists()
    assert b"Error" not in done.stderr and b"Exception" not in done.stderr
    assert "|" in shell or done.stderr.endswith(b"0\n")


def test_a_program_that_only_lists_ends_when_nobody_reads(elsewhere):
    code = "begin(lambda _: None, goes_on=False)\ntry:\n"
    code += "    for n in range(10**6): print(n)\nexcept BrokenPipeError: raise SystemExit(141)"
    done = run(code, shell="| head -1")
    assert (done.stdout, done.stderr) == (b"0\n", b"") and not (elsewhere / "done").exists()


def test_an_import_for_which_memory_is_short_is_one_line(elsewhere):
    for error in ("MemoryError()", "ImportError('libtorch.so: cannot map it')"):
        done = run(f"begin(lambda _: None); raise {error}")
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1


def test_commands_for_pasting_are_quoted():
    args = flags.stage_parser("").parse_args(["--run-dir", "my runs; rm -rf x", "--preset", "demo"])
    command = flags.next_command("main.py", args, "--student-network", "True")
    assert command == (
        "python main.py --preset demo --run-dir 'my runs; rm -rf x' --student-network True"
    )


@pytest.mark.parametrize("text", ["~nouser", "~nouser/photos"])
def test_the_home_of_a_user_that_there_is_not_is_named(text, capsys):
    for flag in ("--run-dir", "--data-dir"):
        with pytest.raises(SystemExit):
            flags.stage_parser("").parse_args([f"{flag}={text}"])
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and flag in error and text in error
    with pytest.raises(SystemExit):
        flags.stage_parser("").parse_args([f"--dataset=tags:{text}"])


def test_a_home_is_written_out_wherever_a_place_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/rose")
    args = flags.stage_parser("").parse_args(["--run-dir=~/x", "--dataset=tags:~/y"])
    assert (str(args.run_dir), args.dataset) == ("/home/rose/x", "tags:/home/rose/y")


@pytest.mark.parametrize("script", ["main", "make_sample_data", "student_train"])
def test_help_is_a_screen_and_help_all_has_the_rest(script, capsys):
    parse, shown = __import__(script).parse, []
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            parse([flag])
        shown.append(capsys.readouterr().out)
    few, all_of_them = shown
    assert few.count("\n") < 60 < all_of_them.count("\n")
    assert "--run-dir" in few and "--threads" not in few and "--threads" in all_of_them
    for words in ("--no-", "True|False", "no effect", "always"):
        assert words not in all_of_them
    assert all_of_them.count("--load-pretrained") == 1  # in the line on the predecessor's spellings


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=str,
)
def test_a_machine_with_too_little_left_is_one_line(error, capsys):
    @program.program
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as stop:
        main([])
    printed = capsys.readouterr().err
    assert (stop.value.code, printed.count("\n")) == (1, 1) and "too little memory" in printed
