"""Does the CRF help? Four heads on the same encoder, data and updates, a tuned rate for each.

    python benchmarks/heads.py --folder results            # trains what is missing, prints the table
    python benchmarks/heads.py --folder results --table    # prints the table of what is there

Two trainings make four systems. A CRF whose transitions are 0 and stay 0 is a softmax for each
word, its likelihood the sum of the words' cross-entropies, so one model class, one optimiser and
one schedule serve all:

- `softmax`: transitions 0 in training, the best label of each word in decoding
- `constrained`: the same weights; decoding may give well-formed tags only
- `crf decoding`: the same weights; decoding adds, for each pair of neighbours, the logarithm of
  p(a, b) / (p(a) p(b)) counted in the training tags, times a weight of 0.25, 0.5 or 1 that is
  best on dev
- `crf`: transitions are trained, decoding is constrained

Each training starts at half, once or twice the rate that the library would choose, whichever is
best on dev with seed 0; seeds 1 and up are scored. Scored sentences are of the test file (CLUENER's
has no labels: of its dev file, and a part of train that is not trained on is dev). `context` gives
the encoder the sentences before and behind, where the files hold running text.

WNUT-17 and NCBI are read by MiniLM, the Chinese sets by the small encoder from scratch. A training
leaves `NAME.npz` in the folder: what each system found, with exact probabilities. A run may be
broken off and goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from inputs import data_folder, find_encoder
from transformers import logging as transformers_logging

from nercrf.data.corpus import Corpus, read_corpus
from nercrf.evaluation.compare import compare_counts
from nercrf.evaluation.evaluator import Evaluation, evaluate
from nercrf.evaluation.intervals import count_units
from nercrf.evaluation.metrics import surfaces, unseen_rows
from nercrf.evaluation.reliability import Outcomes, calibration_figures
from nercrf.evaluation.spans import SpanTable, find_common, table_of_spans, with_types
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.features.summary import summarize_corpus
from nercrf.labels import spans_to_tags
from nercrf.opening import load_model
from nercrf.training.trainer import train
from nercrf.training.training_config import TrainingConfig

ENCODERS = {"wnut17": "minilm", "ncbi_disease": "minilm", "resume": "scratch", "cluener": "scratch"}
RUNNING_TEXT = ("ncbi_disease", "resume")  # whose neighbouring sentences belong together
SYSTEMS = ("softmax", "constrained", "crf decoding", "crf")
FACTORS = (0.5, 1.0, 2.0)  # of the library's rate
WEIGHTS = (0.25, 0.5, 1.0)  # of counted transitions
DEV, TEST = 300, 600  # sentences


@dataclass(frozen=True)
class Point:
    """One training."""

    data_set: str
    context: int
    head: str  # softmax or crf
    seed: int
    factor: float

    @property
    def name(self) -> str:
        return "-".join(map(str, (self.data_set, self.context, self.head, self.seed, self.factor)))


@cache
def read_data(name: str, sentences: int, in_order: bool) -> Corpus:
    """The sentences that are trained on, tuned on and scored; a stretch of each file if in order."""
    splits = read_corpus(data_folder(name), on_bad="warn").splits
    train_part = list(splits["train"])
    if name == "cluener":
        dev, test = train_part[-DEV:], list(splits["dev"])
        train_part = train_part[:-DEV]
    else:
        dev, test = list(splits["dev"]), list(splits["test"])
    parts = {"train": (train_part, sentences), "dev": (dev, DEV), "test": (test, TEST)}
    chosen = {}
    for split, (examples, count) in parts.items():
        if not in_order:
            random.Random(0).shuffle(examples)
        chosen[split] = examples[:count]
    corpus = read_corpus(data_folder(name), on_bad="warn")
    return replace(corpus, splits=chosen)


def counted_transitions(corpus: Corpus, labels: list[str], scheme: str) -> torch.Tensor:
    """How much more often one tag follows another than chance has it, in nats."""
    pairs, firsts, seconds = Counter(), Counter(), Counter()
    for example in corpus.splits["train"]:
        for left, right in pairwise(spans_to_tags(example.spans, len(example.tokens), scheme)):
            pairs[left, right] += 1
            firsts[left] += 1
            seconds[right] += 1
    smooth, size, total = 0.1, len(labels), sum(pairs.values())
    table = torch.zeros(size, size)
    for (row, left), (column, right) in itertools.product(enumerate(labels), repeat=2):
        joint = (pairs[left, right] + smooth / size) / (total + smooth * size)
        apart = (firsts[left] + smooth) * (seconds[right] + smooth) / (total + smooth * size) ** 2
        table[row, column] = math.log(joint / apart)
    return table


def train_point(point: Point, sentences: int, updates: int, folder: Path, scored: bool) -> float:
    """Train, and keep what each system finds; F1 on dev."""
    corpus = read_data(point.data_set, sentences, point.data_set in RUNNING_TEXT)
    with tempfile.TemporaryDirectory() as output:
        args = TrainingConfig(
            model_name_or_path=(
                str(find_encoder()) if ENCODERS[point.data_set] == "minilm" else None
            ),
            output_dir=output,
            max_steps=updates,
            eval_steps=0,
            save_steps=0,
            learning_curve=False,
            no_cuda=True,
            seed=point.seed,
        )
        args, loaded = load_model(args, summarize_corpus(corpus))
        args = replace(args, learning_rate=args.learning_rate * point.factor)
        model, labels = loaded.model, loaded.model.config.labels
        scheme = model.config.scheme
        datasets = {}
        for split, examples in corpus.splits.items():
            length = args.train_max_seq_length if split == "train" else args.eval_max_seq_length
            features = convert_examples_to_features(
                examples, labels, length, loaded.tokenizer, scheme=scheme, context=point.context
            )
            datasets[split] = FeatureDataset(features, labels, scheme)
        tables = (model.crf.start_transitions, model.crf.transitions, model.crf.end_transitions)
        if point.head == "softmax":
            for table in tables:
                torch.nn.init.zeros_(table)
                table.requires_grad_(False)
        train(args, datasets["train"], model, loaded.tokenizer)
    constraints = model.crf.constraints
    if point.head == "crf":
        dev = evaluate(model, datasets["dev"], "dev").scores.micro.f1
        systems = {"crf": model.crf.transitions.data}
    else:
        assert not any(table.any() for table in tables)
        model.crf.set_constraints(None)
        dev = evaluate(model, datasets["dev"], "dev").scores.micro.f1
        model.crf.set_constraints(constraints)
        zeros, counted = tables[1].data, counted_transitions(corpus, labels, scheme)
        systems = {"softmax": zeros, "constrained": zeros}
        if scored:
            tried = {}
            for weight in WEIGHTS:
                model.crf.transitions.data = counted * weight
                tried[weight] = evaluate(model, datasets["dev"], "dev").scores.micro.f1
            systems["crf decoding"] = counted * max(tried, key=tried.get)
    kept: dict[str, np.ndarray] = {"dev": np.array(dev)}
    for system, table in systems.items() if scored else ():
        model.crf.set_constraints(None if system == "softmax" else constraints)
        model.crf.transitions.data = table
        found = evaluate(model, datasets["test"], "test", with_chances=True)
        kept |= {f"{system}/{key}": value for key, value in arrays_of(found).items()}
    np.savez_compressed(folder / f"{point.name}.npz", **kept)
    return dev


def arrays_of(result: Evaluation) -> dict[str, np.ndarray]:
    """What was found, as columns."""
    table = result.found
    types = np.array([table.types[place] for place in table.type_id])
    chances = result.chances.look_up(table)
    return {"sentence": table.sentence, "start": table.start, "end": table.end} | {
        "type": types.astype("U"),
        "chance": chances,
    }


def table_in(kept: dict, system: str, sentences: int, types: tuple[str, ...]) -> SpanTable:
    """The entities that a system has found."""
    columns = (kept[f"{system}/{name}"] for name in ("sentence", "start", "end", "type"))
    sentence, start, end, names = columns
    type_id = np.array([types.index(name) for name in names], np.int64)
    return SpanTable(sentence, type_id, start, end, types, sentences)


def best_factor(folder: Path, data_set: str, context: int, head: str) -> float | None:
    """The rate that is best on dev; None while one is missing."""
    found = {}
    for factor in FACTORS:
        path = folder / f"{Point(data_set, context, head, 0, factor).name}.npz"
        if not path.exists():
            return None
        with np.load(path) as kept:
            found[factor] = float(kept["dev"])
    return max(found, key=found.get)


def describe(folder: Path, data_set: str, context: int, sentences: int, seeds: int) -> list[str]:
    """The lines of one data set."""
    corpus = read_data(data_set, sentences, data_set in RUNNING_TEXT)
    test = corpus.splits["test"]
    everywhere = (ex.spans or [] for examples in corpus.splits.values() for ex in examples)
    types = sorted({span.label for spans in everywhere for span in spans})
    gold = with_types(table_of_spans([example.spans or [] for example in test]), types)
    seen = surfaces(corpus.splits["train"])
    words = [example.tokens for example in test]
    found: dict[str, list[tuple[SpanTable, np.ndarray]]] = {system: [] for system in SYSTEMS}
    factors = {head: best_factor(folder, data_set, context, head) for head in ("softmax", "crf")}
    for seed, (head, factor) in itertools.product(range(1, seeds + 1), factors.items()):
        path = folder / f"{Point(data_set, context, head, seed, factor or 0).name}.npz"
        if not path.exists():
            continue
        with np.load(path) as kept:
            for system in SYSTEMS:
                if f"{system}/start" in kept:
                    table = table_in(kept, system, len(test), gold.types)
                    found[system].append((table, kept[f"{system}/chance"]))
    views = {
        "all": lambda table: table,
        "unseen": lambda table: table.select(unseen_rows(table, words, seen)),
        "boundaries": lambda table: table.renamed(lambda name: "entity"),
    }
    lines = []
    for system, runs in found.items():
        if not runs:
            continue
        cells = [f"{data_set:12}", f"{context:7}", f"{system:12}", f"{len(runs):5}"]
        for view in views.values():
            counts = count_units(view(gold), *[view(table) for table, _ in runs])
            totals = counts.totals.sum(1)  # (systems, 3) gold, predicted, correct
            scores = [2 * right / max(g + p, 1) for g, p, right in totals.tolist()]
            spread = stdev(scores) if len(scores) > 1 else math.nan
            cell = f"{mean(scores):.3f} ± {spread:.3f}"
            base = found["softmax"]
            if system != "softmax" and base:
                tables = [view(table) for table, _ in (*base, *runs)]
                both = count_units(view(gold), *tables)
                change = compare_counts(both, len(base))["micro"]
                cell += f" ({change.difference:+.3f} {change.low:+.3f} {change.high:+.3f})"
            cells.append(f"{cell:38}")
        errors = []
        for table, chances in runs:
            right = find_common(gold, table)[1]
            known = ~np.isnan(chances)
            outcomes = Outcomes(np.clip(chances[known], 0, 1), right[known], table.sentence[known])
            errors.append(calibration_figures(outcomes).error)
        cells.append(f"{mean(errors):.3f}")
        lines.append("  ".join(cells))
    return lines


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="takes the results")
    parser.add_argument("--data_set", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--sentences", type=int, default=500, help="of training")
    parser.add_argument("--updates", type=int, default=-1, help="-1: as the library chooses")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--context", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--table", action="store_true", help="train nothing")
    return parser.parse_args()


def main() -> None:
    """Train what is missing, and print the table."""
    options = read_options()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    settings = [
        (data_set, context)
        for context, data_set in itertools.product(options.context, options.data_set)
        if context == 0 or data_set in RUNNING_TEXT
    ]
    tuned = [
        (Point(*setting, head, 0, factor), False)
        for setting, head, factor in itertools.product(settings, ("softmax", "crf"), FACTORS)
    ]
    for point, scored in [] if options.table else tuned:
        if not (options.folder / f"{point.name}.npz").exists():
            dev = train_point(point, options.sentences, options.updates, options.folder, scored)
            print(json.dumps({"point": point.name, "dev": round(dev, 4)}), flush=True)
    for seed, setting, head in itertools.product(
        range(1, options.seeds + 1), settings, ("softmax", "crf")
    ):
        factor = best_factor(options.folder, *setting, head)
        if options.table or factor is None:
            continue
        point = Point(*setting, head, seed, factor)
        if not (options.folder / f"{point.name}.npz").exists():
            dev = train_point(point, options.sentences, options.updates, options.folder, True)
            print(json.dumps({"point": point.name, "dev": round(dev, 4)}), flush=True)
    head = ["data set    ", "context", "head        ", "seeds"]
    head += [f"{name + ' F1, less softmax':38}" for name in ("strict", "unseen", "boundary")]
    print("  ".join([*head, "calibration error"]))
    for setting in settings:
        print("\n".join(describe(options.folder, *setting, options.sentences, options.seeds)))


if __name__ == "__main__":
    main()
