"""What all tests share: one thread a process, no network, and where the real data sets are."""

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_folder():
    """The folder with the real data sets; a test that asks for it is skipped where it is absent."""
    folder = Path(os.environ.get("NERCRF_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}: set NERCRF_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tagger with random weights, for the tests of one file."""
    from training import TOKENIZER, make_model

    folder = tmp_path_factory.mktemp("model")
    make_model(0.0).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture
def dev(tmp_path):
    """A file of labelled sentences, for the tests of one verb."""
    from training import CORPUS

    from nercrf.data.formats import write_examples

    write_examples(CORPUS.dev, tmp_path / "dev.jsonl", "jsonl")
    return tmp_path / "dev.jsonl"


@pytest.fixture(scope="module")
def page():
    """A page in Chromium, for the tests of one file; they are skipped where there is none."""
    from browser import CHROMIUM, MISSING, open_browser

    pytest.importorskip("websocket", reason=MISSING)
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with open_browser() as found:
        yield found


@pytest.fixture
def mount_disk(tmp_path):
    """Makes small file systems in memory; a test that asks for one is skipped where the machine
    lets us mount none.
    """
    with ExitStack() as stack:

        def mount(size: str) -> Path:
            folder = tmp_path / f"disk-{size}"
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
            try:
                mounted = subprocess.run(command, capture_output=True).returncode == 0
            except FileNotFoundError:
                mounted = False
            if not mounted:
                pytest.skip("cannot mount a small file system here (needs root)")
            stack.callback(subprocess.run, ["umount", folder], check=True)
            return folder

        yield mount
