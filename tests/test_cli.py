"""The command `nercrf` as a user meets it: fast answers, short errors, quiet ends."""

import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path

import pytest
from training import run

from nercrf.run_ner_crf import BROKEN_PIPE, CONTROL_C, guarded

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-c", "import sys; from nercrf.cli import main; sys.exit(main())"]
SCRIPTS = {
    "module": [sys.executable, "-m", "nercrf.run_ner_crf"],
    "torchrun": [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=1",
        "-m",
        "nercrf.run_ner_crf",
    ],
    "path": [sys.executable, str(ROOT / "nercrf" / "run_ner_crf.py")],
}


def said(capsys, *argv, code=2):
    """What a command says on standard error."""
    assert run(*argv) == code
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "verb",
    ["train", "evaluate", "predict", "calibrate", "score", "compare", "check", "convert", "cache"],
)
def test_help_is_short(capsys, verb):
    said(capsys, verb, "--help", code=0)


def test_a_misspelt_verb_or_flag_takes_two_lines(capsys):
    for argv, message in (
        (["tarin"], "unknown verb: tarin; did you mean train?"),
        (["check", "--tokeniser", "x", "data"], "did you mean --tokenizer?"),
        (["convert", "a", "b", "--strikt"], "did you mean --strict?"),
        (["cache", "clean", "--brokn"], "did you mean --broken?"),
    ):
        text = said(capsys, *argv)
        assert message in text
        assert len(text.splitlines()) == 2


SLIPS = [
    (["train", "--data_dir", "none"], "none: expected a folder"),
    (["train", "--model_name_or_path", "./none"], "no model at './none'"),
    (["train", "--resume", "none"], "--resume none: there is no such folder"),
    (["evaluate", "none", "data"], "none does not exist: give the output folder"),
    (["predict", "none", "a.txt"], "--input a.txt: there is no such file"),
    (["predict", "none", "-"], "none does not exist"),
    (["train", "--config", "none.json"], "--config none.json: No such file"),
    (["train", "data"], "unrecognized arguments: data; expected a flag before it"),
    (["train", "--resume", "."], "--resume .: expected a checkpoint-N folder"),
    (["evaluate", ".", "none"], ". holds no model"),
    (["predict", "no_model.txt"], "no_model.txt is no folder: give the output folder"),
    (["convert", "none.jsonl", "out.conll"], "none.jsonl"),
]


@pytest.mark.parametrize(("argv", "message"), SLIPS, ids=[" ".join(argv) for argv, _ in SLIPS])
def test_a_slip_is_told_before_torch_is_loaded(argv, message, tmp_path):
    (tmp_path / "no_model.txt").write_text("Ada wrote .\n")
    code = (
        "import sys; from nercrf.cli import main\n"
        f"try: code = main({argv!r})\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, 'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.stdout == "2 False\n"
    assert message in finished.stderr
    assert len(finished.stderr.splitlines()) <= 2


def test_an_output_folder_that_holds_a_run_is_told_before_torch(tmp_path, capsys):
    (tmp_path / "history.jsonl").write_text("")
    text = said(capsys, "train", "--output_dir", str(tmp_path))
    assert "holds an earlier run (history.jsonl): --resume auto goes on" in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_is_started_in_each_way(name, tmp_path):
    """Also from elsewhere, by its path: its folder hides no module of others."""
    environment = {**os.environ, "PYTHONPATH": "" if name == "path" else str(ROOT)}
    flags = ["--do_train", "--max_steps", "1", "--no_cuda", "--dry_run"]
    flags += ["--output_dir", str(tmp_path / "out")]
    finished = subprocess.run(
        [*SCRIPTS[name], *flags],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert "dry run: " in finished.stdout


def test_the_reference_has_its_functions_in_one_place():
    from nercrf.run_ner_crf import (
        convert_examples_to_features,
        evaluate,
        load_and_cache_examples,
        predict,
        train,
    )

    for function in (convert_examples_to_features, evaluate, load_and_cache_examples, predict):
        assert callable(function)
    assert callable(train)


def test_a_reader_that_has_enough_ends_the_command_quietly(tmp_path):
    """`nercrf check --all data | head -1`, with more output than a pipe holds."""
    lines = "".join(f"word{n}\tI-LOC\n\n" for n in range(5000))
    (tmp_path / "train.txt").write_text(lines)
    process = subprocess.Popen(
        [*COMMAND, "check", "--all", "--scheme", "BIO", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == BROKEN_PIPE


def open_for_writing(pipe, process, seconds=60):
    """A descriptor of a named pipe, as soon as the process reads from it."""
    for _ in range(seconds * 20):
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or process.poll() is not None:  # ENXIO: nobody reads yet
                raise
        time.sleep(0.05)
    raise AssertionError(f"nobody reads from {pipe}")


def wait_until_empty(pipe, seconds=60):
    """Return when a reader has taken what was written."""
    for _ in range(seconds * 20):
        waiting = fcntl.ioctl(pipe, termios.FIONREAD, struct.pack("i", 0))
        if waiting == struct.pack("i", 0):
            return
        time.sleep(0.05)
    raise AssertionError("nobody reads what was written")


def test_control_c_is_one_line(tmp_path):
    """While a command waits for its input."""
    pipe = tmp_path / "train.txt"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [*COMMAND, "check", str(pipe)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # tests in the background of a shell would hand on that it is ignored
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    writing = open_for_writing(pipe, process)
    os.write(writing, b"Ada O\n")
    wait_until_empty(writing)  # so it reads, and nothing between opening and reading is broken off
    process.send_signal(signal.SIGINT)
    os.close(writing)  # a read that began just after the signal ends, too
    output = process.communicate(timeout=60)[1]
    assert output == "interrupted\n"
    assert process.returncode == CONTROL_C


def test_a_missing_package_is_one_line(capsys):
    def work():
        raise ModuleNotFoundError("No module named 'spacy'", name="spacy.tokens")

    assert guarded(work) == 2
    assert capsys.readouterr().err == "error: No module named 'spacy': pip install spacy\n"
