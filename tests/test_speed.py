"""The flags of speed: each changes the time or the memory, and not the training."""

import logging
import platform

import numpy as np
import pytest
import torch
from training import (
    DEV,
    TOKENIZER,
    TRAIN,
    UNEVEN,
    make_args,
    make_model,
    read_history,
    train_in,
    write_encoder,
)

from nercrf.crf.likelihood import _LogLikelihood
from nercrf.distributed.devices import BatchDataParallel, unwrap_model
from nercrf.features.batches import FeatureDataset
from nercrf.model.dropout import ATTENTION, CheapDropout
from nercrf.model.encoder_config import EncoderConfig
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.training import update as update_chapter
from nercrf.training.callbacks import TrainingCallback
from nercrf.training.optim import encoder_layers
from nercrf.training.run import start_training
from nercrf.training.speed import (
    leave_out_full_mask,
    processor_features,
    slow_precision,
)
from nercrf.training.trainer import check_config, resolve_config, train
from nercrf.training.training_config import BatchConfig, SpeedConfig, TrainingConfig

CPU = torch.device("cpu")


def pretrained(folder, dropout=0.0):
    """A model on the saved encoder, the same each time."""
    torch.manual_seed(0)
    return NerCrfForTokenClassification.from_encoder(
        load_encoder(folder), TRAIN.labels, "BIO", classifier_dropout=dropout
    )


def start(folder, dropout=0.0, model=None, dtype=torch.float64, **flags):
    """A training of the tiny model, ready for its first update."""
    args = make_args(folder, average_decay=0.0, **flags)
    return start_training(args, TRAIN, (model or make_model(dropout)).to(dtype), TOKENIZER)


def train_some(*args, updates=4, **flags):
    """Losses of some updates, and the weights after them."""
    run = start(*args, **flags)
    losses = []
    for update in run.plan.epoch(0)[:updates]:
        run.update(update)
        losses.append(run.log()["loss"])
    return losses, {name: p.detach().clone() for name, p in run.model.named_parameters()}


def assert_same(one, other, **tolerance):
    """The losses and the weights of two trainings."""
    assert other[0] == pytest.approx(one[0], rel=tolerance.get("rtol", 1e-9))
    for name, weight in one[1].items():
        torch.testing.assert_close(other[1][name], weight, **tolerance)


@pytest.mark.parametrize(
    "flags",
    [
        {"fused_optimizer": False},
        {"crf_algorithm": "scaled"},
        {"crf_algorithm": "log"},
        {"crf_algorithm": "scan"},
        {"cheap_dropout": False},
        {"grads_to_none": False},
        {"gradient_checkpointing": True},
        {"attention_dropout": 0.1},
        {"pass_pieces": 60},
        {"pass_pieces": 60, "gradient_accumulation_steps": 2, "per_gpu_train_batch_size": 4},
    ],
    ids=str,
)
def test_without_dropout_each_flag_gives_the_same_training(tmp_path, flags):
    """In float64, four updates of 8 sentences."""
    assert_same(train_some(tmp_path), train_some(tmp_path, **flags), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "flags", [{"grads_to_none": False}, {"gradient_checkpointing": True}], ids=str
)
def test_with_dropout_these_give_the_same_bits(tmp_path, flags):
    """What is computed again draws the same masks again, and a gradient of zeros is none."""
    one, other = train_some(tmp_path, 0.3), train_some(tmp_path, 0.3, **flags)
    assert_same(
        one,
        other,
        rtol=0 if "grads_to_none" in flags else 1e-9,
        atol=0 if "grads_to_none" in flags else 1e-10,
    )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_of_a_pretrained_encoder_is_chosen(tmp_path, implementation):
    folder = write_encoder(tmp_path / "encoder")
    results = []
    for flags in ({}, {"attn_implementation": implementation, "cheap_dropout": False}):
        model = pretrained(folder)
        results.append(train_some(tmp_path, model=model, **flags))
        current = model.encoder.config._attn_implementation
        assert current == flags.get("attn_implementation", ATTENTION)
    assert_same(*results, rtol=1e-8, atol=1e-9)


