"""Entity scores against seqeval, an own conlleval, and the laws that counts obey."""

from __future__ import annotations

import random
import warnings
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES

from nercrf.evaluation.metrics import (
    EntityScores,
    Score,
    report,
    score_counts,
    score_spans,
    score_tags,
    score_unseen,
    surface,
    surfaces,
)
from nercrf.labels import SCHEMES, Span, label_list, spans_to_tags, tags_to_spans

settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

SEQEVAL = {"BIO": IOB2, "IOB1": IOB1, "BIOES": IOBES, "BILOU": BILOU}
AVERAGES = {"micro avg": "micro", "macro avg": "macro", "weighted avg": "weighted"}

span_sets = st.sets(
    st.builds(
        lambda label, start, size: Span(label, start, start + size),
        st.sampled_from(["PER", "LOC", "creative-work"]),
        st.integers(0, 6),
        st.integers(1, 3),
    ),
    max_size=6,
)
corpora = st.lists(st.tuples(span_sets, span_sets), max_size=6)


def noisy_corpus(
    seed: int, scheme: str, sentences: int = 40
) -> tuple[list[list[str]], list[list[str]]]:
    """Well-formed gold tags and predictions that repeat them with random, mostly ill-formed slips."""
    generator = random.Random(seed)
    labels = label_list(["PER", "LOC", "v1.2-a"], scheme)
    gold, predicted = [], []
    for _ in range(sentences):
        spans, position = [], 0
        for _ in range(generator.randrange(4)):
            start = position + generator.randrange(3)
            position = start + generator.randint(1, 3)
            spans.append(Span(generator.choice(["PER", "LOC", "v1.2-a"]), start, position))
        gold.append(spans_to_tags(spans, position + generator.randrange(1, 3), scheme))
        predicted.append(
            [generator.choice(labels) if generator.random() < 0.2 else tag for tag in gold[-1]]
        )
    return gold, predicted


def assert_equals_seqeval(scores: EntityScores, expected: dict[str, dict[str, float]]) -> None:
    assert set(scores.per_type) == set(expected) - set(AVERAGES)
    for name, row in expected.items():
        score = getattr(scores, AVERAGES[name]) if name in AVERAGES else scores.per_type[name]
        assert score[:3] == pytest.approx(
            (row["precision"], row["recall"], row["f1-score"]), abs=1e-12
        ), name
        assert score.gold == row["support"]


# Peers


