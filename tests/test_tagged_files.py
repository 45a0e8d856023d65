"""Files to be tagged: every format, every oddity, and the text of the input in every output."""

import gc
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training import TOKENIZER, make_model

from nercrf.data import rows
from nercrf.data.formats import read_examples
from nercrf.data.splitting import find_splitter
from nercrf.files import write_lines
from nercrf.labels import Span
from nercrf.tagging import lines
from nercrf.tagging.decoder import Found
from nercrf.tagging.inputs import Source, read_batches
from nercrf.tagging.output import tag_file, tag_input
from nercrf.tagging.tagger import Tagged, Tagger, tag_batches, text_example

OUTPUT_FORMATS = ("jsonl", "cluener", "columns")  # test_streams.py has the others

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tagger():
    """Without training it finds something nearly everywhere."""
    return Tagger(make_model(0.0), TOKENIZER, batch_size=8, device="cpu", splitter=find_splitter())


class EveryWord:
    """Finds each word, and the first two as one: what it finds does not matter here, but where."""

    def __init__(self, splitter="words"):
        self.splitter = find_splitter(splitter)
        self.model = make_model(0.0)
        self.model.config.context = 0

    def find(self, examples, with_context=True):
        first = ([Span("PER", 0, min(2, len(each.tokens)))] for each in examples)
        places = (range(2, len(each.tokens)) for each in examples)
        return [
            Found(start + [Span("LOC", place, place + 1) for place in rest], [])
            for start, rest in zip(first, places, strict=True)
        ]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def places(sentences):
    """Text, and label, start and end of each entity."""
    return [
        (each.example.text, [(e.label, e.start, e.end) for e in each.entities])
        for each in sentences
    ]


# what is right for each of the small cases; the first ones are texts to the character
CASES = {
    "01_spaces.txt": "Yesterday  Hugo Whitlow   flew to Brackenford.\n",
    "01_chinese.txt": "林砚，男，国籍中国，2011年任ABC（XYZ）有限公司经理，MBA。\n",
    "03_texts.jsonl": '{"id":"q7","text":"Hugo Whitlow flew"}\n',
    "04_texts.json": '{"id":0,"text":"Hugo Whitlow flew to Brackenford ."}\n',
    "06_rlm.jsonl": '{"id":1,"text":"Mara\u200f left \u2764\ufe0f Port\u00adash","label":[[0,4,"PER"]]}\n',
    "06_softhyphen.txt": "Hugo Whit\u00adlow flew to Bracken\u00adford .\n",
    "13_zwline.txt": "Hugo Whitlow flew .\n\u200b\nto Brackenford .\n",
    "14_empty.jsonl": '{"text":"Hugo Whitlow flew"}\n{"text":"   "}\n{"text":"to Brackenford"}\n',
}
TEXTS = {
    "01_spaces.txt": ["Yesterday  Hugo Whitlow   flew to Brackenford."],
    "01_chinese.txt": ["林砚，男，国籍中国，2011年任ABC（XYZ）有限公司经理，MBA。"],
    "03_texts.jsonl": ["Hugo Whitlow flew"],
    "04_texts.json": ["Hugo Whitlow flew to Brackenford ."],
    "06_rlm.jsonl": ["Mara\u200f left \u2764\ufe0f Port\u00adash"],
    "06_softhyphen.txt": ["Hugo Whit\u00adlow flew to Bracken\u00adford ."],
    "13_zwline.txt": ["Hugo Whitlow flew .", "\u200b", "to Brackenford ."],
    "14_empty.jsonl": ["Hugo Whitlow flew", "   ", "to Brackenford"],
}


@pytest.mark.parametrize("splitter", ["words", "characters"])
@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_the_text_is_what_was_given_in_every_format(name, output_format, splitter, tmp_path):
    source, target = tmp_path / name, tmp_path / "out"
    source.write_bytes(CASES[name].encode())
    tagged = tag_file(EveryWord(splitter), source, target, output_format)
    assert [each.example.text for each in tagged] == TEXTS[name]
    words = [[word for word, _, _ in find_splitter(splitter)(text)] for text in TEXTS[name]]
    written = target.read_text(encoding="utf-8")
    if output_format == "columns":
        blocks, rest = [[]], written.split("\n")
        for line in rest[:-1]:
            blocks[-1].append(line.partition("\t")[0]) if line else blocks.append([])
        assert blocks == [*words, []]
        return
    records = lines_of(target)
    assert [record["text"] for record in records] == TEXTS[name]
    for record, sentence in zip(records, tagged, strict=True):
        found = {(e.start, e.end, e.text) for e in sentence.entities}
        if output_format == "jsonl":
            assert found == {(e["start"], e["end"], e["text"]) for e in record["entities"]}
        else:
            assert found == {
                (start, last + 1, surface)
                for surfaces in record["label"].values()
                for surface, ends in surfaces.items()
                for start, last in ends
            }
        assert all(record["text"][start:end] == surface for start, end, surface in found)


