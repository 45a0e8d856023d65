"""What a training must have in common with a checkpoint to go on from it, and what may change:
every flag is decided about, a finished training is prolonged, the best model is chosen anew.
"""

import json
import logging
from dataclasses import fields

import numpy as np
import pytest
from training import (
    CORPUS,
    DEV,
    TOKENIZER,
    TRAIN,
    differences,
    join_examples,
    make_args,
    make_dataset,
    make_model,
    read_history,
    train_in,
)

from nercrf.features.conversion import convert_examples_to_features
from nercrf.files import write_folder
from nercrf.training.identity import (
    EFFECTS,
    as_typed,
    compare_identity,
    refuse_changes,
    training_identity,
)
from nercrf.training.reporting import data_fingerprint
from nercrf.training.resume import load_checkpoint
from nercrf.training.run import plan_training, start_training
from nercrf.training.trainer import train
from nercrf.training.training_config import TrainingConfig

SHORT = {"max_steps": 6, "eval_steps": 3, "save_steps": 3, "logging_steps": 1}


def names_of(effect):
    """The flags that have this effect."""
    return [name for name, kind in EFFECTS.items() if kind == effect]


def other_value(name, value):
    """A value that a flag does not have."""
    others = {"schedule": "cosine", "word_dropout_piece": "mask", "adv_name": "lora"}
    if name in others:
        return others[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return ["query"]
    return 0.25 if value is None else value / 2 + 0.125


def test_every_flag_is_decided_about():
    assert {each.name for each in fields(TrainingConfig)} == set(EFFECTS)


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    args = make_args(tmp_path_factory.mktemp("run"))
    run = start_training(args, TRAIN, make_model(), TOKENIZER, DEV)
    return lambda **changes: training_identity(
        make_args("run", **{"attention_dropout": 0.0} | changes),
        TRAIN,
        plan_training(make_args("run"), TRAIN, run.info),
        DEV,
    )


@pytest.mark.parametrize("name", [name for name in names_of("updates") if name != "data_seed"])
def test_a_flag_that_changes_updates_stays(identity, name):
    before = identity()
    now = identity(**{name: other_value(name, getattr(make_args("run"), name))})
    (change,) = compare_identity(before, {}, now)
    assert (change.name, change.before, change.now) == (name, before[name], now[name])
    with pytest.raises(ValueError, match="made with") as error:
        refuse_changes("checkpoint-3", [change])
    words = f"made with {name} = {before[name]}, this run has {now[name]}: give "
    assert words + as_typed(name, before[name]) in str(error.value)
    assert "--model_name_or_path checkpoint-3" in str(error.value)


@pytest.mark.parametrize("name", names_of("choice"))
def test_a_flag_that_changes_the_choice_asks_for_a_new_one(identity, name):
    changes = {"metric_for_best_model": "loss", "constrain": False, "unlearnable": "ignored"}
    (change,) = compare_identity(identity(), {}, identity(**{name: changes[name]}))
    assert (change.name, change.effect) == (name, "choice")
    refuse_changes("checkpoint-3", [change])


@pytest.mark.parametrize(
    "options", [{"max_seq_length": 16}, {"stride": 4}, {"context": 1}, {"nested": "innermost"}]
)
def test_data_that_are_cut_otherwise_have_another_fingerprint(options):
    long = [join_examples(CORPUS.train[:6], "long"), *CORPUS.train[6:9]]
    long[0].spans.append(long[0].spans[0]._replace(start=0, end=long[0].spans[0].end + 1))
    features = [
        convert_examples_to_features(
            long, CORPUS.labels, tokenizer=TOKENIZER, scheme=CORPUS.scheme, **given
        )
        for given in ({"max_seq_length": 24}, {"max_seq_length": 24} | options)
    ]
    found = [data_fingerprint(type("", (), {"features": each})) for each in features]
    assert found[0] != found[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A training of six updates."""
    folder = tmp_path_factory.mktemp("finished")
    train_in(folder, **SHORT)
    return folder


def copy_of(finished, folder):
    """A copy of the last checkpoint, the best model and the log."""
    for name in ("checkpoint-6", "model"):
        with write_folder(folder / name) as target:
            for file in (finished / name).iterdir():
                if file.name != "manifest.json":
                    (target / file.name).write_bytes(file.read_bytes())
    (folder / "history.jsonl").write_bytes((finished / "history.jsonl").read_bytes())
    return folder


def test_another_likelihood_is_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="give --no_constrain_likelihood, to resume"):
        train_in(finished, resume="auto", constrain_likelihood=True, **SHORT)


def test_fewer_updates_are_refused(finished):
    with pytest.raises(ValueError, match="made with updates = 6, this run has 4: give --max_steps"):
        train_in(finished, resume="auto", **SHORT | {"max_steps": 4})


def test_another_encoder_of_the_same_sizes_is_refused(finished):
    model = make_model()
    model.config.encoder.num_attention_heads = 4
    args = make_args(finished, resume="auto", **SHORT)
    with pytest.raises(
        ValueError, match=r"made with encoder\.num_attention_heads = 2, this run has 4"
    ):
        train(args, TRAIN, model, TOKENIZER, DEV)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric_for_best_model": "loss"}, "metric_for_best_model = f1, this run has loss"),
        ({"unlearnable": "ignored"}, "unlearnable = missed, this run has ignored"),
        ({"dev": make_dataset(CORPUS.dev[:9])}, "dev = "),
        ({"dev": None}, "dev = "),
    ],
)
def test_the_best_model_is_chosen_anew(finished, tmp_path, caplog, changes, said):
    folder, flags = copy_of(finished, tmp_path), dict(changes)
    dev = flags.pop("dev", DEV)
    args = make_args(folder, resume="auto", **SHORT, **flags)
    with caplog.at_level(logging.INFO):
        train(args, TRAIN, make_model(), TOKENIZER, dev)
    assert f"the best model is chosen anew from update 6 on: {said}" in caplog.text
    best = json.loads((folder / "model" / "best.json").read_text())
    assert best["step"] == 6
    if dev is not None:  # by what was asked for, and with the figure that belongs to it
        name = f"dev_{args.metric_for_best_model}"
        assert best[name] == read_history(folder)[-1][name]


def test_the_best_model_stays_where_nothing_changed(finished, tmp_path, caplog):
    folder = copy_of(finished, tmp_path)
    before = (folder / "model" / "best.json").read_bytes()
    train_in(folder, resume="auto", **SHORT)
    assert "chosen anew" not in caplog.text
    assert (folder / "model" / "best.json").read_bytes() == before


def test_what_takes_effect_from_now_on_is_said(finished, tmp_path, caplog):
    folder = copy_of(finished, tmp_path)
    with caplog.at_level(logging.INFO):
        train_in(folder, resume="auto", **SHORT | {"eval_steps": 2}, patience=3)
    assert "from here on: --eval_steps 2 (was 3), --patience 3 (was 0)" in caplog.text


def test_a_checkpoint_of_before_goes_on(finished, tmp_path):
    """It lacks what was not compared then; its flags say it."""
    run = start_training(make_args(finished, **SHORT), TRAIN, make_model(), TOKENIZER, DEV)
    run.identity |= {"constrain_likelihood": False}
    path = copy_of(finished, tmp_path) / "checkpoint-6"
    state = json.loads((path / "state.json").read_text())
    for name in ("dev", "metric_for_best_model", "constrain", "constrain_likelihood"):
        del state["state"]["identity"][name]
    with write_folder(tmp_path / "checkpoint-7") as folder:
        for file in path.iterdir():
            if file.name != "manifest.json":
                (folder / file.name).write_bytes(file.read_bytes())
        (folder / "state.json").write_text(json.dumps(state))
    load_checkpoint(run, tmp_path / "checkpoint-7")
    assert run.progress.step == 6
    assert run.progress.best_score is not None
    run.identity["constrain_likelihood"] = True
    with pytest.raises(ValueError, match="constrain_likelihood = False, this run has True"):
        load_checkpoint(run, tmp_path / "checkpoint-7")


def test_a_prolonged_training_is_a_long_one(tmp_path, caplog):
    """With rates that do not depend on the length: every bit is that of a training that was
    planned so long.
    """
    flags = SHORT | {"schedule": "constant", "warmup_proportion": 0.0}
    train_in(tmp_path / "long", **flags | {"max_steps": 12})
    train_in(tmp_path / "parts", **flags)
    train_in(tmp_path / "parts", **flags | {"max_steps": 12}, resume="auto")
    assert differences(tmp_path / "long", tmp_path / "parts") == []
    assert "prolonged from 6 updates to 12" in caplog.text


def test_the_rates_of_a_prolonged_training_are_those_of_a_long_one(finished, tmp_path, caplog):
    folder = copy_of(finished, tmp_path / "parts")
    train_in(folder, **SHORT | {"max_steps": 12}, resume="auto")
    assert "now 60 % of their peaks (before: 0 %)" in caplog.text
    train_in(tmp_path / "long", **SHORT | {"max_steps": 12})
    rates = [
        [line["learning_rate"] for line in read_history(folder / x) if "learning_rate" in line]
        for folder, x in ((tmp_path, "long"), (tmp_path, "parts"))
    ]
    assert np.allclose(rates[0][6:], rates[1][6:], rtol=1e-12)
    assert rates[1][5] == 0
