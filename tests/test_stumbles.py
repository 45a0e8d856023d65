"""Where a newcomer stumbles on the command line: it works, or one sentence says what does."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from training import CORPUS, run

from nercrf.card_facts import _recipe
from nercrf.data.formats import FORMATS, read_examples, write_examples
from nercrf.data.read_config import ReadFormat, WriteFormat
from nercrf.flags import ScriptConfig, parse_verb
from nercrf.opening import prepare_data
from nercrf.tagging.tagger import Tagger


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


def test_an_operating_point_that_nobody_fitted_names_the_command(dev, model, capsys):
    assert run("predict", model, dev, "--no_cuda", "--operating_point", "p90") == 2
    said = capsys.readouterr().err
    wanted = "nercrf calibrate MODEL DEV --precision 0.9 --operating_point p90"
    assert f"expected an operating point that was fitted, got 'p90'; fit it: {wanted}" in said


def folder_of(model, tmp_path):
    """A copy of a tagger's folder that may be changed."""
    folder = tmp_path / "tagger"
    shutil.copytree(model, folder)
    return folder


@pytest.fixture
def half(model, tmp_path):
    """Sentences of which an untrained tagger is right in some."""
    tagger = Tagger.from_pretrained(model, decoding="threshold", threshold=0.0)
    own = tagger.tag_examples(CORPUS.dev[:14])
    right = [replace(x, spans=spans) for x, spans in zip(CORPUS.dev, own, strict=False)]
    write_examples([*right, *CORPUS.dev[14:]], tmp_path / "half.jsonl", "jsonl")
    return tmp_path / "half.jsonl"


def kept_by(folder):
    return json.loads((folder / "config.json").read_text())


def test_what_was_fitted_to_other_probabilities_goes_with_a_line(half, model, tmp_path, capsys):
    folder = folder_of(model, tmp_path)
    some = tmp_path / "some.jsonl"
    write_examples(CORPUS.dev[:12], some, "jsonl")
    words = ["--recall", 0.001, "--coverage", 0.5]
    assert run("calibrate", folder, half, *words) == 0
    added = "temperature added, thresholds added, floors of coverages added"
    assert capsys.readouterr().out.endswith(f": {added}\n")
    first = kept_by(folder)
    point = ["--recall", 0.001, "--operating_point", "wide"]
    assert run("calibrate", folder, half, *point) == 0  # the same sentences, the same temperature
    kept = "temperature kept, thresholds kept, floors of coverages kept"
    assert capsys.readouterr().out.endswith(f": {kept}, operating point wide added\n")
    assert kept_by(folder) == first
    assert "operating points (`--operating_point`): wide" in (folder / "README.md").read_text()
    assert run("calibrate", folder, some) == 0
    gone = "temperature replaced, thresholds removed, floors of coverages removed"
    said = capsys.readouterr().out
    assert f": {gone}, operating point wide kept; the removed ones belong to other " in said
    last = kept_by(folder)
    assert (last["thresholds"], last["conformal"]) == (None, None)
    card = (folder / "README.md").read_text()
    assert f"temperature of {last['probability_temperature']:.4f}, fitted on" in card
    assert "the model's own" not in card
    assert "thresholds (`" not in card
    (folder / "README.md").write_text("mine\n")  # a card that somebody has written
    assert run("calibrate", folder, half) == 0
    assert (folder / "README.md").read_text() == "mine\n"
    (folder / "README.md").unlink()
    assert run("calibrate", folder, some) == 0
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("by_type", [[], ["--by_type"]])
def test_thresholds_have_a_row_of_all_types(by_type, half, model, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    words = ["--measure_only", "--recall", 0.001, "--json", figures, *by_type]
    assert run("calibrate", model, half, *words) == 0
    (row,) = (
        line.split()
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("all ") and "expect" not in line and "too few" not in line
    )
    told = json.loads(figures.read_text())
    types = told["thresholds"].values()
    kept = sum(each["kept"] for each in types)
    right = sum(each["kept"] * each["precision"] for each in types)
    gold = sum(len(set(each.spans)) for each in read_examples(half))
    ratios = [f"{right / kept:.4f}", f"{right / gold:.4f}"]
    assert row[2:] == [*ratios, str(kept)]
    assert (row[1] == "-") == (len({each["value"] for each in types}) > 1)
    assert told["total"]["kept"] == kept


def test_a_coverage_names_what_uses_it(half, model, tmp_path, capsys):
    folder = folder_of(model, tmp_path)
    assert run("calibrate", folder, half, "--coverage", 0.5) == 0
    said = capsys.readouterr().out
    assert "nercrf predict MODEL FILE --coverage 0.5, or " in said
    assert "Tagger.from_pretrained(MODEL, coverage=0.5).tagged(texts)" in said
    assert "the best labeling in any case" in said
    texts = [example.text for example in CORPUS.dev[:3]]
    found = Tagger.from_pretrained(folder, coverage=0.5).tagged(texts)
    assert all("candidates" in each.to_dict() for each in found)
    out = tmp_path / "found.jsonl"
    assert run("predict", folder, half, "--no_cuda", "--coverage", 0.5, "--output", out) == 0
    assert "candidates" in json.loads(out.read_text().splitlines()[0])


def test_whole_numbers_of_a_recipe_have_no_point(tmp_path):
    (tmp_path / "training_config.json").write_text('{"max_steps": 22.0, "learning_rate": 0.5}')
    recipe = _recipe(ScriptConfig(data_dir="data", output_dir="out"), tmp_path)
    assert (str(recipe["updates"]), recipe["learning rate"]) == ("22", 0.5)
