"""What all tests share: one thread a process, no network, and where the real data sets are."""

import os
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
