"""What follows from the number of sentences: the same on any number of processes, exact to resume,
said in one line, and enough to learn.
"""

import json
import logging
from itertools import pairwise
from pathlib import Path

import pytest
from training import CORPUS, run_script, write_corpus, write_encoder

from nercrf.data.conll import write_columns
from nercrf.data.sample import sample_corpus
from nercrf.run_ner_crf import main
from nercrf.training.defaults import (
    FROM_SCRATCH,
    MOST_EPOCHS,
    PRETRAINED,
    batch_size,
    epochs_for,
    resolve_config,
)
from nercrf.training.training_config import TrainingConfig


@pytest.mark.parametrize("regime", [PRETRAINED, FROM_SCRATCH])
def test_no_training_is_too_short(regime):
    """From 20 to 100,000 sentences: enough updates, and never less work for more data."""
    sizes = [*range(20, 4000, 7), 10_000, 100_000]
    passes = []
    for sentences in sizes:
        batch = batch_size(regime, sentences)
        epochs = epochs_for(regime, sentences, batch)
        updates = epochs * -(-sentences // batch)
        assert regime.epochs <= epochs <= MOST_EPOCHS
        assert updates >= regime.updates or epochs == MOST_EPOCHS
        passes.append(epochs * sentences)
    # an epoch is whole, so the work goes up in steps; it never halves
    assert all(two >= 0.5 * one for one, two in pairwise(passes))
    assert epochs_for(regime, 100_000, 32) == regime.epochs


@pytest.mark.parametrize("pretrained", [True, False])
def test_what_is_given_stays(pretrained):
    """Every flag that the rule may set, alone."""
    given = {
        "learning_rate": 7e-5,
        "crf_learning_rate": 7e-3,
        "num_train_epochs": 7.0,
        "dropout": 0.7,
        "eval_steps": 7,
        "save_steps": 7,
        "train_batch_size": 7,
        "per_gpu_train_batch_size": 7,
        "pass_pieces": 7,
        "attention_dropout": 0.7,
    }
    for name, value in given.items():
        resolved = resolve_config(TrainingConfig(**{name: value}), pretrained, 200, 384)
        assert getattr(resolved, name) == value
        # what is resolved stays as it is, also where the number of sentences is another
        assert resolve_config(resolved, pretrained, 10_000, 768) == resolved


def command(tmp_path, *words):
    """A training on the 50 sentences, with a pretrained encoder."""
    data = tmp_path / "data"
    if not data.exists():
        write_corpus(data)
        write_encoder(tmp_path / "encoder")
    encoder = ["--model_name_or_path", tmp_path / "encoder"]
    return [str(x) for x in ("--data_dir", data, "--do_train", "--no_cuda", *encoder, *words)]


def test_two_processes_make_the_updates_of_one(tmp_path, capsys):
    """Without a flag for the batch."""
    words = command(tmp_path, "--output_dir", tmp_path / "out", "--dry_run")
    two = run_script(*words, processes=2).stdout
    assert main(words) == 0
    expected = "dry run: 50 sentences, 8 an update, 7 updates an epoch, 406 in all\n"
    assert expected in two
    assert expected in capsys.readouterr().out


def test_it_is_said_and_written_down(tmp_path, caplog):
    """One line of the log; the values in the settings beside the checkpoint."""
    output = tmp_path / "out"
    quick = ("--output_dir", output, "--eval_steps", 0, "--save_steps", 0)
    with caplog.at_level(logging.INFO):
        assert main(command(tmp_path, *quick)) == 0
    assert [x.getMessage() for x in caplog.records if "50 sentences:" in x.getMessage()] == [
        "50 sentences: 58 epochs of 7 updates, batch 8; 3 epochs would be 21 updates, and a "
        "training needs about 400 (--num_train_epochs, --train_batch_size)"
    ]
    settings = json.loads(Path(output, "checkpoint-406", "training_config.json").read_text())
    assert (settings["num_train_epochs"], settings["train_batch_size"]) == (58.0, 8)
    assert settings["learning_rate"] == 2e-4  # the encoder is narrow


def test_resuming_takes_the_epochs_of_the_checkpoint(tmp_path):
    """A run of before the rule had three epochs of 8 sentences a device; resumed without a flag it
    ends there, in the same weights.
    """
    before = ("--num_train_epochs", 3, "--per_gpu_train_batch_size", 8, "--crf_learning_rate", 1e-3)
    for name, more in (("whole", ()), ("parts", ("--save_steps", 7, "--save_total_limit", 9))):
        assert main(command(tmp_path, "--output_dir", tmp_path / name, *before, *more)) == 0
    parts = tmp_path / "parts"
    again = ("--output_dir", parts, "--resume", parts / "checkpoint-7")
    assert main(command(tmp_path, *again)) == 0
    name = "checkpoint-21/model.safetensors"
    assert (parts / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_fifty_sentences_from_scratch_are_learned(tmp_path):
    """Eight epochs in batches of 32 are sixteen updates and find next to nothing."""
    english = {
        split: [each for each in examples if each.sep]
        for split, examples in sample_corpus(sizes=(100, 120, 2)).splits.items()
    }
    for split, examples in english.items():
        write_columns(tmp_path / f"{split}.bio", examples, CORPUS.scheme)
    scores = {}
    for name, flags in {
        "before": ("--num_train_epochs", "8", "--train_batch_size", "32"),
        "default": (),
    }.items():
        words = ["--data_dir", tmp_path, "--output_dir", tmp_path / name, "--no_cuda"]
        assert main([*map(str, words), "--do_train", "--save_steps", "0", *flags]) == 0
        best = json.loads((tmp_path / name / "model" / "best.json").read_text())
        scores[name] = best["dev_f1"]
    assert scores["default"] > 0.6
    assert scores["before"] < 0.5 * scores["default"]
