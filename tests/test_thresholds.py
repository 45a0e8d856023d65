"""The threshold for a wanted precision or recall, against all cuts that there are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nercrf.crf.distribution import TagChain
from nercrf.crf.layer import CRF
from nercrf.crf.operating_points import OperatingPoint
from nercrf.evaluation.reliability import (
    Outcomes,
    expected_interval,
    pick_threshold,
    threshold_curve,
)
from nercrf.evaluation.temperature import LabelledChains
from nercrf.labels import ids_to_spans, label_list
from nercrf.tagging.fitting import (
    BIASES,
    HeldOut,
    Predicted,
    pick_operating_point,
    pick_thresholds,
)
from nercrf.tagging.prediction_sets import find_sets, fit_floors

FEW = settings(max_examples=60, deadline=None)
SOME = st.sampled_from([0.0, 0.25, 0.5, float(np.nextafter(0.5, 1)), 0.75, 1.0])  # ties, neighbours
CANDIDATES = st.lists(
    st.tuples(SOME | st.floats(0, 1), st.booleans(), st.sampled_from(["LOC", "PER"])), max_size=12
)
WANTED = st.floats(0.01, 1)


def all_cuts(candidates, gold):
    """(kept, precision, recall) of every set that a threshold can keep, the smallest first."""
    cuts = []
    for lowest in sorted({chance for chance, _, _ in candidates}, reverse=True):
        kept = [right for chance, right, _ in candidates if chance >= lowest]
        cuts.append((len(kept), sum(kept) / len(kept), sum(kept) / gold if gold else 0.0))
    return cuts


def outcomes_of(candidates):
    """Candidates as the picker takes them."""
    chances, right, _ = zip(*candidates, strict=True) if candidates else ((), (), ())
    return Outcomes.of(chances, right)


@FEW
@given(CANDIDATES, st.integers(0, 4), WANTED, st.sampled_from(["precision", "recall"]))
def test_the_picked_cut_is_the_best_of_all(candidates, missed, wanted, name):
    gold = missed + sum(right for _, right, _ in candidates)
    outcomes, cuts = outcomes_of(candidates), all_cuts(candidates, gold)
    assert [(x.kept, x.precision, x.recall) for x in threshold_curve(outcomes, gold)] == cuts
    place = 1 if name == "precision" else 2
    fitting = [cut for cut in cuts if cut[place] >= wanted]
    if not fitting:
        best = max((cut[place] for cut in cuts), default=0.0)
        with pytest.raises(ValueError, match=f"gives a {name} of .*: the best is {best:.3f}"):
            pick_threshold(outcomes, gold, **{name: wanted})
        return
    found = pick_threshold(outcomes, gold, **{name: wanted})
    other = 3 - place  # of the two figures; most of the one that nothing was wanted of
    best = max(fitting, key=lambda cut: (cut[other], cut[place]))
    assert (found.kept, found.precision, found.recall) == best
    assert not any(  # no cut has more of the one and no less of the other
        cut[1] >= found.precision and cut[2] >= found.recall and cut[1:] != best[1:] for cut in cuts
    )
    kept = [right for chance, right, _ in candidates if chance >= found.value]
    assert len(kept) == found.kept  # as the tagger keeps them
    came = sum(kept) / len(kept) if name == "precision" else sum(kept) / gold
    assert came >= wanted


@FEW
@given(CANDIDATES, WANTED, st.sampled_from(["precision", "recall"]), st.booleans())
def test_each_type_keeps_what_is_wanted_or_is_told(candidates, wanted, name, by_type):
    gold = {kind: sum(right for _, right, x in candidates if x == kind) for kind in ("LOC", "PER")}
    types = [kind for _, _, kind in candidates]
    predicted = Predicted(outcomes_of(candidates), types, gold)
    place = 1 if name == "precision" else 2
    flags = {"precision": None, "recall": None} | {name: wanted}
    if all(cut[place] < wanted for cut in all_cuts(candidates, sum(gold.values()))):
        with pytest.raises(ValueError, match=f"gives a {name}"):
            pick_thresholds(predicted, **flags, by_type=by_type)
        return
    thresholds, unreachable = pick_thresholds(predicted, **flags, by_type=by_type)
    assert set(thresholds) == set(gold)
    kept = []
    for kind, found in thresholds.items():
        own = [(chance, right, x) for chance, right, x in candidates if x == kind]
        rights = [right for chance, right, _ in own if chance >= found.value]
        kept += rights
        assert (found.kept, round(found.precision * found.kept)) == (len(rights), sum(rights))
        reachable = any(cut[place] >= wanted for cut in all_cuts(own, gold[kind]))
        assert (kind in unreachable) == (by_type and not reachable)
        if by_type and reachable:
            came = (sum(rights) / len(rights), sum(rights) / max(gold[kind], 1))[place - 1]
            assert came >= wanted
    if not by_type:  # one value, and the promise is kept over all
        assert len({found.value for found in thresholds.values()}) == 1
        assert (sum(kept) / len(kept), sum(kept) / max(sum(gold.values()), 1))[place - 1] >= wanted


LABELS = label_list(["LOC", "PER"], "BIO")


def chain_of(emissions):
    """A chain of emissions, with tables that are drawn."""
    torch.manual_seed(1)
    crf = CRF.from_labels(LABELS, "BIO", batch_first=True).double()
    return crf.chain(emissions)


def test_certainty_is_never_above_one():
    """Sums of many products are right to the last digits: 1.0000000000000002 is certainty."""
    generator = torch.Generator().manual_seed(0)
    emissions = torch.randn(300, 9, 5, generator=generator, dtype=torch.float64)
    for word, label in ((3, 1), (4, 2), (5, 0)):  # surely a place of two words
        emissions[:, word, label] += 45
    chain = chain_of(emissions)
    rows = torch.tensor([(row, 0, 3, 5) for row in range(300)])
    found = chain.span_probabilities(rows)
    assert found.max() == 1.0
    assert found.min() > 1 - 1e-12
    found = [chain.entities(), chain.expected_entities(), chain.spans_above(0.5)]
    chances = [chance for each in found for spans in each for _, chance in spans]
    assert max(chances) == 1.0
    assert max(chain.marginals().max(), chain.pair_marginals().max()) == 1.0
    assert chain.top(1).log_probabilities.max() <= 0.0
    with pytest.raises(ValueError, match=r"got 1\.001 for entity 0"):  # what is no rounding
        Outcomes.of([1.001], [True])


def drawn_sentences(seed):
    """Chains, and gold tags that are likely in them but drawn with more entities, or fewer."""
    generator = torch.Generator().manual_seed(seed)
    emissions = 2 * torch.randn(12, 6, 5, generator=generator, dtype=torch.float64)
    chain = chain_of(emissions)
    point = OperatingPoint.towards_entities(3.0 - seed)
    biased = TagChain(chain.emissions, point.bias(chain.scores, chain.steps), chain.mask)
    tags = biased.sample(1, generator).squeeze(1)
    gold = [ids_to_spans(row, LABELS, "BIO", "lenient") for row in tags.tolist()]
    return HeldOut([LabelledChains(chain, tags)], [gold], 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["precision", "recall"])
def test_no_operating_point_is_better_than_the_picked_one(seed, name):
    """Among them the chain as it is; every candidate is decoded here once more."""
    sentences = drawn_sentences(seed)
    ((chain, _),), (gold,) = sentences.batches, sentences.gold
    config = SimpleNamespace(labels=LABELS, scheme="BIO")

    def figures(point):
        scores = point.bias(chain.scores, chain.steps)
        tags = TagChain(chain.emissions, scores, chain.mask).best_lists()
        found = [set(ids_to_spans(row, LABELS, "BIO", "lenient")) for row in tags]
        right = sum(len(one & set(other)) for one, other in zip(found, gold, strict=True))
        kept = sum(map(len, found))
        return right / max(kept, 1), right / sum(len(set(each)) for each in gold)

    known = [figures(OperatingPoint.towards_entities(bias)) for bias in BIASES]
    assert figures(OperatingPoint()) in known
    for wanted in (0.01, 0.2, 0.4, 0.6):
        place = 0 if name == "precision" else 1
        fitting = [each for each in known if each[place] >= wanted]
        if not fitting:
            continue
        found = pick_operating_point(sentences, config, **{name: wanted})
        assert figures(found.point) == (found.precision, found.recall)
        best = max(fitting, key=lambda each: (each[1 - place], each[place]))
        came = (found.precision, found.recall)
        assert came[place] >= wanted
        assert (came[1 - place], came[place]) >= (best[1 - place], best[place])
        assert not any(each != came and each[0] >= came[0] and each[1] >= came[1] for each in known)
        if found.is_plain:
            assert came == figures(OperatingPoint())


def test_where_nothing_is_gained_nothing_is_changed():
    """A chain that is right as it is: many biases find the same."""
    labels = torch.tensor([[0, 1, 2, 0, 3], [0, 0, 3, 4, 0]])
    chain = chain_of(40 * torch.eye(5, dtype=torch.float64)[labels])
    tags = torch.tensor(chain.best_lists())
    gold = [ids_to_spans(row, LABELS, "BIO", "lenient") for row in tags.tolist()]
    sentences = HeldOut([LabelledChains(chain, tags)], [gold], 0)
    config = SimpleNamespace(labels=LABELS, scheme="BIO")
    for goal in ({"precision": 0.5}, {"recall": 0.5}):
        found = pick_operating_point(sentences, config, **goal)
        assert found.is_plain
        assert (found.precision, found.recall) == (1.0, 1.0)


@FEW
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1), WANTED)
def test_the_interval_is_that_of_the_same_choice(rows, wanted):
    """Of one sentence, drawn again and again, every pick and every measure is the same."""
    kept = np.array([30 + one for one, _ in rows])
    right = np.array([min(30 + other, each) for (_, other), each in zip(rows, kept, strict=True)])
    cuts = [(right / 40, right / kept), (right / kept, right / 40)]
    for goal, (most, enough) in zip(("precision", "recall"), cuts, strict=True):
        fitting = [(x, y) for x, y in zip(most, enough, strict=True) if y >= wanted]
        found = expected_interval(lambda weights: (kept, right, 40.0), 1, **{goal: wanted})
        assert found == (None if not fitting else (max(fitting)[1],) * 2)


def test_what_a_floor_was_fitted_on_is_above_it():
    """Also where exp(log(p)) is above p by the last digit; such sentences come again."""
    generator = torch.Generator().manual_seed(2)
    chain = chain_of(2 * torch.randn(40, 4, 5, generator=generator, dtype=torch.float64))
    tags = chain.sample(1, generator).squeeze(1)
    gold = [ids_to_spans(row, LABELS, "BIO", "lenient") for row in tags.tolist()]
    config = SimpleNamespace(labels=LABELS, scheme="BIO")
    levels = [place / 41 for place in range(1, 41)]
    fitted = fit_floors([LabelledChains(chain, tags)], [gold], lambda each: each, levels)
    for coverage, floors in fitted.items():
        sets = find_sets(chain, config, floors)
        held = sum(
            set(spans) <= {span for span, _ in each.entities}
            for spans, each in zip(gold, sets, strict=True)
        )
        assert held >= round(float(coverage) * 41), coverage
