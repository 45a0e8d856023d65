"""Results are what their names say, and a message names what is missing and its remedy."""

import json
from dataclasses import replace

import pytest
from training import CORPUS, run

from nercrf.crf.operating_points import OperatingPoint, write_operating_points
from nercrf.data.formats import write_examples
from nercrf.data.reading import read_text
from nercrf.tagging.output import tag_file
from nercrf.tagging.tagger import Tagger


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("a.jsonl", '{"id"'),
        ("a.html", "<!DOCTYPE html>"),
        ("a.HTML.gz", "<!DOCTYPE html>"),
        ("a.tsv", "Ada\t"),
        ("a.conll", "Ada\t"),
        ("a.ann", None),
        ("a.out", '{"id"'),
    ],
)
def test_a_result_is_what_its_name_says(name, begins, model, tmp_path):
    """As convert does: until now predict wrote JSON lines into q.html."""
    (tmp_path / "in.txt").write_text("Ada sings\n")
    place = tmp_path / name
    assert run("predict", model, tmp_path / "in.txt", "--output", place, "--no_cuda") == 0
    ending = name[1:] if begins else ".txt"  # annotations lie beside their text
    text = read_text(tmp_path / f"a{ending}")
    assert text.replace(" ", "\t", begins == "Ada\t").startswith(begins or "Ada sings")
    tagger = Tagger.from_pretrained(model)
    tag_file(tagger, tmp_path / "in.txt", tmp_path / f"b{name[1:]}")  # and in Python
    assert read_text(tmp_path / f"b{ending}").splitlines()[0] == text.splitlines()[0]


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("a.html", ["--output_format", "jsonl"], "html, got --output_format jsonl"),
        ("a.jsonl", ["--output_format", "columns"], "jsonl, doccano or cluener, got"),
        ("a.csv", [], "predictions cannot be written as csv"),
        ("a.html", ["--coverage", "0.9"], "expected --output_format jsonl"),
    ],
)
def test_a_name_and_a_format_that_contradict_each_other_are_told(
    name, words, says, model, tmp_path, capsys
):
    (tmp_path / "in.txt").write_text("Ada sings\n")
    place = tmp_path / name
    assert run("predict", model, tmp_path / "in.txt", "--output", place, *words) == 2
    assert says in capsys.readouterr().err
    assert not place.exists()


