"""Groups, the optimiser against its formula, schedules against literal values and transformers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nercrf.training import optim


class Tagger(nn.Module):
    """Names as in a real model: an encoder with an encoder inside, norms, a tied weight, and a CRF."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.embeddings = nn.Embedding(11, 4)
        self.encoder.encoder = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.encoder.tied = nn.Linear(4, 11, bias=False)
        self.encoder.tied.weight = self.encoder.embeddings.weight
        self.classifier = nn.Linear(4, 3)
        self.crf = nn.Module()
        for name, shape in [
            ("start_transitions", 3),
            ("end_transitions", 3),
            ("transitions", (3, 3)),
        ]:
            self.crf.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def by_name(model, groups):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group for group in groups for parameter in group["params"]}


def test_every_parameter_is_in_exactly_one_group():
    model = Tagger()
    groups = optim.parameter_groups(model, 1e-5, 1e-3)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(model.parameters())


def test_decay_and_rate_of_each_parameter():
    """The reference gave the CRF's transitions weight decay."""
    model = Tagger()
    for name, group in by_name(model, optim.parameter_groups(model, 1e-5, 1e-3, 0.1)).items():
        head = name.startswith(("crf.", "classifier."))
        assert group["lr"] == (1e-3 if head else 1e-5), name
        plain = "crf." in name or name.endswith("bias") or name.startswith("encoder.encoder.1")
        assert group["weight_decay"] == (0.0 if plain else 0.1), name


def test_one_rate_for_all_unless_two_are_given():
    assert {group["lr"] for group in optim.parameter_groups(Tagger(), 1e-5)} == {1e-5}


def test_wrapped_model_has_the_same_groups():
    model = Tagger()
    plain = optim.parameter_groups(model, 1e-5, 1e-3)
    wrapped = optim.parameter_groups(nn.ModuleDict({"module": model}), 1e-5, 1e-3)
    assert [group["name"] for group in plain] == [group["name"] for group in wrapped]
    for one, two in zip(plain, wrapped, strict=True):
        assert list(map(id, one["params"])) == list(map(id, two["params"]))


def test_real_encoder():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    config = transformers.BertConfig(vocab_size=30, **sizes)
    model = Tagger()
    model.encoder = transformers.BertModel(config)
    for name, group in by_name(model, optim.parameter_groups(model, 1e-5, 1e-3)).items():
        undecayed = name.endswith("bias") or "LayerNorm" in name or name.startswith("crf.")
        assert group["weight_decay"] == (0.0 if undecayed else 0.01), name


def test_frozen_parameters_are_left_out():
    model = Tagger()
    model.encoder.requires_grad_(False)
    names = by_name(model, optim.parameter_groups(model, 1e-5))
    assert not any(name.startswith("encoder") for name in names)
    with pytest.raises(ValueError, match="trainable"):
        optim.parameter_groups(model.requires_grad_(False), 1e-5)


def plain_step(weight, gradient, mean, square, step, rate, decay, epsilon, betas):
    """One AdamW step on Python floats."""
    weight -= rate * decay * weight
    mean = betas[0] * mean + (1 - betas[0]) * gradient
    square = betas[1] * square + (1 - betas[1]) * gradient**2
    denominator = math.sqrt(square / (1 - betas[1] ** step)) + epsilon
    return weight - rate * mean / (1 - betas[0] ** step) / denominator, mean, square


@settings(max_examples=25, deadline=None)
@given(
    gradients=st.lists(st.floats(-10, 10), min_size=1, max_size=8),
    rate=st.floats(1e-5, 1),
    decay=st.floats(0, 0.5),
    fused=st.booleans(),
)
def test_adamw_is_its_formula(gradients, rate, decay, fused):
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    weight, mean, square = model.weight.item(), 0.0, 0.0
    optimizer = optim.build_optimizer(
        model, rate, None, decay, adam_epsilon=1e-6, betas=(0.8, 0.95), fused=fused
    )
    for step, gradient in enumerate(gradients, start=1):
        model.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
        weight, mean, square = plain_step(
            weight, gradient, mean, square, step, rate, decay, 1e-6, (0.8, 0.95)
        )
    assert model.weight.item() == pytest.approx(weight, rel=1e-9, abs=1e-9)


def test_fused_is_chosen_where_it_exists():
    assert optim.build_optimizer(Tagger()).defaults["fused"] is True
    assert optim.build_optimizer(Tagger().to("meta")).defaults["fused"] is False
    assert optim.build_optimizer(Tagger(), fused=False).defaults["fused"] is False


@settings(deadline=None)
@given(st.sampled_from(["linear", "cosine", "constant"]), st.integers(0, 40), st.integers(1, 60))
def test_schedules_rise_then_fall_and_waste_no_step(kind, warmup, rest):
    total = warmup + rest
    factors = [optim.schedule_factor(kind, step, warmup, total) for step in range(total + 1)]
    assert all(0 < factor <= 1 for factor in factors[:-1])
    assert factors[warmup] == 1
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert factors[-1] == pytest.approx(1 if kind == "constant" else 0)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_equal_to_transformers_after_the_warm_up(kind):
    transformers = pytest.importorskip("transformers")
    name = {"constant": "constant_with_warmup"}.get(kind, kind)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = transformers.get_scheduler(
        name, optimizer, num_warmup_steps=5, num_training_steps=20
    ).lr_lambdas[0]
    for step in range(5, 21):
        assert optim.schedule_factor(kind, step, 5, 20) == pytest.approx(theirs(step))
    assert theirs(0) == 0
    assert optim.schedule_factor(kind, 0, 5, 20) == pytest.approx(1 / 6)


def test_schedule_sets_the_rates_of_all_groups():
    optimizer = optim.build_optimizer(Tagger(), 1.0, 10.0)
    schedule = optim.build_schedule(optimizer, "linear", 1, 3)
    rates = []
    for _ in range(3):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates == [[0.5, 0.5, 5, 5, 5], [1, 1, 10, 10, 10], [0.5, 0.5, 5, 5, 5]]


def test_schedule_errors():
    optimizer = optim.build_optimizer(Tagger())
    with pytest.raises(ValueError, match="linear, cosine, constant; got 'step'"):
        optim.build_schedule(optimizer, "step", 0, 3)
    for warmup in (-1, 4):
        with pytest.raises(ValueError, match=rf"0 to total_steps \(3\), got {warmup}"):
            optim.build_schedule(optimizer, "linear", warmup, 3)
