"""Files of any size: killed and gone on, shared out, answered as they come, in every form."""

import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from test_tagged_files import EveryWord
from training import CORPUS, TOKENIZER, make_model, run_script

from nercrf import cli, script
from nercrf.data.formats import read_examples
from nercrf.files import OWN_FILES
from nercrf.tagging import output, stream
from nercrf.tagging.inputs import PatientReader
from nercrf.tagging.output import tag_file
from nercrf.tagging.tagger import Tagger

TEXTS = [example.text for example in CORPUS.train]
# As in the tests of killed trainings: the fork of a clean server has imported everything.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["test_streams"])
assert script  # imported for the forks


def write_texts(path, count):
    """Lines of text; each eleventh cannot be read, each thirteenth is empty."""
    lines = []
    for number in range(1, count + 1):
        text = TEXTS[number % len(TEXTS)].encode()
        text = b"Malfr\xedd " + text if number % 11 == 0 else text
        lines.append(b"" if number % 13 == 0 else text)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def write_sentences(path, count):
    """The same in another format, as the name says: each eleventh cannot be read."""
    records, name = [], path.name
    for number in range(1, count + 1):
        words = list(CORPUS.train[number % len(TEXTS)].tokens)
        text, lost = " ".join(words), number % 11 == 0
        if name == "in.conll":
            words[0] = "Malfr\udced" if lost else words[0]
            records.append("".join(f"{word}\tO\n" for word in words) + "\n")
        elif name == "words.csv":
            words[0] = "Malfr\udced" if lost else words[0]
            records += [
                f'{number},"{word}",O\n' for word in (each.replace('"', "'") for each in words)
            ]
        elif name == "texts.csv":
            records.append(
                f"{number}\n" if lost else '{},"{}"\n'.format(number, text.replace('"', ""))
            )
        else:
            records.append(json.dumps({"id": number, "body" if lost else "text": text}))
    head = {"words.csv": "sentence,token,tag\n", "texts.csv": "id,text\n"}.get(name, "")
    whole = head + "".join(records)
    if name == "in.json":
        whole = f"[{', '.join(records)}]"
    elif name == "in.jsonl":
        whole = "\n".join(records)
    path.write_bytes(whole.encode("utf-8", "surrogateescape"))
    return path


def predict(model, *words):
    """The command, in this process."""
    return cli.main(["predict", str(model), *map(str, words), "--no_cuda"])


def predict_small(model, *words):
    """The command in pieces of a few sentences, in a child."""
    torch.set_num_threads(1)
    logging.disable()
    stream.PIECE = 8
    os._exit(predict(model, *words))


def start(*words):
    process = SERVER.Process(target=predict_small, args=words, daemon=True)
    process.start()
    return process


