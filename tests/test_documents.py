"""Context ends with the document: sentences of two documents are converted as if each were alone."""

import json
from itertools import pairwise

import numpy as np
import pytest
from test_parts import TOKENIZER, build

from nercrf.data.corpus import read_corpus
from nercrf.data.examples import Example
from nercrf.features.cache import open_cached, sentence_places
from nercrf.features.conversion import convert_examples_to_features

# the sentences of each document
DOCUMENTS = [
    ["Ada met Bobby", "Paris", "in Paris Ada met Bobby"],
    ["Bobby in Paris"],
    ["met Ada", "Ada Bobby met"],
]
ALONE = [[sentence] for document in DOCUMENTS for sentence in document]


def shown(examples, context=2):
    "The pieces of each window of each sentence."
    features = convert_examples_to_features(
        examples, ["O", "B-X", "I-X"], 12, TOKENIZER, context=context
    )
    windows = np.split(features.input_ids, features.window_offsets[1:-1])
    borders = [*features.sentence_windows, len(windows)]
    return [
        [window.tolist() for window in windows[begin:end]]
        for begin, end in pairwise(borders)
        if end > begin
    ]


def expected(documents):
    "What is shown of documents that know nothing of each other."
    return [
        windows
        for number, sentences in enumerate(documents)
        for windows in shown([Example("", each.split(), [], f"{number}:1") for each in sentences])
    ]


def columns(documents, start):
    "A column file whose documents begin with some lines."
    return "\n".join(
        start.format(number) + "".join("".join(f"{w} O\n" for w in s.split()) + "\n" for s in held)
        for number, held in enumerate(documents)
    ).replace("Ada O", "Ada B-X", 1)


def json_lines(documents, make):
    "A JSON object for each sentence, of its number, its document and itself."
    sentences = [(number, each) for number, held in enumerate(documents) for each in held]
    return "\n".join(json.dumps(make(place, *each)) for place, each in enumerate(sentences))


def spans(text):
    return [[text.index("Ada"), text.index("Ada") + 3, "X"]] if "Ada" in text else []


def task(place, number, text):
    value = [
        {"value": {"start": a, "end": b, "labels": [c]}, "type": "labels"}
        for a, b, c in spans(text)
    ]
    return {"id": place, "data": {"text": text}, "annotations": [{"result": value}]}


def cluener(place, number, text):
    return {"text": text, "label": {label: {"Ada": [[a, b - 1]]} for a, b, label in spans(text)}}


def tags(text):
    return ["B-X" if word == "Ada" else "O" for word in text.split()]


FILES = {
    "docstart": ("train.conll", columns(DOCUMENTS, "-DOCSTART- O\n\n"), DOCUMENTS),
    "docstart without blank line": ("train.conll", columns(DOCUMENTS, "-DOCSTART-\n"), DOCUMENTS),
    "CoNLL-U": ("train.conllu", columns(DOCUMENTS, "# newdoc id = {}\n"), DOCUMENTS),
    "begin document": (
        "train.conll",
        columns(DOCUMENTS, "#begin document (a/{0}); part 000\n").replace("\n\n\n", "\n\n#end\n\n"),
        DOCUMENTS,
    ),
    "one document": ("train.conll", columns(DOCUMENTS, ""), [[each for (each,) in ALONE]]),
    "spans": (
        "train.jsonl",
        json_lines(DOCUMENTS, lambda place, number, text: {"text": text, "label": spans(text)}),
        ALONE,
    ),
    "spans of named documents": (
        "train.jsonl",
        json_lines(
            DOCUMENTS,
            lambda place, number, text: {"doc_id": number, "text": text, "spans": spans(text)},
        ),
        DOCUMENTS,
    ),
    "tokens": (
        "train.jsonl",
        json_lines(DOCUMENTS, lambda *row: {"tokens": row[2].split(), "ner_tags": tags(row[2])}),
        ALONE,
    ),
    "tokens of named documents": (
        "train.jsonl",
        json_lines(
            DOCUMENTS,
            lambda place, number, text: {
                "doc_id": f"d{number}",
                "sent_id": f"d{number}-{place}",
                "tokens": text.split(),
                "ner_tags": tags(text),
            },
        ),
        DOCUMENTS,
    ),
    "documents of sentences": (
        "train.json",
        "\n".join(
            json.dumps(
                {
                    "doc_key": f"d{number}",
                    "sentences": [each.split() for each in held],
                    "ner": [[] for _ in held],
                }
            )
            for number, held in enumerate([*DOCUMENTS, ["Ada"]])
        ).replace('"ner": [[]]}', '"ner": [[[0, 0, "X"]]]}'),
        [*DOCUMENTS, ["Ada"]],
    ),
    "Label Studio": ("train.json", f"[{json_lines(DOCUMENTS, task)}]".replace("\n", ",\n"), ALONE),
}


@pytest.mark.parametrize("name", FILES)
def test_two_documents_in_one_file_are_as_each_alone(tmp_path, name):
    file, content, documents = FILES[name]
    (tmp_path / file).write_text(content, encoding="utf-8")
    examples = read_corpus(tmp_path).splits["train"]
    assert shown(examples) == expected(documents)
    assert shown(examples, 0) == expected([[each] for held in documents for each in held])


def test_each_line_of_cluener_is_alone(tmp_path):
    (tmp_path / "train.json").write_text(json_lines(DOCUMENTS, cluener), encoding="utf-8")
    examples = read_corpus(tmp_path).splits["train"]
    assert len(examples) == len(ALONE)
    assert shown(examples) == shown(examples, 0)


