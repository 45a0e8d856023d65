"""The CRF against enumeration over all paths, against torchcrf, and against itself."""

import copy
import itertools
import math

import pytest
import torch
import torchcrf
from hypothesis import given, settings
from hypothesis import strategies as st

from nercrf import crf as module
from nercrf.crf import CRF
from nercrf.labels import Constraints, allowed_transitions, find_ill_formed, label_list

torch.set_num_threads(1)
FAST = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def problems(draw, constrained=False):
    "A small CRF in float64, emissions, a mask with holes, tags; batch first."
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    labels, batch, words = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 5))
    size = draw(st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    constraints = None
    if constrained:

        def drawn(*shape):
            return (torch.rand(shape, generator=generator) < 0.6).tolist()

        constraints = Constraints(drawn(labels), drawn(labels, labels), drawn(labels))
    crf = CRF(labels, batch_first=True, constraints=constraints).double()
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    emissions = size * torch.randn(batch, words, labels, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, words, generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    tags = torch.randint(labels, (batch, words), generator=generator)
    return crf, emissions, mask, tags


def enumerate_paths(crf, emissions, constraints=None):
    "All paths over (words, labels) emissions that the constraints leave, and their scores."
    words, labels = emissions.shape
    paths, scores = [], []
    for path in itertools.product(range(labels), repeat=words):
        score = 0 * crf.transitions.sum()
        legal = True
        if path:
            score = score + crf.start_transitions[path[0]] + crf.end_transitions[path[-1]]
            score = score + emissions[range(words), path].sum()
            score = score + sum(crf.transitions[pair] for pair in itertools.pairwise(path))
            if constraints is not None:
                legal = (
                    constraints.start[path[0]]
                    and constraints.end[path[-1]]
                    and all(constraints.transitions[left][right] for left, right in itertools.pairwise(path))
                )
        if legal:
            paths.append(path)
            scores.append(score)
    return paths, torch.stack(scores) if scores else emissions.new_zeros(0)


@FAST
@given(problems())
def test_likelihood_and_gradients_equal_enumeration(problem):
    crf, emissions, mask, tags = problem
    emissions.requires_grad_()
    inputs = (emissions, *crf.parameters())
    ours = crf(emissions, tags, mask, reduction="none")
    truth = []
    for row, keep, gold in zip(emissions, mask, tags, strict=True):
        paths, scores = enumerate_paths(crf, row[keep])
        truth.append(scores[paths.index(tuple(gold[keep].tolist()))] - scores.logsumexp(0))
    truth = torch.stack(truth)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(0.5, 2.0, len(truth), dtype=torch.float64)
    wanted = torch.autograd.grad(truth @ weights, inputs, allow_unused=True, materialize_grads=True)
    for got, expected in zip(torch.autograd.grad(ours @ weights, inputs), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@FAST
@given(problems(constrained=True))
def test_constrained_quantities_equal_enumeration(problem):
    crf, emissions, mask, tags = problem
    parameters = list(crf.parameters())
    for row, keep, gold in zip(emissions, mask, tags, strict=True):
        row, keep, gold = row[None], keep[None], gold[None]
        paths, scores = enumerate_paths(crf, row[keep], crf.constraints)
        total = crf.log_partition(row, keep, constrained=True)
        if not paths:
            assert total.item() == -math.inf
            for method in (crf.decode, crf.decode_tensor, lambda e, m: crf.marginals(e, m, constrained=True)):
                with pytest.raises(ValueError, match="sequence 0 has no possible tag sequence"):
                    method(row, keep)
            continue
        torch.testing.assert_close(total[0], scores.logsumexp(0), rtol=1e-10, atol=1e-10)
        decoded, best = crf.decode_tensor(row, keep)
        torch.testing.assert_close(best[0], scores.max(), rtol=1e-12, atol=1e-10)
        assert tuple(decoded[keep].tolist()) == paths[int(scores.argmax())]
        assert (decoded[~keep] == -100).all()
        marginals = torch.zeros_like(row)
        for path, chance in zip(paths, (scores - scores.logsumexp(0)).exp().tolist(), strict=True):
            marginals[0, keep[0].nonzero().flatten(), list(path)] += chance
        torch.testing.assert_close(crf.marginals(row, keep, constrained=True), marginals, rtol=1e-9, atol=1e-9)
        wanted = torch.autograd.grad(scores.logsumexp(0), parameters, allow_unused=True, materialize_grads=True)
        got = torch.autograd.grad(total.sum(), parameters)
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        crf.constrain_likelihood = True
        if tuple(gold[keep].tolist()) in paths:
            likelihood = scores[paths.index(tuple(gold[keep].tolist()))] - scores.logsumexp(0)
            torch.testing.assert_close(crf(row, gold, keep), likelihood, rtol=1e-10, atol=1e-10)
        else:
            with pytest.raises(ValueError, match="the constraints forbid the given tags of sequence 0"):
                crf(row, gold, keep)
        crf.constrain_likelihood = False


@FAST
@given(problems(constrained=True))
def test_free_decoding_and_marginals_ignore_the_constraints(problem):
    crf, emissions, mask, _ = problem
    marginals = crf.marginals(emissions, mask)
    decoded = crf.decode(emissions, mask, constrained=False)
    assert [len(path) for path in decoded] == mask.sum(1).tolist()
    for index, (row, keep) in enumerate(zip(emissions, mask, strict=True)):
        paths, scores = enumerate_paths(crf, row[keep])
        assert tuple(decoded[index]) == paths[int(scores.argmax())]
        torch.testing.assert_close(marginals[index, keep].sum(-1), torch.ones(int(keep.sum()), dtype=torch.float64))


def random_batch(batch=6, words=17, labels=5, seed=0, batch_first=True):
    "A CRF in float64 with its parent of the same weights, and a batch with contiguous masks."
    generator = torch.Generator().manual_seed(seed)
    ours = CRF(labels, batch_first=batch_first).double()
    peer = torchcrf.CRF(labels, batch_first=batch_first).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(generator=generator)
    peer.load_state_dict(ours.state_dict())
    emissions = 2 * torch.randn(batch, words, labels, generator=generator, dtype=torch.float64)
    tags = torch.randint(labels, (batch, words), generator=generator)
    lengths = torch.randint(1, words + 1, (batch,), generator=generator)
    lengths[0] = words
    mask = torch.arange(words) < lengths[:, None]
    if not batch_first:
        emissions, tags, mask = emissions.transpose(0, 1).contiguous(), tags.T.contiguous(), mask.T.contiguous()
    return ours, peer, emissions.requires_grad_(), tags, mask


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "token_mean"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_equals_torchcrf(batch_first, reduction):
    ours, peer, emissions, tags, mask = random_batch(batch_first=batch_first)
    results, gradients = [], []
    for model in (ours, peer):
        result = model(emissions, tags, mask, reduction)
        results.append(result)
        gradients.append(torch.autograd.grad(result.sum(), (emissions, *model.parameters())))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    assert ours.decode(emissions, mask) == peer.decode(emissions, mask)
    assert ours.decode(emissions, mask.to(torch.uint8)) == peer.decode(emissions, mask)


def test_without_a_mask_every_word_counts():
    ours, peer, emissions, tags, mask = random_batch()
    whole = torch.ones_like(mask)
    torch.testing.assert_close(ours(emissions, tags), peer(emissions, tags, whole))
    assert ours.decode(emissions) == peer.decode(emissions, whole)
    torch.testing.assert_close(ours.log_partition(emissions), ours.log_partition(emissions, whole))


def test_is_a_drop_in():
    ours, peer, *_ = random_batch()
    assert isinstance(ours, torchcrf.CRF)
    constrained = CRF.from_labels(label_list(["PER", "LOC"], "BIO"), "BIO")
    assert (
        list(constrained.state_dict())
        == list(peer.state_dict())
        == ["start_transitions", "end_transitions", "transitions"]
    )
    assert repr(ours) == repr(peer) == "CRF(num_tags=5)"
    ours.load_state_dict(peer.state_dict())
    assert all(parameter.abs().max() <= 0.1 for parameter in CRF(30).parameters())
    with pytest.raises(ValueError, match="invalid number of tags: 0"):
        CRF(0)


@pytest.mark.parametrize(
    "arguments",
    [
        lambda e, t, m: (e[0], t, m),
        lambda e, t, m: (e[..., :4], t, m),
        lambda e, t, m: (e, t[:, 1:], m),
        lambda e, t, m: (e, t, m[1:]),
    ],
)
def test_raises_the_errors_of_torchcrf(arguments):
    ours, peer, *inputs = random_batch()
    messages = []
    for model in (ours, peer):
        with pytest.raises(ValueError, match=r"emissions") as caught:
            model(*arguments(*inputs))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    with pytest.raises(ValueError, match="invalid reduction: total"):
        ours(*inputs, reduction="total")


@pytest.mark.parametrize("wrong", [-1, 5, -101])
def test_a_tag_that_is_no_label_is_an_error_with_its_place(wrong):
    ours, _, emissions, tags, mask = random_batch()
    tags[0, 3] = wrong
    with pytest.raises(ValueError, match=f"expected tags of 0 to 4, got {wrong} at word 3 of sequence 0"):
        ours(emissions, tags, mask)
    tags[0, 3] = -100
    ours(emissions, tags, mask)
    tags[~mask] = 99
    ours(emissions, tags, mask)


def scatter(values, places, width, filler):
    "The rows of `values` at `places` of a wider row."
    wide = torch.full((values.shape[0], width, *values.shape[2:]), filler, dtype=values.dtype)
    wide[:, places] = values.detach()
    return wide


@pytest.mark.parametrize("places", [range(17), range(8, 25), [i + i // 3 + 1 for i in range(17)]])
@pytest.mark.parametrize("filler", [0.0, 1e30, math.nan, math.inf])
def test_padding_and_holes_change_nothing(places, filler):
    ours, _, emissions, tags, mask = random_batch()
    places = list(places)
    wide = scatter(emissions, places, 25, filler).requires_grad_()
    wide_tags, wide_mask = scatter(tags, places, 25, -100), scatter(mask, places, 25, False)
    narrow = ours(emissions, tags, mask, "none")
    torch.testing.assert_close(ours(wide, wide_tags, wide_mask, "none"), narrow, rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(ours(wide, wide_tags.masked_fill(~wide_mask, -100), None, "none"), narrow)
    ours(wide, wide_tags, wide_mask).backward()
    ours(emissions, tags, mask).backward()
    torch.testing.assert_close(wide.grad[:, places], emissions.grad, rtol=1e-10, atol=1e-12)
    assert wide.grad[~wide_mask].abs().sum() == 0
    assert ours.decode(wide, wide_mask) == ours.decode(emissions, mask)
    torch.testing.assert_close(ours.marginals(wide, wide_mask)[:, places], ours.marginals(emissions, mask))
    torch.testing.assert_close(ours.score(wide, wide_tags, wide_mask), ours.score(emissions, tags, mask))


def test_sequences_without_words():
    ours, _, emissions, tags, mask = random_batch()
    mask[2] = False
    result = ours(emissions, tags, mask, "none")
    assert result[2] == 0
    assert ours.decode(emissions, mask)[2] == []
    empty = torch.zeros_like(mask)
    for reduction in ("sum", "mean", "token_mean"):
        assert ours(emissions, tags, empty, reduction) == 0
    assert ours.decode(emissions[:, :0]) == [[]] * 6
    assert ours(emissions[:, :0], tags[:, :0]) == 0
    assert ours(emissions[:0], tags[:0], reduction="mean") == 0
    assert ours.decode(emissions[:0]) == []


@pytest.mark.parametrize("constrained", [False, True])
def test_gradcheck_of_first_and_second_order(constrained):
    torch.manual_seed(1)
    names = label_list(["A"], "BIO")
    crf = CRF.from_labels(names, "BIO", batch_first=True, constrain_likelihood=constrained).double()
    emissions = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    tags = torch.tensor([[1, 2, 0, 0], [0, 1, 1, 0]])
    mask = torch.tensor([[True, True, True, True], [True, False, True, False]])

    def likelihood(emissions, start, end, transitions):
        state = {"start_transitions": start, "end_transitions": end, "transitions": transitions}
        return torch.func.functional_call(crf, state, (emissions, tags, mask, "none"))

    inputs = (emissions, crf.start_transitions, crf.end_transitions, crf.transitions)
    assert torch.autograd.gradcheck(likelihood, inputs)
    assert torch.autograd.gradgradcheck(likelihood, inputs)


def test_only_emissions_or_only_parameters_may_want_a_gradient():
    ours, _, emissions, tags, mask = random_batch()
    full = torch.autograd.grad(ours(emissions, tags, mask), (emissions, ours.transitions))
    (alone,) = torch.autograd.grad(ours(emissions.detach(), tags, mask), ours.transitions)
    torch.testing.assert_close(alone, full[1])
    ours.requires_grad_(False)
    (alone,) = torch.autograd.grad(ours(emissions, tags, mask), emissions, create_graph=True)
    torch.testing.assert_close(alone, full[0])


@pytest.mark.parametrize("spread", [1.0, 30.0, 149.0, 290.0, 310.0, 2000.0])
@pytest.mark.parametrize("size", [1.0, 50.0, 1000.0])
def test_scaled_recursion_equals_the_log_domain_at_every_size(spread, size):
    "Ranges of transitions on both sides of the guard, emissions up to thousands of nats."
    generator = torch.Generator().manual_seed(int(spread * size))
    table = torch.rand(7, 7, generator=generator, dtype=torch.float64) * spread
    table[0, 0], table[1, 1] = 0, spread
    mask = torch.rand(60, 4, generator=generator).argsort(0) >= torch.tensor([0, 5, 30, 60])
    mask = mask.to(torch.uint8).sort(0, descending=True).values.bool()
    emissions = size * torch.randn(60, 4, 6, generator=generator, dtype=torch.float64)
    lattice = module.boundary_emissions(emissions, mask).requires_grad_()
    table.requires_grad_()
    assert (module.steps_between_scalings(lattice, table) is None) == (spread > 300)
    pairs = []
    for function in (module.log_partitions, module.log_domain_log_partition):
        total = function(lattice, table)
        pairs.append([total, *torch.autograd.grad(total.sum(), (lattice, table))])
    for scaled, exact in zip(*pairs, strict=True):
        assert torch.isfinite(scaled).all()
        torch.testing.assert_close(scaled, exact, rtol=1e-9, atol=1e-8)


def test_one_batch_member_never_touches_another():
    ours, _, emissions, tags, mask = random_batch()
    emissions = emissions.detach().clone()
    clean = ours(emissions, tags, mask, "none")
    for value in (math.nan, math.inf, 1e25):
        emissions[3] = value
        torch.testing.assert_close(ours(emissions, tags, mask, "none")[:3], clean[:3])
    emissions[3] = math.nan
    with pytest.raises(ValueError, match="sequence 3 has no possible tag sequence: its emissions hold NaN"):
        ours.decode(emissions, mask)


def test_long_float32_sequences_keep_their_gradient():
    "Against float64; pytorch-crf in float32 is off by 1e-2 and more here."
    torch.manual_seed(0)
    crf = CRF(9, batch_first=True)
    emissions = torch.randn(1, 4096, 9, requires_grad=True)
    tags = torch.randint(9, (1, 4096))
    got = torch.autograd.grad(crf(emissions, tags), (emissions, crf.transitions))
    double = copy.deepcopy(crf).double()
    wide = emissions.detach().double().requires_grad_()
    wanted = torch.autograd.grad(double(wide, tags), (wide, double.transitions))
    assert (got[0] - wanted[0]).abs().max() < 1e-6
    assert (got[1] - wanted[1]).abs().max() < 1e-4  # float32 holds counts of hundreds to 3e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("constrained", [True, False])
def test_half_precision_is_lifted(dtype, autocast, constrained):
    torch.manual_seed(0)
    names = label_list(["A", "B"], "BIO")
    crf = CRF.from_labels(names, batch_first=True, constrain_likelihood=constrained)
    emissions = (3 * torch.randn(3, 50, 5)).to(dtype).requires_grad_()
    tags = torch.zeros(3, 50, dtype=torch.int32)
    wide = emissions.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        result = crf(emissions, tags)
        decoded = crf.decode(emissions)
        marginals = crf.marginals(emissions)
    assert result.dtype == marginals.dtype == torch.float32
    result.backward()
    exact = crf(wide, tags)
    exact.backward()
    assert emissions.grad.dtype == dtype
    torch.testing.assert_close(result, exact)
    torch.testing.assert_close(emissions.grad, wide.grad.to(dtype))
    assert decoded == crf.decode(wide)
    halved = copy.deepcopy(crf).to(dtype)(emissions, tags)
    assert halved.dtype == torch.float32


@pytest.mark.parametrize("scheme", ["IOB1", "BIO", "BIOES", "BMES", "BILOU", "BIOS"])
def test_decoding_is_always_well_formed(scheme):
    torch.manual_seed(0)
    names = label_list(["PER", "creative-work", "a.b"], scheme)
    crf = CRF.from_labels(names, scheme, batch_first=True)
    for size in (1.0, 1e4, 1e20):
        emissions = size * torch.randn(100, 9, len(names))
        mask = torch.rand(100, 9) < 0.7
        for path in crf.decode(emissions, mask):
            assert find_ill_formed([names[label] for label in path], scheme) == []


def test_constraints_are_checked_replaced_and_follow_the_module():
    names = label_list(["PER"], "BIO")
    crf = CRF.from_labels(names, "BIO", batch_first=True)
    emissions = torch.tensor([[[0.0, 0.0, 9.0]]])
    assert crf.decode(emissions) != [[2]]
    assert copy.deepcopy(crf).decode(emissions) != [[2]]
    crf.set_constraints(None)
    assert crf.decode(emissions) == [[2]]
    crf.set_constraints(allowed_transitions(names, "BIO"))
    assert crf.decode(emissions) != [[2]]
    with pytest.raises(ValueError, match="expected constraints for 4 tags, got 3 starts"):
        CRF(4, constraints=allowed_transitions(names, "BIO"))
    with torch.device("meta"):
        built = CRF.from_labels(names, "BIO", batch_first=True)
    built = built.to_empty(device="cpu")
    built.load_state_dict(crf.state_dict())
    assert built.decode(emissions) == crf.decode(emissions)


def test_no_loop_over_the_batch():
    "The number of tensor operations depends on the words alone."
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for batch in (1, 64):
        crf, _, emissions, tags, mask = random_batch(batch=batch)
        with Counter() as counter:
            crf(emissions, tags, mask).backward()
            crf.decode(emissions, mask)
        counts.append(counter.count)
    assert abs(counts[0] - counts[1]) < 5 < counts[0]