@pytest.fixture(scope="module")
def server():
    """The server, ready: what it needs to begin is in no prediction's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # this file is found
        first = SERVER.Process(target=os.getpid)
        first.start()
        first.join()


def kill_again_and_again(folder, model, trials, seed, write=write_texts, name="in.txt"):
    """Kill predictions at random moments until so many kills hit; how often one went on."""
    moments = random.Random(seed)
    source, whole = write(folder / name, 240), folder / "whole.jsonl"
    began = time.monotonic()
    process = start(model, source, "--output", whole)
    process.join()
    duration = time.monotonic() - began
    assert process.exitcode == 0
    killed = gone_on = round_ = 0
    while killed < trials:
        round_ += 1
        output = folder / f"found-{round_}.jsonl"
        part = folder / f"{output.name}.part"
        is_whole = False
        while (
            not is_whole
        ):  # a kill behind the last rename leaves a journal, which the next run ends
            gone_on += part.exists() and part.stat().st_size > 0
            process = start(model, source, "--output", output)
            if killed < trials and killed % 2:  # as soon as something new stands there
                before = part.stat().st_size if part.exists() else 0
                while process.exitcode is None and not (
                    part.exists() and part.stat().st_size > before
                ):
                    time.sleep(0.002)
                process.join(0)
            else:
                process.join(moments.uniform(0.02, 0.9) * duration if killed < trials else None)
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                killed += 1
            else:
                assert process.exitcode == 0
                is_whole = True
        assert output.read_bytes() == whole.read_bytes()
        rejects = folder / f"{output.name}.rejects"
        assert rejects.read_bytes() == (folder / "whole.jsonl.rejects").read_bytes()
        assert not list(folder.glob(f"{output.name}.[pj]*"))
    return gone_on


def test_a_killed_prediction_goes_on(server, model, tmp_path):
    """SIGKILL at 8 random moments: no line is lost, none is there twice."""
    assert kill_again_and_again(tmp_path, model, trials=8, seed=1)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines()
    assert len(lines) == 240
    rejects = [json.loads(x) for x in (tmp_path / "whole.jsonl.rejects").open()]
    assert [each["number"] for each in rejects] == [n for n in range(11, 241, 11) if n % 13]
    assert all("expected utf-8, got byte 0xed" in each["reason"] for each in rejects)


@pytest.mark.slow
def test_a_killed_prediction_goes_on_50_times(server, model, tmp_path):
    assert kill_again_and_again(tmp_path, model, trials=50, seed=2) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.conll", "texts.csv", "words.csv"])
def test_a_killed_prediction_goes_on_in_every_format(name, server, model, tmp_path):
    """10 random moments each; the whole holds every sentence once."""
    assert kill_again_and_again(tmp_path, model, 10, 3, write_sentences, name)
    found = [json.loads(line) for line in (tmp_path / "whole.jsonl").open(encoding="utf-8")]
    ids = [each["id"] for each in found]
    assert (len(found), len(set(ids))) == (240, 240)
    rejects = [json.loads(x) for x in (tmp_path / "whole.jsonl.rejects").open(encoding="utf-8")]
    assert [each["id"] for each in rejects] == [str(ids[n - 1]) for n in range(11, 241, 11)]


def interrupt(monkeypatch, model, pieces, *words, piece=8):
    """Run a prediction that fails when it has tagged so many pieces."""
    tag_work, made = stream.tag_work, []

    def fail(tagger, work):
        made.append(work)
        if len(made) > pieces:
            raise ValueError("enough")
        return tag_work(tagger, work)

    with monkeypatch.context() as patch:
        patch.setattr(stream, "PIECE", piece)
        patch.setattr(stream, "tag_work", fail)
        return predict(model, *words)


def test_another_model_or_input_does_not_go_on(monkeypatch, model, tmp_path, capsys):
    """Each is refused in a sentence whose remedy works."""
    source, output = write_texts(tmp_path / "in.txt", 40), tmp_path / "out.jsonl"
    assert interrupt(monkeypatch, model, 2, source, "--output", output) == 2
    assert "error: enough" in capsys.readouterr().err
    assert not output.exists()
    assert len((tmp_path / "out.jsonl.part").read_bytes().splitlines()) == 16
    other = tmp_path / "other"
    changed = make_model(0.0)
    with torch.no_grad():
        changed.crf.transitions[0, 0] += 1
    changed.save_pretrained(other)
    TOKENIZER.save_pretrained(other)
    monkeypatch.setattr(stream, "PIECE", 8)
    for words, message in [
        ((other, source), "begun with other settings (model "),
        ((model, source, "--by", "blanks"), "(by blanks instead of None)"),
        ((model, source, source), "begun with other settings (inputs "),
        ((model, source, "--output_format", "cluener"), "(output_format jsonl instead of cluener"),
    ]:
        assert predict(*words, "--output", output) == 2
        said = capsys.readouterr().err
        assert "--restart" in said
        if "--by" not in words:
            assert message in said
    source.write_bytes(source.read_bytes().replace(b"\n\n", b"\nsings\n", 1))
    assert predict(model, source, "--output", output) == 2
    assert "in.txt:9: the 8 sentences from here on are not those" in capsys.readouterr().err
    assert predict(model, source, "--output", output, "--restart") == 0
    assert len(output.read_bytes().splitlines()) == 40
    assert not list(tmp_path.glob("out.jsonl.[pj]*"))


def test_an_error_that_was_mended_goes_on(monkeypatch, model, tmp_path, capsys, caplog):
    """--on_bad error ends at the line; when it can be read, the run goes on from there."""
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    texts = [text.encode() for text in TEXTS[:20]]
    source.write_bytes(b"\n".join([*texts, b"Malfr\xedd", *texts]) + b"\n")
    monkeypatch.setattr(stream, "PIECE", 8)
    flags = ("--output", output, "--on_bad", "error")
    assert predict(model, source, *flags) == 2
    assert "in.txt:21: expected utf-8" in capsys.readouterr().err
    source.write_bytes(source.read_bytes().replace(b"\xed", b"i"))
    with caplog.at_level("INFO"):
        assert predict(model, source, *flags) == 0
    assert "goes on behind 16 sentences" in caplog.text
    found = [json.loads(line) for line in output.open(encoding="utf-8")]
    tagger = Tagger.from_pretrained(model, device="cpu")
    expected = tagger([each["text"] for each in found])
    assert [len(each["entities"]) for each in found] == [len(each) for each in expected]


@pytest.mark.slow
def test_processes_share_a_file(model, tmp_path, monkeypatch):
    """Two processes write what one does, also where they go on."""
    source = write_texts(tmp_path / "in.txt", 3000)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert predict(model, source, "--output", one) == 0
    flags = ["--do_predict", "--model", model, "--input", source, "--no_cuda", "--output", two]
    run_script(*flags, processes=2)
    assert two.read_bytes() == one.read_bytes()
    rejects = (tmp_path / "one.jsonl.rejects").read_bytes()
    assert (tmp_path / "two.jsonl.rejects").read_bytes() == rejects
    two.unlink()
    assert interrupt(monkeypatch, model, 1, source, "--output", two, piece=1024) == 2
    assert (tmp_path / "two.jsonl.part").stat().st_size > 0
    run_script(*flags, processes=2)
    assert two.read_bytes() == one.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["in.txt", "one.jsonl", "one.jsonl.rejects", "two.jsonl", "two.jsonl.rejects"]
    )


NASTY = "Aab 王芳é.,<&>\"'’-\t \u200b\u200f\u0627\u3000\u00a0\u0301\u2764\U0001f468\u202e\x1b"


def proposals_to_annotations(path):
    """A project in which every prediction of Label Studio's was accepted."""
    tasks = json.loads(path.read_text(encoding="utf-8"))
    for task in tasks:
        task["annotations"] = task.pop("predictions")
    path.write_text(json.dumps(tasks), encoding="utf-8")


