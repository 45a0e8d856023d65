"""Tag schemes against seqeval, an own reading of conlleval's rules, exhaustive enumeration and four
real corpora.
"""

from __future__ import annotations

import json
import os
import warnings
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Tokens

from nercrf.labels import (
    SCHEMES,
    Scheme,
    Span,
    allowed_transitions,
    convert_tags,
    detect_scheme,
    entity_types,
    find_ill_formed,
    get_scheme,
    ids_to_spans,
    label_list,
    parse_tag,
    spans_to_tags,
    tags_to_spans,
)

settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

DATA = Path(os.environ.get("NERCRF_DATA") or Path(__file__).parents[1] / "../shared/data").resolve()
NAMES = list(SCHEMES)
SEQEVAL = {"BIO": IOB2, "IOB1": IOB1, "BIOES": IOBES, "BILOU": BILOU}
# The letters that conlleval and seqeval's default mode know.
CONLL_LETTERS = {"M": "I", "L": "E", "U": "S"}

types = st.sampled_from(["PER", "creative-work", "v1.2", "-", "名"])
any_scheme = st.sampled_from(NAMES)


def tag_sequences(scheme: str, max_size: int = 12) -> st.SearchStrategy:
    """Sequences of the scheme's tags of two types, in any order, mostly ill-formed."""
    return st.lists(st.sampled_from(label_list(["A", "B-c.d"], scheme)), max_size=max_size)


@st.composite
def span_lists(draw) -> tuple[list[Span], int]:
    """Spans without overlap, some of them touching, and the number of words."""
    spans, position = [], 0
    for _ in range(draw(st.integers(0, 5))):
        start = position + draw(st.integers(0, 2))
        position = start + draw(st.integers(1, 4))
        spans.append(Span(draw(types), start, position))
    return spans, position + draw(st.integers(0, 2))


def seqeval_strict(tags: list[str], scheme: str) -> list[Span]:
    return [
        Span(entity.tag, entity.start, entity.end)
        for entity in Tokens(tags, SEQEVAL[scheme]).entities
    ]


def seqeval_lenient(tags: list[str]) -> list[Span]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        translated = [CONLL_LETTERS.get(tag[0], tag[0]) + tag[1:] for tag in tags]
        return [Span(label, start, last + 1) for label, start, last in get_entities(translated)]


def conlleval_chunks(tags: list[str]) -> list[Span]:
    """The chunk rules of the CoNLL scorer as a table of (last letter, letter), written without
    looking at nercrf.
    """
    ends = {
        "EB",
        "EI",
        "EE",
        "ES",
        "EO",
        "SB",
        "SI",
        "SE",
        "SS",
        "SO",
        "BB",
        "BS",
        "BO",
        "IB",
        "IS",
        "IO",
    }
    begins = {"OI", "OE", "EI", "EE", "SI", "SE"}
    chunks, begin = [], 0
    previous, previous_type = "O", ""
    for position, tag in enumerate([*tags, "O"]):
        letter, _, kind = tag.partition("-")
        letter = CONLL_LETTERS.get(letter, letter)
        changed = kind != previous_type
        if previous != "O" and (previous + letter in ends or changed):
            chunks.append(Span(previous_type, begin, position))
        if letter in "BS" or previous + letter in begins or (letter != "O" and changed):
            begin = position
        previous, previous_type = letter, kind
    return chunks


# Peers


@pytest.mark.parametrize("scheme", SEQEVAL)
def test_strict_reading_equals_seqeval_on_every_short_sequence(scheme):
    labels = label_list(["A", "B"], scheme)
    for length in range(5 if len(labels) > 5 else 6):
        for tags in map(list, product(labels, repeat=length)):
            assert tags_to_spans(tags, scheme) == seqeval_strict(tags, scheme), tags


@pytest.mark.parametrize("scheme", SEQEVAL)
@given(data=st.data())
def test_strict_reading_equals_seqeval_on_long_sequences(scheme, data):
    tags = data.draw(tag_sequences(scheme, 40))
    assert tags_to_spans(tags, scheme, "strict") == seqeval_strict(tags, scheme)


@given(data=st.data())
def test_strict_bmes_is_strict_bioes_with_another_letter(data):
    tags = data.draw(tag_sequences("BMES", 30))
    renamed = ["I" + tag[1:] if tag[0] == "M" else tag for tag in tags]
    assert tags_to_spans(tags, "BMES") == seqeval_strict(renamed, "BIOES")


