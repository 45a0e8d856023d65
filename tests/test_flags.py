"""Flags: every field has help, choices are those of the code that reads them, nothing needs torch."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from nercrf.crf.likelihood import ALGORITHMS
from nercrf.data.formats import FORMATS
from nercrf.data.read_config import ReadFormat
from nercrf.fields import check_fields, field_bounds
from nercrf.flags import VERBS, ScriptConfig, build_parser, parse_args, parse_verb, verb_parser
from nercrf.labels import SCHEMES
from nercrf.training.reporting import REPORTERS
from nercrf.training.training_config import ReportConfig, SpeedConfig, TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
LIGHT = (
    "fields",
    "flags",
    "cli",
    "run_ner_crf",
    "data_commands",
    "data.read_config",
    "features.feature_config",
    "model.encoder_config",
    "evaluation.evaluation_config",
    "training.training_config",
    "training.run_folder",
    "tagging.predict_config",
)


@pytest.mark.parametrize("name", LIGHT)
def test_flags_are_looked_at_without_torch(name):
    code = (
        f"import sys, nercrf.{name}; "
        "sys.exit(any(x in sys.modules for x in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def choices(section, name):
    """The choices in the type of a field."""
    from typing import get_type_hints

    hint = get_type_hints(section, include_extras=True)[name]
    return {choice for bounds in field_bounds(hint) for choice in bounds.choices}


def test_choices_are_those_of_the_code_that_reads_them():
    readable = {name for name, kind in FORMATS.items() if kind.readable}
    assert set(get_args(ReadFormat)) == {"auto", *readable}
    assert choices(SpeedConfig, "crf_algorithm") == {"auto", *ALGORITHMS}
    assert choices(ReportConfig, "report_to") == set(REPORTERS)
    for scheme in SCHEMES:
        check_fields(TrainingConfig(scheme=scheme.lower()))


def shown(parser):
    """The flags of a help text, and their lines."""
    rows = [line for line in parser.format_help().splitlines() if line.startswith("  --")]
    return [row.split()[0] for row in rows], rows


def test_a_help_text_shows_each_flag_once_and_says_what_it_does():
    flags, rows = shown(build_parser())
    assert len(flags) == len(set(flags)) == len(vars(ScriptConfig())) + 1  # --help
    for row in rows:
        assert "None" not in row
    negative = [flag for flag in flags if flag.startswith("--no_")]
    assert len(negative) == 10  # nine switches that are on, and --no_cuda
    for name in VERBS:  # a line a flag, two a section, and a few that wrap: train has 112 flags
        lines = verb_parser(name).format_help().splitlines()
        count = len(shown(verb_parser(name))[1])
        assert len(lines) < min(155, count + 41), f"{len(lines)} lines, {count} flags"
    assert "--learning_rate" not in shown(verb_parser("predict"))[0]


def refusal(capsys, parse, *words):
    """What is said on standard error."""
    with pytest.raises(SystemExit) as caught:
        parse(list(words))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_a_misspelt_flag_takes_two_lines(capsys):
    said = refusal(capsys, parse_args, "--learning_rat", "3e-5")
    assert said.splitlines()[0] == "error: unknown: --learning_rat; did you mean --learning_rate?"
    assert len(said.splitlines()) == 2
    said = refusal(capsys, lambda words: parse_verb("predict", words), "--save_steps", "5")
    assert "--save_steps; nercrf predict has no use for it, nercrf train has" in said


def test_every_spelling_of_a_switch():
    for words, expected in (
        (["--fp16"], True),
        (["--fp16", "false"], False),
        (["--fp16=True"], True),
        (["--fp16", "--bf16=false"], True),
    ):
        assert parse_args(words).fp16 is expected
    assert parse_args(["--no-constrain"]).constrain is False
    assert parse_args(["--constrain", "no"]).constrain is False
    assert parse_args(["--per-gpu-eval-batch-size", "4"]).per_gpu_eval_batch_size == 4


def test_a_model_and_what_it_is_used_on_without_flags():
    old = parse_verb("predict", ["--output_dir", "run", "--input", "a.txt", "--no_cuda"])
    new = parse_verb("predict", ["run", "--no_cuda", "a.txt"])
    assert (old.output_dir, old.input, old.output) == (new.output_dir, new.input, new.output)
    args = parse_verb("evaluate", ["--model", "run", "--data_dir", "data", "--output_dir", "out"])
    assert (args.model, args.data_dir, args.output_dir) == ("run", "data", "out")


def test_a_configuration_of_before_can_be_read(tmp_path):
    """`markup` is `scheme` today; what a verb does is said by the verb."""
    file = tmp_path / "training_config.json"
    file.write_text('{"markup": "bios", "do_train": true, "input": null, "learning_rate": 3e-5}')
    args = parse_verb("evaluate", ["--config", str(file)])
    assert (args.scheme, args.do_train, args.do_eval, args.input) == ("bios", False, True, [])
    assert args.learning_rate == 3e-5


@pytest.mark.parametrize("word", ["true", "T", "yes", "y", "1", "false", "f", "No", "n", "0"])
def test_a_switch_understands_the_words_of_before(word):
    """Those that transformers' parser takes."""
    args = parse_verb("train", ["--group_by_length", word, "--output_dir", "x"])
    assert args.group_by_length is (word.lower() in ("true", "t", "yes", "y", "1"))
    assert args.output_dir == "x"