def test_batches_by_length_can_be_left_out(tmp_path):
    """Each sentence is seen once an epoch, in another order; the batches hold more padding."""
    padding = []
    for grouped in (True, False):
        plan = start(tmp_path, group_by_length=grouped).plan
        for epoch in range(2):
            updates = plan.epoch(epoch)
            assert sorted(np.concatenate(updates)) == list(range(len(TRAIN)))
            assert [len(update) for update in updates].count(8) == len(TRAIN) // 8
        padding.append(
            sum(len(x) * plan.lengths[x].max() for x in plan.epoch(0)) / plan.lengths.sum()
        )
    assert padding[0] < 1.15 < 1.25 < padding[1]


def test_lengths_may_be_mixed_without_padding(tmp_path):
    """Updates hold short and long sentences; forward passes do not, and how many a pass may hold
    changes no update.
    """
    plans = [
        start(
            tmp_path, length_groups=groups, per_gpu_train_batch_size=size, train_batch_size=8
        ).plan
        for groups, size in ((1, 8), (4, 8), (4, 2), (4, 1))
    ]
    updates = [[update.tolist() for update in plan.epoch(0)] for plan in plans]
    assert updates[1] == updates[2] == updates[3] != updates[0]
    spread = [np.mean([np.ptp(plan.lengths[x]) for x in plan.epoch(0)]) for plan in plans]
    assert spread[1] > 2 * spread[0]
    for plan in plans:
        passes = [part for update in plan.epoch(0) for part in plan.micro_batches(update)]
        assert sorted(np.concatenate(passes)) == list(range(len(TRAIN)))
        padded = sum(len(part) * plan.lengths[part].max() for part in passes)
        assert padded / plan.lengths.sum() < 1.15
    assert [len(plan.micro_batches(plan.epoch(0)[0])) for plan in plans] == [1, 4, 4, 8]


def test_groups_must_divide_an_update(tmp_path):
    with pytest.raises(
        ValueError, match="--length_groups 3: expected a divisor of the 8 sentences of an update"
    ):
        start(tmp_path, length_groups=3)


def test_flags_reach_the_model(tmp_path):
    run = start(tmp_path, 0.3, gradient_checkpointing=True, crf_algorithm="log")
    model = run.model
    assert model.encoder.layers[0].gradient_checkpointing
    assert model.crf.algorithm == "log"
    assert any(isinstance(module, CheapDropout) for module in model.modules())
    assert run.optimizer.defaults["fused"]
    plain = start(tmp_path, 0.3, cheap_dropout=False, fused_optimizer=False)
    assert not any(isinstance(module, CheapDropout) for module in plain.model.modules())
    assert not plain.optimizer.defaults["fused"]


class Watch:
    """Counts the calls that would make the host wait for a device, from the moment that a batch is there."""

    METHODS = (
        "item",
        "tolist",
        "cpu",
        "numpy",
        "nonzero",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
    )

    def __init__(self, monkeypatch):
        self.active, self.calls = False, []
        for method in self.METHODS:
            monkeypatch.setattr(
                torch.Tensor, method, self.counted(method, getattr(torch.Tensor, method))
            )
        monkeypatch.setattr(
            update_chapter, "move_batch", self.setting(True, update_chapter.move_batch)
        )
        monkeypatch.setattr(FeatureDataset, "collate", self.setting(False, FeatureDataset.collate))
        for name in ("forward", "backward"):  # on a processor, the CRF works on the host
            monkeypatch.setattr(
                _LogLikelihood, name, staticmethod(self.paused(getattr(_LogLikelihood, name)))
            )

    def counted(self, name, method):
        """A method that is noted."""

        def call(*args, **options):
            if self.active:
                self.calls.append(name)
            return method(*args, **options)

        return call

    def setting(self, active, function):
        """A function after which calls count, or do not."""

        def call(*args, **options):
            result = function(*args, **options)
            self.active = active
            return result

        return call

    def paused(self, function):
        """A function within which calls do not count."""

        def call(*args, **options):
            before, self.active = self.active, False
            try:
                return function(*args, **options)
            finally:
                self.active = before

        return call