@pytest.mark.parametrize("scheme", NAMES)
def test_lenient_reading_equals_both_conlleval_peers_on_every_short_sequence(scheme):
    labels = label_list(["A", "B"], scheme)
    for length in range(4 if len(labels) > 7 else 5):
        for tags in map(list, product(labels, repeat=length)):
            spans = tags_to_spans(tags, scheme, "lenient")
            assert spans == conlleval_chunks(tags), tags
            assert spans == seqeval_lenient(tags), tags


@pytest.mark.parametrize("scheme", NAMES)
@given(data=st.data())
def test_lenient_reading_equals_both_conlleval_peers_on_long_sequences(scheme, data):
    tags = data.draw(tag_sequences(scheme, 40))
    spans = tags_to_spans(tags, scheme, "lenient")
    assert spans == conlleval_chunks(tags)
    assert spans == seqeval_lenient(tags)


# Round trips


@given(span_lists(), any_scheme, st.sampled_from(["strict", "lenient"]))
def test_spans_survive_the_way_through_tags(case, scheme, mode):
    spans, length = case
    tags = spans_to_tags(reversed(spans), length, scheme)
    assert len(tags) == length
    assert tags_to_spans(tags, scheme, mode) == spans
    assert find_ill_formed(tags, scheme) == []


@given(span_lists(), any_scheme, any_scheme)
def test_conversion_there_and_back_changes_nothing(case, one, other):
    spans, length = case
    tags = spans_to_tags(spans, length, one)
    assert convert_tags(convert_tags(tags, one, other), other, one) == tags


@given(any_scheme, st.data())
def test_repair_is_idempotent_keeps_the_lenient_spans_and_is_well_formed(scheme, data):
    tags = data.draw(tag_sequences(scheme))
    repaired = convert_tags(tags, scheme, scheme, "lenient")
    assert find_ill_formed(repaired, scheme) == []
    assert tags_to_spans(repaired, scheme, "strict") == tags_to_spans(tags, scheme, "lenient")
    positions = [index for index, _ in find_ill_formed(tags, scheme)]
    assert positions == [index for index in range(len(tags)) if tags[index] != repaired[index]]


@given(any_scheme, st.data())
def test_strict_and_lenient_agree_on_well_formed_tags(scheme, data):
    tags = data.draw(tag_sequences(scheme, 5))
    if not find_ill_formed(tags, scheme):
        assert tags_to_spans(tags, scheme, "strict") == tags_to_spans(tags, scheme, "lenient")


@given(any_scheme, st.data())
def test_lenient_reading_covers_every_tagged_word_once(scheme, data):
    tags = data.draw(tag_sequences(scheme))
    covered = [
        index
        for _, start, end in tags_to_spans(tags, scheme, "lenient")
        for index in range(start, end)
    ]
    assert covered == [index for index, tag in enumerate(tags) if tag != "O"]


# Constraints


@pytest.mark.parametrize("scheme", NAMES)
def test_transitions_allow_exactly_the_sequences_that_spans_can_produce(scheme):
    """All taggings of four words against all ways to place spans on them: neither more nor fewer."""
    labels = label_list(["A", "B"], scheme)
    start, transitions, end = allowed_transitions(labels, scheme)
    allowed = {
        tuple(labels[index] for index in ids)
        for ids in product(range(len(labels)), repeat=4)
        if start[ids[0]]
        and end[ids[-1]]
        and all(transitions[left][right] for left, right in pairwise(ids))
    }

    def placements(position: int) -> list[list[Span]]:
        if position == 4:
            return [[]]
        later = placements(position + 1)
        for stop in range(position + 1, 5):
            for label in "AB":
                later = later + [[Span(label, position, stop), *rest] for rest in placements(stop)]
        return later

    assert allowed == {tuple(spans_to_tags(spans, 4, scheme)) for spans in placements(0)}


def test_constraints_follow_the_order_of_the_label_list():
    labels = label_list(["A", "B"], "BIOES")
    table = allowed_transitions(labels, "BIOES")
    shuffled = labels[::-1]
    other = allowed_transitions(shuffled, "BIOES")
    assert other.start == table.start[::-1]
    assert other.transitions == [row[::-1] for row in table.transitions[::-1]]
    assert allowed_transitions(["O"]) == ([True], [[True]], [True])


def test_bioes_leaves_only_the_continuation_of_an_open_entity():
    labels = label_list(["A"], "BIOES")
    table = allowed_transitions(labels, "BIOES")
    allowed = {
        left: [right for right, legal in zip(labels, row, strict=True) if legal]
        for left, row in zip(labels, table.transitions, strict=True)
    }
    assert allowed == {
        "O": ["O", "B-A", "S-A"],
        "B-A": ["I-A", "E-A"],
        "I-A": ["I-A", "E-A"],
        "E-A": ["O", "B-A", "S-A"],
        "S-A": ["O", "B-A", "S-A"],
    }
    assert table.start == [True, True, False, False, True]
    assert table.end == [True, False, False, True, True]


