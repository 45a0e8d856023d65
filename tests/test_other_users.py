"""What belongs to another user is passed over with a line: run as nobody, since root may all."""

import logging
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from nercrf.data.corpus import find_sources
from nercrf.features.cache_files import CacheFiles

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be another user"
)


@pytest.fixture
def data():
    """A folder that others may read, with a part that they may not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "train.txt").write_text("Ada B-PER\n")
    for name in ("dev", "theirs", ".nercrf_cache"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text("Ada B-PER\n")
        (folder / name).chmod(0o700)
    yield folder
    shutil.rmtree(folder)


def as_nobody(function, *arguments):
    """What a function returns that another user calls, and what is logged."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def call():
        records = []
        handler = logging.Handler()
        handler.emit = lambda record: records.append(record.getMessage())
        logging.getLogger("nercrf").addHandler(handler)
        os.setgid(65534)
        os.setuid(65534)
        try:
            theirs.send((function(*arguments), records))
        except Exception as error:
            theirs.send((repr(error), records))

    child = context.Process(target=call)
    child.start()
    found = ours.recv()
    child.join()
    return found


def test_a_folder_that_may_not_be_read_is_passed_over(data):
    found, lines = as_nobody(find_sources, data)
    assert found == {"train": [data / "train.txt"]}
    assert any("theirs may not be read and is passed over" in line for line in lines)


def find_in(folders):
    """What a cache gives that has to build; the folders of its files."""
    built = {"sentences": 1, "key": "k" * 20}
    cache = CacheFiles(folders)
    return cache.find("train", "k" * 20, None, lambda paths: ("built", built))


def test_the_cache_of_another_user_is_passed_over(data):
    found, lines = as_nobody(find_in, [data / ".nercrf_cache"])
    assert found[0] == "built"
    assert any(".nercrf_cache may not be read" in line for line in lines)
