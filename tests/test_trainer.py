"""The trainer in one process: exact resume, precision, accumulation, best model, signals."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training import (
    CORPUS,
    DEV,
    TOKENIZER,
    TRAIN,
    assert_same_tensors,
    differences,
    last_step,
    make_args,
    make_dataset,
    make_model,
    read_history,
    train_in,
)

from nercrf.distributed.devices import BatchDataParallel
from nercrf.distributed.processes import ProcessInfo
from nercrf.evaluation.evaluator import evaluate
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.training import plan as update_plan
from nercrf.training import trainer
from nercrf.training.callbacks import TrainingCallback
from nercrf.training.checkpoint import load_state
from nercrf.training.plan import UpdatePlan
from nercrf.training.recipes import WeightAverage
from nercrf.training.run import plan_training, start_training
from nercrf.training.trainer import TrainingInterrupted, check_config, train
from nercrf.training.update import Learner


class SignalAt(TrainingCallback):
    """A signal arrives when so many updates are done."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def on_update_end(self, run, update):
        if run.progress.step == self.step:
            os.kill(os.getpid(), self.number)


class CrashAt(TrainingCallback):
    """The process dies at a moment of an update: nothing is saved."""

    def __init__(self, moment, step):
        def crash(run, *_):
            if run.progress.step + (moment in BEFORE_THE_STEP) == step:
                raise KeyError("power cut")

        setattr(type(self), moment, lambda self, *values: crash(*values))


BEFORE_THE_STEP = (
    "on_update_begin",
    "on_batch",
    "on_loss",
    "on_backward",
    "on_gradients",
    "on_before_step",
    "on_step",
)
MOMENTS = (*BEFORE_THE_STEP, "on_update_end", "on_log", "on_evaluate", "on_save", "on_epoch_end")


def crash_at(moment, step):
    """A callback of a class of its own, which listens at one moment only."""
    return type("Crash", (CrashAt,), {})(moment, step)


class Overflow(TrainingCallback):
    """The gradients of some updates are infinite: the scaler skips them."""

    def on_gradients(self, run, update):
        if run.progress.step in (2, 3, 9, 11):
            run.model.crf.transitions.grad.fill_(float("inf"))


SETTINGS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 3, "per_gpu_train_batch_size": 3},
    "bf16": {"bf16": True, "average_decay": 0.0, "schedule": "cosine"},
    "fp16": {
        "fp16": True,
        "gradient_accumulation_steps": 3,
        "per_gpu_train_batch_size": 3,
        "patience": 20,
    },
    "recipes": {
        "do_adv": True,
        "word_dropout": 0.2,
        "rdrop_alpha": 1.0,
        "layer_decay": 0.8,
        "patience": 9,
        "metric_for_best_model": "loss",
    },
    "by pieces": {"max_pieces": 160, "gradient_accumulation_steps": 2},
    "awp, frozen": {
        "awp_gamma": 0.01,
        "fp16": True,
        "freeze_layers": 1,
        "reinit_layers": 1,
        "data_seed": 3,
    },
}
EVERY = {"eval_steps": 3, "save_steps": 4, "logging_steps": 3}
TOTALS = {
    "plain": 14,
    "accumulation": 12,
    "bf16": 14,
    "fp16": 12,
    "recipes": 14,
    "by pieces": 12,
    "awp, frozen": 14,
}
WHOLE = {}


def whole_run(tmp_path_factory, name):
    """The folder of a training that was left alone; made once."""
    if name not in WHOLE:
        WHOLE[name] = tmp_path_factory.mktemp("whole") / "run"
        train_in(
            WHOLE[name],
            callbacks=[Overflow()] if "fp16" in SETTINGS[name] else [],
            **EVERY,
            **SETTINGS[name],
        )
        assert last_step(WHOLE[name]) == TOTALS[name]
    return WHOLE[name]


