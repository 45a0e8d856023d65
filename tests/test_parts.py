"""A corpus converted in parts equals the corpus converted in one piece: columns, labels, warnings
and errors.
"""

import gzip
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer, ByT5Tokenizer

import nercrf.features.cache
import nercrf.features.large_corpus
from nercrf.data.corpus import open_corpus
from nercrf.data.examples import DataError
from nercrf.data.formats import FORMATS
from nercrf.data.read_config import ReadConfig
from nercrf.evaluation.causes import KnownNames
from nercrf.features.large_corpus import LargeCorpus, PartReader, Workers, open_workers
from nercrf.features.parts import LINE_FORMATS, cut_file
from nercrf.labels import Span, spans_to_tags
from nercrf.run_ner_crf import load_and_cache_examples

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "ada",
    "met",
    "bob",
    "##by",
    "Ada",
    "in",
    "paris",
    "的",
]


def make_tokenizer(kind=BertTokenizer):
    return kind(vocab={piece: at for at, piece in enumerate(PIECES)})


TOKENIZER = make_tokenizer()


class OtherTokenizer(BertTokenizer):
    """A class that a fresh process can import no more than one of a notebook."""


OtherTokenizer.__module__ = "not_there"


def build(
    folder,
    in_parts,
    part=1,
    task="ner",
    tokenizer=TOKENIZER,
    processes=0,
    data_type="train",
    **settings,
):
    """The bytes of the cache file of a data folder, or the error; always under the same name of the
    folder.
    """
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(nercrf.features.cache, "LARGE", 0 if in_parts else 1 << 40)
        patched.setattr(nercrf.features.large_corpus, "PART", part)
        cached = Path(folder) / f"cache-{in_parts}-{part}"
        shutil.rmtree(cached, ignore_errors=True)
        args = SimpleNamespace(
            data_dir=str(folder),
            feature_cache_dir=str(cached),
            train_max_seq_length=8,
            conversion_processes=processes,
            **settings,
        )
        try:
            load_and_cache_examples(args, task, tokenizer, data_type)
        except DataError as error:
            return str(error)
        (path,) = cached.glob("*.safetensors")
        names = {item.name for item in cached.iterdir() if not item.name.endswith(".lock")}
        assert names - {"digests.json"} == {path.name}
        return path.read_bytes()


def write(folder, train, dev=None, suffix="txt"):
    for name, content in (("train", train), ("dev", dev)):
        if content is not None:
            data = content if isinstance(content, bytes) else content.encode()
            (Path(folder) / f"{name}.{suffix}").write_bytes(data)


# Any corpus, cut anywhere.

WORDS = st.sampled_from(["Ada", "met", "Bobby", "in", "Paris", "的", "x\u200by", "\u200b", "7"])
SCHEMES = ("BIO", "IOB1", "BIOES")
ENDS = st.sampled_from(["\n", "\r\n"])


@st.composite
def column_files(draw):
    """Sentences with well-formed tags of one scheme, and sometimes a wrong one; empty lines of every kind."""
    scheme, end, lines = draw(st.sampled_from(SCHEMES)), draw(ENDS), []
    for length in draw(st.lists(st.integers(1, 6), min_size=1, max_size=8)):
        borders = sorted(draw(st.sets(st.integers(0, length), max_size=4)))
        spans = [
            Span(draw(st.sampled_from(["X", "Y-Z"])), begin, after)
            for begin, after in zip(borders[::2], borders[1::2], strict=False)
        ]
        tags = spans_to_tags(spans, length, scheme)
        if draw(st.integers(0, 9)) == 0:
            tags[draw(st.integers(0, length - 1))] = draw(st.sampled_from(["I-X", "E-X", "I-W"]))
        lines += [f"{draw(WORDS)}\t{tag}" for tag in tags]
        lines += draw(st.sampled_from([[""], ["", ""], [" \t"], ["-DOCSTART-\tO", ""]]))
    return "\ufeff" * draw(st.booleans()) + end.join(lines) + draw(st.sampled_from(["", end]))


@st.composite
def cluener_files(draw):
    lines = []
    for text in draw(st.lists(st.text("的x7 ", min_size=0, max_size=9), min_size=1, max_size=8)):
        record = {"text": text}
        if draw(st.integers(0, 3)):
            record["label"] = {}
            for kind in draw(st.sets(st.sampled_from(["a", "b-c"]))):
                start = draw(st.integers(0, 8))
                last = draw(st.integers(start, 9))
                surface = text[start : last + 1] if draw(st.integers(0, 4)) else "wrong"
                record["label"][kind] = {surface: [[start, last]]}
        lines += [json.dumps(record, ensure_ascii=False), *[""] * draw(st.integers(0, 1))]
    return draw(ENDS).join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