def test_offsets_point_into_the_text_with_its_blanks(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text(CASES["01_spaces.txt"])
    tagged = tag_input(EveryWord(), source)[0]
    surfaces = {entity.text: (entity.start, entity.end) for entity in tagged.entities}
    assert surfaces["Yesterday  Hugo"] == (0, 15)
    assert surfaces["Whitlow"] == (16, 23)


NASTY = "Aab 王芳é.,'’-\t \u200b\u200f\u00ad\u3000\u00a0\u0301\ufe0f\u2764\U0001f468\u200d#{}\x0b\x85\u2028\ufffd\ufeff"


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text(NASTY, max_size=25) | st.text(max_size=15), min_size=1, max_size=5),
    splitter=st.sampled_from(["words", "penn", "blanks", "characters", "punctuation"]),
)
def test_every_output_read_back_gives_the_spans_of_the_very_input(
    texts, splitter, tmp_path_factory
):
    """Over nasty Unicode: the input is what it was, and the formats say the same."""
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    folder = tmp_path_factory.mktemp("nasty")
    source = folder / "in.jsonl"
    write_lines(source, (json.dumps({"text": text}) for text in texts))
    tagger = EveryWord(splitter)
    expected = places(tag_input(tagger, source))
    assert [text for text, _ in expected] == texts
    for text, entities in expected:
        words = find_splitter(splitter)(text)
        assert {start for _, start, _ in entities} <= {start for _, start, _ in words}
    for output_format in OUTPUT_FORMATS:
        target = folder / f"out.{output_format}"
        tagged = tag_file(tagger, source, target, output_format)
        assert places(tagged) == expected
        filled = [each for each in tagged if each.example.tokens]
        if not filled:
            continue
        back = read_examples(target, output_format, on_bad="warn", by=splitter)
        if output_format == "columns":
            assert [each.tokens for each in back] == [each.example.tokens for each in filled]
            assert [each.spans for each in back] == [each.spans for each in filled]
            continue
        found = {
            each.text: [
                (s.label, each.offsets[s.start][0], each.offsets[s.end - 1][1]) for s in each.spans
            ]
            for each in back
        }
        for text, entities in places(filled):
            assert found[text] == entities, (output_format, text)


ROUTES = [
    ("in.txt", lambda texts: "".join(f"{text}\n" for text in texts)),
    ("in.jsonl", lambda texts: "".join(json.dumps({"text": text}) + "\n" for text in texts)),
    ("in.json", lambda texts: json.dumps([{"text": text} for text in texts], indent=1)),
    ("strings.json", json.dumps),
    ("wrapped.json", lambda texts: json.dumps({"data": [{"text": text} for text in texts]})),
    ("studio.json", lambda texts: json.dumps([{"id": 1, "data": {"text": t}} for t in texts])),
    (
        "labelled.jsonl",
        lambda texts: "".join(
            json.dumps({"text": text, "label": [[0, 999, "X"], "broken"]}) + "\n" for text in texts
        ),
    ),
    (
        "cluener.json",
        lambda texts: "".join(
            json.dumps({"text": text, "label": {"X": {"wrong": [[7, 3]]}}}) + "\n" for text in texts
        ),
    ),
    (
        "in.csv",
        lambda texts: (
            "id,text,page\n"
            + "".join('{},"{}",3\n'.format(n, t.replace('"', '""')) for n, t in enumerate(texts))
        ),
    ),
    ("in.tsv", lambda texts: "page\ttext\n" + "".join(f"3\t{text}\n" for text in texts)),
]


