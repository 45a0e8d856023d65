"""Every format: real exporters' quirks, round trips, encodings, and what a conversion says it lost."""

import gzip
import json
import os
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nercrf.data.check import check_paths
from nercrf.data.convert import convert
from nercrf.data.corpus import read_corpus
from nercrf.data.examples import DataError, Example
from nercrf.data.formats import FORMATS, detect_format, prepare_text, read_examples, write_examples
from nercrf.data.markup import format_inline, parse_inline
from nercrf.data.records import Survey
from nercrf.data.rows import from_dataset
from nercrf.data.splitting import split_words
from nercrf.data_commands import convert_main
from nercrf.labels import SCHEMES, Span

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("NERCRF_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no real data at {DATA}; set NERCRF_DATA to their folder"
)
in_folder = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
from nercrf.data.sample import write_sample


def read(tmp_path, content, name="a.jsonl", **options):
    path = tmp_path / name
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return read_examples(path, **options)


def views(examples):
    return [
        (
            example.text,
            list(example.tokens),
            example.spans,
            [tuple(pair) for pair in example.offsets],
        )
        for example in examples
    ]


PER = [Span("PER", 0, 1)]

# Character spans: the variants of the exporters.


@pytest.mark.parametrize(
    "record",
    [
        {"id": 1, "text": "Mara left", "label": [[0, 4, "PER"]]},
        {"id": 1, "text": "Mara left", "labels": [[0, 4, "PER"]]},
        {"id": 1, "data": "Mara left", "label": [[0, 4, "PER"]]},
        {
            "id": 1,
            "text": "Mara left",
            "relations": [],
            "Comments": [],
            "entities": [{"id": 9, "label": "PER", "start_offset": 0, "end_offset": 4}],
        },
    ],
)
def test_doccano_variants(tmp_path, record):
    (example,) = read(tmp_path, record)
    assert detect_format(tmp_path / "a.jsonl") == "doccano"
    assert (example.id, example.text, example.spans) == ("1", "Mara left", PER)


def test_doccano_relations_and_unknown_fields_are_counted(tmp_path):
    record = {"text": "Mara", "label": [[0, 4, "PER"]], "relations": [{"id": 1}], "meta": {"a": 1}}
    warnings = []
    read(tmp_path, record, format="doccano", warnings=warnings)
    assert [line.partition("ignored ")[2] for line in warnings] == [
        "the field 'relations' (1)",
        "the field 'meta' (1)",
    ]


@pytest.mark.parametrize("end", [3, 4])
def test_the_kind_of_end_is_found_from_the_surface(tmp_path, end):
    record = {
        "text": "Mara left",
        "spans": [{"start": 0, "end": end, "label": "PER", "text": "Mara"}],
    }
    warnings = []
    (example,) = read(tmp_path, record, warnings=warnings)
    assert (example.spans, warnings) == (PER, [])


def test_ends_without_a_surface_are_exclusive_and_said_to_be(tmp_path):
    warnings = []
    record = {"text": "Mara left", "spans": [[0, 4, "PER"]]}
    assert read(tmp_path, record, warnings=warnings)[0].spans == PER
    assert "read as exclusive; pass end='inclusive'" in warnings[0]
    record = {"text": "Mara left", "spans": [[0, 3, "PER"]]}
    assert read(tmp_path, record, end="inclusive")[0].spans == PER


def test_both_kinds_of_end_in_one_file_are_refused(tmp_path):
    lines = [
        json.dumps(
            {"text": "Mara", "spans": [{"start": 0, "end": end, "label": "P", "text": "Mara"}]}
        )
        for end in (3, 4)
    ]
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: a surface fits an exclusive end, but in .*a\.jsonl:1"
    ):
        read(tmp_path, "\n".join(lines))