@pytest.mark.parametrize("name", ["doccano", "label_studio", "brat"])
def test_annotators_get_the_very_entities(name, tmp_path):
    """Read back by our own readers, over texts of odd characters; what cannot be read is left out."""
    draw = random.Random(5)
    texts = ["".join(draw.choices(NASTY, k=draw.randrange(1, 25))) for _ in range(60)]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.txt"
    lines = [json.dumps({"id": n, "text": text}) for n, text in enumerate(texts)]
    source.write_text("\n".join([*lines, '{"te']), encoding="utf-8")
    tagged = tag_file(EveryWord("words"), source, target, name)
    filled = [each for each in tagged if each.spans]
    assert len(filled) > 40
    if name == "label_studio":
        proposals_to_annotations(target)
    back = read_examples(target, name, on_bad="warn", by="words")
    back = [each for each in back if each.spans]
    assert [each.text for each in back] == [each.example.text for each in filled]
    for example, sentence in zip(back, filled, strict=True):
        places = [(each.label, each.start, each.end) for each in sentence.entities]
        found = [
            (span.label, example.offsets[span.start][0], example.offsets[span.end - 1][1])
            for span in example.spans
        ]
        assert found == places


def test_a_page_holds_every_text_and_nothing_that_acts(tmp_path):
    """Parsed again, the text of each paragraph is the text that was given."""
    page = HTMLText()
    source, target = tmp_path / "in.jsonl", tmp_path / "out.html"
    texts = [
        "<script>alert(1)</script> & Ada",
        "قال محمد في القاهرة",
        "Ada\u202egnp",
        'a "b" <mark>',
    ]
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    tag_file(EveryWord("words"), source, target, "html")
    page.feed(target.read_text(encoding="utf-8"))
    assert page.texts == [text.replace("\u202e", "\\u202e") for text in texts]
    assert set(page.tags) == {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "p",
        "mark",
        "small",
    }
    assert page.directions == ["auto"] * len(texts)


