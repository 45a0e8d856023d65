"""Where a newcomer stumbles on the command line: it works, or one sentence says what does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from training import CORPUS

from nercrf import cli
from nercrf.crf.operating_points import OperatingPoint, write_operating_points
from nercrf.data.formats import FORMATS, write_examples
from nercrf.data.read_config import ReadFormat, WriteFormat
from nercrf.data.reading import read_text
from nercrf.flags import parse_verb
from nercrf.opening import prepare_data
from nercrf.tagging.output import tag_file
from nercrf.tagging.tagger import Tagger


def run(*words):
    try:
        return cli.main(list(map(str, words)))
    except SystemExit as end:
        return end.code


@pytest.fixture
def dev(tmp_path):
    write_examples(CORPUS.dev, tmp_path / "dev.jsonl", "jsonl")
    return tmp_path / "dev.jsonl"


def test_a_file_is_evaluated_as_a_folder_with_it(dev, model, tmp_path, capsys):
    """Also as predict and score take one file."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "test.jsonl").write_bytes(dev.read_bytes())
    printed = {}
    for place in (folder, dev):
        words = ["evaluate", model, place, "--no_cuda", "--output_dir", tmp_path / "out"]
        assert run(*words) == 0
        printed[place] = capsys.readouterr().out
    assert printed[dev] == printed[folder]
    assert "test: 20 sentences" in printed[dev]
    found = [
        json.loads((tmp_path / "out" / "evaluations" / f"{name}.json").read_text())
        for name in ("data", "dev")
    ]
    assert found[0]["results"] == found[1]["results"]
    assert found[1]["data"]["files"] == {"test": str(dev)}
    assert run("train", "--data_dir", dev, "--output_dir", tmp_path / "new") == 2
    assert "cut it with --split 0.8,0.1,0.1" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["calibrate", "score", "check"])
@pytest.mark.parametrize("held", [[], ["dev.txt", "train.txt"]])
def test_a_folder_in_the_place_of_a_file_is_told(verb, held, dev, model, tmp_path, capsys):
    folder = tmp_path / "other"
    folder.mkdir()
    for name in held:
        write_examples(CORPUS.dev, folder / name, "columns")
    words = {"calibrate": [model], "score": [dev], "check": []}[verb]
    code = run(verb, *words, folder)
    if verb == "check" and held:  # it reads folders
        assert code in (0, 1)
        return
    assert code == 2
    said = capsys.readouterr().err
    if verb != "check":
        assert f"such as {folder / 'dev.txt'}" in said if held else "got an empty one" in said
    assert "pip install" not in said


@pytest.mark.parametrize("words", [["0.5", "0.8"], ["0.5,0.8"], ["0.5,", "0.8"]])
def test_coverage_takes_numbers_with_commas(words, dev, model, capsys):
    assert run("calibrate", model, dev, "--measure_only", "--coverage", *words) == 0
    printed = capsys.readouterr().out
    assert "coverage 0.5: " in printed
    assert "coverage 0.8: " in printed
    assert run("calibrate", model, dev, "--coverage", "0.5;0.8") == 2
    assert "expected numbers, as in 0.9 0.95, got '0.5;0.8'" in capsys.readouterr().err


def test_a_calibration_on_few_sentences_says_so(dev, model, tmp_path, capsys):
    write_examples(CORPUS.dev[:3], tmp_path / "few.jsonl", "jsonl")
    assert run("calibrate", model, tmp_path / "few.jsonl", "--measure_only") == 0
    printed = capsys.readouterr().out
    assert "warning: 3 sentences with" in printed
    assert run("calibrate", model, dev, "--measure_only") == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.startswith("log loss")]
    assert float(rows[0][2]) < float(rows[0][3])  # a random model: sentences win, entities lose
    assert f"log loss {rows[0][2]} -> {rows[0][3]}" in printed


def test_lists_of_formats_are_whole(dev, tmp_path, capsys):
    assert set(get_args(ReadFormat)) - {"auto"} == {n for n, x in FORMATS.items() if x.readable}
    assert set(get_args(WriteFormat)) == set(FORMATS)
    assert run("convert", dev, tmp_path / "out", "--to", "doc_bin") == 2
    assert "docbin" in capsys.readouterr().err
    assert run("convert", "--help") == 0
    assert "datasets, docbin" in " ".join(capsys.readouterr().out.split())


