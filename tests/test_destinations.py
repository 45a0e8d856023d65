"""Where a command writes is asked before it works, and nothing of others is touched there."""

import json
import os
import shutil
import stat

import pytest
from training import CORPUS

from nercrf import cli
from nercrf.data.formats import write_examples
from nercrf.files import verify_folder, write_folder
from nercrf.tagging import stream
from nercrf.tagging.journal import Journal, Piece

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def gold(tmp_path):
    write_examples(CORPUS.dev, tmp_path / "gold.txt", "columns")
    write_examples(CORPUS.dev, tmp_path / "found.txt", "columns")
    return tmp_path / "gold.txt"


def run(*words):
    return cli.main(list(map(str, words)))


@pytest.mark.parametrize("verb", ["score", "compare", "calibrate"])
@pytest.mark.parametrize("kind", ["folder", "below a file", "gold", "link to gold", "other link"])
def test_figures_have_a_place_before_they_are_computed(
    verb, kind, gold, model, tmp_path, monkeypatch, capsys
):
    found = tmp_path / "found.txt"
    words = {
        "score": ["score", gold, found],
        "compare": ["compare", gold, found, found],
        "calibrate": ["calibrate", model, gold, "--measure_only"],
    }[verb]
    (tmp_path / "link").symlink_to(gold)
    (tmp_path / "away").symlink_to(tmp_path / "found.txt" / "nothing")
    place = {
        "folder": tmp_path,
        "below a file": found / "figures.json",
        "gold": gold,
        "link to gold": tmp_path / "link",
        "other link": tmp_path / "away",
    }[kind]
    before = gold.read_bytes()
    for name in (
        "nercrf.score_commands.align_files",
        "nercrf.tagging.tagger.Tagger.from_pretrained",
    ):
        monkeypatch.setattr(name, lambda *a, **o: pytest.fail("it worked before it asked"))
    assert run(*words, "--json", place) == 2
    said = capsys.readouterr().err
    assert "--json" in said or "give another name" in said
    assert gold.read_bytes() == before


