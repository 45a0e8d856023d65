"""Weights shared out among processes (FSDP): the same training as DDP, and checkpoints that do not
tell.
"""

import json

import pytest
import torch
from encoders import make_family
from training import (
    CORPUS,
    TOKENIZER,
    TRAIN,
    all_tensors,
    last_step,
    read_history,
    run_script,
    write_corpus,
    write_encoder,
)
from workers import run_workers

from nercrf.distributed.processes import ProcessInfo
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.tagging.tagger import Tagger
from nercrf.training.checkpoint import load_state
from nercrf.training.lean import fit_rows
from nercrf.training.run import start_training
from nercrf.training.trainer import check_config, resolve_config
from nercrf.training.training_config import TrainingConfig


@pytest.fixture(scope="module")
def ranks():
    """What two processes found."""
    return run_workers("sharding")[0]


def test_gradient_norm_and_step_are_those_of_one_process(ranks):
    """Uneven shares, two micro-batches: gradients of shares and of whole weights, their norm, a
    step of AdamW.
    """
    for rank in ranks:
        assert rank["kinds"] == ["BertModel", "CRF"]  # shared out, whole
        assert rank["gradient"] < 1e-6
        assert rank["norm"] < 1e-5
        assert rank["clipped"] < 1e-6
        assert rank["weights"] < 1e-5


def test_a_process_holds_its_share_only(ranks):
    shares = [rank["held"] for rank in ranks]
    whole = ranks[0]["whole"]
    assert all(0.4 * whole < share < 0.7 * whole for share in shares)
    assert sum(shares) < 1.2 * whole


def test_evaluation_needs_no_other_process(ranks):
    """Two forward passes here, none there: without the whole weights this would wait for ever."""
    assert [rank["passes"] for rank in ranks] == [2, 0]
    assert ranks[0]["logits"] < 1e-5
    assert [rank["held"] for rank in ranks] == [rank["held_after"] for rank in ranks]


def test_state_goes_out_and_in_again(ranks):
    """Whole tensors on the main process alone; each takes its share back, and the next step is the same."""
    assert [rank["state_on"] for rank in ranks] == [True, False]
    assert all(rank["same_after"] for rank in ranks)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Data and an encoder without dropout."""
    folder = tmp_path_factory.mktemp("inputs")
    return write_corpus(folder / "data"), write_encoder(folder / "encoder")


def train_with(inputs, output, strategy, *more, processes=2):
    """A training of two epochs."""
    data, encoder = inputs
    run_script(
        "--data_dir",
        data,
        "--model_name_or_path",
        encoder,
        "--output_dir",
        output,
        "--no_cuda",
        "--do_train",
        "--do_eval",
        "--num_train_epochs",
        2,
        "--dropout",
        0,
        "--learning_rate",
        1e-3,
        "--crf_learning_rate",
        1e-2,
        "--logging_steps",
        1,
        "--eval_max_seq_length",
        128,
        "--per_gpu_train_batch_size",
        3,
        "--gradient_accumulation_steps",
        2,
        "--strategy",
        strategy,
        "--save_total_limit",
        9,
        *more,
        processes=processes,
    )
    return output


@pytest.fixture(scope="module")
def trainings(inputs, tmp_path_factory):
    """The same training with both strategies."""
    folder = tmp_path_factory.mktemp("trainings")
    return {name: train_with(inputs, folder / name, name) for name in ("ddp", "fsdp")}


def losses(folder):
    """The log's losses."""
    return [line["loss"] for line in read_history(folder) if "loss" in line]


def whole_rows(folder):
    """A checkpoint's tensors; the averages of the embedding with a row for each piece, whatever was
    trained.
    """
    tensors = all_tensors(folder)
    held = tensors.pop("state.safetensors:state/embedding_rows", None)
    rows = len(tensors["model.safetensors:encoder.embeddings.word_embeddings.weight"])
    return {
        name: fit_rows(tensor, held, None, rows) if name.startswith("state") else tensor
        for name, tensor in tensors.items()
    }


def close(one, other):
    """Adam can turn a rounding error near a gradient of zero into a step of the rate, see the tests
    of DDP.
    """
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-2, atol=2e-3, msg=name)