def test_a_span_that_begins_inside_a_word_cuts_the_word(tmp_path):
    text = '{"text": "Mara", "label": []}\n{"text": "Mara left", "label": [[1, 4, "PER"]]}\n'
    warnings = []
    _, example = read(tmp_path, text, warnings=warnings)
    assert example.tokens == ["M", "ara", "left"]
    assert example.spans == [Span("PER", 1, 2)]
    assert example.text == "Mara left"
    assert [line.rpartition("a.jsonl")[2] for line in warnings] == [
        ":2: words in which an entity begins or ends: cut there, such as 'Mara'"
    ]
    assert read(tmp_path, text, by="characters")[1].spans == [Span("PER", 1, 4)]


def test_a_possessive_and_a_compound_are_annotated_as_they_are(tmp_path):
    lines = [
        {"text": "Kestrel Marine's depot", "label": [[0, 14, "ORG"]]},
        {"text": "A Leeds-based firm", "label": [[2, 7, "LOC"]]},
        {"text": "Leeds/Bradford's", "label": [[0, 5, "LOC"]]},
        {"text": "preLeeds", "label": [[3, 8, "LOC"]]},
    ]
    warnings = []
    examples = read(tmp_path, "\n".join(map(json.dumps, lines)), warnings=warnings)
    surfaces = [example.surface(example.spans[0]) for example in examples]
    assert surfaces == ["Kestrel Marine", "Leeds", "Leeds", "Leeds"]
    assert [len(example.tokens) for example in examples] == [4, 5, 4, 2]
    assert len(warnings) == 1
    assert "a.jsonl:4: words in which" in warnings[0]


def test_ends_that_lack_a_letter_are_an_error_with_the_remedy(tmp_path):
    text = '{"text": "Mara left", "label": [[0, 3, "PER"]]}\n'
    with pytest.raises(DataError, match=r"1 of 1 entities end one letter before .*--end inclusive"):
        read(tmp_path, text)
    assert read(tmp_path, text, end="inclusive")[0].tokens == ["Mara", "left"]


def test_tokens_of_the_file_are_not_cut(tmp_path):
    record = {"text": "Mara left", "tokens": [[0, 4], [5, 9]], "label": [[1, 4, "PER"]]}
    with pytest.raises(DataError, match=r"a\.jsonl:1: PER 'ara' at \[1, 4\) cuts a token"):
        read(tmp_path, record)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ([0, 5, "PER"], "has blanks at its border"),
        ([0, 99, "PER"], "outside the text"),
        ([2, 2, "PER"], "is empty"),
    ],
)
def test_odd_offsets_are_named(tmp_path, span, message):
    with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{message}"):
        read(tmp_path, {"text": "Mara left", "label": [span]})


def test_a_wrong_surface_is_named(tmp_path):
    record = {
        "text": "Mara left",
        "spans": [{"start": 0, "end": 4, "label": "PER", "text": "Sara"}],
    }
    with pytest.raises(DataError, match=r"'Sara' at \[0, 4\] is 'Mara' in the text"):
        read(tmp_path, record)


def test_nested_and_crossing_spans_are_kept(tmp_path):
    record = {"text": "a b c", "label": [[0, 3, "X"], [2, 5, "Y"], [0, 1, "Z"]]}
    warnings = []
    (example,) = read(tmp_path, record, warnings=warnings)
    assert example.spans == [Span("X", 0, 2), Span("Z", 0, 1), Span("Y", 1, 3)]
    assert sum("overlaps" in line for line in warnings) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"', r"a\.jsonl:1: expected a JSON object a line"),
        ('{"text": 3, "spans": []}', "expected a string 'text'"),
        ('{"text": "a", "spans": [{"start": 0}]}', "expected a span like"),
        ('{"text": "a", "spans": [[true, 1, "X"]]}', "expected a span like"),
        ('{"text": "a", "spans": [[0, 1, "X"]], "labels": [[0, 1, "Y"]]}', "spans and labels"),
        ('{"text": "\\ud800", "spans": []}', "surrogate"),
        ('{"text": "  ", "spans": []}', "has no token"),
        ('{"text": "ab", "tokens": [[1, 2], [0, 1]], "spans": []}', "out of order"),
    ],
)
def test_malformed_json_names_the_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text, format="jsonl")


