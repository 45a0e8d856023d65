"""All tag sequences of tiny sentences and their scores: the truth that the tests of the CRF compare
with.
"""

import itertools

import torch

from nercrf.crf.chain import Scores
from nercrf.crf.likelihood import ALGORITHMS, load_kernels


def available():
    "The names of the algorithms that work here."
    return [name for name in ALGORITHMS if name != "kernels" or load_kernels()]


def all_paths(words, labels):
    "(labels ** words, words) int64, every tag sequence once."
    paths = list(itertools.product(range(labels), repeat=words))
    return torch.tensor(paths, dtype=torch.long).reshape(len(paths), words)


def all_scores(emissions, scores, paths):
    """(paths,) scores of paths over the (words, labels) emissions of one sentence without masked words."""
    if paths.shape[1] == 0:
        return emissions.new_zeros(1)
    total = scores.start[paths[:, 0]] + scores.end[paths[:, -1]]
    total = total + emissions[torch.arange(paths.shape[1]), paths].sum(1)
    return total + scores.transitions[paths[:, :-1], paths[:, 1:]].sum(1)


def lift(emissions, scores):
    "Both in float64, attached to the originals."
    return emissions.double(), Scores(*(score.double() for score in scores))


def enumerate_batch(emissions, scores, mask):
    "For each sentence: all paths, and their scores in float64."
    emissions, scores = lift(emissions, scores)
    result = []
    for row, keep in zip(emissions, mask, strict=True):
        paths = all_paths(int(keep.sum()), emissions.shape[2])
        result.append((paths, all_scores(row[keep], scores, paths)))
    return result


def log_partitions(truth):
    """(batch,) log partitions of what `enumerate_batch` found, -inf without a gradient where no
    path is possible.
    """
    totals = []
    for _, values in truth:
        possible = bool((values > -torch.inf).any())
        totals.append(values.logsumexp(0) if possible else values.new_full((), -torch.inf).detach())
    return torch.stack(totals) if totals else torch.zeros(0, dtype=torch.float64)


def path_numbers(tags, labels):
    "The place in `all_paths` of (..., words) tags."
    number = torch.zeros(tags.shape[:-1], dtype=torch.long)
    for column in tags.unbind(-1):
        number = number * labels + column
    return number


def random_mask(batch, words, kind, generator):
    """A mask of one of the shapes that occur: full, right and left padding, holes; some sentences
    without words.
    """
    lengths = torch.randint(0, words + 1, (batch, 1), generator=generator)
    places = torch.arange(words).expand(batch, words)
    if kind == "full":
        return torch.ones(batch, words, dtype=torch.bool)
    if kind == "right":
        return places < lengths
    if kind == "left":
        return places >= lengths
    return torch.rand(batch, words, generator=generator) < 0.6