@pytest.mark.parametrize(("name", "write"), ROUTES, ids=[name for name, _ in ROUTES])
def test_the_same_texts_give_the_same_entities_by_every_route(name, write, tagger, tmp_path):
    texts = [
        "Kestrel Marine's Leeds-based depot, 3,000 of them.",
        " U.S.  and  don't “quote”",
        "Ada Moor sings in Lund .",
        "林砚，男 and O",
    ]
    source = tmp_path / name
    source.write_text(write(texts), encoding="utf-8")
    found = [[(e.label, e.start, e.end) for e in entities] for entities in tagger(texts)]
    assert places(tag_input(tagger, source)) == list(zip(texts, found, strict=True))
    tagger = EveryWord()  # a word that is cut otherwise shows here
    texts_alone = [[Tagged(text_example(text, tagger.splitter), []) for text in texts]]
    tagged = tag_input(tagger, source)
    assert places(tagged) == places(chain(*tag_batches(tagger, texts_alone)))
    assert sum(len(each.entities) for each in tagged) == 27
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(source.read_bytes(), mtime=0))
    assert places(tag_input(tagger, packed)) == places(tagged)
    wide = tmp_path / f"wide-{name}"
    wide.write_bytes(write(texts).encode("utf-16"))
    assert places(tag_input(tagger, wide, encoding="utf-16")) == places(tagged)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.txt", "Ada B-PER\nsings O\n\nMoor B-PER\nsings O\n"),
        ("in.conll", "-DOCSTART- O\n\nAda I-nothing\nsings\n\nMoor\t??\tx\nsings O\n"),
        ("in.txt", "Ada\nsings\n\nMoor\nsings\n"),
        ("in.csv", "sentence,token,tag\n1,Ada,B-PER\n1,sings,O\n2,Moor,E-?\n2,sings,O\n"),
        (
            "in.jsonl",
            '{"tokens": ["Ada", "sings"], "ner_tags": [1, 99]}\n{"words": ["Moor", "sings"]}\n',
        ),
        (
            "in.json",
            '{"sentences": [["Ada", "sings"], ["Moor", "sings"]], "ner": [[[7, 1, "X"]], []]}',
        ),
        ("in.txt", "{{PER:Ada}} sings\n{{{{PER:Moor}} sings\n{{PER:Moor}} sings\n"),
    ],
)
def test_a_labelled_file_is_read_as_its_format_whatever_its_labels(name, content, tmp_path):
    source = tmp_path / name
    source.write_text(content, encoding="utf-8")
    tagged = tag_input(EveryWord(), source)
    assert [each.example.tokens for each in tagged if not each.error] == [
        ["Ada", "sings"],
        ["Moor", "sings"],
    ]


_SONG = [("Ada", "B-PER"), ("sings", "O"), ("in", "O"), ("Lund", "B-LOC")]
_GONE = [("Moor", "B-PER"), ("left", "O")]
_SENTENCES = [_SONG, _GONE] * 4


def _rows(line):
    return [x for sentence in _SENTENCES for x in (*(line(*each) for each in sentence), "")]


_WORDED = {
    "blank.txt": _rows("{} {}".format),
    "tab.txt": _rows("{}\t{}".format),
    "three.conll": _rows("{} NN {}".format),
    "types.txt": _rows(lambda word, tag: f"{word}\t{tag[2:] or 'O'}"),
    "blank.csv": ["word,tag", *_rows("{},{}".format)],
    "bare.txt": _rows("{},{}".format),
    "numbered.csv": [
        "Sentence,Word,Tag",
        *(f"{n},{word},{tag}" for n, each in enumerate(_SENTENCES) for word, tag in each),
    ],
    "counted.csv": [f"{n};{word};{tag}" for n, each in enumerate(_SENTENCES) for word, tag in each],
}


@pytest.mark.parametrize("name", _WORDED)
def test_an_odd_line_costs_at_most_its_sentence_and_is_named(name, tmp_path):
    """Whatever stands in a line of a file of words: no word of the others is lost, none is text."""
    lines, source = _WORDED[name], tmp_path / name
    words = [[word for word, _ in sentence] for sentence in _SENTENCES]
    odd = ["A line of words that nobody has tagged", "New York in B-LOC x", "# seen or not?"]
    odd += ["alone", "a,b,c,d,e", '"', "\x00", "   "]
    header = name in ("blank.csv", "numbered.csv")
    for place in (0, header + 1, header + 7):
        for line in odd:
            source.write_text("\n".join([*lines[:place], line, *lines[place:]]) + "\n")
            found = tag_input(EveryWord(), source)
            tokens = [each.example.tokens for each in found]
            errors = [each.error for each in found if each.error]
            assert len(errors) < 2
            assert all(f"{name}:{place + 1}: expected " in error for error in errors)
            if errors:
                kept = [each for each in tokens if each]
                assert [len(tokens), len(kept)] in ([8, 7], [9, 8])
                assert all(each in words for each in kept)
            elif line == "   ":
                assert list(chain(*tokens)) == list(chain(*words))
            elif line[0] == "#" and tokens == words:
                assert place == 0  # a comment
            else:  # a word without a tag: it stands where it stood
                added = [[x for x in each if x not in (line, "a", "#")] for each in tokens]
                assert added == words
                assert sum(map(len, tokens)) == sum(map(len, words)) + 1


