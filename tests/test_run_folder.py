"""The folder of a run: nothing of others is touched in it, and one training owns it at a time."""

import errno
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_files import plant, snapshot
from training import ROOT, last_step, read_history, run, train_in

from nercrf.files import TakenError, claimed_files, verify_folder, write_beside, write_folder
from nercrf.model.modeling import NerCrfConfig
from nercrf.model.small_encoder import SmallEncoderConfig
from nercrf.training import run_folder
from nercrf.training.callbacks import TrainingCallback
from nercrf.training.run_folder import holder_of, own_folder

FLAGS = {"plain": [], "overwrite": ["--overwrite_output_dir"], "resume": ["--resume", "auto"]}


# --- nothing of others
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    """A folder elsewhere that links lead to; it must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    (folder / "ours").mkdir()
    (folder / "ours" / "thesis.tex").write_text("mine")
    before = snapshot(folder)
    yield folder
    assert snapshot(folder) == before


def refused(capsys, *argv):
    """What a command says that ends with exit code 2."""
    assert run(*argv) == 2
    return capsys.readouterr().err


KINDS = ["file", "read-only file", "folder", "other manifest", "link to a file"]
KINDS += ["link to a folder of ours", "dangling link", "pipe"]
PLACES = ["model", "checkpoint-500", "history.jsonl", "run.json", "learning_curve.png"]
PLACES += ["eval_results.json", ".nercrf"]


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_place_that_is_taken_is_told_and_left(kind, place, flags, tmp_path, outside, capsys):
    out = tmp_path / "out"
    plant(out / place, kind, outside)
    before = snapshot(out)
    text = refused(capsys, "train", "--output_dir", out, *FLAGS[flags])
    assert f"{out / place} " in text
    assert "move it away or choose another folder" in text
    assert snapshot(out) == before


def test_a_checkpoint_of_another_program_is_told_by_the_trainer_too(tmp_path):
    theirs = tmp_path / "checkpoint-500"
    theirs.mkdir()
    (theirs / "trainer_state.json").write_text("{}")
    (theirs / "model.safetensors").write_bytes(b"x")
    before = snapshot(tmp_path)
    for changes in ({}, {"overwrite_output_dir": True}, {"resume": "auto"}):
        with pytest.raises(ValueError, match=r"checkpoint-500 holds no manifest\.json of this"):
            train_in(tmp_path, max_steps=2, **changes)
        assert snapshot(tmp_path) == before


def test_names_that_no_training_needs_are_left_alone(tmp_path, outside):
    plant(tmp_path / "run" / "checkpoint-8-backup", "folder", outside)
    plant(tmp_path / "run" / "checkpoint-8.zip", "read-only file", outside)
    plant(tmp_path / "run" / "checkpoint-best", "link to a folder of ours", outside)
    plant(tmp_path / "run" / "checkpoint-08", "link to a file", outside)
    plant(tmp_path / "run" / ".model.0123abcd.old", "folder", outside)
    plant(tmp_path / "run" / ".checkpoint-3.0123abcd.tmp", "folder", outside)
    before = snapshot(tmp_path / "run")
    del before["checkpoint-08"]
    (tmp_path / "run" / "checkpoint-08").unlink()
    train_in(tmp_path / "run", max_steps=3, save_steps=1)
    train_in(tmp_path / "run", max_steps=3, save_steps=1, resume="auto")
    train_in(tmp_path / "run", max_steps=2, overwrite_output_dir=True)
    found = snapshot(tmp_path / "run")
    assert {name: found[name] for name in before} == before


class Planter(TrainingCallback):
    """Puts a thesis into every folder of the run while it is trained."""

    def on_update_end(self, run, update):
        for folder in Path(run.args.output_dir).glob("[mc]*"):
            if folder.is_dir() and not (folder / "thesis.tex").exists():
                (folder / "thesis.tex").write_text("mine")


def test_a_thesis_put_into_the_folders_of_a_run_stays(tmp_path, caplog):
    """Best models are replaced, checkpoints pruned, a training resumed: the thesis stays in its
    place, and with it the checkpoint that holds it.
    """
    often = {"save_steps": 1, "eval_steps": 1, "save_total_limit": 1, "background_save": False}
    often |= {"metric_for_best_model": "loss"}
    with caplog.at_level(logging.WARNING):
        train_in(tmp_path, max_steps=6, callbacks=[Planter()], **often)
    assert json.loads((tmp_path / "model" / "best.json").read_text())["step"] > 1
    assert "thesis.tex is not of this program" in caplog.text
    for folder in (tmp_path / "model", *tmp_path.glob("checkpoint-[1-5]")):
        assert (folder / "thesis.tex").read_text() == "mine"
        assert verify_folder(folder) == []
    assert len(list(tmp_path.glob("checkpoint-*"))) == 6
    train_in(tmp_path, max_steps=6, resume="auto", callbacks=[Planter()], **often)
    with pytest.raises(TakenError, match=r"thesis\.tex was not written by this program"):
        train_in(tmp_path, max_steps=6, resume=str(tmp_path / "checkpoint-2"), **often)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"thesis\.tex was not written by this program"):
        train_in(tmp_path, max_steps=6, overwrite_output_dir=True, **often)
    after = snapshot(tmp_path)
    assert after.pop(".nercrf")[2].startswith(before.pop(".nercrf")[2])  # who held the folder
    assert after == before


class Refused(TrainingCallback):
    """A training that must not come to its first update."""

    def on_update_begin(self, run, update):
        pytest.fail("it trained before it looked")


TAKEN = {
    "config.json": "link to a file",
    "model.safetensors": "dangling link",
    "tokenizer.json": "folder",
    "best.json": "file",
    "training_config.json": "pipe",
}


def test_a_name_of_the_model_that_is_taken_is_told_before_the_first_update(
    tmp_path, outside, capsys
):
    """Found when the model was to be saved, it would cost the hours of a training."""
    train_in(tmp_path / "run", max_steps=2, save_steps=1, dev=False)
    model = tmp_path / "run" / "model"
    for name, kind in TAKEN.items():
        shutil.rmtree(model)
        with write_folder(model) as temporary:  # of a version that did not write this name
            for each in TAKEN.keys() - {name}:
                (temporary / each).write_text("{}")
        plant(model / name, kind, outside)
        before = snapshot(tmp_path / "run")
        mark = before.pop(".nercrf")
        if kind == "file":  # the trainer looks, too
            with pytest.raises(ValueError, match=f"{re.escape(str(model / name))} was not written"):
                train_in(tmp_path / "run", max_steps=4, resume="auto", callbacks=[Refused()])
        for resume in ("auto", tmp_path / "run" / "checkpoint-1"):
            said = refused(capsys, "train", "--output_dir", model.parent, "--resume", resume)
            assert f"{model / name} was not written by this program: move it away" in said
        after = snapshot(tmp_path / "run")
        assert after.pop(".nercrf")[2].startswith(mark[2])
        assert after == before


@pytest.mark.parametrize("flags", FLAGS)
def test_no_training_writes_into_a_model_or_a_checkpoint(flags, tmp_path, capsys):
    """The run of which it is would find things of others in it."""
    for name in ("model", "checkpoint-2", "sample"):
        with write_folder(tmp_path / "run" / name) as temporary:
            (temporary / "config.json").write_text("{}")
        before = snapshot(tmp_path)
        said = refused(capsys, "train", "--output_dir", tmp_path / "run" / name, *FLAGS[flags])
        assert f"{name} is a model, a checkpoint or a sample: choose another folder" in said
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "link to a file"])
def test_a_card_of_somebody_else_stays_in_the_model(kind, tmp_path, outside, caplog):
    """Put there while the training was under way, which writes its own card at the very end."""
    with write_folder(tmp_path / "model") as temporary:
        NerCrfConfig(SmallEncoderConfig(), id2label={0: "O"}).save_pretrained(temporary)
    plant(tmp_path / "model" / "README.md", kind, outside)
    before = snapshot(tmp_path)
    with pytest.raises(TakenError, match=r"README\.md was not written by this program"):
        write_beside(tmp_path / "model", "README.md", b"ours")
    assert snapshot(tmp_path) == before


def test_a_folder_of_a_version_without_lists_goes_on(tmp_path):
    """And is overwritten where that is asked for; a poem named history.jsonl is not."""
    train_in(tmp_path, max_steps=4, save_steps=2, learning_curve=True)
    names = {"history.jsonl", "run.json", "learning_curve.png"}
    assert claimed_files(tmp_path) == names
    (tmp_path / ".nercrf").unlink()
    train_in(tmp_path, max_steps=4, save_steps=2, resume="auto", learning_curve=True)
    assert claimed_files(tmp_path) == names
    (tmp_path / ".nercrf").unlink()
    train_in(tmp_path, max_steps=2, overwrite_output_dir=True)
    assert last_step(tmp_path) == 2
    (tmp_path / ".nercrf").unlink()
    (tmp_path / "history.jsonl").write_text("a poem\n")
    with pytest.raises(ValueError, match=r"history\.jsonl was not written by this program"):
        train_in(tmp_path, max_steps=2, overwrite_output_dir=True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"resumed_from": 3}', "\x00\x00"])
def test_a_broken_record_is_passed_over_with_a_line(content, tmp_path, caplog):
    train_in(tmp_path, max_steps=1)
    (tmp_path / "run.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        train_in(tmp_path, max_steps=1, resume="auto")
    assert "run.json is broken and is written anew" in caplog.text
    assert json.loads((tmp_path / "run.json").read_text())["resumed_from"] == ["checkpoint-1"]


def test_no_module_writes_a_file_in_place():
    """What is opened for writing stands in `nercrf.files`, or in a folder that appears when it is
    complete, or is a log that is appended to.
    """
    allowed = {"files.py": 3, "modeling.py": 1, "checkpoint.py": 4, "resume.py": 1}
    allowed |= {"reporting.py": 1, "large_corpus.py": 1}
    found = {}
    for path in sorted((ROOT / "nercrf").rglob("*.py")):
        text = path.read_text()
        count = text.count(".write_text(") + text.count(".write_bytes(")
        count += sum(text.count(f'"{mode}") as ') for mode in ("w", "wb", "xb", "a"))
        count += text.count('"ab", buffering')
        if count:
            found[path.name] = count
    assert {name: found[name] for name in found if found[name] > allowed.get(name, 0)} == {}


# --- one owner
# --------------------------------------------------------------------------------------------------

HOLD = """
import os, subprocess, sys, time
from nercrf.training.run_folder import own_folder
with own_folder(sys.argv[1]):
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(60)
    if "program" in sys.argv:
        subprocess.Popen(["sleep", "60"], close_fds=False)
    print("owned", flush=True)
    time.sleep(60)
