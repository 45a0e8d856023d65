"""Checkpoints under fire: killed writers, changed bytes, a full disk, planted pickles; and the
exact round trip.
"""

import errno
import logging
import math
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nercrf import files
from nercrf.files import DiskFullError, restore_folders, verify_folder, write_folder
from nercrf.training import checkpoint
from nercrf.training.checkpoint import (
    BackgroundWriter,
    CheckpointError,
    average_checkpoints,
    choose_removals,
    latest_checkpoint,
    load_state,
    prune_checkpoints,
    random_state,
    read_scores,
    save_state,
    set_random_state,
    take_snapshot,
    write_evaluation,
)


def write(folder, step, name="checkpoint-{}"):
    """A checkpoint of three files whose content tells its step."""
    path = Path(folder, name.format(step))
    with write_folder(path) as temporary:
        save_state(temporary, {"step": step, "weights": torch.full((500,), float(step))})
        (temporary / "tokenizer").mkdir()
        (temporary / "tokenizer" / "vocab.txt").write_text(f"{step}\n" * 100)
    return path


def content_step(path):
    """The step that every file of a checkpoint agrees on."""
    state = load_state(path)
    steps = {
        state["step"],
        *state["weights"].tolist(),
        *map(int, (path / "tokenizer/vocab.txt").read_text().split()),
    }
    assert len(steps) == 1
    return steps.pop()


# --- the state
# --------------------------------------------------------------------------------------------------


def same_bits(one, two):
    """NaN and minus zero included."""
    return torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8))


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert same_bits(actual, expected)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for one, two in zip(actual, expected, strict=True):
            assert type(one) is type(two)
            assert_same(actual[one], expected[two])
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, two in zip(actual, expected, strict=True):
            assert_same(one, two)
    elif isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(actual)
    else:
        assert repr(actual) == repr(expected)  # tells minus zero from zero


FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DTYPES = [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool]
tensors = st.builds(
    lambda shape, dtype, seed: torch.randint(
        0, 2, shape, generator=torch.Generator().manual_seed(seed)
    ).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), tensors
)
pairs = st.tuples(st.integers(), st.text(max_size=2))
keys = st.one_of(st.text(max_size=3), st.integers(0, 9), st.just("$type"), pairs)
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(states)
def test_round_trip_is_exact(state):
    with tempfile.TemporaryDirectory() as folder:
        save_state(folder, state)
        assert_same(load_state(folder), state)


