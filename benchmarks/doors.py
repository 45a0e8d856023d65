"""Whether every way to call a model finds the same entities, on sentences of real data sets.

    python benchmarks/doors.py --data DATA --sentences 300

`--data` is the folder that holds the folders `cluener`, `ncbi_disease`, `resume` and `wnut17`. For
each a small model is made whose scores are random, with two sentences of context (where a file is
one document) and short windows, so that both matter: it is sure of nothing, and finds entities everywhere. Then the test sentences
(those of dev where test has no labels) are tagged: by the evaluation and by `Tagger` as words, by transformers' pipeline with each strategy
as words and as text, by `Tagger` as text, and by `nercrf predict` from a file of texts. What is
printed is the share of sentences in which all ways of words, and all ways of text, find exactly the
same entities. Ray tags rows that are no document: what its worker finds is compared with `Tagger` on
texts by themselves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from inputs import save_random_model
from transformers import pipeline

from nercrf.cli import main as nercrf
from nercrf.data.corpus import read_corpus
from nercrf.evaluation.evaluator import evaluate
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.tagging.ray import RayTagger
from nercrf.tagging.tagger import Tagger

SETS = ("cluener", "ncbi_disease", "resume", "wnut17")
STRATEGIES = ("simple", "first", "average", "max")


def build(data: Path, folder: Path) -> None:
    "A model with random scores, which finds short and long entities of all types."
    save_random_model(
        read_corpus(data, on_bad="warn"),
        folder / "model",
        width=64,
        spread=0.5,
        max_seq_length=48,
        context=0 if data.name == "cluener" else 2,  # its records are documents
        joined_by="" if data.name in ("cluener", "resume") else " ",
        split_by="characters" if data.name in ("cluener", "resume") else "words",
    )


def places(rows: list[dict]) -> list[tuple]:
    "Entities of the pipeline."
    return [(row["entity_group"], row["start"], row["end"]) for row in rows]


def compare(data: Path, folder: Path, count: int) -> tuple[int, int, int, int, int]:
    "Sentences, entities, and in how many all ways of words, of text, and Ray's worker agree."
    corpus = read_corpus(data, on_bad="warn")
    examples = next(x for x in (corpus.test, corpus.dev) if x and x[0].spans is not None)[:count]
    tagger = Tagger.from_pretrained(folder, device="cpu")
    config = tagger.model.config
    door = pipeline("token-classification", model=str(folder / "model"), device="cpu")
    features = convert_examples_to_features(
        examples,
        config.labels,
        config.max_seq_length,
        tagger.tokenizer,
        scheme=config.scheme,
        stride=config.stride,
        context=config.context,
        joined_by=config.joined_by,
        subtoken_pooling=config.subtoken_pooling,
        other_types=sorted({span.label for x in examples for span in x.spans}),
    )
    dataset = FeatureDataset(features, config.labels, config.scheme)
    words = [example.tokens for example in examples]
    ways = [[set(map(tuple, spans)) for spans in evaluate(tagger.model, dataset).predicted]]
    tagged = tagger(words, connected=True)
    ways.append([{(x.label, x.word_start, x.word_end) for x in found} for found in tagged])
    by_place = [[(x.label, x.start, x.end) for x in found] for found in tagged]
    options = {"is_split_into_words": True, "connected": True}
    doors = [
        list(map(places, door(words, aggregation_strategy=strategy, **options)))
        for strategy in STRATEGIES
    ]
    same_words = sum(
        len({frozenset(way[row]) for way in ways}) == 1
        and all(found[row] == by_place[row] for found in doors)
        for row in range(len(examples))
    )
    texts = [" ".join(example.text.split()) for example in examples]
    source, output = folder / "texts.txt", folder / "texts.jsonl"
    source.write_text("\n".join(texts) + "\n", encoding="utf-8")
    named = ["--input_format", "text", "--output", str(output), "--no_cuda"]
    nercrf(["predict", str(folder), str(source), *named])
    with open(output, encoding="utf-8") as file:
        lines = [json.loads(line)["entities"] for line in file]
    found = [[[(x["label"], x["start"], x["end"]) for x in row] for row in lines]]
    found.append(
        [[(x.label, x.start, x.end) for x in row] for row in tagger(texts, connected=True)]
    )
    found += [
        list(map(places, door(texts, aggregation_strategy=strategy, connected=True)))
        for strategy in STRATEGIES
    ]
    same_texts = sum(
        all(way[row] == found[0][row] for way in found) for row in range(len(examples))
    )
    rows = RayTagger(str(folder), device="cpu")({"text": np.array(texts, dtype=object)})
    same_rows = sum(
        [(x["label"], x["start"], x["end"]) for x in row]
        == [(x.label, x.start, x.end) for x in own]
        for row, own in zip(rows["entities"], tagger(texts), strict=True)
    )
    return len(examples), sum(map(len, by_place)), same_words, same_texts, same_rows


def main() -> None:
    "Print a line for each set."
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=300)
    args = parser.parse_args()
    print("set            sentences  entities  words agree  text agrees   Ray agrees")
    for name in SETS:
        with TemporaryDirectory() as folder:
            build(args.data / name, Path(folder, "run"))
            count, entities, *agree = compare(args.data / name, Path(folder, "run"), args.sentences)
        shares = " ".join(f"{each / count:12.2%}" for each in agree)
        print(f"{name:14} {count:9} {entities:9} {shares}", flush=True)


if __name__ == "__main__":
    main()
