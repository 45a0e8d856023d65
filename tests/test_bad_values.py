"""What a file may hold that is no data: refused with file and line, in every verb, in bounded memory."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import time
import zipfile

import pytest

from nercrf.cli import main
from nercrf.data.check import _overlaps, check_paths
from nercrf.data.examples import DataError, Example, flatten_spans
from nercrf.data.formats import examine, read_examples, write_examples
from nercrf.data.records import Reading
from nercrf.labels import Span

GOOD = {"text": "Ann left", "label": [[0, 3, "PER"]]}
DEEP = "[" * 200_000


def second(text):
    """A file whose second line is this text."""
    return json.dumps(GOOD) + "\n" + text + "\n" + json.dumps(GOOD) + "\n"


VALUES = {
    '{"text": "a b", "label": [], "label": [[0, 1, "PER"]]}': "each key of an object once, got 'label' 2 times",
    '{"text": "a b", "label": [], "score": NaN}': "got NaN",
    '{"text": "a b", "label": [], "score": -Infinity}': "got -Infinity",
    '{"text": "a b", "label": [], "score": 1e999}': "got 1e999",
    '{"text": "a b", "label": [], "score": ' + "9" * 5000 + "}": "thousands of digits",
    '{"text": "a b", "label": [], "meta": ' + DEEP + "}": "nested too deeply",
    '{"text": "a b", "label": [[0.9, 2, "PER"]]}': "expected a span like",
    '{"text": "a b", "label": [["01", 2, "PER"]]}': "expected a span like",
    '{"text": "a b", "label": [[true, 2, "PER"]]}': "expected a span like",
    '{"text": "a b", "label": "PER"}': "expected 'label' as a list",
    '{"text": "a b", "lable": [[0, 1, "PER"]]}': "is the field 'lable' meant to be 'label'?",
    '{"text": "a b", "entites": [[0, 1, "PER"]]}': "is the field 'entites' meant to be 'entities'?",
    '{"text": "a b", "label": [{"start": 0, "end": 1, "lable": "PER"}]}': "is the field 'lable' meant to be 'label'?",
    '{"txt": "a b", "label": [[0, 1, "PER"]]}': "is the field 'txt' meant to be 'text'?",
    '{"text": "a b", "label": [[0, 1, " "]]}': "the type ' ' is blank",
    '{"text": "a b", "label": [[0, 1, ""]]}': "expected a span like",
    '{"text": "a b", "label": [[0, 1, "P\\ud800"]]}': "holds U+D800, half of a surrogate pair",
    '{"id": "x\\udfff", "text": "a b", "label": []}': "got half of a surrogate pair in the id",
    '{"doc_id": "\\ud83d", "id": 3, "text": "a b", "label": []}': "got half of a surrogate pair in the name of the document",
    '{"text": "a \\udc00", "label": []}': "got half of a surrogate pair",
    '{"text": "a b", "label": [{"start": 0, "end": 1, "label": "P", "text": "\\ud800"}]}': "correct the offsets or the surface",
    '{"text": "a b", "label": [[0, 1, "P\\u001bX"]]}': "holds U+001B, a control character",
    '{"text": "a b", "label": [[0, 1, "P\\u2028X"]]}': "holds U+2028, a line separator",
}
OTHERS = {  # name, content, place and message
    "cluener.json": [
        ('{"text": "ab", "label": {"PER": {"a": [[0.9, 1]]}}}', 1, "expected integers as the place of PER 'a'"),
        ('{"text": "ab", "label": {"PER": {"a": [["01", 1]]}}}', 1, "expected integers"),
        ('{"text": "ab", "label": {"PER": {"a": [[false, true]]}}}', 1, "expected integers"),
        ('{"text": "ab", "label": {"": {"a": [[0, 0]]}}}', 1, "the type '' is blank"),
        ('{"text": "ab", "label": {"A": {}, "A": {"a": [[0, 0]]}}}', 1, "got 'A' 2 times"),
        ('{"id": "\\ud800", "text": "ab", "label": {}}', 1, "half of a surrogate pair in the id"),
        ('{"id": 1, "text": "\\ud800", "label": {}}', 1, "got half of a surrogate pair"),
        ('{"id": 1, "text": "a", "label": {"A": {"\\ud800": [[0, 0]]}}}', 1, "in the text"),
    ],
    "tokens.jsonl": [
        ('{"tokens": ["a"], "ner_tags": [0.9]}', 1, "expected integer tags"),
        ('{"tokens": ["a"], "labels": "PER"}', 1, "expected 'labels' as a list with a tag for each token"),
        ('{"tokens": ["a"], "ner_tgas": ["O"]}', 1, "is the field 'ner_tgas' meant to be 'ner_tags'?"),
        ('{"tokens": ["a", ""], "ner_tags": ["O", "O"]}', 1, "got '' as token 1"),
        ('{"tokens": ["a", null], "ner_tags": ["O", "O"]}', 1, "got None as token 1"),
        ('{"tokens": ["\\udbff"], "ner_tags": ["O"]}', 1, "half of a surrogate pair"),
        ('{"id": "\\udbff", "tokens": ["a"], "ner_tags": ["O"]}', 1, "half of a surrogate pair in the id"),
        ('{"tokens": ["a"], "ner_tags": ["B-\\ud800"]}', 1, "half of a surrogate pair"),
        ('{"doc_key": "\\ud800", "sentences": [["a"]], "ner": [[]]}', 1, "half of a surrogate pair in the id"),
        ('{"id": 1, "sentences": [["a"], ["b", ""]], "ner": [[], []]}', 1, "got '' as token 1"),
        ('{"id": 1, "sentences": [["a"], ["b", null]], "ner": [[], []]}', 1, "got None as token 1"),
        ('{"id": 1, "sentences": [["\\ud800"]], "ner": [[]]}', 1, "half of a surrogate pair"),
        ('{"id": 1, "sentences": [["a"]], "ner": {"a": 1}}', 1, "expected 'ner' as a list"),
        ('{"id": 1, "sentences": [["a"]], "ner": [3]}', 1, "expected 'ner' as a list"),
        ('{"context": "a \\ud800", "entity_label": "P", "start_position": [], "end_position": []}', 1, "half of a surrogate pair"),
        ('{"tokens": ["a"], "entities": [{"start": true, "end": 1, "type": "P"}]}', 1, "expected a span"),
    ],
    "studio.json": [
        ('[\n{"data": {"text": "a b"}, "annotations": [{"result": [{"value": {"start": 0, "end": 1, "labels": "PER"}}]}]}]', 2, 'expected labels as a list like ["PER"]'),
        ('[\n{"data": {"text": "a b"}, "anotations": []}]', 2, "is the field 'anotations' meant to be 'annotations'?"),
        ('[\n{"data": {"text": "a b"}, "annotations": [{"reslut": []}]}]', 2, "is the field 'reslut' meant to be 'result'?"),
        ('[\n{"data": {"text": "a b"}, "annotations": [], "x": ' + DEEP, 2, "nested too deeply"),
        ('[\n{"id": "\\ud800", "data": {"text": "a b"}, "annotations": []}]', 2, "half of a surrogate pair in the id"),
        ('[\n{"id": 3, "data": {"text": "\\ud800"}, "annotations": []}]', 2, "got half of a surrogate pair"),
        ('[\n{"data": {"text": "a", "text": "b"}, "annotations": []}]', 2, "got 'text' 2 times"),
    ],
    "spread.json": [('{\n"text": "a b",\n"label": [],\n"text": "c"\n}\n{"text": "a"}', 1, "got 'text' 2 times")],
    "columns.txt": [
        ("Ann B-PER\n\n-DOCSTART-abc B-PER\nleft O\n", 3, "got 'B-PER'; correct the tag"),
        ("Ann B-P\x1bX\nleft O\n", 1, "holds U+001B, a control character"),
    ],
}  # fmt: skip
CASES = [
    (f"a{number}.jsonl", second(text), 2, says)
    for number, (text, says) in enumerate(VALUES.items())
]
CASES += [(f"{n}-{name}", *case) for name, cases in OTHERS.items() for n, case in enumerate(cases)]


@pytest.mark.parametrize(("name", "text", "line", "says"), CASES, ids=[case[0] for case in CASES])
def test_a_value_that_is_none_is_told_with_file_and_line(name, text, line, says, tmp_path):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert says in str(caught.value)
    assert f"{name}:{line}: " in str(caught.value)


@pytest.mark.parametrize("verb", ["check", "convert", "train"])
def test_every_verb_tells_it(verb, tmp_path, capsys):
    for number, (text, says) in enumerate(list(VALUES.items())[:11:2]):
        folder = tmp_path / f"{verb}{number}"
        folder.mkdir()
        path = folder / "train.jsonl"
        path.write_text(second(text), encoding="utf-8")
        out = ["--output_dir", str(folder / "out")]
        words = {
            "check": ["check", str(path)],
            "convert": ["convert", str(path), str(folder / "b.conll")],
            "train": ["train", "--data_dir", str(folder), *out],
        }[verb]
        assert main(words) in (1, 2)
        said = capsys.readouterr()
        assert says in said.out + said.err, (verb, text[:60])
        assert "train.jsonl:2" in said.out + said.err


def archives():
    """What people hand over in place of text, by name."""
    plain = b"Ann B-PER\nleft O\n"
    packed, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("word/document.xml", plain)
    with tarfile.open(fileobj=tarred, mode="w") as file:
        entry = tarfile.TarInfo("train.txt")
        entry.size = len(plain)
        file.addfile(entry, io.BytesIO(plain))
    return {
        "a.docx": packed.getvalue(),
        "a.bz2": bz2.compress(plain),
        "a.xz": lzma.compress(plain),
        "a.tar": tarred.getvalue(),
        "a.tar.gz": gzip.compress(tarred.getvalue()),
        "a.gz": gzip.compress(gzip.compress(plain)),
        "a.pdf": b"%PDF-1.7\n...",
        "a.doc": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600),
    }


@pytest.mark.parametrize("name", archives())
@pytest.mark.parametrize("format", ["auto", "text", "columns", "jsonl"])
def test_archives_and_documents_are_no_text(name, format, tmp_path):
    path = tmp_path / name
    path.write_bytes(archives()[name])
    with pytest.raises(DataError, match=f"{name}: expected text, got an? "):
        examine(path, format)


def test_a_gzip_bomb_stops_at_its_limit(tmp_path):
    line = json.dumps({"text": "a", "label": []}).encode() + b"\n"
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(line * 4_000_000))
    assert path.stat().st_size < 400_000
    begin = time.monotonic()
    with pytest.raises(DataError, match="holds more than"):
        read_examples(path)
    assert time.monotonic() - begin < 20
    text = json.dumps(GOOD).encode() + b"\n"
    path.write_bytes(gzip.compress(text * 1000) + gzip.compress(text))  # two members are one file
    assert len(read_examples(path)) == 1001


# Many spans on one text.

COUNT = 100_000


def many_spans(shape):
    """So many spans over words of two letters: side by side, crossing, or one within the other."""
    if shape == "apart":
        return [(3 * n, 3 * n + 2) for n in range(COUNT)]
    if shape == "crossing":
        return [(3 * n, 3 * n + 5) for n in range(COUNT)]
    return [(3 * n, 3 * (2 * COUNT - n) - 1) for n in range(COUNT)]


@pytest.mark.parametrize("shape", ["apart", "crossing", "nested"])
def test_many_spans_on_one_text_in_seconds(shape, tmp_path):
    spans = many_spans(shape)
    text = "ab " * (2 * COUNT if shape == "nested" else COUNT + 1)
    path = tmp_path / "train.jsonl"
    entries = [[start, end, "PER"] for start, end in spans]
    path.write_text(json.dumps({"text": text, "label": entries}), encoding="utf-8")
    begin = time.process_time()
    (example,) = read_examples(path)
    assert len(example.spans) == COUNT
    report = check_paths(path)
    kinds = {"apart": None, "crossing": "crossing-span", "nested": "nested-span"}
    counted = sum(finding.kind == kinds[shape] for finding in report.findings)
    assert counted == (0 if shape == "apart" else COUNT - 1)
    lost = write_examples([example], tmp_path / "b.conll", "columns", on_bad="warn")
    assert len(lost) == {"apart": 0, "crossing": COUNT // 2, "nested": COUNT - 1}[shape]
    assert time.process_time() - begin < 60


def overlaps_by_definition(spans):
    """Pairs of spans that share a word, as they were found before there was a tree."""
    opened = []
    for span in sorted(spans, key=lambda item: (item.start, -item.end)):
        opened = [other for other in opened if other.end > span.start]
        crossed = [other for other in opened if other.end < span.end]
        if span in opened:
            yield "duplicate-span", span, span
        elif opened:
            yield "crossing-span" if crossed else "nested-span", span, (crossed or opened)[-1]
        opened.append(span)


def flat_by_definition(spans, sign):
    """The chosen of overlapping spans, each compared with all."""
    chosen = []
    for span in sorted(spans, key=lambda x: (sign * (x.end - x.start), x.start, x.label)):
        if all(span.end <= other.start or other.end <= span.start for other in chosen):
            chosen.append(span)
    return sorted(chosen, key=lambda x: (x.start, -x.end, x.label))


def test_overlaps_are_those_of_the_definition():
    random.seed(0)
    for size in [1, 2, 3, 5, 8, 13, 40] * 60:
        spans = []
        for _ in range(size):
            start = random.randrange(12)
            spans.append(Span(random.choice("AB"), start, start + random.randint(1, 6)))
        assert list(_overlaps(spans)) == list(overlaps_by_definition(spans))
        for policy, sign in {"outermost": -1, "innermost": 1}.items():
            assert flatten_spans(spans, policy) == flat_by_definition(spans, sign)


def test_the_line_of_a_word_is_that_of_the_definition():
    random.seed(0)
    for _ in range(200):
        reading = Reading("a.txt", skipped=set(random.sample(range(1, 40), random.randrange(20))))
        for first in (1, 5, 20):
            lines = [line for line in range(first, 100) if line not in reading.skipped]
            found = [reading.line_of(first, index) for index in range(30)]
            assert found == lines[:30]


def test_a_long_span_has_a_short_message():
    long = Example("0", ["word"] * 100_000, [Span("PER", 0, 99_999), Span("LOC", 1, 99_998)])
    kinds = list(_overlaps(long.spans))
    assert [kind for kind, *_ in kinds] == ["nested-span"]