@pytest.mark.parametrize("dtype", FLOATS)
def test_optimizer_state_goes_on_bit_for_bit(tmp_path, dtype):
    """Stop after 3 steps, load, take 3 more: the same bits as 6 steps."""

    def make():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).to(dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)
        return (
            model,
            optimizer,
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1)),
        )

    def advance(model, optimizer, schedule, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(1, 3, dtype=dtype)).square().sum().backward()
            optimizer.step()
            schedule.step()

    undisturbed, stopped, resumed = make(), make(), make()
    advance(*undisturbed, 6)
    advance(*stopped, 3)
    save_state(tmp_path, [each.state_dict() for each in stopped])
    loaded = load_state(tmp_path)
    assert_same(loaded[1], stopped[1].state_dict())
    for part, state in zip(resumed, loaded, strict=True):
        part.load_state_dict(state)
    advance(*resumed, 3)
    for one, two in zip(undisturbed[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(one, two)


def test_documented_changes_of_the_round_trip(tmp_path):
    """Subclasses come back plain; shared and strided memory comes back as separate tensors."""
    base = torch.arange(12.0).view(3, 4)
    shared = torch.nn.Parameter(base)
    save_state(
        tmp_path, OrderedDict(a=shared, b=shared, c=base[1:, ::2], d=base.T, e=np.float64(0.5))
    )
    state = load_state(tmp_path)
    assert type(state) is dict
    assert type(state["a"]) is torch.Tensor
    assert type(state["e"]) is float
    assert state["a"].data_ptr() != state["b"].data_ptr()
    for name, expected in [("a", base), ("b", base), ("c", base[1:, ::2]), ("d", base.T)]:
        assert torch.equal(state[name], expected)


def test_saving_does_not_alias_the_training(tmp_path):
    weight = torch.zeros(2)
    collected = {}
    checkpoint._encode({"weight": weight}, "state", collected)
    weight.add_(1)
    assert collected["state/weight"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(2), "state/a/1: expected a tensor.*numpy.ndarray"),
        ({1, 2}, "got builtins.set"),
        (b"bytes", "got builtins.bytes"),
        (Path("x"), "Path"),
        (torch.ones(2).to_sparse(), "cannot store a tensor of layout torch.sparse_coo"),
        (torch.ones(2, dtype=torch.complex128), "complex128"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path, value, message):
    with pytest.raises(CheckpointError, match=message):
        save_state(tmp_path, {"a": [0, value]})
    assert not list(tmp_path.iterdir())


def test_unreadable_states_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="one is missing"):
        load_state(tmp_path)
    save_state(tmp_path, {"weight": torch.ones(3)})
    json_file, tensor_file = tmp_path / "state.json", tmp_path / "state.safetensors"
    good = tensor_file.read_bytes()
    for bad in (b"", b"garbage", good[:-1], pickle.dumps({"weight": 1})):
        tensor_file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"state\.json.*could not read"):
            load_state(tmp_path)
    tensor_file.unlink()
    with pytest.raises(CheckpointError, match="one is missing"):
        load_state(tmp_path)
    save_file({"other": torch.ones(1)}, tensor_file)
    with pytest.raises(CheckpointError, match="state/weight"):
        load_state(tmp_path)
    header = '{"format": "nercrf state 1"'
    for text in ("[]", "{}", "{", header + "}", header + ', "state": {"$type": "tuple"}}'):
        json_file.write_text(text)
        with pytest.raises(CheckpointError, match="expected a state written by save_state"):
            load_state(tmp_path)


def test_random_states_go_on(tmp_path):
    _ = (
        torch.rand(1),
        np.random.randn(),
        random.gauss(0, 1),
    )  # leaves half a pair of normal draws behind
    save_state(tmp_path, random_state())

    def draw():
        dropout = torch.nn.functional.dropout(torch.ones(50))
        return (
            torch.randn(3).tolist(),
            dropout.tolist(),
            np.random.randn(3).tolist(),
            random.gauss(0, 1),
        )

    expected = draw()
    assert draw() != expected
    set_random_state(load_state(tmp_path))
    assert draw() == expected


def test_other_number_of_gpus_warns(caplog):
    state = random_state()
    state["cuda"] = [torch.get_rng_state()] * (torch.cuda.device_count() + 1)
    set_random_state(state)
    assert "dropout will differ" in caplog.text


# --- changed bytes
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole"), 7)


FILES = ["manifest.json", "state.json", "state.safetensors", "tokenizer/vocab.txt"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FILES), st.data())
def test_every_flipped_byte_is_found(whole, name, data):
    file = whole / name
    good = file.read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[position] ^= data.draw(st.integers(1, 255))
    try:
        file.write_bytes(bad)
        problems = verify_folder(whole)
        assert problems
        assert name == "manifest.json" or problems == [
            f"{name}: content has changed (its SHA-256 differs)"
        ]
    finally:
        file.write_bytes(good)
    assert verify_folder(whole) == []


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(FILES), st.floats(0, 0.999))
def test_every_cut_is_found(whole, name, share):
    file = whole / name
    good = file.read_bytes()
    try:
        file.write_bytes(good[: int(len(good) * share)])
        assert name in " ".join(verify_folder(whole))
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_named_and_passed_over(tmp_path, caplog, name):
    older, newer = write(tmp_path, 9), write(tmp_path, 10)
    (newer / name).unlink()
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == older
    assert "checkpoint-10 is broken" in caplog.text
    assert f"{name}: is missing" in caplog.text


