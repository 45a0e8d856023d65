"""What a newcomer meets: one cache, one form of a figure, results that stand, and what comes next."""

import json
import logging

import pytest

from nercrf import cli
from nercrf.data.conll import write_columns
from nercrf.data.examples import Example
from nercrf.data.formats import FORMATS, read_examples, write_examples
from nercrf.labels import Span

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