def disturbed_run(folder, name, disturbances):
    """The same training, disturbed and resumed."""
    overflow = [Overflow()] if "fp16" in SETTINGS[name] else []
    flags = EVERY | SETTINGS[name]
    for disturbance in disturbances:
        with pytest.raises((TrainingInterrupted, KeyError)):
            train_in(folder, callbacks=[*overflow, disturbance], resume="auto", **flags)
    train_in(folder, callbacks=overflow, resume="auto", **flags)


def some_disturbance(total):
    """A signal after some update, or a crash at some moment of some update."""
    signals = st.builds(
        SignalAt, st.integers(1, total - 1), st.sampled_from([signal.SIGTERM, signal.SIGINT])
    )
    crashes = st.builds(crash_at, st.sampled_from(BEFORE_THE_STEP), st.integers(1, total))
    after = st.builds(crash_at, st.just("on_update_end"), st.integers(1, total))
    # with float16 the first three updates overflow, and there is nothing to log
    due = st.builds(crash_at, st.sampled_from(["on_log", "on_evaluate"]), st.sampled_from([6, 9]))
    saved = st.builds(crash_at, st.just("on_save"), st.sampled_from([4, 8]))
    return st.one_of(signals, crashes, after, due, saved)


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_a_resumed_training_ends_in_the_same_bits(tmp_path_factory, name, data):
    """Stopped or killed anywhere, twice, and resumed: whole checkpoint, log and best model are
    those of one go.
    """
    whole = whole_run(tmp_path_factory, name)
    first = data.draw(some_disturbance(TOTALS[name]), label="disturbance")
    folder = tmp_path_factory.mktemp("parts") / "run"
    disturbed_run(folder, name, [first])
    assert differences(whole, folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_after_every_update_and_every_moment_training_goes_on_in_the_same_bits(
    tmp_path_factory, name
):
    """Each update, with a signal and with a crash at each moment that occurs in it."""
    whole, total = whole_run(tmp_path_factory, name), TOTALS[name]
    due = {
        "on_log": {6, 9, 12, total},
        "on_evaluate": {3, 6, 9, 12, total},
        "on_save": {4, 8, 12, total},
    }
    for step in range(1, total + 1):
        disturbances = [crash_at(each, step) for each in MOMENTS if step in due.get(each, {step})]
        disturbances = [
            each for each in disturbances if "on_epoch_end" not in vars(type(each)) or step == total
        ]
        for disturbance in disturbances + [SignalAt(step)] * (step < total):
            folder = tmp_path_factory.mktemp("parts") / "run"
            disturbed_run(folder, name, [disturbance])
            assert differences(whole, folder) == [], (step, vars(type(disturbance)))


def test_training_by_pieces_goes_on_in_an_epoch_with_another_number_of_updates(
    tmp_path, monkeypatch
):
    """The pools of 150 sentences are cut anew each epoch; the place in the second one is found by
    counting.
    """
    monkeypatch.setattr(update_plan, "_POOL", 50)
    dataset = make_dataset(CORPUS.train * 3)
    flags = {"max_pieces": 48, "eval_steps": 0, "save_steps": 0}
    plan = plan_training(make_args(tmp_path, **flags), dataset, ProcessInfo())
    counts = [len(plan.epoch(number)) for number in (0, 1)]
    assert counts[0] != counts[1]
    assert plan.total == sum(counts)

    def run(name, resume=None, callbacks=()):
        args = make_args(tmp_path / name, resume=resume, **flags)
        return train(args, dataset, make_model(), TOKENIZER, None, callbacks=callbacks)[0]

    assert run("whole") == plan.total
    with pytest.raises(TrainingInterrupted):
        run("parts", callbacks=[SignalAt(counts[0] + 5)])
    assert run("parts", resume="auto") == plan.total
    last = f"checkpoint-{plan.total}"
    assert_same_tensors(tmp_path / "whole" / last, tmp_path / "parts" / last)
    assert read_history(tmp_path / "whole") == read_history(tmp_path / "parts")


def test_stopping_twice_is_as_good_as_once(tmp_path):
    train_in(tmp_path / "whole")
    for step in (3, 9):
        with pytest.raises(TrainingInterrupted):
            train_in(tmp_path / "parts", resume="auto", callbacks=[SignalAt(step, signal.SIGINT)])
    train_in(tmp_path / "parts", resume="auto")
    total = last_step(tmp_path / "whole")
    assert_same_tensors(
        tmp_path / f"whole/checkpoint-{total}", tmp_path / f"parts/checkpoint-{total}"
    )


def update_gradient(monkeypatch, run, update):
    """The gradient of one update, before clipping, as one vector."""
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "_step", lambda run: None)
        run.update(update)
    gradient = torch.cat([p.grad.flatten() for p in run.model.parameters()])
    run.optimizer.zero_grad()
    return gradient