def test_all_problems_are_listed(tmp_path):
    path = write(tmp_path, 1)
    size = (path / "state.json").stat().st_size
    (path / "state.json").write_text("{}")
    (path / "tokenizer/vocab.txt").unlink()
    assert verify_folder(path) == [
        f"state.json: has 2 bytes instead of {size}",
        "tokenizer/vocab.txt: is missing",
    ]


def test_odd_manifests(tmp_path):
    path = write(tmp_path, 1)
    odd = files._manifest_text({"state.json": 3})
    for text in ("", "[]", "null", '{"files": []}', '{"files": {"a": 1}}', odd):
        (path / "manifest.json").write_text(text)
        assert "manifest.json" in verify_folder(path)[0]
    outside = files._describe_file(path / "state.json")
    (path / "manifest.json").write_text(files._manifest_text({"../state.json": outside}))
    assert verify_folder(path) == ["../state.json: is missing"]


def test_other_names_are_ignored(tmp_path):
    path = write(tmp_path, 3)
    for name in (
        "checkpoint-best",
        "checkpoint-9x",
        "my-checkpoint-9",
        ".checkpoint-9.12345678.tmp",
        "checkpoint-",
    ):
        shutil.copytree(path, tmp_path / name)
    (tmp_path / "checkpoint-8").write_text("a file")
    assert latest_checkpoint(tmp_path) == path


# --- killed writers
# ---------------------------------------------------------------------------------------------


def in_child(function, *arguments):
    """Start a forked process; it has everything imported."""
    process = multiprocessing.get_context("fork").Process(
        target=function, args=arguments, daemon=True
    )
    process.start()
    return process


def write_for_ever(folder):
    """New checkpoints, one that is replaced again and again, and pruning, until the end."""
    logging.disable()
    steps = [int(path.name.rsplit("-")[-1]) for path in Path(folder).glob("checkpoint-*")]
    step = max(steps, default=0)
    while True:
        step += 1
        write(folder, step)
        write(folder, step, name="best")
        write(folder, step)  # again: an existing one is replaced
        prune_checkpoints(folder, keep_last=2)


def kill_at_random_moments(folder, trials, seed):
    moments = random.Random(seed)
    write(folder, 1)
    write(folder, 1, name="best")
    reached = reached_best = 1
    for _ in range(trials):
        process = in_child(write_for_ever, folder)
        time.sleep(moments.uniform(0.005, 0.12))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        restore_folders(folder)  # as every run does when it starts
        latest = latest_checkpoint(folder)
        step = content_step(latest)
        assert latest.name == f"checkpoint-{step}"
        best = content_step(folder / "best")
        assert step >= reached
        assert reached_best <= best <= step
        reached, reached_best = step, best
        assert verify_folder(folder / "best") == []
        for path in folder.glob("checkpoint-*"):  # not only the latest: none is ever broken
            assert verify_folder(path) == []
    return reached