@pytest.mark.parametrize("kind", ["small", "bert", "accumulation", "data parallel", "bf16"])
def test_an_update_never_waits_for_the_device(tmp_path, monkeypatch, kind):
    """Not in forward, backward, clipping, step, schedule and callbacks; at a log line it has to."""
    model, flags = None, {"max_grad_norm": 1.0}
    if kind == "bert":
        model = pretrained(write_encoder(tmp_path / "encoder", dropout=0.1), 0.1)
    if kind == "accumulation":
        flags |= {"gradient_accumulation_steps": 2}
    run = start(tmp_path, 0.2, model, torch.float32, bf16=kind == "bf16", **flags)
    if kind == "data parallel":
        run.model = BatchDataParallel(run.model, [CPU, CPU])
    updates = run.plan.epoch(0)
    run.update(updates[0])
    watch = Watch(monkeypatch)
    for update in updates[1:4]:
        run.update(update)
    assert watch.active
    assert watch.calls == []
    run.log()
    assert watch.calls


def test_a_mask_that_hides_nothing_is_left_out(tmp_path):
    seen = []
    run = start(tmp_path, per_gpu_train_batch_size=2)
    run.model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["input_ids"], kwargs["attention_mask"])),
        with_kwargs=True,
    )
    for update in run.plan.epoch(0):
        run.update(update)
    assert {mask is None for _, mask in seen} == {True, False}
    for ids, mask in seen:
        assert (mask is None) == bool((ids != TOKENIZER.pad_token_id).all())
    batch = {"input_ids": torch.ones(1, 2), "attention_mask": torch.ones(1, 2)}
    assert (
        leave_out_full_mask(batch) is batch
    )  # without word_index, the mask says which pieces are words


def test_a_checkpoint_of_other_randomness_is_not_resumed(tmp_path):
    train_in(tmp_path, max_steps=2)
    with pytest.raises(ValueError, match="made with cheap_dropout = True"):
        train_in(tmp_path, max_steps=2, resume="auto", cheap_dropout=False)


def test_from_scratch_on_a_processor_the_attention_has_no_dropout():
    def chosen(pretrained, **flags):
        return resolve_config(TrainingConfig(**flags), pretrained).attention_dropout

    assert chosen(False, no_cuda=True) == 0.0
    assert chosen(False, no_cuda=True, attention_dropout=0.2) == 0.2
    assert chosen(False, no_cuda=True, encoder_dropout=0.2) is None  # that of the others
    assert chosen(True, no_cuda=True) is None


def test_flags_that_contradict_others_are_refused():
    with pytest.raises(ValueError, match="--max_pieces makes batches of similar length"):
        check_config(TrainingConfig(max_pieces=100, group_by_length=False))
    with pytest.raises(ValueError, match="--crf_algorithm must be one of"):
        check_config(TrainingConfig(crf_algorithm="viterbi"))
    with pytest.raises(ValueError, match="--length_groups must be at least 1, got 0"):
        check_config(TrainingConfig(length_groups=0))
    for flags in ({"max_pieces": 100}, {"group_by_length": False}):
        with pytest.raises(
            ValueError, match="--length_groups mixes lengths in batches of so many sentences"
        ):
            check_config(TrainingConfig(length_groups=2, **flags))


@pytest.mark.parametrize(
    ("dtype", "features", "warned"),
    [
        (torch.bfloat16, {"avx2"}, True),
        (torch.bfloat16, {"avx512_bf16"}, False),
        (torch.bfloat16, {"amx_bf16"}, False),
        (torch.float16, {"avx512_bf16"}, True),
        (torch.float16, {"asimdhp", "fphp"}, False),
        (torch.float16, set(), False),
        (None, {"avx2"}, False),
    ],
)
def test_a_precision_that_is_emulated_is_told(
    tmp_path, monkeypatch, caplog, dtype, features, warned
):
    reason = slow_precision(dtype, CPU, frozenset(features))
    assert (reason is not None) == warned
    monkeypatch.setattr("nercrf.training.speed.processor_features", lambda: frozenset(features))
    with caplog.at_level(logging.WARNING):
        start(
            tmp_path, dtype=torch.float32, bf16=dtype == torch.bfloat16, fp16=dtype == torch.float16
        )
    assert any("has no arithmetic in" in record.message for record in caplog.records) == warned


