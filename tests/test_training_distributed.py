"""The exported script under torchrun: two processes make the training of one, write one log, stop
and resume alike.
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from encoders import make_family
from safetensors.torch import load_file
from training import (
    UNEVEN,
    assert_same_tensors,
    last_step,
    read_history,
    run_script,
    updates_in_float64,
    write_corpus,
    write_encoder,
)
from workers import run_workers

# Adam divides a gradient by its own size: where it is almost zero, a rounding error of the sum over
# processes can turn its sign, and the weight moves by up to twice the rate. Such weights are few
# and matter little, so the losses agree to rounding; the weights to a few steps of the rate.
LOSS_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Data and an encoder without dropout."""
    folder = tmp_path_factory.mktemp("inputs")
    return write_corpus(folder / "data"), write_encoder(folder / "encoder")


def flags(inputs, output, *more):
    """A short training with the encoder's and the classifier's dropout off."""
    data, encoder = inputs
    names = ["--data_dir", data, "--model_name_or_path", encoder, "--output_dir", output]
    return [
        *names,
        "--no_cuda",
        "--do_train",
        "--do_eval",
        "--do_predict",
        "--num_train_epochs",
        2,
        "--learning_rate",
        1e-3,
        "--crf_learning_rate",
        1e-2,
        "--logging_steps",
        1,
        "--eval_max_seq_length",
        128,
        *more,
    ]


