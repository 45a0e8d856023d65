"""Readers, writers and the built-in sample beyond what the notebook shows."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nercrf.data import splitting
from nercrf.data.conll import write_columns
from nercrf.data.corpus import find_split_files, read_corpus
from nercrf.data.examples import DataError, Example, file_digest, flatten_spans
from nercrf.data.formats import read_examples
from nercrf.data.json_spans import write_cluener
from nercrf.data.reading import is_visible
from nercrf.data.sample import sample_corpus, write_sample
from nercrf.data.splitting import find_splitter, split_words
from nercrf.labels import SCHEMES, Span, spans_to_tags

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("NERCRF_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no real data at {DATA}; set NERCRF_DATA to their folder"
)
in_folder = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_text(tmp_path, text, name="train.txt", **options):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return read_examples(path, **options)


def tokens_and_spans(examples):
    return [(example.tokens, example.spans) for example in examples]


# The faults of the reference script that belong to reading.


def test_the_first_sentence_is_not_dropped(tmp_path):
    examples = read_text(tmp_path, "Mara B-PER\n\nleft O\n\nAsh B-LOC\n\n")
    assert [example.tokens for example in examples] == [["Mara"], ["left"], ["Ash"]]


def test_the_last_sentence_counts_without_a_final_empty_line(tmp_path):
    for end in ("", "\n", "\n\n", "\n\n\n", "\r\n", "\n \t"):
        examples = read_text(tmp_path, "Mara B-PER\n\nAsh B-LOC" + end)
        assert tokens_and_spans(examples) == [
            (["Mara"], [Span("PER", 0, 1)]),
            (["Ash"], [Span("LOC", 0, 1)]),
        ]


def test_a_tab_separated_file_has_tokens_and_labels(tmp_path):
    examples = read_text(tmp_path, "Port\tB-LOC\nAsh\tI-LOC\n\nthen\tO\n")
    assert tokens_and_spans(examples) == [(["Port", "Ash"], [Span("LOC", 0, 2)]), (["then"], [])]


def test_a_byte_order_mark_is_not_part_of_the_first_token(tmp_path):
    assert read_text(tmp_path, "\ufeffMara B-PER\n")[0].tokens == ["Mara"]
    line = '\ufeff{"text": "Mara", "label": {}}\n'
    assert read_text(tmp_path, line)[0].text == "Mara"


@pytest.mark.parametrize("blank", ["", " ", "   ", "\t", " \t ", "\t\t", "\r"])
def test_a_line_of_blanks_separates_and_is_no_token(tmp_path, blank):
    examples = read_text(tmp_path, f"Mara B-PER\n{blank}\nleft O\n")
    assert [example.tokens for example in examples] == [["Mara"], ["left"]]


@pytest.mark.parametrize(
    "token", ["\u200b", "\ufeff", "\u3000", "\u00a0", "\ufffd", "\u200d", "\u2028", "\x85"]
)
@pytest.mark.parametrize("separator", ["\t", " "])
def test_an_invisible_token_is_reported_and_keeps_its_place(tmp_path, token, separator):
    text = f"a{separator}O\n{token}{separator}O\nMara{separator}B-PER\n"
    with pytest.raises(DataError, match=r"train.txt:2: the token .* is blank or invisible"):
        read_text(tmp_path, text)
    warnings = []
    (example,) = read_text(tmp_path, text, on_bad="warn", warnings=warnings)
    assert example.tokens == ["a", token, "Mara"]
    assert example.spans == [Span("PER", 2, 3)]
    assert len(warnings) == 1
    assert "train.txt:2:" in warnings[0]


def test_an_empty_or_blank_token_before_a_tab_is_reported(tmp_path):
    for token in ("", " ", "  "):
        with pytest.raises(DataError, match=r"train.txt:2: the token '\s*' is blank"):
            read_text(tmp_path, f"a\tO\n{token}\tO\n")


def test_types_with_hyphens_and_dots_keep_their_names(tmp_path):
    (example,) = read_text(tmp_path, "a B-creative-work\nb I-creative-work\nc B-x.y\n")
    assert example.spans == [Span("creative-work", 0, 2), Span("x.y", 2, 3)]


# Columns.


def test_document_starts_separate_and_are_no_tokens(tmp_path):
    text = "-DOCSTART- -X- -X- O\n\nMara NNP I-NP B-PER\n-DOCSTART- O\nleft VBD I-VP O\n"
    examples = read_text(tmp_path, text)
    assert [example.tokens for example in examples] == [["Mara"], ["left"]]
    assert [example.source.rpartition(":")[2] for example in examples] == ["3", "5"]


def test_columns_are_selectable(tmp_path):
    text = "1\tMara\tB-PER\tNNP\n2\tleft\tO\tVBD\n"
    (example,) = read_text(tmp_path, text, token_column=1, tag_column=2)
    assert (example.tokens, example.spans) == (["Mara", "left"], [Span("PER", 0, 1)])
    (example,) = read_text(tmp_path, text, token_column=-3, tag_column=-2)
    assert example.tokens == ["Mara", "left"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\ntwo words\nand three more\n", r"cannot tell the format .*--format"),
        ("a O\nNNP VBD\nNN X\n", r"train.txt:2: .*'VBD'.*--tag_column"),
        ("a B-X\nb L-X\n\nc S-X\n", r"train.txt: no tag scheme has the prefixes"),
        ("", r"expected at least one sentence, got none"),
        ("\n \n", r"expected at least one sentence, got none"),
    ],
)
def test_malformed_files_name_the_line(tmp_path, text, message):
    for on_bad in ("error", "warn"):
        with pytest.raises(DataError, match=message):
            read_text(tmp_path, text, on_bad=on_bad)


@pytest.mark.parametrize(
    ("text", "message", "tokens"),
    [
        ("a O\nNew York B-LOC\n", r"train.txt:2: expected 2 columns as in line 1, got 3", ["a"]),
        ("a O\nb\n", r"train.txt:2: expected 2 columns as in line 1, got 1", ["a"]),
        ("a O\nb\t\n", r"train.txt:2: expected 2 columns as in line 1, got 1", ["a"]),
        ("a O\n  O\n", r"train.txt:2: .*a blank as token needs a TAB", ["a"]),
        ("a O\nb B-\n", r"train.txt:2: .*'B-'", ["a", "b"]),
    ],
)
def test_malformed_lines_are_named_and_passed_over_leniently(tmp_path, text, message, tokens):
    with pytest.raises(DataError, match=message):
        read_text(tmp_path, text)
    warnings = []
    (example,) = read_text(tmp_path, text, on_bad="warn", warnings=warnings)
    assert (example.tokens, example.spans) == (tokens, [])
    assert any(re.search(message, warning) for warning in warnings)


def test_a_tag_outside_of_a_given_scheme_names_the_line(tmp_path):
    with pytest.raises(DataError, match=r"train.txt:2: .*S-X.*scheme"):
        read_text(tmp_path, "a O\nb S-X\n", scheme="BIO", on_bad="warn")


def test_all_ill_formed_tags_are_reported_at_once(tmp_path):
    text = "".join(f"a{n} O\nb I-X\n\n" for n in range(8)) + "c B-X\nd B-X\n"
    with pytest.raises(DataError) as caught:
        read_text(tmp_path, text, scheme="BIO")
    message = str(caught.value)
    assert "train.txt:2: " in message
    assert "train.txt:14: " in message
    assert "... and 3 more" in message
    assert "--on_bad warn" in message
    warnings = []
    examples = read_text(tmp_path, text, scheme="BIO", on_bad="warn", warnings=warnings)
    assert len(warnings) == 8
    assert examples[0].spans == [Span("X", 1, 2)]


def test_one_column_is_unlabelled(tmp_path):
    examples = read_text(tmp_path, "Mara\nleft\n\nAsh\n")
    assert tokens_and_spans(examples) == [(["Mara", "left"], None), (["Ash"], None)]


@pytest.mark.parametrize("encoding", ["utf-16", "gb18030", "latin-1"])
def test_other_encodings_are_named(tmp_path, encoding):
    text = "naïve O\n" if encoding == "latin-1" else "林 O\n"
    with pytest.raises(DataError, match=r"expected (utf|UTF)-8, got byte"):
        read_text(tmp_path, ("a O\n" + text).encode(encoding))


def test_the_offset_of_a_bad_byte_counts_the_byte_order_mark(tmp_path):
    with pytest.raises(DataError, match=r"train.txt:3: .*byte 0xff at offset 9;"):
        read_text(tmp_path, b"\xef\xbb\xbfa O\n\nb\xff O\n"[:8] + b"b\xff O\n")


def test_separators_follow_the_tokens(tmp_path):
    english, chinese = read_text(tmp_path, "Mara B-PER\nleft O\n\n林 B-PER\n晓 I-PER\n")
    assert (english.text, chinese.text) == ("Mara left", "林晓")
    assert read_text(tmp_path, "A O\nB O\n")[0].text == "AB"


# Round trips.

TYPES = ("PER", "creative-work", "x.y")
plain_token = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cf", "Zs", "Zl", "Zp", "Cn")),
    min_size=1,
    max_size=6,
).filter(lambda token: is_visible(token) and "\ufffd" not in token)


@st.composite
def labelled_example(draw):
    tokens = draw(st.lists(plain_token, min_size=1, max_size=9))
    spans, position = [], 0
    while position < len(tokens):
        length = draw(st.integers(0, 3))
        if 0 < length <= len(tokens) - position:
            spans.append(Span(draw(st.sampled_from(TYPES)), position, position + length))
        position += max(length, 1)
    return Example("x", tokens, spans)


@pytest.mark.parametrize("scheme", SCHEMES)
@in_folder
@given(examples=st.lists(labelled_example(), min_size=1, max_size=5))
def test_columns_round_trip_in_every_scheme(tmp_path, scheme, examples):
    path = write_columns(tmp_path / "train.txt", examples, scheme)
    assert tokens_and_spans(read_examples(path, scheme=scheme)) == tokens_and_spans(examples)
    blanks = path.read_text(encoding="utf-8").replace("\t", "  ").replace("\n", "\r\n")
    path.write_text("\ufeff" + blanks, encoding="utf-8", newline="")
    assert tokens_and_spans(read_examples(path, scheme=scheme)) == tokens_and_spans(examples)


@pytest.mark.parametrize("scheme", SCHEMES)
@in_folder
@given(examples=st.lists(labelled_example(), min_size=1, max_size=5))
def test_the_detected_scheme_reads_the_same_spans_or_is_a_subset(tmp_path, scheme, examples):
    # Tags like a lone I-X fit two schemes; what is found must at least be a
    # legal reading that writes back to the very same tags.
    path = write_columns(tmp_path / "train.txt", examples, scheme)
    found = read_corpus(tmp_path, on_bad="warn").scheme  # without an entity it is a problem
    back = read_examples(path)
    tags = [spans_to_tags(example.spans, len(example.tokens), scheme) for example in examples]
    assert [spans_to_tags(example.spans, len(example.tokens), found) for example in back] == tags


@in_folder
@given(examples=st.lists(labelled_example(), min_size=1, max_size=5))
def test_cluener_round_trip(tmp_path, examples):
    characters = [
        Example(
            str(number),
            list(example.text),
            [
                Span(span.label, example.offsets[span.start][0], example.offsets[span.end - 1][1])
                for span in example.spans
            ],
            sep="",
        )
        for number, example in enumerate(examples)
    ]
    for written in (examples, characters):
        path = write_cluener(tmp_path / "train.json", written)
        back = read_examples(path)
        assert [example.text for example in back] == [example.text for example in written]
        assert tokens_and_spans(back) == tokens_and_spans(characters)


@in_folder
@given(tokens=st.lists(plain_token, min_size=1, max_size=9), sep=st.sampled_from(["", " "]))
def test_offsets_and_text_agree(tokens, sep):
    example = Example("x", tokens, [], sep=sep)
    assert [example.text[start:end] for start, end in example.offsets] == tokens
    span = Span("X", 0, len(tokens))
    assert example.surface(span) == example.text


def test_what_no_column_file_can_hold_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "train.txt"
    for token in ("a\tb", "a\nb", "a\r", " a", "-DOCSTART-"):
        with pytest.raises(DataError, match="cannot stand in a column file"):
            write_columns(path, [Example("1", ["fine"], []), Example("2", [token], [])])
    with pytest.raises(DataError, match="overlaps"):
        write_columns(path, [Example("1", ["a", "b"], [Span("X", 0, 2), Span("Y", 1, 2)])])
    with pytest.raises(DataError, match="cannot stand"):
        write_columns(path, [Example("1", ["two words"])])
    assert list(tmp_path.iterdir()) == []


def test_blanks_within_tokens_survive(tmp_path):
    examples = [Example("1", ["Port Ash", " ", "x"], [Span("LOC", 0, 1)])]
    path = write_columns(tmp_path / "train.txt", examples)
    back = read_examples(path, on_bad="warn")
    assert tokens_and_spans(back) == tokens_and_spans(examples)


# CLUENER.


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"name": {"林晓": [[0, 2]]}}, r"'林晓' at \[0, 2\] is '林晓到' in the text"),
        ({"name": {"林": [[0, 9]]}}, r"lies outside the text of 4 characters"),
        ({"name": {"林": [[-1, 0]]}}, r"lies outside the text of 4 characters"),
        ({"name": {"林": [[1, 0]]}}, r"lies outside the text of 4 characters"),
    ],
)
def test_spans_that_do_not_fit_are_problems(tmp_path, label, message):
    line = json.dumps({"text": "林晓到了", "label": label}, ensure_ascii=False)
    with pytest.raises(DataError, match=r"dev.json:2: .*" + message):
        read_text(tmp_path, "\n" + line, name="dev.json")
    warnings = []
    read_text(tmp_path, "\n" + line, name="dev.json", on_bad="warn", warnings=warnings)
    assert len(warnings) == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"text": 3}',
        '{"text": "\\ud83d"}',
        '["a"]',
        '{"text": "a", "label": []}',
        '{"text": "a", "label": null}',
        '{"text": "a", "label": {"X": {"a": [0, 0]}}}',
        '{"text": "a", "label": {"X": {"a": [["0", "z"]]}}}',
        '{"text"',
    ],
)
def test_lines_of_another_shape_name_the_line(tmp_path, line):
    with pytest.raises(DataError, match=r"dev.json:2: expected"):
        read_text(tmp_path, '{"text": "a"}\n' + line, name="dev.json", format="cluener")


def test_ids_are_kept_for_the_submission(tmp_path):
    examples = read_text(
        tmp_path, '{"id": 5, "text": "a"}\n{"id": "q-1", "text": "b"}\n{"text": "c"}'
    )
    assert [example.id for example in examples] == ["5", "q-1", "train-2"]
    lines = write_cluener(tmp_path / "out.json", examples).read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [5, "q-1", "train-2"]
    assert all("label" not in json.loads(line) for line in lines)


@given(
    spans=st.lists(
        st.builds(
            lambda label, start, size: Span(label, start, start + size),
            st.sampled_from("AB"),
            st.integers(0, 9),
            st.integers(1, 4),
        ),
        max_size=8,
    )
)
def test_flatten_spans_do_not_overlap_and_cover_what_was_dropped(spans):
    kept = flatten_spans(spans)
    assert all(left.end <= right.start for left, right in pairwise(kept))
    assert set(kept) <= set(spans)
    for span in spans:
        rivals = [other for other in kept if other.start < span.end and span.start < other.end]
        assert rivals
        assert max(other.end - other.start for other in rivals) >= span.end - span.start


# Plain text.


@given(text=st.text(max_size=60), by=st.sampled_from(["words", "characters"]))
def test_split_words_covers_everything_that_is_not_blank(text, by):
    pieces = split_words(text, by)
    assert all(text[start:end] == token and token for token, start, end in pieces)
    ends = [0, *(end for _, _, end in pieces)]
    starts = [*(start for _, start, _ in pieces), len(text)]
    gaps = "".join(text[end:start] for end, start in zip(ends, starts, strict=True))
    assert all(char.isspace() or unicodedata.category(char) == "Cf" for char in gaps)
    assert all(end <= start for end, start in zip(ends, starts, strict=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("He's here.", ["He", "'s", "here", "."]),
        ("a--b", ["a", "--", "b"]),
        ("state-of", ["state", "-", "of"]),
        ("東京タワー", list("東京タワー")),
        ("iPhone很好", ["iPhone", "很", "好"]),
        ("안녕 세계", ["안녕", "세계"]),
        ("cafe\u0301", ["cafe\u0301"]),
        ("a_b 1,5", ["a_b", "1,5"]),
        ("Mara, 5", ["Mara", ",", "5"]),
    ],
)
def test_split_words_by_example(text, words):
    assert [token for token, _, _ in split_words(text)] == words


def test_plain_text_is_read_when_asked_for(tmp_path):
    one, two = read_text(tmp_path, "Mara left.\n\n林晓到了\n", format="text")
    assert (one.tokens, one.spans, one.source.rpartition(":")[2]) == (
        ["Mara", "left", "."],
        None,
        "1",
    )
    assert two.text == "林晓到了"


# Folders.


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["train.char.bmes", "dev.char.bmes", "test.char.bmes"],
            "train.char.bmes dev.char.bmes test.char.bmes",
        ),
        (
            ["train.json", "dev.json", "test.json", "cluener_dev.json", "README.md"],
            "train.json dev.json test.json",
        ),
        (["eng.train", "eng.testa", "eng.testb"], "eng.train eng.testa eng.testb"),
        (["train.tsv", "devel.tsv", "test.tsv", "train.py"], "train.tsv devel.tsv test.tsv"),
        (["train.conll", "dev.conll", "test.annotated"], "train.conll dev.conll test.annotated"),
        (
            ["wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"],
            "wnut17train.conll emerging.dev.conll emerging.test.annotated",
        ),
        (["test.json", "test_predictions.json", "old_test.json"], "test.json"),
        (["Train.TXT", "valid.txt"], "Train.TXT valid.txt"),
        (["validation.jsonl"], "validation.jsonl"),
    ],
)
def test_split_files_are_found(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).touch()
    assert sorted(path.name for path in find_split_files(tmp_path).values()) == sorted(
        expected.split()
    )


def test_two_candidates_are_an_error(tmp_path):
    (tmp_path / "dev.txt").touch()
    (tmp_path / "valid.txt").touch()
    with pytest.raises(DataError, match=r"got dev.txt, valid.txt; keep one"):
        find_split_files(tmp_path)
    with pytest.raises(DataError, match="expected a folder"):
        find_split_files(tmp_path / "nothing")


def test_a_type_unseen_in_train_is_reported_and_in_the_label_set(tmp_path):
    (tmp_path / "train.txt").write_text("Mara B-PER\nKel I-PER\n")
    (tmp_path / "dev.txt").write_text("left O\n\nin O\nAsh B-LOC\nBay I-LOC\n")
    corpus = read_corpus(tmp_path)
    assert corpus.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert [
        warning.partition(" does")[0].rpartition("dev.txt")[2] for warning in corpus.warnings
    ] == [":3: the tag 'B-LOC' of dev", ":3: the tag 'I-LOC' of dev"]
    with pytest.raises(DataError, match="this corpus has train, dev"):
        corpus.test  # noqa: B018


# Real data.


@needs_data
@pytest.mark.parametrize(
    ("folder", "scheme", "sentences", "entities", "warnings"),
    [
        ("resume", "BMES", [3821, 463, 477], [13440, 1497, 1630], 4),
        ("cluener", "BIO", [10748, 1343, 1345], [23971, 3072, None], 2),
        ("wnut17", "BIO", [3394, 1009, 1287], [1975, 836, 1079], 2),
        ("ncbi_disease", "BIO", [5424, 923, 940], [5134, 787, 960], 0),
    ],
)
def test_real_corpora_have_their_known_counts(folder, scheme, sentences, entities, warnings):
    corpus = read_corpus(DATA / folder, on_bad="warn")
    assert corpus.scheme == scheme
    assert [len(examples) for examples in corpus.splits.values()] == sentences
    found = [
        None if examples[0].spans is None else sum(len(example.spans) for example in examples)
        for examples in corpus.splits.values()
    ]
    assert found == entities
    assert len(corpus.warnings) == warnings
    assert all(Path(warning.split(":")[0]).is_file() for warning in corpus.warnings)
    assert len({example.id for example in corpus.train}) == len(corpus.train)


@needs_data
def test_real_corpora_read_without_leniency_where_they_are_clean():
    warnings = []
    read_examples(DATA / "wnut17" / "dev.conll", warnings=warnings)
    assert [warning.split(":")[1] for warning in warnings] == ["15556", "16730"]
    assert "creative-work" in read_corpus(DATA / "wnut17").types
    with pytest.raises(DataError, match=r"train.char.bmes:62390: 'M-ORG'"):
        read_corpus(DATA / "resume")
    nested = read_corpus(DATA / "cluener").warnings
    assert [warning.split(" ")[0].rpartition("/")[2] for warning in nested] == [
        "train.json:1507:"
    ] * 2


@needs_data
def test_real_corpora_survive_the_round_trip(tmp_path):
    cluener = read_examples(DATA / "cluener" / "train.json", on_bad="warn")
    back = read_examples(write_cluener(tmp_path / "train.json", cluener), on_bad="warn")
    assert [(e.id, e.tokens, e.spans) for e in back] == [(e.id, e.tokens, e.spans) for e in cluener]
    cluener = cluener[:3000]
    for example in cluener:
        example.spans = flatten_spans(example.spans)
    path = write_columns(tmp_path / "train.txt", cluener, "BIOES")
    assert tokens_and_spans(read_examples(path, on_bad="warn")) == tokens_and_spans(cluener)
    resume = read_examples(DATA / "resume" / "dev.char.bmes")
    path = write_columns(tmp_path / "dev.txt", resume, "BMES")
    assert (
        path.read_text(encoding="utf-8").replace("\t", " ").split()
        == (DATA / "resume" / "dev.char.bmes").read_text(encoding="utf-8").split()
    )


# The sample.

SAMPLE_DIGESTS = {
    "train": "152d84a27a2810a1",
    "dev": "5595324d2c597565",
    "test": "65ac39f65334275a",
}


def test_the_sample_is_the_same_everywhere(tmp_path):
    folder = write_sample(tmp_path / "sample")
    digests = {path.stem: file_digest(path)[:16] for path in folder.glob("*.txt")}
    assert digests == SAMPLE_DIGESTS


def test_the_sample_does_not_depend_on_hash_seeds(tmp_path):
    code = "import sys; from nercrf.data.sample import write_sample; write_sample(sys.argv[1])"
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
    for name in ("train.txt", "dev.txt", "test.txt"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_every_seed_keeps_the_promises(seed):
    corpus = sample_corpus(seed)
    assert [len(examples) for examples in corpus.splits.values()] == [1000, 200, 200]
    surfaces = {
        split: {example.surface(span) for example in examples for span in example.spans}
        for split, examples in corpus.splits.items()
    }
    for split in ("dev", "test"):
        assert len(surfaces[split] - surfaces["train"]) > len(surfaces[split]) / 3
        counts = Counter(span.label for example in corpus.splits[split] for span in example.spans)
        assert set(counts) == set(corpus.types)
    for examples in corpus.splits.values():
        for example in examples:
            assert all(is_visible(token) for token in example.tokens)
            spans_to_tags(example.spans, len(example.tokens))


def test_sizes_are_free_and_impossible_ones_are_refused():
    corpus = sample_corpus(sizes=(20, 0, 3))
    assert [len(examples) for examples in corpus.splits.values()] == [20, 0, 3]
    assert sample_corpus(sizes=(20, 5, 5)).train == corpus.train


def test_a_brace_as_first_token_is_no_json(tmp_path):
    assert read_text(tmp_path, "{\tO\n}\tO\n")[0].tokens == ["{", "}"]
    assert read_text(tmp_path, '{"text": "a"}')[0].tokens == ["a"]
    with pytest.raises(DataError, match=r"dev.json:1: expected a JSON object a line, got '\['"):
        read_text(tmp_path, '[\n{"text": "a"}\n]', name="dev.json")


def test_reading_needs_no_torch():
    code = "import sys, nercrf.data.convert, nercrf.data.sample; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert importlib.util.find_spec("nercrf.data.examples")


_NASTY = (
    *("中", "国", "李", "，", "。", "：", "“", "@", "a", "b", "X", "0", "9", "٣", "²", "〇", "𠀀"),
    *(".", ",", ";", ":", "-", "--", "!", "?", "(", ")", "&", "&amp;", "#", "_", "'", "’", "n't"),
    *("'s", "http://", "www.", "U.S.", ")D", "%", "é", "ß", "א", "م", "ก", "ा", "क", "한", "カ"),
    *(" ", "\n", "\t", "\x1c", "\xa0", "\u3000", "\u200b", "\ufeff", "\u200d", "\u0301", "\ufe0f"),
    *("\U0001f1e9", "\U0001f44d", "\U0001f3fd"),
)


@settings(max_examples=300)
@given(parts=st.lists(st.sampled_from(_NASTY), max_size=14))
@pytest.mark.parametrize("name", ["words", "penn", "punctuation"])
def test_the_plain_words_that_are_found_at_once_are_those_of_the_rules(name, parts):
    at_once = (splitting._PLAIN, splitting._PLAIN_HAN)
    rules = [rule for rule in splitting._RULES[name] if rule not in at_once]
    one_by_one = regex.compile("|".join(rf"(?:{rule})\p{{M}}*" for rule in rules), regex.V1)
    text = "".join(parts)
    expected = [found.span() for found in one_by_one.finditer(text)]
    assert list(find_splitter(name).places(text)) == expected