def test_killed_at_random_moments(tmp_path):
    assert kill_at_random_moments(tmp_path, trials=25, seed=0) > 3
    restore_folders(tmp_path, remove_unfinished=True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_killed_at_200_random_moments(tmp_path):
    kill_at_random_moments(tmp_path, trials=200, seed=1)


FILE_EVENTS = {
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.chmod",
    "shutil.rmtree",
}


def replace_and_die(folder, name, fatal):
    """Replace a checkpoint; die right before the `fatal`-th file operation."""
    seen = 0

    def count(event, arguments):
        nonlocal seen
        if event in FILE_EVENTS:
            seen += 1
            if seen == fatal:
                os._exit(9)

    sys.addaudithook(count)
    write(folder, 2, name)
    os._exit(0)


def test_killed_before_each_file_operation(tmp_path):
    """Every moment once: before, between and after the two renames of a replacement."""
    folder, fatal, outcomes = tmp_path / "run", 0, []
    write(folder, 1, "best")
    while True:
        fatal += 1
        process = in_child(replace_and_die, folder, "best", fatal)
        process.join()
        interrupted = not (folder / "best").exists()
        restored = restore_folders(folder)
        assert [path.name for path in restored] == ["best"] * interrupted
        assert verify_folder(folder / "best") == []
        outcomes.append((content_step(folder / "best"), interrupted))
        if process.exitcode == 0:
            break
        if outcomes[-1][0] == 2:
            write(folder, 1, "best")
    assert fatal > 15
    assert (1, True) in outcomes  # killed between the renames
    steps = [step for step, _ in outcomes]
    assert steps == sorted(steps)
    assert steps[-1] == 2
    restore_folders(folder, remove_unfinished=True)
    assert os.listdir(folder) == ["best"]


def test_two_interruptions_never_put_back_the_older_one(tmp_path):
    """Killed before the old one is deleted, later killed between the renames; the older one would
    be found first.
    """
    write(tmp_path, 1, "best")
    shutil.copytree(tmp_path / "best", tmp_path / ".best.00000000.old")  # what the first kill left
    write(tmp_path, 2, "best").rename(tmp_path / ".best.ffffffff.old")  # and the second
    assert restore_folders(tmp_path) == [tmp_path / "best"]
    assert content_step(tmp_path / "best") == 2


def test_asking_changes_nothing_and_writing_puts_back(tmp_path):
    """A reader may ask while another process replaces a folder; only writers put folders back."""
    write(tmp_path, 1).rename(tmp_path / ".checkpoint-1.0a1b2c3d.old")
    assert latest_checkpoint(tmp_path) is None
    assert os.listdir(tmp_path) == [".checkpoint-1.0a1b2c3d.old"]
    write(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-1", "checkpoint-2"]


def test_ctrl_c_leaves_the_old_one(tmp_path, monkeypatch):
    path = write(tmp_path, 1, "best")
    original = Path.rename

    def interrupted(self, target):
        if self.suffix == ".tmp":
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2, "best")
    assert content_step(path) == 1
    assert os.listdir(tmp_path) == ["best"]


# --- a full disk
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(mount_disk):
    """A file system of 256 kB."""
    return mount_disk("256k")


def test_a_disk_that_is_really_full(small_disk):
    path = write(small_disk, 1)

    def too_large():
        with write_folder(small_disk / "checkpoint-2") as temporary:
            save_state(temporary, {"weights": torch.zeros(100_000)})

    def too_long():
        with write_folder(small_disk / "checkpoint-2") as temporary:
            (temporary / "vocab.txt").write_text("x" * 300_000)

    for attempt in (too_large, too_long, too_large):
        with pytest.raises(DiskFullError, match=r"disk is full.*checkpoint-2") as caught:
            attempt()
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir(small_disk) == ["checkpoint-1"]
    assert latest_checkpoint(small_disk) == path
    assert content_step(write(small_disk, 3)) == 3  # there is room again for a small one


@pytest.mark.parametrize("call", ["open", "os.mkdir", "os.rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_pretends_to_be_full(tmp_path, monkeypatch, call, number):
    path = write(tmp_path, 1)

    def full(*arguments, **options):
        raise OSError(number, os.strerror(number))

    method = {"open": "write_text", "os.mkdir": "mkdir", "os.rename": "rename"}[call]
    if method == "mkdir":
        original = Path.mkdir
        monkeypatch.setattr(
            Path, "mkdir", lambda self, *a, **k: original(self, *a, **k) if k else full()
        )
    else:
        monkeypatch.setattr(Path, method, full)
    with pytest.raises(DiskFullError, match="earlier ones stand"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert latest_checkpoint(tmp_path) == path
    assert os.listdir(tmp_path) == ["checkpoint-1"]


# --- planted pickles
# --------------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


@pytest.fixture
def watched():
    """The names of all files that are opened; an audit hook cannot be removed, so it falls silent."""
    opened, watching = [], [True]

    def note(event, arguments):
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    yield opened
    watching.clear()


def test_a_planted_pickle_is_never_opened(tmp_path, watched):
    marker = tmp_path / "marker"
    path = write(tmp_path, 1)
    names = ["state.pt", "optimizer.pt", "pytorch_model.bin", "training_args.bin", "state.pkl"]
    for name in names:
        (path / name).write_bytes(pickle.dumps(Malicious(marker)))
    watched.clear()
    assert verify_folder(path) == []
    assert latest_checkpoint(tmp_path) == path
    assert content_step(path) == 1
    assert any(name.endswith("state.json") for name in watched)
    assert not any(Path(name).name in names for name in watched)
    assert not marker.exists()


def test_a_pickle_in_the_place_of_a_state_is_refused(tmp_path):
    marker = tmp_path / "marker"
    path = write(tmp_path, 1)
    for name in ("state.json", "state.safetensors"):
        (path / name).write_bytes(pickle.dumps(Malicious(marker)))
        with pytest.raises(CheckpointError):
            load_state(path)
    assert not marker.exists()
    assert latest_checkpoint(tmp_path) is None


# --- which ones stay
# --------------------------------------------------------------------------------------------


def names(folder):
    return sorted(int(path.name.rsplit("-")[-1]) for path in Path(folder).iterdir())


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(1, 2000), max_size=7), st.data())
def test_pruning_against_its_definition(steps, data):
    broken = data.draw(st.sets(st.sampled_from(sorted(steps)))) if steps else set()
    kept = data.draw(st.sets(st.sampled_from(sorted(steps)))) if steps else set()
    keep_last = data.draw(st.integers(1, 4))
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            path = write(folder, step)
            if step in broken:
                (path / "state.json").write_text("")
        latest = latest_checkpoint(folder)
        removed = prune_checkpoints(
            folder, keep_last, keep=[f"{folder}/checkpoint-{step}" for step in kept]
        )
        last_whole = sorted(steps - broken, reverse=True)[:keep_last]
        oldest = last_whole[-1] if len(last_whole) == keep_last else 0
        stay = {step for step in steps if step >= oldest or step in kept}
        assert names(folder) == sorted(stay)
        assert len(removed) == len(steps) - len(stay)
        assert latest_checkpoint(folder) == latest


def test_pruning_needs_a_number(tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        prune_checkpoints(tmp_path, 0)
    assert prune_checkpoints(tmp_path / "nowhere", 1) == []


def test_others_may_read_what_was_written(tmp_path):
    """safetensors creates files that only their owner may read."""
    previous = os.umask(0o022)
    try:
        path = write(tmp_path, 1)
    finally:
        os.umask(previous)
    assert {oct(file.stat().st_mode & 0o777) for file in path.rglob("*") if file.is_file()} == {
        "0o644"
    }
    assert oct(path.stat().st_mode & 0o777) == "0o755"


@settings(max_examples=300, deadline=None)
@given(st.sets(st.integers(1, 60), max_size=12), st.data())
def test_the_rule_of_what_stays(steps, data):
    """The newest whole one always stays, never fewer whole ones than asked for, and the best."""
    whole = data.draw(st.sets(st.sampled_from(sorted(steps)))) if steps else set()
    score = st.one_of(st.sampled_from([0.1, 0.2, math.nan, math.inf]), st.floats())
    scores = data.draw(st.dictionaries(st.integers(1, 60), score, max_size=12))
    keep_last, keep_best = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 4))
    keep_every, higher = data.draw(st.integers(0, 5)), data.draw(st.booleans())
    removed = choose_removals(
        steps, whole.__contains__, keep_last, keep_best, scores, higher, keep_every
    )
    left = steps - set(removed)
    assert removed == sorted(set(removed), reverse=True)
    assert set(removed) <= steps
    assert set(sorted(whole)[-keep_last:]) <= left
    assert len(left & whole) >= min(keep_last, len(whole))
    if len(whole) <= keep_last:
        assert not removed or len(whole) == keep_last
    assert not keep_every or {step for step in steps if step % keep_every == 0} <= left
    rated = sorted(
        (step for step in whole & scores.keys() if not math.isnan(scores[step])),
        key=lambda step: (scores[step] if higher else -scores[step], step),
    )
    best = set(rated[len(rated) - min(keep_best, len(rated)) :])
    assert best <= left
    oldest = sorted(whole)[-keep_last] if len(whole) >= keep_last else 0
    reasons = {step for step in steps if step >= oldest or (keep_every and step % keep_every == 0)}
    assert left == reasons | best  # nothing stays without a reason


def test_best_and_every_nth_stay_on_the_disk(tmp_path):
    for step, loss in enumerate([5.0, 1.0, 4.0, 0.5, 3.0, 2.0], start=1):
        with write_folder(tmp_path / f"checkpoint-{step}") as temporary:
            write_evaluation(temporary, {"loss": loss})
    (tmp_path / "checkpoint-4" / "evaluation.json").write_text(
        '{"loss": "0.1"}'
    )  # the best, but broken
    assert read_scores(tmp_path, "loss") == {1: 5.0, 2: 1.0, 3: 4.0, 4: 0.1, 5: 3.0, 6: 2.0}
    prune_checkpoints(tmp_path, 1, keep_best=1, metric="loss", higher_is_better=False, keep_every=3)
    assert names(tmp_path) == [2, 3, 6]


def test_pruning_reads_only_what_is_new(tmp_path, monkeypatch):
    """A file at rest is hashed once; a changed one is found although its size is the same."""
    for step in (1, 2, 3):
        write(tmp_path, step)
    monkeypatch.setattr(files, "AT_REST", 0)
    time.sleep(0.05)  # longer than a tick of any clock here
    hashed, original = [], files.sha256_of
    monkeypatch.setattr(
        files, "sha256_of", lambda path: hashed.append(path.parent) or original(path)
    )
    prune_checkpoints(tmp_path, 3)
    assert len(hashed) == 9
    prune_checkpoints(tmp_path, 3)
    assert len(hashed) == 9
    file = tmp_path / "checkpoint-3" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(0, 0))  # whoever puts the time back cannot put back that of the inode
    assert prune_checkpoints(tmp_path, 2) == []  # 3 is broken, so 2 and 1 are the last two
    assert names(tmp_path) == [1, 2, 3]


