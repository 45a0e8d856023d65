"""Sentences a second of Ray's workers, and whether time grows in line and memory not at all.

python benchmarks/ray_tagging.py MODEL [--sentences 100000] [--workers 1 2]
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import psutil
import ray

from nercrf.data.sample import sample_corpus
from nercrf.tagging.ray import tag


def largest() -> float:
    "Memory of the largest worker, in MiB."
    sizes = [0]
    for each in psutil.Process().children(recursive=True):
        try:
            if "MapWorker" in " ".join(each.cmdline()):
                sizes.append(each.memory_info().rss)
        except psutil.Error:  # it has ended
            continue
    return max(sizes) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--sentences", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
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
            began, done, memory = time.perf_counter(), 0, 0.0
            for batch in tag(rows, args.model, workers=workers, device="cpu").iter_batches():
                done += len(batch["id"])
                memory = max(memory, largest())
            seconds = time.perf_counter() - began
            assert done == count
            print(
                f"{workers} workers, {count:,} sentences: {seconds:.1f} s, "
                f"{count / seconds:,.0f} a second, {memory:,.0f} MiB a worker"
            )


if __name__ == "__main__":
    main()