# Label Studio.


def region(start, end, text, *labels, **further):
    value = {"start": start, "end": end, "text": text, "labels": list(labels)}
    return {
        "value": value,
        "id": "x",
        "from_name": "label",
        "to_name": "text",
        "type": "labels",
        **further,
    }


def test_label_studio_export(tmp_path):
    tasks = [
        {
            "id": 7,
            "data": {"my_text": "Mara left"},
            "predictions": [],
            "annotations": [
                {"was_cancelled": True, "result": []},
                {
                    "result": [
                        region(0, 4, "Mara", "PER", "HERO"),
                        {"type": "relation", "from_id": "x", "to_id": "y"},
                        {"type": "choices", "value": {"choices": ["good"]}},
                    ]
                },
                {"result": [region(5, 9, "left", "VERB")]},
            ],
        },
        {"id": 8, "data": {"my_text": "unlabelled"}, "annotations": []},
    ]
    warnings = []
    first, second = read(tmp_path, json.dumps(tasks, indent=1), "a.json", warnings=warnings)
    assert (first.id, first.spans, second.spans) == (
        "7",
        [Span("HERO", 0, 1), Span("PER", 0, 1)],
        None,
    )
    text = "\n".join(warnings)
    for what in ("cancelled", "beyond a task's first", "type 'relation'", "type 'choices'"):
        assert what in text
    assert int(second.source.rpartition(":")[2]) > 30


def test_label_studio_json_min_and_old_completions(tmp_path):
    value = {"start": 0, "end": 4, "text": "Mara", "labels": ["PER"]}
    (example,) = read(
        tmp_path, [{"id": 1, "text": "Mara left", "label": [value], "annotator": 1}], "a.json"
    )
    assert example.spans == PER
    task = {"data": {"text": "Mara left"}, "completions": [{"result": [{"value": value}]}]}
    assert read(tmp_path, [task], "a.json")[0].spans == PER


def test_a_cut_off_array_names_the_line(tmp_path):
    with pytest.raises(DataError, match=r"a\.json:2: .*cut off"):
        read(tmp_path, '[{"data": {"text": "a"}},\n{"data"', "a.json", format="label_studio")


# brat.


def brat(tmp_path, text, ann, **options):
    (tmp_path / "d.txt").write_bytes(text.encode())
    return read(tmp_path, ann, "d.ann", **options)


def test_brat_lines_offsets_and_ignored_kinds(tmp_path):
    warnings = []
    ann = "T1\tPER 0 4\tMara\nR1\tin Arg1:T1 Arg2:T2\n#1\tAnnotatorNotes T1\tsure\nT2\tLOC 11 14\tAsh\n*\tEquiv T1 T2\n"
    first, second = brat(tmp_path, "Mara left\r\nAsh\r\n", ann, warnings=warnings)
    assert (first.text, first.spans, second.spans) == ("Mara left", PER, [Span("LOC", 0, 1)])
    assert sum("ignored" in line for line in warnings) == 3


@pytest.mark.parametrize(
    ("ann", "message"),
    [
        ("T1\tPER 0 4;5 9\tMara left\n", r"d\.ann:1: .*in several pieces"),
        ("T1\tPER 5 12\tleft\n", r"d\.ann:1: .*beyond line 1"),
        ("T1\tPER 0 3\tMara\n", "is 'Mar' in the text"),
    ],
)
def test_brat_problems_are_errors_or_warnings(tmp_path, ann, message):
    with pytest.raises(DataError, match=message):
        brat(tmp_path, "Mara left\nAsh\n", ann)
    warnings = []
    brat(tmp_path, "Mara left\nAsh\n", ann, on_bad="warn", warnings=warnings)
    assert warnings