class HTMLText(HTMLParser):
    """The texts of the paragraphs without the types in them, and all tags."""

    def __init__(self):
        super().__init__()
        self.texts, self.tags, self.directions, self.hidden = [], [], [], True

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "p":
            self.texts.append("")
            self.directions.append(dict(attributes)["dir"])
        self.hidden = tag not in ("p", "mark")

    def handle_endtag(self, tag):
        self.hidden = tag not in ("mark", "small")

    def handle_data(self, data):
        if not self.hidden:
            self.texts[-1] += data


def test_a_terminal_is_safe_and_colours_are_a_choice(tmp_path, monkeypatch, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"text": "Ada \x1b[2J\u202e"}), encoding="utf-8")
    for terminal, choice, colored in [(False, "", 0), (True, "", 1), (True, "1", 0)]:
        monkeypatch.setenv("NO_COLOR", choice)
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_one=terminal: is_one)
        tag_file(EveryWord("words"), source, "-", "terminal")
        said = capsys.readouterr().out
        assert "\\x1b" in said
        assert "\\u202e" in said
        assert ("\x1b[" in said) == colored
        assert "\x1b[2J" not in said


@pytest.mark.parametrize("name", ["label_studio", "brat", "html"])
def test_every_format_goes_on(name, monkeypatch, model, tmp_path):
    """What is made in the end of lines is made of all of them."""
    source = write_texts(tmp_path / "in.txt", 40)
    whole, broken = tmp_path / "whole.txt", tmp_path / "broken.txt"
    flags = ("--output_format", name, "--output")
    assert interrupt(monkeypatch, model, 99, source, *flags, whole) == 0
    assert interrupt(monkeypatch, model, 2, source, *flags, broken) == 2
    assert interrupt(monkeypatch, model, 99, source, *flags, broken) == 0
    assert broken.read_bytes() == whole.read_bytes()
    if name == "brat":
        ends = [path.with_suffix(".ann").read_bytes() for path in (whole, broken)]
        assert ends[0] == ends[1] != b""


def test_a_docbin_needs_spacy(monkeypatch, model, tmp_path, capsys):
    monkeypatch.setattr(output, "find_spec", lambda name: None)
    source = write_texts(tmp_path / "in.txt", 3)
    flags = ("--output", tmp_path / "out.spacy", "--output_format", "docbin")
    assert predict(model, source, *flags) == 2
    assert "pip install spacy" in capsys.readouterr().err


def test_a_line_waits_for_others_only_so_long():
    """Two lines that come close together are one batch, the third is another."""
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        slow = [(0.0, b"a\n"), (0.05, b"b\n"), (1.2, b"c\n")]
        timers = [threading.Timer(after, os.write, (writing, line)) for after, line in slow]
        for timer in timers:
            timer.start()
        reader = PatientReader(pipe, 0.5)
        assert [reader.read1(99), reader.read1(99)] == [b"a\nb\n", b"c\n"]
        os.close(writing)
        assert reader.read1(99) == b""