CONFIGS = ["link", "dangling link", "pipe", "listed link", "read-only", "no folder", "trained"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_calibration_that_could_not_be_kept_is_told_before_the_work(
    kind, gold, model, tmp_path, monkeypatch, capsys
):
    """A hub's cache holds links to files that other models share."""
    folder, outside = tmp_path / "run" / "model", tmp_path / "blob"
    if kind in ("listed link", "trained"):
        with write_folder(folder) as temporary:
            shutil.copytree(model, temporary, dirs_exist_ok=True)
    else:
        shutil.copytree(model, folder)
    config, told = folder / "config.json", "config.json"
    shutil.copy(config, outside)
    if kind in ("link", "listed link"):
        config.unlink()
        config.symlink_to(outside)
    elif kind == "read-only":
        access = os.access
        monkeypatch.setattr(
            os, "access", lambda path, mode: access(path, mode) and str(path) != str(folder)
        )
        told = "may not be written"
    elif kind == "trained":
        monkeypatch.setattr("nercrf.calibrate_command.holder_of", lambda folder: "process 17")
        told = "belongs to a training under way (process 17)"
    elif kind in ("dangling link", "pipe"):
        config.unlink()
        config.symlink_to(tmp_path / "nothing") if kind != "pipe" else os.mkfifo(config)
    elif kind == "no folder":
        shutil.rmtree(folder)
        folder.write_text("a poem")
        told = "run"
    before = outside.read_bytes()
    monkeypatch.setattr(
        "nercrf.tagging.tagger.Tagger.from_pretrained",
        lambda *a, **o: pytest.fail("it worked before it asked"),
    )
    for name in ("run", "run/model"):
        assert run("calibrate", tmp_path / name, gold) == 2
        assert told in capsys.readouterr().err
    assert outside.read_bytes() == before
    assert os.path.lexists(config) or kind == "no folder"


def test_a_calibration_of_a_folder_by_a_link_keeps_its_manifest(gold, model, tmp_path):
    folder = tmp_path / "run" / "model"
    with write_folder(folder) as temporary:
        shutil.copytree(model, temporary, dirs_exist_ok=True)
    (tmp_path / "link").symlink_to(folder)
    assert run("calibrate", tmp_path / "link", gold) == 0
    assert verify_folder(folder) == []
    assert json.loads((folder / "config.json").read_text())["probability_temperature"] != 1
    assert (tmp_path / "link").is_symlink()
    (folder / "thesis.tex").write_text("mine")
    assert run("calibrate", tmp_path / "run", gold) == 0
    assert (folder / "thesis.tex").read_text() == "mine"
    assert run("calibrate", tmp_path / "link", gold, "--measure_only") == 0


@pytest.mark.parametrize("name", ["jsonl", "columns", "html"])
def test_a_prediction_never_replaces_its_input(name, model, tmp_path, capsys):
    source = tmp_path / "in.txt"
    source.write_text("Ada sings\n")
    (tmp_path / "link.txt").symlink_to(source)
    os.link(source, tmp_path / "same.txt")
    for output in ("in.txt", "link.txt", "same.txt"):
        words = ["predict", model, source, "--output", tmp_path / output]
        assert run(*words, "--output_format", name, "--no_cuda") == 2
        assert "is read: choose another" in capsys.readouterr().err
    assert source.read_text() == "Ada sings\n"
    assert len(list(tmp_path.iterdir())) == 3


def test_annotations_beside_a_text_are_not_replaced(model, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("Ada sings\n")
    words = ["predict", model, tmp_path / "in.txt", "--output_format", "brat", "--no_cuda"]
    assert run(*words, "--output", tmp_path / "in.ann") == 2  # would write in.txt
    (tmp_path / "out.ann").write_text("T1\tPER 0 3\tAda\n")
    assert run(*words, "--output", tmp_path / "out.txt") == 2
    assert "out.ann stands beside" in capsys.readouterr().err
    assert (tmp_path / "out.ann").read_text() == "T1\tPER 0 3\tAda\n"
    assert run(*words, "--output", tmp_path / "new.txt") == 0
    assert (tmp_path / "new.txt").read_text() == "Ada sings\n"


def plant(kind, path):
    """Something of somebody else."""
    if kind == "file":
        path.write_text("a thesis\n")
    elif kind == "link":
        (path.parent / "thesis.tex").write_text("a thesis\n")
        path.symlink_to(path.parent / "thesis.tex")
    elif kind == "dangling link":
        path.symlink_to(path.parent / "elsewhere")
    elif kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("a thesis\n")
    else:
        os.mkfifo(path)


def state(folder):
    """Everything in a folder, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = path.lstat().st_mode
        regular = stat.S_ISREG(kind)
        found[path.name] = os.readlink(path) if path.is_symlink() else regular and path.read_bytes()
    return found


KINDS = ["file", "link", "dangling link", "folder", "fifo"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "ending", ["part", "rejects.part", "rejects", "journal", "journal-3", "journal.lock"]
)
def test_names_beside_an_output_may_be_taken(kind, ending, model, tmp_path, capsys):
    (tmp_path / "in.txt").write_bytes(b"Ada sings\nMalfr\xedd sings\n")
    plant(kind, tmp_path / f"out.jsonl.{ending}")
    before = state(tmp_path)
    for more in ([], ["--restart"]):
        words = ["predict", model, tmp_path / "in.txt", "--output", tmp_path / "out.jsonl"]
        assert run(*words, "--no_cuda", *more) == 2
        said = capsys.readouterr().err
        assert f"out.jsonl.{ending}" in said, said
        assert "move it away" in said, said
    assert state(tmp_path) == before


HEADER = '{"format": "nercrf journal 1", "settings": %s}\n'
BROKEN = {
    "settings missing": '{"format": "nercrf journal 1"}\n',
    "settings a list": HEADER % "[1]",
    "deep": "[" * 100_000 + "\n",
    "not text": "\x00\x00\n",
    "empty": "",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_journal_is_one_sentence(name, model, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("Ada sings\n")
    (tmp_path / "out.jsonl.journal").write_text(BROKEN[name])
    words = ["predict", model, tmp_path / "in.txt", "--output", tmp_path / "out.jsonl", "--no_cuda"]
    code = run(*words)
    said = capsys.readouterr().err
    if name == "empty":  # killed before its first line
        assert code == 0
    else:
        assert code == 2
        assert "out.jsonl.journal" in said
        assert "--restart" in said or "move it away" in said


LINES = {
    "too few": "[0, 1]",
    "too many": "[0, 8, 8, 0, 'd', 1, 0, 1]",
    "words": '["0", "8", "8", "0", "d", "1", "0"]',
    "negative": '[0, 8, 8, 0, "d", -900, 0]',
    "fractions": '[0, 8, 8, 0, "d", 1.5, 0]',
    "huge": '[0, 8, 8, 0, "d", 1e999, 0]',
    "a yes": '[true, 8, 8, 0, "d", 1, 0]',
    "no record": "7",
    "complete a word": '{"complete": "all"}',
    "complete, much too much": '{"complete": 99999}',
    "complete, of nothing": '{"complete": -1}',
    "something else": '{"done": 3}',
    "not json": "}{",
}


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_none_counts_as_none(name, where, model, tmp_path, monkeypatch, capsys):
    """What a journal says after it is made again; the result is that of a run in one go."""
    monkeypatch.setattr(stream, "PIECE", 8)
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("".join(f"{' '.join(example.tokens)}\n" for example in CORPUS.train[:40]))
    words = ["predict", model, source, "--no_cuda", "--output"]
    assert run(*words, tmp_path / "whole.jsonl") == 0
    works = stream.FileTagging._works

    def two(job):
        for number, work in enumerate(works(job)):
            if number == 2:
                raise ValueError("enough")
            yield work

    with monkeypatch.context() as patch:
        patch.setattr(stream.FileTagging, "_works", two)
        assert run(*words, output) == 2
    journal = tmp_path / "out.jsonl.journal"
    head, *lines = journal.read_text().splitlines(keepends=True)
    lines.insert(0 if where == "first" else 2, f"{LINES[name]}\n")
    journal.write_text("".join([head, *lines]))
    capsys.readouterr()
    assert run(*words, output) == 0, capsys.readouterr().err
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "in.txt",
        "out.jsonl",
        "whole.jsonl",
    ]


@pytest.mark.parametrize("damage", ["cut", "gone", "all gone"])
def test_a_part_that_lost_bytes_is_no_result(damage, model, tmp_path, monkeypatch, capsys):
    """Killed when everything was noted as complete, before the result had its name."""
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("Ada sings\nBo sings\n")
    words = ["predict", model, source, "--no_cuda", "--output", output]

    def enough(*arguments, **options):
        raise ValueError("enough")

    with monkeypatch.context() as patch:
        patch.setattr("nercrf.tagging.journal.Journal.finish", enough)
        assert run(*words) == 2
    part = tmp_path / "out.jsonl.part"
    assert '"complete"' in (tmp_path / "out.jsonl.journal").read_text()
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-5])
    else:
        part.unlink()
    capsys.readouterr()
    assert run(*words) == 2
    assert "--restart" in capsys.readouterr().err
    assert not output.exists()
    assert run(*words, "--restart") == 0
    assert [json.loads(x)["text"] for x in output.open()] == ["Ada sings", "Bo sings"]


def test_a_journal_of_before_goes_on(tmp_path):
    """Its pieces do not say what was written: they are believed by their sizes, as they were."""
    output, settings = tmp_path / "out.jsonl", {"inputs": ["a"]}
    with Journal(output, settings) as journal:
        journal.add(Piece(0, 1, 1, 0, "read", 0, 0), b"one\n")
    path = tmp_path / "out.jsonl.journal"
    header, piece = path.read_text().splitlines()
    path.write_text(f"{header}\n{json.dumps(json.loads(piece)[:7])}\n")
    with Journal(output, settings) as journal:
        assert journal.pieces[0][0] == Piece(0, 1, 1, 0, "read", 4, 0)
        journal.add(Piece(1, 1, 1, 0, "read", 0, 0), b"two\n")
        journal.seal(2)
        journal.finish()
    assert output.read_text() == "one\ntwo\n"


@pytest.mark.parametrize("kind", ["page", "link to a page", "old", "killed", "again"])
def test_a_page_of_somebody_else_is_not_replaced_by_a_report(kind, gold, model, tmp_path, capsys):
    page, away = tmp_path / "out.html", tmp_path / "away.html"
    words = ["evaluate", model, gold, "--no_cuda", "--output_dir", tmp_path / "run"]
    words += ["--report", page]
    if kind in ("page", "link to a page"):
        away.write_text("<html>a poem</html>")
        page.symlink_to(away) if kind != "page" else page.write_bytes(away.read_bytes())
        assert run(*words) == 2
        assert "out.html: stands there and is no report of nercrf" in capsys.readouterr().err
        assert page.read_text() == away.read_text() == "<html>a poem</html>"
        assert not (tmp_path / "run").exists()
        return
    assert run(*words) == 0
    first = page.read_text()
    if kind == "old":  # a version that named no generator
        page.write_text(first.replace('<meta name="generator" content="nercrf report">', ""))
    if kind in ("old", "killed"):  # before its data were written
        (tmp_path / "out.json").unlink()
    assert run(*words) == 0
    assert 'content="nercrf report"' in page.read_text()
    assert (tmp_path / "out.json").is_file()


@pytest.mark.parametrize("name", ["jsonl", "brat"])
def test_a_folder_of_results_keeps_what_others_put_there(name, model, tmp_path, capsys):
    source, folder = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for each in "ab":
        (source / f"{each}.txt").write_text("Ada sings\n")
    words = ["predict", model, source, "--output", f"{folder}/", "--output_format", name]
    words += ["--no_cuda"]
    theirs = folder / {"jsonl": "b.jsonl", "brat": "b.ann"}[name]
    folder.mkdir()
    theirs.write_text("mine")
    assert run(*words) == 2
    assert f"{theirs} was not written by this program" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [theirs.name]
    assert theirs.read_text() == "mine"
    theirs.unlink()
    assert run(*words) == 0
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    (source / "a.txt").write_text("Ole sings\n")
    assert run(*words) == 0  # its own are made again
    assert {path.name for path in folder.iterdir()} == first.keys()
    assert theirs.read_bytes() == first[theirs.name]


def test_nobody_named_a_file_for_selected_sentences(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("Ada sings\n")
    words = ["select", model, "in.txt", "--number", 1]
    assert run(*words) == 0
    before = (tmp_path / "selected.json").read_bytes()
    assert run(*words) == 2
    assert "selected.json is there: name the file" in capsys.readouterr().err
    assert (tmp_path / "selected.json").read_bytes() == before
    assert run(*words, "--output", "selected.json") == 0


@pytest.mark.parametrize("held", ["run.json", "model/config.json", "folds.json", "notes"])
def test_folds_do_not_mix_with_what_is_there(held, gold, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    (folder / held).parent.mkdir(parents=True)
    (folder / held).write_text("a poem")
    monkeypatch.setattr(
        "nercrf.label_command.work", lambda *a, **o: pytest.fail("it worked before it asked")
    )
    before = sorted(folder.rglob("*"))
    assert run("check", gold, "--with_model", "--output_dir", folder) == 2
    said = capsys.readouterr().err
    assert str(folder) in said
    assert "choose another folder" in said or "give another --output_dir" in said
    assert sorted(folder.rglob("*")) == before
    assert (folder / held).read_text() == "a poem"


@pytest.mark.parametrize(
    "verb",
    [
        "score",
        "compare",
        "calibrate",
        "select",
        "check",
        "convert",
        "average",
        "evaluate",
        "predict",
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    verb, gold, model, tmp_path, mount_disk, monkeypatch, capsys
):
    """The place is named, the cause is said, and no half of a file stands there."""
    disk, found = mount_disk("64k"), tmp_path / "found.txt"
    with pytest.raises(OSError, match="No space left"):
        (disk / "filler").write_bytes(bytes(1 << 20))
    monkeypatch.chdir(tmp_path)
    if verb == "average":
        write_folder_of(model, tmp_path / "checkpoint-1")
    words = {
        "score": ["score", gold, found, "--json", disk / "x.json"],
        "compare": ["compare", gold, found, found, "--json", disk / "x.json"],
        "calibrate": ["calibrate", model, gold, "--measure_only", "--json", disk / "x.json"],
        "select": ["select", model, gold, "--number", "5", "--output", disk / "x.json"],
        "check": ["check", gold, "--with_model", model, "--output", disk / "x.json"],
        "convert": ["convert", gold, disk / "x.jsonl", "--from", "columns"],
        "average": ["average", "checkpoint-1", "--output_dir", disk / "x"],
        "evaluate": ["evaluate", model, gold, "--output_dir", "run", "--report", disk / "x.html"],
        "predict": ["predict", model, "text.txt", "--output", disk / "x.jsonl"],
    }[verb]
    (tmp_path / "text.txt").write_text("Ada met\n" * 100)
    assert run(*words, *(["--no_cuda"] if verb in ("check", "evaluate", "predict") else [])) == 2
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0] or "the disk is full" in errors[0]
    assert str(disk) in errors[0]
    assert ["free space" in errors[0], "check the path" in errors[0]] == [True, False]
    assert "Traceback" not in said
    names = {each.name.removesuffix(".lock") for each in disk.iterdir()} - {"filler"}
    parts = {f"x.jsonl.{each}" for each in ("journal", "part", "rejects.part")}
    assert names <= (parts if verb == "predict" else set())
    if verb == "predict":  # what was tagged is kept: the same command goes on
        (disk / "filler").unlink()
        assert run(*words, "--no_cuda") == 0
        assert len((disk / "x.jsonl").read_text().splitlines()) == 100


def write_folder_of(model, path):
    "A copy of a model as a whole checkpoint."
    with write_folder(path) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
