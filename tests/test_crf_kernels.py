"""The compiled kernels against enumeration over all paths, a float64 recursion in the log domain,
and torchcrf.
"""

import itertools
import math
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchcrf
from hypothesis import given, settings
from hypothesis import strategies as st

from nercrf.crf import kernels as module
from nercrf.crf import likelihood
from nercrf.crf.kernels import likelihood_backward, likelihood_forward, viterbi, warm_up
from nercrf.crf.layer import CRF

FAST = settings(max_examples=150, deadline=None, derandomize=True)
NEVER = -1e30  # a finite stand-in for -inf, whose gradients torch can take


@st.composite
def problems(draw, labels=3, words=4, largest=1000.0):
    "Emissions, mask, tags, scores, gradient; holes, empty sequences and forbidden steps included."
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 3)), draw(st.integers(0, words)), draw(st.integers(1, labels))
    count = shape[2]
    sizes = st.sampled_from([size for size in (0.1, 1.0, 10.0, 100.0, 1000.0) if size <= largest])
    forbidden = st.sampled_from([0.0, 0.0, 0.1, 0.6])

    def drawn(*shape):
        values = generator.standard_normal(shape) * draw(sizes)
        values[generator.random(shape) < draw(forbidden)] = -np.inf
        return values

    emissions = drawn(*shape).astype(draw(st.sampled_from(["float32", "float64"])))
    mask = generator.random(shape[:2]) < draw(st.sampled_from([0.5, 0.9, 1.0]))
    tags = np.where(
        mask, generator.integers(0, count, shape[:2]), generator.integers(-100, 200, shape[:2])
    )
    scores = drawn(count), drawn(count, count), drawn(count)
    return emissions, mask, tags, scores, generator.standard_normal(shape[0])


def path_score(emissions, path, scores):
    "The definition, term by term, of one sequence (words, labels)."
    start, transitions, end = scores
    if len(path) == 0:
        return 0.0
    total = start[path[0]] + end[path[-1]]
    total += sum(float(row[label]) for row, label in zip(emissions, path, strict=True))
    return total + sum(transitions[pair] for pair in itertools.pairwise(path))


def log_sum(values):
    peak = max(values)
    return (
        peak
        if math.isinf(peak)
        else peak + math.log(math.fsum(math.exp(value - peak) for value in values))
    )


def every_path(emissions, scores):
    "All paths of a sequence with their scores."
    paths = itertools.product(range(emissions.shape[1]), repeat=len(emissions))
    return {path: path_score(emissions, path, scores) for path in paths}


def enumerated_gradients(emissions, mask, tags, scores, gradient):
    "The gradient by its meaning: what the tags count less what is expected to be counted."
    by_emission = np.zeros(emissions.shape)
    by_start, by_pair, by_end = (np.zeros_like(score) for score in scores)

    def count(sequence, words, path, weight):
        if len(path) == 0:
            return
        for word, label in zip(words, path, strict=True):
            by_emission[sequence, word, label] += weight
        by_start[path[0]] += weight
        by_end[path[-1]] += weight
        for pair in itertools.pairwise(path):
            by_pair[pair] += weight

    for sequence, weight in enumerate(gradient):
        words = np.flatnonzero(mask[sequence])
        found = every_path(emissions[sequence, words], scores)
        total = log_sum(found.values())
        if total == -math.inf:
            continue
        for path, score in found.items():
            if score > -math.inf:
                count(sequence, words, path, -weight * math.exp(score - total))
        if tags is not None:
            count(sequence, words, tags[sequence, words], weight)
    return by_emission, by_start, by_pair, by_end


