"""Entities as arrays: the readings of tags, what two tables share, and scores beside seqeval, nervaluate, SeqScore."""

from __future__ import annotations

import itertools
import random
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_fscore
from seqeval.scheme import IOB2
from test_metrics import SEQEVAL, noisy_corpus

from nercrf.evaluation.metrics import EntityScores, score_tags
from nercrf.evaluation.scores import (
    WAYS,
    count_confusions,
    find_overlaps,
    find_pairs,
    score_overlaps,
    score_overlaps_by_type,
    score_ratios,
    word_accuracy,
)
from nercrf.evaluation.spans import (
    align_tables,
    find_common,
    table_of_ids,
    table_of_spans,
    table_of_tags,
)
from nercrf.labels import SCHEMES, Span, label_list, tags_to_spans

settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

span_lists = st.lists(
    st.builds(
        lambda label, start, size: Span(label, start, start + size),
        st.sampled_from(["A", "B", "C"]),
        st.integers(0, 7),
        st.integers(1, 4),
    ),
    max_size=6,
)
corpora = st.lists(st.tuples(span_lists, span_lists), max_size=4)


# Reading


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
@settings(max_examples=40)
def test_tags_read_as_arrays_are_the_spans_of_the_reference(scheme, data):
    labels = label_list(["A", "B"], scheme)
    numbers = st.lists(st.lists(st.integers(0, len(labels) - 1), max_size=9), max_size=5)
    ids = data.draw(numbers)
    tags = [[labels[x] for x in sentence] for sentence in ids]
    offsets = np.cumsum([0, *map(len, ids)])
    flat = np.array(list(itertools.chain.from_iterable(ids)), np.int16)
    for mode in ("strict", "lenient"):
        expected = [tags_to_spans(sentence, scheme, mode) for sentence in tags]
        assert table_of_tags(tags, scheme, mode).to_lists() == expected
        assert table_of_ids(flat, offsets, labels, scheme, mode).to_lists() == expected


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
@settings(max_examples=40)
def test_scores_of_tags_are_those_of_their_spans(scheme, data):
    """Sentences with the same tags, with nothing in them, and of another class than `list` take
    other ways through `score_tags`; all of them count what sets of spans count."""
    labels = ["O", *label_list(["A", "B"], scheme)]  # "O" twice as often
    kinds = data.draw(st.sampled_from([(list,), (tuple,), (list, tuple), (list, np.array)]))
    gold, predicted, expected = [], [], {"strict": [], "lenient": []}
    for _ in range(data.draw(st.integers(0, 5))):
        sides = [data.draw(st.lists(st.sampled_from(labels), max_size=7))] * 2
        if data.draw(st.booleans()):
            drawn = st.lists(
                st.sampled_from(labels), min_size=len(sides[0]), max_size=len(sides[0])
            )
            sides[1] = data.draw(drawn)
        for side, tags in zip((gold, predicted), sides, strict=True):
            side.append(data.draw(st.sampled_from(kinds))(tags))
        for mode, pairs in expected.items():
            pairs.append([tags_to_spans(tags, scheme, mode) for tags in sides])
    for mode, pairs in expected.items():
        counted = EntityScores()
        for pair in pairs:
            counted.add(*pair)
        assert score_tags(gold, predicted, scheme, mode) == counted


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_wrong_tag_and_a_wrong_length_are_told_whatever_holds_them(kind):
    gold = [kind(["O", "O"]), kind(["B-A"])]
    with pytest.raises(ValueError, match=r"tags in sentence 1 as on the gold side \(1\), got 2"):
        score_tags(gold, [kind(["O", "X-A"]), kind(["O", "O"])])
    for side in ("got 'X-A'", "got 'Oo'"):
        tag = side.split("'")[1]
        with pytest.raises(ValueError, match=side):
            score_tags(gold, [kind(["O", tag]), kind(["B-A"])])
        with pytest.raises(ValueError, match=side):
            score_tags([kind([tag])], [kind([tag])])


@given(corpora, st.randoms())
def test_tables_are_sets(corpus, generator):
    """Common entities, differences and equality are those of Python's sets, in any order."""
    gold, predicted = [pair[0] for pair in corpus], [pair[1] for pair in corpus]
    tables = table_of_spans(gold), table_of_spans(predicted)
    found, correct = find_common(*tables)
    common = [set(left) & set(right) for left, right in corpus]
    assert list(map(set, tables[0].select(found).to_lists())) == common
    assert list(map(set, tables[1].select(correct).to_lists())) == common
    rest = [set(left) - set(right) for left, right in corpus]
    assert list(map(set, tables[0].without(tables[1]).to_lists())) == rest
    assert (tables[0] == tables[1]) == (list(map(set, gold)) == list(map(set, predicted)))
    shuffled = [generator.sample(spans, len(spans)) for spans in gold]
    assert table_of_spans(shuffled) == tables[0]


