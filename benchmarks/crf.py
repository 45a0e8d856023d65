"""The CRF beside pytorch-crf: likelihood with its gradient, and decoding.

    python benchmarks/crf.py [--threads 1] [--repeats 9]

Both run in one process in turn, on the same emissions with random lengths (one sentence is full), after their values
were compared. Printed are the medians in milliseconds and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torchcrf

from nercrf.crf import CRF

SIZES = [(32, 128, 9), (24, 64, 25), (32, 512, 23)]  # sentences, words, labels


def make_case(batch, words, labels):
    """Both CRFs with the same parameters, emissions, tags and mask."""
    torch.manual_seed(0)
    peer = torchcrf.CRF(labels, batch_first=True)
    ours = CRF(labels, batch_first=True)
    ours.load_state_dict(peer.state_dict())
    lengths = torch.randint(1, words + 1, (batch,))
    lengths[0] = words
    mask = torch.arange(words) < lengths[:, None]
    emissions = torch.randn(batch, words, labels, requires_grad=True)
    return (ours, peer), emissions, torch.randint(labels, (batch, words)), mask


def gradient(crf, emissions, tags, mask):
    """Likelihood, forward and backward."""
    emissions.grad = None
    value = crf(emissions, tags, mask)
    value.backward()
    return value


def decode(crf, emissions, tags, mask):
    """The best sequences, as lists."""
    with torch.no_grad():
        return crf.decode(emissions, mask)


def compare(work, crfs, arguments, repeats):
    """Median milliseconds of both, in turn."""
    times = [[], []]
    for _ in range(repeats + 1):
        for crf, kept in zip(crfs, times, strict=True):
            began = time.perf_counter()
            work(crf, *arguments)
            kept.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(kept[1:]) for kept in times]


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for size in SIZES:
        crfs, *arguments = make_case(*size)
        values = [float(gradient(crf, *arguments)) for crf in crfs]
        assert abs(values[0] - values[1]) < 1e-4 * abs(values[1]), values
        assert decode(crfs[0], *arguments) == decode(crfs[1], *arguments)
        for work in (gradient, decode):
            ours, peer = compare(work, crfs, arguments, options.repeats)
            print(
                f"{size!s:15} {work.__name__:9} nercrf {ours:7.1f} ms  pytorch-crf {peer:7.1f} ms  "
                f"{peer / ours:5.1f} times"
            )


if __name__ == "__main__":
    main()
