"""Where a conversion writes: never over what is read or what stands beside, told before."""

import os
import stat
import subprocess
import sys

import pytest
from test_files import snapshot
from training import ROOT

from nercrf.data_commands import convert_main

COLUMNS = "Ada B-PER\nleft O\n\nOslo B-LOC\n\n"
NESTED = (
    '{"id": "a", "text": "Bank of Oslo", "entities": '
    '[{"start": 0, "end": 12, "label": "ORG"}, {"start": 8, "end": 12, "label": "LOC"}]}\n'
)


@pytest.mark.parametrize("way", ["same name", "other path", "link", "hard link"])
def test_what_is_read_is_not_written_over(way, tmp_path, capsys):
    source = tmp_path / "a.conll"
    source.write_text(COLUMNS)
    target = tmp_path / "b.conll"
    if way == "same name":
        target = source
    elif way == "other path":
        (tmp_path / "deep").mkdir()
        target = tmp_path / "deep" / ".." / "a.conll"
    elif way == "link":
        target.symlink_to(source)
    else:
        os.link(source, target)
    before = snapshot(tmp_path)
    assert convert_main([str(source), str(target), "--to_scheme", "BIOES"]) == 2
    assert "is a file that is read" in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    assert convert_main([str(source), str(target), "--to_scheme", "BIOES", "--force"]) == 0
    assert "S-LOC" in target.read_text()
    assert target.is_symlink() == (way == "link")


def test_a_neighbour_is_not_written_over(tmp_path, capsys):
    source, text = tmp_path / "a.conll", tmp_path / "b.txt"
    source.write_text(COLUMNS)
    text.write_text("a poem")
    before = snapshot(tmp_path)
    assert convert_main([str(source), str(tmp_path / "b.ann")]) == 2
    assert "b.txt stands there and would be written with b.ann" in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    assert convert_main([str(source), str(tmp_path / "b.ann"), "--force"]) == 0
    assert text.read_text() != "a poem"


def test_a_loss_is_told_before_and_strict_writes_nothing(tmp_path, capsys, monkeypatch):
    source, target = tmp_path / "a.jsonl", tmp_path / "b.conll"
    source.write_text(NESTED)
    target.write_text("before")
    flags = [str(source), str(target), "--on_bad", "warn"]
    before = snapshot(tmp_path)
    assert convert_main([*flags, "--strict"]) == 1
    told = capsys.readouterr().out
    assert "spans that overlap others were left out" in told
    assert "nothing was written (--strict)" in told
    assert snapshot(tmp_path) == before
    assert convert_main(flags) == 0
    assert "B-ORG" in target.read_text()
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "b.conll"]


def test_of_several_files_none_is_written_where_one_has_a_loss(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text(NESTED.replace("Bank of Oslo", "Ada of Oslo "))
    (folder / "dev.jsonl").write_text(NESTED)
    flags = [str(folder), str(tmp_path / "out"), "--to", "columns", "--on_bad", "warn", "--strict"]
    assert convert_main(flags) == 1
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("way", ["folder", "split"])
def test_names_in_a_folder_that_nobody_gave_are_not_written_over(way, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    (data / "train.conll").write_text(COLUMNS * 10)
    (out / "train.jsonl").write_text("a poem")
    before = snapshot(out)
    words = {"folder": [str(data)], "split": [str(data / "train.conll"), "--split", "0.8,0.1,0.1"]}
    flags = [*words[way], str(out), "--to", "jsonl"]
    assert convert_main(flags) == 2
    assert "train.jsonl stands there and would be replaced" in capsys.readouterr().err
    assert snapshot(out) == before
    assert convert_main([*flags, "--force"]) == 0
    assert "Oslo" in (out / "train.jsonl").read_text()


def test_the_mode_stays_and_a_link_is_written_through(tmp_path):
    source, target, link = (tmp_path / name for name in ("a.conll", "b.jsonl", "c.jsonl"))
    source.write_text(COLUMNS)
    target.write_text("{}")
    target.chmod(0o640)
    link.symlink_to(target)
    assert convert_main([str(source), str(link)]) == 0
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert "Oslo" in target.read_text()


def test_a_stream_takes_what_is_written(tmp_path):
    source = tmp_path / "a.conll"
    source.write_text(COLUMNS)
    code = "import sys; from nercrf.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "convert", str(source), "/dev/stderr", "--to", "jsonl"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "Oslo" in found.stderr
    assert "nothing was lost" in found.stdout