# Peers


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("zero_division", [0, 1])
@pytest.mark.parametrize("average", ["micro", "macro", "weighted"])
def test_ratios_equal_those_of_seqeval_in_both_readings(beta, zero_division, average):
    gold, predicted = noisy_corpus(3, "BIO", 30)
    gold.append(["O", "B-NEW"])  # a type that is never predicted
    predicted.append(["B-OLD", "O"])  # and one that is only predicted
    own = {mode: score_tags(gold, predicted, "BIO", mode) for mode in ("strict", "lenient")}
    options = {"beta": beta, "zero_division": zero_division, "average": average}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "strict": strict_fscore(gold, predicted, scheme=IOB2, **options)[:3],
            "lenient": precision_recall_fscore_support(gold, predicted, **options)[:3],
        }
    for mode, scores in own.items():
        assert score_ratios(scores, beta, zero_division)[average] == pytest.approx(expected[mode])


@pytest.mark.parametrize("scheme", SEQEVAL)
def test_word_accuracy_is_that_of_seqeval_on_well_formed_tags(scheme):
    gold, _ = noisy_corpus(4, scheme)
    predicted = [["O"] * len(tags) if number % 3 else tags for number, tags in enumerate(gold)]
    tables = [table_of_tags(side, scheme) for side in (gold, predicted)]
    found = word_accuracy(*tables, list(map(len, gold)))
    assert found == pytest.approx(accuracy_score(gold, predicted))


def spans_of(text: str) -> list[list[Span]]:
    """Sentences between bars; `A13` is a span of the type A over the words 1 and 2."""
    return [
        [Span(word[0], int(word[1]), int(word[2])) for word in sentence.split()]
        for sentence in text.split("|")
    ]


# gold, predicted, and what nervaluate 1.2.0 counts: COR, INC, PAR, MIS, SPU
NERVALUATE = [
    (
        "A01|A12 A23 B45|B02|B13",
        "A01|A12 A23|B02|A23",
        {"strict": (4, 1, 0, 1, 0), "partial": (4, 0, 1, 1, 0)}
        | {"type": (4, 1, 0, 1, 0), "exact": (4, 1, 0, 1, 0)},
    ),
    (
        "A12 A45||A14 B56 A78|B03 A57",
        "A45||B25 B56 B68|B03 A47",
        {"strict": (3, 3, 0, 1, 0), "partial": (3, 0, 3, 1, 0)}
        | {"type": (4, 2, 0, 1, 0), "exact": (3, 3, 0, 1, 0)},
    ),
    (
        "A03|B02|A35|B12",
        "A13 B34|B02|A25|",
        {"strict": (1, 2, 0, 1, 1), "partial": (1, 0, 2, 1, 1)}
        | {"type": (3, 0, 0, 1, 1), "exact": (1, 2, 0, 1, 1)},
    ),
    (
        "B02 B45 B56|B12|B12|A12 A35",
        "A02 A45|B02|B12|B12",
        {"strict": (1, 4, 0, 2, 0), "partial": (4, 0, 1, 2, 0)}
        | {"type": (2, 3, 0, 2, 0), "exact": (4, 1, 0, 2, 0)},
    ),
]


@pytest.mark.parametrize(("gold", "predicted", "expected"), NERVALUATE)
def test_the_four_countings_are_those_of_nervaluate(gold, predicted, expected):
    counted = score_overlaps(table_of_spans(spans_of(gold)), table_of_spans(spans_of(predicted)))
    assert {way: tuple(counts) for way, counts in counted.items()} == expected


def test_a_better_pair_does_not_wait_behind_a_worse_one():
    """The first prediction touches the entity, the second is it: nervaluate 1.2.0 gives the entity
    to the first where it is listed first (INC 1, SPU 1), here it is right in any order."""
    counted = score_overlaps(
        table_of_spans([spans_of("A14")[0]]), table_of_spans(spans_of("B12 A14"))
    )
    assert tuple(counted["strict"]) == (1, 0, 0, 0, 1)


# tags (a capital begins, a small letter goes on), and what SeqScore 0.9 makes of them
SEQSCORE = [
    (".aabba", "A13 B35 A56", ""),
    ("ab..BB", "A01 B12 B45 B56", "B45 B56"),
    ("A.AAAaa", "A01 A23 A34 A47", "A01 A23 A34 A47"),
    ("ab.AbB.", "A01 B12 A34 B45 B56", "A34 B56"),
    ("ABaB.AA", "A01 B12 A23 B34 A56 A67", "A01 B12 B34 A56 A67"),
    ("b.BbBb.", "B01 B24 B46", "B24 B46"),
    (".B..aaAA", "B12 A46 A67 A78", "B12 A67 A78"),
    ("ABaAaaa", "A01 B12 A23 A37", "A01 B12 A37"),
]