@pytest.mark.parametrize("line", ["T1 PER 0 4 Mara", "T1\tPER zero 4\tMara", "Q1\twhat"])
def test_brat_unreadable_lines(tmp_path, line):
    with pytest.raises(DataError, match=r"d\.ann:1: expected"):
        brat(tmp_path, "Mara\n", line + "\n")


def test_brat_without_annotations_is_unlabelled_and_an_empty_file_is_not(tmp_path):
    assert brat(tmp_path, "Mara\n", "")[0].spans == []
    (tmp_path / "d.ann").unlink()
    assert read_examples(tmp_path / "d.txt", "brat")[0].spans is None


# Encodings, gzip, detection.


def test_byte_order_mark_and_gzip(tmp_path):
    text = '\ufeff{"text": "Mara left", "label": [[0, 4, "PER"]]}\n'
    assert read(tmp_path, text)[0].spans == PER
    assert read(tmp_path, gzip.compress(text.encode()), "a.jsonl.gz")[0].spans == PER


def test_a_wrong_encoding_names_the_byte_and_offers_the_option(tmp_path):
    data = "a O\n林 B-PER\n".encode("gb18030")
    for packed in (data, gzip.compress(data)):
        with pytest.raises(
            DataError, match=r"a\.txt:2: .* byte 0xc1 at offset 4; .*--encoding gb18030"
        ):
            read(tmp_path, packed, "a.txt", format="columns")
    assert read(tmp_path, data, "a.txt", encoding="gb18030")[0].tokens == ["a", "林"]
    with pytest.raises(DataError, match=r"byte 0xff at offset 0, .*--encoding utf-16"):
        read(tmp_path, "a O\n".encode("utf-16"), "a.txt")
    with pytest.raises(ValueError, match="name of an encoding"):
        read(tmp_path, data, "a.txt", encoding="klingon")


def test_a_broken_gzip_file(tmp_path):
    data = gzip.compress(b"Mara B-PER\n" * 99)
    with pytest.raises(DataError, match="whole gzip file"):
        read(tmp_path, data[:-9], "a.txt.gz")


def test_plain_text_is_not_guessed(tmp_path):
    with pytest.raises(DataError, match="cannot tell the format"):
        read(tmp_path, "Mara left\n", "a.txt")
    assert read(tmp_path, "Mara left\n", "a.txt", format="text")[0].spans is None
    with pytest.raises(ValueError, match="expected a format of columns"):
        read(tmp_path, "Mara left\n", "a.txt", format="conll")


# Round trips.

LETTERS = "abcXY林晓0.,!{}:\\'\"- \u00e9\u0301😀"


@st.composite
def text_examples(draw, nested=True):
    examples = []
    for number in range(draw(st.integers(1, 4))):
        text = draw(st.text(LETTERS, min_size=1, max_size=20).filter(split_words))
        words = split_words(text)
        borders = draw(st.lists(st.integers(0, len(words)), max_size=6, unique=True).map(sorted))
        pairs = list(pairwise(borders))
        if nested and len(borders) > 2:
            pairs.append((borders[0], borders[-1]))
        label = st.sampled_from(["PER", "a-b", "x:y", "机构"])
        labels = draw(st.lists(label, min_size=len(pairs), max_size=len(pairs)))
        spans = {Span(label, *pair) for label, pair in zip(labels, pairs, strict=True)}
        spans = sorted(spans, key=lambda span: (span.start, -span.end, span.label))
        offsets = [(start, end) for _, start, end in words]
        examples.append(
            Example(str(number), [word[0] for word in words], spans, "", " ", text, offsets)
        )
    return examples


