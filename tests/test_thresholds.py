"""The threshold for a wanted precision or recall, against all cuts that there are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nercrf.evaluation.reliability import Outcomes, pick_threshold, threshold_curve
from nercrf.tagging.fitting import Predicted, pick_thresholds

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
    best = max(fitting) if name == "precision" else min(fitting)
    assert (found.kept, found.precision, found.recall) == best
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