# Names, labels, detection


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("IOB2", "BIO"),
        ("iob", "BIO"),
        ("bio", "BIO"),
        ("IOBES", "BIOES"),
        ("BIESO", "BIOES"),
        ("BMES", "BMES"),
        ("bmoes", "BMES"),
        ("BILUO", "BILOU"),
        ("Bios", "BIOS"),
        (" iob1 ", "IOB1"),
    ],
)
def test_scheme_names(name, expected):
    assert get_scheme(name) is SCHEMES[expected]
    assert get_scheme(SCHEMES[expected]) is SCHEMES[expected]


@pytest.mark.parametrize("name", ["", "O", "BIO3", "XYZ", "BMEWO", "IOE1"])
def test_unknown_scheme_names_are_refused(name):
    with pytest.raises(ValueError, match="expected one of the tag schemes BIO, IOB1"):
        get_scheme(name)


@given(types, st.sampled_from("BIESMLU"))
def test_parse_tag_undoes_joining(label, prefix):
    assert parse_tag(f"{prefix}-{label}") == (prefix, label)


@pytest.mark.parametrize(
    "tag", ["", "X", "B", "B-", "-PER", "B_PER", "O-PER", "[START]", "[CLS]", "o", "BI-PER", "O "]
)
def test_what_is_no_tag_is_refused(tag):
    with pytest.raises(ValueError, match="expected the tag 'O'"):
        parse_tag(tag)
    assert [index for index, _ in find_ill_formed(["O", tag])] == [1]


@given(st.lists(types), any_scheme)
def test_label_list_and_entity_types_are_inverse(names, scheme):
    labels = label_list(names, scheme)
    assert labels[0] == "O"
    assert len(labels) == len(set(labels)) == 1 + len(set(names)) * len(get_scheme(scheme).prefixes)
    assert entity_types(labels) == sorted(set(names))
    assert label_list(entity_types(labels), scheme) == labels


@given(st.lists(span_lists(), max_size=4), any_scheme)
def test_detected_scheme_reads_the_corpus_as_it_was_written(cases, scheme):
    """Where several schemes fit, the one found must at least read the same entities."""
    written = [spans_to_tags(spans, length, scheme) for spans, length in cases]
    detected = detect_scheme(written)
    assert [tags_to_spans(tags, detected) for tags in written] == [spans for spans, _ in cases]


@pytest.mark.parametrize("scheme", NAMES)
def test_scheme_is_found_in_spite_of_a_slip(scheme):
    spans = [Span("A", 0, 1), Span("A", 1, 4), Span("B", 5, 6), Span("B", 7, 9)]
    written = [spans_to_tags(spans, 10, scheme)] * 20
    slip = ["O", f"{get_scheme(scheme).inside}-A", f"{get_scheme(scheme).begin}-B", "O"]
    assert detect_scheme([slip, *written]) == scheme


@given(any_scheme, st.data())
def test_label_numbers_read_like_their_tags(scheme, data):
    labels = label_list(["A", "B-c.d"], scheme)
    tags = data.draw(tag_sequences(scheme))
    ids = [labels.index(tag) for tag in tags]
    for mode in ("strict", "lenient"):
        assert ids_to_spans(ids, labels, scheme, mode) == tags_to_spans(tags, scheme, mode)


@pytest.mark.parametrize("bad", [-100, -1, 3])
def test_label_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=f"got {bad} at word 2"):
        ids_to_spans([0, 1, bad], ["O", "B-A", "I-A"])


@pytest.mark.parametrize(
    "span", [Span("A", -1, 1), Span("A", 0, 5), Span("A", 2, 2), Span("A", 3, 2), Span("", 0, 1)]
)
def test_impossible_spans_are_refused(span):
    with pytest.raises(ValueError, match="0 <= start < end <= 4"):
        spans_to_tags([span], 4)


def test_overlapping_and_repeated_spans_are_refused():
    for second in [Span("B", 1, 2), Span("A", 0, 2), Span("B", 1, 3)]:
        with pytest.raises(ValueError, match="overlaps"):
            spans_to_tags([Span("A", 0, 2), second], 4)


def test_wrong_modes_schemes_and_prefixes_are_refused_with_a_reason():
    with pytest.raises(ValueError, match="expected mode 'strict' or 'lenient', got 'loose'"):
        tags_to_spans(["O"], mode="loose")
    with pytest.raises(ValueError, match=r"scheme BIO \(prefixes B, I or the tag 'O'\), got 'E-A'"):
        tags_to_spans(["B-A", "E-A"])
    with pytest.raises(ValueError, match="no tag scheme has the prefixes B, L, M together"):
        detect_scheme([["B-A", "M-A"], ["L-A"]])


