"""The algorithms under the CRF against enumeration over all paths, against the log domain, and
against themselves.
"""

import itertools
import math
import subprocess
import sys
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import torchcrf
from enumeration import (
    all_paths,
    all_scores,
    available,
    enumerate_batch,
    lift,
    log_partitions,
    path_numbers,
    random_mask,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nercrf.crf import decoding, likelihood, scaled
from nercrf.crf.chain import (
    IGNORED,
    Scores,
    check_path,
    first_words,
    follow_path,
    path_scores,
    previous_words,
)
from nercrf.crf.decoding import (
    MAX_PLUS_BYTES,
    best_paths,
    best_paths_packed,
    best_paths_padded,
    best_paths_scan,
    count_chunks,
    forward_scan,
    forward_states,
    k_best_paths,
    sample_paths,
)
from nercrf.crf.layer import CRF
from nercrf.crf.likelihood import ALGORITHMS, choose_algorithm, load_kernels, log_likelihood
from nercrf.crf.log_domain import backward_pass, forward_pass, log_partition, pair_marginals
from nercrf.crf.packing import pack
from nercrf.labels import label_list

torch.set_num_threads(1)
FAST = settings(max_examples=50, deadline=None, derandomize=True)
NAMES = available()
FASTER = [name for name in NAMES if name != "log"]
MASKS = ["full", "right", "left", "holes"]
INF = math.inf


class Problem(NamedTuple):
    "A batch with a chain. The tags are possible wherever the sentence has a possible path."

    emissions: Tensor
    scores: Scores
    mask: Tensor
    tags: Tensor
    possible: Tensor  # (batch,) bool


def possible_tags(truth, mask, generator):
    """Tags of a random possible path of each sentence, and which sentences have one; nonsense where
    masked.
    """
    tags, possible = torch.full(mask.shape, 77), torch.zeros(len(mask), dtype=torch.bool)
    for sequence, (paths, values) in enumerate(truth):
        choices = (values > -INF).nonzero().flatten()
        possible[sequence] = len(choices) > 0
        if len(choices):
            pick = choices[int(torch.randint(len(choices), (), generator=generator))]
            tags[sequence, mask[sequence]] = paths[pick]
    return tags, possible


@st.composite
def problems(
    draw,
    forbidden=(0.0, 0.3, 0.6),
    dtypes=(torch.float32, torch.float64),
    least_batch=0,
    holes=(0.0, 0.2),
):
    "A small chain with forbidden steps and a batch of tiny sentences."
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    labels, batch, words = (
        draw(st.integers(1, 4)),
        draw(st.integers(least_batch, 4)),
        draw(st.integers(0, 5)),
    )
    size, dtype = draw(st.sampled_from([0.1, 1.0, 10.0, 100.0])), draw(st.sampled_from(dtypes))
    rate, lost = draw(st.sampled_from(forbidden)), draw(st.sampled_from(holes))

    def drawn(rate, *shape):
        values = size * torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).masked_fill(torch.rand(shape, generator=generator) < rate, -INF)

    scores = Scores(drawn(rate, labels), drawn(rate, labels, labels), drawn(rate, labels))
    emissions = drawn(lost, batch, words, labels)
    mask = random_mask(batch, words, draw(st.sampled_from(MASKS)), generator)
    tags, possible = possible_tags(enumerate_batch(emissions, scores, mask), mask, generator)
    return Problem(emissions, scores, mask, tags, possible)


def attached(emissions, scores):
    "Copies that want a gradient."
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (emissions, *scores)]
    return inputs[0], Scores(*inputs[1:])


def weighted_gradients(value, emissions, scores):
    "Gradients of a weighted sum of the sentences."
    weights = torch.linspace(0.5, 2.0, len(value), dtype=value.dtype)
    inputs = (emissions, *scores)
    return torch.autograd.grad(value, inputs, weights, allow_unused=True, materialize_grads=True)


def assert_gradients_close(got, wanted, atol):
    for name, one, other in zip(("emissions", *Scores._fields), got, wanted, strict=True):
        torch.testing.assert_close(
            one, other, rtol=atol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


# Paths


def test_previous_and_first_words():
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    assert previous_words(mask).tolist() == [[-1, -1, 1, 1, 3], [-1, 0, 1, 1, 1], [-1] * 5]
    assert first_words(mask).nonzero().tolist() == [[0, 1], [1, 0]]


def test_follow_path():
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]).bool()
    path = follow_path(mask, torch.tensor([[9, 3, 9, 1, 2], [4, 9, 9, 9, -100]]))
    assert path.tags.tolist() == [[0, 3, 0, 1, 2], [4, 0, 0, 0, 0]]
    assert path.left[0, 3:].tolist() == [3, 1]
    assert path.begins.nonzero().tolist() == [[0, 1], [1, 0]]
    assert path.ends.nonzero().tolist() == [[0, 4], [1, 0]]


def test_path_scores_by_hand():
    scores = Scores(
        torch.tensor([1.0, 2.0]),
        torch.tensor([[10.0, 20.0], [30.0, 40.0]]),
        torch.tensor([100.0, 200.0]),
    )
    emissions = torch.tensor([[[0.1, 0.2], [math.nan, INF], [0.3, 0.4]]])
    mask = torch.tensor([[True, False, True]])
    value = path_scores(emissions, scores, mask, follow_path(mask, torch.tensor([[1, -100, 0]])))
    torch.testing.assert_close(value, torch.tensor([2.0 + 0.2 + 30.0 + 0.3 + 100.0]))


@FAST
@given(problems(forbidden=[0.0], holes=[0.0]))
def test_path_scores_equal_enumeration(problem):
    emissions, scores = lift(problem.emissions, problem.scores)
    got = path_scores(emissions, scores, problem.mask, follow_path(problem.mask, problem.tags))
    for value, row, keep, tags in zip(got, emissions, problem.mask, problem.tags, strict=True):
        torch.testing.assert_close(
            value, all_scores(row[keep], scores, tags[keep][None])[0], rtol=1e-12, atol=1e-12
        )


# Likelihood and gradients


@FAST
@given(problems(least_batch=1))
def test_log_domain_equals_enumeration(problem):
    emissions, scores = attached(*lift(problem.emissions, problem.scores))
    total = log_partition(emissions, scores, problem.mask)
    wanted = log_partitions(enumerate_batch(emissions, scores, problem.mask))
    torch.testing.assert_close(total, wanted, rtol=1e-11, atol=1e-11)
    states = forward_pass(emissions, scores, problem.mask)
    endings = backward_pass(emissions, scores, problem.mask)
    assert (
        states.shape
        == endings.shape
        == (*problem.mask.shape[:1], problem.mask.shape[1] + 1, len(scores.start))
    )
    assert not states.isnan().any()
    assert not endings.isnan().any()
    if wanted.requires_grad:
        got = weighted_gradients(total, emissions, scores)
        assert_gradients_close(got, weighted_gradients(wanted, emissions, scores), 1e-9)