"""


def hold(folder, *children):
    """A process that owns a folder."""
    command = [sys.executable, "-c", HOLD, str(folder), *children]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout.readline() == "owned\n"
    return process


@pytest.fixture
def held(tmp_path):
    """A folder that another process owns, and the process."""
    process = hold(tmp_path / "run")
    yield tmp_path / "run", process
    process.kill()
    process.wait()


def test_the_second_training_is_told_who_was_first_and_writes_nothing(held, capsys):
    folder, process = held
    before = snapshot(folder)
    text = refused(capsys, "train", "--output_dir", folder)
    assert f"{folder} belongs to a training under way (process {process.pid} on " in text
    assert f"on {socket.gethostname()}, since 20" in text
    with pytest.raises(ValueError, match=f"belongs to a training under way .process {process.pid}"):
        train_in(folder, max_steps=1)
    assert snapshot(folder) == before


@pytest.mark.parametrize("children", [(), ("fork",), ("program",)])
def test_a_killed_training_lets_go_at_once(tmp_path, children):
    """Also where a process that it started lives on."""
    process = hold(tmp_path, *children)
    assert holder_of(tmp_path).startswith(f"process {process.pid} on ")
    process.kill()
    process.wait()
    began = time.monotonic()
    with own_folder(tmp_path):
        assert time.monotonic() - began < 1
    assert holder_of(tmp_path) is None


def test_a_thread_of_the_same_process_is_another_training(tmp_path):
    answers = []

    def ask():
        try:
            with own_folder(tmp_path):
                answers.append("owned")
        except ValueError as error:
            answers.append(str(error))

    with own_folder(tmp_path), own_folder(tmp_path):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on" in answers[0]
    ask()
    assert answers[1:] == ["owned"]


def own_in_turn(folder, count):
    """Own a folder again and again; note each time that nobody else does."""
    for _ in range(count):
        while True:
            try:
                with own_folder(folder):
                    mark = Path(folder, "mark")
                    mark.touch(exist_ok=False)
                    time.sleep(0.002)
                    mark.unlink()
                break
            except ValueError:
                continue


def test_never_two_at_once(tmp_path):
    """Each comes and goes; the list is begun and removed again each time."""
    context = multiprocessing.get_context("fork")
    folder = tmp_path / "run"
    children = [context.Process(target=own_in_turn, args=(folder, 20)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(handle, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), own_folder(tmp_path):
        assert "no lock" in caplog.text
    assert holder_of(tmp_path) is None


def test_two_trainings_at_the_same_time(tmp_path):
    """One trains; the other ends with 2 before it writes; the first can be killed and resumed."""
    flags = ["--do_train", "--no_cuda", "--output_dir", tmp_path / "run", "--seed", "1"]
    flags += ["--max_steps", "400", "--save_steps", "1", "--logging_steps", "1"]
    command = [sys.executable, "-m", "nercrf.run_ner_crf", *map(str, flags)]
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    options |= {"stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as first:
        try:
            deadline = time.monotonic() + 100
            while not list(tmp_path.glob("run/checkpoint-*")) and time.monotonic() < deadline:
                time.sleep(0.2)
            second = subprocess.run(command, **options, timeout=100)
            assert second.returncode == 2
            assert f"belongs to a training under way (process {first.pid} on" in second.stderr
        finally:
            first.send_signal(signal.SIGKILL)
            first.communicate()
    step = last_step(tmp_path / "run")
    flags[flags.index("400")] = "400"
    third = [*command, "--resume", "auto"]
    with subprocess.Popen(third, **options) as resumed:
        deadline = time.monotonic() + 100
        while last_step(tmp_path / "run") < step + 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        resumed.send_signal(signal.SIGTERM)
        _, text = resumed.communicate()
    assert resumed.returncode == 75, text
    steps = [line["step"] for line in read_history(tmp_path / "run") if "loss" in line]
    assert steps == sorted(set(steps))


# --- what is written at the end is asked for at the beginning
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["train", "predict"])
def test_predictions_that_could_not_be_written_are_told_before_the_work(verb, tmp_path, capsys):
    """A poem, a link or a folder under their name, and an output below a file."""
    from nercrf.flags import check_files, parse_verb, predictions_file

    train_in(tmp_path / "run", max_steps=1)
    (tmp_path / "poem").write_text("a poem")
    words = [str(tmp_path / "run"), "--data_dir", str(tmp_path / "data")]
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.txt").write_text("Ann B-PER\nleft O\n")
    if verb == "train":
        words = ["--output_dir", str(tmp_path / "new"), *words[1:]]
    for kind in ("file", "dangling link", "folder", "below a file"):
        args = parse_verb(verb, words)
        assert args.do_predict
        place = predictions_file(args)
        check_files(args)
        place.parent.mkdir(exist_ok=True)
        if kind == "file":
            place.write_text("a poem")
        elif kind == "dangling link":
            place.symlink_to("nowhere")
        elif kind == "folder":
            place.mkdir()
        else:
            args = parse_verb(verb, [*words, "--output", str(tmp_path / "poem" / "out.jsonl")])
        with pytest.raises((ValueError, OSError), match=r"was not written by this|is no folder"):
            check_files(args)
        if kind == "folder":
            place.rmdir()
        elif kind != "below a file":
            place.unlink()
    assert (tmp_path / "poem").read_text() == "a poem"


@pytest.mark.parametrize("kind", ["file", "dangling link", "below a file", "unwritable"])
def test_evaluations_that_could_not_be_kept_are_told_before_the_work(
    kind, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("nercrf.script.prepare_data", None)  # the work
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text('{"model_type": "nercrf"}')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.txt").write_text("Ann B-PER\nleft O\n")
    (tmp_path / "poem").write_text("a poem")
    place, flags = tmp_path / "run" / "evaluations", []
    if kind == "file":
        place.write_text("a poem")
    elif kind == "dangling link":
        place.symlink_to("nowhere")
    elif kind == "below a file":
        place = tmp_path / "poem" / "evaluations"
        flags = ["--output_dir", tmp_path / "poem"]
    else:
        monkeypatch.setattr(os, "access", lambda *args, **options: False)
    before = snapshot(tmp_path)
    said = refused(capsys, "evaluate", tmp_path / "run", tmp_path / "data", *flags)
    assert f"{place}: " in said
    assert ("cannot" if kind == "unwritable" else "is no folder") in said
    assert "--output_dir" in said
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("verb", ["below a file", "unwritable"])
def test_a_training_that_could_not_write_is_told_before_the_work(
    verb, tmp_path, capsys, monkeypatch
):
    """Also where nothing is to be predicted."""
    monkeypatch.setattr("nercrf.script.prepare_data", None)
    (tmp_path / "poem").write_text("a poem")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text("Ann B-PER\nleft O\n")
    folder = tmp_path / ("poem" if verb == "below a file" else "new") / "run"
    if verb == "unwritable":
        monkeypatch.setattr(os, "access", lambda *args, **options: False)
    before = snapshot(tmp_path)
    words = ["--do_train", "--data_dir", tmp_path / "data", "--output_dir", folder]
    said = refused(capsys, "train", *words[1:])
    assert f"{folder}" in said
    assert "choose another place with --output_dir" in said
    from nercrf.flags import check_files, parse_args

    with pytest.raises(ValueError, match="choose another place with --output_dir"):
        check_files(parse_args(list(map(str, words))))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link", "pipe"])
def test_a_guide_of_others_is_told_before_the_work_and_stays(kind, tmp_path, monkeypatch, caplog):
    from nercrf import script
    from nercrf.flags import parse_verb

    place = tmp_path / "run" / "README.md"
    place.parent.mkdir()
    if kind == "file":
        place.write_text("a poem")
    elif kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("nowhere")

    def work(args):
        assert f"{place} is not of nercrf and stays as it is" in caplog.text
        raise ValueError("the work")

    monkeypatch.setattr(script, "prepare_data", work)
    args = parse_verb("train", ["--output_dir", str(place.parent), "--no_cuda"])
    with pytest.raises(ValueError, match="the work"):
        script.run(args)
    assert os.path.lexists(place)