@settings(max_examples=120, deadline=None)
@given(
    column_files(),
    st.one_of(st.none(), column_files()),
    st.integers(1, 60),
    st.sampled_from(["warn", "error"]),
)
def test_columns_in_parts_equal_the_whole(folder, train, dev, part, on_bad):
    write(folder, train, dev or "")
    if dev is None:
        (folder / "dev.txt").unlink()
    whole = build(folder, False, on_bad=on_bad, format="columns")
    assert build(folder, True, part, on_bad=on_bad, format="columns") == whole


@st.composite
def span_files(draw):
    """Records with spans of characters, their ends and units told by surfaces alone, and sometimes
    by none.
    """
    shift, units = draw(st.sampled_from([0, 1])), draw(st.sampled_from(["characters", "utf16"]))
    surfaces, lines = draw(st.booleans()), []
    for text in draw(st.lists(st.text("的x7 😀", max_size=9), min_size=1, max_size=8)):
        record = {"text": text}
        if draw(st.integers(0, 3)):
            record["spans"] = []
            for label in draw(st.sets(st.sampled_from(["a", "b-c"]))):
                start = draw(st.integers(0, 8))
                end = draw(st.integers(start + 1, 10))
                span = {"label": label, "text": text[start:end]} if surfaces else {"label": label}
                wide = units == "utf16" and draw(st.integers(0, 5))
                places = [
                    len(text[:at].encode("utf-16-le")) // 2 if wide else at for at in (start, end)
                ]
                record["spans"].append(span | {"start": places[0], "end": places[1] - shift})
        lines += [json.dumps(record, ensure_ascii=False), *[""] * draw(st.integers(0, 1))]
    return draw(ENDS).join(lines)


TEXTS = st.lists(st.text("的x7 \u200b", max_size=9), min_size=1, max_size=8)
MARKED = st.lists(
    st.sampled_from(
        ["Ada met", "{{x: Ada}} met", "in {{y: Paris}}", "", "{{x: Ada", "{{a-b: 7}} 的"]
    ),
    min_size=1,
    max_size=8,
)
ANY_FILE = {
    "columns": column_files(),
    "cluener": cluener_files(),
    "jsonl": span_files(),
    "doccano": span_files(),
    "inline": MARKED.map("\n".join),
    "text": TEXTS.map("\n".join),
}


@pytest.mark.parametrize("format", LINE_FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), part=st.integers(1, 90), on_bad=st.sampled_from(["warn", "error"]))
def test_every_format_of_lines_in_parts_equals_the_whole(folder, format, data, part, on_bad):
    """Columns, warnings and errors; dev has a convention of its own."""
    write(folder, data.draw(ANY_FILE[format]), data.draw(ANY_FILE[format]))
    whole = build(folder, False, on_bad=on_bad, format=format)
    assert build(folder, True, part, on_bad=on_bad, format=format) == whole


def test_the_formats_that_can_be_cut_are_those_of_lines():
    assert (
        set(LINE_FORMATS)
        == {name for name, kind in FORMATS.items() if kind.by_lines}
        == set(ANY_FILE)
    )


ARRAY = """[{"text": "Ada met", "spans": [{"start": 0, "end": 3, "label": "x"}]},
  {"text": "Bobby", "spans": []}]
"""


@pytest.mark.parametrize("form", ["auto", "jsonl"])
@pytest.mark.parametrize("start", ["", " \n", "\ufeff"])
def test_a_json_array_is_read_whole(tmp_path, form, start):
    """It has lines, but none of them stands by itself."""
    write(tmp_path, start + ARRAY, ARRAY, "json")
    whole = build(tmp_path, False, format=form)
    assert isinstance(whole, bytes)
    assert build(tmp_path, True, 1, format=form) == whole


def test_a_gzipped_file_is_read_whole(tmp_path):
    content = '{"text": "Ada met", "spans": [{"start": 0, "end": 3, "label": "x"}]}\n' * 3
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    whole = build(tmp_path, False)
    assert isinstance(whole, bytes)
    assert build(tmp_path, True, 1) == whole


