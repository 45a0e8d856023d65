"""Bootstrap intervals: what is drawn, what they promise, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_spans import corpora

from nercrf.evaluation.intervals import (
    UnitCounts,
    bootstrap,
    count_figures,
    count_units,
    score_intervals,
)
from nercrf.evaluation.metrics import score_tables
from nercrf.evaluation.spans import table_of_spans

# a sentence of the population: gold, predicted, correct; and how likely it is
SENTENCES = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [2, 2, 1], [4, 3, 3], [1, 1, 0]])
SHARES = np.array([0.4, 0.3, 0.05, 0.05, 0.08, 0.07, 0.05])


def population_f1() -> float:
    gold, predicted, correct = SHARES @ SENTENCES
    return 2 * correct / (gold + predicted)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_intervals_hold_the_true_figure_as_often_as_they_promise(method):
    """400 test sets of 150 sentences: the 90 % interval holds the F1 of the population in 87 to 93 %."""
    generator = np.random.default_rng(7)
    truth, held = population_f1(), 0
    for number in range(400):
        weights = generator.multinomial(150, SHARES)
        there = weights > 0
        counts = UnitCounts(SENTENCES[there][:, None, None], weights[there], ("A",))
        found = score_intervals(counts, 0.9, method, resamples=300, seed=number)["micro"]["f1"]
        held += found.low <= truth <= found.high
    assert 0.87 <= held / 400 <= 0.93, held


def test_drawing_kinds_is_drawing_sentences():
    """The distribution of F1 is that of draws of single sentences: same mean and spread."""
    generator = np.random.default_rng(3)
    rows = SENTENCES[generator.choice(len(SHARES), 80, p=SHARES)]
    kinds, weights = np.unique(rows, axis=0, return_counts=True)
    counts = UnitCounts(kinds[:, None, None], weights, ("A",))
    drawn = bootstrap(counts, lambda sums: count_figures(sums[:, 0])[:, -2, 2], 20_000)
    sums = rows[generator.integers(0, 80, (20_000, 80))].sum(1)
    plain = 2 * sums[:, 2] / (sums[:, 0] + sums[:, 1])
    assert drawn.mean() == pytest.approx(plain.mean(), abs=1e-3)
    assert drawn.std() == pytest.approx(plain.std(), rel=0.03)


@given(corpora, st.lists(st.integers(-1, 3), min_size=4, max_size=4))
@settings(max_examples=60)
def test_units_hold_every_entity_once(corpus, units):
    """Whatever the units: the totals are the scores of the sentences that are in a unit."""
    tables = [table_of_spans([pair[side] for pair in corpus]) for side in (0, 1)]
    units = np.array(units[: len(corpus)], np.int64)
    counts = count_units(*tables, tables[0], units=units)
    inside = [table.select(units[table.sentence] >= 0) for table in tables]
    scores = score_tables(*inside)
    names = counts.types
    expected = [
        [[scores.gold[x], scores.predicted[x], scores.correct[x]] for x in names],
        [[scores.gold[x]] * 3 for x in names],
    ]
    if names:
        assert counts.totals.tolist() == expected
    assert counts.units == len(set(units[units >= 0]))


def test_documents_make_wider_intervals_where_their_sentences_hang_together():
    spans = [[("A", 0, 1)]] * 400
    found = [[("A", 0, 1)] if number // 20 % 2 else [] for number in range(400)]
    tables = table_of_spans(spans), table_of_spans(found)
    alone = score_intervals(count_units(*tables))["micro"]["recall"]
    whole = score_intervals(count_units(*tables, units=np.arange(400) // 20))["micro"]["recall"]
    assert alone.value == whole.value == 0.5
    assert whole.high - whole.low > 3 * (alone.high - alone.low)
    assert (
        whole
        == score_intervals(count_units(*tables, units=np.arange(400) // 20))["micro"]["recall"]
    )


def test_a_perfect_model_has_no_spread_and_a_type_without_entities_no_figure():
    table = table_of_spans([[("A", 0, 1)], [], [("B", 1, 2)]])
    for method in ("bca", "percentile"):
        found = score_intervals(count_units(table, table), method=method)
        assert found["micro"]["f1"] == (1.0, 1.0, 1.0)
        assert set(found) == {"A", "B", "micro", "macro"}
    nothing = count_units(table_of_spans([[], []]), table_of_spans([[], []]))
    assert nothing.units == 2
    assert score_intervals(nothing)["micro"]["f1"] == (0.0, 0.0, 0.0)


def made_documents(draw, count):
    """Counts of the sentences of some documents, and whose they are; a document is easy or hard."""
    rows, owners = [], []
    for number in range(count):
        chance = draw.beta(8, 2)
        for _ in range(draw.integers(5, 16)):
            gold = draw.integers(0, 4)
            correct = draw.binomial(gold, chance)
            rows.append([gold, correct + draw.binomial(2, (1 - chance) / 2), correct])
            owners.append(number)
    return np.array(rows), np.array(owners)


@pytest.mark.slow
@pytest.mark.parametrize(("documents", "over"), [(10, (0.89, 0.743)), (40, (0.947, 0.77))])
def test_documents_that_differ_are_what_is_to_be_drawn(documents, over):
    """300 test sets: how often 95 % intervals over documents, and over sentences, hold the truth."""
    draw, held = np.random.default_rng(0), np.zeros(2)
    gold, predicted, correct = made_documents(draw, 20_000)[0].sum(0)
    truth = 2 * correct / (gold + predicted)
    for number in range(300):
        rows, owners = made_documents(draw, documents)
        sums = np.zeros((documents, 3), np.int64)
        np.add.at(sums, owners, rows)
        for place, units in enumerate((sums, rows)):
            kinds, weights = np.unique(units, axis=0, return_counts=True)
            counts = UnitCounts(kinds[:, None, None], weights, ("A",))
            found = score_intervals(counts, resamples=1000, seed=number)["micro"]["f1"]
            held[place] += found.low <= truth <= found.high
    assert held / 300 == pytest.approx(over, abs=0.005)
    assert held[0] > held[1]
