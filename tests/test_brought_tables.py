"""Tables as people bring them to be tagged: no row is lost, doubled or glued, no label is a text."""

import io
import sys
from itertools import chain

import pytest

from nercrf.data.examples import DataError
from nercrf.data.formats import read_examples
from nercrf.data.splitting import find_splitter
from nercrf.tagging.inputs import Source, read_batches

WORDS = find_splitter("words")
MET, LEFT = "Ana met Bob, in Oslo", "He left"


def texts_of(path, **options):
    "The text of each sentence; the message of one that has an error."
    format = options.pop("format", "auto")
    sentences = chain(*read_batches(Source(str(path), WORDS, format, options=options)))
    return [each.error or each.example.text for each in sentences]


def texts_in(folder, name, content, **options):
    "The same of a file with this content, and of a pipe with it."
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    return texts_of(path, **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.csv", f',text\n0,"{MET}"\n1,{LEFT}\n'),
        ("last.csv", f'Text,\n"{MET}",\n{LEFT},\n'),
        ("excel.csv", f"sep=;\nid;text\n1;{MET}\n2;{LEFT}\n"),
        ("excel_quoted.csv", f'sep=,\n"id","text"\n"1","{MET}"\n"2","{LEFT}"\n'),
        ("capitals.csv", f"ID;TEXT;Datum\n1;{MET};1.2.\n2;{LEFT};1.3.\n"),
        ("labelled.csv", f'label,text\npos,"{MET}"\nneg,{LEFT}\n'),
        ("numbered.csv", f'document,sentence,text\na b,1,"{MET}"\na b,2,{LEFT}\n'),
        ("both.csv", f'sentence,tokens,ner_tags\n"{MET}",[],[]\n{LEFT},[],[]\n'),
        ("tabs.tsv", f"id\ttext\n1\t{MET}\n2\t{LEFT}\n"),
    ],
)
def test_the_column_of_texts_is_found_beside_any_other(name, content, tmp_path):
    assert texts_in(tmp_path, name, content) == [MET, LEFT]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_short_texts_are_texts(separator, tmp_path):
    "A text of one word, or of a script without blanks."
    rows = ["id,text", "1,张三去了北京", "2,Bob", "3,他走了"]
    content = "\n".join(rows).replace(",", separator)
    assert texts_in(tmp_path, "a.csv", content) == ["张三去了北京", "Bob", "他走了"]


@pytest.mark.parametrize(
    "content",
    [
        "Sentence #,Word,POS,Tag\nSentence: 1,Ana,N,B-per\n,left,V,O\nSentence: 2,Bob,N,B-per\n",
        "document,word,tag,sentence\na b,Ana,B-PER,1\na b,left,O,1\na b,Bob,B-PER,2\n",
        "sep=;\nsentence_id;word;tag\n1;Ana;B-PER\n1;left;O\n2;Bob;B-PER\n",
        "sep=,\nword,tag\nAna,B-PER\nleft,O\n,\nBob,B-PER\n",
        "text,label\nAna,B-PER\nleft,O\n,\nBob,B-PER\n",
        "sentence_id\tword\ttag\n1\tAna\tB-PER\n1\tleft\tO\n2\tBob\tB-PER\n",
        "Sentence #\tWord\tTag\nSentence: 1\tAna\tB-PER\n\tleft\tO\nSentence: 2\tBob\tB-PER\n",
        "0\tAna\tB-PER\n0\tleft\tO\n1\tBob\tB-PER\n",
        '"Ana","B-PER",""\n"left","O",""\n\n"Bob","B-PER",""\n',
        "sep=\t\nAna\tB-PER\nleft\tO\n\nBob\tB-PER\n",
    ],
)
def test_names_of_sentences_are_no_texts(content, tmp_path):
    "The words of a table are what a reader of labelled tables finds."
    for name in ("a.csv", "a.tsv", "a.txt"):
        assert texts_in(tmp_path, name, content) == ["Ana left", "Bob"]
        read = read_examples(tmp_path / name)
        assert [each.tokens for each in read] == [["Ana", "left"], ["Bob"]]


