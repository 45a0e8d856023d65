"""Killed, told to go, out of space, out of numbers: what a training leaves behind, and how it goes on."""

import errno
import json
import logging
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import tqdm.auto
import tqdm.std
from test_checkpoint import Malicious
from training import (
    DEV,
    TOKENIZER,
    TRAIN,
    assert_same_tensors,
    last_step,
    make_args,
    make_model,
    read_history,
    train_in,
)

from nercrf import files
from nercrf.files import DiskFullError, verify_folder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.training import resume
from nercrf.training.callbacks import TrainingCallback
from nercrf.training.checkpoint import (
    average_checkpoints,
    latest_checkpoint,
    load_state,
)
from nercrf.training.reporting import append_text
from nercrf.training.trainer import TrainingInterrupted, train

# Saved after every second update, so that most of the time something is being written; evaluated
# and averaged as well.
KILLED = {
    "save_steps": 2,
    "logging_steps": 1,
    "eval_steps": 3,
    "learning_curve": False,
    "keep_best": 1,
}


class Steps(TrainingCallback):
    """Notes which updates are made, in a file that survives."""

    def __init__(self, path):
        self.path = path

    def on_update_end(self, run, update):
        with self.path.open("a") as file:
            file.write(f"{run.progress.step}\n")


# PyTorch refuses to compute gradients in the fork of a process that has autograd threads, as one that
# runs tests may have. The fork of a server that has imported this file and done nothing yet is as quick.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["test_never_lost"])


def train_on(folder, steps):
    """Train or go on, in a child that has everything imported and converted already."""
    torch.set_num_threads(1)
    logging.disable()
    for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
        bar.set_lock(
            threading.RLock()
        )  # forks share the usual one, which a killed process would leave locked
    args = make_args(folder, resume="auto", **KILLED)
    train(args, TRAIN, make_model(), TOKENIZER, DEV, callbacks=[Steps(steps)])
    os._exit(0)