def recursion_with_torch(emissions, mask, scores, gradient):
    "Log partitions and gradients, by a float64 recursion in the log domain and autograd."
    inputs = [
        torch.tensor(np.maximum(array, NEVER), dtype=torch.float64, requires_grad=True)
        for array in (emissions, *scores)
    ]
    rows, start, transitions, end = inputs
    totals = []
    for sequence in range(len(mask)):
        words = np.flatnonzero(mask[sequence])
        if len(words) == 0:
            totals.append(torch.zeros((), dtype=torch.float64))
            continue
        alpha = start + rows[sequence, words[0]]
        for word in words[1:]:
            alpha = torch.logsumexp(alpha.unsqueeze(1) + transitions, 0) + rows[sequence, word]
        totals.append(torch.logsumexp(alpha + end, 0))
    totals = torch.stack(totals)
    possible = totals > NEVER / 2
    objective = -(totals.where(possible, 0.0 * totals) * torch.from_numpy(gradient)).sum()
    found = (
        torch.autograd.grad(objective, inputs, allow_unused=True)
        if objective.requires_grad
        else [None] * 4
    )
    found = [
        np.zeros(value.shape) if grad is None else grad.numpy()
        for value, grad in zip(inputs, found, strict=True)
    ]
    return totals.detach().masked_fill(~possible, -math.inf).numpy(), found