def test_a_title_as_wide_as_the_table_leaves_the_header_where_it_is(tmp_path):
    source = tmp_path / "in.csv"
    for table in (_WORDED["numbered.csv"], _WORDED["blank.csv"]):
        source.write_text("\n".join([",".join("xyz"[: table[0].count(",") + 1]), *table]))
        words = [each.example.tokens for each in tag_input(EveryWord(), source)]
        words = [word for word in chain(*words) if word not in "xyz"]
        assert words == [word for sentence in _SENTENCES for word, _ in sentence]


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl", "in"])
def test_an_odd_line_among_objects_costs_itself(name, tmp_path):
    source, objects = tmp_path / name, ['{"text": "Ada sings"}'] * 5
    for place in (0, 3):
        source.write_text("\n".join([*objects[:place], "# seen", *objects[place:]]) + "\n")
        found = tag_input(EveryWord(), source)
        assert [bool(each.error) for each in found] == [n == place for n in range(6)]
        assert f"{name}:{place + 1}: expected a JSON object" in found[place].error


@pytest.mark.parametrize(("separator", "ending"), [(",", "csv"), ("\t", "tsv")])
def test_an_odd_row_of_a_table_of_texts_costs_itself(separator, ending, tmp_path):
    """A quote that nothing closes used to swallow the rows behind it; a loose comma cut the text."""
    source = tmp_path / f"in.{ending}"
    rows = [f"{n}{separator}She sings for the {n}th time" for n in range(50)]
    for place, line in ((0, '"'), (3, 'x{}"Ada sings'), (7, 'x{}"Ada" sings'), (9, "x{}She{} Ada")):
        line = line.replace("{}", separator)
        given = [*rows[:place], line, *rows[place:]]
        source.write_text("\n".join([f"id{separator}text", *given]))
        found = tag_input(EveryWord(), source)
        texts = [each.example.text for each in found if not each.error]
        assert texts == [row.partition(separator)[2] for row in rows]
        assert [n for n, each in enumerate(found) if each.error] == [place]
        assert f"in.{ending}:row {place + 1}: expected " in found[place].error


