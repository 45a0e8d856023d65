"""Every wrong entity is in one error, and groups of entities leave none out."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_spans import corpora

from nercrf.data.examples import Example
from nercrf.evaluation.causes import (
    CAUSES,
    RIGHT,
    KnownNames,
    common_confusions,
    confusion_lines,
    find_causes,
    find_properties,
    group_figures,
)
from nercrf.evaluation.metrics import score_tables
from nercrf.evaluation.spans import align_tables, table_of_spans

TAKES = {  # gold and predicted entities in one error
    "type": lambda gold, found: gold == found == 1,
    "split": lambda gold, found: gold == 1 and found >= 2,
    "merged": lambda gold, found: gold >= 2 and found == 1,
    "boundary": lambda gold, found: gold == found == 1,
    "both": lambda gold, found: gold == found == 1,
    "missed": lambda gold, found: (gold, found) == (1, 0),
    "spurious": lambda gold, found: (gold, found) == (0, 1),
}


@given(corpora, st.randoms())
@settings(max_examples=40)
def test_every_wrong_entity_is_in_one_error_whatever_the_order(corpus, generator):
    tables = align_tables(*(table_of_spans([pair[side] for pair in corpus]) for side in (0, 1)))
    table = find_causes(*tables)
    scores = score_tables(*tables).micro
    assert (table.gold_cause == RIGHT).sum() == (table.found_cause == RIGHT).sum() == scores.correct
    counts = table.counts()
    assert sum(gold for _, gold, _ in counts.values()) == scores.gold - scores.correct
    assert sum(found for _, _, found in counts.values()) == scores.predicted - scores.correct
    assert sum(errors for errors, _, _ in counts.values()) == table.errors
    for number in range(table.errors):
        rows = [np.flatnonzero(side == number) for side in (table.gold_error, table.found_error)]
        causes = {
            int(side[row])
            for side, found in zip((table.gold_cause, table.found_cause), rows, strict=True)
            for row in found
        }
        assert len(causes) == 1
        assert TAKES[CAUSES[causes.pop()]](*map(len, rows))
        sentences = {
            int(entities.sentence[row])
            for entities, found in zip(tables, rows, strict=True)
            for row in found
        }
        assert len(sentences) == 1
    shuffled = [
        [generator.sample(pair[side], len(pair[side])) for pair in corpus] for side in (0, 1)
    ]
    assert find_causes(*map(table_of_spans, shuffled)).counts() == counts


@given(corpora, st.booleans())
@settings(max_examples=40)
def test_groups_and_kinds_hold_every_entity(corpus, is_known):
    tables = [table_of_spans([pair[side] for pair in corpus]) for side in (0, 1)]
    words = [[f"{'wWx3'[(i + n) % 4]}{'aB'[n % 2]}" for n in range(12)] for i in range(len(corpus))]
    train = [Example("1", words[0], corpus[0][0])] if corpus else []
    table = find_causes(*tables)
    properties = find_properties(table, words, KnownNames.of(train) if is_known else None)
    assert ("training" in properties) == is_known
    counts = table.counts()
    for each in properties.values():
        figures = group_figures(table, each).values()
        assert sum(group["gold"] for group in figures) == len(tables[0])
        assert sum(group["found"] for group in figures) == len(tables[1])
        for cause in CAUSES:
            assert sum(group[cause] for group in figures) == sum(counts[cause][1:])
    kinds = common_confusions(table, most=10_000)
    assert sum(kind.count for kind in kinds) == table.errors
    assert [kind.count for kind in kinds] == sorted((kind.count for kind in kinds), reverse=True)
    assert len(confusion_lines(kinds, table, words)) == sum(1 + len(x.sentences) for x in kinds)
