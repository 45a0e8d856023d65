"""A poor training says why: each reason with a training of a second or two that has it."""

import logging
from dataclasses import replace

import pytest
import torch
from training import CORPUS, TOKENIZER, join_examples, make_args, make_model, run_script

from nercrf.data.conll import write_columns
from nercrf.distributed.devices import unwrap_model
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.labels import label_list
from nercrf.training.callbacks import TrainingCallback
from nercrf.training.trainer import train

LABELS = label_list([*CORPUS.types, "PERSON"], "BIO")
# learns its 50 sentences by heart in some thirty updates
QUICK = {"learning_rate": 1e-2, "crf_learning_rate": 3e-2, "warmup_proportion": 0.0}


def make_dataset(examples):
    """Features of some sentences, whose types may be called otherwise."""
    features = convert_examples_to_features(examples, LABELS, 64, TOKENIZER, scheme="BIO")
    return FeatureDataset(features, LABELS, "BIO")


def relabel(examples, change):
    """The same sentences; each span becomes what `change` gives for it, None takes it out."""
    changed = [[change(span) for span in each.spans] for each in examples]
    return [
        replace(each, spans=[span for span in spans if span is not None])
        for each, spans in zip(examples, changed, strict=True)
    ]


def said(caplog, folder, examples, dev=CORPUS.dev, callbacks=(), **flags):
    """What is said at the end of a small training."""
    caplog.clear()
    args = make_args(folder, **({"average_decay": 0.0, "save_steps": 0} | flags))
    data, dev = make_dataset(examples), dev and make_dataset(dev)
    with caplog.at_level(logging.WARNING, "nercrf.training.diagnosis"):
        train(args, data, make_model(0.0, LABELS), TOKENIZER, dev, callbacks=callbacks)
    return [x.getMessage() for x in caplog.records if x.name == "nercrf.training.diagnosis"]


def test_one_sentence(tmp_path, caplog):
    """A file without blank lines."""
    single = join_examples(CORPUS.train * 2, "all")
    at_once, line = said(caplog, tmp_path, [single])
    words = f"{len(single.tokens):,}"
    assert at_once in line
    assert f"one sentence of the training data has {words} of its {words} words" in line


def test_hardly_any_entities(tmp_path, caplog):
    """Two sentences are annotated, 48 are not."""
    bare = relabel(CORPUS.train[2:], lambda span: None)
    (line,) = said(caplog, tmp_path, [*CORPUS.train[:2], *bare])
    count = sum(len(each.spans) for each in CORPUS.train[:2])
    assert f"the training data have {count} entities in 50 sentences" in line


def test_train_and_dev_disagree(tmp_path, caplog):
    """PER is called PERSON in dev."""
    dev = relabel(CORPUS.dev, lambda span: span._replace(label="PERSON"))
    (line,) = said(caplog, tmp_path, CORPUS.train, dev)
    assert "only dev has PERSON, and only the training data have LOC, ORG, PER, PRODUCT" in line
    assert "--type_map" in line


class Forget(TrainingCallback):
    """Overwrites the classifier from an update on, as a rate does that is far too high."""

    def __init__(self, step):
        self.step = step

    def on_step(self, run, stepped):
        if run.progress.step >= self.step:
            with torch.no_grad():
                bare = unwrap_model(run.model)
                bare.classifier.weight.zero_()
                bare.classifier.bias.copy_(torch.arange(len(LABELS)) == 0)


def test_a_score_that_fell(tmp_path, caplog):
    """A model that forgets in its last third."""
    flags = {"num_train_epochs": 6.0, "eval_steps": 14}
    (line,) = said(caplog, tmp_path, CORPUS.train, CORPUS.train, [Forget(28)], **flags | QUICK)
    assert "F1 on dev fell from 0." in line
    assert "at update 28 to 0.00 at update 42" in line
    assert "the model of update 28 is the one that is kept" in line


@pytest.mark.parametrize("dev", [CORPUS.dev, None])
def test_too_few_updates(tmp_path, caplog, dev):
    """With dev, and without."""
    (line,) = said(caplog, tmp_path, CORPUS.train, dev, max_steps=2, logging_steps=1)
    assert "2 updates are too few" in line
    assert "--max_steps 400" in line


def test_a_type_that_is_never_predicted(tmp_path, caplog):
    """Nobody has annotated one of the types in train; the others are learned."""
    others = relabel(CORPUS.train, lambda span: None if span.label == "ORG" else span)
    flags = {"num_train_epochs": 8.0, "eval_steps": 14}
    (line,) = said(caplog, tmp_path, others, CORPUS.train, **flags | QUICK)
    assert line.startswith("never predicted on dev: ORG (")
    assert "0 in the training data" in line


def test_a_good_model_says_nothing(tmp_path, caplog):
    """All its types are found."""
    assert said(caplog, tmp_path, CORPUS.train, CORPUS.train, num_train_epochs=12.0, **QUICK) == []


def test_the_command_says_it(tmp_path):
    """A folder whose training file has no blank line, from the command line."""
    data = tmp_path / "data"
    data.mkdir()
    for split, examples in CORPUS.splits.items():
        write_columns(data / f"{split}.bio", examples * 2, "BIO")
    lines = (data / "train.bio").read_text(encoding="utf-8").splitlines()
    (data / "train.bio").write_text("\n".join(filter(None, lines)) + "\n", encoding="utf-8")
    flags = ("--data_dir", data, "--output_dir", tmp_path / "out", "--max_steps", 2, "--no_cuda")
    finished = run_script(*flags, "--do_train", "--save_steps", 0)
    *_, line = [x for x in finished.stderr.splitlines() if "nercrf.training.diagnosis" in x]
    assert "most likely because one sentence of the training data has" in line