def test_tasks_are_what_their_name_says(dev, model, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("Ada sings\n")
    for verb, *words in (["select", model, tmp_path / "in.txt"], ["check", dev]):
        model_of = ["--with_model", model] if verb == "check" else []
        for name, begins in (("a.json", "["), ("a.jsonl", "{"), ("a", "[")):
            place = tmp_path / f"{verb}-{name}"
            assert run(verb, *words, "--output", place, *model_of) == 0
            assert place.read_text().startswith(begins)
        place = tmp_path / "b.jsonl"
        words += ["--output", place, "--output_format", "label_studio"]
        assert run(verb, *words, *model_of) == 2
        assert "b.jsonl stands for jsonl" in capsys.readouterr().err
        assert not place.exists()


def test_text_without_labels_is_called_that(model, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("Ada sings in Oslo\nBo does not\n")
    for words in (["evaluate", model, texts], ["check", texts], ["score", texts, texts]):
        assert run(*words) == 2
        said = "".join(capsys.readouterr())
        assert (
            "no labels of a known form; is it text without labels, such as nercrf predict" in said
        )
        names = said.partition("name one of ")[2].partition(" (--format)")[0].split(", ")
        for name in names:  # each may be given, and may hold labels
            assert name not in ("text", "docbin", "datasets", "parquet")
            code = run("check", texts, "--format", name)
            assert code in (0, 1, 2)
            assert "--format must be one of" not in capsys.readouterr().err
    assert run("evaluate", model, "--no_cuda") == 2
    said = capsys.readouterr().err
    assert (
        "no data: give --data_dir, or DATA behind MODEL: a labelled file, or a folder with" in said
    )
    assert "--input" not in said
    assert run("predict", model, "--no_cuda") == 2
    assert "or --input with files to tag" in capsys.readouterr().err


def test_what_is_missing_is_named_with_its_remedy(model, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("Ada sings\n")
    words = ["predict", model, tmp_path / "in.txt", "--no_cuda"]
    assert run(*words, "--output_format", "html") == 2
    assert "cannot go to standard output: give a file (--output FILE)" in capsys.readouterr().err
    assert run(*words, "--operating_point", "p90") == 2
    said = capsys.readouterr().err
    assert "that was fitted, got 'p90'; fit it: nercrf calibrate MODEL DEV --precision" in said
    assert run("benchmark", "--help") == 0
    assert "needs a pretrained encoder" in " ".join(capsys.readouterr().out.split())
    assert run("predict", "--help") == 0
    assert "others as fitted, or 0.5" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("span", "says"),
    [([17, 80], "correct its start and end"), ([2, 2], "are ends inclusive?"), ([5, 2], "correct")],
)
@pytest.mark.parametrize("words", [False, True])
def test_only_an_empty_span_may_be_one_of_inclusive_ends(span, says, words, tmp_path, capsys):
    record = {"text": "Ada sings in Oslo", "spans": [[*span, "PER"]]}
    if words:
        place = {"start": span[0], "end": span[1], "type": "PER"}
        record = {"tokens": record["text"].split(), "entities": [place]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert run("check", tmp_path / "a.jsonl", "--all") == 1
    said = capsys.readouterr().out
    assert says in said
    assert ("inclusive" in said.partition("left out")[2].partition(")")[0]) == (span == [2, 2])


def test_sentences_that_were_not_judged_are_named(model, tmp_path, capsys):
    odd = replace(CORPUS.dev[0], spans=[CORPUS.dev[0].spans[0]._replace(label="STAR")])
    write_examples([CORPUS.dev[1], odd], tmp_path / "dev.jsonl", "jsonl")
    assert run("check", tmp_path / "dev.jsonl", "--with_model", model, "--no_cuda") == 0
    said = capsys.readouterr().err
    assert "1 sentence was not judged, since the model does not know their types (STAR)" in said
    assert "dev.jsonl:2" in said


def test_an_evaluation_says_why_new_names_are_not_told(dev, model, tmp_path, capsys):
    words = ["evaluate", model, dev, "--no_cuda", "--output_dir", tmp_path / "out"]
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert said.count("F1 on new names: not told, since") == 1


def test_a_tagger_is_kept_and_shows_itself(model, tmp_path):
    tagger = Tagger.from_pretrained(model, device="cpu", decoding="threshold", threshold=0.3)
    assert repr(tagger).startswith("Tagger(")
    assert "decoding='threshold'" in repr(tagger)
    for label in tagger.decoder.types:
        assert label in repr(tagger)
    tagger.save_pretrained(tmp_path / "kept")
    again = Tagger.from_pretrained(tmp_path / "kept", device="cpu", decoding="threshold")
    texts = [example.text for example in CORPUS.dev]
    plain = Tagger.from_pretrained(model, device="cpu", decoding="threshold")
    assert [each.to_dict() for each in again.tagged(texts)] == [
        each.to_dict() for each in plain.tagged(texts)
    ]
    weights = again.model.state_dict()
    for name, value in tagger.model.state_dict().items():
        assert value.equal(weights[name])


def test_operating_points_are_kept_with_a_tagger(model, tmp_path):
    first = Tagger.from_pretrained(model, device="cpu")
    first.save_pretrained(tmp_path / "one")
    write_operating_points(tmp_path / "one", {"p90": OperatingPoint(background_stay=-2.0)})
    one = Tagger.from_pretrained(tmp_path / "one", device="cpu", operating_point="p90")
    one.save_pretrained(tmp_path / "two")
    two = Tagger.from_pretrained(tmp_path / "two", device="cpu", operating_point="p90")
    texts = [example.text for example in CORPUS.dev]
    assert two(texts) == one(texts)
    assert "OperatingPoint" in repr(two)


def test_an_unknown_keyword_of_a_tagger_is_named_with_those_that_there_are(model):
    for call in (Tagger.from_pretrained, lambda *a, **o: Tagger(*[None] * 2, **o)):
        with pytest.raises(TypeError, match="got 'thresh'; did you mean threshold") as error:
            call(model, thresh=0.3)
        for name in ("decoding", "threshold", "operating_point", "coverage", "batch_size"):
            assert name in str(error.value)
    for name in ("decoding", "threshold", "operating_point", "coverage", "labelings"):
        assert f"`{name}`" in Tagger.from_pretrained.__doc__
    tagger = Tagger.from_pretrained(model, device="cpu", quantize="bf16")
    with pytest.raises(ValueError, match="fewer bits"):
        tagger.save_pretrained("nowhere")
