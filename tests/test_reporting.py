"""What a run tells and leaves: callbacks, best model by any figure, steps as shares, run.json,
reporters, dry run.
"""

import json
import logging
import re
import subprocess
import sys
from dataclasses import asdict
from types import ModuleType, SimpleNamespace

import matplotlib.image
import pytest
import torch
from training import (
    CORPUS,
    DEV,
    TOKENIZER,
    TRAIN,
    assert_same_tensors,
    make_args,
    make_dataset,
    make_model,
    read_history,
    train_in,
    write_corpus,
)

from nercrf.distributed.processes import init_distributed
from nercrf.flags import ScriptConfig
from nercrf.run_ner_crf import main, parse_args
from nercrf.training.callbacks import Callbacks, TrainingCallback
from nercrf.training.cost import estimate_training
from nercrf.training.reporting import data_fingerprint
from nercrf.training.run import plan_training
from nercrf.training.trainer import TrainingInterrupted, train


class Recorder(TrainingCallback):
    """Takes down every moment, with the number of updates done."""

    def __init__(self):
        self.seen = []


def _record(name):
    def method(self, run, *values):
        self.seen.append((name, run.progress.step))

    return method


MOMENTS = [name for name in dir(TrainingCallback) if name.startswith("on_")]
for moment in MOMENTS:
    setattr(Recorder, moment, _record(moment))


def test_every_moment_comes_in_its_order(tmp_path):
    """Two updates of two micro-batches each, all that is due at the second."""
    recorder = Recorder()
    flags = {"per_gpu_train_batch_size": 25, "gradient_accumulation_steps": 2, "average_decay": 0.0}
    train_in(tmp_path, callbacks=[recorder], logging_steps=2, eval_steps=2, save_steps=2, **flags)
    micro = ["on_batch", "on_loss", "on_backward"]
    update = ["on_update_begin", *micro, *micro, "on_gradients", "on_before_step", "on_step"]
    expected = [
        ("on_train_begin", 0),
        ("on_epoch_begin", 0),
        *((name, 0) for name in update),
        ("on_update_end", 1),
        ("on_epoch_end", 1),
        ("on_epoch_begin", 1),
        *((name, 1) for name in update),
        ("on_update_end", 2),
        ("on_log", 2),
        ("on_evaluate", 2),
        ("on_save", 2),
        ("on_epoch_end", 2),
        ("on_train_end", 2),
        ("on_close", 2),
    ]
    assert recorder.seen == expected
    assert {name for name, _ in expected} == set(MOMENTS) - {"on_resume", "on_interrupt"}


def test_an_interruption_and_a_resumption_are_told(tmp_path):
    class Stop(Recorder):
        def on_update_end(self, run, update):
            run.stop.set()

    first, second = Stop(), Recorder()
    with pytest.raises(TrainingInterrupted):
        train_in(tmp_path, callbacks=[first])
    assert [name for name, _ in first.seen][-3:] == ["on_save", "on_interrupt", "on_close"]
    train_in(tmp_path, callbacks=[second], resume="auto")
    assert second.seen[:3] == [("on_resume", 1), ("on_train_begin", 1), ("on_update_begin", 1)]


def test_an_error_closes_what_is_open(tmp_path):
    class Fail(Recorder):
        def on_loss(self, run, *values):
            raise ZeroDivisionError

    failing = Fail()
    with pytest.raises(ZeroDivisionError):
        train_in(tmp_path, callbacks=[failing])
    assert failing.seen[-1] == ("on_close", 0)


class Clock(TrainingCallback):
    """Draws on its state at every update, and so shows whether the state has come back."""

    def __init__(self):
        self.total, self.history = torch.zeros(2), {}

    def on_update_end(self, run, update):
        self.total = self.total * 0.9 + len(update)
        self.history[run.progress.step] = len(update)

    def on_log(self, run, record):
        record["clock"] = self.total.tolist()

    def state_dict(self):
        return {"total": self.total, "history": self.history}

    def load_state_dict(self, state):
        self.total, self.history = state["total"], state["history"]