@pytest.mark.parametrize(("letters", "conlleval", "discard"), SEQSCORE)
def test_the_two_readings_are_the_repairs_of_seqscore(letters, conlleval, discard):
    names = {"A": "B-A", "a": "I-A", "B": "B-B", "b": "I-B", ".": "O"}
    tags = [[names[letter] for letter in letters]]
    assert table_of_tags(tags, "BIO", "lenient").to_lists() == spans_of(conlleval)
    assert table_of_tags(tags, "BIO", "strict").to_lists() == spans_of(discard)


# Laws


def greedy_pairs(gold: list[Span], predicted: list[Span], same_type: bool) -> set:
    """The pairs of a sentence by sorting all of them and taking the best while both are free."""

    def badness(pair: tuple[Span, Span]) -> tuple:
        left, right = pair
        shared = min(left.end, right.end) - max(left.start, right.start)
        place = (left.start, left.end, left.label, right.start, right.end, right.label)
        return left[1:] != right[1:], left.label != right.label, -shared, *place

    touching = [
        (left, right)
        for left, right in itertools.product(set(gold), set(predicted))
        if left.start < right.end
        and right.start < left.end
        and (left.label == right.label or not same_type)
    ]
    chosen, used = set(), (set(), set())
    for left, right in sorted(touching, key=badness):
        if left not in used[0] and right not in used[1]:
            chosen.add((left, right))
            used[0].add(left)
            used[1].add(right)
    return chosen


@given(corpora, st.booleans())
@settings(max_examples=150)
def test_pairs_are_those_of_the_greedy_matching(corpus, same_type):
    """Nested and crossing entities too, sentence by sentence."""
    tables = align_tables(*(table_of_spans([pair[side] for pair in corpus]) for side in (0, 1)))
    pairs = find_pairs(*tables, same_type)
    found = [set() for _ in corpus]
    names = tables[0].types
    for rows in zip(*pairs, strict=True):
        sides = [
            Span(names[table.type_id[row]], int(table.start[row]), int(table.end[row]))
            for table, row in zip(tables, rows, strict=True)
        ]
        found[tables[0].sentence[rows[0]]].add(tuple(sides))
    assert found == [greedy_pairs(*pair, same_type) for pair in corpus]


@given(corpora, st.randoms())
def test_every_entity_has_one_fate_in_any_order(corpus, generator):
    order = generator.sample(range(len(corpus)), len(corpus))
    gold, predicted = (
        [generator.sample(corpus[row][side], len(corpus[row][side])) for row in order]
        for side in (0, 1)
    )
    tables = table_of_spans(gold), table_of_spans(predicted)
    counted = score_overlaps(*tables)
    straight = [table_of_spans([pair[side] for pair in corpus]) for side in (0, 1)]
    assert counted == score_overlaps(*straight)
    for way in WAYS:
        assert counted[way].possible == len(tables[0])
        assert counted[way].actual == len(tables[1])
    assert counted["strict"].correct == find_common(*tables)[0].sum()
    confusion = count_confusions(*tables)
    assert (confusion == count_confusions(*straight)).all()
    assert confusion[:-1].sum() == len(tables[0])
    assert confusion[:, :-1].sum() == len(tables[1])
    by_type = score_overlaps_by_type(*tables)
    assert sum(each["strict"].possible for each in by_type.values()) == len(tables[0])
    assert sum(each["strict"].correct for each in by_type.values()) == counted["strict"].correct


def test_overlaps_are_all_that_share_a_word():
    generator = random.Random(0)
    for _ in range(60):
        sides = [
            [
                [
                    Span("A", start, start + generator.randint(1, 5))
                    for start in (generator.randrange(12) for _ in range(4))
                ]
                for _ in range(3)
            ]
            for _ in range(2)
        ]
        tables = list(map(table_of_spans, sides))
        expected = [
            (left, right)
            for left, right in itertools.product(range(len(tables[0])), range(len(tables[1])))
            if tables[0].sentence[left] == tables[1].sentence[right]
            and tables[0].start[left] < tables[1].end[right]
            and tables[1].start[right] < tables[0].end[left]
        ]
        found = zip(*(side.tolist() for side in find_overlaps(*tables)), strict=True)
        assert sorted(found) == sorted(expected)
