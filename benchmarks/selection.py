"""What is annotated next: F1 against annotated sentences, chosen by `nercrf select`'s measures, beside random ones.

    pip install .
    python benchmarks/selection.py --seeds 3 --rounds 4 --step 100

A simulation on the résumés: the labels of a pool of sentences are hidden. 100 random sentences are
annotated, and a model is trained from scratch with the defaults of `nercrf train`; it chooses 100
more, their labels are shown, a new model is trained on all, and so on. `random` chooses blindly.
All ways of a seed begin with the same sentences and models. Printed are the means over the seeds
and the 95 % interval of the mean by Student's t, which is wide with three of them, and the mean
difference to random after the last round. Needs $NERCRF_DATA/resume, and no network.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from inputs import data_folder

from nercrf.data.corpus import read_corpus
from nercrf.data.examples import Example
from nercrf.data.formats import write_examples
from nercrf.evaluation.selection import best_candidates, candidate, choose_diverse, uncertainty
from nercrf.flags import ScriptConfig
from nercrf.script import run
from nercrf.tagging.tagger import Tagger

T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 %, by the number of seeds


def train(examples: Sequence[Example], folder: Path) -> Tagger:
    "A tagger of some sentences, from scratch."
    (folder / "data").mkdir(parents=True)
    write_examples(examples, folder / "data" / "train.jsonl", "jsonl")
    flags = {"do_train": True, "on_bad": "warn", "no_cuda": True, "learning_curve": False}
    flags |= {"save_steps": 0, "logging_steps": 10_000}
    run(ScriptConfig(data_dir=str(folder / "data"), output_dir=str(folder / "run"), **flags))
    return Tagger.from_pretrained(folder / "run", device="cpu")


def f1(tagger: Tagger, examples: Sequence[Example]) -> float:
    "Micro F1 on labelled sentences."
    found = tagger.tag_examples(examples)
    right = sum(len(set(x) & set(y.spans)) for x, y in zip(found, examples, strict=True))
    return 2 * right / max(1, sum(map(len, found)) + sum(len(each.spans) for each in examples))


def choose(way: str, tagger: Tagger, pool: Sequence[Example], step: int) -> list[int]:
    "Numbers of the sentences to annotate next."
    config, candidates = tagger.model.config, []
    for places, chain in tagger.engine.chains(pool):
        values = uncertainty(chain, way, config.labels, config.scheme)
        for worth, place in zip(values, places, strict=True):
            candidates.append(candidate(worth, pool[place].tokens, place))
    chosen = choose_diverse(best_candidates(candidates, 10 * step), step)
    return [each.sentence for each in chosen]


def curves(args: argparse.Namespace, seed: int) -> dict[str, list[tuple[int, float]]]:
    "F1 on test after each round, by way."
    corpus = read_corpus(data_folder("resume"), on_bad="warn")
    pool, test = list(corpus.train), list(corpus.test)
    draw = random.Random(seed)
    draw.shuffle(pool)
    pool = pool[: args.pool]
    found: dict[str, list[tuple[int, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        first = train(pool[: args.step], Path(place) / "first")
        for way in args.ways:
            known, hidden, tagger = pool[: args.step], pool[args.step :], first
            points = [(len(known), f1(tagger, test))]
            for number in range(args.rounds):
                if way == "random":
                    rows = random.Random(f"{seed} {number}").sample(range(len(hidden)), args.step)
                else:
                    rows = choose(way, tagger, hidden, args.step)
                taken = set(rows)
                known = known + [hidden[row] for row in rows]
                hidden = [each for row, each in enumerate(hidden) if row not in taken]
                tagger = train(known, Path(place) / f"{way}-{number}")
                points.append((len(known), f1(tagger, test)))
                print(seed, way, *points[-1], flush=True)
            found[way] = points
    return found


def interval(values: Sequence[float]) -> str:
    "Mean and half the width of its 95 % interval."
    half = T_QUANTILES[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.4f} ± {half:.4f}"


def main() -> None:
    "Print the curves."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--step", type=int, default=100)
    parser.add_argument("--pool", type=int, default=2000)
    parser.add_argument("--ways", nargs="+", default=["random", "entropy"])
    parser.add_argument("--json", help="file that takes all figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = [curves(args, seed) for seed in range(args.seeds)]
    for way in args.ways:
        for number, (size, _) in enumerate(found[0][way]):
            values = [each[way][number][1] for each in found]
            lead = [each[way][number][1] - each["random"][number][1] for each in found]
            print(f"{way:18} {size:5} {interval(values)}   less random {interval(lead)}")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