def test_the_state_of_a_users_callback_is_resumed_exactly(tmp_path):
    class Stop(TrainingCallback):
        def on_step(self, run, stepped):
            if run.progress.step == 5:
                run.stop.set()

    whole, parts = Clock(), Clock()
    train_in(tmp_path / "whole", callbacks=[whole])
    with pytest.raises(TrainingInterrupted):
        train_in(tmp_path / "parts", callbacks=[Clock(), Stop()])
    train_in(tmp_path / "parts", callbacks=[parts], resume="auto")
    assert torch.equal(whole.total, parts.total)
    assert whole.history == parts.history
    assert sorted(whole.history) == list(range(1, 15))
    assert_same_tensors(tmp_path / "whole" / "checkpoint-14", tmp_path / "parts" / "checkpoint-14")
    assert read_history(tmp_path / "whole") == read_history(tmp_path / "parts")


def test_callbacks_without_a_partner_in_the_checkpoint_are_named(caplog):
    states = Callbacks([Clock()]).state_dict()
    with caplog.at_level(logging.WARNING):
        Callbacks([]).load_state_dict(states)
        Callbacks([Clock()]).load_state_dict({})
    assert "a callback Clock, which this run does not have" in caplog.text
    assert "no state of the callback Clock: it starts anew" in caplog.text


def test_a_callback_ends_the_training_with_a_checkpoint(tmp_path):
    class Enough(TrainingCallback):
        def on_evaluate(self, run, result, record):
            if run.progress.step == 6:
                run.stop_reason = "enough"

    assert train_in(tmp_path, callbacks=[Enough()], eval_steps=3)[0] == 6
    assert (tmp_path / "checkpoint-6").is_dir()
    with pytest.raises(TypeError, match="extends TrainingCallback, got 3"):
        train_in(tmp_path / "other", callbacks=[3])


@pytest.mark.parametrize(
    ("metric", "choose"), [("loss", min), ("precision", max), ("recall", max), ("words", max)]
)
def test_the_best_model_is_that_of_the_figure_that_is_asked_for(tmp_path, metric, choose):
    """The dev figures go up and down at will; also one that a callback adds."""

    class Figures(TrainingCallback):
        values = iter([0.3, 0.7, 0.2, 0.9, 0.1, 0.5])

        def on_evaluate(self, run, result, record):
            record[f"dev_{metric}"] = next(self.values)

    train_in(
        tmp_path, callbacks=[Figures()], eval_steps=2, max_steps=12, metric_for_best_model=metric
    )
    lines = [line for line in read_history(tmp_path) if f"dev_{metric}" in line]
    best = choose(lines, key=lambda line: line[f"dev_{metric}"])
    assert json.loads((tmp_path / "model" / "best.json").read_text()) == {
        "step": best["step"],
        f"dev_{metric}": best[f"dev_{metric}"],
    }


def test_early_stopping_goes_by_the_same_figure(tmp_path):
    """The loss on dev falls at every epoch while F1 stays zero: patience by loss never runs out."""
    flags = {
        "learning_rate": 1e-6,
        "crf_learning_rate": 1e-6,
        "num_train_epochs": 5.0,
        "patience": 1,
    }
    assert train_in(tmp_path / "f1", 0.0, **flags)[0] == 7 * 2
    assert train_in(tmp_path / "loss", 0.0, metric_for_best_model="loss", **flags)[0] == 7 * 5


def test_an_unknown_figure_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"expected one of f1, precision, recall, loss, got 'acc"):
        train_in(tmp_path / "out", metric_for_best_model="accuracy")
    assert not (tmp_path / "out").exists()


def test_a_figure_that_no_callback_adds_is_named_at_the_first_evaluation(tmp_path):
    with pytest.raises(
        ValueError, match=r"--metric_for_best_model accuracy: the evaluation has loss, precision"
    ):
        train_in(tmp_path, callbacks=[TrainingCallback()], metric_for_best_model="accuracy")


def test_a_figure_may_be_called_as_transformers_calls_it(tmp_path):
    """`eval_loss` is the loss on dev: a smaller one is better, and the log's name is kept."""
    train_in(tmp_path, max_steps=4, eval_steps=2, metric_for_best_model="eval_loss")
    losses = [line["dev_loss"] for line in read_history(tmp_path) if "dev_loss" in line]
    best = json.loads((tmp_path / "model" / "best.json").read_text())
    assert best["dev_loss"] == min(losses)