def test_accumulation_changes_memory_alone(tmp_path, monkeypatch):
    """16 sentences at once, 2 times 8, 4 times 4, 6 + 6 + 4: the same gradient, up to rounding."""
    update = np.arange(16)
    gradients = []
    for size, steps in ((16, 1), (8, 2), (4, 4), (6, 3)):
        args = make_args(tmp_path, per_gpu_train_batch_size=size, gradient_accumulation_steps=steps)
        run = start_training(args, TRAIN, make_model(0.0), TOKENIZER)
        gradients.append(update_gradient(monkeypatch, run, update))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-5)


def test_the_size_of_an_update_can_be_fixed(tmp_path):
    """Whatever the number of processes: the same updates, and a pass holds what all processes take
    together.
    """
    plans = {}
    for world_size in (1, 2, 3, 4):
        args = make_args(tmp_path, per_gpu_train_batch_size=3, train_batch_size=8)
        plans[world_size] = plan_training(args, TRAIN, ProcessInfo(world_size=world_size))
    one = [update.tolist() for update in plans[1].epoch(1)]
    assert [len(update) for update in one if len(update) != 8] == [len(TRAIN) % 8]
    for world_size, plan in plans.items():
        assert [update.tolist() for update in plan.epoch(1)] == one
        for update in plan.epoch(1):
            parts = plan.micro_batches(update)
            assert sorted(np.concatenate(parts)) == sorted(update)
            assert all(len(part) == 3 * world_size for part in parts[:-1])
    with pytest.raises(ValueError, match="--train_batch_size and --gradient_accumulation_steps"):
        check_config(make_args(tmp_path, train_batch_size=8, gradient_accumulation_steps=2))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([1, 1, 1, 3])), min_size=1, max_size=60),
    st.integers(1, 8),
    st.integers(20, 120),
    st.sampled_from([None, 12]),
)
def test_no_device_takes_more_than_its_budget_of_pieces(sizes, devices, budget, update_size):
    """Padding included; a tenth more where several devices share; a sentence larger than the budget
    goes alone.
    """
    lengths, windows = (np.array(column) for column in zip(*sizes, strict=True))
    by_pieces = None if update_size else devices * budget
    plan = UpdatePlan(
        lengths,
        1,
        update_size or 1,
        0,
        -1,
        1.0,
        windows,
        devices * budget,
        by_pieces,
        devices=devices,
    )
    updates = plan.epoch(0)
    assert sorted(np.concatenate(updates)) == list(range(len(sizes)))  # every sentence, once
    for update in updates:
        passes = plan.micro_batches(update)
        assert sorted(np.concatenate(passes)) == sorted(update)
        for part in passes:
            shares = plan.shares(part, devices)
            assert len(shares) == devices
            assert sorted(np.concatenate(shares)) == sorted(part)
            for share in shares:
                padded = lengths[share].max(initial=0) * windows[share].sum()
                assert len(share) < 2 or padded <= (budget if devices == 1 else 1.1 * budget)


