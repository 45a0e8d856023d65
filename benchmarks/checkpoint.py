"""What saving costs a step, what a kill costs a training, and how fast a signal ends one: `python
benchmarks/checkpoint.py stall`, `... kill` and `... signals`.

`stall` prints how long a step stands still for a checkpoint: written at once, handed to a thread,
and the copy to host memory alone. `kill` stops trainings with SIGKILL at moments that a seed draws
and says what becomes of them: whether the checkpoint that is found then is complete, whether the
training goes on from it and ends in the weights of one that nobody killed, and if not, why. It
compares this library's trainer and the transformers `Trainer` (which needs accelerate), both saving
at every step, in turns. `signals` prints how long it takes from SIGTERM to all processes of a
training until all have ended with the exit code that means an interruption, the checkpoint on the
disk.
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.trainer_utils import get_last_checkpoint

from nercrf import run_ner_crf
from nercrf.data.sample import sample_corpus
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.files import write_folder
from nercrf.model.modeling import NerCrfConfig, NerCrfForTokenClassification
from nercrf.model.small_encoder import SmallEncoderConfig
from nercrf.model.vocabulary import build_tokenizer
from nercrf.training.checkpoint import (
    BackgroundWriter,
    latest_checkpoint,
    save_state,
    take_snapshot,
)
from nercrf.training.trainer import resolve_config, train
from nercrf.training.training_config import TrainingConfig

# --- stall
# --------------------------------------------------------------------------------------------------------


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
    between = max(
        4, round(1 / clock(step))
    )  # steps between two checkpoints: about a second and more
    plain = statistics.median(clock(step) for _ in range(between))
    with tempfile.TemporaryDirectory() as folder, BackgroundWriter() as writer:
        for number in range(saves):
            times["copy"].append(clock(lambda: take_snapshot(state())))
            path = Path(folder, "foreground")
            times["foreground"].append(clock(lambda path=path: write(path, take_snapshot(state()))))
            path = Path(folder, f"background-{number}")
            times["background"].append(
                clock(lambda path=path: submit(writer, path, take_snapshot(state())))
            )
            while writer._pending and not writer._pending[0][1].done():
                times["steps after background"].append(clock(step) - plain)
            writer.wait()
            for _ in range(between):
                step()
    lost = (
        statistics.mean(times["steps after background"]) if times["steps after background"] else 0.0
    )
    return {
        "weights, MB": round(layers * 4 * width * width / 2**20),
        "checkpoint, MB": round(3 * layers * 4 * width * width / 2**20),
        "plain step, ms": 1000 * plain,
        **{
            f"{name}, ms": 1000 * statistics.median(times[name])
            for name in ("copy", "foreground", "background")
        },
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


# --- kill
# ---------------------------------------------------------------------------------------------------------

CORPUS = sample_corpus(sizes=(48, 8, 8))
TOKENIZER = build_tokenizer(CORPUS.train)
STEPS = 60


def train_ours(folder):
    """Our trainer; goes on where there is something to go on from."""
    features = convert_examples_to_features(
        CORPUS.train, CORPUS.labels, 64, TOKENIZER, scheme=CORPUS.scheme
    )
    encoder = SmallEncoderConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        bigram_buckets=256,
        bigram_size=8,
        embedding_size=32,
    )
    torch.manual_seed(0)
    labels = dict(enumerate(CORPUS.labels))
    model = NerCrfForTokenClassification(
        NerCrfConfig(encoder, scheme=CORPUS.scheme, id2label=labels)
    )
    args = TrainingConfig(
        output_dir=str(folder),
        resume="auto",
        save_steps=1,
        save_total_limit=2,
        max_steps=STEPS,
        eval_steps=0,
        no_cuda=True,
        learning_curve=False,
    )
    dataset = FeatureDataset(features, CORPUS.labels, CORPUS.scheme)
    train(resolve_config(args, pretrained=False), dataset, model, TOKENIZER)


def train_theirs(folder):
    """The transformers Trainer on a tiny BERT; goes on from the checkpoint that it finds."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=3,
    )
    rows = [{"input_ids": [1, 2, 3, 4 + i % 9], "labels": [0, 1, 2, i % 3]} for i in range(48)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = transformers.Trainer(
        transformers.BertForTokenClassification(config),
        arguments,
        train_dataset=rows,
        data_collator=lambda batch: {
            key: torch.tensor([row[key] for row in batch]) for key in batch[0]
        },
    )
    trainer.train(
        resume_from_checkpoint=get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None
    )


def error_file(folder):
    """Where a child leaves the last line of its exception."""
    return folder.with_name(f"{folder.name}.error")


def in_child(function, folder):
    """Everything is imported already; what it prints is not wanted."""

    def quiet():
        logging.disable()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            function(folder)
        except Exception as error:
            error_file(folder).write_text(traceback.format_exception_only(error)[-1].strip())
            raise

    process = multiprocessing.get_context("fork").Process(target=quiet, daemon=True)
    process.start()
    return process


def undisturbed(function, folder):
    """How long a training takes when nobody kills it, in seconds."""
    began = time.perf_counter()
    process = in_child(function, folder)
    process.join()
    assert process.exitcode == 0, (
        f"the undisturbed training failed: {error_file(folder).read_text()}"
    )
    return time.perf_counter() - began


def check_archive(path):
    """What torch.save wrote is a zip archive with checksums: BadZipFile where it is cut off or changed."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken:
        raise zipfile.BadZipFile(f"{path}: {broken}")


def is_complete(checkpoint, example):
    """Has it the files that a checkpoint of the undisturbed training has, and can each be read?"""
    names = {path.name for path in example.iterdir()}
    readers = {".safetensors": load_file, ".json": lambda path: json.loads(path.read_text())}
    readers |= dict.fromkeys((".pt", ".pth", ".bin"), check_archive)
    try:
        for name in names:
            readers.get(Path(name).suffix, Path.read_bytes)(checkpoint / name)
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
    return True


def same_weights(one, other):
    """Do two checkpoints hold the same bits of weights?"""
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def killed(function, folder, seconds):
    """Kill a training so long after its second checkpoint began; False where it had ended before."""
    process = in_child(function, folder)
    while len(list(folder.glob("checkpoint-*"))) < 2 and process.exitcode is None:
        time.sleep(0.002)  # an older one is complete
    process.join(seconds)
    if process.exitcode is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return True


def resume(function, find, folder, whole, limit):
    """What became of a killed training: the checkpoint found, the outcome, and the reason of a failure."""
    found = find(folder)
    complete = found is not None and is_complete(Path(found), whole / f"checkpoint-{STEPS}")
    in_save = (found is not None and not complete) or any(
        folder.glob(".checkpoint-*")
    )  # hidden until it is complete
    process = in_child(function, folder)
    process.join(limit)
    reason = ""
    if process.exitcode is None:
        process.kill()
        reason = f"no end within {limit:.0f} s"
    elif process.exitcode:
        reason = (
            error_file(folder).read_text()
            if error_file(folder).exists()
            else f"exit code {process.exitcode}"
        )
    last = f"checkpoint-{STEPS}"
    return {
        "found": Path(found).name if found else None,
        "complete": complete,
        "killed while saving": in_save,
        "resumed": not reason,
        "same weights at the end": not reason and same_weights(folder / last, whole / last),
        "reason": reason.replace(str(folder), "RUN"),
    }


def kill_and_resume(trainers, trials, seed):
    """So many kills of each trainer, in turns and at moments that a seed draws; what became of
    each, as it comes.
    """
    moments = {name: random.Random(seed) for name in trainers}
    with tempfile.TemporaryDirectory() as work:
        wholes = {name: Path(work, f"whole-{number}") for number, name in enumerate(trainers)}
        seconds = {
            name: undisturbed(function, wholes[name]) for name, (function, _) in trainers.items()
        }
        for trial in range(trials):
            for name, (function, find) in trainers.items():
                folder, attempt = wholes[name].with_name(f"{wholes[name].name}-{trial}"), 0
                moment = moments[name].uniform(0.0, 0.6) * seconds[name]
                while not killed(function, folder, moment):
                    shutil.rmtree(folder)
                    attempt, moment = attempt + 1, moment / 2
                    assert attempt < 9, f"{name} ends before it can be killed"
                result = resume(function, find, folder, wholes[name], 30 + 10 * seconds[name])
                yield {"trainer": name, "killed after, s": round(moment, 2), **result}
                shutil.rmtree(folder)


def print_kills(results):
    """The table of all trials of a trainer, and why some did not go on."""
    columns = ("trials", "while saving", "resumed", "from complete", "same weights", "could not")
    print(f"{'trainer':24}" + "".join(f"{column:>14}" for column in columns))
    for name in dict.fromkeys(result["trainer"] for result in results):
        own = [result for result in results if result["trainer"] == name]
        resumed = [result for result in own if result["resumed"]]
        in_save = sum(result["killed while saving"] for result in own)
        complete, same = (
            sum(x[key] for x in resumed) for key in ("complete", "same weights at the end")
        )
        counts = (len(own), in_save, len(resumed), complete, same, len(own) - len(resumed))
        print(f"{name:24}" + "".join(f"{count:14}" for count in counts))
        reasons = Counter(
            re.sub(r"\d+", "N", result["reason"]) for result in own if not result["resumed"]
        )
        for reason, count in reasons.most_common():
            print(f"  {count} times: {reason}")


# --- signals
# ------------------------------------------------------------------------------------------------------


def run_script(flags, rank, processes, port):
    """The script as one process of a group, without a launcher in between; its exit code is that of
    the process.
    """
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in group.items()}
    sys.exit(run_ner_crf.main(flags))


def stop_group(folder, processes, moment):
    """Seconds from SIGTERM to all processes of a training until the last one has ended."""
    flags = f"--do_train --no_cuda --max_steps 100000 --logging_steps 1 --save_steps 0 --eval_steps 0 --output_dir {folder}"
    flags = [*flags.split(), "--feature_cache_dir", str(folder / "cache")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = [
        in_child(lambda _, rank=rank: run_script(flags, rank, processes, port), folder)
        for rank in range(processes)
    ]
    while not (folder / "history.jsonl").exists():
        assert all(process.exitcode is None for process in group), "ended before its first update"
        time.sleep(0.01)
    time.sleep(moment)
    began = time.perf_counter()
    for process in group:
        os.kill(process.pid, signal.SIGTERM)
    for process in group:
        process.join()
    seconds = time.perf_counter() - began
    codes = [process.exitcode for process in group]
    assert codes == [run_ner_crf.INTERRUPTED] * processes, codes
    assert latest_checkpoint(folder) is not None
    return seconds


def measure_signals(processes, times, seed):
    """Median and worst of so many stops at moments that a seed draws."""
    moments, seconds = random.Random(seed), []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as work:
            seconds.append(stop_group(Path(work, "run"), processes, moments.uniform(0.0, 1.0)))
    return {
        "processes": processes,
        "median, s": statistics.median(seconds),
        "worst, s": max(seconds),
    }


def main():
    """Print the figures as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["stall", "kill", "signals"])
    parser.add_argument("--trials", type=int, default=25, help="kills of each trainer")
    parser.add_argument("--saves", type=int, default=7, help="checkpoints of each kind")
    parser.add_argument(
        "--megabytes", type=int, nargs="+", default=[20, 50, 100], help="sizes of the weights"
    )
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2, 4], help="sizes of the group to stop"
    )
    parser.add_argument("--stops", type=int, default=10, help="of each group")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "stall":
        for megabytes in args.megabytes:
            figures = measure_stall(megabytes, args.saves)
            print(json.dumps({key: round(value, 1) for key, value in figures.items()}), flush=True)
        return
    if args.what == "signals":
        for processes in args.processes:
            figures = measure_signals(processes, args.stops, args.seed)
            print(json.dumps({key: round(value, 2) for key, value in figures.items()}), flush=True)
        return
    trainers = {
        "nercrf": (train_ours, latest_checkpoint),
        f"transformers {transformers.__version__}": (
            train_theirs,
            lambda folder: get_last_checkpoint(str(folder)),
        ),
    }
    results = []
    for result in kill_and_resume(trainers, args.trials, args.seed):
        results.append(result)
        print(json.dumps(result), flush=True)
    print_kills(results)


if __name__ == "__main__":
    main()
