"""Words a second that are scored, beside seqeval: from lists of tags and from arrays of label numbers.

    pip install . seqeval
    python benchmarks/scores.py --data DATA/wnut17 --rounds 7

Gold are the tags of a data set, all its splits; predicted are the same tags with one in thirty
drawn at random, so that most mistakes of a model occur and many tags are ill-formed. All ways take
turns in one process; a ratio is the median over the rounds. `lists` is `score_tags`, what a user
calls; `arrays` is what the evaluation of a model does with the numbers that the decoder returns.
Both give the counts of every type and with them all averages. So `seqeval` is its
`classification_report`, which gives the same figures; `seqeval f1` is its `f1_score`, micro F1 alone.
Times are those of the processor, since machines that do other work too stop the clock for nobody.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
from seqeval.metrics import classification_report, f1_score
from seqeval.scheme import IOB2

from nercrf.data.corpus import read_corpus
from nercrf.evaluation.metrics import score_tables, score_tags
from nercrf.evaluation.spans import number_tags, table_of_ids
from nercrf.labels import entity_types, label_list, spans_to_tags


def make_ways(
    gold: list[list[str]], predicted: list[list[str]], labels: list[str]
) -> dict[tuple[str, str], Callable[[], float]]:
    "What is timed, by reading and by name; each gives micro F1."
    numbers = {label: number for number, label in enumerate(labels)}
    offsets = number_tags(gold)[1]
    sides = [
        np.array([numbers[tag] for tags in side for tag in tags], np.int32)
        for side in (gold, predicted)
    ]

    def lists(mode: str) -> float:
        return score_tags(gold, predicted, "BIO", mode).micro.f1

    def arrays(mode: str) -> float:
        tables = (table_of_ids(ids, offsets, labels, "BIO", mode) for ids in sides)
        return score_tables(*tables).micro.f1

    def peer(function: Callable, mode: str) -> Callable[[], float]:
        options = {"mode": "strict", "scheme": IOB2} if mode == "strict" else {}
        if function is f1_score:
            return lambda: f1_score(gold, predicted, **options)
        options |= {"output_dict": True, "zero_division": 0}
        return lambda: classification_report(gold, predicted, **options)["micro avg"]["f1-score"]

    ways = {}
    for mode in ("strict", "lenient"):
        ways[mode, "seqeval"] = peer(classification_report, mode)
        ways[mode, "seqeval f1"] = peer(f1_score, mode)
        ways[mode, "lists"] = partial(lists, mode)
        ways[mode, "arrays"] = partial(arrays, mode)
    return ways


def main() -> None:
    "Print words a second of each way, and its ratio to seqeval."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of a data set")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    corpus = read_corpus(args.data, on_bad="warn")
    generator, labels = random.Random(0), label_list(entity_types(corpus.labels))
    examples = [
        each for split in corpus.splits.values() for each in split if each.spans is not None
    ]
    gold = [spans_to_tags(each.spans, len(each.tokens)) for each in examples]
    predicted = [
        [generator.choice(labels) if generator.random() < 1 / 30 else tag for tag in tags]
        for tags in gold
    ]
    words = sum(map(len, gold))
    warnings.simplefilter("ignore")
    ways = make_ways(gold, predicted, labels)
    seconds = {way: [] for way in ways}
    scores = {}
    for _ in range(args.rounds):
        for way, call in ways.items():
            start = time.process_time()
            scores[way] = call()
            seconds[way].append(time.process_time() - start)
    print(f"{words:,} words in {len(gold):,} sentences, medians of {args.rounds} rounds")
    for mode, name in ways:
        peer = seconds[mode, "seqeval"]
        ratio = statistics.median(map(lambda x, y: x / y, peer, seconds[mode, name]))
        rate = words / statistics.median(seconds[mode, name])
        if abs(scores[mode, name] - scores[mode, "seqeval"]) > 1e-12:
            raise SystemExit(f"{mode}, {name}: another F1 than seqeval")
        print(
            f"{mode:8} {name:10} {rate / 1e3:10,.0f} thousand words a second {ratio:8.1f} x seqeval"
        )


if __name__ == "__main__":
    main()