@pytest.mark.parametrize("format", ["jsonl", "doccano", "label_studio", "brat", "inline"])
@pytest.mark.parametrize("packed", ["", ".gz"])
@given(data=st.data())
@in_folder
def test_character_formats_round_trip(tmp_path, format, packed, data):
    examples = data.draw(text_examples())
    path = tmp_path / f"r{FORMATS[format].extensions[0]}{packed}"
    assert write_examples(examples, path, format) == []
    back = read_examples(path, format)
    assert views(back) == views(examples)
    if format not in ("brat", "inline"):
        assert [example.id for example in back] == [example.id for example in examples]


@pytest.mark.parametrize("scheme", list(SCHEMES))
@given(data=st.data())
@in_folder
def test_columns_round_trip_in_every_scheme(tmp_path, scheme, data):
    examples = data.draw(text_examples(nested=False))
    path = tmp_path / "r.tsv.gz"
    write_examples(examples, path, "columns", scheme)
    back = read_examples(path, "columns", scheme=scheme)
    assert [(e.tokens, e.spans) for e in back] == [(e.tokens, e.spans) for e in examples]


@given(data=st.data())
@in_folder
def test_cluener_round_trips_characters(tmp_path, data):
    examples = [
        Example(
            e.id,
            list(e.text),
            [Span(s.label, e.offsets[s.start][0], e.offsets[s.end - 1][1]) for s in e.spans],
            sep="",
        )
        for e in data.draw(text_examples())
    ]
    write_examples(examples, tmp_path / "r.json", "cluener")
    back = read_examples(tmp_path / "r.json", "cluener")
    assert [(e.id, e.tokens, sorted(e.spans)) for e in back] == [
        (e.id, e.tokens, sorted(e.spans)) for e in examples
    ]


def test_jsonl_keeps_foreign_tokens_and_ids(tmp_path):
    examples = [
        Example("007", ["New-", "York 1", " "], [Span("LOC", 0, 2)]),
        Example("x", ["a"], None),
    ]
    write_examples(examples, tmp_path / "a.jsonl", "jsonl")
    back = read_examples(tmp_path / "a.jsonl", "jsonl")
    assert views(back) == views(examples)
    assert [example.id for example in back] == ["007", "x"]


@given(st.text(LETTERS, max_size=20))
@in_folder
def test_inline_escapes_any_text(text):
    assert parse_inline(format_inline(text, [])) == (text, [])


# Writing and converting.


def test_nothing_is_left_behind_by_a_failed_write(tmp_path):
    examples = [Example("0", ["a", "b", "c"], [Span("X", 0, 2), Span("Y", 1, 3)])]
    for format in ("columns", "inline"):
        with pytest.raises(DataError, match="example 0"):
            write_examples(examples, tmp_path / "a.txt", format)
        losses = write_examples(examples, tmp_path / f"{format}.txt", format, on_bad="warn")
        assert len(losses) == 1
    assert not (tmp_path / "a.txt").exists()
    assert not list(tmp_path.glob(".*"))
    assert len(examples[0].spans) == 2


def test_a_conversion_is_lossless_or_says_what_is_lost(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"id": 3, "text": "Mara  left!", "label": [[0, 4, "PER"]]}\n'
    )
    report = convert(tmp_path / "a.jsonl", tmp_path / "b.json", to_format="label_studio")
    assert report.lossless
    assert "nothing was lost" in str(report)
    report = convert(
        tmp_path / "a.jsonl", tmp_path / "b.tsv", to_format="columns", to_scheme="BIOES"
    )
    assert (tmp_path / "b.tsv").read_text() == "Mara\tS-PER\nleft\tO\n!\tO\n\n"
    assert not report.lossless
    assert [loss.kind for loss in report.losses] == ["ids", "texts"]


def test_a_conversion_says_what_reading_ignored(tmp_path):
    (tmp_path / "a.tsv").write_text("# id 1\nMara\tNNP\tB-PER\n\n")
    report = convert(tmp_path / "a.tsv", tmp_path / "a.jsonl")
    assert not report.lossless
    assert "ignored comments (1)" in str(report)
    assert "ignored columns beside token and tag (1)" in str(report)


