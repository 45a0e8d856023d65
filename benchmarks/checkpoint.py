"""What saving costs a step, and what a kill costs a training: `python benchmarks/checkpoint.py stall` and `... kill`.

`stall` prints how long a step stands still for a checkpoint: written at once, handed to a thread, and the copy to
host memory alone. `kill` stops trainings with SIGKILL at random moments and counts how many go on from the checkpoint
that is found then: this library's trainer and the transformers `Trainer` (which needs accelerate), both saving at
every step.
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch import nn

from nercrf.checkpoint import BackgroundWriter, save_state, take_snapshot, write_folder
from nercrf.data import sample_corpus
from nercrf.features import FeatureDataset, convert_examples_to_features
from nercrf.model import NerCrfConfig, NerCrfForTokenClassification, SmallEncoderConfig, build_tokenizer
from nercrf.trainer import TrainingConfig, resolve_config, train

# --- stall --------------------------------------------------------------------------------------------------------


def write(path, snapshot):
    """A whole checkpoint from a copy."""
    with write_folder(path) as folder:
        save_state(folder, snapshot)


def measure_stall(megabytes, saves):
    """Milliseconds by which a checkpoint lengthens a training, for each way to save."""
    width = 1024
    layers = max(1, round(megabytes * 2**20 / (4 * width * width)))
    model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(layers)])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = torch.randn(64, width)

    def step():
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    def state():
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    times = {name: [] for name in ("copy", "foreground", "background", "steps after background")}
    for _ in range(3):
        step()
    between = max(4, round(1 / clock(step)))  # steps between two checkpoints: about a second and more
    plain = statistics.median(clock(step) for _ in range(between))
    with tempfile.TemporaryDirectory() as folder, BackgroundWriter() as writer:
        for number in range(saves):
            times["copy"].append(clock(lambda: take_snapshot(state())))
            path = Path(folder, "foreground")
            times["foreground"].append(clock(lambda path=path: write(path, take_snapshot(state()))))
            path = Path(folder, f"background-{number}")
            times["background"].append(clock(lambda path=path: submit(writer, path, take_snapshot(state()))))
            while writer._pending and not writer._pending[0][1].done():
                times["steps after background"].append(clock(step) - plain)
            writer.wait()
            for _ in range(between):
                step()
    lost = statistics.mean(times["steps after background"]) if times["steps after background"] else 0.0
    return {
        "weights, MB": round(layers * 4 * width * width / 2**20),
        "checkpoint, MB": round(3 * layers * 4 * width * width / 2**20),
        "plain step, ms": 1000 * plain,
        **{f"{name}, ms": 1000 * statistics.median(times[name]) for name in ("copy", "foreground", "background")},
        "a step while the thread writes is longer by, ms": 1000 * lost,
    }


def submit(writer, path, snapshot):
    """Hand a copy to the thread."""
    writer.submit(path.name, lambda: write(path, snapshot))


def clock(work):
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- kill ---------------------------------------------------------------------------------------------------------

CORPUS = sample_corpus(sizes=(48, 8, 8))
TOKENIZER = build_tokenizer(CORPUS.train)
STEPS = 60


def train_ours(folder):
    """Our trainer; goes on where there is something to go on from."""
    features = convert_examples_to_features(CORPUS.train, CORPUS.labels, 64, TOKENIZER, scheme=CORPUS.scheme)
    encoder = SmallEncoderConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        bigram_buckets=256, bigram_size=8, embedding_size=32,
    )  # fmt: skip
    torch.manual_seed(0)
    labels = dict(enumerate(CORPUS.labels))
    model = NerCrfForTokenClassification(NerCrfConfig(encoder, scheme=CORPUS.scheme, id2label=labels))
    args = TrainingConfig(
        output_dir=str(folder), resume="auto", save_steps=1, save_total_limit=2, max_steps=STEPS, eval_steps=0,
        no_cuda=True, learning_curve=False,
    )  # fmt: skip
    dataset = FeatureDataset(features, CORPUS.labels, CORPUS.scheme)
    train(resolve_config(args, pretrained=False), dataset, model, TOKENIZER)


def train_theirs(folder):
    """The transformers Trainer on a tiny BERT; goes on from the checkpoint that it finds."""
    from transformers.trainer_utils import get_last_checkpoint

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        num_labels=3,
    )  # fmt: skip
    rows = [{"input_ids": [1, 2, 3, 4 + i % 9], "labels": [0, 1, 2, i % 3]} for i in range(48)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_strategy="steps", save_steps=1, save_total_limit=2,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(
        transformers.BertForTokenClassification(config), arguments, train_dataset=rows,
        data_collator=lambda batch: {key: torch.tensor([row[key] for row in batch]) for key in batch[0]},
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None)


def in_child(function, folder):
    """Everything is imported already; what it prints is not wanted."""

    def quiet():
        logging.disable()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        function(folder)

    process = multiprocessing.get_context("fork").Process(target=quiet, daemon=True)
    process.start()
    return process


def kill_and_resume(function, trials, seed):
    """How many of so many killed trainings go on to their end."""
    moments, resumed, killed = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = in_child(function, Path(folder, "whole"))
        process.join()
        duration = time.perf_counter() - began
        assert process.exitcode == 0, "the undisturbed training failed"
        while killed < trials:
            run = Path(folder, f"run-{killed}")
            process = in_child(function, run)
            while not list(run.glob("checkpoint-*")) and process.exitcode is None:
                time.sleep(0.002)  # a training without any checkpoint proves nothing
            process.join(moments.uniform(0.0, 0.6) * duration)
            if process.exitcode is not None:
                continue
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
            again = in_child(function, run)
            again.join(30 * duration)
            resumed += again.exitcode == 0
            if again.exitcode is None:
                again.kill()
    return {"killed": killed, "resumed": resumed, "failed": killed - resumed, "undisturbed, s": round(duration, 2)}


def main():
    """Print the figures as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["stall", "kill"])
    parser.add_argument("--trials", type=int, default=25, help="kills of each trainer")
    parser.add_argument("--saves", type=int, default=7, help="checkpoints of each kind")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[20, 50, 100], help="sizes of the weights")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "stall":
        for megabytes in args.megabytes:
            figures = measure_stall(megabytes, args.saves)
            print(json.dumps({key: round(value, 1) for key, value in figures.items()}), flush=True)
        return
    for name, function in (("nercrf", train_ours), (f"transformers {transformers.__version__}", train_theirs)):
        print(json.dumps({"trainer": name, **kill_and_resume(function, args.trials, args.seed)}), flush=True)


if __name__ == "__main__":
    main()
