"""A conversion keeps the borders of documents, or says before it writes that they are lost."""

import json

import pytest

from nercrf.data.convert import convert
from nercrf.data.examples import document_names
from nercrf.data.formats import examine, read_examples
from nercrf.data_commands import convert_main

DOCUMENTS = [["Ada left", "Oslo waits"], ["Oslo sleeps"], ["Ada sings", "Ada sleeps", "Oslo left"]]
TAGS = {"Ada": "B-PER", "Oslo": "B-LOC"}
PARTITION = [0, 0, 2, 3, 3, 3]  # the first sentence of the document of each


def columns(start="-DOCSTART- O\n\n", documents=DOCUMENTS):
    "A column file whose documents begin with some lines."
    return "".join(
        start.format(number)
        + "".join("".join(f"{w} {TAGS.get(w, 'O')}\n" for w in s.split()) + "\n" for s in held)
        for number, held in enumerate(documents)
    )


def spans(text):
    return [[0, text.index(" "), "X"]]


SOURCES = {
    "docstart": ("a.conll", columns()),
    "newdoc": ("a.conllu", columns("# newdoc id = {}\n")),
    "some before the first": ("a.conll", columns().removeprefix("-DOCSTART- O\n\n")),
    "ids": (
        "a.jsonl",
        "".join(
            json.dumps({"text": text, "doc_id": f"d#{number}", "spans": spans(text)}) + "\n"
            for number, held in enumerate(DOCUMENTS)
            for text in held
        ),
    ),
}
HOLDS = ["columns", "jsonl", "doccano", "label_studio", "tokens", "csv", "parquet", "datasets"]
LOSES = ["cluener", "brat", "inline", "text"]


def partition(examples):
    "The first sentence of the document of each."
    keys = [example.document for example in examples]
    return [keys.index(key) for key in keys]


@pytest.mark.parametrize("target", HOLDS)
@pytest.mark.parametrize("source", SOURCES)
def test_borders_are_kept(source, target, tmp_path):
    if target in ("parquet", "datasets"):
        pytest.importorskip({"parquet": "pyarrow"}.get(target, target))
    name, content = SOURCES[source]
    path, there, back = tmp_path / name, tmp_path / "there", tmp_path / "back.conll"
    if target == "parquet":
        there = tmp_path / "there.parquet"
    path.write_text(content, encoding="utf-8")
    assert partition(read_examples(path, on_bad="warn")) == PARTITION
    made = convert(path, there, to_format=target, on_bad="warn")
    assert "documents" not in [loss.kind for loss in made.losses]
    assert partition(read_examples(there, target)) == PARTITION
    made = convert(there, back, from_format=target, to_format="columns")
    assert "documents" not in [loss.kind for loss in made.losses]
    assert back.read_text().count("-DOCSTART-\tO\n\n") == 3 - (
        source.startswith("some") and target in ("columns", "csv")
    )
    assert partition(read_examples(back)) == PARTITION


@pytest.mark.parametrize("target", LOSES)
def test_what_cannot_hold_them_says_so_before_it_writes(target, tmp_path, capsys):
    path, out = tmp_path / "a.conll", tmp_path / "out.txt"
    path.write_text(columns())
    made = convert(path, out, to_format=target, write=False)
    assert not out.exists()
    assert [loss.message for loss in made.losses if loss.kind == "documents"] == [
        "3 documents became 6; first example a-1 (" + str(path) + ":6)"
        if target == "cluener"
        else "3 documents became 1; first example a-2 (" + str(path) + ":11)"
    ]
    made.discard()
    assert convert_main([str(path), str(out), "--to", target]) == 0
    assert "where documents begin and end: 3 documents became" in capsys.readouterr().out


def test_files_that_tell_no_documents_are_written_as_before(tmp_path):
    path, out = tmp_path / "a.conll", tmp_path / "out"
    path.write_text(columns(""))
    for target in ("columns", "jsonl", "tokens", "csv", "cluener"):
        made = convert(path, out, to_format=target)
        assert "documents" not in [loss.kind for loss in made.losses]
        assert "DOCSTART" not in out.read_text()
        assert "doc_id" not in out.read_text()
    convert(path, out, to_format="jsonl")
    convert(out, path, to_format="columns", from_format="jsonl", force=True)
    assert "DOCSTART" not in path.read_text()


@pytest.mark.parametrize("target", ["columns", "csv", "text", "jsonl", "doccano", "tokens"])
def test_records_that_stand_alone_are_documents(target, tmp_path):
    """Neighbours are not read across them, and a split never parts one; a column file is one."""
    path, out = tmp_path / "a.jsonl", tmp_path / "out.txt"
    texts = [text for held in DOCUMENTS for text in held]
    path.write_text("".join(json.dumps({"text": x, "spans": spans(x)}) + "\n" for x in texts))
    assert partition(examine(path).examples) == [*range(6)]
    made = convert(path, out, to_format=target, write=False)
    lost = [loss.message for loss in made.losses if loss.kind == "documents"]
    made.write()
    if partition(examine(out, target).examples) == [*range(6)]:
        assert target in ("jsonl", "doccano", "tokens")
        assert not lost
        return
    assert len(lost) == 1
    assert lost[0].startswith("6 documents became 1; first example a-1 (")
    assert "a doc_id in the records tells it" in lost[0]
    records = [{"text": x, "spans": spans(x), "doc_id": str(n)} for n, x in enumerate(texts)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    made = convert(path, out, to_format=target)
    lost = [loss.message for loss in made.losses if loss.kind == "documents"]
    assert bool(lost) == (target == "text")


def test_files_that_become_one_lose_their_borders(tmp_path):
    paths = [tmp_path / name for name in ("a.conll", "b.conll")]
    for path in paths:
        path.write_text(columns(""))
    made = convert(paths, tmp_path / "out.conll", to_format="columns")
    assert "2 documents became 1" in str(made)
    assert "documents" not in [x.kind for x in convert(paths[0], tmp_path / "one.jsonl").losses]


def test_documents_that_are_dealt_out_in_turn_are_told(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [("a", "Ada left"), ("b", "Ada sings"), ("a", "Ada sleeps")]
    path.write_text(
        "".join(
            json.dumps({"text": text, "doc_id": name, "spans": spans(text)}) + "\n"
            for name, text in records
        )
    )
    made = convert(path, tmp_path / "out.conll", to_format="columns")
    assert "2 documents became 3" in str(made)


def test_files_of_brat_are_documents_of_one_file(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text("Ada left\nAda sings\n")
        (folder / f"{name}.ann").write_text("T1\tPER 0 3\tAda\n")
    out = tmp_path / "out.jsonl"
    paths = [folder / "one.ann", folder / "two.ann"]
    made = convert(paths, out)
    assert not [loss for loss in made.losses if loss.kind == "documents"]
    names = [json.loads(line)["doc_id"] for line in out.read_text().splitlines()]
    assert names == ["one", "one", "two", "two"]
    assert document_names(examine(out).examples) == names
