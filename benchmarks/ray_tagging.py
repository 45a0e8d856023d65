"""Sentences a second of Ray's workers, and whether time grows in line and memory not at all.

    python benchmarks/ray_tagging.py MODEL [--sentences 100000] [--workers 1 2] [--kill]

Each number of workers tags a quarter of the sentences and then all of them. With --kill, a worker is
killed (SIGKILL) when a fifth of all is done. Whatever happens, each sentence has to come out once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

import numpy as np
import psutil
import ray

from nercrf.data.sample import sample_corpus
from nercrf.tagging.ray import tag


def taggers() -> list[psutil.Process]:
    "The processes that hold a tagger."
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            if "MapWorker" in " ".join(each.cmdline()):
                found.append(each)
        except psutil.Error:  # it has ended
            continue
    return found


def largest() -> float:
    "Memory of the largest worker, in MiB: its own, without what it shares with Ray's store."
    sizes = [0]
    for each in taggers():
        try:
            sizes.append(each.memory_full_info().uss)
        except psutil.Error:
            continue
    return max(sizes) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--sentences", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kill", action="store_true", help="kill a worker on the way")
    args = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(sys.path))
    ray.init(num_cpus=max(args.workers) + 1, include_dashboard=False, log_to_driver=False)
    texts = [example.text for example in sample_corpus().train]
    for workers in args.workers:
        for share in (4, 1):
            count = args.sentences // share
            rows = ray.data.range(count).map_batches(
                lambda batch: {**batch, "text": [texts[n % len(texts)] for n in batch["id"]]}
            )
            began, first, memory, killed = time.perf_counter(), 0.0, 0.0, 0
            times = np.zeros(count, dtype=np.int64)
            for batch in tag(rows, args.model, workers=workers, device="cpu").iter_batches():
                first = first or time.perf_counter() - began
                np.add.at(times, batch["id"], 1)
                memory = max(memory, largest())
                if args.kill and share == 1 and not killed and times.sum() > count / 5:
                    os.kill(taggers()[0].pid, signal.SIGKILL)
                    killed = 1
            seconds = time.perf_counter() - began
            assert (times == 1).all()  # nothing lost, nothing doubled
            print(
                f"{workers} workers, {count:,} sentences, {killed} killed: {seconds:.1f} s "
                f"({first:.1f} s to the first batch), {count / seconds:,.0f} a second, "
                f"{memory:,.0f} MiB a worker",
                flush=True,
            )


if __name__ == "__main__":
    main()