@pytest.fixture(scope="module")
def server():
    """The server, ready: what it needs to begin is in no training's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # this file is found
        first = SERVER.Process(target=os.getpid)
        first.start()
        first.join()


def start(folder, steps):
    process = SERVER.Process(target=train_on, args=(folder, steps), daemon=True)
    process.start()
    return process


def assert_same_end(whole, other):
    """Weights, optimiser, averages, best model and log are those of the undisturbed training."""
    last = f"checkpoint-{last_step(whole)}"
    assert_same_tensors(whole / last, other / last)
    ours, theirs = load_state(other / last), load_state(whole / last)
    assert ours["progress"] == theirs["progress"]
    assert read_history(other) == read_history(whole)
    best = (whole / "model/model.safetensors").read_bytes()
    assert (other / "model/model.safetensors").read_bytes() == best
    assert sorted(path.name for path in other.glob("checkpoint-*")) == sorted(
        path.name for path in whole.glob("checkpoint-*")
    )


def kill_again_and_again(folder, trials, seed):
    """Kill trainings at random moments until so many kills hit; each next start goes on from a
    complete checkpoint.
    """
    whole, moments = folder / "whole", random.Random(seed)
    began = time.monotonic()
    process = start(whole, folder / "whole.txt")
    process.join()
    duration = time.monotonic() - began
    assert process.exitcode == 0
    killed, finished, round_ = 0, 0, 0
    while killed < trials:
        round_ += 1
        run = folder / f"run-{round_}"
        while True:
            steps = folder / f"steps-{round_}-{killed}.txt"
            checkpoints = set(run.glob("checkpoint-*"))
            latest = latest_checkpoint(run)
            reached = int(latest.name.split("-")[1]) if latest else 0
            process = start(run, steps)
            process.join(moments.uniform(0.02, 0.8) * duration if killed < trials else None)
            ended = process.exitcode is not None
            if not ended:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                killed += 1
            else:
                assert process.exitcode == 0
            made = [int(line) for line in steps.read_text().split()] if steps.exists() else []
            # Nothing but the updates since the last whole checkpoint is made again, and none is
            # left out.
            assert made == list(range(reached + 1, reached + 1 + len(made)))
            assert all(
                verify_folder(path) == [] for path in run.glob("checkpoint-*")
            )  # never a broken one
            assert bool(checkpoints) <= (latest_checkpoint(run) is not None)
            if ended:
                break
        finished += 1
        assert_same_end(whole, run)
    return finished


@pytest.mark.usefixtures("server")
def test_killed_at_random_moments(tmp_path):
    """The next start goes on from a complete checkpoint, and the end is that of an undisturbed training."""
    assert kill_again_and_again(tmp_path, trials=6, seed=0) >= 1


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_killed_at_200_random_moments(tmp_path):
    kill_again_and_again(tmp_path, trials=200, seed=1)


def test_a_training_that_was_killed_before_it_pruned_prunes_when_it_goes_on(tmp_path):
    """Even behind its last update, where no checkpoint is written any more."""
    flags = {"save_steps": 2, "max_steps": 6}
    train_in(tmp_path, save_total_limit=9, **flags)
    train_in(tmp_path, save_total_limit=1, resume="auto", **flags)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


# --- background and foreground
# ----------------------------------------------------------------------------------


def test_background_and_foreground_write_the_same(tmp_path):
    """The training goes on while a checkpoint is written: it still holds the bits of its own update."""
    for name, flag in (("one", True), ("two", False)):
        train_in(
            tmp_path / name, background_save=flag, save_steps=1, save_total_limit=100, max_steps=5
        )
    for step in range(1, 6):
        assert_same_tensors(
            tmp_path / f"one/checkpoint-{step}", tmp_path / f"two/checkpoint-{step}"
        )


def test_an_error_of_the_thread_ends_the_training(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(resume, "save_state", refuse)
    with pytest.raises(PermissionError, match="denied"):
        train_in(tmp_path, save_steps=1, max_steps=3)
    assert latest_checkpoint(tmp_path) is None


def test_the_best_and_every_nth_stay_and_average(tmp_path):
    train_in(
        tmp_path,
        save_steps=2,
        eval_steps=2,
        save_total_limit=1,
        keep_best=2,
        keep_every=4,
        max_steps=9,
    )
    scores = {row["step"]: row["dev_f1"] for row in read_history(tmp_path) if "dev_f1" in row}
    best = sorted(scores, key=lambda step: (scores[step], step))[-2:]
    left = {int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")}
    assert left == {4, 8, 9, *best}
    folders = [tmp_path / f"checkpoint-{step}" for step in best]
    averaged = NerCrfForTokenClassification.from_pretrained(
        average_checkpoints(folders, tmp_path / "averaged")
    )
    one, two = [
        NerCrfForTokenClassification.from_pretrained(folder).state_dict() for folder in folders
    ]
    for name, tensor in averaged.state_dict().items():
        expected = (one[name].double() + two[name].double()) / 2
        assert torch.equal(tensor, expected.to(tensor.dtype)), name


# --- a full disk
# ------------------------------------------------------------------------------------------------

CALLS = ["write_text", "mkdir", "rename", "chmod", "open"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_full_disk(tmp_path, monkeypatch, caplog, call, policy):
    """The disk is full while checkpoint 4 is written, at each kind of file operation: 2 stands."""
    original = getattr(Path, call)

    def full(self, *arguments, **options):
        if "checkpoint-4." in str(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, call, full)
    flags = {
        "save_steps": 2,
        "max_steps": 6,
        "on_disk_full": policy,
        "background_save": call != "mkdir",
    }
    if policy == "stop":
        with pytest.raises(DiskFullError, match=r"disk is full.*checkpoint-4"):
            train_in(tmp_path, **flags)
        assert latest_checkpoint(tmp_path).name == "checkpoint-2"
    else:
        assert train_in(tmp_path, **flags)[0] == 6
        assert {path.name for path in tmp_path.glob("checkpoint-*")} == {
            "checkpoint-2",
            "checkpoint-6",
        }
        assert "the training goes on without it" in caplog.text
    assert not list(tmp_path.glob(".checkpoint-4*"))
    assert verify_folder(tmp_path / "checkpoint-2") == []


class FillDisk(TrainingCallback):
    """The disk has no room left from one update on, and has it again from another one on."""

    def __init__(self, folder, full, free):
        self.path, self.full, self.free = folder / "filler", full, free

    def on_update_begin(self, run, update):
        step = run.progress.step + 1
        if step == self.full:
            with pytest.raises(OSError, match="No space left"):
                self.path.write_bytes(bytes(1 << 21))
        elif step == self.free:
            self.path.unlink()


FULL = {
    "logging_steps": 1,
    "eval_steps": 1,
    "save_steps": 8,
    "max_steps": 8,
    "learning_curve": False,
}


def test_the_log_outlives_a_full_disk(mount_disk, tmp_path, caplog):
    """Lines that find no room wait for it: the log is that of an undisturbed training, none twice,
    none torn.
    """
    train_in(tmp_path / "free", **FULL)
    disk = mount_disk("1m")
    train_in(
        disk, on_disk_full="continue", callbacks=[FillDisk(disk, 1, 6)], **FULL | {"eval_steps": 0}
    )
    wanted = [row for row in read_history(tmp_path / "free") if "loss" in row]
    assert read_history(disk) == wanted
    assert caplog.text.count("history.jsonl: the disk is full; the training goes on") == 1
    assert "lines are missing" not in caplog.text


def test_a_line_is_appended_whole_or_not_at_all(mount_disk):
    """There is room for a page of memory: the half that was taken is taken back."""
    disk = mount_disk("64k")
    append_text(disk / "log", "first\n")
    (disk / "filler").write_bytes(bytes(48 * 1024))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            append_text(disk / "log", "x" * 100_000)
        assert (disk / "log").read_text() == "first\n"
    append_text(disk / "log", "second\n")
    assert (disk / "log").read_text() == "first\nsecond\n"


def test_what_the_disk_never_took_is_said(mount_disk, caplog):
    disk = mount_disk("1m")
    flags = FULL | {"eval_steps": 0, "save_steps": 0}
    assert (
        train_in(disk, on_disk_full="continue", callbacks=[FillDisk(disk, 1, 0)], **flags)[0] == 8
    )
    lines = caplog.text.partition("these lines are missing:\n")[2].splitlines()
    missing = [json.loads(line)["step"] for line in lines if line.startswith("{")]
    assert missing == [1, 2, 3, 4, 5, 6, 7, 8]
    assert read_history(disk) == []


def test_a_full_disk_ends_the_training_where_it_is_to(mount_disk):
    disk = mount_disk("1m")
    with pytest.raises(OSError, match="No space left"):
        train_in(disk, callbacks=[FillDisk(disk, 1, 0)], **FULL | {"eval_steps": 0})


# --- signals
# ----------------------------------------------------------------------------------------------------


class SignalAt(TrainingCallback):
    """A signal arrives when so many updates are done."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_update_end(self, run, update):
        if run.progress.step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_every_signal_leaves_a_checkpoint(tmp_path, number):
    with pytest.raises(TrainingInterrupted, match="update 3"):
        train_in(tmp_path, callbacks=[SignalAt(3, number)])
    assert latest_checkpoint(tmp_path).name == "checkpoint-3"