# Optional packages.


class Feature:
    def __init__(self, **values):
        self.__dict__.update(values)


class Rows(list):
    def __init__(self, rows, names=None):
        super().__init__(rows)
        self.column_names = list(rows[0])
        self.features = {"ner_tags": Feature(feature=Feature(names=names))} if names else {}


def test_datasets_of_every_shape():
    row = {"id": "a", "tokens": ["Mara", "left"]}
    (example,) = from_dataset(Rows([{**row, "ner_tags": [1, 0]}], ["O", "B-PER"]))
    assert (example.id, example.spans) == ("a", PER)
    assert from_dataset(Rows([{**row, "ner_tags": ["B-PER", "O"]}]))[0].spans == PER
    assert from_dataset(Rows([row]))[0].spans is None
    assert from_dataset(Rows([{"text": "Mara left", "entities": [[0, 4, "PER"]]}]))[0].spans == PER
    splits = from_dataset({"train": Rows([row]), "test": Rows([row])})
    assert list(splits) == ["train", "test"]
    with pytest.raises(DataError, match=r"row 0: expected integer tags with a ClassLabel"):
        from_dataset(Rows([{**row, "ner_tags": [1, 0]}]))
    with pytest.raises(DataError, match=r"row 0: expected tags 0 to 1, got -100"):
        from_dataset(Rows([{**row, "ner_tags": [1, -100]}], ["O", "B-PER"]))
    with pytest.raises(DataError, match=r"2 tokens and 1 tags"):
        from_dataset(Rows([{**row, "ner_tags": ["O"]}]))


@pytest.mark.parametrize(("package", "format"), [("datasets", "datasets"), ("spacy", "docbin")])
def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch, package, format):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        write_examples([Example("0", ["a"], [])], tmp_path / "new", format)


def test_real_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    examples = [Example("a", ["Mara", "left"], PER), Example("b", ["x"], [])]
    for scheme in SCHEMES:
        write_examples(examples, tmp_path / scheme, "datasets", scheme)
        back = read_examples(tmp_path / scheme, scheme=scheme)
        assert [(e.id, e.tokens, e.spans) for e in back] == [
            (e.id, e.tokens, e.spans) for e in examples
        ]
    both = datasets.DatasetDict({"train": datasets.load_from_disk(str(tmp_path / "BIO"))})
    both.save_to_disk(str(tmp_path / "both"))
    assert len(read_examples(tmp_path / "both", split="train")) == 2
    with pytest.raises(DataError, match="expected split to be one of train"):
        read_examples(tmp_path / "both")


TABLE = {
    "id": ["a", "b"],
    "tokens": [["Mara", "left"], ["x"]],
    "ner_tags": [["B-PER", "O"], ["O"]],
}


def write_table(path, arrow, table):
    "A table in the form that the name says."
    from pyarrow import feather, parquet

    form, _, ending = path.name.partition(".")
    if ending == "parquet":
        parquet.write_table(table, path)
    elif ending == "feather":
        feather.write_feather(table, str(path), compression=form)
    else:
        new = arrow.ipc.new_file if form == "file" else arrow.ipc.new_stream
        with arrow.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)


ARROW_FILES = ["a.parquet", "file.arrow", "stream.arrow"]
ARROW_FILES += [f"{compression}.feather" for compression in ("uncompressed", "lz4", "zstd")]