@pytest.mark.parametrize("given_tags", [False, True])
@pytest.mark.parametrize("name", NAMES)
@FAST
@given(problem=problems(), chunk=st.sampled_from([1, 3, 2048]))
def test_value_and_gradients_equal_enumeration(name, given_tags, problem, chunk):
    # What has no possible path has its own test.
    mask = problem.mask & problem.possible.unsqueeze(1)
    emissions, scores = attached(problem.emissions, problem.scores)
    tags = problem.tags if given_tags else None
    wanted = -log_partitions(enumerate_batch(emissions, scores, mask))
    if given_tags:
        gold = [
            values[path_numbers(row[keep], len(scores.start))]
            for (_, values), row, keep in zip(
                enumerate_batch(emissions, scores, mask), problem.tags, mask, strict=True
            )
        ]
        wanted = wanted + (torch.stack(gold) if gold else 0)
    with mock.patch.object(scaled, "CHUNK", chunk):
        value = log_likelihood(emissions, scores, mask, tags, name)
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10)
        alone = log_likelihood(
            emissions.detach(), Scores(*(score.detach() for score in scores)), mask, tags, name
        )
        torch.testing.assert_close(alone, wanted.detach(), rtol=1e-10, atol=1e-10)
        assert not alone.requires_grad
        got = weighted_gradients(value, emissions, scores)
    if wanted.requires_grad:
        tolerance = 1e-9 if emissions.dtype == torch.float64 else 2e-6
        assert_gradients_close(got, weighted_gradients(wanted, emissions, scores), tolerance)
    assert all(gradient.dtype == emissions.dtype for gradient in got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_equals_enumeration(name, dtype):
    generator = torch.Generator().manual_seed(3)
    scores = Scores(
        *(torch.randn(shape, generator=generator).to(dtype) for shape in [(3,), (3, 3), (3,)])
    )
    emissions, scores = attached((5 * torch.randn(4, 5, 3, generator=generator)).to(dtype), scores)
    mask = random_mask(4, 5, "holes", generator)
    value = log_likelihood(emissions, scores, mask, algorithm=name)
    wanted = -log_partitions(enumerate_batch(emissions, scores, mask))
    torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10)
    for got, expected in zip(
        weighted_gradients(value, emissions, scores),
        weighted_gradients(wanted, emissions, scores),
        strict=True,
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)
    tags, total = best_paths(emissions, scores, mask, name)
    for row, keep, path, best in zip(*lift(emissions, scores)[:1], mask, tags, total, strict=True):
        values = all_scores(row[keep], lift(emissions, scores)[1], all_paths(int(keep.sum()), 3))
        torch.testing.assert_close(best, values.max().detach(), rtol=1e-12, atol=1e-12)
        assert values[path_numbers(path[keep], 3)] >= best - 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_literal_values(name):
    "Two labels, nothing learnt: each of the 2 ** words paths has the same weight."
    zero = Scores(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2))
    mask = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    value = log_likelihood(
        torch.zeros(3, 3, 2), zero, mask, torch.zeros(3, 3, dtype=torch.long), name
    )
    torch.testing.assert_close(value, -math.log(2) * torch.tensor([3.0, 2.0, 0.0]).double())
    certain = Scores(
        torch.tensor([0.0, -INF]),
        torch.tensor([[-INF, 0.0], [0.0, -INF]]),
        torch.tensor([0.0, -INF]),
    )
    value = log_likelihood(torch.zeros(1, 3, 2), certain, mask[:1], torch.tensor([[0, 1, 0]]), name)
    assert value.tolist() == [0.0]
    assert log_likelihood(torch.zeros(1, 2, 2), certain, mask[:1, :2], algorithm=name).tolist() == [
        INF
    ]


