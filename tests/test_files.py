"""Files and folders that are whole or not there, and digests that are believed only as long as the
file stays as it is.
"""

import errno
import gzip
import inspect
import json
import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nercrf import files
from nercrf.files import (
    DigestMemory,
    TakenError,
    claim_file,
    claimed_files,
    complete_file,
    discard_folder,
    restore_folders,
    sha256_of,
    verify_folder,
    write_bytes,
    write_folder,
    write_lines,
)

OLD, NEW = b"old" * 1000, b"new" * 2000


# --- one file
# --------------------------------------------------------------------------------------------------


def killed_at(number, path):
    """Write a file and be killed at one of the calls to the system."""
    calls = []

    def counted(function):
        def call(*arguments, **options):
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append(function.__name__)
            return function(*arguments, **options)

        return call

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    write_bytes(path, NEW)
    os._exit(len(calls))


def test_a_writer_killed_at_each_call_leaves_a_whole_file(tmp_path):
    """The old content before the rename, the new one after it, never a part of either."""
    path = tmp_path / "notes.txt"
    found = []
    for number in range(10):
        path.write_bytes(OLD)
        child = multiprocessing.get_context("fork").Process(target=killed_at, args=(number, path))
        child.start()
        child.join(30)
        found.append(path.read_bytes())
        if child.exitcode >= 0:  # it came through
            break
    assert child.exitcode == number > 1
    assert set(found) == {OLD, NEW}
    assert found == sorted(found, key=[OLD, NEW].index)
    assert found[-1] == NEW


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=2000))
def test_bytes_come_back(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    assert write_bytes(folder / "plain", data).read_bytes() == data
    packed = write_bytes(folder / "packed.gz", data)
    assert gzip.decompress(packed.read_bytes()) == data
    first = packed.read_bytes()
    assert write_bytes(folder / "again.gz", data).read_bytes() == first


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_half_of_a_surrogate_pair_is_named_and_nothing_is_written(name, tmp_path):
    path = write_lines(tmp_path / name, ["the old line"])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{name}: expected Unicode text, got half of a surrogate"):
        write_lines(path, ["fine", "half \ud800"])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [name]


def test_two_writers_of_one_process_do_not_mix(tmp_path):
    """Of two that write one after the other the last one counts, as with any file."""
    for content in (OLD, NEW):
        with complete_file(tmp_path / "a") as file:
            file.write(content)
    assert (tmp_path / "a").read_bytes() == NEW


# --- digests
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch):
    """Files count as being at rest from the moment when they are written."""
    monkeypatch.setattr(files, "AT_REST", -1)


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path, monkeypatch, at_once):
    path, original = write_bytes(tmp_path / "a", OLD), files.sha256_of

    def read_and_change(*paths):
        digest = original(*paths)
        write_bytes(path, NEW)
        return digest

    memory = DigestMemory([tmp_path / "cache"])
    monkeypatch.setattr(files, "sha256_of", read_and_change)
    memory.sha256_of(path)
    assert memory.known == {}
    monkeypatch.setattr(files, "sha256_of", original)
    assert memory.sha256_of(path) == sha256_of(path)


def test_a_memory_keeps_the_last_hundred_on_the_disk(tmp_path, at_once):
    memory = DigestMemory([tmp_path])
    for number in range(103):
        memory.sha256_of(write_bytes(tmp_path / f"{number}.txt", str(number).encode()))
    kept = json.loads((tmp_path / files.DIGESTS).read_text())
    assert len(kept) == 100
    assert sha256_of(tmp_path / "102.txt") in kept.values()
    assert sha256_of(tmp_path / "0.txt") not in kept.values()
    assert len(memory.known) == 103


def test_a_digest_outlives_the_process_and_is_not_read_again(tmp_path, monkeypatch, at_once):
    path = write_bytes(tmp_path / "a", OLD)
    expected = DigestMemory([tmp_path / "cache"]).sha256_of(path)

    def refuse(*paths):
        raise AssertionError("the file was read again")

    monkeypatch.setattr(files, "sha256_of", refuse)
    assert DigestMemory([tmp_path / "none", tmp_path / "cache"]).sha256_of(path) == expected
    with pytest.raises(AssertionError):
        DigestMemory([tmp_path / "none"]).sha256_of(path)


# --- one folder
# --------------------------------------------------------------------------------------------------