def test_a_first_word_that_is_called_like_a_column_is_no_header(tmp_path):
    content = '"text","N","B-PER"\n"left","V","O"\n\n"Bob","N","B-PER"\n'
    assert texts_in(tmp_path, "a.csv", content) == ["text left", "Bob"]
    read = read_examples(tmp_path / "a.csv")
    assert [each.tokens for each in read] == [["text", "left"], ["Bob"]]


def test_names_of_sentences_are_no_texts_in_json(tmp_path):
    content = (
        '{"sentence": "s 1", "tokens": ["Ana", "left"]}\n{"document": "d", "words": ["Bob"]}\n'
    )
    assert texts_in(tmp_path, "a.jsonl", content) == ["Ana left", "Bob"]
    content = '{"document": "d", "sentences": [["Ana", "left"], ["Bob"]]}\n'
    assert texts_in(tmp_path, "a.jsonl", content) == ["Ana left", "Bob"]
    content = '{"sentence": "Ana  left", "tokens": ["Ana", "left"]}\n'
    assert texts_in(tmp_path, "a.jsonl", content) == ["Ana  left"]


@pytest.mark.parametrize("name", ["tweets.csv", "tweets.tsv"])
def test_a_column_of_texts_with_an_unknown_name_is_asked_for(name, tmp_path):
    "It was one sentence of all cells of a column, or of the ids."
    separator = "\t" if name.endswith("tsv") else ";"
    content = f"id;tweet\n1;{MET}\n2;{LEFT}\n".replace(";", separator)
    for format in ("auto", "csv"):
        with pytest.raises(DataError, match=r"got the columns 'id', 'tweet'.*--token_column 1"):
            texts_in(tmp_path, name, content, format=format)
        assert texts_in(tmp_path, name, content, format=format, token_column=1) == [MET, LEFT]
        assert texts_in(tmp_path, name, content, format=format, token_column=-1) == [MET, LEFT]
    without = content.partition("\n")[2]
    assert texts_in(tmp_path, name, without, format="csv", token_column=1) == [MET, LEFT]


@pytest.mark.parametrize("odd", ["Ruiz,I-PER,", "Ruiz", ",", "x,y,z"])
def test_rows_of_a_table_are_no_words(odd, tmp_path):
    "A short table with an odd row was a column file with words like `Ana,B-PER`."
    content = f"word,tag\nAna,B-PER\n{odd}\nleft,O\n,\nBob,B-PER\n"
    found = texts_in(tmp_path, "a.csv", content)
    assert found[-1] == "Bob"
    assert not any("B-PER" in each for each in found if odd not in each)


def test_a_table_is_one_in_a_pipe_and_in_a_text_file_too(tmp_path, monkeypatch):
    for content in (f'id,text\n1,"{MET}"\n2,{LEFT}\n', f"text\tlabel\n{MET}\tpos\n{LEFT}\tneg\n"):
        assert texts_in(tmp_path, "a.txt", content) == [MET, LEFT]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        assert texts_of("-") == [MET, LEFT]
    for content in ("Text, Bild und Ton\nWas wir sehen, hören\n", "Text\nA text, in a line\n"):
        assert texts_in(tmp_path, "a.txt", content) == content.splitlines()


def test_an_array_is_one_in_a_pipe_too(tmp_path, monkeypatch):
    "It was a text with brackets and quotes."
    for content in ('["Ana left", "Bob \\"ran\\""]\n', '[["Ana left", {"entities": []}]]\n'):
        found = texts_in(tmp_path, "a.json", content)
        assert found[0] == "Ana left"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        assert texts_of("-") == found


@pytest.mark.parametrize("title", ["Ana B-PER", "-DOCSTART-", "Names of 2020"])
def test_a_line_before_the_header_leaves_a_table_a_table(title, tmp_path):
    "Its rows became words like `1,Ana,B-PER`."
    content = f"{title}\nsentence,word,tag\n1,Ana,B-PER\n1,left,O\n2,Bob,B-PER\n2,ran,O\n"
    error, other = texts_in(tmp_path, "a.csv", content)
    assert f"a.csv:1: expected 3 cells as in line 2, got 1 in {title!r}" in error
    assert other == "Bob ran"