@pytest.mark.parametrize("name", ARROW_FILES)
def test_real_parquet_and_arrow(tmp_path, name):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / name
    write_table(path, arrow, arrow.table(TABLE))
    back = read_examples(path)
    assert [(each.id, each.tokens, each.spans) for each in back] == [
        ("a", ["Mara", "left"], PER),
        ("b", ["x"], []),
    ]
    names = ["O", "B-PER", "I-PER"]
    numbers = TABLE | {"ner_tags": [[1, 0], [0]]}
    write_table(path, arrow, arrow.table(numbers))
    with pytest.raises(DataError, match="row 0: expected integer tags with a ClassLabel"):
        read_examples(path)
    assert read_examples(path, tag_names=names)[0].spans == PER
    feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}
    held = json.dumps({"info": {"features": {"ner_tags": feature}}})
    table = arrow.table(numbers).replace_schema_metadata({"huggingface": held})
    write_table(path, arrow, table)
    assert read_examples(path)[0].spans == PER
    large = arrow.large_list(arrow.large_string())
    columns = {key: arrow.array(TABLE[key], large) for key in ("tokens", "ner_tags")}
    write_table(path, arrow, arrow.table(columns))
    assert read_examples(path)[0].spans == PER
    spans = {"text": ["Mara left"], "spans": [[{"start": 0, "end": 4, "label": "PER"}]]}
    write_table(path, arrow, arrow.table(spans))
    assert read_examples(path)[0].spans == PER


@pytest.mark.parametrize("name", ARROW_FILES)
def test_parquet_that_cannot_be_read_is_named(tmp_path, name):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / name
    write_table(path, arrow, arrow.table(TABLE))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{name}: expected a (parquet|arrow) file, got"):
        read_examples(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match="or an LFS pointer"):
        read_examples(path)
    bad = {"tokens": [["a", None], ["b"], None], "ner_tags": [["O", "O"], ["O"], ["O"]]}
    write_table(path, arrow, arrow.table(bad))
    warnings = []
    assert len(read_examples(path, on_bad="warn", warnings=warnings)) == 1
    assert [warning.rpartition("row ")[2][:23] for warning in warnings[:2]] == [
        "0: expected tokens as s",
        "2: expected a list of t",
    ]


def test_shards_of_parquet_are_a_split(tmp_path):
    pytest.importorskip("pyarrow")
    example = Example("a", ["Mara", "left"], PER)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        write_examples([example], tmp_path / f"{name}.parquet", "parquet")
    splits = read_corpus(tmp_path).splits
    assert {name: len(held) for name, held in splits.items()} == {"train": 2, "dev": 1}


def test_real_spacy(tmp_path):
    spacy = pytest.importorskip("spacy")
    nested = [Span("ORG", 0, 3), Span("LOC", 1, 2)]
    examples = [Example("a", ["Port", "Ash", "Bank"], nested), Example("b", ["x"], None)]
    write_examples(examples, tmp_path / "a.spacy", "docbin")
    from spacy.tokens import DocBin

    first, _ = DocBin().from_disk(tmp_path / "a.spacy").get_docs(spacy.blank("xx").vocab)
    assert [(e.label_, e.start, e.end) for e in first.ents] == [("ORG", 0, 3)]
    assert len(first.spans["sc"]) == 2
    assert first.text == "Port Ash Bank"


# Real data.


@needs_data
@pytest.mark.parametrize(
    "name",
    [
        "resume/dev.char.bmes",
        "cluener/dev.json",
        "cluener/test.json",
        "wnut17/dev.conll",
        "ncbi_disease/devel.tsv",
    ],
)
def test_real_sets_are_detected_read_and_converted(tmp_path, name):
    path = DATA / name
    ours = read_examples(path, on_bad="warn")
    report = convert(path, tmp_path / "a.jsonl.gz", on_bad="warn")
    assert report.losses == []
    assert report.examples == len(ours)


# Parts of a file.