def test_a_fresh_file_is_not_believed(tmp_path):
    """A change within one tick of the clock has the same times; hashes of files just written are
    not remembered.
    """
    path = write(tmp_path, 1)
    prune_checkpoints(tmp_path, 1)
    assert not any(
        files.file_state(file) in checkpoint._memory.known
        for file in path.rglob("*.*")
        if file.is_file()
    )


# --- in the background
# ------------------------------------------------------------------------------------------


def write_snapshot(path, snapshot):
    with write_folder(path) as temporary:
        save_state(temporary, snapshot)


def test_the_moment_of_the_call_is_what_is_written(tmp_path):
    """The weights change right after each call, while the writes are held up."""
    model, gate, expected = torch.nn.Linear(40, 40), threading.Event(), {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def update():
        optimizer.zero_grad()
        model(torch.ones(1, 40)).square().sum().backward()
        optimizer.step()

    def held_up(path, snapshot):
        gate.wait()
        write_snapshot(path, snapshot)

    update()
    with BackgroundWriter() as writer:
        for step in (1, 2):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(tmp_path, state, name=f"now-{step}")
            expected[step] = load_state(tmp_path, name=f"now-{step}")
            path = tmp_path / f"checkpoint-{step}"
            writer.submit(path.name, partial(held_up, path, take_snapshot(state)))
            update()
        assert latest_checkpoint(tmp_path) is None
        gate.set()
    for step in (1, 2):
        assert_same(load_state(tmp_path / f"checkpoint-{step}"), expected[step])
    assert not torch.equal(expected[1]["model"]["weight"], expected[2]["model"]["weight"])


def test_a_full_queue_waits():
    gate, order = threading.Event(), []
    with BackgroundWriter() as writer:
        writer.submit("one", gate.wait)
        writer.submit("two", lambda: order.append(2))
        threading.Timer(0.05, gate.set).start()
        writer.submit("four", lambda: order.append(4))  # waits for the first
        assert gate.is_set()
    assert order == [2, 4]


def fail(message):
    raise CheckpointError(message)


def test_errors_come_to_light_once(caplog):
    writer = BackgroundWriter()
    writer.submit("one", lambda: fail("first"))
    with pytest.raises(CheckpointError, match="first"):
        writer.wait()
    writer.submit("two", lambda: fail("second"))
    done = []
    writer.submit("three", lambda: done.append(3))
    with pytest.raises(CheckpointError, match="second"):
        writer.close()
    assert done == [3]
    assert "writing two failed: second" in caplog.text

    def fail_in_the_block():
        with BackgroundWriter() as writer:
            writer.submit("four", lambda: fail("third"))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):  # the block's error counts
        fail_in_the_block()
    assert "writing four failed: third" in caplog.text