def assert_near(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@FAST
@given(problems())
def test_against_all_paths(problem):
    emissions, mask, tags, scores, gradient = problem
    state = likelihood_forward(emissions, mask, tags, *scores)
    best, totals = viterbi(emissions, mask, *scores)
    for sequence in range(len(mask)):
        words = np.flatnonzero(mask[sequence])
        paths = every_path(emissions[sequence, words], scores)
        assert_near(state.log_partition[sequence], log_sum(paths.values()), 1e-12)
        assert_near(
            state.gold[sequence],
            path_score(emissions[sequence, words], tags[sequence, words], scores),
            1e-12,
        )
        assert_near(totals[sequence], max(paths.values()), 1e-12)
        assert (best[sequence, ~mask[sequence]] == -100).all()
        if totals[sequence] > -math.inf:
            assert_near(paths[tuple(best[sequence, words].tolist())], totals[sequence], 1e-12)
    assert state.wrong_tag == -1
    without = likelihood_forward(emissions, mask, None, *scores)
    assert (without.gold == 0).all()
    limits = 3e-7 if emissions.dtype == np.float32 else 1e-9, 1e-9, 1e-9, 1e-9
    for kept, given_tags in ((state, tags), (without, None)):
        expected = enumerated_gradients(emissions, mask, given_tags, scores, gradient)
        for found, right, limit in zip(
            likelihood_backward(kept, gradient), expected, limits, strict=True
        ):
            assert_near(found, right, limit)


@FAST
@given(problems(labels=23, words=40))
def test_against_the_log_domain(problem):
    emissions, mask, _, scores, gradient = problem
    state = likelihood_forward(emissions, mask, None, *scores)
    totals, expected = recursion_with_torch(emissions, mask, scores, gradient)
    assert_near(state.log_partition, totals, 1e-12)
    for found, right in zip(likelihood_backward(state, gradient), expected, strict=True):
        assert_near(found, right, 1e-6)


@pytest.mark.parametrize("deviation", [1, 10, 100, 300, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adversarial_scores(deviation, dtype):
    "Sixty of a hundred transitions forbidden, emissions far apart: never a wrong number."
    generator = np.random.default_rng(deviation)
    in_log_domain = 0
    for _ in range(40):
        batch, words, labels = (
            generator.integers(1, 5),
            generator.integers(1, 12),
            generator.integers(2, 9),
        )
        emissions = (generator.standard_normal((batch, words, labels)) * deviation).astype(dtype)
        scores = [
            generator.standard_normal(shape) * deviation / 3
            for shape in ((labels,), (labels, labels), (labels,))
        ]
        scores[1][generator.random((labels, labels)) < 0.6] = -np.inf
        mask = generator.random((batch, words)) < 0.9
        gradient = generator.standard_normal(batch)
        state = likelihood_forward(emissions, mask, None, *scores)
        totals, expected = recursion_with_torch(emissions, mask, scores, gradient)
        assert_near(state.log_partition, totals, 1e-11)
        for found, right in zip(likelihood_backward(state, gradient), expected, strict=True):
            assert_near(found, right, 5e-7 if dtype == "float32" else 1e-9)
        in_log_domain += (state.lost & (totals > -math.inf)).sum()
    assert (in_log_domain > 0) == (deviation >= 100)


@pytest.mark.parametrize("span", [10.0, 299.0, 5000.0])
def test_finite_transitions_need_no_second_run(span):
    "A label far below the peak contributes nothing, and that is not a loss."
    generator = np.random.default_rng(0)
    emissions = generator.standard_normal((2, 50, 6)) * span
    transitions = generator.random((6, 6)) * 299
    scores = generator.standard_normal(6), transitions, generator.standard_normal(6)
    mask = np.ones((2, 50), dtype=bool)
    state = likelihood_forward(emissions, mask, None, *scores)
    totals, expected = recursion_with_torch(emissions, mask, scores, np.ones(2))
    assert state.arrays.tables.trusted
    assert not state.lost.any()
    assert_near(state.log_partition, totals, 1e-12)
    for found, right in zip(likelihood_backward(state, np.ones(2)), expected, strict=True):
        assert_near(found, right, 1e-9)


def test_a_loss_on_the_way_back_only():
    """No path comes to label 2, but from there on everything would be likelier: beta of the others
    vanishes.
    """
    emissions = np.zeros((1, 6, 3))
    emissions[0, :, 2] = 600.0
    emissions[0, :, 1] = 1.0
    transitions = np.array([[0.0, 0.0, -np.inf], [0.0, 0.0, -np.inf], [-np.inf, -np.inf, 0.0]])
    scores = np.array([0.0, 0.0, -np.inf]), transitions, np.zeros(3)
    mask = np.ones((1, 6), dtype=bool)
    state = likelihood_forward(emissions, mask, None, *scores)
    assert not state.lost.any()
    gradients = likelihood_backward(state, np.ones(1))
    expected = enumerated_gradients(emissions, mask, None, scores, np.ones(1))
    for found, right in zip(gradients, expected, strict=True):
        assert_near(found, right, 1e-9)


@pytest.mark.parametrize("size", [(8, 64, 9), (4, 128, 23), (3, 200, 41), (1, 4096, 9)])
def test_against_torchcrf(size):
    generator = torch.Generator().manual_seed(0)
    batch, words, labels = size
    theirs = torchcrf.CRF(labels, batch_first=True).double()
    emissions = torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
    lengths = torch.randint(1, words + 1, (batch,), generator=generator)
    lengths[0] = words
    mask = torch.arange(words) < lengths.unsqueeze(1)
    tags = torch.randint(labels, (batch, words), generator=generator)
    likelihoods = theirs(emissions, tags, mask, reduction="none")
    likelihoods.sum().backward()
    scores = [
        getattr(theirs, name).detach().numpy()
        for name in ("start_transitions", "transitions", "end_transitions")
    ]
    inputs = emissions.detach().numpy(), mask.numpy(), tags.numpy()
    state = likelihood_forward(*inputs, *scores)
    assert_near(state.gold - state.log_partition, likelihoods.detach().numpy(), 1e-11)
    found = likelihood_backward(state, np.ones(batch))
    expected = emissions, theirs.start_transitions, theirs.transitions, theirs.end_transitions
    for mine, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, right.grad.numpy(), rtol=0, atol=1e-9)
    state = likelihood_forward(inputs[0].astype("float32"), *inputs[1:], *scores)
    narrow = likelihood_backward(state, np.ones(batch))[0]
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, found[0], rtol=0, atol=1e-5)  # of the rounded emissions
    best, _ = viterbi(*inputs[:2], *scores)
    assert [row[row != -100].tolist() for row in best] == theirs.decode(emissions.detach(), mask)


def large_problem(dtype="float32"):
    generator = np.random.default_rng(1)
    emissions = generator.standard_normal((48, 120, 17)).astype(dtype)
    mask = generator.random((48, 120)) < generator.random((48, 1))
    tags = generator.integers(0, 17, (48, 120))
    transitions = generator.standard_normal((17, 17))
    transitions[generator.random((17, 17)) < 0.2] = -np.inf
    return (
        emissions,
        mask,
        tags,
        (generator.standard_normal(17), transitions, generator.standard_normal(17)),
    )


def everything(threads, dtype="float32"):
    "All that the kernels return, to be compared bit by bit."
    emissions, mask, tags, scores = large_problem(dtype)
    state = likelihood_forward(emissions, mask, tags, *scores, threads=threads)
    unkept = likelihood_forward(emissions, mask, tags, *scores, threads=threads, keep=False)
    found = likelihood_backward(state, np.linspace(-1, 1, 48), threads)
    again = likelihood_backward(state, np.linspace(-1, 1, 48), threads)
    best = viterbi(emissions, mask, *scores, threads)
    assert state.log_partition.tobytes() == unkept.log_partition.tobytes()
    assert [array.tobytes() for array in found] == [array.tobytes() for array in again]
    return [array.tobytes() for array in (state.log_partition, state.gold, *found, *best)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_do_not_change_a_bit(dtype):
    mask = large_problem()[1]
    assert len(module.plan_words(mask, 17).bounds) - 1 > 1  # several groups
    assert all(everything(threads, dtype) == everything(1, dtype) for threads in (2, 3, 16))


def test_concurrent_callers():
    expected = everything(1)
    with ThreadPoolExecutor(4) as callers:
        assert all(found == expected for found in callers.map(everything, [1, 2, 3, 2] * 10))


def _compare(expected, queue):
    queue.put(everything(2) == expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork():
    expected = everything(2)  # the pool of this process has threads now
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_compare, args=(expected, queue))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get()
    assert everything(2) == expected


def test_an_error_in_a_share_comes_through():
    def broken(first, last, scratch):
        if first > 0:
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        module._share(broken, 4, 2, 1, ())


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_wrong_tag_is_named(threads):
    emissions, mask, tags, scores = large_problem()
    shown = np.argwhere(mask)
    for (sequence, word), wrong in zip(shown[[5, 300, -1]], (-1, 17, 2**62), strict=True):
        changed = tags.copy()
        changed[sequence, word] = wrong
        changed[tuple(shown[-1])] = -5
        assert (
            likelihood_forward(emissions, mask, changed, *scores, threads=threads).wrong_tag
            == sequence * 120 + word
        )
    assert likelihood_forward(emissions, mask, np.where(mask, tags, -100), *scores).wrong_tag == -1


def test_all_paths_forbidden():
    "Minus infinity, no gradient, and the other sequences as if it were not there."
    emissions, mask, tags, scores = large_problem("float64")
    word = np.flatnonzero(mask[3])[1]
    emissions[3, word] = -np.inf
    state = likelihood_forward(emissions, mask, tags, *scores)
    assert np.flatnonzero(state.log_partition == -np.inf).tolist() == [3]
    gradients = likelihood_backward(state, np.ones(48))
    assert (gradients[0][3] == 0).all()
    others = np.arange(48) != 3
    without = likelihood_backward(
        likelihood_forward(emissions[others], mask[others], tags[others], *scores), np.ones(47)
    )
    assert gradients[0][others].tobytes() == without[0].tobytes()
    for found, expected in zip(gradients[1:], without[1:], strict=True):
        assert_near(found, expected, 1e-10)
    assert np.flatnonzero(viterbi(emissions, mask, *scores)[1] == -np.inf).tolist() == [3]


@pytest.mark.parametrize("place", ["emissions", "start", "transitions", "end"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_plausible_number_from_nan_and_infinity(place, value):
    generator = np.random.default_rng(2)
    inputs = {
        "emissions": generator.standard_normal((2, 5, 3)),
        "start": generator.standard_normal(3),
        "transitions": generator.standard_normal((3, 3)),
        "end": generator.standard_normal(3),
    }
    inputs[place].flat[1] = value
    emissions = inputs.pop("emissions")
    mask = np.ones((2, 5), dtype=bool)
    wrong = np.array([True, place != "emissions"])
    state = likelihood_forward(emissions, mask, None, **inputs)
    assert (np.isfinite(state.log_partition) == ~wrong).all()
    assert np.isnan(state.log_partition[wrong]).all() == np.isnan(value)
    gradients = likelihood_backward(state, np.ones(2))
    assert np.isnan(gradients[0][wrong]).all()
    assert np.isfinite(gradients[0][~wrong]).all()
    assert np.isnan(gradients[2]).all()
    assert (np.isfinite(viterbi(emissions, mask, **inputs)[1]) == ~wrong).all()


@FAST
@given(problems(labels=5, words=6, largest=10.0))
def test_ties_go_to_the_first_label(problem):
    "Small whole numbers make many equal paths; the recursion with torch.argmax decides."
    emissions, mask, _, scores, _ = problem
    emissions = np.where(np.isinf(emissions), emissions, np.rint(emissions)).astype(emissions.dtype)
    scores = [np.where(np.isinf(score), score, np.rint(score)) for score in scores]
    best, totals = viterbi(emissions, mask, *scores)
    start, transitions, end = map(torch.from_numpy, scores)
    for sequence in np.flatnonzero((totals > -np.inf) & mask.any(1)):
        rows = torch.from_numpy(emissions[sequence, mask[sequence]]).double()
        reached = [start + rows[0]]
        for row in rows[1:]:
            reached.append((reached[-1].unsqueeze(1) + transitions).amax(0) + row)
        path = [int((reached[-1] + end).argmax())]
        for state in reached[-2::-1]:
            path.insert(0, int((state + transitions[:, path[0]]).argmax()))
        assert best[sequence, mask[sequence]].tolist() == path


def test_inputs_are_checked_and_laid_out():
    emissions, mask, tags, scores = large_problem("float64")
    expected = likelihood_forward(emissions, mask, tags, *scores).log_partition
    turned = (
        np.asfortranarray(emissions),
        np.asfortranarray(mask),
        np.asfortranarray(tags.astype("int32")),
    )
    fixed = [score.copy() for score in scores]
    for array in fixed:
        array.flags.writeable = False
    compiled = len(module.forward_groups.signatures)
    assert likelihood_forward(*turned, *fixed).log_partition.tobytes() == expected.tobytes()
    assert len(module.forward_groups.signatures) == compiled
    with pytest.raises(TypeError, match="float32 or float64, got float16"):
        likelihood_forward(emissions.astype("float16"), mask, tags, *scores)
    with pytest.raises(ValueError, match=r"expected tags of shape \(48, 120\)"):
        likelihood_forward(emissions, mask, tags[:, :-1], *scores)
    with pytest.raises(ValueError, match=r"expected transitions of shape \(17, 17\)"):
        viterbi(emissions, mask, scores[0], scores[1][:, :-1], scores[2])
    with pytest.raises(ValueError, match="at least one label"):
        viterbi(emissions[:, :, :0], mask, *scores)
    state = likelihood_forward(emissions, mask, tags, *scores)
    with pytest.raises(ValueError, match=r"gradient of shape \(48,\)"):
        likelihood_backward(state, np.ones(47))
    with pytest.raises(ValueError, match="keep=True"):
        likelihood_backward(
            likelihood_forward(emissions, mask, tags, *scores, keep=False), np.ones(48)
        )


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (0, 0, 1)])
def test_nothing_at_all(shape):
    scores = np.ones(shape[2]), np.ones((shape[2], shape[2])), np.ones(shape[2])
    mask = np.ones(shape[:2], dtype=bool)
    state = likelihood_forward(np.ones(shape), mask, None, *scores, threads=2)
    assert (state.log_partition == 0).all()
    assert [array.shape for array in likelihood_backward(state, np.ones(shape[0]), 2)] == [
        shape,
        (shape[2],),
        (shape[2], shape[2]),
        (shape[2],),
    ]
    tags, totals = viterbi(np.ones(shape), mask, *scores)
    assert tags.shape == shape[:2]
    assert (totals == 0).all()


def test_a_state_outlives_the_next_batch():
    "Memory goes back on the shelf only with the last holder of the state."
    emissions, mask, tags, scores = large_problem()
    first = likelihood_forward(emissions, mask, tags, *scores)
    expected = [array.tobytes() for array in likelihood_backward(first, np.ones(48))]
    for _ in range(3):
        state = likelihood_forward(emissions[::-1].copy(), mask[::-1].copy(), None, *scores)
        likelihood_backward(state, np.ones(48))
    assert [array.tobytes() for array in likelihood_backward(first, np.ones(48))] == expected


@pytest.mark.slow
def test_the_second_process_loads_what_the_first_compiled(tmp_path):
    program = "from nercrf.crf.kernels import warm_up; print(warm_up())"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    seconds = [
        float(
            subprocess.run(
                [sys.executable, "-c", program],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for _ in range(2)
    ]
    assert list(tmp_path.rglob("*.nbi"))
    assert seconds[1] < seconds[0] / 3
    assert warm_up() < 5


# --- the last step: without kernels
# --------------------------------------------------------------------------------------------------


def ask_everything():
    """The likelihood with its derivative, as a sum and by sentence, and the best paths."""
    torch.manual_seed(0)
    emissions = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    crf = CRF(5, batch_first=True).double()
    tags, mask = torch.randint(5, (3, 7)), torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = mask[2, ::2] = False
    found = []
    for reduction in ("mean", "none"):
        emissions.grad = crf.transitions.grad = None
        loss = crf(emissions, tags, mask, reduction=reduction)
        loss.sum().backward()
        found += [loss.detach(), emissions.grad.clone(), crf.transitions.grad.clone()]
    return found, crf.decode(emissions.detach(), mask)


@pytest.mark.parametrize(
    "fault", ["missing", "import", "forward", "backward", "gradient", "viterbi"]
)
def test_without_kernels_in_each_way_all_is_the_same(fault, monkeypatch, caplog):
    """numba is missing, broken, or cannot compile one of the functions: one line, and the plain
    algorithms; the failed kernel is not tried again.
    """
    from numba.core.errors import LoweringError

    wanted, paths = ask_everything()
    calls = []

    def fail(*_):
        calls.append(1)
        raise LoweringError("Failed in nopython mode pipeline\nmore lines")

    monkeypatch.setattr(likelihood, "_failed", [])
    if fault == "missing":
        monkeypatch.setattr(likelihood.importlib.util, "find_spec", lambda name: None)
    elif fault == "import":
        monkeypatch.setattr(likelihood.importlib, "import_module", fail)
    else:
        full = fault if fault == "viterbi" else f"likelihood_{fault}"
        monkeypatch.setattr(module, full, fail)
    likelihood.load_kernels.cache_clear()
    try:
        with caplog.at_level("WARNING"):
            found, again = ask_everything()
            ask_everything()
    finally:
        likelihood.load_kernels.cache_clear()
    for ours, expected in zip(found, wanted, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-10, atol=1e-12)
    assert again == paths
    assert [x.message for x in caplog.records] == (
        []
        if fault == "missing"
        else [
            "numba is installed but its kernels cannot be used; going on without them: Failed in "
            "nopython mode pipeline"
        ]
    )
    assert len(calls) == (fault != "missing")


def test_wrong_data_are_no_fault_of_the_kernels():
    emissions, mask = torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected"):
        CRF(3, batch_first=True)(emissions, torch.full((1, 2), 7), mask)
    assert likelihood.load_kernels() is not None
