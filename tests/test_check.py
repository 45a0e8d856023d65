"""The check of labelled files and their repair: made-up oddities, naive oracles, the real sets."""

import contextlib
import gzip
import io
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training import CORPUS, TOKENIZER

from nercrf.data.check import check_paths
from nercrf.data.check_report import CheckReport
from nercrf.data.conll import write_columns
from nercrf.data.examples import KINDS, DataError, Example
from nercrf.data.formats import read_examples, write_examples
from nercrf.data.reading import is_visible
from nercrf.data.repair import fix_file
from nercrf.data_commands import check_main, piece_counter
from nercrf.features.conversion import convert_examples_to_features
from nercrf.labels import Span, tags_to_spans

in_folder = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def columns(path, *sentences):
    """Write a column file; a sentence is "token/TAG token/TAG"."""
    lines = []
    for sentence in sentences:
        lines += [part.replace("/", "\t") for part in sentence.split(" ")] + [""]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def json_lines(path, *records):
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
        encoding="utf-8",
    )
    return path


def found(report, *kinds):
    """Kind, file name and line of the findings, all or those of some kinds."""
    return [
        (finding.kind, finding.where.rpartition("/")[2])
        for finding in report.findings
        if not kinds or finding.kind in kinds
    ]


def run(*argv):
    """The command: exit code, what it printed, what it complained about."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = check_main([str(word) for word in argv])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def odd(tmp_path):
    """A folder of column files with one oddity of each kind."""
    columns(
        tmp_path / "train.txt",
        "Mara/B-PER Winson/I-PER left/O",
        "in/O Ash/I-LOC",
        "\u200b/O x\ufeff/O the/O Lake/B-LOC",
        "Bay/I-LOC froze/O",
        "Ash/B-LOC and/O Ash/B-LOC",
        "Ash/B-ORG hired/O Mara/B-PER Winson/I-PER",
        "Mara/O Winson/O left/O",
    )
    columns(
        tmp_path / "dev.txt",
        "in/O Ash/B-LOC",
        "a/O Zenix/B-PRODUCT",
        "Ash/B-LOC Ford/I-LOC Upon/I-LOC Bel/I-LOC",
    )
    return tmp_path


# What is found.


def test_every_oddity_of_column_files_has_its_line(odd):
    assert found(check_paths(odd)) == [
        ("ill-formed-tag", "train.txt:6"),
        ("ill-formed-tag", "train.txt:13"),
        ("invisible-token", "train.txt:8"),
        ("unknown-type", "dev.txt:5"),
        ("dirty-token", "train.txt:9"),
        ("unseen-tag", "dev.txt:8"),
        ("shared-sentence", "dev.txt:1"),
        ("repeated-sentence", "train.txt:25"),
        ("conflicting-type", "train.txt:20"),
        ("missed-entity", "train.txt:25"),
    ]


def test_messages_tell_what_and_how_often(odd):
    messages = {finding.kind: finding.message for finding in check_paths(odd).findings}
    assert messages["unknown-type"] == "dev has the type 'PRODUCT', train has not"
    assert messages["shared-sentence"] == "'in Ash' is in train.txt:5 too"
    assert (
        messages["repeated-sentence"]
        == "'Mara Winson left' is in train.txt:1 too, labelled otherwise"
    )
    assert messages["conflicting-type"] == "'Ash' is ORG here (once in all), LOC 4 times"
    assert (
        messages["missed-entity"] == "'Mara Winson' is unlabelled here (once in all), PER 2 times"
    )


def test_a_blank_line_that_cuts_an_entity(tmp_path):
    path = columns(
        tmp_path / "train.txt", "the/O Ash/B-ORG Bel/I-ORG", "Bank/I-ORG met/O", "in/O Bel/B-LOC"
    )
    bmes = columns(tmp_path / "dev.txt", "北/B-ORG 方/M-ORG", "银/M-ORG 行/E-ORG 在/O", "人/S-PER")
    assert (
        found(check_paths(path), "cut-entity") == []
    )  # only one side is odd: B-ORG I-ORG may end there
    (finding,) = (finding for finding in check_paths(bmes).findings if finding.kind == "cut-entity")
    assert finding.where == f"{bmes}:3"
    assert finding.message == (
        "this blank line cuts the ORG '北方' + '银行'; join the sentences if they are one"
    )


def test_every_oddity_of_character_spans(tmp_path):
    path = json_lines(
        tmp_path / "train.json",
        {
            "id": 1,
            "text": "张三在NBA打球",
            "label": {"PER": {"张三": [[0, 1]]}, "ORG": {"NB": [[3, 4]]}},
        },
        {
            "id": 1,
            "text": "北京大学在北京",
            "label": {"ORG": {"北京大学": [[0, 3]]}, "LOC": {"北京": [[0, 1]]}},
        },
        {
            "id": 3,
            "text": "甲乙丙丁",
            "label": {"A": {"甲乙丙": [[0, 2]]}, "B": {"乙丙丁": [[1, 3]]}},
        },
        {
            "id": 4,
            "text": "张三 走",
            "label": {"PER": {"张三 ": [[0, 2]], "走": [[9, 9]], "三": [[0, 0]]}},
        },
        {"id": 5, "text": "李\u200b四走", "label": {"PER": {"四": [[2, 2], [2, 2]]}}},
        {"id": 6, "text": "", "label": {}},
    )
    assert found(check_paths(path)) == [
        ("span-outside", "train.json:4"),
        ("surface-mismatch", "train.json:4"),
        ("blank-border", "train.json:4"),
        ("duplicate-span", "train.json:5"),
        ("blank-text", "train.json:6"),
        ("cuts-token", "train.json:1"),
        ("crossing-span", "train.json:3"),
        ("nested-span", "train.json:2"),
        ("nested-span", "train.json:4"),
        ("duplicate-id", "train.json:2"),
        ("dirty-token", "train.json:5"),
    ]


span_lists = st.lists(
    st.tuples(st.sampled_from("AB"), st.integers(0, 6), st.integers(1, 4)).map(
        lambda item: Span(item[0], item[1], min(item[1] + item[2], 8))
    ),
    max_size=5,
    unique=True,
)


@in_folder
@given(span_lists)
def test_overlaps_against_all_pairs(tmp_path, spans):
    """A span is reported once, as crossing if it crosses an earlier one that still goes on there."""
    text = "甲乙丙丁戊己庚辛"
    label = {}
    for span in spans:
        places = label.setdefault(span.label, {}).setdefault(text[span.start : span.end], [])
        places.append([span.start, span.end - 1])
    path = json_lines(tmp_path / "train.json", {"text": text, "label": label})
    expected = Counter()
    ordered = sorted(spans, key=lambda span: (span.start, -span.end))
    for position, span in enumerate(ordered):
        before = [other for other in ordered[:position] if other.end > span.start]
        if before:
            crosses = any(other.end < span.end for other in before)
            expected["crossing-span" if crosses else "nested-span"] += 1
    report = check_paths(path, format="cluener")
    assert Counter(kind for kind, _ in found(report, "crossing-span", "nested-span")) == expected


labelled_sentences = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "a+", "b+"]), min_size=1, max_size=8), max_size=8
)


@in_folder
@given(labelled_sentences)
def test_unlabelled_names_against_a_scan_of_every_name_at_every_word(tmp_path, sentences):
    examples = [Example("0", ["x", "y"], [Span("A", 0, 1)])]
    for sentence in sentences:
        inside = [False, *(word.endswith("+") for word in sentence)]
        prefixes = ["OO", "BI"]
        tags = [f"{prefixes[now][before]}-A" if now else "O" for before, now in pairwise(inside)]
        examples.append(Example("", [word[0] * 2 for word in sentence], tags_to_spans(tags)))
    path = write_columns(tmp_path / "train.txt", examples)
    labelled = Counter(tuple(e.tokens[s.start : s.end]) for e in examples for s in e.spans)
    free = Counter()
    for example in examples:
        taken = {word for span in example.spans for word in range(span.start, span.end)}
        position = 0
        while position < len(example.tokens):
            fits = [
                len(name)
                for name in labelled
                if tuple(example.tokens[position : position + len(name)]) == name
                and taken.isdisjoint(range(position, position + len(name)))
            ]
            if fits:
                free[tuple(example.tokens[position : position + max(fits)])] += 1
            position += max(fits, default=1)
    expected = {
        f"{' '.join(name)!r} is unlabelled here ({'once' if free[name] == 1 else f'{free[name]} times'} in all), "
        f"A {labelled[name]} times"
        for name in free
        if labelled[name] > free[name]
    }
    messages = {
        finding.message for finding in check_paths(path).findings if finding.kind == "missed-entity"
    }
    assert messages == expected


def test_the_most_lopsided_names_come_first(tmp_path):
    path = columns(
        tmp_path / "train.txt",
        *["Ash/B-LOC"] * 4,
        "Ash/B-ORG",
        "Ash/B-ORG",
        *["Bel/B-LOC"] * 3,
        "Bel/B-PER",
        *["Cal/B-LOC"] * 5,
        "Cal/O",
    )
    places = found(check_paths(path), "conflicting-type", "missed-entity")
    assert places == [
        ("conflicting-type", "train.txt:19"),
        ("conflicting-type", "train.txt:9"),
        ("missed-entity", "train.txt:31"),
    ]


def test_names_within_letters_are_no_names(tmp_path):
    """Where each character is a token, NBA is not found in WNBA."""
    path = json_lines(
        tmp_path / "train.json",
        *[{"text": "看NBA赛", "label": {"ORG": {"NBA": [[1, 3]]}}}] * 2,
        {"text": "看WNBA赛", "label": {}},
    )
    assert found(check_paths(path), "missed-entity") == []


# Splits, schemes, what cannot be read.


def test_statistics_of_a_small_corpus(odd):
    (dataset,) = check_paths(odd, max_seq_length=5).datasets
    train, dev = dataset.splits
    assert (train.name, train.formats, train.scheme, train.sentences, train.tokens) == (
        "train",
        ["columns"],
        "BIO",
        7,
        21,
    )
    assert train.entities == {"LOC": 5, "PER": 2, "ORG": 1}
    assert (train.repeated, train.unlabelled, train.overlap, train.pieces) == (1, 0, None, None)
    words = train.words
    assert (words.median, words.p90, words.longest, words.limit, words.over) == (3, 4, 4, 3, 2)
    assert words.histogram == {2: 2, 4: 5}
    assert words.longest_at.endswith("train.txt:8")
    assert words.longest_entity_at.endswith("train.txt:1")
    seen = dev.overlap
    assert (seen.sentences, seen.mentions, seen.seen_mentions, seen.names, seen.seen_names) == (
        1,
        3,
        1,
        3,
        1,
    )


def test_pieces_and_windows_are_those_of_the_features(tmp_path):
    path = write_columns(tmp_path / "train.txt", CORPUS.train, CORPUS.scheme)
    (dataset,) = check_paths(path, piece_counter(TOKENIZER), max_seq_length=20).datasets
    lengths = dataset.splits[0].pieces
    features = convert_examples_to_features(
        CORPUS.train, CORPUS.labels, 20, TOKENIZER, scheme=CORPUS.scheme
    )
    windows = features.sentence_windows[1:] - features.sentence_windows[:-1]
    assert lengths.over == (windows > 1).sum() > 0
    whole = convert_examples_to_features(
        CORPUS.train, CORPUS.labels, 512, TOKENIZER, scheme=CORPUS.scheme
    )
    assert lengths.longest == whole.piece_lengths.max() - 2
    index = int(whole.piece_lengths.argmax())
    assert lengths.longest_at == read_examples(path)[index].source
    assert sum(lengths.histogram.values()) == len(CORPUS.train)


def test_a_command_counts_the_pieces_of_a_saved_tokenizer(tmp_path, odd):
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    _, out, _ = run(odd, "--tokenizer", tmp_path / "tokenizer")
    assert "word pieces a sentence" in out


def test_files_of_one_data_set_are_read_in_one_scheme(tmp_path):
    """dev alone would be BIO; with train it is BIOES and its tags are ill-formed."""
    columns(tmp_path / "train.txt", "Ash/S-LOC", "Mara/B-PER Winson/E-PER")
    columns(tmp_path / "dev.txt", "Mara/B-PER left/O")
    report = check_paths(tmp_path)
    assert [split.scheme for split in report.datasets[0].splits] == ["BIOES", "BIOES"]
    assert found(report, "scheme", "ill-formed-tag") == [
        ("ill-formed-tag", "dev.txt:1"),
        ("scheme", "dev.txt"),
    ]


def test_schemes_that_do_not_fit_each_other_are_a_problem(tmp_path):
    columns(tmp_path / "train.txt", "Ash/S-LOC", "Mara/B-PER X/M-PER Winson/E-PER")
    columns(tmp_path / "dev.txt", "Ash/U-LOC", "Mara/B-PER X/I-PER Winson/L-PER")
    report = check_paths(tmp_path)
    assert found(report)[0] == ("scheme", "dev.txt")
    assert "follow BILOU, those of the data set BMES" in report.findings[0].message
    assert [split.scheme for split in report.datasets[0].splits] == ["BMES", "BILOU"]


def test_a_file_that_cannot_be_read_does_not_stop_the_check(tmp_path, odd):
    (odd / "dev.txt").write_bytes(b"Ash\tB-LOC\n\n\xff\tO\n")
    report = check_paths(odd)
    assert found(report)[:2] == [("unreadable", "dev.txt:3"), ("ill-formed-tag", "train.txt:6")]
    assert report.exit_code("never") == report.exit_code() == 2
    assert "expected utf-8, got byte 0xff" in report.findings[0].message
    missing = check_paths(tmp_path / "none.txt")
    assert (missing.findings[0].kind, missing.datasets[0].splits) == ("unreadable", [])


def test_a_file_that_shows_no_format_is_read_like_the_others(tmp_path):
    columns(tmp_path / "train.txt", "in/O Ash/B-LOC")
    columns(tmp_path / "test.txt", "Ash froze")
    report = check_paths(tmp_path)
    assert [
        (split.name, split.unlabelled, split.tokens) for split in report.datasets[0].splits
    ] == [("train", 0, 2), ("test", 1, 2)]
    assert report.findings == []
    assert run(tmp_path, "--fix", "--output", tmp_path / "new")[0] == 0
    assert (tmp_path / "new" / "test.txt").read_bytes() == (tmp_path / "test.txt").read_bytes()
    (tmp_path / "test.txt").write_text("Ash\nfroze over\n")
    assert found(check_paths(tmp_path)) == [("unreadable", "test.txt:2")]


def test_files_whose_names_tell_no_split_are_one(tmp_path):
    paths = [columns(tmp_path / name, "Ash/B-LOC froze/O") for name in ("a.conll", "b.conll")]
    (dataset,) = check_paths([*paths, columns(tmp_path / "train.conll", "Bel/B-LOC")]).datasets
    assert [(split.name, split.sentences, split.repeated) for split in dataset.splits] == [
        ("train", 1, 0),
        ("data", 2, 1),
    ]


def test_two_folders_are_two_data_sets(tmp_path, odd):
    other = tmp_path / "other"
    other.mkdir()
    columns(other / "train.txt", "in/O Ash/B-LOC")
    report = check_paths([odd, other])
    assert [dataset.name for dataset in report.datasets] == [str(odd), str(other)]
    assert found(report, "shared-sentence") == [("shared-sentence", "dev.txt:1")]


class Rows(list):
    """What a data set of the package `datasets` gives the reader."""

    column_names = ("tokens", "ner_tags")


def test_a_folder_that_datasets_has_saved(tmp_path, monkeypatch):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    rows = {
        "train": Rows([{"tokens": ["Ash", "froze"], "ner_tags": ["B-LOC", "O"]}]),
        "validation": Rows([{"tokens": ["in", "Ash"], "ner_tags": ["O", "B-LOC"]}] * 2),
    }
    for name in rows:
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    package = SimpleNamespace(load_from_disk=lambda path: rows[Path(path).name])
    monkeypatch.setattr("nercrf.data.rows._optional", lambda name: package)
    report = check_paths(tmp_path)
    assert [(split.name, split.sentences) for split in report.datasets[0].splits] == [
        ("train", 1),
        ("dev", 2),
    ]
    assert report.to_dict()["findings"][0]["file"] == str(tmp_path / "validation")
    assert [(f.kind, f.where) for f in report.findings] == [
        ("repeated-sentence", f"{tmp_path / 'validation'}:row 1")
    ]
    with pytest.raises(DataError, match="expected a file, got a folder"):
        fix_file(tmp_path / "train")


# The report.


def test_exit_codes(tmp_path, odd):
    clean = columns(tmp_path / "clean.txt", "in/O Ash/B-LOC", "Mara/B-PER left/O")
    assert run(clean)[:2] == (0, str(check_paths(clean)) + "\n")
    assert run(odd)[0] == 1
    assert run(odd, "--fail_on", "never")[0] == 0
    notes = columns(tmp_path / "notes.txt", "in/O Ash/B-LOC", "in/O Ash/B-LOC")
    assert [run(notes, "--fail_on", name)[0] for name in ("problem", "note", "never")] == [0, 1, 0]
    assert run(tmp_path / "nothing")[0] == 2
    assert run(tmp_path / "other")[0] == 2
    with pytest.raises(ValueError, match="fail_on"):
        CheckReport([]).exit_code("warning")


def test_problems_come_first_and_long_lists_are_cut(tmp_path):
    path = columns(tmp_path / "train.txt", *["a/O Ash/I-LOC"] * 8)
    lines = str(check_paths(path, scheme="BIO")).split("\n")
    assert lines[0] == "8 problems, 7 notes"
    assert lines[2] == "problem: tags that break the scheme (8; --fix repairs them)"
    assert lines[8] == "  and 3 more (--all)"
    assert lines[10] == f"{path}: columns in BIO"
    assert "note: sentences that stand there again (7)" in lines
    assert "more" not in check_paths(path, scheme="BIO").render(every=True)


def test_the_table_is_aligned_in_a_terminal(tmp_path):
    json_lines(
        tmp_path / "train.json",
        {"text": "张三走", "label": {"人名": {"张三": [[0, 1]]}, "x": {"走": [[2, 2]]}}},
    )
    json_lines(tmp_path / "dev.json", {"text": "李四", "label": {"人名": {"李四": [[0, 1]]}}})
    lines = str(check_paths(tmp_path)).split("\n")
    (chinese,) = (line for line in lines if line.startswith("  人名"))
    (latin,) = (line for line in lines if line.startswith("  x "))
    assert len(latin) - len(chinese) == len("人名")


def test_json_is_the_report(odd):
    code, out, _ = run(odd, "--json")
    content = json.loads(out)
    assert code == 1
    assert content == json.loads(json.dumps(check_paths(odd).to_dict()))
    assert content["version"] == 1
    assert set(content) == {"version", "datasets", "findings"}
    assert content["findings"][0] == {
        "kind": "ill-formed-tag",
        "severity": "problem",
        "file": str(odd / "train.txt"),
        "line": 6,
        "message": "'I-LOC' between 'O' and the end is ill-formed in BIO; 'B-LOC' would fit",
        "fixable": True,
    }
    assert {finding["kind"] for finding in content["findings"]} <= set(KINDS)
    assert set(content["datasets"][0]["splits"][1]) == {
        "name",
        "files",
        "formats",
        "scheme",
        "sentences",
        "unlabelled",
        "repeated",
        "tokens",
        "entities",
        "words",
        "pieces",
        "overlap",
    }


# The repair.

FIXABLE = {kind for kind, (_, fixable) in KINDS.items() if fixable}


def lenient_spans(path, **options):
    """Type and visible tokens of every entity, sentence by sentence where something can be seen."""
    found = []
    for example in read_examples(path, on_bad="warn", **options):
        visible = [token for token in example.tokens if is_visible(token)]
        entities = [
            (span.label, tuple(t for t in example.tokens[span.start : span.end] if is_visible(t)))
            for span in example.spans
        ]
        if visible:
            found.append((visible, [entity for entity in entities if entity[1]]))
    return found


tagged = st.lists(
    st.tuples(
        st.sampled_from(["Ash", "Bel", "cal", "\u200b", "\ufeff"]),
        st.sampled_from("OBIES"),
        st.sampled_from("XY"),
    ),
    min_size=1,
    max_size=6,
)


@in_folder
@given(
    st.lists(tagged, min_size=1, max_size=5),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["\t", "\t_\t", " x "]),
)
def test_a_repaired_column_file(tmp_path, sentences, end, gap):
    """It checks clean, says what the original said, and differs from it in the listed lines alone."""
    sentences = [[("Ash", "S", "X"), ("Bel", "B", "Y"), ("cal", "E", "Y")], *sentences]
    lines = []
    for sentence in sentences:
        lines += [
            f"{token}{gap}{'O' if prefix == 'O' else f'{prefix}-{label}'}"
            for token, prefix, label in sentence
        ]
        lines.append("")
    path = tmp_path / "train.txt"
    path.write_bytes((end.join(lines) + end).encode())
    for old in tmp_path.glob("*.fixed.txt"):
        old.unlink()
    before = path.read_bytes()
    repair = fix_file(path, scheme="BIOES")
    assert path.read_bytes() == before
    copy = repair.output or path
    assert found(check_paths(copy, scheme="BIOES"), *FIXABLE) == []
    assert repair.remaining == []
    assert lenient_spans(copy, scheme="BIOES") == lenient_spans(path, scheme="BIOES")
    changed = {int(change.where.rpartition(":")[2]): change.after for change in repair.changes}
    expected = [
        changed.get(number, line.strip()) if number in changed else line
        for number, line in enumerate(lines, 1)
        if number not in changed or changed[number] is not None
    ]
    assert copy.read_bytes() == (end.join(expected) + end).encode()
    assert fix_file(copy, scheme="BIOES").changes == []


characters = st.text(alphabet="AB 甲乙\u200b", min_size=1, max_size=10)
mentions = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 5), st.sampled_from("XY")), max_size=5
)


@in_folder
@given(
    st.lists(st.tuples(characters, mentions), min_size=1, max_size=5),
    st.sampled_from(["cluener", "doccano", "jsonl"]),
    st.booleans(),
)
def test_repaired_json_lines(tmp_path, texts, format, compact):
    """The same, for spans of characters: trimmed spans are the only change."""
    lines = []
    for number, (text, spans) in enumerate([("A", []), *texts]):
        spans = [
            (start, min(start + size, len(text)), label)
            for start, size, label in spans
            if start < len(text)
        ]
        record = {"id": number, "text": text, "meta": {"b": 1, "a": [1.5, None]}}
        if format == "cluener":
            record["label"] = {}
            for start, end, label in spans:
                surfaces = record["label"].setdefault(label, {})
                surfaces.setdefault(text[start:end], []).append([start, end - 1])
        elif format == "doccano":
            record["label"] = [list(span) for span in spans]
        else:
            record["spans"] = [
                dict(zip(("start", "end", "type"), span, strict=True)) for span in spans
            ]
        separators = (",", ":") if compact else None
        lines.append(json.dumps(record, ensure_ascii=compact, separators=separators))
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for old in tmp_path.glob("*.fixed.jsonl"):
        old.unlink()
    options = {"format": format, "by": "characters"}
    before = read_examples(path, on_bad="warn", **options)
    repair = fix_file(path, **options)
    copy = repair.output or path
    after = read_examples(copy, on_bad="warn", **options)

    def meaning(examples):
        found = []
        for example in examples:
            blank = [not is_visible(token) for token in example.tokens]
            spans = {
                (span.label, tuple(word for word in range(span.start, span.end) if not blank[word]))
                for span in example.spans
                if not all(blank[span.start : span.end])
            }
            if not all(blank):
                found.append((example.text, spans))
        return found

    assert meaning(after) == meaning(before)
    touched = {int(change.where.rpartition(":")[2]) for change in repair.changes}
    removed = {int(c.where.rpartition(":")[2]) for c in repair.changes if c.kind == "blank-text"}
    new = iter(copy.read_text(encoding="utf-8").split("\n"))
    for number, line in enumerate(lines, 1):
        if number not in removed:
            written = next(new)
            assert (written == line) == (number not in touched)
    assert fix_file(copy, **options).changes == []
    left = {finding.kind for finding in check_paths(copy, **options).findings} & FIXABLE
    assert left <= {"blank-border", "blank-text"}  # spans and texts of nothing but blanks


def test_each_repair_of_a_column_file_is_listed(odd):
    code, out, _ = run(odd, "--fix")
    train, copy = odd / "train.txt", odd / "train.fixed.txt"
    assert code == 1
    assert out.split("\n")[-6:] == [
        f"{train}: 3 changes, written to {copy}",
        f"  {train}:6   'Ash\\tI-LOC' is now 'Ash\\tB-LOC'",
        f"  {train}:8   '\\u200b\\tO' removed",
        f"  {train}:13  'Bay\\tI-LOC' is now 'Bay\\tB-LOC'",
        f"{odd / 'dev.txt'}: 0 changes",
        "",
    ]
    assert not (odd / "dev.fixed.txt").exists()
    assert [split.files for split in check_paths(odd).datasets[0].splits] == [
        [str(train)],
        [str(odd / "dev.txt")],
    ]
    assert [split.name for split in check_paths(copy).datasets[0].splits] == ["train"]
    lines = train.read_text("utf-8").split("\n")
    lines[5], lines[12] = "Ash\tB-LOC", "Bay\tB-LOC"
    del lines[7]
    assert copy.read_text("utf-8") == "\n".join(lines)


def test_an_invisible_token_takes_no_neighbour_with_it(tmp_path):
    """Its own entity goes, one around it stays whole, two beside it stay two."""
    path = columns(
        tmp_path / "a.txt",
        "\u200b/B-X a/O",
        "Ash/B-X \u200b/I-X Bel/I-X",
        "Ash/B-X \u200b/O Bel/B-X",
        "\u200b/B-X Bel/I-X",
    )
    copy = fix_file(path).output
    assert [[*map(str, example.spans)] for example in read_examples(copy)] == [
        [*map(str, spans)]
        for spans in ([], [Span("X", 0, 2)], [Span("X", 0, 1), Span("X", 1, 2)], [Span("X", 0, 1)])
    ]


def test_nothing_is_overwritten(odd):
    train, copy = odd / "train.txt", odd / "train.fixed.txt"
    before = train.read_bytes()
    copy.write_text("mine")
    with pytest.raises(DataError, match="expected a new file, got one"):
        fix_file(train)
    code, _, err = run(odd, "--fix")
    assert code == 2
    assert "train.fixed.txt" in err
    with pytest.raises(DataError, match="expected a new file"):
        fix_file(train, output=odd)
    assert (train.read_bytes(), copy.read_text()) == (before, "mine")


def test_a_folder_of_copies_is_a_whole_data_set(odd, tmp_path):
    assert run(odd, "--fix", "--output", tmp_path / "new")[0] == 1
    assert (tmp_path / "new" / "dev.txt").read_bytes() == (odd / "dev.txt").read_bytes()
    assert found(check_paths(tmp_path / "new"), *FIXABLE) == []
    assert run(odd, "--output", tmp_path / "new")[0] == 2
    content = json.loads(run(odd, "--fix", "--output", tmp_path / "again", "--json")[1])
    assert [(len(repair["changes"]), repair["output"]) for repair in content["repairs"]] == [
        (3, str(tmp_path / "again" / "train.txt")),
        (0, str(tmp_path / "again" / "dev.txt")),
    ]


def test_the_bytes_around_a_repair_stay(tmp_path):
    """Byte order mark, carriage returns, comments, further columns, blanks after a tag, no line end
    at the end.
    """
    text = "# a comment\r\nAsh\tNN\tI-LOC \r\n\r\n-DOCSTART-\tX\tO\r\n\r\nBel\tNN\tB-LOC\r\n\r\nx\tNN\tO"
    path = tmp_path / "a.conll"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    repair = fix_file(path, scheme="BIO")
    assert repair.output.read_bytes() == b"\xef\xbb\xbf" + text.replace("I-LOC", "B-LOC").encode()
    packed = tmp_path / "b.conll.gz"
    packed.write_bytes(gzip.compress(text.encode("gb18030")))
    repair = fix_file(packed, scheme="BIO", encoding="gb18030")
    assert repair.output.name == "b.fixed.conll.gz"
    assert gzip.decompress(repair.output.read_bytes()) == text.replace("I-LOC", "B-LOC").encode(
        "gb18030"
    )


def test_another_column_can_hold_the_tag(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("NN I-LOC Ash\n\nNN B-LOC Bel\n")
    options = {"format": "columns", "token_column": 2, "tag_column": 1, "scheme": "BIO"}
    repair = fix_file(path, **options)
    assert repair.output.read_text() == "NN B-LOC Ash\n\nNN B-LOC Bel\n"


def test_repairs_of_inclusive_ends_and_surfaces(tmp_path):
    wrong = {
        "begin": 6,
        "stop": 9,
        "tag": "PER",
        "word": "gone",
    }  # what is meant is not known: it stays
    path = json_lines(
        tmp_path / "a.jsonl",
        {
            "text": "Mara  left",
            "entities": [{"begin": 0, "stop": 4, "tag": "PER", "word": "Mara ", "by": "x"}, wrong],
        },
        {"text": "Ash", "entities": [{"begin": 0, "stop": 2, "tag": "LOC", "word": "Ash"}]},
    )
    repair = fix_file(path)
    first, second = repair.output.read_text().splitlines()
    assert json.loads(first)["entities"] == [
        {"begin": 0, "stop": 3, "tag": "PER", "word": "Mara", "by": "x"},
        wrong,
    ]
    assert second == path.read_text().splitlines()[1]
    first, left = (line.split(maxsplit=1) for line in str(repair).split("\n")[1:])
    assert first == [f"{path}:1", "\"PER 'Mara ' at [0, 5)\" is now \"'Mara' at [0, 4)\""]
    assert left[0] == f"{repair.output}:1"
    assert left[1].startswith("not repaired: PER 'gone'")


def test_repairs_where_offsets_count_utf16_units(tmp_path):
    record = {
        "text": "😀 Ada  left",
        "spans": [{"start": 3, "end": 7, "label": "PER", "text": "Ada "}],
    }
    path = json_lines(tmp_path / "a.jsonl", record)
    repair = fix_file(path)
    (written,) = map(json.loads, repair.output.read_text("utf-8").splitlines())
    assert written["spans"] == [{"start": 3, "end": 6, "label": "PER", "text": "Ada"}]
    assert found(check_paths(repair.output)) == []


def test_what_would_be_a_guess_is_left_and_said(tmp_path):
    path = json_lines(
        tmp_path / "a.json",
        {
            "text": "张三走 ",
            "label": {"PER": {"张四": [[0, 1]], "": [[3, 9]], "张三": [[0, 1]], " ": [[3, 3]]}},
        },
    )
    repair = fix_file(path)
    assert (repair.changes, repair.output) == ([], None)
    assert [finding.kind for finding in repair.remaining] == [
        "span-outside",
        "surface-mismatch",
        "blank-border",
        "duplicate-span",
    ]
    assert str(repair).count("not repaired: ") == 4


def test_repair_of_inline_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("{{PER:Mara }}left\n\n\u200b\nin {{LOC:{{LOC:Ash}}}} \\{\n", encoding="utf-8")
    assert fix_file(path).output.read_text() == "{{PER:Mara}} left\n\nin {{LOC:Ash}} \\{\n"


def test_repair_of_a_pair_of_brat(tmp_path):
    text, spans = tmp_path / "a.txt", tmp_path / "a.ann"
    text.write_text("Mara  left Ash.\n")
    spans.write_text(
        "T1\tPER 0 5\tMara \nT2\tPER 0 4\tMara\nT3\tLOC 11 14\tAsh\nT4\tLOC 11 14\tAsh\nR1\tin Arg1:T1 Arg2:T4\n"
    )
    for path in (text, spans):
        repair = fix_file(path, output=tmp_path / path.suffix[1:])
        copy = tmp_path / path.suffix[1:]
        assert repair.output == copy / "a.ann"
        assert (copy / "a.txt").read_text() == text.read_text()
        assert (copy / "a.ann").read_text() == (
            "T1\tPER 0 4\tMara\nT3\tLOC 11 14\tAsh\nT4\tLOC 11 14\tAsh\nR1\tin Arg1:T1 Arg2:T4\n"
        )
        assert [change.kind for change in repair.changes] == ["blank-border", "duplicate-span"]
        assert [finding.kind for finding in repair.remaining] == ["duplicate-span"]
    assert [d.name for d in check_paths(tmp_path / "ann").datasets] == [str(tmp_path / "ann")]


def test_a_format_without_lines_is_copied_as_it_is(tmp_path):
    path = tmp_path / "a.json"
    write_examples([Example("1", ["Mara", "left"], [Span("PER", 0, 1)])], path, "label_studio")
    content = (
        path.read_text()
        .replace('"end": 4', '"end": 5')
        .replace('"text": "Mara"', '"text": "Mara "')
    )
    path.write_text(content)
    report = check_paths(path)
    assert "problem: spans with blanks at an end (1)" in str(report)
    assert [finding["fixable"] for finding in report.to_dict()["findings"]] == [False]
    repair = fix_file(path, output=tmp_path / "new")
    assert (repair.changes, [finding.kind for finding in repair.remaining]) == (
        [],
        ["blank-border"],
    )
    assert repair.output.read_text() == content


# The real sets.


def test_resume(data_folder, tmp_path):
    report = check_paths(data_folder / "resume")
    (dataset,) = report.datasets
    assert found(report)[:6] == [
        *(("ill-formed-tag", f"train.char.bmes:{line}") for line in (62390, 62392, 64412, 64414)),
        ("cut-entity", "train.char.bmes:62391"),
        ("cut-entity", "train.char.bmes:64413"),
    ]
    assert {finding.severity for finding in report.findings[6:]} == {"note"}
    assert [split.sentences for split in dataset.splits] == [3821, 463, 477]
    assert [split.words.over for split in dataset.splits] == [47, 4, 6]
    assert [sum(split.entities.values()) for split in dataset.splits] == [13440, 1497, 1630]
    assert [(split.scheme, len(split.entities)) for split in dataset.splits] == [("BMES", 8)] * 3
    repair = fix_file(data_folder / "resume" / "train.char.bmes", output=tmp_path)
    assert [change.where.rpartition(":")[2] for change in repair.changes] == [
        "62390",
        "62392",
        "64412",
        "64414",
    ]
    assert found(check_paths(repair.output), *FIXABLE) == []
    old, new = (path.read_bytes().split(b"\n") for path in (repair.path, repair.output))
    assert [n for n, pair in enumerate(zip(old, new, strict=True), 1) if pair[0] != pair[1]] == [
        62390,
        62392,
        64412,
        64414,
    ]


def test_cluener(data_folder):
    report = check_paths(data_folder / "cluener")
    (dataset,) = report.datasets
    assert found(report, "nested-span", "crossing-span") == [("nested-span", "train.json:1507")] * 2
    assert report.exit_code() == 0
    assert [split.unlabelled for split in dataset.splits] == [0, 0, 1345]
    assert [sum(split.entities.values()) for split in dataset.splits] == [23971, 3072, 0]


def test_wnut17(data_folder):
    report = check_paths(data_folder / "wnut17")
    (dataset,) = report.datasets
    assert found(report, "dirty-token") == [
        ("dirty-token", "dev.conll:15556"),
        ("dirty-token", "dev.conll:16730"),
    ]
    assert report.exit_code() == 0
    assert [split.sentences for split in dataset.splits] == [3394, 1009, 1287]
    assert [sum(split.entities.values()) for split in dataset.splits] == [1975, 836, 1079]
    assert dataset.splits[0].entities["creative-work"] == 140
    assert [split.overlap.sentences for split in dataset.splits[1:]] == [0, 0]


def test_ncbi_disease(data_folder):
    report = check_paths(data_folder / "ncbi_disease")
    (dataset,) = report.datasets
    assert report.exit_code() == 0
    assert [sum(split.entities.values()) for split in dataset.splits] == [5134, 787, 960]
    assert [split.name for split in dataset.splits] == ["train", "dev", "test"]
