"""Nothing of the data acts on the terminal of who reads: control characters of types, tokens, ids and
file names leave as numbers, in every verb, on both streams.
"""

import json
import os
import re
import subprocess
import sys

import pytest
from training import ROOT, make_model

from nercrf.cli import main
from nercrf.data.formats import read_examples
from nercrf.model.card import model_card

ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
EVIL = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e\u2066\u2028"
FORGED = "\n2026-01-01 00:00:00 ERROR nercrf: forged"
NAME = "\x1b[31m\u202e\r\x9b"  # what a file may be called

pytestmark = pytest.mark.skipif(os.name == "nt", reason="such names are no names there")


def check_output(words, code, expected, out, err):
    """What a command has said, after a look for what would act."""
    output = out + err
    assert code == expected, output
    assert ACTING.findall(output) == [], output
    assert not re.search("^2026-01-01", output, re.MULTILINE), output
    return out, err


def run_process(*words):
    """A command in a process of its own, with its log."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}
    call = "import sys; from nercrf.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", call, *map(str, words)],
        env=environment,
        capture_output=True,
        timeout=400,
        check=False,
    )
    streams = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    return check_output(words, done.returncode, 0, *streams)


@pytest.fixture
def run(capsys):
    """A command in this process; its two streams."""

    def call(*words, code=0):
        capsys.readouterr()
        try:
            found = main([*map(str, words)])
        except SystemExit as leaving:
            found = leaving.code
        return check_output(words, found, code, *capsys.readouterr())

    return call


def records(count=6):
    """Sentences whose types, tokens and ids would act on a terminal."""
    for number in range(count):
        word = f"Ann{EVIL}"
        yield {
            "id": f"{number}{EVIL}{FORGED}",
            "text": f"{word} left \x1b[1mhome",
            "label": [[0, len(word), f"PER{EVIL}{FORGED}"], [len(word) + 1, len(word) + 5, "P"]],
            f"key{EVIL}": 1,
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set with a nasty name, whose content is nasty too."""
    folder = tmp_path_factory.mktemp("data") / f"set{NAME}"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        text = "".join(json.dumps(record) + "\n" for record in records())
        folder.joinpath(f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_check_and_convert(folder, tmp_path, run):
    found, _ = run("check", folder, "--all", code=1)
    assert r"PER\x1b[2J" in found
    assert r"holds U+001B, a control character" in found
    found, _ = run("check", folder, "--json", code=1)
    assert EVIL in json.dumps(json.loads(found), ensure_ascii=False) or json.loads(found)
    _, said = run("convert", folder / "train.jsonl", tmp_path / f"b{NAME}.jsonl", code=2)
    assert r"\x1b" in said
    run("convert", folder / "train.jsonl", tmp_path / f"b{NAME}.jsonl", "--on_bad", "warn")
    found, _ = run("convert", folder / "train.jsonl", "-", "--on_bad", "warn")
    written = tmp_path / "c.jsonl"
    written.write_text(found, encoding="utf-8")
    first = read_examples(written, on_bad="warn")[0]
    assert first.id == f"0{EVIL}{FORGED}"  # programs read what the file says
    assert first.spans[0].label == f"PER{EVIL}{FORGED}"


def test_what_is_not_there(tmp_path, run):
    run("check", tmp_path / f"no{NAME}.txt", code=2)
    run(f"verb{NAME}", code=2)
    run("check", f"--flag{NAME}", "x", code=2)
    run("cache", "ls", tmp_path / f"no{NAME}", code=1)
    run("train", "--data_dir", tmp_path / f"no{NAME}", "--output_dir", tmp_path / "o", code=2)
    bad = tmp_path / f"bad{NAME}.txt"
    bad.write_text(f"Ann B-PER\nleft {EVIL} O\nhome{EVIL} X{EVIL}\n", encoding="utf-8")
    run("check", bad, code=1)
    run("convert", bad, tmp_path / "b.jsonl", code=2)


def test_train_evaluate_and_predict(folder, tmp_path, run):
    out, small = tmp_path / f"run{NAME}", ["--on_bad", "warn"]
    words = ["--data_dir", folder, "--output_dir", out, *small]
    found, said = run_process("train", *words, "--num_train_epochs", "1", "--max_steps", "2")
    assert r"PER\x1b[2J" in found  # in the table of the evaluation
    assert r"set\x1b[31m\u202e\r\x9b" in said  # in the log
    card = next(out.rglob("README.md")).read_text(encoding="utf-8")
    assert ACTING.findall(card) == []
    run("evaluate", out, *words[:2], *small)
    found, _ = run(
        "predict",
        out,
        "--input",
        folder / "dev.jsonl",
        "--output",
        "-",
        "--input_format",
        "jsonl",
        *small,
    )
    lines = [json.loads(line) for line in found.splitlines()]
    assert len(lines) == 6
    assert EVIL in lines[0]["text"]


def test_a_type_is_no_markdown():
    config = make_model().config
    config.id2label = {0: "O", 1: "B-[x](http://y)*z*_a_\n# forged", 2: "I-A"}
    card = model_card(config)
    assert r"\[x\](http://y)\*z\*\_a\_\n\# forged" in card.replace("\\\\n", "\\n")
    assert not re.search("^# forged", card, re.MULTILINE)