# Faults of the reference script


def test_hyphens_and_dots_stay_in_the_type():
    tags = ["B-creative-work", "I-creative-work", "O", "B-a.b", "B-a.c"]
    expected = [Span("creative-work", 0, 2), Span("a.b", 3, 4), Span("a.c", 4, 5)]
    assert tags_to_spans(tags, "BIO", "strict") == tags_to_spans(tags, "BIO", "lenient") == expected


def test_an_entity_of_one_word_is_an_entity_in_bio():
    assert tags_to_spans(["O", "B-PER", "O", "B-LOC"]) == [Span("PER", 1, 2), Span("LOC", 3, 4)]


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES", "BILOU", "BIOS"])
@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_another_type_is_never_bridged(scheme, mode):
    for span in tags_to_spans(["B-PER", "I-LOC", "I-PER"], scheme, mode):
        assert span.end - span.start == 1


def test_importing_labels_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, nercrf.labels; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_scheme_is_hashable_and_frozen():
    assert len(set(SCHEMES.values())) == len(SCHEMES)
    assert SCHEMES["BIO"] == Scheme("BIO", "B", "I", "I", "B")


# Real data


def column_tags(path: Path) -> list[list[str]]:
    if not path.exists():
        pytest.skip(f"{path} is absent: set NERCRF_DATA to the folder of the real data sets")
    sentences = [[]]
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            sentences[-1].append(line.split()[-1])
        else:
            sentences.append([])
    return [tags for tags in sentences if tags]


REAL = [
    # Two entities are cut in two by a sentence border: 13,438 of B and S, two never closed, two
    # never started.
    ("resume/train.char.bmes", "BMES", 3821, 13_436, 13_440, 4),
    ("resume/dev.char.bmes", "BMES", 463, 1_497, 1_497, 0),
    ("resume/test.char.bmes", "BMES", 477, 1_630, 1_630, 0),
    ("wnut17/train.conll", "BIO", 3394, 1_975, 1_975, 0),
    ("wnut17/dev.conll", "BIO", 1009, 836, 836, 0),
    ("wnut17/test.annotated", "BIO", 1287, 1_079, 1_079, 0),
    ("ncbi_disease/train.tsv", "BIO", 5424, 5_134, 5_134, 0),
    ("ncbi_disease/devel.tsv", "BIO", 923, 787, 787, 0),
    ("ncbi_disease/test.tsv", "BIO", 940, 960, 960, 0),
]


@pytest.mark.parametrize(("name", "scheme", "sentences", "strict", "lenient", "ill_formed"), REAL)
def test_real_corpora(name, scheme, sentences, strict, lenient, ill_formed):
    tags = column_tags(DATA / name)
    assert len(tags) == sentences
    assert detect_scheme(tags) == scheme
    starts = {"BMES": "BS", "BIO": "B"}[scheme]
    started = sum(tag[0] in starts for sentence in tags for tag in sentence)
    assert started == (strict + lenient) // 2
    assert sum(len(tags_to_spans(sentence, scheme, "strict")) for sentence in tags) == strict
    assert sum(len(tags_to_spans(sentence, scheme, "lenient")) for sentence in tags) == lenient
    assert sum(len(find_ill_formed(sentence, scheme)) for sentence in tags) == ill_formed
    for sentence in tags[:500]:
        assert tags_to_spans(sentence, scheme, "lenient") == conlleval_chunks(sentence)


@pytest.mark.parametrize(("split", "entities", "nested"), [("train", 23_971, 1), ("dev", 3_072, 0)])
def test_cluener_survives_the_way_through_tags(split, entities, nested):
    path = DATA / "cluener" / f"{split}.json"
    if not path.exists():
        pytest.skip(f"{path} is absent: set NERCRF_DATA to the folder of the real data sets")
    counted, nested_sentences = 0, 0  # in one sentence of train, a book's title holds two companies
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        spans = sorted(
            (
                Span(label, start, last + 1)
                for label, surfaces in record["label"].items()
                for places in surfaces.values()
                for start, last in places
            ),
            key=lambda span: span.start,
        )
        counted += len(spans)
        if any(right.start < left.end for left, right in pairwise(spans)):
            nested_sentences += 1
            with pytest.raises(ValueError, match="overlaps"):
                spans_to_tags(spans, len(record["text"]))
            continue
        for scheme in ("IOB1", "BMES"):
            assert tags_to_spans(spans_to_tags(spans, len(record["text"]), scheme), scheme) == spans
    assert (counted, nested_sentences) == (entities, nested)