def test_a_signal_in_the_last_update_is_reported(tmp_path):
    with pytest.raises(TrainingInterrupted, match="update 4"):
        train_in(tmp_path, max_steps=4, callbacks=[SignalAt(4, signal.SIGTERM)])
    assert train_in(tmp_path, max_steps=4, resume="auto")[0] == 4


def test_a_signal_during_an_evaluation(tmp_path, monkeypatch):
    """The evaluation is broken off after the batch at hand and made again after the resume; the end
    is the same.
    """
    flags = {"eval_steps": 3, "save_steps": 3, "per_gpu_eval_batch_size": 2, "max_steps": 7}
    train_in(tmp_path / "whole", **flags)
    batches, original = [], NerCrfForTokenClassification.decode

    def decode(self, *arguments, **options):
        batches.append(1)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(NerCrfForTokenClassification, "decode", decode)
        with pytest.raises(TrainingInterrupted, match="update 3"):
            train_in(tmp_path / "parts", **flags)
    assert len(batches) == 2  # of ten
    assert load_state(latest_checkpoint(tmp_path / "parts"))["progress"]["evaluation_due"]
    train_in(tmp_path / "parts", resume="auto", **flags)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


# --- numbers that are none
# --------------------------------------------------------------------------------------


class Poison(TrainingCallback):
    """The loss of one update is not a number."""

    def __init__(self, step, value):
        self.step, self.value, self.seen = step, value, None

    def on_update_begin(self, run, update):
        if run.progress.step + 1 == self.step:
            self.seen = update.tolist()

    def on_loss(self, run, batch, output, loss):
        return loss * self.value if run.progress.step + 1 == self.step else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_found_at_its_update(tmp_path, value):
    """It is looked at two updates later, before the evaluation; the message names update,
    sentences, checkpoint.
    """
    poison = Poison(5, value)
    with pytest.raises(FloatingPointError) as caught:
        train_in(tmp_path, logging_steps=8, save_steps=4, callbacks=[poison])
    message = str(caught.value)
    assert "gradient of update 5 is not finite" in message
    assert f"training data: {', '.join(map(str, poison.seen))};" in message
    assert f"last good checkpoint: {tmp_path / 'checkpoint-4'}" in message