def test_two_processes_make_the_training_of_one(inputs, tmp_path):
    """The same losses, the same figures, one log, one set of files, one cache; 50 sentences in
    updates of 12.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    common = ["--dropout", 0, "--average_decay", 0.9]
    run_script(*flags(inputs, one, *common, "--per_gpu_train_batch_size", 12))
    finished = run_script(
        *flags(
            inputs,
            two,
            *common,
            "--per_gpu_train_batch_size",
            3,
            "--gradient_accumulation_steps",
            2,
            "--feature_cache_dir",
            tmp_path / "cache",
        ),
        processes=2,
    )
    logs = [read_history(folder) for folder in (one, two)]
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert len(losses[0]) == 10
    assert losses[1] == pytest.approx(losses[0], rel=LOSS_TOLERANCE)
    figures = [
        json.loads((folder / "eval_results.json").read_text())["model"] for folder in (one, two)
    ]
    for split in ("dev", "test"):
        for name in ("gold", "predicted", "correct", "sentences", "f1", "unseen_f1"):
            assert figures[1][split][name] == figures[0][split][name], (split, name)
        assert figures[1][split]["loss"] == pytest.approx(
            figures[0][split]["loss"], rel=LOSS_TOLERANCE
        )
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-2, atol=2e-3)
    names = [sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) for folder in (one, two)]
    assert names[0] == names[1]
    assert (
        finished.stderr.count("training on 50 sentences, 12 an update, 10 updates, 2 process(es)")
        == 1
    )
    assert "\r" not in finished.stderr  # no progress bar without a terminal
    assert finished.stdout.count("unseen surfaces") == 2
    assert (
        finished.stderr.count("features written to") == 3
    )  # train, dev and test, each by the main process alone
    cached = sorted(
        path.name.partition("-")[0] for path in (tmp_path / "cache").glob("*.safetensors")
    )
    assert cached == ["corpus", "dev", "test", "train"]


def test_two_processes_call_an_encoder_of_equal_lengths_as_often_as_each_needs(tmp_path):
    """ConvBERT reads windows of equal length together: other calls on each process, one exchange."""
    encoder = make_family("convbert", tmp_path / "encoder")
    inputs = write_corpus(tmp_path / "data"), encoder
    common = ["--dropout", 0, "--encoder_dropout", 0, "--max_steps", 4]
    common += ["--eval_max_seq_length", 96]
    for name, processes, size in [("one", 1, 6), ("two", 2, 3)]:
        more = [*common, "--per_gpu_train_batch_size", size]
        run_script(*flags(inputs, tmp_path / name, *more), processes=processes)
    logs = [read_history(tmp_path / name) for name in ("one", "two")]
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=LOSS_TOLERANCE)


# What the bound below says. In float64 the gradient of an update is a sum of at most 10^4 terms, so
# another order of its terms changes it by about 10^4 times 10^-16 of its size (below 100 here):
# 10^-10 is safe. Adam moves a weight by rate * m / (sqrt(v) + epsilon), whose derivative by the
# gradient is at most about rate / epsilon, where the gradient is nearly zero. With 8 updates, a
# rate of at most 1e-2 and epsilon 1e-4 (a flag; its usual 1e-8 would make noise of what is zero),
# two weights can move apart by 8 * 1e-2 * 1e-10 / 1e-4 = 8e-8. Observed is 3e-16.
SAME_WEIGHTS = 1e-7
SAME_LOSSES = 1e-9  # relative; losses are 5 to 60 nats, observed is 4e-16
EPSILON = {"adam_epsilon": 1e-4}
RECIPES = {
    "do_adv": True,
    "adv_epsilon": 0.1,
    "word_dropout": 0.3,
    "layer_decay": 0.9,
    "rdrop_alpha": 1.0,
}


def assert_same_training(result, expected, updates=8):
    """Losses and weights agree to the bounds above."""
    (losses, weights), (expected_losses, expected_weights) = result, expected
    assert len(losses) == updates
    assert losses == pytest.approx(expected_losses, rel=SAME_LOSSES)
    torch.testing.assert_close(
        torch.tensor(weights), torch.tensor(expected_weights), rtol=0, atol=SAME_WEIGHTS
    )


@pytest.fixture(scope="module")
def trainings_of_one(tmp_path_factory):
    """The training of one process, plain and with recipes."""
    folder = tmp_path_factory.mktemp("one")
    return [
        updates_in_float64(folder, per_gpu_train_batch_size=12, **EPSILON, **changes)
        for changes in ({}, RECIPES)
    ]


def test_accumulation_and_replicas_make_the_training_of_one_batch(trainings_of_one, tmp_path):
    """38 sentences of very different length in updates of 12: cut in parts, or spread over two replicas."""
    for changes, expected in zip(({}, RECIPES), trainings_of_one, strict=True):
        changes = EPSILON | changes
        parts = {"per_gpu_train_batch_size": 4, "gradient_accumulation_steps": 3}
        assert_same_training(updates_in_float64(tmp_path, **parts, **changes), expected)
        whole = {"per_gpu_train_batch_size": 12}
        assert_same_training(
            updates_in_float64(tmp_path, ["cpu", "cpu"], **whole, **changes), expected
        )


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_any_number_of_processes_makes_the_training_of_one(trainings_of_one, processes):
    """Of four processes two have no share of an update of two sentences; every process ends with
    the same weights.
    """
    accumulation = {"gradient_accumulation_steps": 3} if processes == 2 else {}
    settings = [EPSILON | accumulation, EPSILON | RECIPES]
    results, _ = run_workers("same_updates", processes, [json.dumps(settings)])
    for of_rank in results:
        for result, expected in zip(of_rank, trainings_of_one, strict=True):
            assert_same_training(result, expected)
    assert all(of_rank == results[0] for of_rank in results)


# Budgets of all processes together: one batch an update; two batches an update; updates of 12
# sentences, whatever the budget. The longest sentence takes 413 pieces, so it is alone in its pass,
# and the other processes wait.
BY_PIECES = [
    {"max_pieces": 512},
    {"max_pieces": 256, "gradient_accumulation_steps": 2},
    {"max_pieces": 384, "train_batch_size": 12},
]


def test_a_budget_of_pieces_makes_the_same_training_on_any_number_of_processes():
    """Each process has its share of the budget; every sentence is trained on once an epoch by one of them."""
    settings = json.dumps([EPSILON | changes for changes in BY_PIECES])
    runs = {
        processes: run_workers("updates_by_pieces", processes, [settings])[0]
        for processes in (1, 2)
    }
    for number, changes in enumerate(BY_PIECES):
        one = runs[1][0][number]
        for processes, ranks in runs.items():
            found = [ranks[rank][number] for rank in range(processes)]
            for each in found:
                assert_same_training(
                    (each["losses"], each["weights"]), (one["losses"], one["weights"])
                )
                assert each["weights"] == found[0]["weights"]
            batches = [batch for each in found for batch in each["batches"]]
            for epoch in (0, 1):
                seen = [index for at, indices, _ in batches for index in indices if at == epoch]
                assert sorted(seen) == list(range(len(UNEVEN)))
            limit = changes["max_pieces"] / processes * (1.1 if processes > 1 else 1)
            assert all(pieces <= limit for _, indices, pieces in batches if len(indices) > 1)
            assert any(len(indices) > 2 for _, indices, _ in batches)


def test_two_processes_stop_together_and_go_on_in_the_same_bits_by_pieces():
    """In mid-epoch."""
    changes = json.dumps({"max_pieces": 80})
    results, _ = run_workers("interrupted_training", 2, [json.dumps([2, 9]), changes])
    assert results == [{"2": [], "9": []}] * 2


def test_two_processes_stop_together_and_go_on_in_the_same_bits():
    """One of them is asked to stop, at three updates; float16, accumulation, dropout, averages,
    adversarial passes.
    """
    results, _ = run_workers("interrupted_training", 2, [json.dumps([1, 6, 12])])
    assert results == [{"1": [], "6": [], "12": []}] * 2


@pytest.mark.slow
def test_two_processes_go_on_in_the_same_bits_after_any_update():
    steps = list(range(1, 14))
    results, _ = run_workers("interrupted_training", 2, [json.dumps(steps)], timeout=600)
    assert results == [{str(step): [] for step in steps}] * 2


def interrupt_after(history, steps):
    """Send SIGTERM to the launcher when the log has so many lines."""

    def wait_and_send(process):
        deadline = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < deadline:
            if history.exists() and len(history.read_text().splitlines()) >= steps:
                process.send_signal(signal.SIGTERM)
                return
            time.sleep(0.005)

    return wait_and_send


@pytest.mark.parametrize("processes", [1, 2])
def test_interrupted_and_resumed_training_ends_in_the_same_bits(inputs, tmp_path, processes):
    """SIGTERM in mid-epoch, dropout on, accumulation 2: a checkpoint stands, and the resumed run
    ends alike.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = [
        "--dropout",
        0.3,
        "--per_gpu_train_batch_size",
        2,
        "--gradient_accumulation_steps",
        2,
        "--num_train_epochs",
        8,
        "--max_steps",
        80 // processes,
    ]
    run_script(*flags(inputs, whole, *common), processes=processes)
    before = {"before_wait": interrupt_after(parts / "history.jsonl", 7)}
    stopped = run_script(*flags(inputs, parts, *common), processes=processes, check=False, **before)
    assert stopped.returncode == (75 if processes == 1 else 1), stopped.stderr
    assert stopped.stderr.count("go on with --resume auto") == 1
    total, at = last_step(whole), last_step(parts)
    assert 7 <= at < total
    run_script(*flags(inputs, parts, *common, "--resume", "auto"), processes=processes)
    assert_same_tensors(whole / f"checkpoint-{total}", parts / f"checkpoint-{total}")
    assert (whole / "history.jsonl").read_text() == (parts / "history.jsonl").read_text()
    assert (whole / "eval_results.json").read_text() == (parts / "eval_results.json").read_text()


def test_an_error_of_one_process_ends_all(inputs, tmp_path):
    """A malformed file is told once per process in a sentence, and nobody hangs."""
    data = write_corpus(tmp_path / "data")
    file = Path(data, "dev.bio")
    file.write_text(
        "word\tB-PER\textra\nword\n" + file.read_text(encoding="utf-8"), encoding="utf-8"
    )
    began = time.monotonic()
    finished = run_script(*flags((data, inputs[1]), tmp_path / "out"), processes=2, check=False)
    assert finished.returncode != 0
    assert f"{file}:2" in finished.stderr
    assert time.monotonic() - began < 60
    assert not os.path.exists(tmp_path / "out" / "history.jsonl")