def test_features_are_read_as_linux_writes_them(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nflags\t\t: fpu amx_bf16\nbugs\t\t: bf16_bug\n\nFeatures\t: fphp bf16\n"
    )
    assert processor_features(str(file)) == {"fpu", "amx_bf16", "fphp", "bf16"}
    if platform.system() == "Linux":
        assert processor_features()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["small", "bert"])
def test_a_compiled_training_is_the_same_to_rounding(tmp_path, kind):
    """Ten updates, each of another length: two graphs, one with a mask and one without, not one a length."""
    results, models = [], []
    for compiled in (False, True):
        model = make_model(0.0)
        if kind == "bert":
            model = pretrained(write_encoder(tmp_path / "encoder"))
        torch._dynamo.reset()
        results.append(
            train_some(tmp_path, model=model, updates=6, compile=compiled, dtype=torch.float32)
        )
        models.append(model)
    assert_same(*results, rtol=1e-3, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    models[1].save_pretrained(tmp_path / "saved")
    loaded = NerCrfForTokenClassification.from_pretrained(tmp_path / "saved")
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, models[1].state_dict()[name])


def test_a_whole_training_with_everything_switched(tmp_path):
    """The opposite of every default that works here; the log is there and the loss falls."""
    flags = {
        "group_by_length": False,
        "fused_optimizer": False,
        "crf_algorithm": "scaled",
        "cheap_dropout": False,
        "gradient_checkpointing": True,
        "grads_to_none": False,
        "attention_dropout": 0.1,
    }
    sections = (SpeedConfig, BatchConfig, EncoderConfig)
    assert set(flags) <= {name for section in sections for name in section.__dataclass_fields__}
    train_in(tmp_path, num_train_epochs=3.0, logging_steps=-1, **flags)
    losses = [line["loss"] for line in read_history(tmp_path) if "loss" in line]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


class PieceCounter(TrainingCallback):
    """Notes how many pieces the last feed-forward part gets, and what the batch has."""

    def __init__(self):
        self.pieces, self.words = [], []

    def on_train_begin(self, run):
        """A hook of its own on the last layer."""
        last = encoder_layers(unwrap_model(run.model))[1][-1]
        last.intermediate.register_forward_pre_hook(
            lambda module, inputs: self.pieces.append(inputs[0].shape[:-1].numel())
        )

    def on_batch(self, run, batch, sentences):
        """Unchanged."""
        self.words.append(int(batch["word_mask"].sum()))
        return batch


@pytest.mark.parametrize(
    "flags", [{}, {"rdrop_alpha": 1.0}, {"do_adv": True, "word_dropout": 0.2}], ids=str
)
def test_the_last_layer_computes_what_is_read_and_the_training_is_the_same(tmp_path, flags):
    """Losses, weights and figures on dev in float64, over long sentences in windows; the model is
    whole again.
    """
    folder, results = write_encoder(tmp_path / "encoder"), []
    for lean in (True, False):
        watch, model = PieceCounter(), pretrained(folder).double()
        args = make_args(
            tmp_path / str(lean),
            average_decay=0.0,
            lean_last_layer=lean,
            max_steps=4,
            eval_steps=4,
            **flags,
        )
        train(args, UNEVEN, model, TOKENIZER, DEV, callbacks=[watch])
        results.append((model.state_dict(), read_history(tmp_path / str(lean)), watch))
        assert not model._forward_pre_hooks
        assert not encoder_layers(model)[1][-1].output._forward_hooks
    (weights, history, lean), (expected, log, whole) = results
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-8, atol=1e-9)
    for key in ("dev_f1", "dev_loss"):
        assert history[-1][key] == pytest.approx(log[-1][key], rel=1e-6)
    assert lean.words[:4] == lean.pieces[:4]
    assert sum(lean.pieces) < 0.8 * sum(whole.pieces)


def test_a_layer_that_looks_at_other_pieces_stays_whole(tmp_path):
    """The loss tells: here the feed-forward part adds the piece before."""
    model = pretrained(write_encoder(tmp_path / "encoder"))
    output = encoder_layers(model)[1][-1].output
    plain = output.forward
    output.forward = lambda hidden, residual: plain(hidden, residual + 5 * residual.roll(1, -2))
    run = start_training(make_args(tmp_path), TRAIN, model, TOKENIZER)
    assert not unwrap_model(run.model)._forward_pre_hooks