def test_one_surface_in_a_far_part_says_what_offsets_count(tmp_path):
    """Ends are inclusive, which only the last of fifty records shows."""
    record = {"text": "Ada met Bobby", "spans": [{"start": 0, "end": 2, "label": "x"}]}
    shown = {
        "text": "Ada met Bobby",
        "spans": [{"start": 8, "end": 12, "label": "x", "text": "Bobby"}],
    }
    lines = [json.dumps(record)] * 50 + [json.dumps(shown)]
    write(tmp_path, "\n".join(lines), None, "jsonl")
    whole = build(tmp_path, False)
    assert isinstance(whole, bytes)
    assert build(tmp_path, True, 200, processes=2) == whole
    write(tmp_path, "\n".join(lines[:-1]), None, "jsonl")  # nothing says so, and Ad is no word
    message = build(tmp_path, False)
    assert "50 of 50 entities end one letter before a word does" in message
    assert build(tmp_path, True, 200) == message


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50), st.sampled_from(LINE_FORMATS))
def test_parts_are_the_file(folder, content, size, format):
    path = folder / "any"
    path.write_bytes(content)
    parts = cut_file(path, format, size)
    assert b"".join(content[part.start : part.end] for part in parts) == content
    lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for part in parts[:-1]:
        assert part.end - part.start >= size
        assert content[part.end - 1] == 10
    for part in parts:
        before = content[: part.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        assert part.line == before.count(b"\n") + 1
        assert lines.startswith(before)


@pytest.mark.parametrize(
    ("train", "settings"),
    [
        ("Ada B-X\n\nmet O\n\nBobby O O\n", {}),  # another number of columns, in another part
        ("Ada B-X\n\nmet O\nBobby O O\n", {}),
        ("Ada B-X\n\nmet O\n\nBobby Q-Z\n", {}),  # no tag
        ("Ada B-X\n\nmet I-X\n\nBobby I-Y\n", {}),  # ill-formed tags
        ("Ada B-X\n\nmet O\n\n", {"tag_column": 5}),
        (b"Ada B-X\n\nmet O\n\nBobby\xff O\n", {}),
        (b"\xff\xfeA\x00d\x00", {}),
        ("\n \n\n", {}),
        ("", {}),
        ('{"text": "a"}\n{"text": 7}\n', {}),
        ('{"text": "a"}\n\n{"text": "b"\n', {}),
        ('{"text": "a"}\n{"text": "b", "label": {"x": {"b": [[0, 3]]}}}\n', {}),
        ('{"text": "\\ud800"}\n', {}),
        ("Ada B-X\n\nmet O\n", {"labels": ["O", "B-Y", "I-Y"]}),
    ],
)
def test_errors_are_those_of_the_whole(tmp_path, train, settings):
    write(tmp_path, train)
    message = build(tmp_path, False, **settings)
    assert isinstance(message, str)
    assert build(tmp_path, True, **settings) == message


@pytest.mark.parametrize("labels", [None, ["O", "B-X", "I-X", "B-Q", "I-Q"]])
@pytest.mark.parametrize("scheme", [None, "BIOES"])
def test_labels_and_scheme_of_the_caller(tmp_path, labels, scheme):
    write(tmp_path, "Ada\tB-X\nmet\tI-X\n\nBobby\tO\n", "Ada\tB-X\n")
    if labels and scheme:
        labels = [*labels, "S-X", "E-X", "S-Q", "E-Q"]
    for data_type in ("train", "dev"):
        whole = build(tmp_path, False, labels=labels, scheme=scheme, data_type=data_type)
        assert isinstance(whole, bytes)
        assert build(tmp_path, True, labels=labels, scheme=scheme, data_type=data_type) == whole


def test_plain_text_and_unlabelled_columns(tmp_path):
    write(tmp_path, "Ada met Bobby\n\nin Paris\n的的\n")
    whole = build(tmp_path, False, format="text")
    assert build(tmp_path, True, format="text") == whole
    write(tmp_path, "Ada\nmet\n\nBobby\n")
    whole = build(tmp_path, False)
    assert isinstance(whole, bytes)
    assert build(tmp_path, True) == whole


# Processes.


def large_text(sentences=3000):
    dice = np.random.default_rng(0)
    words = ["Ada", "met", "Bobby", "in", "Paris"]
    return "".join(
        "".join(f"{words[at]}\t{'B-X' if at in (0, 2) else 'O'}\n" for at in dice.integers(0, 5, 4))
        + "\n"
        for _ in range(sentences)
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    write(folder, large_text(), "Ada\tB-X\nmet\tI-Y\n\nin\tI-X\n")
    return folder


def test_two_processes_give_the_same_file(corpus):
    whole = build(corpus, False, on_bad="warn")
    assert build(corpus, True, 9000, on_bad="warn", processes=2) == whole


@pytest.mark.parametrize(
    "tokenizer", [make_tokenizer(OtherTokenizer), ByT5Tokenizer()], ids=["not importable", "python"]
)
def test_tokenizers_of_all_kinds(corpus, tokenizer):
    settings = {"on_bad": "warn", "tokenizer": tokenizer}
    assert build(corpus, True, 20_000, processes=2, **settings) == build(corpus, False, **settings)


def test_errors_of_processes_come_in_the_order_of_the_file(tmp_path):
    content = large_text(600) + "one two three\n" + large_text(600) + "Ada\tnone\n"
    write(tmp_path, content)
    message = build(tmp_path, False)
    assert ":3001: " in message
    assert build(tmp_path, True, 2000, processes=2) == message


def test_a_killed_process_is_named_and_none_is_left():
    with open_workers(2, PartReader()) as workers:
        processes = list(workers.processes)
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        request = {"do": "scan", "part": ["none", 0, 0, 1], "reader": {"format": "text"}}
        with pytest.raises(RuntimeError, match=r"ended with code -9.*conversion_processes to 1"):
            workers.ask_each(request)
    assert all(process.poll() is not None for process in processes)


def test_workers_end_with_the_process_that_started_them():
    workers = Workers(1, PartReader())
    (process,) = workers.processes
    process.stdin.close()  # as the system does when their builder is killed
    assert process.wait(60) == 0
    process.stdout.close()


def test_a_full_disk_in_a_process_is_an_oserror(corpus):
    target = str(corpus / "train.txt" / "below a file")
    (part,) = cut_file(corpus / "dev.txt", "columns")
    request = {
        "do": "convert",
        "part": list(part),
        "around": [[], []],
        "plan": [
            {
                "format": "columns",
                "token_column": 0,
                "tag_column": -1,
                "first_line": ["Ada\tB-X", 1],
            },
            "BIO",
            ["O", "B-X", "I-X", "B-Y", "I-Y"],
            "BIO",
            {"max_seq_length": 8},
        ],
        "target": target,
    }
    with open_workers(1, PartReader()) as workers:
        nercrf.features.large_corpus._share_tokenizer(workers, TOKENIZER, corpus / "tokenizer")
        with pytest.raises(OSError, match=r"Not a directory|File exists"):
            list(workers.map([request]))


def test_progress_is_said_now_and_then(caplog, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO"):
        assert list(nercrf.features.large_corpus._progress(range(6), "train.txt read", 6)) == list(
            range(6)
        )
    assert [record.getMessage() for record in caplog.records] == [
        "train.txt read: 3 of 6 parts, 12 s",
        "train.txt read: 6 of 6 parts, 24 s",
    ]


def test_files_in_between_are_in_the_given_folder(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(nercrf.features.large_corpus, "PART", 20_000)
    files = open_corpus(corpus, ReadConfig(on_bad="warn"))
    large = LargeCorpus(files, processes=1)
    large.convert("train", TOKENIZER, {"max_seq_length": 8}, tmp_path)
    assert large.survey().survey.sentences["train"] == 3000
    assert large.survey().names() == KnownNames.of(files.read("train"))
    count = len(cut_file(corpus / "train.txt", "columns", 20_000))
    assert sorted(os.listdir(tmp_path)) == [f"{index:06d}.safetensors" for index in range(count)]


# Windows, and sentences around.

WINDOWS = [{"cls_token_at_end": True}, {"stride": 2}, {"context": 1}, {"context": 5, "stride": 1}]


@pytest.mark.parametrize("options", WINDOWS, ids=str)
def test_windows_and_context_reach_over_the_borders_of_parts(tmp_path, options):
    dice = np.random.default_rng(1)
    sentences = [
        " ".join(dice.choice(["Ada", "met", "Bobby", "in", "Paris"], size))
        for size in dice.integers(1, 9, 60)
    ]
    lines = [
        "".join(f"{word} O\n" for word in sentence.split()) + "\n" * dice.integers(1, 9)
        for sentence in sentences
    ]
    lines[0] = lines[0].replace(" O", " B-X", 1)
    write(tmp_path, "".join(lines), "Ada B-X\n")
    whole = build(tmp_path, False, **options)
    assert isinstance(whole, bytes)
    assert build(tmp_path, False) != whole
    for part in (1, 40, 200):
        assert build(tmp_path, True, part, **options) == whole


# Data that are replaced while they are read, and put back.


def replaced_during(monkeypatch, module, name, path, other):
    """Another file in the place of `path` for as long as a function runs, then the old one again."""
    content, function = path.read_bytes(), getattr(module, name)

    def with_another_file(*arguments, **options):
        path.write_bytes(other)
        try:
            return function(*arguments, **options)
        finally:
            path.write_bytes(content)

    monkeypatch.setattr(module, name, with_another_file)


@pytest.mark.parametrize(
    ("in_parts", "module", "name"),
    [
        (True, nercrf.features.large_corpus, "survey_corpus"),
        (True, nercrf.features.large_corpus, "convert_examples_to_features"),
        (True, nercrf.features.large_corpus, "join_columns"),
        (False, nercrf.features.cache, "convert_examples_to_features"),
    ],
)
def test_what_was_not_hashed_is_not_kept(tmp_path, monkeypatch, in_parts, module, name):
    """The labels of another file under the key of this one: nobody would ever notice."""
    lines = "Ada B-X\nmet O\n\nBobby B-X\nsang O\n\n" * 20
    write(tmp_path, lines, "Ada B-X\n")
    assert isinstance(build(tmp_path, in_parts, part=40), bytes)
    replaced_during(
        monkeypatch,
        module,
        name,
        tmp_path / "train.txt",
        lines.replace("met O", "met B-X").encode(),
    )
    told = build(tmp_path, in_parts, part=40)
    assert "train.txt: changed" in told
    assert "start again when nothing writes to it any more" in told
    assert not list(tmp_path.rglob("*.parts"))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("in_parts", "owner", "name"),
    [
        (False, nercrf.data.corpus.CorpusFiles, "survey"),
        (True, nercrf.features.large_corpus, "cut_file"),
    ],
)
def test_a_file_that_is_replaced_between_digest_and_reading(
    tmp_path, monkeypatch, in_parts, owner, name
):
    """Larger than what is held: hashed first, opened again to be parsed."""
    lines = "Ada B-X\nmet O\n\n" * 20
    write(tmp_path, lines, "Ada B-X\n")
    monkeypatch.setattr(nercrf.features.cache_files, "HELD", 10)
    other = lines.replace("met O", "met B-X").encode()
    replaced_during(monkeypatch, owner, name, tmp_path / "train.txt", other)
    assert "train.txt: changed" in build(tmp_path, in_parts, part=40)


# What a whole file says of a sentence that stands in one part of it.


def test_tasks_that_wait_for_an_answer_are_not_annotated_in_any_part(tmp_path):
    """Prodigy: where somebody has answered, a record without an answer is a proposal."""
    rows = [
        {"text": "Ada met Bobby", "spans": [{"start": 0, "end": 3, "label": "X", "text": "Ada"}]}
        | ({"answer": "accept"} if number < 20 else {})
        for number in range(40)
    ]
    write(tmp_path, "".join(f"{json.dumps(row)}\n" for row in rows), suffix="jsonl")
    whole = build(tmp_path, False)
    assert isinstance(whole, bytes)
    for part in (300, 1000):
        assert build(tmp_path, True, part) == whole


def test_missing_tags_are_missing_in_any_part(tmp_path, monkeypatch):
    """`-` beside O means that nobody looked, however many such sentences follow each other."""
    lines = "Ada B-X\nmet O\n\n" * 8000 + "Bobby -\nmet -\n\n" * 300
    write(tmp_path, lines, "Ada B-X\n")
    monkeypatch.setattr(nercrf.features.large_corpus, "PART", 1000)
    large = LargeCorpus(open_corpus(tmp_path, ReadConfig()), processes=1)
    (tmp_path / "parts").mkdir()
    converted = large.convert("train", TOKENIZER, {"max_seq_length": 8}, tmp_path / "parts")
    labels = np.concatenate(list(converted.columns["labels"].parts()))
    assert (len(labels), np.count_nonzero(labels == -100)) == (2 * 8300, 2 * 300)
