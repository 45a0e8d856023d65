"""Where a newcomer stumbles on the command line: it works, or one sentence says what does."""

import json
from typing import get_args

import pytest
from training import CORPUS

from nercrf import cli
from nercrf.data.formats import FORMATS, write_examples
from nercrf.data.read_config import ReadFormat, WriteFormat


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