def test_only_what_carries_our_manifest_comes_back(tmp_path):
    """With what a user put into it; a folder without a manifest is none of ours, whatever its name
    is, and stays where it is.
    """
    with write_folder(tmp_path / "model.v2") as folder:
        (folder / "labels.txt").write_text("O\n")
    (tmp_path / "model.v2" / "notes.txt").write_text("mine")
    (tmp_path / "model.v2").rename(tmp_path / ".model.v2.0a1b2c3d.old")
    foreign = tmp_path / ".thesis.0a1b2c3d.old"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    assert restore_folders(tmp_path, remove_unfinished=True) == [tmp_path / "model.v2"]
    assert (tmp_path / "model.v2" / "notes.txt").read_text() == "mine"
    assert (foreign / "notes.txt").read_text() == "mine"


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), write_folder(tmp_path / "checkpoint-1"):
        raise PermissionError(errno.EACCES, "denied")
    assert not list(tmp_path.iterdir())


def test_hidden_folders_of_others_are_left_alone(tmp_path):
    """Only names that a writer here makes are put back or removed."""
    for name in (".config.old", ".config.backup.old", ".nvim.tmp", ".cache.12345678.old.d"):
        (tmp_path / name).mkdir()
    with write_folder(tmp_path / "model") as folder:
        (folder / "labels.txt").write_text("O\n")
    (tmp_path / "model").rename(tmp_path / ".model.0123abcd.old")
    (tmp_path / ".checkpoint-3.0123abcd.tmp").mkdir()
    assert [path.name for path in restore_folders(tmp_path, remove_unfinished=True)] == ["model"]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [
        ".cache.12345678.old.d",
        ".config.backup.old",
        ".config.old",
        ".nvim.tmp",
        "model",
    ]


def test_the_manifest_covers_folders_within(tmp_path):
    with write_folder(tmp_path / "model") as folder:
        (folder / "tokenizer" / "deep").mkdir(parents=True)
        (folder / "tokenizer" / "deep" / "vocab.txt").write_text("a\n")
    assert verify_folder(tmp_path / "model") == []
    (tmp_path / "model" / "tokenizer" / "deep" / "vocab.txt").write_text("b\n")
    (tmp_path / "model" / "notes.txt").write_text("of somebody else")
    assert verify_folder(tmp_path / "model", DigestMemory().sha256_of) == [
        "tokenizer/deep/vocab.txt: content has changed (its SHA-256 differs)"
    ]


# --- nothing of others
# --------------------------------------------------------------------------------------------------

REMOVERS = (
    r"\b(rmtree|unlink|rmdir|removedirs|rename|renames)\(|\bos\.(remove|replace)\(|shutil\.move"
)