def test_losses_figures_and_weights_are_those_of_ddp(trainings):
    assert len(losses(trainings["ddp"])) == 10
    assert losses(trainings["fsdp"]) == pytest.approx(losses(trainings["ddp"]), rel=1e-4)
    figures = [
        json.loads((trainings[name] / "eval_results.json").read_text())["model"]
        for name in ("ddp", "fsdp")
    ]
    for split in ("dev", "test"):
        for name in ("gold", "predicted", "correct", "sentences", "f1"):
            assert figures[1][split][name] == figures[0][split][name]
    step = last_step(trainings["ddp"])
    close(*(whole_rows(trainings[name] / f"checkpoint-{step}") for name in ("ddp", "fsdp")))


def test_the_folders_are_the_same_and_load_in_one_process(trainings):
    names = [
        sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
        for folder in trainings.values()
    ]
    assert names[0] == names[1]
    configs = [
        json.loads((folder / "model" / "config.json").read_text()) for folder in trainings.values()
    ]
    assert configs[0] == configs[1]
    taggers = [
        Tagger.from_pretrained(folder / "model", device="cpu") for folder in trainings.values()
    ]
    weights = [tagger.model.state_dict() for tagger in taggers]
    close(*weights)
    texts = [example.text for example in CORPUS.test + CORPUS.dev]
    assert taggers[0](texts) == taggers[1](texts)


@pytest.mark.slow
def test_the_tagger_finds_what_its_twin_of_one_process_finds(trainings, inputs, tmp_path):
    steps = ("--gradient_accumulation_steps", 4)  # for the two of two processes
    alone = train_with(inputs, tmp_path / "alone", "ddp", *steps, processes=1)
    examples, found = CORPUS.test + CORPUS.dev, []
    for folder in (alone, trainings["fsdp"]):
        tagger = Tagger.from_pretrained(folder, device="cpu")
        chains = [chain for _, chain in tagger.engine.chains(examples, False)]
        chances = torch.cat([chain.marginals().flatten() for chain in chains])
        found.append((tagger.tag_examples(examples), chances))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("before", "after", "processes"), [("fsdp", "fsdp", 2), ("fsdp", "ddp", 1), ("ddp", "fsdp", 2)]
)
def test_a_checkpoint_is_resumed_whatever_the_strategy(
    inputs, trainings, tmp_path, before, after, processes
):
    half = trainings[before] / "checkpoint-5"
    more = ["--resume", half]
    if processes == 1:  # as many sentences an update
        more += ["--per_gpu_train_batch_size", 6]
    resumed = train_with(inputs, tmp_path / "resumed", after, *more, processes=processes)
    assert losses(resumed) == pytest.approx(losses(trainings[before])[5:], rel=1e-4)
    step = last_step(trainings[before])
    close(
        whole_rows(trainings[before] / f"checkpoint-{step}"),
        whole_rows(resumed / f"checkpoint-{step}"),
    )
    states = [load_state(folder / f"checkpoint-{step}") for folder in (trainings[before], resumed)]
    assert states[0]["progress"]["step"] == states[1]["progress"]["step"] == 10
    if before == after:
        assert losses(resumed) == losses(trainings[before])[5:]


@pytest.mark.parametrize("flag", ["fp16", "compile", "average_decay", "do_adv", "awp_gamma"])
def test_what_cannot_be_shared_out_is_refused(flag):
    value = 0.5 if flag in ("average_decay", "awp_gamma") else True
    with pytest.raises(ValueError, match=f"--{flag} does not know weights that are shared out"):
        check_config(TrainingConfig(strategy="fsdp", **{flag: value}))


def test_an_encoder_that_processes_call_differently_often_is_refused(tmp_path):
    """Windows of equal length run together; with shares each call waits for the other processes."""
    encoder = load_encoder(make_family("convbert", tmp_path / "encoder"))
    model = NerCrfForTokenClassification.from_encoder(encoder, TRAIN.labels, TRAIN.scheme)
    args = resolve_config(TrainingConfig(strategy="fsdp", no_cuda=True), pretrained=True)
    info = ProcessInfo(rank=0, local_rank=0, world_size=2)
    with pytest.raises(ValueError, match="--strategy fsdp: ConvBertModel reads windows of equal"):
        start_training(args, TRAIN, model, TOKENIZER, info=info)
