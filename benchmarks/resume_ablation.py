"""What each part of the small encoder and of its training brings on the résumé set.

python benchmarks/resume_ablation.py [--data FOLDER] [--seeds 1 2] [--epochs 4] [--only NAME ...]
[--json FILE]

Trains the encoder from scratch on `resume/` (below `$NERCRF_DATA` or the given folder) once a
variant and seed, each time with one part left out or changed, and prints dev and test F1 (strict,
all gold entities) of the best epoch on dev, and the processor time of the training. One run takes
two to three minutes on one idle core; the variants are independent, so two calls with different
`--only` use two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path

import torch
from transformers import logging as transformers_logging

from nercrf.data.corpus import open_corpus
from nercrf.data.read_config import ReadConfig
from nercrf.evaluation.evaluator import evaluate
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.model.small_encoder import SmallEncoderConfig
from nercrf.model.vocabulary import build_tokenizer
from nercrf.tagging.tagger import Tagger
from nercrf.training.checkpoint import set_seed
from nercrf.training.trainer import resolve_config, train
from nercrf.training.training_config import TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
NO_DROPOUT = {"embedding_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "word_dropout_prob": 0.0}
VARIANTS = {  # name: (fields of the encoder, flags)
    "all parts": ({}, {}),
    "no bigrams": ({"bigram_buckets": 0}, {}),
    "no convolutions (3 attention layers)": ({"num_conv_layers": 0, "num_hidden_layers": 3}, {}),
    "no attention (3 convolutions)": ({"num_conv_layers": 3, "num_hidden_layers": 0}, {}),
    "dropout 0.1, no word dropout": (NO_DROPOUT | {"bigram_dropout_prob": 0.0}, {"dropout": 0.1}),
    "no constraints in decoding": ({}, {"constrain": False}),
    "averaged weights (0.99)": ({}, {"average_decay": 0.99}),
    "batches of 16, rate 1e-3": ({}, {"per_gpu_train_batch_size": 16, "learning_rate": 1e-3}),
    "no weight decay": ({}, {"weight_decay": 0.0}),
}


def run_variant(corpus, datasets, tokenizer, seed, epochs, encoder_fields, flags):
    """Train one variant; dev F1, test F1 and processor seconds."""
    with tempfile.TemporaryDirectory() as folder:
        base = TrainingConfig(
            output_dir=folder,
            seed=seed,
            num_train_epochs=epochs,
            no_cuda=True,
            save_steps=0,
            **flags,
        )
        args = resolve_config(base, pretrained=False)
        set_seed(seed)
        model = NerCrfForTokenClassification.from_encoder(
            load_encoder(SmallEncoderConfig(vocab_size=len(tokenizer), **encoder_fields)),
            corpus.labels,
            corpus.scheme,
            classifier_dropout=args.dropout,
            constrain=args.constrain,
        )
        began = time.process_time()
        train(args, datasets["train"], model, tokenizer, datasets["dev"])
        seconds = time.process_time() - began
        best = Tagger.from_pretrained(folder, device="cpu").model
        scores = {
            split: evaluate(best, datasets[split], split).scores.micro for split in ("dev", "test")
        }
    return {
        "dev": scores["dev"].f1,
        "test": scores["test"].f1,
        "gold": scores["test"].gold,
        "cpu_seconds": seconds,
    }


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default=os.environ.get("NERCRF_DATA", ROOT.parent / "shared" / "data"), type=Path
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument(
        "--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    corpus = open_corpus(options.data / "resume", ReadConfig("cner")).load()
    tokenizer = build_tokenizer(corpus.train)
    datasets = {
        split: FeatureDataset(
            convert_examples_to_features(
                examples, corpus.labels, 256, tokenizer, scheme=corpus.scheme
            ),
            corpus.labels,
            corpus.scheme,
        )
        for split, examples in corpus.splits.items()
    }
    rows = []
    for name in options.only:
        for seed in options.seeds:
            row = run_variant(corpus, datasets, tokenizer, seed, options.epochs, *VARIANTS[name])
            rows.append({"variant": name, "seed": seed} | row)
            print(
                f"{name:38} seed {seed}  dev {row['dev']:.4f}  test {row['test']:.4f}  {row['cpu_seconds']:.0f} s cpu",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
