"""Time and memory of the feature cache for 1, 10 and 100 copies of a training file.

python benchmarks/cache.py --data_dir cluener --vocab vocab.txt --copies 1 10 100 --json cache.json

For every number of copies, each in a process of its own:

build   from data files to the cache file, with as many processes as there are cores open    from
the cache: `load_and_cache_examples` and, alone, `load_features` pass    all batches of one shuffled
epoch, 32 sentences each, and the time of a batch in mapped and in plain arrays

summary what a run has to know of its data beside the features, made; prepare: found, as a run with a
warm cache does in place of reading the corpus

The copies are written to a temporary folder, which is removed afterwards. Memory is anonymous
memory as Linux counts it (`Anonymous` of /proc/PID/smaps_rollup): what belongs to the processes
alone, without pages of mapped files, which the system can drop at any time. Of the build it is the
highest sum over the process and all its children, above what the process had after importing the
library and loading the tokenizer; sampled ten times a second.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

STEPS = ("build", "open", "summary", "prepare", "pass")


def anonymous_mb(pid: int | str = "self") -> float:
    "Anonymous memory of a process in MB; 0 if it has ended."
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) / 1024
    except (OSError, ProcessLookupError):
        pass
    return 0.0


def process_tree(pid: int) -> list[int]:
    "A process and all that it started."
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [
            int(child) for task in tasks for child in (task / "children").read_text().split()
        ]
    except OSError:
        return [pid]
    return [pid, *(item for child in children for item in process_tree(child))]


class PeakMemory:
    "The highest anonymous memory of this process and its children while a block runs."

    def __enter__(self):
        self.peak, self.own, self._over = 0.0, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()

    def _watch(self):
        while not self._over.wait(0.1):
            amounts = [anonymous_mb(pid) for pid in process_tree(os.getpid())]
            self.peak = max(self.peak, sum(amounts))
            self.own = max(self.own, amounts[0])


def run_step(options: argparse.Namespace) -> dict[str, float]:
    "One step, in this process."
    from transformers import BertTokenizer

    from nercrf.features.batches import FeatureDataset, plan_batches
    from nercrf.features.store import load_features
    from nercrf.opening import load_and_cache_examples, open_data

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    tokenizer = BertTokenizer(vocab=str(options.vocab))
    tokenizer(["的"])
    args = SimpleNamespace(
        data_dir=str(options.folder),
        train_max_seq_length=128,
        conversion_processes=options.processes,
    )
    folder = open_data(args, "cluener").cache.folders[0]
    start = anonymous_mb()
    if options.step == "build":
        began = time.perf_counter()
        with PeakMemory() as memory:
            dataset = load_and_cache_examples(args, "cluener", tokenizer)
        (path,) = folder.glob("train-*.safetensors")
        return {
            "sentences": len(dataset),
            "characters": int(dataset.features.word_offsets[-1]),
            "text MB": sum(path.stat().st_size for path in options.folder.glob("*.json")) / 1e6,
            "cache MB": path.stat().st_size / 1e6,
            "build s": time.perf_counter() - began,
            "start MB": start,
            "build MB": memory.peak - start,
            "builder alone MB": memory.own - start,
        }
    if options.step == "open":
        began = time.perf_counter()
        load_and_cache_examples(args, "cluener", tokenizer)
        both = time.perf_counter() - began
        (path,) = folder.glob("train-*.safetensors")
        began = time.perf_counter()
        load_features(path)
        return {
            "open s": both,
            "load_features s": time.perf_counter() - began,
            "open MB": anonymous_mb() - start,
        }
    if options.step in ("summary", "prepare"):  # the first makes what the second finds
        began = time.perf_counter()
        with PeakMemory() as memory:
            corpus = open_data(args, "cluener")
            labelled, surfaces = corpus.summary.labelled, corpus.summary.names()
        return {
            f"{options.step} s": time.perf_counter() - began,
            f"{options.step} MB": max(memory.peak, anonymous_mb()) - start,
            "labelled splits": len(labelled),
            "surfaces": len(surfaces),
        }
    dataset = load_and_cache_examples(args, "cluener", tokenizer)
    return measure_pass(dataset, plan_batches, start) | measure_collation(
        folder, load_features, FeatureDataset
    )


def measure_pass(dataset, plan_batches, start: float) -> dict[str, float]:
    "An epoch of shuffled batches, and the memory along its way."
    began = time.perf_counter()
    plan = plan_batches(dataset.lengths, 32, seed=0)
    planned = time.perf_counter() - began
    marks = {len(plan) * part // 10: part for part in (1, 5, 10)}
    found, began = {}, time.perf_counter()
    for number, indices in enumerate(plan, 1):
        dataset.collate(indices)
        if number in marks:
            found[f"pass MB at {marks[number]}/10"] = anonymous_mb() - start
    return {"plan s": planned, "pass s": time.perf_counter() - began, **found}


def measure_collation(folder, load_features, FeatureDataset) -> dict[str, float]:
    "Milliseconds for a batch of 32, mapped and proved, and in plain arrays."
    import numpy as np

    (path,) = folder.glob("train-*.safetensors")
    found = {}
    for name, resident in (("mapped", 0), ("in memory", 1 << 62)):
        features, metadata = load_features(path, resident)
        dataset = FeatureDataset(features, metadata["labels"], metadata["scheme"])
        for column in features.arrays.values():
            np.asarray(column)  # every block is proved
        dice = np.random.default_rng(0)
        times = []
        for _ in range(1000):
            indices = dice.integers(len(dataset), size=32)
            began = time.perf_counter()
            dataset.collate(indices)
            times.append(time.perf_counter() - began)
        found[f"batch ms, {name}"] = float(np.median(times)) * 1000
    return found


def measure(options: argparse.Namespace, copies: int) -> dict[str, float]:
    "All steps for a number of copies."
    row: dict[str, float] = {"copies": copies}
    with tempfile.TemporaryDirectory(dir=options.temporary) as name:
        folder = Path(name)
        content = (options.data_dir / "train.json").read_bytes()
        with open(folder / "train.json", "wb") as file:
            for _ in range(copies):
                file.write(content if content.endswith(b"\n") else content + b"\n")
        shutil.copy(options.data_dir / "dev.json", folder)
        time.sleep(4)  # a file that was written just now is hashed each time
        for step in STEPS:
            command = [
                sys.executable,
                __file__,
                "--step",
                step,
                "--folder",
                folder,
                "--vocab",
                options.vocab,
            ]
            if options.processes is not None:
                command += ["--processes", options.processes]
            output = subprocess.run(
                list(map(str, command)), stdout=subprocess.PIPE, check=True, text=True
            ).stdout
            row |= json.loads(output.splitlines()[-1])
    return row


def show(value: float) -> str:
    "A number for the table."
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:.3g}"
        if abs(value) < 100
        else f"{value:,.0f}"
    )


def print_table(rows: list[dict[str, float]]) -> None:
    "The rows as columns of a Markdown table."
    print("| " + " | ".join(["", *(f"{row['copies']} copies" for row in rows)]) + " |")
    print("| --- |" + " ---: |" * len(rows))
    for name in rows[0]:
        if name != "copies":
            print("| " + " | ".join([name, *(show(row[name]) for row in rows)]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data_dir", type=Path, help="folder with CLUENER's train.json and dev.json"
    )
    parser.add_argument("--vocab", type=Path, help="vocabulary of a BERT tokenizer for Chinese")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--processes", type=int, help="processes that convert; default: one a core")
    parser.add_argument("--temporary", help="folder for the copies; default: the system's")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(run_step(options)))
        return
    data = Path(os.environ.get("NERCRF_DATA", "data"))
    options.data_dir = options.data_dir or data / "cluener"
    options.vocab = options.vocab or data / "vocab-bert-base-chinese.txt"
    rows = [measure(options, copies) for copies in options.copies]
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