def test_data_parallel_gives_the_same_gradient(tmp_path, monkeypatch):
    """Replicas in one process: each takes its share, the gradient is that of the whole batch."""
    run = start_training(make_args(tmp_path), TRAIN, make_model(0.0), TOKENIZER)
    updates = [*run.plan.epoch(0)[:2], np.array([3])]  # the last has fewer sentences than replicas
    expected = [update_gradient(monkeypatch, run, update) for update in updates]
    run.model = BatchDataParallel(run.model, ["cpu"] * 3)
    for update, gradient in zip(updates, expected, strict=True):
        torch.testing.assert_close(
            update_gradient(monkeypatch, run, update), gradient, rtol=1e-4, atol=1e-5
        )


def test_the_loss_is_the_mean_over_sentences_whatever_the_batches(tmp_path):
    """A learning rate of almost zero: the logged loss of an epoch is the mean loss of the data set."""
    model = make_model(0.0).eval()
    with torch.no_grad():
        batch = TRAIN.collate(np.arange(len(TRAIN)))
        expected = float(model(**batch, reduction="mean").loss)
    for changes in ({}, {"per_gpu_train_batch_size": 3, "gradient_accumulation_steps": 3}):
        folder = tmp_path / str(len(changes))
        _, average = train_in(
            folder, 0.0, learning_rate=1e-12, crf_learning_rate=1e-12, logging_steps=-1, **changes
        )
        losses = [line["loss"] for line in read_history(folder) if "loss" in line]
        assert average == pytest.approx(expected, rel=1e-5)
        assert losses == pytest.approx([expected] * 2, rel=1e-5)


def test_max_steps_stops_the_training(tmp_path):
    assert train_in(tmp_path, max_steps=5)[0] == 5
    assert [line["step"] for line in read_history(tmp_path) if "loss" in line] == [2, 4, 5]
    assert last_step(tmp_path) == 5


def test_no_gradient_leaks_into_the_next_epoch(tmp_path):
    """The last update of an epoch is smaller; after it, as after every update, no gradient is left."""
    run = start_training(
        make_args(tmp_path, gradient_accumulation_steps=4), TRAIN, make_model(), TOKENIZER
    )
    updates = run.plan.epoch(0)
    assert sorted(map(len, updates)) == [18, 32]
    for update in updates:
        run.update(update)
        assert all(p.grad is None for p in run.model.parameters())
    assert run.progress.step == len(updates)


def test_epochs_differ_in_order_and_hold_every_sentence(tmp_path):
    run = start_training(make_args(tmp_path), TRAIN, make_model(), TOKENIZER)
    first, second = ([update.tolist() for update in run.plan.epoch(number)] for number in (0, 1))
    assert first != second
    for epoch in (first, second):
        assert sorted(np.concatenate(epoch)) == list(range(len(TRAIN)))
    assert first == [update.tolist() for update in run.plan.epoch(0)]


def test_an_overflow_leaves_weights_and_schedule_alone(tmp_path):
    """The scaler starts so high that the first updates overflow; the warm-up begins after them."""
    run = start_training(make_args(tmp_path, fp16=True), TRAIN, make_model(), TOKENIZER)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10_000)
    updates = run.plan.epoch(0)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.update(updates[0])
    assert run.progress.skipped == 1
    assert all(
        torch.equal(old, new.detach())
        for old, new in zip(before, run.model.parameters(), strict=True)
    )
    while run.progress.skipped == run.progress.step:
        run.update(updates[1])
    assert run.schedule.last_epoch == run.progress.step - run.progress.skipped == 1


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_learns_like_full_precision(tmp_path, precision):
    losses = {}
    for name in ("full", precision):
        folder = tmp_path / name
        train_in(
            folder,
            0.0,
            num_train_epochs=6.0,
            logging_steps=-1,
            **({} if name == "full" else {name: True}),
        )
        losses[name] = [line["loss"] for line in read_history(folder) if "loss" in line]
    assert losses["full"][-1] < 0.6 * losses["full"][0]
    assert losses[precision][-1] == pytest.approx(losses["full"][-1], rel=0.15)


