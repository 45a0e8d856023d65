"""Constraints that leave little of a table of transitions: what is computed from their legal steps
alone equals the whole table's, and enumeration over all paths.
"""

import contextlib
import math
from unittest import mock

import numpy as np
import pytest
import torch
from enumeration import available, enumerate_batch, lift, log_partitions, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st

from nercrf.crf import packing
from nercrf.crf.chain import Scores, follow_path, path_scores
from nercrf.crf.decoding import best_paths
from nercrf.crf.layer import CRF
from nercrf.crf.likelihood import load_kernels, log_likelihood
from nercrf.crf.packing import largest_block, legal_steps
from nercrf.labels import SCHEMES, allowed_transitions, label_list

FAST = settings(max_examples=100, deadline=None, derandomize=True)
NAMES = [name for name in available() if name in ("scaled", "kernels")]
threads = pytest.mark.parametrize("threads", [1, 2])


@contextlib.contextmanager
def steps_taken(apart: bool):
    "Take every table apart, or none, however small it is and however much is allowed."
    size, share = (0, math.inf) if apart else (math.inf, 0.0)
    packing._find_steps.cache_clear()
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(packing, "SMALLEST_STEP", size))
        patches.enter_context(mock.patch.object(packing, "LARGEST_SHARE", share))
        if load_kernels() is not None:
            patches.enter_context(mock.patch.object(load_kernels(), "FEWEST_LABELS", 0))
        yield
    packing._find_steps.cache_clear()


@pytest.fixture
def set_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


@st.composite
def problems(draw, whole=False):
    "A chain with forbidden steps, labels without any step to them too; whole numbers make ties."
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    labels, batch, words = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    share = draw(st.sampled_from([0.05, 0.2, 0.5, 0.9]))

    def drawn(*shape, share=1.0):
        values = 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
        values = values.round() if whole else values
        allowed = torch.rand(shape, generator=generator) < share
        return values.masked_fill(~allowed, -math.inf)

    scores = Scores(drawn(labels, share=0.9), drawn(labels, labels, share=share), drawn(labels))
    mask = random_mask(batch, words, draw(st.sampled_from(["full", "right", "holes"])), generator)
    mask[0, 0] = True
    return drawn(batch, words, labels), scores, mask


@FAST
@given(st.integers(1, 12), st.sampled_from([0.05, 0.3, 0.7, 1.0]), st.integers(0, 2**31))
def test_every_legal_step_is_there_once(labels, share, seed):
    allowed = np.random.default_rng(seed).random((labels, labels)) < share
    with steps_taken(apart=True):
        steps = legal_steps(np.where(allowed, 1.0, -np.inf))
    if not allowed.any():
        assert steps is None
        return
    rows, columns = largest_block(allowed)
    assert allowed[np.ix_(rows, columns)].all()
    found = np.zeros_like(allowed, int)
    found[np.ix_(steps.rows, steps.columns)] += 1
    np.add.at(found, (steps.before, steps.after), 1)
    assert (found == allowed).all()
    for chosen in steps.rounds:
        assert len(set(steps.after[chosen])) == len(steps.after[chosen]) > 0
    assert sum(chosen.stop - chosen.start for chosen in steps.rounds) == len(steps.after)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_is_a_block_and_a_step_a_label(scheme):
    labels = label_list([f"T{number}" for number in range(20)], scheme)
    allowed = np.array(allowed_transitions(labels, scheme).transitions)
    steps = legal_steps(np.where(allowed, 1.0, -np.inf))
    assert len(steps.after) <= len(labels)
    assert len(steps.rows) * len(steps.columns) + len(steps.after) == allowed.sum()


@pytest.mark.parametrize("name", NAMES)
@FAST
@given(problem=problems(whole=True))
def test_paths_are_the_same_to_the_bit(name, problem):
    emissions, scores, mask = problem
    found = []
    for apart in (False, True):
        with steps_taken(apart):
            found.append(best_paths(emissions, scores, mask, name))
    (tags, totals), (again, same) = found
    assert torch.equal(tags, again)
    assert torch.equal(totals, same)
    possible = totals > -math.inf
    given_path = path_scores(emissions, scores, mask, follow_path(mask, tags))
    assert torch.equal(given_path[possible], totals[possible])
    truth = [values.max() for _, values in enumerate_batch(emissions, scores, mask)]
    assert torch.equal(totals, torch.stack(truth))


@pytest.mark.parametrize("name", NAMES)
@FAST
@given(problem=problems(), number=st.integers(0, 2**31))
def test_likelihood_and_gradients_equal_enumeration(name, problem, number):
    emissions, scores, mask = problem
    inputs = [part.requires_grad_() for part in (emissions, *scores)]
    weight = torch.randn(len(mask), generator=torch.Generator().manual_seed(number)).double()
    truth = log_partitions(enumerate_batch(*lift(emissions, scores), mask))
    possible = truth > -math.inf
    total = (weight * truth).masked_fill(~possible, 0.0).sum()
    total = total + sum(0.0 * part.nan_to_num(neginf=0.0).sum() for part in inputs)
    expected = torch.autograd.grad(total, inputs)
    with steps_taken(apart=True):
        value = -log_likelihood(emissions, scores, mask, algorithm=name)
        torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-9)
        found = torch.autograd.grad((weight * value)[possible].sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.nan_to_num(), rtol=1e-8, atol=1e-8)


def large_batch(scheme, algorithm, batch=6, words=12):
    "A layer of many labels, the same in float64 in the log domain, and a batch with holes."
    labels = label_list([f"T{number}" for number in range(40)], scheme)
    torch.manual_seed(0)
    crf, exact = (
        CRF.from_labels(labels, scheme, batch_first=True, algorithm=name)
        for name in (algorithm, "log")
    )
    exact.load_state_dict(crf.state_dict())
    mask = random_mask(batch, words, "holes", torch.Generator().manual_seed(0))
    mask[0] = True
    return crf, exact.double(), torch.randn(batch, words, len(labels)), mask


@threads
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_large_label_sets_of_every_scheme(scheme, name, threads, set_threads):
    crf, exact, emissions, mask = large_batch(scheme, name)
    with steps_taken(apart=False):
        expected = crf.decode_tensor(emissions, mask)
    tags, totals = crf.decode_tensor(emissions, mask)
    assert torch.equal(tags, expected[0])
    assert torch.equal(totals, expected[1])
    tags = tags.masked_fill(~mask, 0)
    results = []
    for layer in (crf, exact):
        layer.constrain_likelihood = True
        inputs = emissions.to(layer.transitions.dtype, copy=True).requires_grad_()
        value = layer(inputs, tags, mask, "none")
        gradients = torch.autograd.grad(value.sum(), [inputs, *layer.parameters()])
        parts = value.detach(), *gradients, layer.marginals(inputs, mask)
        results.append([part.double() for part in parts])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["emissions", "start", "transitions"])
def test_what_is_not_finite_stays_visible(place, value, name):
    "A label without any step from it: on a legal path nobody would see it."
    crf, _, emissions, mask = large_batch("BIOES", name)
    mask = torch.ones_like(mask)
    legal = crf.chain(emissions, mask).scores
    scores = Scores(*(score.detach().clone() for score in legal))
    scores.transitions[5] = -math.inf
    if place == "emissions":
        emissions[:, 3, 5] = value
    elif place == "start":
        scores.start[5] = value
    else:
        scores.transitions[0, 0] = value
    for apart in (False, True):
        with steps_taken(apart):
            totals = best_paths(emissions, scores, mask, name)[1]
            assert not totals.isfinite().any()