def test_one_module_removes_and_renames_and_one_function_of_it_removes():
    """What is removed is removed by `discard`, which takes no link and no folder that holds
    something.
    """
    found = {}
    for path in sorted(Path(files.__file__).parent.rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if re.search(REMOVERS, line.partition("#")[0]):
                found.setdefault(path.name, []).append((number, line.strip()))
    assert list(found) == ["files.py"], found
    lines, start = inspect.getsourcelines(files.discard)
    removing = [
        n for n, line in found["files.py"] if "rename" not in line and "replace" not in line
    ]
    assert len(removing) == 2
    assert all(start <= number < start + len(lines) for number in removing)


def snapshot(folder):
    """Everything below a folder: kind, inode, content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = os.lstat(path)
        content = path.read_bytes() if stat.S_ISREG(state.st_mode) else b""
        target = os.readlink(path) if path.is_symlink() else ""
        found[str(path.relative_to(folder))] = (state.st_mode, state.st_ino, content, target)
    return found


def plant(place, kind, outside):
    """Something of others under a name."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        place.write_text("mine")
    elif kind == "read-only file":
        place.write_text("mine")
        place.chmod(0o444)
    elif kind == "folder":
        place.mkdir()
        (place / "thesis.tex").write_text("mine")
    elif kind == "other manifest":
        place.mkdir()
        (place / "manifest.json").write_text('{"files": {"thesis.tex": {}}, "format": "theirs"}')
        (place / "thesis.tex").write_text("mine")
    elif kind == "link to a file":
        place.symlink_to(outside / "thesis.tex")
    elif kind == "link to a folder of ours":
        place.symlink_to(outside / "ours")
    elif kind == "dangling link":
        place.symlink_to(outside / "nothing")
    elif kind == "pipe":
        os.mkfifo(place)


KINDS = ["file", "read-only file", "folder", "other manifest", "link to a file"]
KINDS += ["link to a folder of ours", "dangling link", "pipe"]


@pytest.fixture
def outside(tmp_path):
    """A folder elsewhere that links lead to; it must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with write_folder(folder / "ours") as temporary:
        (temporary / "labels.txt").write_text("O\n")
    before = snapshot(folder)
    yield folder
    assert snapshot(folder) == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_ours_is_neither_replaced_nor_removed_nor_renamed(kind, tmp_path, outside):
    run = tmp_path / "run"
    plant(run / "model", kind, outside)
    plant(run / ".model.0123abcd.old", kind, outside)
    plant(run / ".checkpoint-2.0123abcd.tmp", kind, outside)
    before = snapshot(run)
    with pytest.raises(TakenError, match="move it away"), write_folder(run / "model") as folder:
        (folder / "labels.txt").write_text("O\n")
    assert discard_folder(run / "model") == [run / "model"]
    assert restore_folders(run, remove_unfinished=True) == []
    with pytest.raises(TakenError):
        claim_file(run / "model")
    assert snapshot(run) == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_others_put_into_a_folder_of_ours_stays_there(kind, tmp_path, outside):
    """Through a replacement, and where the folder is to go."""
    model = tmp_path / "run" / "model"
    for text in ("old", "new"):
        with write_folder(model) as folder:
            (folder / "labels.txt").write_text(text)
            (folder / "tokenizer").mkdir()
            (folder / "tokenizer" / "vocab.txt").write_text(text)
        if text == "old":
            plant(model / "thesis", kind, outside)
            plant(model / "tokenizer" / "deep" / "thesis", kind, outside)
            planted = {k: v for k, v in snapshot(model).items() if "thesis" in k}
    found = snapshot(model)
    assert {name: found[name] for name in planted} == planted
    assert verify_folder(model) == []
    assert (model / "labels.txt").read_text() == "new"
    assert os.listdir(model.parent) == ["model"]
    assert discard_folder(model) == [model / "thesis", model / "tokenizer" / "deep"]
    assert snapshot(model) == found


@pytest.mark.parametrize("kind", KINDS[2:])
def test_in_the_place_of_a_listed_file_there_may_be_something_of_others(kind, tmp_path, outside):
    model = tmp_path / "run" / "model"
    with write_folder(model) as folder:
        (folder / "labels.txt").write_text("O\n")
    (model / "labels.txt").unlink()
    plant(model / "labels.txt", kind, outside)
    before = snapshot(model)
    assert discard_folder(model)
    with pytest.raises(TakenError, match=r"labels.txt"), write_folder(model) as folder:
        (folder / "labels.txt").write_text("X\n")
    assert snapshot(model) == before
    assert os.listdir(model.parent) == ["model"]


def test_a_folder_whose_place_leads_elsewhere_is_not_followed(tmp_path, outside):
    """The manifest lists tokenizer/vocab.txt, and tokenizer is a link now."""
    model = tmp_path / "run" / "model"
    with write_folder(model) as folder:
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "thesis.tex").write_text("ours")
    (model / "tokenizer" / "thesis.tex").unlink()
    (model / "tokenizer").rmdir()
    (model / "tokenizer").symlink_to(outside)
    assert discard_folder(model) == [model / "tokenizer"]


def test_a_forged_manifest_removes_nothing_outside(tmp_path, outside):
    model = tmp_path / "run" / "model"
    with write_folder(model) as folder:
        (folder / "labels.txt").write_text("O\n")
    content = json.loads((model / "manifest.json").read_text())
    for name in ("../../outside/thesis.tex", str(outside / "thesis.tex"), "."):
        content["files"][name] = {"sha256": "", "size": 4}
    (model / "manifest.json").write_text(json.dumps(content))
    assert discard_folder(model) == []
    assert os.listdir(tmp_path / "run") == []


def test_what_moves_over_comes_back_after_a_kill(tmp_path):
    """Killed between the renames of a replacement, or before the thesis has its place again."""
    model, aside = tmp_path / "model", tmp_path / ".model.0123abcd.old"
    for text in ("old", "new"):
        with write_folder(model) as folder:
            (folder / "labels.txt").write_text(text)
        if text == "old":
            (model / "thesis.tex").write_text("mine")
            model.rename(aside)
            assert restore_folders(tmp_path) == [model]
            model.rename(aside)
            (tmp_path / "new").mkdir()
    # the new one is written, the old one still stands aside
    assert (model / "thesis.tex").read_text() == "mine"
    assert (model / "labels.txt").read_text() == "new"
    assert not aside.exists()


def test_names_of_single_files_are_noted_by_many_at_once(tmp_path):
    """Every process appends whole lines."""
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(
            target=lambda first=first: [
                claim_file(tmp_path / f"{first}-{number}.txt") for number in range(50)
            ]
        )
        for first in range(4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert len(claimed_files(tmp_path)) == 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_somebody_else_is_not_written_to(kind, tmp_path, outside):
    run = tmp_path / "run"
    plant(run / ".nercrf", kind, outside)
    before = snapshot(run)
    with pytest.raises(TakenError, match=r"\.nercrf was not written by this program"):
        claim_file(run / "history.jsonl")
    assert snapshot(run) == before


# --- written through
# --------------------------------------------------------------------------------------------------


def test_a_link_is_written_through_and_the_mode_stays(tmp_path):
    target, link, chain = (tmp_path / name for name in ("a.txt", "link", "chain"))
    target.write_bytes(OLD)
    target.chmod(0o604)
    link.symlink_to("a.txt")
    chain.symlink_to(link)
    write_bytes(chain, NEW)
    assert (link.is_symlink(), chain.is_symlink(), target.read_bytes()) == (True, True, NEW)
    assert stat.S_IMODE(target.stat().st_mode) == 0o604
    dangling = tmp_path / "dangling"
    dangling.symlink_to("new.txt")
    write_bytes(dangling, NEW)
    assert (dangling.is_symlink(), (tmp_path / "new.txt").read_bytes()) == (True, NEW)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_new_file_has_the_mode_that_the_mask_leaves(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "a", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def write_to(path):
    """A process that writes to a path, with two lines on its standard output before."""
    code = (
        "import sys; from nercrf.files import write_lines\n"
        "print('before', flush=True)\n"
        "write_lines(sys.argv[1], ['one', 'two'])\n"
        "print('after')"
    )
    return [sys.executable, "-c", code, str(path)]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("into", ["pipe", "file"])
def test_standard_output_by_its_path(name, into, tmp_path):
    if name == "link":
        name = tmp_path / "link"
        name.symlink_to("/dev/stdout")
    out = tmp_path / "out"
    if into == "pipe":
        found = subprocess.run(write_to(name), stdout=subprocess.PIPE, check=True).stdout
    else:
        out.write_text("kept\n")
        with open(out, "a") as file:
            subprocess.run(write_to(name), stdout=file, check=True)
        found = out.read_bytes().removeprefix(b"kept\n")
    assert found == b"before\none\ntwo\nafter\n"


def test_a_device_a_pipe_and_a_process_substitution(tmp_path):
    before = os.stat("/dev/null")
    write_bytes("/dev/null", NEW)
    assert os.stat("/dev/null").st_ino == before.st_ino
    with pytest.raises(KeyError), complete_file("/dev/null"):
        raise KeyError
    code = "import sys; from nercrf.files import write_lines; write_lines(sys.argv[1], ['b', 'a'])"
    command = f'{sys.executable} -c "{code}" >(sort > {tmp_path}/out); sleep 0.3'
    subprocess.run(["bash", "-c", command], check=True)
    assert (tmp_path / "out").read_text() == "a\nb\n"


def test_a_pipe_gets_nothing_of_what_fails(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(ValueError, match="surrogate"):
        write_lines(pipe, ["fine", "half \ud800"])
    assert os.read(reader, 99) == b""
    os.close(reader)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path, monkeypatch):
    """As root every file may be written, so the system's answer is given here."""
    path = tmp_path / "a"
    path.write_bytes(OLD)
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(PermissionError, match="may not be written"):
        write_bytes(path, NEW)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["a"]


def test_a_planted_temporary_name_is_not_followed(tmp_path, monkeypatch):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("mine")
    monkeypatch.setattr(files.uuid, "uuid4", lambda: SimpleNamespace(hex="0123abcd" * 4))
    planted = tmp_path / f".a.{os.getpid()}.0123abcd.tmp"
    planted.symlink_to(thesis)
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "a", NEW)
    assert (thesis.read_text(), planted.is_symlink()) == ("mine", True)