def test_one_thing_that_cannot_be_read_costs_itself(tmp_path, capsys):
    """Bad bytes, surrogates, None, NaN, what is no JSON: place, byte and remedy, in every output."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out"
    lines = [
        b'{"id": 1, "text": "Ada sings"}',
        b'{"id": 2, "text": "Malfr\xedd sings"}',
        b'{"id": 3, "text": "\\ud800 sings"}',
        b'{"id": 4, "text": NaN}',
        b'{"id": 5, "text": null, "page": 3}',
        b'{"id": 6, "tokens": ["Ada", null]}',
        b'{"id": 7, "tokens": ["Ada", NaN]}',
        b'{"id": 8, "text": "Ada',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"id": 10, "n": ' + b"9" * 5_000 + b"}",
        b'{"id": "\\udbff", "text": "Ada sings"}',
        b'{"id": 12, "text": "Moor sings", "score": NaN, "note": "\\udc80"}',
    ]
    source.write_bytes(b"\n".join(lines) + b"\n")
    for output_format in OUTPUT_FORMATS:
        tagged = tag_file(EveryWord(), source, target, output_format)
        assert len(tagged) == 12
        assert [each.error is None for each in tagged] == [True, *[False] * 10, True]
    errors = [each.error for each in tagged[1:-1]]
    for number, error in enumerate(errors, 2):
        assert error.startswith(f"{source}:{number}: expected "), error
    assert f"byte 0xed at offset {source.read_bytes().index(0xED)};" in errors[0]
    assert "--encoding" in errors[0]
    assert "surrogate pair" in errors[1]
    assert "got the fields id, text" in errors[2]
    assert "got None as word 1" in errors[4]
    assert "surrogate pair in the id" in errors[9]
    tag_file(EveryWord(), source, target)
    records = lines_of(target)
    assert [record["id"] for record in records][:1] == [1]
    assert records[4]["page"] == 3
    assert (records[11]["score"], records[11]["note"]) == (None, "\udc80")
    assert all(record["text"] is None and not record["entities"] for record in records[1:-1])


def test_a_bad_byte_of_a_column_file_or_table_costs_its_sentence(tmp_path):
    for name, content in (
        ("in.tsv", b"Ada\tO\nsings\tO\n\nMalfr\xedd\tO\n\nMoor\tO\nsings\tO\n"),
        ("in.csv", b"id,text\n1,Ada sings\n2,Malfr\xedd sings\n3,Moor sings\n"),
        ("in.csv", b"id,text\n1,Ada sings\n\xed,Ada sings\n3,Moor sings\n"),
    ):
        source = tmp_path / name
        source.write_bytes(content)
        tagged = tag_input(EveryWord(), source)
        assert [each.example.tokens for each in tagged] == [["Ada", "sings"], [], ["Moor", "sings"]]
        assert tagged[1].error.startswith(str(source))
        assert "byte 0xed" in tagged[1].error
        assert "--encoding" in tagged[1].error


def test_every_line_keeps_its_place(tmp_path):
    """2,000 in, 2,000 out, in every format; numbers are those of the lines."""
    source, target = tmp_path / "in.txt", tmp_path / "out"
    lines = [("Ada sings", "", "\u200b", " \t")[number % 4] for number in range(2_000)]
    source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for output_format in OUTPUT_FORMATS:
        assert len(tag_file(EveryWord(), source, target, output_format)) == 2_000
        written = target.read_text(encoding="utf-8")
        if output_format == "columns":
            assert written.split("\n").count("") - 1 == 2_000
            continue
        records = lines_of(target)
        assert [record["text"] for record in records] == lines
        assert [str(record["id"]) for record in records] == [str(n) for n in range(1, 2_001)]


def test_ids_and_other_fields_travel(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    record = {
        "advert_id": 17,
        "text": "Ada sings",
        "meta": {"page": [1, {"a": None}]},
        "tags": ["x"],
    }
    source.write_text(json.dumps(record | {"label": [[0, 3, "PER"]]}) + "\n", encoding="utf-8")
    tag_file(EveryWord(), source, target)
    written = lines_of(target)[0]
    assert {key: written[key] for key in record} == record
    assert "label" not in written
    source.write_text('{"id": 9007199254740993, "doc_key": "d", "text": "Ada"}', encoding="utf-8")
    tag_file(EveryWord(), source, target)
    assert lines_of(target)[0]["id"] == 9007199254740993
    tag_file(EveryWord(), source, target, "cluener")
    assert str(lines_of(target)[0]["id"]) == "9007199254740993"


class Trickle(io.RawIOBase):
    """A pipe in which each block comes only when it is asked for."""

    def __init__(self, blocks):
        self.blocks, self.given = iter(blocks), 0

    def readable(self):
        return True

    def readinto(self, buffer):
        block = next(self.blocks, b"")
        self.given += bool(block)
        buffer[: len(block)] = block
        return len(block)


def test_standard_input_is_answered_as_it_comes(monkeypatch):
    """Each sentence before the next one is there; text, and JSON lines alike."""
    for blocks in (
        [b"Ada sings\n", b"\n", b"Mo", b"or\n"],
        [b'{"text": "Ada"}\n', b'{"text": ""}\n'],
        [b'[{"text": "Ada"}, ', b'{"text": ""}', b"]"],
        [b"[", b"\n", b'{"text":', b' "Ada"},\n{"te', b'xt": ""}\n]'],
        [b"Ada O\nsings O\n\n", b"Moor", b" O\nleft O\n\n"],
        [b'id,text\n1,"Ada', b' sings in Lund"\n', b"2,\n"],
    ):
        is_table = blocks[0].startswith(b"id")
        raw = Trickle(blocks)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(raw)))
        tagger = EveryWord()
        source = Source("-", tagger.splitter, "csv" if is_table else "auto")
        batches = tag_batches(tagger, filter(None, read_batches(source)))
        given = [(raw.given, [each.example.text for each in batch]) for batch in batches]
        texts = [text for _, batch in given for text in batch]
        assert texts in (
            ["Ada sings", "", "Moor"],
            ["Ada", ""],
            ["Ada sings", "Moor left"],
            ["Ada sings in Lund", ""],
        )
        late = blocks[0] == b"[" or is_table  # an element or a row that comes in pieces
        first, second = [number for number, _ in given][:2]
        assert (first, second) == ((2 if is_table else 4, len(blocks)) if late else (1, second))
        assert second - first == 1 or blocks[0][:3] == b"Ada"


def test_only_what_is_needed_is_held(tmp_path):
    """A batch is tagged before the next one is read, also with sentences around as context."""
    source = tmp_path / "in.txt"
    source.write_text("Ada sings in Lund\n" * 30_000, encoding="utf-8")
    tagger = EveryWord()
    for context in (0, 2):
        tagger.model.config.context = context
        sizes = [
            len(batch)
            for batch in tag_batches(tagger, read_batches(Source(str(source), tagger.splitter)))
        ]
        assert sum(sizes) == 30_000
        assert max(sizes) < 10_000


def rows_of(count, separator, header=""):
    """A table of words or a column file of sentences of three words."""
    words = "".join(
        f"{word}{separator}{tag}\n" for word, tag in zip(["Ada", "sings", "."], "BOO", strict=True)
    )
    return header + (words + "\n") * count


LARGE = [
    ("in.conll", lambda count: rows_of(count, "\t")),
    ("characters.conll", lambda count: "林 B\n砚 I\n男 O\n\n" * count),
    ("words.csv", lambda count: rows_of(count, ",", "token,tag\n")),
    ("texts.csv", lambda count: "id,text\n" + '7,"Ada, she sings"\n' * count),
    ("in.json", lambda count: json.dumps([{"text": "Ada sings"}] * count)),
    ("indented.json", lambda count: json.dumps([{"text": "Ada sings"}] * count, indent=1)),
    ("wrapped.json", lambda count: json.dumps({"v": 1, "data": [{"text": "Ada sings"}] * count})),
    ("strings.json", lambda count: json.dumps(["Ada sings in Lund"] * count)),
    ("values.json", lambda count: '{"text":\n"Ada sings"}\n' * count),
    ("in.jsonl", lambda count: '{"text": "Ada sings"}\n' * count),
    ("in.txt", lambda count: "Ada sings in Lund\n" * count),
]


@pytest.mark.parametrize(("name", "write"), LARGE, ids=[name for name, _ in LARGE])
def test_no_more_is_read_than_a_batch_needs(name, write, tmp_path, monkeypatch):
    """Whatever the format: the first answers need some blocks of a file and of a pipe."""
    encoding = "utf-16" if name in ("in.json", "words.csv") else "utf-8"
    content = write(40_000).encode(encoding)
    source = Source(str(tmp_path / name), EveryWord().splitter, encoding=encoding)
    Path(source.path).write_bytes(content)
    batches = read_batches(source)
    assert 0 < len(next(batches)) < 15_000
    assert source.position < min(4 * lines.BLOCK, len(content) / 1.5)
    batches.close()
    raw = Trickle(content[start : start + 8192] for start in range(0, len(content), 8192))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(raw, 8192)))
    format = {".csv": "csv", ".json": "jsonl"}.get(Path(name).suffix, "auto")
    assert next(filter(None, read_batches(Source("-", source.splitter, format, encoding))))
    # a table shows as a whole how it is to be read, and an object may be a record that is large
    assert raw.given < {"words.csv": 999, "wrapped.json": 20}.get(name, 4)


BY_FORMAT = [
    each
    for each in LARGE
    if each[0] in ("in.conll", "words.csv", "texts.csv", "in.json", "wrapped.json")
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write"), BY_FORMAT, ids=[name for name, _ in BY_FORMAT])
def test_memory_does_not_grow_with_the_file(name, write, tmp_path):
    """Peaks of Python's own memory while all of a file is read, and of four times as much."""
    peaks = []
    for count in (20_000, 80_000):
        source = tmp_path / name
        source.write_text(write(count), encoding="utf-8")
        gc.collect()
        tracemalloc.start()
        found = sum(map(len, read_batches(Source(str(source), EveryWord().splitter))))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found == count
    assert peaks[1] < 1.25 * peaks[0] + 2**20