def test_the_best_model_is_kept_and_is_what_the_log_says(tmp_path):
    """`model/` evaluates to the best F1 of the log, averaged weights included."""
    train_in(tmp_path, 0.0, num_train_epochs=12.0, learning_rate=4e-3, eval_steps=-1)
    scores = [line["dev_f1"] for line in read_history(tmp_path) if "dev_f1" in line]
    assert len(scores) == 12
    assert max(scores) > 0
    model = NerCrfForTokenClassification.from_pretrained(tmp_path / "model")
    result = evaluate(model, DEV)
    assert result.scores.micro.f1 == max(scores)
    progress = load_state(tmp_path / f"checkpoint-{last_step(tmp_path)}")["progress"]
    assert progress["best_score"] == max(scores)


def test_patience_ends_a_training_that_no_longer_improves(tmp_path):
    rates = {"learning_rate": 1e-12, "crf_learning_rate": 1e-12}
    steps, _ = train_in(tmp_path, num_train_epochs=50.0, patience=2, **rates)
    assert steps == 7 * 3  # the first evaluation is the best, two without gain follow
    assert last_step(tmp_path) == steps


def test_only_the_last_checkpoints_stay(tmp_path):
    train_in(tmp_path, save_steps=2, save_total_limit=3)
    assert sorted(int(p.name[11:]) for p in tmp_path.glob("checkpoint-*")) == [10, 12, 14]


def test_evaluation_at_every_logging_step(tmp_path):
    train_in(tmp_path, evaluate_during_training=True, logging_steps=5, max_steps=12)
    assert [line["step"] for line in read_history(tmp_path) if "dev_f1" in line] == [5, 10, 12]


def test_an_earlier_run_is_not_overwritten_by_accident(tmp_path):
    train_in(tmp_path, max_steps=2)
    with pytest.raises(
        ValueError, match=r"holds an earlier run \(checkpoint-2, history.jsonl, model"
    ):
        train_in(tmp_path, max_steps=2)
    train_in(tmp_path, max_steps=4, overwrite_output_dir=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert [line["step"] for line in read_history(tmp_path) if "loss" in line] == [2, 4]


def test_another_training_cannot_be_resumed(tmp_path):
    train_in(tmp_path, max_steps=2)
    with pytest.raises(ValueError, match="made with sentences_an_update = 8, this run has 6"):
        train_in(tmp_path, max_steps=2, per_gpu_train_batch_size=6, resume="auto")
    with pytest.raises(ValueError, match="made with seed = 42, this run has 7"):
        train_in(tmp_path, max_steps=2, seed=7, resume=str(tmp_path / "checkpoint-2"))


def test_a_broken_checkpoint_is_passed_over(tmp_path, caplog):
    """A flipped byte in the newest checkpoint: it is named, and the training resumes from the one before."""
    train_in(tmp_path / "whole", save_steps=4, save_total_limit=5)
    train_in(tmp_path / "parts", save_steps=4, save_total_limit=5)
    newest = (
        tmp_path / "parts" / f"checkpoint-{last_step(tmp_path / 'parts')}" / "model.safetensors"
    )
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with caplog.at_level("INFO"):
        train_in(tmp_path / "parts", save_steps=4, save_total_limit=5, resume="auto")
    assert f"{newest.parent} is broken" in caplog.text
    assert "checkpoint-12 at update 12" in caplog.text
    assert_same_tensors(tmp_path / "whole" / newest.parent.name, newest.parent)
    newest.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        train_in(tmp_path / "parts", resume=str(newest.parent))


def test_a_checkpoint_in_the_name_of_a_path_means_nothing(tmp_path):
    """The reference took any path that holds the word for a run to resume, and crashed."""
    folder = tmp_path / "my-checkpoint-experiments" / "checkpoint"
    assert train_in(folder, max_steps=2)[0] == 2
    train_in(folder, max_steps=2, resume="auto")
    assert last_step(folder) == 2


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="gradient of update 1 is not finite"):
        train(make_args(tmp_path), TRAIN, model, TOKENIZER)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_unused_parameters_do_not_change(tmp_path):
    model = make_model()
    model.encoder.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
    train(make_args(tmp_path, max_steps=3), TRAIN, model, TOKENIZER)
    assert torch.equal(model.encoder.idle, torch.ones(3))


