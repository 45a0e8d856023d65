"""The rows of the embedding that a training reads: the same training as over all rows."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp
from torch import nn
from training import (
    DEV,
    TOKENIZER,
    TRAIN,
    UNREAD,
    all_tensors,
    last_step,
    make_args,
    make_model,
    read_history,
    train_in,
)

from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.training.callbacks import TrainingCallback
from nercrf.training.cost import estimate_training
from nercrf.training.lean import SeenEmbedding, fit_rows
from nercrf.training.run import start_training
from nercrf.training.trainer import train

WEIGHT = "encoder.embeddings.word_embeddings.weight"
ROWS = len(TOKENIZER) + UNREAD


@given(
    seen=hnp.arrays(bool, 9),
    ids=hnp.arrays(
        int, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4), elements=st.integers(0, 8)
    ),
    padding=st.none() | st.integers(0, 8),
)
def test_rows_and_gradients_are_those_of_the_whole(seen, ids, padding):
    """Any choice of rows that holds the ids: values, gradients, weights that are saved and loaded."""
    whole, ids = nn.Embedding(9, 3, padding_idx=padding), torch.from_numpy(ids)
    with torch.no_grad():
        nn.init.normal_(whole.weight)
    part = SeenEmbedding(whole, torch.from_numpy(seen).index_fill(0, ids.flatten(), True))
    assert torch.equal(part.whole, whole.weight)
    assert torch.equal(part(ids), whole(ids))
    with torch.no_grad():
        assert torch.equal(part(torch.arange(9)), whole(torch.arange(9)))
    factors = torch.randn(*ids.shape, 3)
    for each in (whole, part):
        (each(ids) * factors).sum().backward()
    assert torch.equal(fit_rows(part.weight.grad, part.seen, None, 9), whole.weight.grad)
    other = nn.Embedding(9, 3)
    part.load_state_dict(other.state_dict())
    assert torch.equal(part.state_dict()["weight"], other.weight)


def updates(folder, **flags):
    """Losses of all updates of a training in float64 without dropout, and all weights after them."""
    args = make_args(folder, average_decay=0.0, **flags)
    run = start_training(args, TRAIN, make_model(0.0).double(), TOKENIZER)
    losses = []
    for epoch in (0, 1):
        for update in run.plan.epoch(epoch):
            run.update(update)
            losses.append(run.log()["loss"])
    return run, losses, run.model.state_dict()


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"weight_decay": 0.0},
        {"weight_decay": 5.0, "fused_optimizer": False},
        {"max_grad_norm": 0.01, "per_gpu_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"layer_decay": 0.5, "weight_decay": 5.0},
        {"do_adv": True, "weight_decay": 5.0},
        {"awp_gamma": 0.01},
        {"word_dropout": 0.3},
        {"rdrop_alpha": 1.0},
        {"freeze_embeddings": True},
        {"pass_pieces": 40},
    ],
    ids=str,
)
def test_a_training_of_the_seen_rows_is_that_of_all(tmp_path, flags):
    run, losses, weights = updates(tmp_path, **flags)
    whole_run, expected, whole = updates(tmp_path, seen_embedding=False, **flags)
    assert whole_run.embedding is None
    if not flags.get("freeze_embeddings"):
        assert UNREAD <= len(run.embedding.rest) < ROWS
    assert losses == pytest.approx(expected, rel=1e-9)
    assert weights.keys() == whole.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-9, atol=1e-10)
    if flags.get("weight_decay"):  # what is not read has decayed
        ratio = weights[WEIGHT][-UNREAD:] / make_model(0.0).double().state_dict()[WEIGHT][-UNREAD:]
        assert ratio.max() < 0.999


def test_what_is_saved_is_whole_and_the_averages_are_not(tmp_path):
    """The dev set has pieces that the training set lacks; the model that `train` leaves is an
    ordinary one.
    """
    model = make_model()
    args = make_args(tmp_path, average_decay=0.0, eval_steps=2, num_train_epochs=1.0)
    train(args, TRAIN, model, TOKENIZER, DEV)
    tensors = all_tensors(tmp_path / f"checkpoint-{last_step(tmp_path)}")
    seen = tensors["state.safetensors:state/embedding_rows"]
    assert not set(DEV.features.input_ids.tolist()) <= set(seen.tolist())
    assert set(TRAIN.features.input_ids.tolist()) <= set(seen.tolist())
    assert tensors[f"model.safetensors:{WEIGHT}"].shape == (ROWS, 32)
    sizes = [
        len(x) for name, x in tensors.items() if name.endswith("exp_avg") and x.shape[1:] == (32,)
    ]
    assert max(sizes) == len(seen) < ROWS - UNREAD
    assert type(model.encoder.get_input_embeddings()) is nn.Embedding
    assert torch.equal(model.state_dict()[WEIGHT], tensors[f"model.safetensors:{WEIGHT}"])
    loaded = NerCrfForTokenClassification.from_pretrained(tmp_path / "model")
    assert type(loaded.encoder.get_input_embeddings()) is nn.Embedding


def test_figures_on_dev_are_those_of_the_whole(tmp_path):
    for name, seen in (("seen", True), ("whole", False)):
        train_in(tmp_path / name, 0.0, seen_embedding=seen, weight_decay=1.0)
    one, other = (read_history(tmp_path / name) for name in ("seen", "whole"))
    assert len(one) == len(other) > 4
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for key in left.keys() & {"loss", "dev_loss", "dev_f1"}:
            assert left[key] == pytest.approx(right[key], rel=1e-4)


@pytest.mark.parametrize("before", [True, False])
def test_a_training_goes_on_with_the_other_choice(tmp_path, before):
    """The averages get the rows that they need."""
    flags = {"average_decay": 0.0, "weight_decay": 1.0, "save_steps": 5, "save_total_limit": 9}
    train_in(tmp_path / "whole", 0.0, seen_embedding=before, **flags)
    last = last_step(tmp_path / "whole")
    resumed = {"seen_embedding": not before, "resume": str(tmp_path / "whole" / "checkpoint-5")}
    assert last > 5
    train_in(tmp_path / "resumed", 0.0, **flags, **resumed)
    one, other = (
        all_tensors(tmp_path / name / f"checkpoint-{last}") for name in ("whole", "resumed")
    )
    for name in (name for name in one if name.startswith("model")):
        torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=1e-4)
    assert ("state.safetensors:state/embedding_rows" in one) is before
    assert ("state.safetensors:state/embedding_rows" in other) is not before


def test_an_average_of_other_rows_is_refused(tmp_path):
    train_in(tmp_path / "one", max_steps=3)
    with pytest.raises(ValueError, match="resume with the --seen_embedding that it was made with"):
        train_in(tmp_path / "one", max_steps=3, resume="auto", seen_embedding=False)


def test_a_step_that_is_left_out_leaves_the_rest_alone(tmp_path):
    run = start_training(
        make_args(tmp_path, fp16=True, weight_decay=9.0), TRAIN, make_model(), TOKENIZER
    )
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = run.embedding.rest.clone()
    first, second = run.plan.epoch(0)[:2]
    run.update(first)
    assert run.progress.skipped == 1
    assert torch.equal(run.embedding.rest, before)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    rate = run.optimizer.param_groups[0]["lr"]
    run.update(second)
    torch.testing.assert_close(run.embedding.rest, before * (1 - 9 * rate))


class OtherPieces(TrainingCallback):
    """Puts a piece into each batch."""

    def __init__(self, piece):
        self.piece = piece

    def on_batch(self, run, batch, sentences):
        """The last piece of each sentence is another one."""
        ids = batch["input_ids"].clone()
        ids[:, -1] = self.piece
        return {**batch, "input_ids": ids}


def test_a_piece_that_would_not_be_trained_is_an_error(tmp_path):
    """And the model is an ordinary one again after it."""
    callbacks, model = [OtherPieces(ROWS - 1)], make_model()
    with pytest.raises(
        IndexError, match=rf"pieces \[{ROWS - 1}\] are to be trained.*--no_seen_embedding"
    ):
        train(make_args(tmp_path / "seen"), TRAIN, model, TOKENIZER, callbacks=callbacks)
    assert type(model.encoder.get_input_embeddings()) is nn.Embedding
    args = make_args(tmp_path / "whole", seen_embedding=False, max_steps=2)
    assert train(args, TRAIN, model, TOKENIZER, callbacks=callbacks)[0] == 2


def test_an_estimate_counts_all_weights(tmp_path):
    expected = sum(p.numel() for p in make_model().parameters())
    estimates = [
        estimate_training(make_args(tmp_path, seen_embedding=seen), TRAIN, make_model(), TOKENIZER)
        for seen in (True, False)
    ]
    assert [each.parameters for each in estimates] == [expected, expected]
    assert expected - estimates[1].trained == 0
    assert estimates[0].trained <= expected - 32 * UNREAD


def test_a_model_that_another_run_was_started_with_is_whole_first(tmp_path):
    """After an estimate, or an error before the first update, a training trains and decays what it
    would have.
    """
    model = make_model()
    weights = model.state_dict()[WEIGHT]
    runs = [
        start_training(make_args(tmp_path, seen_embedding=seen), TRAIN, model, TOKENIZER)
        for seen in (True, True)
    ]
    assert model.encoder.get_input_embeddings() is runs[1].embedding is not runs[0].embedding
    assert torch.equal(model.state_dict()[WEIGHT], weights)
    run = start_training(make_args(tmp_path, seen_embedding=False), TRAIN, model, TOKENIZER)
    assert run.embedding is None
    assert type(model.encoder.get_input_embeddings()) is nn.Embedding
