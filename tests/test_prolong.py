"""What a training must have in common with a checkpoint to go on from it, and what may change:
every flag is decided about, a finished training is prolonged, the best model is chosen anew.
"""

import json
import logging
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
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
    write_corpus,
)

from nercrf.cli import main
from nercrf.features.conversion import convert_examples_to_features
from nercrf.files import write_folder
from nercrf.model.calibration import keep_calibration
from nercrf.model.modeling import NerCrfConfig
from nercrf.tagging.tagger import Tagger
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
    before = tmp_path / "before" / "checkpoint-6"
    with write_folder(before) as folder:
        for file in path.iterdir():
            if file.name != "manifest.json":
                (folder / file.name).write_bytes(file.read_bytes())
        (folder / "state.json").write_text(json.dumps(state))
    load_checkpoint(run, before)
    assert run.progress.step == 6
    assert run.progress.best_score is not None
    run.identity["constrain_likelihood"] = True
    with pytest.raises(ValueError, match="constrain_likelihood = False, this run has True"):
        load_checkpoint(run, before)


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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data"))


def words_for(corpus, out, *flags):
    """A training of two updates from the command line."""
    words = [
        "train",
        "--data_dir",
        corpus,
        "--output_dir",
        out,
        "--max_steps",
        2,
        "--save_steps",
        1,
    ]
    return list(map(str, [*words, "--no_cuda", "--no_learning_curve", *flags]))


@pytest.fixture(scope="module")
def without_per(corpus, tmp_path_factory):
    """A tagger that was trained without one of the types of the data."""
    folder = tmp_path_factory.mktemp("without")
    assert main(words_for(corpus, folder, "--drop_types", "PER")) == 0
    return folder


def head_rows(folder):
    """The row of the linear layer of each label, and the transitions of each pair."""
    labels = NerCrfConfig.from_pretrained(folder / "model").labels
    weights = load_file(folder / "model" / "model.safetensors")
    rows = dict(zip(labels, weights["classifier.weight"], strict=True))
    pairs = {
        (one, two): weights["crf.transitions"][i, k]
        for i, one in enumerate(labels)
        for k, two in enumerate(labels)
    }
    return rows | pairs


@pytest.mark.parametrize(
    ("flags", "names", "said"),
    [
        ([], {}, "the tagger goes on with LOC, ORG, PRODUCT; learns PER"),
        (["--drop_types", "LOC"], {}, "goes on with ORG, PRODUCT; learns PER; gives up LOC"),
        (
            ["--type_map", "ORG=FIRM"],
            {"ORG": "FIRM"},
            "goes on with LOC, ORG as FIRM, PRODUCT; learns PER",
        ),
    ],
)
def test_a_tagger_goes_on_with_other_types(
    corpus, without_per, tmp_path, caplog, flags, names, said
):
    """What it knows is kept by its name: with rates of nothing, its rows stay as they are."""
    rates = ["--learning_rate", 1e-30, "--crf_learning_rate", 1e-30]
    name = ["--model_name_or_path", without_per, *rates, *flags]
    with caplog.at_level(logging.INFO):
        assert main(words_for(corpus, tmp_path / "run", *name)) == 0
    assert said in caplog.text
    before, after = head_rows(without_per), head_rows(tmp_path / "run")

    def new(label):
        prefix, _, kind = label.partition("-")
        return f"{prefix}-{names[kind]}" if kind in names else label

    moved = {
        tuple(map(new, key)) if isinstance(key, tuple) else new(key): row
        for key, row in before.items()
    }
    shared = moved.keys() & after.keys()
    assert len(shared) > 10
    for key in shared:
        assert torch.allclose(moved[key], after[key], atol=1e-6), key


def test_what_was_fitted_to_the_weights_of_before_is_left_out(
    corpus, without_per, tmp_path, caplog
):
    """A training makes other probabilities: what calibrated those of before goes, with a line."""
    folder, tagger = tmp_path / "fitted", Tagger.from_pretrained(without_per)
    keep_calibration(tagger.model.config, 2.0, {"LOC": 0.3})
    for part in (tagger.model, tagger.tokenizer):
        part.save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        assert main(words_for(corpus, tmp_path / "run", "--model_name_or_path", folder)) == 0
    assert "fit them again with nercrf calibrate" in caplog.text
    config = Tagger.from_pretrained(tmp_path / "run").model.config
    assert (config.probability_temperature, config.thresholds) == (1.0, None)


def test_gold_of_a_type_that_the_model_lacks_is_missed(corpus, without_per, capsys):
    """Every gold entity counts: those of PER as missed, and a line says it."""
    assert main(["evaluate", str(without_per), str(corpus), "--no_cuda"]) == 0
    said = capsys.readouterr().out
    wanted = Counter(span.label for each in CORPUS.dev for span in each.spans)
    table = said[: said.index("unseen surfaces")]
    for name, count in wanted.items():
        (row,) = [line.split() for line in table.splitlines() if line.startswith(f"{name} ")]
        assert int(row[4]) == count
    assert f"{wanted['PER']} gold entities are of types that the model does not know (PER)" in said
    micro = next(line.split() for line in table.splitlines() if line.startswith("micro"))
    assert int(micro[4]) == wanted.total()


def test_checkpoints_are_averaged_from_the_command_line(without_per, tmp_path, capsys):
    paths = [str(without_per / f"checkpoint-{step}") for step in (1, 2)]
    assert main(["average", *paths, "--output_dir", str(tmp_path / "mean")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "mean")
    one, two, mean = (load_file(f"{x}/model.safetensors") for x in (*paths, tmp_path / "mean"))
    for name, tensor in mean.items():
        assert torch.allclose(tensor, (one[name] + two[name]) / 2), name
    assert Tagger.from_pretrained(tmp_path / "mean")("abc") is not None
    assert main(["average", *paths, "--output_dir", str(tmp_path / "mean")]) == 2
    assert "holds something already" in capsys.readouterr().err