def test_the_saved_folder_says_what_it_is(tmp_path):
    """Label names, scheme, tokenizer and flags are beside the weights."""
    train_in(tmp_path, max_steps=2)
    for folder in (tmp_path / "model", tmp_path / "checkpoint-2"):
        config = json.loads((folder / "config.json").read_text())
        assert "B-PER" in config["id2label"].values()
        assert config["scheme"] == "BIO"
        assert (folder / "tokenizer.json").is_file()
        assert json.loads((folder / "training_config.json").read_text())["seed"] == 42
    assert not [
        path for path in Path(tmp_path).rglob("*") if path.suffix in (".bin", ".pt", ".pkl")
    ]


def test_an_empty_data_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to train on"):
        train(make_args(tmp_path), make_dataset([]), make_model(), TOKENIZER)
    assert not list(tmp_path.iterdir())


def test_the_average_is_a_running_mean_of_the_weights(tmp_path):
    run = start_training(make_args(tmp_path, average_decay=0.9), TRAIN, make_model(), TOKENIZER)
    name, parameter = "crf.transitions", run.model.crf.transitions
    expected = parameter.detach().double().clone()
    for number, update in enumerate(run.plan.epoch(0)):
        run.update(update)
        weight = min(0.9, (1 + number) / (10 + number))
        expected = weight * expected + (1 - weight) * parameter.detach().double()
    average = run.callbacks.find(WeightAverage)
    torch.testing.assert_close(average.average[name].double(), expected, rtol=1e-5, atol=1e-6)
    own = parameter.detach().clone()
    with run.callbacks.evaluation_weights(run):
        assert torch.equal(parameter.detach(), average.average[name])
    assert torch.equal(parameter.detach(), own)
    assert replace(run.args, average_decay=0.0).average_decay == 0.0


def test_resuming_earlier_gives_up_what_came_later(tmp_path):
    """Checkpoints, log lines and the best model of the abandoned branch go; the new branch is not
    pruned away.
    """
    flags = {"save_steps": 2, "save_total_limit": 20}
    train_in(tmp_path / "whole", **flags)
    train_in(tmp_path / "parts", **flags)
    with pytest.raises(TrainingInterrupted):
        train_in(
            tmp_path / "parts",
            callbacks=[SignalAt(5)],
            resume=str(tmp_path / "parts" / "checkpoint-4"),
            **flags | {"save_total_limit": 2},
        )
    assert sorted(path.name for path in (tmp_path / "parts").glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-5",
    ]
    assert max(line["step"] for line in read_history(tmp_path / "parts")) <= 5
    train_in(tmp_path / "parts", resume="auto", **flags)
    assert_same_tensors(tmp_path / "whole" / "checkpoint-14", tmp_path / "parts" / "checkpoint-14")
    assert (tmp_path / "whole/history.jsonl").read_text() == (
        tmp_path / "parts/history.jsonl"
    ).read_text()