def brat(sentences):
    text = "\n".join(sentences) + "\n"
    found = [f"T1\tX {a} {b}\tAda\n" for a, b, _ in spans(text)]
    return {".txt": text, ".ann": "".join(found)}


@pytest.mark.parametrize(
    "make",
    [brat, lambda held: {".conll": columns([held], "")}, lambda held: {".csv": table(held)}],
    ids=["brat", "columns", "csv"],
)
def test_files_that_are_merged_are_as_each_alone(tmp_path, make):
    for number, held in enumerate(DOCUMENTS):
        for ending, content in make(held).items():
            (tmp_path / "train").mkdir(exist_ok=True)
            (tmp_path / "train" / f"doc{number}{ending}").write_text(content, encoding="utf-8")
    examples = read_corpus(tmp_path).splits["train"]
    assert shown(examples) == expected(DOCUMENTS)


def table(sentences):
    rows = [
        f"{number},{word},{tag}\n"
        for number, each in enumerate(sentences)
        for word, tag in zip(each.split(), tags(each), strict=True)
    ]
    return "sentence,token,tag\n" + "".join(rows)


@pytest.mark.parametrize("start", ["-DOCSTART- O\n\n", "# newdoc id = {}\n"])
@pytest.mark.parametrize("part", [1, 30, 90])
def test_a_document_goes_on_in_the_next_part(tmp_path, start, part):
    "A large file is cut anywhere, also behind the line that starts a document."
    documents = DOCUMENTS * 3
    (tmp_path / "train.txt").write_text(columns(documents, start), encoding="utf-8")
    whole = build(tmp_path, False, context=2)
    assert build(tmp_path, True, part, context=2) == whole


def test_records_in_parts_are_alone(tmp_path):
    (tmp_path / "train.jsonl").write_text(FILES["spans of named documents"][1], encoding="utf-8")
    whole = build(tmp_path, False, context=2)
    assert build(tmp_path, True, 1, context=2) == whole


def test_features_with_context_of_before_are_not_used(tmp_path):
    "Their key says that context ends with the document; that of others is what it was."
    from nercrf.features.cache import open_cached

    (tmp_path / "train.txt").write_text(columns(DOCUMENTS, "-DOCSTART- O\n\n"), encoding="utf-8")
    corpus = open_cached(tmp_path)
    plain = corpus.describe("train", TOKENIZER, {"max_seq_length": 8, "context": 0})
    assert "context_within" not in plain
    around = corpus.describe("train", TOKENIZER, {"max_seq_length": 8, "context": 1})
    assert around["context_within"] == "document"


def origins(folder, in_parts, part=1):
    "Documents, places and ids of dev, and whether it was read in parts."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nercrf.features.cache.LARGE", 0 if in_parts else 1 << 40)
        patch.setattr("nercrf.features.large_corpus.PART", part)
        cached = open_cached(folder, feature_cache_dir=folder / f"{in_parts}{part}", processes=0)
        documents = cached.summary.documents("dev").tolist()
        return documents, list(map(tuple, sentence_places(cached, "dev"))), cached.large is not None


@pytest.mark.parametrize("name", FILES)
def test_an_evaluation_knows_document_and_place_of_each_sentence(tmp_path, name):
    """Read whole or in parts; the place leads to the sentence, and made-up ids are none."""
    file, content, documents = FILES[name]
    file = file.replace("train", "dev")
    for each in (file, file.replace("dev", "train")):
        (tmp_path / each).write_text(content, encoding="utf-8")
    numbers, places, _ = origins(tmp_path, False)
    assert numbers == [number for number, held in enumerate(documents) for _ in held]
    lines = content.splitlines()
    texts = [sentence for held in documents for sentence in held]
    for (where, id), text in zip(places, texts, strict=True):
        assert where.startswith(f"{file}:")
        assert not id.startswith("dev-")
        if where.removeprefix(f"{file}:").isdecimal() and file.endswith((".conll", ".jsonl")):
            assert text.split()[0] in lines[int(where.rpartition(":")[2]) - 1]
    for part in (1, 90):
        found = origins(tmp_path, True, part)
        assert found[:2] == (numbers, places)
    assert found[2] or name not in ("docstart", "spans", "spans of named documents")  # was cut


def test_files_of_one_split_are_named_as_they_are_now(tmp_path):
    """A cache stays good when a folder and its files are renamed: names come from the folder."""
    for number, held in enumerate(DOCUMENTS):
        for ending, content in brat(held).items():
            (tmp_path / "a" / "dev").mkdir(parents=True, exist_ok=True)
            path = tmp_path / "a" / "dev" / f"doc{number}{ending}"
            path.write_text(content, encoding="utf-8")

    def told(folder):
        cached = open_cached(folder, feature_cache_dir=tmp_path / "cache")
        return cached.summary.documents("dev").tolist(), [
            each.where for each in sentence_places(cached, "dev")
        ]

    lines = [(number, line) for number, held in enumerate(DOCUMENTS) for line in range(len(held))]
    wanted = [number for number, _ in lines]
    names = [f"dev/doc{number}.txt:{line + 1}" for number, line in lines]
    assert told(tmp_path / "a") == (wanted, names)
    for path in (tmp_path / "a" / "dev").iterdir():
        path.rename(path.with_name(path.name.replace("doc", "text")))
    (tmp_path / "a").rename(tmp_path / "b")
    before = sorted((tmp_path / "cache").glob("corpus-*"))
    assert told(tmp_path / "b") == (wanted, [each.replace("doc", "text") for each in names])
    assert sorted((tmp_path / "cache").glob("corpus-*")) == before
