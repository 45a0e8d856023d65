"""Evaluation counts every gold entity once, whatever the windows, the batches and the processes."""

import itertools

import numpy as np
import pytest
import torch
from training import CORPUS, DEV, make_dataset, make_model
from workers import run_workers

from nercrf.distributed import BatchDataParallel
from nercrf.evaluate import evaluate, evaluation_batches
from nercrf.trainer import TrainingConfig

GOLD = sum(len(example.spans) for example in CORPUS.dev)


@pytest.fixture(scope="module")
def model():
    return make_model().eval()


def flags(size=8):
    return TrainingConfig(per_gpu_eval_batch_size=size, no_cuda=True)


@pytest.mark.parametrize("max_seq_length", [6, 9, 17, 64])
def test_every_gold_entity_counts_whatever_the_window(model, max_seq_length):
    dataset = make_dataset(CORPUS.dev, max_seq_length)
    result = evaluate(flags(), model, dataset)
    assert result.scores.micro.gold == GOLD
    assert result.sentences == len(result.predicted) == len(CORPUS.dev)
    assert result.scores.micro.predicted == sum(map(len, result.predicted))


def test_spans_lie_in_their_sentence(model):
    for example, spans in zip(CORPUS.dev, evaluate(flags(), model, DEV).predicted, strict=True):
        assert all(0 <= start < end <= len(example.tokens) for _, start, end in spans)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_the_batch_size_changes_nothing(model, size):
    expected, result = evaluate(flags(), model, DEV), evaluate(flags(size), model, DEV)
    assert result.predicted == expected.predicted
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)


def test_data_parallel_gives_the_same(model):
    expected = evaluate(flags(), model, DEV)
    result = evaluate(flags(), BatchDataParallel(model, ["cpu", "cpu"]), DEV)
    assert result == expected
    assert not model.training


def test_the_loss_is_the_mean_negative_log_likelihood(model):
    with torch.no_grad():
        batch = DEV.collate(np.arange(len(DEV)))
        expected = float(model(**batch, reduction="mean").loss)
    assert evaluate(flags(), model, DEV).loss == pytest.approx(expected, rel=1e-5)


def test_batches_of_all_processes_are_the_batches_of_one():
    alone = [batch.tolist() for batch in evaluation_batches(DEV, 3)]
    shares = [[batch.tolist() for batch in evaluation_batches(DEV, 3, rank, 4)] for rank in range(4)]
    assert sorted(alone) == sorted(itertools.chain.from_iterable(shares))


def test_two_processes_give_the_bits_of_one(model):
    """Loss, spans and figures, compared as JSON numbers: equal to the last digit."""
    results, _ = run_workers("evaluation", processes=2, arguments=["5"])
    alone = evaluate(flags(5), model, DEV)
    for result in results:
        assert result["figures"] == alone.to_dict()
        assert result["predicted"] == [[list(span) for span in spans] for spans in alone.predicted]


def test_the_mode_of_the_model_is_left_as_it_was():
    training = make_model().train()
    evaluate(flags(), training, DEV)
    assert training.training