def test_steps_may_be_shares_of_the_training(tmp_path):
    """14 updates: a log line every 0.25, which is 4; evaluation at half; half of them with max_steps."""
    train_in(
        tmp_path / "all", logging_steps=0.25, eval_steps=0.5, save_steps=0.5, save_total_limit=9
    )
    log = read_history(tmp_path / "all")
    assert [line["step"] for line in log if "loss" in line] == [4, 8, 12, 14]
    assert [line["step"] for line in log if "dev_f1" in line] == [7, 14]
    assert sorted(path.name for path in (tmp_path / "all").glob("checkpoint-*")) == [
        "checkpoint-14",
        "checkpoint-7",
    ]
    assert train_in(tmp_path / "half", max_steps=0.5)[0] == 7


def test_the_seeds_of_order_and_weights_are_apart(tmp_path):
    def order(**changes):
        plan = plan_training(make_args(tmp_path, **changes), TRAIN, init_distributed(no_cuda=True))
        return [update.tolist() for update in plan.epoch(0)]

    assert order(seed=1) == order(seed=2, data_seed=1)
    assert order(seed=1) != order(seed=1, data_seed=2)
    train_in(tmp_path / "a", max_steps=3, seed=1, data_seed=5)
    train_in(tmp_path / "b", max_steps=3, seed=2, data_seed=5)
    with pytest.raises(ValueError, match="made with data_seed = 5, this run has 6"):
        train_in(tmp_path / "a", max_steps=3, seed=1, data_seed=6, resume="auto")
    losses = [[x["loss"] for x in read_history(tmp_path / name) if "loss" in x] for name in "ab"]
    assert losses[0] != losses[1]  # dropout


def test_the_record_says_which_run_it_was(tmp_path):
    train_in(tmp_path, max_steps=2)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["learning_rate"] == 1e-3
    assert record["data"]["train"] == {"sentences": 50, "fingerprint": data_fingerprint(TRAIN)}
    assert record["data"]["dev"]["fingerprint"] != record["data"]["train"]["fingerprint"]
    build = record["versions"]["torch"]  # the distribution may not name its build: 2.13.0 of +cu130
    assert torch.__version__ in (build, f"{build}+{torch.__version__.partition('+')[2]}")
    assert record["processes"] == 1
    assert record["resumed_from"] == []
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert (record["git"] or {"commit": ""})["commit"] == commit.stdout.strip()
    train_in(tmp_path, max_steps=2, resume="auto")
    assert json.loads((tmp_path / "run.json").read_text())["resumed_from"] == ["checkpoint-2"]
    assert data_fingerprint(make_dataset(CORPUS.train[::-1])) != data_fingerprint(TRAIN)


def test_the_learning_curve_is_drawn_from_the_log(tmp_path):
    train_in(tmp_path, max_steps=6, learning_curve=True)
    picture = matplotlib.image.imread(tmp_path / "learning_curve.png")
    assert picture.shape[:2] == (300, 1000)
    assert picture[..., :3].std() > 0.05


