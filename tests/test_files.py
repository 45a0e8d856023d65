"""Files and folders that are whole or not there, and digests that are believed only as long as the
file stays as it is.
"""

import errno
import gzip
import json
import multiprocessing
import os
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nercrf import files
from nercrf.files import (
    DigestMemory,
    complete_file,
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


def test_restoring_keeps_a_folder_that_was_not_ours(tmp_path):
    """A user's folder without manifest that was stepped aside comes back, whatever it holds."""
    aside = tmp_path / ".model.v2.0a1b2c3d.old"
    aside.mkdir()
    (aside / "notes.txt").write_text("mine")
    assert restore_folders(tmp_path, remove_unfinished=True) == [tmp_path / "model.v2"]
    assert (tmp_path / "model.v2" / "notes.txt").read_text() == "mine"


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), write_folder(tmp_path / "checkpoint-1"):
        raise PermissionError(errno.EACCES, "denied")
    assert not list(tmp_path.iterdir())


def test_hidden_folders_of_others_are_left_alone(tmp_path):
    """Only names that a writer here makes are put back or removed."""
    for name in (".config.old", ".config.backup.old", ".nvim.tmp", ".cache.12345678.old.d"):
        (tmp_path / name).mkdir()
    (tmp_path / ".model.0123abcd.old").mkdir()
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