def test_files_and_folders_are_tagged_into_one(model, tmp_path):
    """Each record says which file it is of; offsets point into the given text."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.jsonl").write_text(json.dumps({"text": TEXTS[1]}), encoding="utf-8")
    (tmp_path / "in" / "a.txt").write_text(TEXTS[2], encoding="utf-8")
    (tmp_path / "first.txt").write_text(TEXTS[0], encoding="utf-8")
    target = tmp_path / "in" / "out.jsonl"
    for _ in range(2):  # the result in the folder is no input
        words = (tmp_path / "first.txt", tmp_path / "in", "--output", target)
        assert predict(model, *words) == 0
        records = [json.loads(line) for line in target.open(encoding="utf-8")]
        assert [each["text"] for each in records] == [TEXTS[0], TEXTS[2], TEXTS[1]]
        assert [each["source"] for each in records] == [
            str(tmp_path / name) for name in ("first.txt", "in/a.txt", "in/b.jsonl")
        ]
    for record in records:
        for each in record["entities"]:
            assert record["text"][each["start"] : each["end"]] == each["text"]
            assert 0 <= each["probability"] <= 1


@pytest.mark.parametrize("output_format", ["jsonl", "brat", "columns"])
def test_each_file_gets_one_of_its_own_in_a_folder(output_format, model, tmp_path, monkeypatch):
    """What each holds is what the file alone gives; a run that was killed at the end goes on."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    inputs = {"in/a.txt": TEXTS[:3], "in/deep/b.txt": TEXTS[3:5], "c.txt": TEXTS[5:6]}
    suffix = {"jsonl": "jsonl", "brat": "txt", "columns": "tsv"}[output_format]
    for name, texts in inputs.items():
        (tmp_path / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    words = ("--output_format", output_format, "--output")
    target = tmp_path / "in" / "out"  # within what is read: it is no input
    arguments = (tmp_path / "in", tmp_path / "c.txt", *words, f"{target}/")
    with monkeypatch.context() as patch:
        patch.setattr(stream.FileTagging, "finish", None)
        assert predict(model, *arguments) != 0
    assert len(list(target.rglob("*.journal"))) == 3
    with monkeypatch.context() as patch:  # nothing is tagged twice
        patch.setattr(stream, "tag_work", None)
        assert predict(model, *arguments) == 0
    for _ in range(2):
        made = {"a": "in/a.txt", "deep/b": "in/deep/b.txt", "c": "c.txt"}
        assert {
            str(path.relative_to(target).with_suffix(""))
            for path in target.rglob("*")
            if path.is_file() and path.name != OWN_FILES  # the list of what is ours
        } == set(made)
        for name, source in made.items():
            alone = tmp_path / f"alone-{name[-1]}{len(list(tmp_path.iterdir()))}.txt"
            assert predict(model, tmp_path / source, *words, alone) == 0
            assert Path(target, f"{name}.{suffix}").read_bytes() == alone.read_bytes()
        assert predict(model, *arguments) == 0


def test_files_that_would_become_one_are_refused(model, tmp_path, capsys):
    for name in ("a.txt", "a.md"):
        (tmp_path / name).write_text(TEXTS[0], encoding="utf-8")
    assert predict(model, tmp_path, "--output", tmp_path / "out/") == 0  # a file, as before
    os.remove(tmp_path / "out")
    assert predict(model, tmp_path, "--output", f"{tmp_path}/out/") != 0
    assert "would both become" in capsys.readouterr().err
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xfd")
    os.remove(tmp_path / "a.md")
    assert predict(model, tmp_path, "--output", f"{tmp_path}/out/") != 0
    (tmp_path / "b.txt").write_text(TEXTS[1], encoding="utf-8")  # mended: it goes on
    assert predict(model, tmp_path, "--output", f"{tmp_path}/out/") == 0
    assert sorted(each.name for each in (tmp_path / "out").glob("*.jsonl")) == [
        "a.jsonl",
        "b.jsonl",
    ]