def fake_modules(monkeypatch):
    """Stand-ins for TensorBoard and Weights & Biases that take down what they are given."""
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append(("open", folder.rsplit("/", 1)[1], purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    def init(**options):
        calls.append({name: options[name] for name in ("id", "resume")})
        run = SimpleNamespace(id=options["id"] or "run-7", finish=lambda: calls.append("finished"))
        run.log = lambda values, step: calls.append((step, values))
        return run

    for name, content in {
        "torch.utils.tensorboard": {"SummaryWriter": Writer},
        "wandb": {"init": init},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_tensorboard_gets_every_figure(tmp_path, monkeypatch):
    calls = fake_modules(monkeypatch)
    flags = {"report_to": ["tensorboard"], "logging_steps": 2, "eval_steps": 4}
    train_in(tmp_path, max_steps=4, **flags)
    assert calls[0] == ("open", "tensorboard", None)
    assert calls[-1] == "closed"
    log = read_history(tmp_path)
    for line in log:
        name, figure = ("dev/f1", "dev_f1") if "dev_f1" in line else ("train/loss", "loss")
        assert (name, line[figure], line["step"]) in calls
    train_in(tmp_path, max_steps=4, resume="auto", **flags)
    assert ("open", "tensorboard", 5) in calls


def test_weights_and_biases_goes_on_in_the_same_run(tmp_path, monkeypatch):
    calls = fake_modules(monkeypatch)

    class Stop(TrainingCallback):
        def on_update_end(self, run, update):
            if run.progress.step == 3:
                run.stop.set()

    with pytest.raises(TrainingInterrupted):
        train_in(tmp_path, callbacks=[Stop()], report_to=["wandb"])
    assert calls[0] == {"id": None, "resume": "allow"}
    assert calls[-1] == "finished"
    before = len(calls)
    train_in(tmp_path, resume="auto", report_to=["wandb"])
    assert calls[before] == {"id": "run-7", "resume": "allow"}
    assert [call[0] for call in calls if isinstance(call, tuple) and "train/loss" in call[1]] == [
        2,
        4,
        6,
        8,
        10,
        12,
        14,
    ]


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_reporter_that_is_missing_is_told_before_anything_is_written(
    tmp_path, monkeypatch, name, module
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ModuleNotFoundError, match=f"--report_to {name} needs the package {name}, .*: pip install"
    ):
        train_in(tmp_path / "run", report_to=[name])
    assert not (tmp_path / "run").exists()


def test_flags_from_a_file_and_others_on_top(tmp_path, capsys):
    pytest.importorskip("yaml")
    file = tmp_path / "flags.yaml"
    file.write_text(
        "learning_rate: 3e-5  # a string to YAML\nfp16: true\nreport_to: [wandb]\nconstrain: false\nseed: 3\n"
    )
    args = parse_args(["--config", str(file), "--seed", "8", "--output_dir", "x"])
    assert (args.learning_rate, args.fp16, args.report_to, args.constrain) == (
        3e-5,
        True,
        ["wandb"],
        False,
    )
    assert (args.seed, args.output_dir, args.config) == (8, "x", str(file))
    file.write_text("learning_rat: 1\n")
    with pytest.raises(SystemExit):
        parse_args(["--config", str(file)])
    assert "no flag is called learning_rat; did you mean learning_rate?" in capsys.readouterr().err
    file.write_text("seed: many\n")
    with pytest.raises(SystemExit):
        parse_args(["--config", str(file)])
    assert "invalid int value: 'many'" in capsys.readouterr().err


def test_the_configuration_of_a_run_can_be_read_back(tmp_path):
    """`training_config.json` beside a model is a file for --config: the same flags."""
    train_in(tmp_path, max_steps=2, word_dropout=0.25)
    file = str(tmp_path / "model" / "training_config.json")
    flags = asdict(make_args(tmp_path, max_steps=2, word_dropout=0.25))
    assert parse_args(["--config", file]) == ScriptConfig(**flags, config=file)


def test_the_dry_run_leaves_nothing_behind(tmp_path, capsys):
    data, output = write_corpus(tmp_path / "data"), tmp_path / "out"
    command = [
        "--data_dir",
        str(data),
        "--output_dir",
        str(output),
        "--do_train",
        "--do_eval",
        "--do_predict",
        "--no_cuda",
        "--dry_run",
        "--num_train_epochs",
        "4",
        "--per_gpu_train_batch_size",
        "10",
    ]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "dry run: 50 sentences, 10 an update, 5 updates an epoch, 20 in all" in text
    assert re.search(r"about [\d.]+ s an update, 0:\d\d:\d\d in all", text)
    assert re.search(r"peak memory a process: [\d,]{3,} MiB", text)
    assert not output.exists()


def test_the_estimate_counts_what_the_training_makes(tmp_path):
    args = make_args(tmp_path, freeze_embeddings=True, do_adv=False)
    model = make_model()
    estimate = estimate_training(args, TRAIN, model, TOKENIZER)
    assert (estimate.updates, estimate.updates_per_epoch, estimate.sentences_an_update) == (
        14,
        7,
        8,
    )
    assert estimate.parameters == sum(p.numel() for p in model.parameters())
    assert (
        estimate.trained
        == sum(p.numel() for p in model.parameters() if p.requires_grad)
        < estimate.parameters
    )
    assert train(args, TRAIN, make_model(), TOKENIZER, DEV)[0] == estimate.updates