@pytest.mark.parametrize("format", ["columns", "cluener", "jsonl", "doccano", "inline", "text"])
@given(data=st.data())
@in_folder
def test_parts_give_what_the_whole_gives(tmp_path, format, data):
    path = tmp_path / "p.x"
    examples = data.draw(text_examples(nested=format != "columns"))
    write_examples(examples, path, format, "BIOES")
    text = path.read_bytes().decode()
    border = "\n\n" if format == "columns" else "\n"
    ends = [place.end() for place in re.finditer(border, text)]
    cuts = sorted({0, len(text), *data.draw(st.lists(st.sampled_from(ends), max_size=3))})
    parts, survey = [text[start:end] for start, end in pairwise(cuts)], Survey()
    for part in parts:
        survey = survey.merge(prepare_text(part, format, path).survey())
    read, findings, line, number = [], [], 1, 0
    for part in parts:
        options = {"first_line": line, "first_number": number, "columns": survey.columns}
        found = prepare_text(part, format, path, **options).finish(survey)
        number += prepare_text(part, format, path).survey().sentences
        line += part.count("\n")
        read, findings = read + found[0], findings + found[1]
    whole = prepare_text(text, format, path)
    assert (read, findings) == whole.finish(whole.survey())


@pytest.mark.parametrize("end", [0, 1])
def test_utf16_units_are_found_from_the_surface(tmp_path, end):
    record = {
        "text": "😀 Mara left",
        "spans": [{"start": 3, "end": 7 - end, "label": "PER", "text": "Mara"}],
    }
    (example,) = read(tmp_path, record)
    assert example.surface(example.spans[0]) == "Mara"
    record["spans"] = [[3, 7, "PER"]]
    assert read(tmp_path, record, units="utf16")[0].spans == [Span("PER", 1, 2)]


def test_ids_that_a_reader_made_up_are_nothing_to_lose(tmp_path, capsys):
    """A column file has no ids: under another name and in another scheme it is still the same."""
    path = tmp_path / "devel.tsv"
    path.write_text("Mara\tB-PER\nTobin\tI-PER\nleft\tO\n\nKelford\tB-LOC\n", encoding="utf-8")
    assert (
        convert_main([str(path), str(tmp_path / "dev.conll"), "--to_scheme", "BIOES", "--strict"])
        == 0
    )
    assert (
        tmp_path / "dev.conll"
    ).read_text() == "Mara\tB-PER\nTobin\tE-PER\nleft\tO\n\nKelford\tS-LOC\n\n"
    assert "nothing was lost" in capsys.readouterr().out


def test_ids_that_are_there_are_lost_by_a_format_without_them(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 70, "text": "Mara left", "spans": [[0, 4, "PER"]]}\n', encoding="utf-8")
    assert convert_main([str(path), str(tmp_path / "b.conll"), "--strict"]) == 1
    assert "the ids" in capsys.readouterr().out


def test_a_folder_of_splits_becomes_a_folder(tmp_path):
    write_sample(tmp_path / "from")
    assert convert_main([str(tmp_path / "from"), str(tmp_path / "to"), "--to", "jsonl"]) == 0
    before, after = read_corpus(tmp_path / "from"), read_corpus(tmp_path / "to")
    for split, examples in before.splits.items():
        assert [(e.tokens, e.spans) for e in after.splits[split]] == [
            (e.tokens, e.spans) for e in examples
        ]


def test_what_cannot_be_converted_is_one_line_and_writes_nothing(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("Mara\tX-PER-\n\nleft\n", encoding="utf-8")
    assert convert_main([str(path), str(tmp_path / "b.jsonl")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "b.jsonl").exists()


def test_a_header_with_more_columns_than_the_lines_is_told(tmp_path):
    """A comma too many in the header moves every column to the right of it."""
    path = tmp_path / "table.csv"
    body = 'Sentence: 1,"Ada",B-PER\n' + ',"met",O\n,"Bo",B-PER\n' * 20
    path.write_text("Sentence #,,Word,Tag\n" + body)
    with pytest.raises(DataError, match=r"table.csv:1: expected a header with the 2 columns"):
        read_examples(path)
    assert [each.kind for each in check_paths([path]).findings] == ["unreadable"]