def test_tasks_of_several_files_have_ids_of_their_own_and_say_where_they_are_from(
    model, tmp_path, capsys
):
    texts = [example.text for example in CORPUS.train[:12]]
    for name, held in (("a", texts[:6]), ("b", texts[6:])):
        (tmp_path / f"{name}.txt").write_text("".join(f"{text}\n" for text in held))
    output = tmp_path / "tasks.json"
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert run("select", model, *paths, "--number", 20, "--output", output) == 0
    said = capsys.readouterr()
    tasks = json.loads(output.read_text())
    assert {task["data"]["text"] for task in tasks} == set(texts)
    assert len({task["id"] for task in tasks}) == 12
    for task in tasks:
        path, _, number = task["data"]["source"].rpartition(":")
        line = Path(path).read_text().splitlines()[int(number) - 1]
        assert line == task["data"]["text"]
    assert "warning: --number 20, but the files hold no more than 12" in said.err
    assert run("select", model, *paths, "--number", 12, "--output", output) == 0
    assert "warning" not in capsys.readouterr().err


def test_sentences_that_cannot_be_read_are_counted(model, tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"Ada sings\nB\xff sings\n")
    output = tmp_path / "tasks.json"
    assert run("select", model, tmp_path / "a.txt", "--number", 1, "--output", output) == 0
    said = capsys.readouterr().err
    assert "warning: 1 sentences could not be read and were left out; first: " in said
    assert "a.txt:2: expected utf-8, got byte 0xff" in said


def test_types_of_one_fold_alone_are_told_before_a_training(tmp_path, monkeypatch, capsys):
    def write(examples):
        path = tmp_path / "data.jsonl"
        lines = [
            {"text": f"{name} sings {number}", "entities": [[0, 3, label]]}
            for number, (name, label) in enumerate(examples)
        ]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return path

    monkeypatch.setattr("nercrf.label_command.work", lambda *a, **o: 75)  # a signal came
    words = ["--with_model", "--folds", 2, "--no_cuda", "--output_dir"]
    path = write([("Ada", "PER")] * 9 + [("Ole", "ODD")])
    assert run("check", path, *words, tmp_path / "one") == 75
    said = capsys.readouterr().err
    assert "warning: 1 of 10 sentences have types that stand in one fold alone (ODD)" in said
    path = write([("Ada", "PER"), ("Ole", "ODD")])
    assert run("check", path, *words, tmp_path / "two") == 2
    assert "2 of 2 sentences have types that stand in one fold alone" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()
    path = write([("Ada", "PER")] * 10)
    assert run("check", path, *words, tmp_path / "three") == 75
    assert "one fold alone" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "model", ""],
        ["predict", "", "a.txt"],
        ["predict", "model", "a.txt", "--output", ""],
        ["evaluate", "model", ""],
        ["select", "model", "a.txt", ""],
        ["check", ""],
        ["check", "", "--with_model"],
        ["convert", "", "a.jsonl"],
        ["convert", "a.txt", ""],
        ["train", "--data_dir", ""],
        ["train", "--data_dir", "a", "--output_dir="],
        ["score", "a.txt", "a.txt", "--json", ""],
        ["calibrate", "model", ""],
        ["benchmark", "model", ""],
        ["average", "", "--output_dir", "a"],
        ["merge", "model", ""],
    ],
)
def test_an_empty_word_is_not_the_current_folder(words, tmp_path, monkeypatch, capsys):
    """A variable of the shell that is not set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Ada sings\n")
    assert run(*words) == 2
    assert "expected a path, got an empty word; is a variable unset?" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_new_model_is_cut_as_its_data_whatever_model_stands_here(
    dev, model, tmp_path, monkeypatch
):
    """The current folder is that of an earlier run."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_bytes(dev.read_bytes())
    (tmp_path / "model").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    config = parse_verb("train", ["--data_dir", "data", "--output_dir", "new", "--no_cuda"])
    assert prepare_data(config)[0].by is None
    assert prepare_data(replace(config, model_name_or_path="model"))[0].by is not None


def test_a_loss_that_does_not_exist_is_not_printed(dev, model, tmp_path, capsys):
    words = ["evaluate", model, dev, "--no_cuda", "--output_dir", tmp_path / "out"]
    assert run(*words, "--type_map", "PER=PERSON") == 0
    printed = capsys.readouterr().out
    assert "test: 20 sentences\n" in printed
    assert "nan" not in printed


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
        "no data: give a labelled file, or a folder with dev or test, as DATA or with --dat" in said
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


def test_an_operating_point_that_nobody_fitted_names_the_command(dev, model, capsys):
    assert run("predict", model, dev, "--no_cuda", "--operating_point", "p90") == 2
    said = capsys.readouterr().err
    wanted = "nercrf calibrate MODEL DEV --precision 0.9 --operating_point p90"
    assert f"expected an operating point that was fitted, got 'p90'; fit it: {wanted}" in said