def test_resuming_into_another_folder_leaves_a_model_there(tmp_path):
    train_in(tmp_path / "old", save_steps=7, save_total_limit=5)
    source = tmp_path / "old" / "checkpoint-7"
    train_in(tmp_path / "new", resume=str(source))
    assert_same_tensors(tmp_path / "old" / "checkpoint-14", tmp_path / "new" / "checkpoint-14")
    assert json.loads((tmp_path / "new" / "model" / "best.json").read_text())["step"] == 14
    with pytest.raises(ValueError, match="holds an earlier run"):
        train_in(tmp_path / "new", resume=str(source))


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(tmp_path):
    """Only a log is there: `--resume auto` must not be a dead end."""
    (tmp_path / "history.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
    train_in(tmp_path, resume="auto", max_steps=4)
    assert [line["step"] for line in read_history(tmp_path) if "loss" in line] == [2, 4]


def test_broken_checkpoints_alone_are_not_taken_for_none(tmp_path):
    train_in(tmp_path, max_steps=2)
    (tmp_path / "checkpoint-2" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="holds only broken checkpoints"):
        train_in(tmp_path, max_steps=2, resume="auto")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("learning_rate", 0.5),
        ("weight_decay", 0.5),
        ("fp16", True),
        ("average_decay", 0.0),
        ("schedule", "cosine"),
    ],
)
def test_a_changed_flag_is_not_silently_ignored_on_resume(tmp_path, flag, value):
    train_in(tmp_path, max_steps=2)
    with pytest.raises(ValueError, match=f"made with {flag} = "):
        train_in(tmp_path, max_steps=2, resume="auto", **{flag: value})


def test_changed_data_are_not_silently_resumed(tmp_path):
    train_in(tmp_path, max_steps=2)
    args = make_args(tmp_path, max_steps=2, resume="auto")
    with pytest.raises(ValueError, match="made with data = "):
        train(args, make_dataset(CORPUS.train[::-1]), make_model(), TOKENIZER, DEV)


def test_weights_that_are_not_finite_never_replace_good_ones(tmp_path, monkeypatch):
    """The loss turns nan after update 6: the next checkpoint is refused, the one before stands."""
    original = Learner.update

    def poisoned(run, update):
        original(run, update)
        if run.progress.step == 6:
            with torch.no_grad():
                run.model.classifier.bias.fill_(float("nan"))

    monkeypatch.setattr(Learner, "update", poisoned)
    with pytest.raises(
        FloatingPointError,
        match=r"gradient of update 7 is not finite.*last good checkpoint: .*checkpoint-",
    ):
        train_in(tmp_path, save_steps=4, logging_steps=0, eval_steps=0)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_an_overflow_does_not_spoil_the_logged_loss(tmp_path):
    run = start_training(make_args(tmp_path, fp16=True), TRAIN, make_model(), TOKENIZER)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10_000)
    run.update(run.plan.epoch(0)[0])
    assert run.progress.skipped == 1
    assert float(run.watch.total) == 0.0
    assert run.watch.sentences == 0


def test_resuming_behind_the_end_changes_nothing(tmp_path):
    """A training that patience ended is over, however often it is resumed."""
    rates = {
        "learning_rate": 1e-12,
        "crf_learning_rate": 1e-12,
        "num_train_epochs": 50.0,
        "patience": 2,
    }
    steps, _ = train_in(tmp_path, **rates)
    assert train_in(tmp_path, resume="auto", **rates)[0] == steps
    assert last_step(tmp_path) == steps


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    """A folder named model that no run wrote stays, and the training does not begin, since it needs
    the name; a model that is needed is not removed.
    """
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "checkpoint-notes").mkdir()
    args = make_args(tmp_path, max_steps=2, overwrite_output_dir=True)
    assert "model holds no manifest.json of this program" in trainer._clear_output(args)
    assert (tmp_path / "model" / "config.json").exists()
    assert (tmp_path / "checkpoint-notes").exists()
    train_in(tmp_path / "run", max_steps=2)
    needed = make_args(
        tmp_path / "run",
        overwrite_output_dir=True,
        model_name_or_path=str(tmp_path / "run" / "model"),
    )
    assert "--model_name_or_path needs" in trainer._clear_output(needed)
    assert (tmp_path / "run" / "checkpoint-2").exists()