@pytest.mark.parametrize("name", FASTER)
@pytest.mark.parametrize("batch", [0, 3])
def test_without_words(name, batch):
    scores = Scores(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2))
    for words in (0, 4):
        emissions, given_scores = attached(torch.randn(batch, words, 2), scores)
        mask = torch.zeros(batch, words, dtype=torch.bool)
        value = log_likelihood(
            emissions, given_scores, mask, torch.full((batch, words), IGNORED), name
        )
        assert value.tolist() == [0.0] * batch
        for gradient in weighted_gradients(value, emissions, given_scores):
            assert gradient.abs().sum() == 0
        tags, total = best_paths(emissions, given_scores, mask, name)
        assert tags.tolist() == [[IGNORED] * words] * batch
        assert total.tolist() == [0.0] * batch


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_can_be_used_twice(name):
    emissions, scores = attached(
        torch.randn(3, 5, 3), Scores(torch.randn(3), torch.randn(3, 3), torch.randn(3))
    )
    value = log_likelihood(
        emissions, scores, torch.ones(3, 5, dtype=torch.bool), algorithm=name
    ).sum()
    inputs = (emissions, *scores)
    first = [gradient.clone() for gradient in torch.autograd.grad(value, inputs, retain_graph=True)]
    for one, other in zip(first, torch.autograd.grad(value, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", FASTER)
def test_any_subset_of_inputs_may_want_a_gradient(name):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 4, 3), torch.randn(3), torch.randn(3, 3), torch.randn(3)]
    mask, tags = torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.long)
    emissions, scores = attached(inputs[0], inputs[1:])
    full = torch.autograd.grad(
        log_likelihood(emissions, scores, mask, tags, name).sum(), (emissions, *scores)
    )
    for wanted in itertools.product([False, True], repeat=4):
        if not any(wanted):
            continue
        given_inputs = [
            tensor.clone().requires_grad_(want) for tensor, want in zip(inputs, wanted, strict=True)
        ]
        for second_order in (False, True):
            value = log_likelihood(
                given_inputs[0], Scores(*given_inputs[1:]), mask, tags, name
            ).sum()
            chosen = list(itertools.compress(given_inputs, wanted))
            got = torch.autograd.grad(value, chosen, create_graph=second_order)
            for one, other in zip(got, itertools.compress(full, wanted), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("given_tags", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_of_first_and_second_order(name, given_tags):
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in [(2, 4, 3), (3,), (3, 3), (3,)]
    ]
    mask = torch.tensor([[True, True, True, True], [False, True, False, True]])
    tags = torch.tensor([[1, 2, 0, 0], [0, 1, 1, 2]]) if given_tags else None

    def likelihood(emissions, *scores):
        return log_likelihood(emissions, Scores(*scores), mask, tags, name)

    assert torch.autograd.gradcheck(likelihood, inputs)
    assert torch.autograd.gradgradcheck(likelihood, inputs)


# Numbers that underflow, sentences that are bad


def assert_equals_log_domain(name, emissions, scores, mask):
    "Value and gradients of an algorithm against autograd through the log domain."
    wanted_inputs = attached(emissions, scores)
    wanted = -log_partition(*wanted_inputs, mask)
    for value in (
        log_likelihood(emissions, scores, mask, algorithm=name),
        log_likelihood(*attached(emissions, scores), mask, algorithm=name).detach(),
    ):
        torch.testing.assert_close(value, wanted.detach(), rtol=1e-9, atol=1e-9, equal_nan=True)
    mask = mask & wanted.isfinite().unsqueeze(1)
    got_inputs = attached(emissions, scores)
    got = weighted_gradients(log_likelihood(*got_inputs, mask, algorithm=name), *got_inputs)
    expected = weighted_gradients(-log_partition(*wanted_inputs, mask), *wanted_inputs)
    assert_gradients_close(got, expected, 1e-7)
    return wanted.detach()


def make_adversary(kind, seed):
    "A chain and a batch on which numbers underflow."
    generator = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    labels, words, batch = integer(1, 7), integer(1, 41), 5
    emissions = [1, 10, 100, 300, 1000][seed % 5] * normal(batch, words, labels)
    scores = [normal(labels), normal(labels, labels), normal(labels)]
    if kind == "forbidden":
        scores = [score.masked_fill(uniform(*score.shape) < 0.6, -INF) for score in scores]
    if kind == "one way":
        later = torch.ones(labels, labels).triu().bool()
        scores[1] = scores[1].masked_fill(~later, -INF)
        scores[0][1:] = -INF
        scores[2][:-1] = -INF
    if kind == "range":
        size = [400, 700, 1000, 1500, 3000, 1e4][seed % 6]
        scores = [
            -size * (uniform(*score.shape) * (1 + 4 * (seed % 2))).round() / (1 + 4 * (seed % 2))
            if seed % 2
            else -size * uniform(*score.shape)
            for score in scores
        ]
    if kind == "edge":
        size = [150, 200, 250, 290, 299.9, 301][seed % 6]
        scores = [
            -size * torch.randint(0, 3, score.shape, generator=generator).double() / 2
            for score in scores
        ]
        steps = torch.tensor([0.0, 150.0, 1e4]).double()
        emissions = -steps[torch.randint(0, 3, emissions.shape, generator=generator)]
    if kind == "impossible labels":
        emissions = emissions.masked_fill(uniform(*emissions.shape) < 0.5, -INF)
        scores[1] = scores[1].masked_fill(uniform(labels, labels) < 0.2, -INF)
    mask = random_mask(batch, words, MASKS[seed % 4], generator)
    return emissions, Scores(*scores), mask


@pytest.mark.parametrize(
    "kind", ["plain", "forbidden", "one way", "range", "edge", "impossible labels"]
)
@pytest.mark.parametrize("name", NAMES)
def test_never_a_silent_wrong_number(name, kind):
    finite = 0
    for seed in range(40):
        wanted = assert_equals_log_domain(name, *make_adversary(kind, seed))
        finite += int((wanted.isfinite() & (wanted != 0)).sum())
    assert finite >= 10  # of 200


@pytest.mark.parametrize("name", NAMES)
def test_lost_before_the_first_scaling(name):
    """Tables whose range is 300 nats, the first word a label that starts at -300, the second one
    that leads to -300.
    """
    scores = [[0.0, -300.0], [[0.0, -300.0], [-300.0, -300.0]], [0.0, 0.0]]
    emissions = torch.tensor([[[-1e4, 0], [-150, 0], [0, -1e4]]]).double()
    scores = Scores(*(torch.tensor(score).double() for score in scores))
    wanted = assert_equals_log_domain(name, emissions, scores, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(wanted, torch.tensor([750.0]).double())


@pytest.mark.parametrize("name", NAMES)
def test_lost_within_the_sentence(name):
    emissions = [[0, -1e4], [0, -1e4], [-1e4, 0], [-150, 0], [0, -1e4], [0, -1e4]]
    emissions = torch.tensor([emissions]).double()
    scores = Scores(
        *(
            torch.tensor(score).double()
            for score in [[0.0, 0], [[0.0, -300], [-300, -300]], [0.0, 0]]
        )
    )
    for shift in range(2):
        mask = torch.ones(1, 6, dtype=torch.bool)
        mask[0, :shift] = False
        wanted = assert_equals_log_domain(name, emissions, scores, mask)
        torch.testing.assert_close(wanted, torch.tensor([750.0]).double())


@pytest.mark.parametrize("name", NAMES)
def test_gradient_where_every_step_costs_the_whole_range(name):
    scores = [[0.0, -300.0], [[0.0, 0.0], [0.0, -300.0]], [0.0, -300.0]]
    emissions = torch.tensor([[[-1e4, 0], [-1e4, 0]]]).double()
    scores = Scores(*(torch.tensor(score).double() for score in scores))
    wanted = assert_equals_log_domain(name, emissions, scores, torch.ones(1, 2, dtype=torch.bool))
    assert wanted.tolist() == [900.0]


@pytest.mark.parametrize("name", NAMES)
def test_one_word_where_no_label_may_follow_another(name):
    zero = torch.zeros(2, dtype=torch.float64)
    scores = Scores(zero, torch.full((2, 2), -INF).double(), zero)
    emissions = torch.zeros(2, 1, 2, dtype=torch.float64)
    wanted = assert_equals_log_domain(name, emissions, scores, torch.tensor([[True], [False]]))
    torch.testing.assert_close(wanted, torch.tensor([-math.log(2), 0.0]).double())


@pytest.mark.parametrize("closed", ["start", "transitions", "end"])
@pytest.mark.parametrize("name", NAMES)
def test_sentences_without_a_possible_path(name, closed):
    "Their log partition is -inf, and they leave the gradients of the others alone."
    torch.manual_seed(0)
    free = Scores(torch.randn(2), torch.randn(2, 2), torch.randn(2))
    scores = free._replace(**{closed: torch.full_like(getattr(free, closed), -INF)})
    emissions, mask = torch.randn(3, 4, 2), torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    assert log_likelihood(emissions, scores, mask, algorithm=name).tolist() == [INF, 0.0, INF]
    inputs = attached(emissions, scores)
    value = log_likelihood(*inputs, mask, algorithm=name)
    assert value.tolist() == [INF, 0.0, INF]
    for gradient in weighted_gradients(value, *inputs):
        assert gradient.abs().sum() == 0


@pytest.mark.parametrize("name", NAMES)
def test_an_impossible_sentence_beside_a_possible_one(name):
    "Label 0 leads nowhere but to itself, and no sentence ends with it."
    table = torch.tensor([[0.5, -INF], [-INF, 0.25]]).double()
    scores = Scores(torch.tensor([0.0, 0.0]).double(), table, torch.tensor([-INF, 0.0]).double())
    emissions = torch.randn(2, 3, 2, dtype=torch.float64)
    emissions[0, 1, 1] = -INF
    mask = torch.ones(2, 3, dtype=torch.bool)
    inputs = attached(emissions, scores)
    value = log_likelihood(*inputs, mask, algorithm=name)
    torch.testing.assert_close(
        value, torch.stack([torch.tensor(INF).double(), -(emissions[1, :, 1].sum() + 0.5)])
    )
    gradients = torch.autograd.grad(value, (inputs[0], *inputs[1]), torch.ones(2).double())
    torch.testing.assert_close(gradients[0][1], torch.tensor([[0.0, -1.0]] * 3).double())
    assert gradients[0][0].abs().sum() == 0
    torch.testing.assert_close(gradients[2], torch.tensor([[0.0, 0.0], [0.0, -2.0]]).double())


@pytest.mark.parametrize("given_tags", [False, True])
@pytest.mark.parametrize("bad", [math.nan, INF, -INF, 1e25, -1e25])
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_sentence_never_changes_the_others(name, bad, given_tags):
    generator = torch.Generator().manual_seed(0)
    emissions = torch.randn(5, 9, 4, generator=generator)
    scores = Scores(torch.zeros(4), torch.randn(4, 4, generator=generator), torch.zeros(4))
    mask = torch.arange(9) < torch.tensor([[9], [4], [9], [1], [7]])
    tags = torch.zeros(5, 9, dtype=torch.long) if given_tags else None
    rest = [0, 1, 3, 4]
    results = []
    for value in (0.0, bad):
        spoilt = emissions.clone()
        spoilt[2, 5] = value
        spoilt[~mask] = value
        spoilt, wanted_scores = attached(spoilt, scores)
        likelihood = log_likelihood(spoilt, wanted_scores, mask, tags, name)
        (gradient,) = torch.autograd.grad(likelihood, spoilt, torch.ones(5, dtype=torch.float64))
        tree = best_paths(spoilt, wanted_scores, mask, name)[0]
        results.append((likelihood[rest].detach(), gradient[rest], tree[rest]))
    assert gradient[~mask].abs().sum() == 0
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if math.isnan(bad) or (given_tags and math.isinf(bad)):
        assert likelihood[2].isnan()
    elif math.isinf(bad):
        assert likelihood[2] == -bad
    else:
        assert likelihood[2].isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_the_padding_value_of_attention_masks_is_a_number(name):
    "finfo.min for all but one label: the one is certain."
    emissions = torch.full((1, 3, 3), torch.finfo(torch.float32).min)
    emissions[0, :, 1] = 2.0
    scores = Scores(torch.ones(3), torch.ones(3, 3), torch.ones(3))
    emissions, scores = attached(emissions, scores)
    value = log_likelihood(emissions, scores, torch.ones(1, 3, dtype=torch.bool), algorithm=name)
    assert value.tolist() == [-10.0]
    gradients = torch.autograd.grad(value.sum(), (emissions, scores.transitions))
    assert gradients[0].tolist() == [[[0.0, -1.0, 0.0]] * 3]
    assert gradients[1].tolist() == [[0.0, 0.0, 0.0], [0.0, -2.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", FASTER)
def test_ordinary_batches_need_no_log_domain(name):
    "Neither plain chains nor those of a BIO scheme, nor partial annotation, fall back."
    generator = torch.Generator().manual_seed(0)
    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    for constrained in (False, True):
        crf = CRF.from_labels(
            names, batch_first=True, constrain_likelihood=constrained, algorithm=name
        )
        emissions = (5 * torch.randn(4, 200, 5, generator=generator)).requires_grad_()
        allowed = torch.rand(4, 200, 5, generator=generator) < 0.7
        allowed[:, :, 0] = True
        with mock.patch.object(
            likelihood, "log_domain_likelihood", side_effect=AssertionError("fell back")
        ):
            crf(emissions, torch.zeros(4, 200, dtype=torch.long)).backward()
            crf(emissions, allowed).backward()
            crf.marginals(emissions)


# Errors


def test_check_path_says_where():
    scores = Scores(
        torch.tensor([0.0, 0.0, -INF]),
        torch.tensor([[0.0, 0.0, -INF], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        torch.tensor([0.0, -INF, 0.0]),
    )
    mask = torch.tensor([[True, True, True], [False, True, True]])
    tail = "; repair the tags or leave the constraints out of the likelihood"
    head = "the constraints forbid the given tags of sequence "
    for tags, message in {
        ((0, 0, 0), (9, 2, 0)): head
        + "1: tag 2 at the beginning of the sentence, at word 1"
        + tail,
        ((1, 0, 2), (9, 1, 0)): head + "0: tag 2 after tag 0, at word 2" + tail,
        ((1, 2, 2), (9, 1, 1)): head + "1: tag 1 at the end of the sentence, at word 2" + tail,
        ((0, 0, 0), (9, 0, 3)): "expected tags of 0 to 2, got 3 at word 2 of sequence 1; "
        "mask the word out or give it the tag -100",
        ((0, -1, 0), (9, 0, 0)): "expected tags of 0 to 2, got -1 at word 1 of sequence 0; "
        "mask the word out or give it the tag -100",
    }.items():
        for function in (
            lambda tags: check_path(scores, mask, tags),
            *(
                lambda tags, name=name: log_likelihood(
                    torch.zeros(2, 3, 3), scores, mask, tags, name
                )
                for name in NAMES
            ),
        ):
            with pytest.raises(ValueError, match="tag") as caught:
                function(torch.tensor(tags))
            assert str(caught.value) == message
    check_path(scores, mask, torch.tensor([[0, 0, 0], [9, 1, 2]]))
    # A hole joins the words around it.
    with pytest.raises(ValueError, match="tag 2 after tag 0, at word 2"):
        check_path(scores, torch.tensor([[True, False, True]]), torch.tensor([[0, 1, 2]]))


def test_choose_algorithm():
    assert list(ALGORITHMS) == ["log", "scaled", "scan", "loop", "kernels"]
    cpu = torch.device("cpu")
    assert choose_algorithm("auto", cpu) == ("kernels" if "kernels" in NAMES else "scaled")
    cuda = torch.device("cuda")
    assert choose_algorithm("auto", cuda) == "scan"
    for shape, wanted in {
        (32, 512, 23): "scan",
        (8, 512, 41): "scan",
        (1, 4096, 9): "scan",
        (32, 512, 73): "loop",
        (32, 128, 217): "loop",
    }.items():
        assert choose_algorithm("auto", cuda, shape) == wanted
    assert choose_algorithm("auto", torch.device("mps")) == "log"
    assert choose_algorithm("scan", cpu) == "scan"
    with pytest.raises(
        ValueError,
        match="expected the algorithm 'auto' or one of log, scaled, scan, loop, kernels, got 'x'",
    ):
        choose_algorithm("x", cpu)
    with mock.patch.object(likelihood, "load_kernels", return_value=None):
        assert choose_algorithm("auto", cpu) == "scaled"
        with pytest.raises(ValueError, match="the algorithm 'kernels' needs a working numba"):
            choose_algorithm("kernels", cpu)


# Best paths


@pytest.mark.parametrize("name", NAMES)
@FAST
@given(problem=problems())
def test_best_paths_equal_enumeration(name, problem):
    emissions, scores, mask = problem[:3]
    tags, total = best_paths(emissions, scores, mask, name)
    assert tags.shape == mask.shape
    assert (tags[~mask] == IGNORED).all()
    for (_, values), path, best, keep in zip(
        enumerate_batch(emissions, scores, mask), tags, total, mask, strict=True
    ):
        torch.testing.assert_close(best.double(), values.max(), rtol=1e-12, atol=1e-12)
        if best > -INF:
            attained = values[path_numbers(path[keep], len(scores.start))]
            torch.testing.assert_close(attained, values.max(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@FAST
@given(seed=st.integers(0, 2**31), labels=st.integers(1, 4), words=st.integers(1, 5))
def test_tied_best_paths_are_best_paths(name, seed, labels, words):
    "Whole numbers: many paths have the best score, and none may be put together from two of them."
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randint(0, 2, shape, generator=generator).double()

    scores = Scores(drawn(labels), drawn(labels, labels), drawn(labels))
    emissions, mask = drawn(4, words, labels), random_mask(4, words, "holes", generator)
    tags, total = best_paths(emissions, scores, mask, name)
    for (_, values), path, best, keep in zip(
        enumerate_batch(emissions, scores, mask), tags, total, mask, strict=True
    ):
        assert values[path_numbers(path[keep], labels)] == best == values.max()


@FAST
@given(
    seed=st.integers(0, 2**31),
    labels=st.integers(1, 5),
    words=st.integers(1, 20),
    chunks=st.one_of(st.none(), st.integers(1, 20)),
    kind=st.sampled_from(MASKS),
    forbidden=st.sampled_from([0.0, 0.3, 0.6]),
    largest=st.sampled_from([1, 2, 50]),
)
def test_the_scan_breaks_ties_as_the_steps_do(
    seed, labels, words, chunks, kind, forbidden, largest
):
    "Whole numbers, so sums are exact in any order: the same paths and scores as word by word."
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        values = torch.randint(-largest, largest, shape, generator=generator).double()
        return values.masked_fill(torch.rand(shape, generator=generator) < forbidden, -INF)

    scores = Scores(drawn(labels), drawn(labels, labels), drawn(labels))
    emissions, mask = drawn(4, words, labels), random_mask(4, words, kind, generator)
    tags, total = best_paths_scan(
        emissions.masked_fill(~mask[..., None], math.nan), scores, mask, chunks
    )
    stepped_tags, stepped_total = best_paths_padded(emissions, scores, mask)
    assert torch.equal(total, stepped_total)
    possible = total > -INF
    assert torch.equal(tags[possible], stepped_tags[possible])
    assert (tags[~mask] == IGNORED).all()
    if mask.any():
        packed_tags, packed_total = best_paths_packed(emissions, scores, mask)
        assert torch.equal(total, packed_total)
        assert torch.equal(tags[possible], packed_tags[possible])


@pytest.mark.parametrize("size", [(3, 200, 5), (2, 97, 11), (4, 1, 3), (2, 40, 60)])
def test_the_scan_finds_the_paths_of_the_steps(size):
    generator = torch.Generator().manual_seed(0)
    batch, words, labels = size

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    scores = Scores(drawn(labels), 3 * drawn(labels, labels), drawn(labels))
    emissions, mask = drawn(*size), torch.rand(batch, words, generator=generator) < 0.9
    mask[0] = True
    wanted = best_paths_packed(emissions, scores, mask)
    for chunks in (None, 1, 2, 5, words):
        tags, total = best_paths_scan(emissions, scores, mask, chunks)
        assert torch.equal(tags, wanted[0])
        torch.testing.assert_close(total, wanted[1], rtol=1e-13, atol=1e-13)


def test_the_scan_bounds_its_memory():
    "Chunks by memory: what one step takes stays below the bound; with few of them it goes word by word."
    for batch, words, labels in itertools.product((1, 32, 500), (1, 128, 4096), (2, 23, 73, 500)):
        chunks = count_chunks(batch, words, labels)
        assert 1 <= chunks <= max(1, words)
        assert chunks == 1 or chunks * batch * labels**3 * 8 <= MAX_PLUS_BYTES
    assert count_chunks(32, 512, 23) == 32
    assert count_chunks(32, 512, 73) == count_chunks(32, 128, 217) == 1


@FAST
@given(problem=problems(dtypes=[torch.float64]), chunks=st.one_of(st.none(), st.integers(1, 5)))
def test_the_scan_of_all_paths_equals_the_passes(problem, chunks):
    emissions, scores, mask = problem[:3]

    def scan(emissions, scores, mask):
        return forward_scan(emissions, scores, mask, chunks)

    def possible(states):
        "Weights that are none are large and negative, of no size that counts."
        return states.masked_fill(states < -1e29, -1e30)

    wanted = forward_pass(emissions, scores, mask)
    torch.testing.assert_close(
        possible(scan(emissions, scores, mask)), possible(wanted), rtol=1e-12, atol=1e-9
    )
    wanted = backward_pass(emissions, scores, mask)
    found = backward_pass(emissions, scores, mask, scan)
    torch.testing.assert_close(possible(found), possible(wanted), rtol=1e-12, atol=1e-9)


def test_an_accelerator_scans_all_paths():
    scores = Scores(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2))
    batch = torch.zeros(1, 3, 2), scores, torch.ones(1, 3, dtype=torch.bool)
    with mock.patch.object(decoding, "forward_scan", side_effect=AssertionError("scanned")):
        assert torch.equal(forward_states(*batch), forward_pass(*batch))
        with pytest.raises(AssertionError, match="scanned"):
            forward_states(batch[0].to("meta"), *batch[1:])


@FAST
@given(problem=problems(dtypes=[torch.float64]), k=st.sampled_from([1, 2, 3, 10, 100]))
def test_k_best_paths_equal_enumeration(problem, k):
    emissions, scores, mask, _, possible = problem
    labels = len(scores.start)
    found = k_best_paths(emissions, scores, mask, k)
    assert found.tags.shape == (len(mask), k, mask.shape[1])
    assert found.scores.shape == found.log_probabilities.shape == (len(mask), k)
    truth = enumerate_batch(emissions, scores, mask)
    for sequence, ((_, values), keep) in enumerate(zip(truth, mask, strict=True)):
        wanted = values[values > -INF].sort(descending=True).values[:k]
        count = len(wanted)
        tags, got = found.tags[sequence], found.scores[sequence]
        torch.testing.assert_close(got[:count], wanted, rtol=1e-12, atol=1e-12)
        assert got[count:].tolist() == [-INF] * (k - count)
        assert (tags[count:] == IGNORED).all()
        assert (tags[:, ~keep] == IGNORED).all()
        numbers = path_numbers(tags[:count, keep], labels)
        assert len(set(numbers.tolist())) == count
        torch.testing.assert_close(values[numbers], wanted, rtol=1e-12, atol=1e-12)
        if possible[sequence]:
            chances = found.log_probabilities[sequence]
            torch.testing.assert_close(
                chances[:count], wanted - values.logsumexp(0), rtol=1e-9, atol=1e-9
            )
            assert chances[count:].tolist() == [-INF] * (k - count)


# Distributions


@FAST
@given(problem=problems(dtypes=[torch.float64]))
def test_transition_probabilities_equal_enumeration(problem):
    emissions, scores, _, _, possible = problem
    mask = problem.mask & possible.unsqueeze(1)
    labels = len(scores.start)
    got = pair_marginals(emissions, scores, mask)
    assert got.shape == (*mask.shape, labels, labels)
    for chances, (paths, values), keep in zip(
        got, enumerate_batch(emissions, scores, mask), mask, strict=True
    ):
        wanted, places = torch.zeros_like(chances), keep.nonzero().flatten()
        weights = (values - values.logsumexp(0)).exp()
        for word in range(1, len(places)):
            pairs = paths[:, word - 1] * labels + paths[:, word]
            wanted[places[word]].view(-1).index_add_(0, pairs, weights)
        torch.testing.assert_close(chances, wanted, rtol=1e-9, atol=1e-9)


def test_transition_probabilities_sum_to_the_marginals():
    generator = torch.Generator().manual_seed(0)
    scores = Scores(
        *(torch.randn(shape, generator=generator).double() for shape in [(4,), (4, 4), (4,)])
    )
    emissions = (3 * torch.randn(3, 20, 4, generator=generator)).double()
    mask = random_mask(3, 20, "holes", generator)
    emissions, scores = attached(emissions, scores)
    total = log_likelihood(emissions, scores, mask, algorithm="scaled").sum()
    marginals = -torch.autograd.grad(total, emissions)[0]
    with torch.no_grad():
        pairs = pair_marginals(emissions, scores, mask)
    inner = mask & ~first_words(mask)
    assert inner.sum() > 20
    torch.testing.assert_close(pairs.sum(2)[inner], marginals[inner])
    left = marginals.gather(1, previous_words(mask).clamp(min=0).unsqueeze(2).expand_as(marginals))
    torch.testing.assert_close(pairs.sum(3)[inner], left[inner])
    assert pairs[~inner].abs().sum() == 0


@pytest.mark.parametrize("seed", range(4))
def test_samples_follow_the_distribution(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randn(shape, generator=generator).double() for shape in [(3,), (3, 3), (3,)]]
    scores[1][seed % 3, 0] = -INF
    scores = Scores(*scores)
    emissions = torch.randn(2, 5, 3, generator=generator).double()
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    count = 20_000
    drawn = sample_paths(emissions, scores, mask, count, torch.Generator().manual_seed(7))
    assert drawn.shape == (2, count, 5)
    assert drawn.dtype == torch.long
    for sequence, (paths, values) in enumerate(enumerate_batch(emissions, scores, mask)):
        assert (drawn[sequence][:, ~mask[sequence]] == IGNORED).all()
        numbers = path_numbers(drawn[sequence][:, mask[sequence]], 3)
        counts = torch.bincount(numbers, minlength=len(paths)).double()
        chances = (values - values.logsumexp(0)).exp()
        assert (counts[chances == 0] == 0).all()
        assert (chances == 0).any()
        sigma = (count * chances * (1 - chances)).sqrt()
        # Neighbours as well as single paths: the sum of squares is chi-squared.
        assert ((counts - count * chances).abs() <= 5 * sigma + 1).all()
        often = count * chances > 5
        squares = ((counts - count * chances)[often] ** 2 / (count * chances)[often]).sum()
        assert squares < often.sum() + 5 * (2 * often.sum()).sqrt()
    again = sample_paths(emissions, scores, mask, count, torch.Generator().manual_seed(7))
    assert torch.equal(drawn, again)
    other = sample_paths(emissions, scores, mask, count, torch.Generator().manual_seed(8))
    assert not torch.equal(drawn, other)


@FAST
@given(problem=problems(dtypes=[torch.float64]))
def test_samples_are_possible(problem):
    emissions, scores, _, _, possible = problem
    mask = problem.mask & possible.unsqueeze(1)
    drawn = sample_paths(emissions, scores, mask, 20, torch.Generator().manual_seed(0))
    for tags, (_, values), keep in zip(
        drawn, enumerate_batch(emissions, scores, mask), mask, strict=True
    ):
        assert (values[path_numbers(tags[:, keep], len(scores.start))] > -INF).all()


# Packing


@FAST
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 8),
    words=st.integers(1, 9),
    kind=st.sampled_from(MASKS),
)
def test_packing(seed, batch, words, kind):
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(batch, words, kind, generator).numpy()
    mask[seed % batch, seed % words] = True
    packing = pack(mask)
    count, begins = int(mask.sum()), packing.sizes[0]
    assert sorted(packing.index.tolist()) == np.flatnonzero(mask).tolist()
    assert sum(packing.sizes) == count
    assert packing.sizes == sorted(packing.sizes, reverse=True)
    assert sorted(packing.order.tolist()) == list(range(batch))
    assert packing.lengths.tolist() == mask.sum(1)[packing.order].tolist()
    assert packing.lengths.tolist() == sorted(packing.lengths.tolist(), reverse=True)
    assert (packing.order[packing.rank] == packing.index // words).all()
    assert (packing.mirror[packing.mirror] == np.arange(count)).all()
    assert (packing.rank[packing.mirror] == packing.rank).all()
    step = np.repeat(np.arange(len(packing.sizes)), packing.sizes)
    assert (step + step[packing.mirror] + 1 == packing.lengths[packing.rank]).all()
    assert len(packing.before) == count - begins
    left = previous_words(torch.from_numpy(mask)).numpy().ravel()
    place = packing.index % words
    for row, before in enumerate(packing.before, start=begins):
        assert packing.rank[row] == packing.rank[before]
        assert left[packing.index[row]] == place[before]


# Compilation and the number of operations


class Net(torch.nn.Module):
    "A linear layer and a CRF, as in a tagger."

    def __init__(self, algorithm, batch_first, constrained):
        super().__init__()
        torch.manual_seed(0)
        names = ["O", "B-A", "I-A", "B-B", "I-B"]
        self.linear = torch.nn.Linear(3, len(names))
        self.crf = CRF.from_labels(
            names, batch_first=batch_first, constrain_likelihood=constrained, algorithm=algorithm
        )

    def forward(self, features, tags, mask):
        return -self.crf(self.linear(features), tags, mask, reduction="mean")

    def decode(self, features, mask):
        return self.crf.decode_tensor(self.linear(features), mask)


def compiled_batch(batch_first):
    torch.manual_seed(1)
    features, mask = torch.randn(4, 7, 3), torch.arange(7) < torch.tensor([[7], [3], [1], [6]])
    tags = torch.tensor([[1, 2, 0, 3, 4, 0, 1]] * 4)
    if batch_first:
        return features, tags, mask
    return features.transpose(0, 1).contiguous(), tags.t().contiguous(), mask.t().contiguous()


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", FASTER)
def test_compiled_loss_and_decoding_equal_eager(name, batch_first, constrained):
    torch.compiler.reset()
    net = Net(name, batch_first, constrained)
    features, tags, mask = compiled_batch(batch_first)
    eager = net(features, tags, mask)
    wanted = torch.autograd.grad(eager, list(net.parameters()))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    loss = compiled(features, tags, mask)
    got = torch.autograd.grad(loss, list(net.parameters()))
    torch.testing.assert_close(loss, eager)
    assert len(got) == 5
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    decode = torch.compile(net.decode, backend="aot_eager", fullgraph=True)
    for one, other in zip(decode(features, mask), net.decode(features, mask), strict=True):
        torch.testing.assert_close(one, other)
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["words", "no words", "bad sentence"])
@pytest.mark.parametrize("name", FASTER)
def test_custom_operators_keep_their_promises(name, kind):
    torch.manual_seed(0)
    inputs = [torch.randn(shape, requires_grad=True) for shape in [(2, 4, 3), (3,), (3, 3), (3,)]]
    if kind == "bad sentence":
        inputs[0] = inputs[0].detach().clone()
        inputs[0][0, 1] = -INF
        inputs[0].requires_grad_()
    mask = (
        torch.ones(2, 4, dtype=torch.bool)
        if kind != "no words"
        else torch.zeros(2, 4, dtype=torch.bool)
    )
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.nercrf.log_likelihood, (*inputs, mask, None, name), test_utils=checks
    )
    transposed = inputs[0].detach().transpose(0, 1).contiguous().transpose(0, 1)
    gradient = torch.ones(2, dtype=torch.float64)
    for emissions in (inputs[0].detach(), transposed):
        arguments = (
            gradient,
            emissions,
            *(tensor.detach() for tensor in inputs[1:]),
            mask,
            None,
            name,
        )
        torch.library.opcheck(
            torch.ops.nercrf.log_likelihood_gradients, arguments, test_utils=checks
        )
    arguments = (*(tensor.detach() for tensor in inputs), mask, name)
    torch.library.opcheck(torch.ops.nercrf.best_paths, arguments, test_utils=checks)


@pytest.mark.parametrize("shape", [(0, 0), (2, 0), (2, 3)])
def test_gradient_operator_without_words(shape):
    emissions = torch.zeros(*shape, 2)
    mask = torch.zeros(shape, dtype=torch.bool)
    scores = torch.zeros(2), torch.zeros(2, 2), torch.zeros(2)
    for name in NAMES:
        gradients = torch.ops.nercrf.log_likelihood_gradients(
            torch.ones(shape[0], dtype=torch.float64), emissions, *scores, mask, None, name
        )
        for gradient, tensor in zip(gradients, (emissions, *scores), strict=True):
            assert gradient.shape == tensor.shape
            assert gradient.abs().sum() == 0


class Counter(TorchDispatchMode):
    "Counts the operations that reach the dispatcher."

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def count_operations(model, words, batch=32, labels=23):
    emissions = torch.randn(batch, words, labels, requires_grad=True)
    tags = torch.zeros(batch, words, dtype=torch.long)
    mask = torch.ones(batch, words, dtype=torch.bool)
    with Counter() as counter:
        model(emissions, tags, mask).backward()
    return counter.count


def test_scan_needs_few_operations():
    "At 512 words at most 400; the loop of torchcrf needs more than 20,000: more than 40 a word."
    counts = [
        count_operations(CRF(23, batch_first=True, algorithm="scan"), words) for words in (64, 512)
    ]
    assert 50 < counts[0] < counts[1] <= 400
    peer = torchcrf.CRF(23, batch_first=True)
    per_word = (count_operations(peer, 24) - count_operations(peer, 8)) / 16
    assert 512 * per_word > 20_000


class LargestTensor(TorchDispatchMode):
    "Remembers the bytes of the largest tensor that an operation made."

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, Tensor) and not part._is_view():
                self.largest = max(self.largest, part.nbytes)
        return result


@pytest.mark.parametrize(("batch", "words", "labels"), [(32, 128, 73), (4, 300, 40), (2, 16, 217)])
def test_many_labels_stay_on_the_device_in_the_memory_of_vectors(batch, words, labels):
    "What `auto` chooses there: few operations a word, no tensor larger than the states, nothing lost."
    generator = torch.Generator().manual_seed(0)
    crf = CRF(labels, batch_first=True)
    emissions = torch.randn(batch, words, labels, generator=generator, requires_grad=True)
    mask = torch.rand(batch, words, generator=generator) < 0.8
    tags = torch.randint(labels, (batch, words), generator=generator)
    results = []
    for name in ("loop", "log"):
        crf.algorithm = name
        with LargestTensor() as memory, Counter() as counter:
            loss = crf(emissions, tags, mask)
            found = torch.autograd.grad(loss, [emissions, *crf.parameters()])
        results.append((loss, *found, crf.marginals(emissions, mask)))
        if name == "loop":
            states = 2 * 8 * batch * words * labels
            assert memory.largest <= max(states, 2 * 8 * labels**2)
            assert counter.count <= 3 * words + 250
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_many_labels_equal_the_log_domain_in_float64():
    "Value, gradients and marginals, with forbidden steps, holes and empty sentences."
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    scores = Scores(drawn(80), 2 * drawn(80, 80), drawn(80))
    scores.transitions[torch.rand(80, 80, generator=generator) < 0.7] = -INF
    emissions, mask = 5 * drawn(5, 60, 80), random_mask(5, 60, "holes", generator)
    mask[3] = False
    found = []
    for name in ("loop", "log"):
        inputs = attached(emissions, scores)
        value = log_likelihood(*inputs, mask, algorithm=name)
        found.append((value, weighted_gradients(value, *inputs)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
    assert_gradients_close(found[0][1], found[1][1], 1e-9)


@pytest.mark.parametrize(("words", "labels"), [(512, 23), (128, 9)])
def test_decoding_by_scan_needs_few_operations(words, labels):
    "At most 400; the loop over words needs 22 a word."
    crf = CRF(labels, batch_first=True, algorithm="scan")
    batch = torch.randn(32, words, labels), torch.ones(32, words, dtype=torch.bool)
    with Counter() as counter:
        tags, _ = crf.decode_tensor(*batch)
    assert counter.count <= 400
    crf.algorithm = "log"
    with Counter() as stepped:
        wanted, _ = crf.decode_tensor(*batch)
    assert stepped.count > 20 * words
    assert torch.equal(tags, wanted)


def test_the_scan_of_all_paths_needs_few_operations():
    def drawn(*shape):
        return torch.randn(shape, dtype=torch.float64)

    scores = Scores(drawn(23), drawn(23, 23), drawn(23))
    batch = drawn(4, 512, 23), scores, torch.ones(4, 512, dtype=torch.bool)
    with Counter() as counter:
        pairs = pair_marginals(*batch, forward_scan)
    with Counter() as stepped:
        wanted = pair_marginals(*batch)
    assert counter.count <= 600
    assert stepped.count > 5_000
    torch.testing.assert_close(pairs, wanted, rtol=1e-9, atol=1e-12)


def test_scaled_makes_no_loop_of_tensor_operations():
    counts = [
        count_operations(CRF(5, batch_first=True, algorithm="scaled"), words, 4, 5)
        for words in (8, 128)
    ]
    assert counts[0] == counts[1] <= 200


@pytest.mark.parametrize("fails", [False, True])
def test_without_a_working_numba_the_others_do_the_work(fails, caplog):
    "Absent: silently. Installed but broken: one line in the log, once."

    def broken(name):
        raise ImportError("llvmlite is of another age")

    load_kernels.cache_clear()
    try:
        with (
            mock.patch.object(
                likelihood.importlib.util, "find_spec", return_value="found" if fails else None
            ),
            mock.patch.object(likelihood.importlib, "import_module", broken),
        ):
            for _ in range(3):
                assert choose_algorithm("auto", torch.device("cpu")) == "scaled"
            with pytest.raises(ValueError, match=r"pip install 'nercrf\[fast\]'"):
                choose_algorithm("kernels", torch.device("cpu"))
            loss = CRF(3, batch_first=True)(
                torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long)
            )
    finally:
        load_kernels.cache_clear()
    assert loss.item() < 0
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == int(fails)
    assert all("llvmlite is of another age" in line for line in lines)


@pytest.mark.parametrize("algorithm", available())
def test_a_kept_graph_can_be_used_again(algorithm):
    torch.manual_seed(0)
    emissions = torch.randn(3, 6, 4, requires_grad=True)
    tags, mask = torch.randint(4, (3, 6)), torch.rand(3, 6) < 0.8
    loss = CRF(4, batch_first=True, algorithm=algorithm)(emissions, tags, mask, "mean")
    (once,) = torch.autograd.grad(loss, emissions, retain_graph=True)
    kept = once.clone()
    (twice,) = torch.autograd.grad(2 * loss, emissions, retain_graph=True)
    torch.testing.assert_close(once, kept, rtol=0, atol=0)
    torch.testing.assert_close(twice, 2 * kept)
    (third,) = torch.autograd.grad(loss, emissions)
    torch.testing.assert_close(third, kept)


def test_an_exported_decoder_runs_without_the_library(tmp_path):
    """Saved, loaded in a process that cannot import nercrf, at other sizes than it was exported with."""
    labels = label_list(["PER", "LOC"], "BIO")
    torch.manual_seed(0)

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.crf = CRF.from_labels(labels, "BIO", batch_first=True)

        def forward(self, emissions, mask):
            return self.crf.decode_tensor(emissions, mask)

    decoder = Decoder()
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("words", min=1)}
    example = torch.randn(3, 7, len(labels)), torch.ones(3, 7, dtype=torch.bool)
    torch.export.save(
        torch.export.export(decoder, example, dynamic_shapes=(sizes, sizes)),
        tmp_path / "decoder.pt2",
    )
    cases = []
    for batch, words in ((1, 1), (1, 30), (5, 1), (6, 40)):
        emissions, mask = 5 * torch.randn(batch, words, len(labels)), torch.rand(batch, words) < 0.7
        cases.append((emissions, mask, *decoder(emissions, mask)))
    torch.save(cases, tmp_path / "cases.pt")
    program = (
        "import sys, torch\n"
        "sys.modules['nercrf'] = None\n"
        "run = torch.export.load(sys.argv[1] + '/decoder.pt2').module()\n"
        "for emissions, mask, tags, scores in torch.load(sys.argv[1] + '/cases.pt', weights_only=True):\n"
        "    got = run(emissions, mask)\n"
        "    assert torch.equal(got[0], tags)\n"
        "    torch.testing.assert_close(got[1], scores)\n"
        "print('equal')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"