def test_a_poisoned_update_is_skipped_when_asked(tmp_path):
    """The weights of a skipped update are those before it; it is counted in the log and in the progress."""
    flags = {
        "logging_steps": 1,
        "save_steps": 1,
        "save_total_limit": 9,
        "max_steps": 5,
        "average_decay": 0.0,
    }
    steps, loss = train_in(
        tmp_path, on_nonfinite="skip", callbacks=[Poison(3, float("nan"))], **flags
    )
    assert steps == 5
    assert loss == loss
    for before, after, same in ((2, 3, True), (3, 4, False)):
        one = (tmp_path / f"checkpoint-{before}/model.safetensors").read_bytes()
        two = (tmp_path / f"checkpoint-{after}/model.safetensors").read_bytes()
        assert (one == two) == same
    assert load_state(tmp_path / "checkpoint-5")["progress"]["nonfinite"] == 1
    assert [row.get("nonfinite") for row in read_history(tmp_path) if "loss" in row] == [
        None,
        None,
        1,
        1,
    ]


# --- planted pickles
# --------------------------------------------------------------------------------------------

PLANTED = [
    "pytorch_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "state.pkl",
]


def test_a_planted_pickle_never_runs(tmp_path):
    """Beside what the manifest lists it is not opened; in its place it is refused; nothing ever runs."""
    train_in(tmp_path / "run", max_steps=2)
    marker, folder = tmp_path / "marker", tmp_path / "run/checkpoint-2"
    for name in PLANTED:
        (folder / name).write_bytes(pickle.dumps(Malicious(marker)))
    assert train_in(tmp_path / "run", max_steps=2, resume=str(folder))[0] == 2
    for name in ("model.safetensors", "state.safetensors"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(Malicious(marker)))
        with pytest.raises(ValueError, match=f"{name}: has"):
            train_in(tmp_path / "run", max_steps=2, resume=str(folder))
        described = files._describe_file(folder / name)  # the manifest made to fit
        manifest = folder / "manifest.json"
        old = manifest.read_text()
        fitting = json.loads(old)["files"] | {name: described}
        manifest.write_text(files._manifest_text(fitting))
        with pytest.raises(Exception, match=r"(?i)header|could not read"):
            train_in(tmp_path / "run", max_steps=2, resume=str(folder))
        manifest.write_text(old)
        (folder / name).write_bytes(good)
    assert not marker.exists()
    assert threading.active_count() < 20  # every writer's thread has ended
