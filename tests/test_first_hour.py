"""What a newcomer meets: one cache, one form of a figure, results that stand, and what comes next."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nercrf import cli
from nercrf.data.conll import write_columns
from nercrf.data.examples import Example
from nercrf.data.formats import FORMATS, read_examples, write_examples
from nercrf.labels import Span

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--no_cuda", "--max_steps", "2", "--logging_steps", "1", "--no_learning_curve"]
NAMES = ("train", "dev", "test")


def write_uncut(folder):
    """Column files whose words are cut at blanks alone, unlike raw text by default."""
    folder.mkdir()
    for number, split in enumerate(NAMES):
        sentences = [
            Example(
                str(i),
                ["Ada", "(Lovelace)", "met", f"x/y({number})", "ad-hoc/", "."],
                [Span("PER", 0, 2)],
            )
            for i in range(30)
        ]
        write_columns(folder / f"{split}.txt", sentences, "BIO")
    return folder


def cache_times(data):
    """When each file of the cache was written."""
    files = (data / ".nercrf_cache").glob("*.safetensors")
    return {path.name: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("flags", [[], ["--eval_max_seq_length", "64"]])
def test_an_evaluation_behind_a_training_takes_the_features_that_are_there(tmp_path, flags):
    data, out = write_uncut(tmp_path / "data"), tmp_path / "out"
    assert (
        cli.main(["train", "--data_dir", str(data), "--output_dir", str(out), *TINY, *flags]) == 0
    )
    config = json.loads((out / "model" / "config.json").read_text())
    assert config["split_by"] == "blanks"  # found in the file, and not what it is read by
    built = cache_times(data)
    assert len(built) == 4  # the summary and three splits
    assert cli.main(["evaluate", str(out), str(data), "--no_cuda"]) == 0
    assert cache_times(data) == built


def test_a_splitter_changes_only_formats_that_say_that_they_cut_text(tmp_path):
    """A cache is shared by all splitters where none cuts anything: the flag must not lie."""
    sentences = [Example("1", ["Ada", "met", "Bob"], [Span("PER", 0, 1)])]
    cut = set()
    for name, kind in FORMATS.items():
        path = tmp_path / f"{name}{kind.extensions[0]}"
        try:
            write_examples(sentences, path, name)
        except (ImportError, ValueError):  # a package that is not here
            continue
        read = [
            [each.tokens for each in read_examples(path, name, by=by)]
            for by in ("words", "characters")
        ]
        if read[0] != read[1]:
            cut.add(name)
    assert cut <= {name for name, kind in FORMATS.items() if kind.cuts_text}
    assert {"jsonl", "brat", "inline"} <= cut
    assert not FORMATS["columns"].cuts_text


def test_a_figure_has_four_decimals_wherever_a_log_names_it(tmp_path, caplog):
    data = write_uncut(tmp_path / "data")
    flags = ["--data_dir", str(data), "--output_dir", str(tmp_path / "out"), *TINY]
    with caplog.at_level(logging.INFO):
        assert cli.main(["train", *flags]) == 0
    lines = [record.getMessage() for record in caplog.records if "dev F1" in record.getMessage()]
    assert lines
    for line in lines:
        numbers = [word.strip("()") for word in line.split() if "." in word]
        assert [len(number) for number in numbers] == [6, 6], line


def run_in(folder, command):
    """What a process of its own printed; `command` is one for a shell, or the words of one."""
    return subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory):
    """A run on the English sample in a folder whose name a shell would take apart."""
    folder = tmp_path_factory.mktemp("hour") / "it's $HOME & [mine]"
    folder.mkdir()
    words = ["train", "--sample", "english", "--output_dir", "my run", "--no_cuda"]
    words += ["--max_steps", "30", "--eval_steps", "0", "--save_steps", "0"]
    finished = run_in(folder, [sys.executable, "-m", "nercrf.cli", *words])
    assert finished.returncode == 0, finished.stderr
    return folder, finished


def test_the_sample_is_called_a_toy_and_has_the_language_that_was_asked_for(sample_run):
    folder, finished = sample_run
    assert "This model is a toy" in finished.stdout
    assert "a toy" in (folder / "my run" / "README.md").read_text()
    assert (folder / "my run" / "sample" / "train.txt").read_text().isascii()
    assert cli.main(["train", "--sample", "english", "--data_dir", "data"]) == 2


def test_a_miss_is_among_the_sentences_that_are_shown(sample_run):
    lines = sample_run[1].stdout.splitlines()
    found = [number for number, line in enumerate(lines) if line.startswith("found: ")]
    assert found  # thirty updates do not make a perfect model
    for number in found:
        assert lines[number + 1].startswith(" gold: ")
        plain = [
            re.sub(r"\[([^\]]*)\]\([A-Z]+\)", r"\1", lines[n][7:]) for n in (number, number + 1)
        ]
        assert plain[0] == plain[1]
        assert lines[number][7:] != lines[number + 1][7:]


def test_every_command_that_a_run_names_works_as_it_stands(sample_run):
    folder, finished = sample_run
    tail = finished.stdout.split("What next?")[1]
    commands = [line.strip() for line in tail.splitlines() if line.startswith("    ")]
    assert len(commands) == 3
    readme = (folder / "my run" / "README.md").read_text()
    assert all(command in readme for command in commands)
    commands[2] += " --max_steps 2"
    outputs = []
    for command in commands:
        done = run_in(folder, command)
        assert done.returncode == 0, (command, done.stderr)
        outputs.append(done.stdout)
    assert json.loads(outputs[0])["text"] == "A sentence of your own."
    assert "sentences with an error in test" in outputs[1]
    assert (folder / "my run-2" / "model" / "model.safetensors").is_file()


def test_the_readme_of_a_run_names_what_is_there_and_its_python_runs(sample_run):
    folder = sample_run[0]
    readme = (folder / "my run" / "README.md").read_text()
    table = [line for line in readme.splitlines() if line.startswith("| ")][2:]
    named = {line.split(" | ")[0].strip("| ").replace("\\", "").rstrip("/") for line in table}
    there = {path.name for path in (folder / "my run").iterdir()} - {"README.md", "evaluations"}
    assert named - {"evaluations"} == there
    code = readme.split("```python\n")[1].split("```")[0]
    done = run_in(folder, [sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[")
    assert "%|" not in done.stderr  # no bar of transformers


def test_an_evaluation_leaves_the_figures_of_the_training_alone(sample_run, tmp_path):
    folder = sample_run[0] / "my run"
    before = (folder / "eval_results.json").read_bytes()
    other = write_uncut(tmp_path / "other")
    for flags in ([str(folder), str(folder / "sample")], [str(folder / "model"), str(other)]) * 2:
        assert cli.main(["evaluate", *flags, "--no_cuda", "--task_name", "ner"]) == 0
    assert (folder / "eval_results.json").read_bytes() == before
    assert not (folder / "model" / "evaluations").exists()
    names = {path.name for path in (folder / "evaluations").iterdir()}
    assert {"sample.json", "sample-2.json", "other.json", "other-2.json"} <= names
    known, unknown = (
        json.loads((folder / "evaluations" / name).read_text())
        for name in ("sample.json", "other.json")
    )
    split = known["results"]["model"]["test"]
    trained = json.loads(before)["model"]["test"]
    assert split == trained
    assert set(split["types"]) == {"LOC", "ORG", "PER", "PRODUCT"}
    assert sum(each["gold"] for each in split["types"].values()) == split["gold"]
    assert split["unseen_gold"] > 0
    assert "unseen_f1" not in unknown["results"]["model"]["test"]  # other training data
    assert unknown["data"]["path"] == str(other)
    assert unknown["data"]["fingerprint"] != known["data"]["fingerprint"]
    assert known["versions"]["nercrf"]
    assert known["date"].endswith("+00:00")


def test_a_training_without_dev_says_what_it_keeps(tmp_path, caplog):
    data = write_uncut(tmp_path / "data")
    (data / "dev.txt").unlink()
    flags = ["--data_dir", str(data), "--output_dir", str(tmp_path / "out"), *TINY]
    with caplog.at_level(logging.WARNING):
        assert cli.main(["train", *flags]) == 0
    assert sum("the last one is kept" in record.getMessage() for record in caplog.records) == 1


def test_a_readme_of_somebody_else_stays(tmp_path, caplog):
    data, out = write_uncut(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    assert cli.main(["train", "--data_dir", str(data), "--output_dir", str(out), *TINY]) == 0
    assert (out / "README.md").read_text() == "mine"


def test_errors_of_a_split_that_is_annotated_in_part(tmp_path, capsys):
    """What nobody annotated has no error, and does not shift the others."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    rows = [{"text": f"Ada met x{i}.", "entities": [[0, 3, "PER"]]} for i in range(12)]
    for split in ("train", "dev"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[0] = {"text": "Nobody annotated this."}
    rows[5] = {"text": "Nor this."}
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["train", "--data_dir", str(data), "--output_dir", str(out), *TINY]) == 0
    capsys.readouterr()
    command = ["evaluate", str(out), str(data), "--no_cuda", "--errors", "20"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "annotated this" not in printed
    assert "Nor this" not in printed
    gold = re.findall(r"gold: \[Ada\]\(PER\) met (x\d+)", printed)
    assert set(gold) <= {f"x{i}" for i in range(12) if i not in (0, 5)}
    assert re.search(r"\d+ of \d+ sentences with an error in test", printed)