def test_the_end_of_a_process_waits(tmp_path):
    code = f"""
import time
from nercrf.files import write_folder
from nercrf.training.checkpoint import BackgroundWriter, save_state
def write():
    time.sleep(0.3)
    with write_folder({str(tmp_path / "checkpoint-1")!r}) as folder:
        save_state(folder, 1)
BackgroundWriter().submit("checkpoint-1", write)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
    assert load_state(latest_checkpoint(tmp_path)) == 1


def save_in_background_for_ever(folder):
    logging.disable()
    latest = latest_checkpoint(folder)
    step = content_step(latest) if latest else 0
    with BackgroundWriter() as writer:
        while True:
            step += 1
            writer.submit(
                str(step), lambda step=step: (write(folder, step), prune_checkpoints(folder, 2))
            )


def test_killed_during_a_background_write(tmp_path):
    moments, reached, trial = random.Random(3), 0, 0
    while trial < 10 or (
        reached <= 2 and trial < 200
    ):  # on a slow machine many are killed before they save
        trial += 1
        process = in_child(save_in_background_for_ever, tmp_path)
        time.sleep(moments.uniform(0.02, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        latest = latest_checkpoint(tmp_path)
        step = content_step(latest) if latest else 0
        assert step >= reached
        reached = step
    assert reached > 2


# --- the mean
# ---------------------------------------------------------------------------------------------------


def write_model(path, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    tensors = {"weight": torch.randn(50, 3, generator=generator).to(dtype), "ids": torch.arange(4)}
    with write_folder(path) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text("{}")
        save_state(temporary, {"step": seed})
    (path / "training_args.bin").write_bytes(b"not ours")
    return tensors


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_mean_is_rounded_once(tmp_path, dtype):
    folders = [tmp_path / f"checkpoint-{seed}" for seed in range(1, 8)]
    by_hand = [
        write_model(folder, seed, dtype)["weight"].double().numpy()
        for seed, folder in enumerate(folders)
    ]
    out = average_checkpoints(folders, tmp_path / "mean")
    mean = load_file(out / "model.safetensors")
    assert torch.equal(mean["weight"], torch.from_numpy(np.sum(by_hand, axis=0) / 7).to(dtype))
    assert mean["ids"].tolist() == [0, 1, 2, 3]
    assert sorted(os.listdir(out)) == [
        "averaged.json",
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    assert verify_folder(out) == []


def test_what_has_no_mean_is_named(tmp_path):
    one, two = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    write_model(one, 1)
    with write_folder(two) as temporary:
        save_file({"weight": torch.zeros(50, 3)}, temporary / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint-2.*other tensors than.*ids"):
        average_checkpoints([one, two], tmp_path / "mean")
    with pytest.raises(ValueError, match="at least one"):
        average_checkpoints([], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
