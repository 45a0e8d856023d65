"""Wrong labels: folds, a planted error that is found, a run that was killed, files that come back."""

import json
import random
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from training import CORPUS, run

from nercrf.cli import main
from nercrf.data.examples import Example, document_of
from nercrf.data.formats import read_examples, write_examples
from nercrf.data.sample import sample_corpus
from nercrf.evaluation.label_errors import deal_folds
from nercrf.files import write_bytes
from nercrf.labels import Span

SMALL = ["--no_cuda", "--save_steps", "0", "--no_learning_curve", "--logging_steps", "1000"]


def documents(count, seed=0):
    "Sentences of documents of different lengths."
    draw = random.Random(seed)
    return [
        Example(
            f"{number}-{place}",
            [f"w{number}", f"{place}"],
            [],
            f"a.txt:{number}",
            document=f"d{number}",
        )
        for number in range(count)
        for place in range(draw.randint(1, 6))
    ]


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_no_document_is_in_two_folds_and_folds_are_of_about_one_size(folds):
    examples = documents(40)
    dealt = deal_folds(examples, folds)
    assert sorted(row for held in dealt for row in held) == list(range(len(examples)))
    held = [{document_of(examples[row]) for row in rows} for rows in dealt]
    assert sum(map(len, held)) == 40
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 6
    for rows in dealt:  # sentences of a document stay in their order
        same = [
            (a, b)
            for a, b in pairwise(rows)
            if document_of(examples[a]) == document_of(examples[b])
        ]
        assert all(a < b for a, b in same)


def test_folds_do_not_depend_on_the_order_of_a_file():
    examples = documents(30)
    groups = {}
    for example in examples:
        groups.setdefault(document_of(example), []).append(example)
    order = list(groups)
    random.Random(1).shuffle(order)
    shuffled = [example for name in order for example in groups[name]]
    first, second = (
        [[x[row].id for row in rows] for rows in deal_folds(x, 4)] for x in (examples, shuffled)
    )
    assert first == second


def planted(folder):
    "A file of the sample in which a full stop is an entity."
    examples = sample_corpus(sizes=(120, 10, 10), language="english").train
    row = next(row for row, x in enumerate(examples) if x.tokens[-1] == "." and x.spans)
    last = len(examples[row].tokens)
    stop = Span(examples[row].spans[0].label, last - 1, last)
    wrong = examples[row] = replace(examples[row], spans=[*examples[row].spans, stop])
    write_examples(examples, folder / "data.jsonl", "jsonl")
    return wrong