@pytest.mark.parametrize("name", ["in.parquet", "in.arrow", "stream.arrow", "saved"])
def test_rows_are_read_some_at_a_time(name, tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    path, texts = tmp_path / name, [f"Ada sings {number}" for number in range(5_000)]
    table = arrow.table({"text": texts})
    if name == "saved":
        pytest.importorskip("datasets").Dataset(table).save_to_disk(path)
    elif name == "in.parquet":
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    else:
        make = arrow.ipc.new_stream if name == "stream.arrow" else arrow.ipc.new_file
        with make(path, table.schema) as writer:
            writer.write_table(table)
    made, make_record = [], rows.span_record
    monkeypatch.setattr(rows, "span_record", lambda *args: made.append(1) or make_record(*args))
    batches = read_batches(Source(str(path), EveryWord().splitter))
    first = next(batches)
    assert len(made) <= 1024
    assert [each.example.text for each in chain(first, *batches)] == texts


def test_what_stands_before_a_broken_bracket_is_tagged(tmp_path):
    """The end of an array is missing: the sentences before it are given, then the error comes."""
    source = tmp_path / "in.json"
    source.write_text(json.dumps(["Ada sings in Lund"] * 30_000, indent=0)[:-9], encoding="utf-8")
    found = []

    def read():
        for batch in read_batches(Source(str(source), EveryWord().splitter)):
            found.extend(batch)

    with pytest.raises(ValueError, match=r"in\.json:30001: expected JSON, got .*cut off"):
        read()
    assert len(found) == 29_999


def test_batches_of_any_size_give_what_one_gives(tagger):
    texts = ["Ada Moor sings", "", "in Lund", "Mara Lund", " ", "sings", "Ada", "in Moor"]
    sentences = [tagger.read(text, place) for place, text in enumerate(texts)]
    tagger.model.config.context = 2
    try:
        whole = places(chain(*tag_batches(tagger, [sentences])))
        for size in (1, 2, 3, 5):
            batches = [sentences[start : start + size] for start in range(0, len(texts), size)]
            assert places(chain(*tag_batches(tagger, batches))) == whole
        filled = [each for each in sentences if each.example.tokens]
        alone = places(chain(*tag_batches(tagger, [filled])))
        assert [each for each in whole if each[0].strip()] == alone
    finally:
        tagger.model.config.context = 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "Ada"},\n{"tex', r"in\.json:2: expected JSON"),
        (b"Malfr\xedd", r"in\.json:1: expected utf-8, got byte 0xed"),
        ("Ada".encode("utf-16"), r"--encoding utf-16"),
        (gzip.compress(b"Ada" * 999, mtime=0)[:-4], "expected a whole gzip file"),
        (b"PK\x03\x04" + bytes(99), r"in\.json: expected text, got a zip archive"),
        (b"%PDF-1.7\n", r"in\.json: expected text, got a PDF"),
        (b"A" * 300_000, "expected lines of text, got one of more than 200,000 bytes"),
        (gzip.compress(b"A" * 300_000, mtime=0), "got one of more than 200,000 bytes"),
    ],
    ids=("cut", "latin", "utf16", "gzip", "zip", "pdf", "line", "bomb"),
)
def test_a_file_that_nobody_can_read_is_an_error(content, message, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST", 200_000)
    source, target = tmp_path / "in.json", tmp_path / "out.jsonl"
    source.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tag_file(EveryWord(), source, target)
    assert not target.exists()


def test_a_pipe_through_the_command(tmp_path, tagger):
    """JSON lines on standard input; what cannot be read is told, and the rest is there."""
    tagger.model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "nercrf.run_ner_crf", "--do_predict", "--input", "-"]
    command += ["--output", "-", "--output_dir", str(tmp_path), "--no_cuda"]
    given = b'{"id": "a", "text": "Ada sings", "n": 1}\n{"id": "b", "text": "\xed"}\n'
    finished = subprocess.run(command, input=given, capture_output=True, timeout=120, check=True)
    records = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [(record["id"], record["text"]) for record in records] == [
        ("a", "Ada sings"),
        ("standard input-1", None),
    ]
    assert records[0]["n"] == 1
    assert b"1 of 2 sentences could not be read" in finished.stderr
    assert b"standard input:2: expected utf-8, got byte 0xed" in finished.stderr