@pytest.mark.parametrize("scheme", SEQEVAL)
@pytest.mark.parametrize("seed", range(4))
def test_strict_scores_equal_seqeval(scheme, seed):
    gold, predicted = noisy_corpus(seed, scheme)
    expected = classification_report(
        gold, predicted, mode="strict", scheme=SEQEVAL[scheme], output_dict=True, zero_division=0
    )
    assert_equals_seqeval(score_tags(gold, predicted, scheme, "strict"), expected)


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES", "BIOS"])
@pytest.mark.parametrize("seed", range(4))
def test_lenient_scores_equal_seqeval(scheme, seed):
    gold, predicted = noisy_corpus(seed, scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = classification_report(gold, predicted, output_dict=True, zero_division=0)
    assert_equals_seqeval(score_tags(gold, predicted, scheme, "lenient"), expected)


def test_random_tags_on_both_sides_equal_seqeval():
    generator = random.Random(0)
    for scheme, peer in SEQEVAL.items():
        labels = label_list(["A", "B"], scheme)
        for _ in range(30):
            lengths = [generator.randrange(1, 12) for _ in range(5)]
            gold, predicted = ([generator.choices(labels, k=n) for n in lengths] for _ in range(2))
            scores = score_tags(gold, predicted, scheme)
            if not scores.per_type:
                continue  # seqeval has no report without entities
            expected = classification_report(
                gold, predicted, mode="strict", scheme=peer, output_dict=True, zero_division=0
            )
            assert_equals_seqeval(scores, expected)


def conlleval_counts(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, list[int]]:
    """conlleval's one pass over both columns: a chunk is correct if both sides begin and end it together."""

    def boundary(last: str, tag: str) -> tuple[bool, bool]:
        (left, _, last_type), (right, _, tag_type) = last.partition("-"), tag.partition("-")
        other = last_type != tag_type
        ends = left in ("E", "S") or (left in ("B", "I") and (right in ("B", "S", "O") or other))
        begins = right in ("B", "S") or (right in ("I", "E") and (left in ("O", "E", "S") or other))
        return ends, begins

    counts: dict[str, list[int]] = {}
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        last_gold = last_predicted = "O"
        running = None
        for gold_tag, predicted_tag in zip([*gold_tags, "O"], [*predicted_tags, "O"], strict=True):
            gold_ends, gold_begins = boundary(last_gold, gold_tag)
            predicted_ends, predicted_begins = boundary(last_predicted, predicted_tag)
            gold_type, predicted_type = gold_tag.partition("-")[2], predicted_tag.partition("-")[2]
            if running is not None:
                if gold_ends and predicted_ends:
                    counts[running][2] += 1
                    running = None
                elif gold_ends != predicted_ends or gold_type != predicted_type:
                    running = None
            if gold_begins and predicted_begins and gold_type == predicted_type:
                running = gold_type
            if gold_begins:
                counts.setdefault(gold_type, [0, 0, 0])[0] += 1
            if predicted_begins:
                counts.setdefault(predicted_type, [0, 0, 0])[1] += 1
            last_gold, last_predicted = gold_tag, predicted_tag
    return counts


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES", "BIOS"])
@pytest.mark.parametrize("seed", range(4))
def test_lenient_counts_equal_an_independent_conlleval(scheme, seed):
    gold, predicted = noisy_corpus(seed + 100, scheme, 150)
    scores = score_tags(gold, predicted, scheme, "lenient").to_dict()
    assert {label: list(row.values()) for label, row in scores.items()} == conlleval_counts(
        gold, predicted
    )


# Laws of counting


@given(corpora)
def test_every_entity_is_counted_once(corpus):
    gold, predicted = [pair[0] for pair in corpus], [pair[1] for pair in corpus]
    scores = score_spans(gold, predicted)
    assert (
        scores.micro.gold
        == sum(map(len, gold))
        == sum(row.gold for row in scores.per_type.values())
    )
    assert scores.micro.predicted == sum(map(len, predicted))
    assert scores.micro.correct == sum(len(left & right) for left, right in corpus)
    for score in [scores.micro, scores.macro, scores.weighted, *scores.per_type.values()]:
        assert score.correct <= min(score.gold, score.predicted)
        assert all(0.0 <= ratio <= 1.0 for ratio in score[:3])


@given(corpora, st.integers(0, 6))
def test_merged_parts_score_like_the_whole(corpus, cut):
    gold, predicted = [pair[0] for pair in corpus], [pair[1] for pair in corpus]
    whole = score_spans(gold, predicted)
    parts = [score_spans(gold[part], predicted[part]) for part in (slice(cut), slice(cut, None))]
    merged = EntityScores().merge(parts[1]).merge(parts[0])
    assert merged == whole
    assert merged.per_type == whole.per_type
    assert (merged.micro, merged.macro, merged.weighted) == (
        whole.micro,
        whole.macro,
        whole.weighted,
    )
    assert report(merged) == report(whole)


@given(corpora)
def test_swapping_the_sides_swaps_precision_and_recall(corpus):
    gold, predicted = [pair[0] for pair in corpus], [pair[1] for pair in corpus]
    there, back = score_spans(gold, predicted).micro, score_spans(predicted, gold).micro
    assert (there.precision, there.recall, there.f1) == (back.recall, back.precision, back.f1)


@given(corpora)
def test_perfect_prediction_scores_one(corpus):
    gold = [pair[0] for pair in corpus]
    scores = score_spans(gold, gold)
    expected = 1.0 if any(gold) else 0.0
    assert scores.micro[:3] == (expected,) * 3
    assert scores.macro[:3] == pytest.approx((expected,) * 3)
    assert scores.weighted[:3] == pytest.approx((expected,) * 3)


@given(st.integers(0, 50), st.integers(0, 50), st.data())
def test_f1_is_the_harmonic_mean(gold, predicted, data):
    correct = data.draw(st.integers(0, min(gold, predicted)))
    score = score_counts(gold, predicted, correct)
    if correct:
        assert score.f1 == pytest.approx(2 / (1 / score.precision + 1 / score.recall))
    else:
        assert score.f1 == 0.0


def test_order_and_repetition_do_not_count():
    one, other = Span("A", 0, 1), Span("B", 1, 2)
    assert score_spans([[one, other, one]], [[other, one]]).micro == score_counts(2, 2, 2)


def test_nested_gold_entities_are_both_counted():
    gold = [[Span("book", 0, 9), Span("company", 1, 3)]]
    assert score_spans(gold, [[Span("book", 0, 9)]]).micro == score_counts(2, 1, 1)


def test_a_type_that_is_only_predicted_lowers_macro():
    scores = score_spans([[Span("A", 0, 1)]], [[Span("A", 0, 1), Span("B", 2, 3)]])
    assert scores.macro.f1 == 0.5
    assert scores.weighted.f1 == 1.0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_do_not_depend_on_the_scheme_of_well_formed_tags(scheme):
    gold, predicted = noisy_corpus(5, "BIO")
    spans = [[tags_to_spans(tags, "BIO") for tags in side] for side in (gold, predicted)]
    rewritten = [
        [spans_to_tags(found, len(tags), scheme) for found, tags in zip(side, gold, strict=True)]
        for side in spans
    ]
    for mode in ("strict", "lenient"):
        assert score_tags(*rewritten, scheme, mode) == score_spans(*spans)


def test_sides_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="predicted sentences"):
        score_spans([[], []], [[]])
    with pytest.raises(ValueError, match="tags in sentence 1"):
        score_tags([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="predicted sentences"):
        score_unseen([[]], [], [["a"]], set())
    with pytest.raises(ValueError, match="sentences of words"):
        score_unseen([[]], [[]], [], set())


# Report


def test_report_is_aligned_and_complete():
    scores = score_spans(
        [[Span("a-long-type-name", 0, 1), Span("B", 1, 2)]],
        [[Span("a-long-type-name", 0, 1), Span("B", 1, 3)]],
    )
    lines = report(scores).splitlines()
    assert [line.split()[0] for line in lines[1:] if line] == [
        "B",
        "a-long-type-name",
        "micro",
        "macro",
        "weighted",
    ]
    assert len({len(line) for line in lines if line}) == 1
    assert lines[-3].split()[1:] == ["0.5000", "0.5000", "0.5000", "2", "2", "1"]
    assert not any(line != line.rstrip() for line in lines)


def test_report_without_entities_has_the_averages_only():
    lines = report(EntityScores()).splitlines()
    assert lines[0].split() == list(Score._fields)
    assert [line.split()[0] for line in lines[1:] if line] == ["micro", "macro", "weighted"]


# Unseen surfaces


def example(text: str, spans: list[Span] | None) -> SimpleNamespace:
    return SimpleNamespace(tokens=text.split(), spans=spans)


def test_seen_and_unseen_entities_are_all_gold_entities():
    train = [
        example("Ada met Alan Turing", [Span("PER", 0, 1), Span("PER", 2, 4)]),
        example("no labels", None),
    ]
    known = surfaces(train)
    assert known == {"Ada", "Alan Turing"}
    tokens = [["Ada", "met", "Alan", "in", "York"], ["Alan", "Turing", "left"]]
    gold = [[Span("PER", 0, 1), Span("PER", 2, 3), Span("LOC", 4, 5)], [Span("PER", 0, 2)]]
    predicted = [[Span("PER", 0, 1), Span("PER", 2, 3), Span("PER", 4, 5)], []]
    unseen = score_unseen(gold, predicted, tokens, known)
    assert unseen.micro == score_counts(gold=2, predicted=2, correct=1)
    everything = score_unseen(gold, predicted, tokens, set())
    assert everything == score_spans(gold, predicted)
    of_test = {
        surface(words, span) for words, spans in zip(tokens, gold, strict=True) for span in spans
    }
    assert score_unseen(gold, predicted, tokens, of_test).micro == score_counts(0, 0, 0)


def test_a_surface_seen_under_another_type_is_seen():
    gold = [[Span("ORG", 0, 1)]]
    assert score_unseen(gold, gold, [["York"]], ["York"]).micro.gold == 0


def test_texts_instead_of_words_are_refused():
    with pytest.raises(ValueError, match="expected a list of words"):
        score_unseen([[Span("A", 0, 1)]], [[]], ["Ada left"], set())