@pytest.mark.slow  # trains folds; the chapter of the command trains some, too
def test_a_planted_error_is_found_and_a_killed_command_goes_on(tmp_path, capsys, monkeypatch):
    """The second fold's training is broken off; the same command then says what a command that
    nobody disturbed says, and trains only what was missing.
    """
    from nercrf import label_command

    monkeypatch.chdir(tmp_path)
    wrong = planted(tmp_path)
    words = ["check", "data.jsonl", "--with_model", "--folds", "2", "--json", "--max_steps", "40"]
    words += [*SMALL, "--output_dir"]
    assert main([*words, "whole"]) == 0
    whole = capsys.readouterr().out
    found = json.loads(whole)
    places = [each["doubts"][0]["given"] for each in found[:20] if each["doubts"]]
    assert any(given[0]["text"] == "." for given in places if given)
    assert wrong.text in [each["text"] for each in found[:20]]

    trained, whole_work = [], label_command.work

    def broken_off(args, **options):
        trained.append(Path(args.output_dir).name)
        return 75 if len(trained) == 2 else whole_work(args, **options)

    monkeypatch.setattr(label_command, "work", broken_off)
    assert main([*words, "parts"]) == 75
    capsys.readouterr()
    assert main([*words, "parts"]) == 0
    assert capsys.readouterr().out == whole
    assert trained == ["fold-1", "fold-2", "fold-2"]
    kept = Path("parts", "fold-1.json").read_bytes()
    assert kept == Path("whole", "fold-1.json").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--with_model", "data.jsonl"], "expected PATH, got none"),
        (["data.jsonl", "--with_model", "--folds", "1"], "expected at least 2"),
        (["data.jsonl", "--with_model", "--folds", "0"], "--folds"),
        (["data.jsonl", "--with_model", "--folds", "9"], "give fewer --folds"),
        (["data.jsonl", "--with_model", "--context", "1"], "do not tell documents"),
        (["data.jsonl", "--with_model", "nowhere"], "nowhere"),
        (["nowhere.jsonl", "--with_model"], "nowhere.jsonl"),
        (["bare.jsonl", "--with_model"], "got none with an entity"),
        (["data.jsonl", "--with_model", "--output_format", "brat"], "--output_format"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_trained(
    tmp_path, monkeypatch, capsys, words, says
):
    monkeypatch.chdir(tmp_path)
    span = '{"start": 0, "end": 3, "label": "PER"}'
    lines = [f'{{"text": "Ada met Max {number}", "spans": [{span}]}}\n' for number in range(3)]
    write_bytes("data.jsonl", "".join(lines).encode())
    write_bytes("bare.jsonl", b'{"text": "Ada"}\n')
    assert run("check", *words) == 2
    assert says in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_the_plain_check_needs_no_torch(tmp_path):
    import subprocess
    import sys

    write_bytes(tmp_path / "a.txt", b"Ada B-PER\nmet O\n")
    code = (
        "import sys\nfrom nercrf.cli import main\n"
        f"main(['check', {str(tmp_path / 'a.txt')!r}])\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("kind", ["label_studio", "doccano", "jsonl"])
def test_texts_of_every_script_come_back_from_a_file_to_correct(tmp_path, kind):
    from nercrf.evaluation.label_errors import Judgement
    from nercrf.tagging.review import Review, write_reviews

    texts = ["他在北京。", "זה בתל אביב.", "e\u0301cole \U0001f600 A", 'a "b" <c> \\ d']
    examples = [
        Example(
            str(number),
            list(text.replace(" ", "")),
            [Span("X", 0, 2)],
            f"a:{number}",
            "",
            "".join(text.split()),
        )
        for number, text in enumerate(texts)
    ]
    reviews = [Review(each, Judgement(-1.0, [], [], [0.5])) for each in examples]
    write_reviews(tmp_path / "tasks.json", reviews, kind)
    again = read_examples(tmp_path / "tasks.json", kind, by="characters", on_bad="warn")
    assert [x.text for x in again] == [x.text for x in examples]
    for x, y in zip(again, examples, strict=True):
        assert next(x.surface(span) for span in x.spans).startswith(y.text[:1])


@pytest.mark.parametrize("given", ["train.conll", "."])
def test_what_is_judged_is_not_replaced(tmp_path, capsys, monkeypatch, given):
    """Neither a file nor one of a folder, and before anything is trained."""
    monkeypatch.chdir(tmp_path)
    text = "in O\nAsh B-LOC\n\nLake B-LOC\nAsh I-LOC\n"
    Path("train.conll").write_text(text)
    assert main(["check", given, "--with_model", "--output", "train.conll"]) == 2
    assert "is read: choose another file" in capsys.readouterr().err
    assert Path("train.conll").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["train.conll"]


def test_scores_in_json_are_those_that_are_printed(model, tmp_path, capsys):
    write_examples(CORPUS.dev, tmp_path / "dev.jsonl", "jsonl")
    words = ["check", tmp_path / "dev.jsonl", "--with_model", model, "--no_cuda", "--show", 99]
    tasks = tmp_path / "tasks.json"
    assert main([*map(str, words), "--output", str(tasks)]) == 0
    said = capsys.readouterr().out
    printed = re.findall(r"^\d+\. (.*) \(score (-?[\d.]+)\)$", said, re.MULTILINE)
    assert main([*map(str, words), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    suspicious = [each for each in records if each["log_ratio"] < 0]
    assert printed == [(each["source"], f"{each['score']:.2f}") for each in suspicious]
    assert len(printed) > 3
    written = [each["data"]["score"] for each in json.loads(tasks.read_text())]
    assert written == [round(each["score"], 4) for each in records[: len(written)]]
    chances = re.findall(r"; probability ([\d.]+)$", said, re.MULTILINE)
    doubts = [doubt for each in suspicious for doubt in each["doubts"]]
    assert chances == [f"{each['probability']:.4f}" for each in doubts]


def test_a_training_of_a_fold_says_nothing_of_what_comes_next(tmp_path, monkeypatch, capsys):
    """It is a step of the command, which goes on; a training by itself says it."""
    from nercrf import label_command

    monkeypatch.chdir(tmp_path)
    planted(tmp_path)
    said = []
    words = [*SMALL, "--max_steps", "1"]
    whole = label_command.work

    def work(*given, **options):
        whole(*given, **options)
        said.append(capsys.readouterr())
        return 75  # stop behind the first fold

    monkeypatch.setattr(label_command, "work", work)
    assert main(["check", "data.jsonl", "--with_model", "--folds", "2", *words]) == 75
    (fold,) = said
    assert fold.out == ""
    assert "fold-1 of 2" in fold.err
    assert "What next?" not in fold.err
