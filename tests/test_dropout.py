"""Cheap dropout: its distribution, its gradient, its randomness, and every encoder with it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import ENCODERS, SENTENCES, emissions, make_batch, make_model
from torch.nn import functional
from transformers import AutoModel, BartConfig, Gemma2Config, GPT2Config, OpenAIGPTConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from nercrf.model.dropout import (
    CheapDropout,
    cheap_attention,
    cheap_dropout,
    keep_mask,
    use_cheap_dropout,
)
from nercrf.model.loading import set_dropout
from nercrf.model.modeling import NerCrfForTokenClassification

COUNT = 1 << 20


def within(found, expected, deviation, count=COUNT):
    """Five standard errors: one false alarm in two million."""
    assert abs(found - expected) < 5 * deviation / math.sqrt(count), (found, expected)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.25, 0.5, 0.9, 0.999])
def test_mean_and_variance_are_those_of_dropout(p):
    torch.manual_seed(7)
    out = cheap_dropout(torch.ones(COUNT), p).double()
    variance = p / (1 - p)
    within((out == 0).double().mean().item(), p, math.sqrt(p * (1 - p)))
    within(out.mean().item(), 1.0, math.sqrt(variance))
    # the variance of the square of a scaled Bernoulli number
    fourth = ((1 - p) ** -3 - (1 - p) ** -2) ** 0.5
    within(out.square().mean().item(), 1 / (1 - p), fourth)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 16, 313, 1200])
def test_neighbours_are_dropped_independently(lag):
    """Within the same number of 64 bits, in the next one, in the next row."""
    torch.manual_seed(lag)
    dropped = (keep_mask(torch.empty(COUNT), 0.1) == 0).double()
    both = (dropped[lag:] * dropped[:-lag]).mean().item()
    within(both, 0.01, math.sqrt(0.01 * 0.99), COUNT - lag)


@given(st.lists(st.integers(1, 9), max_size=3), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_each_number_is_dropped_or_scaled_and_the_gradient_is_the_mask(shape, p, seed):
    values = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(seed)
    out = cheap_dropout(values, p)
    upstream = torch.randn(shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(out, values, upstream)
    kept = out != 0
    scale = 1.0 if p in (0, 1) else 65536 / (65536 - min(round(p * 65536), 65535))
    torch.testing.assert_close(out, torch.where(kept, values * scale, 0.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        gradient, torch.where(kept, upstream * scale, 0.0), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_types_and_strides_stay(dtype):
    values = torch.ones(6, 10, dtype=dtype).t()
    out = cheap_dropout(values, 0.5)
    assert (out.dtype, out.shape) == (dtype, (10, 6))
    assert set(out.flatten().tolist()) == {0.0, 2.0}


def test_the_state_of_the_generator_fixes_the_masks():
    """A resumed training puts the state back and goes on with the same masks."""
    torch.manual_seed(5)
    cheap_dropout(torch.ones(7), 0.3)
    state = torch.get_rng_state()
    first = [cheap_dropout(torch.ones(size), 0.3) for size in (5, 64, 3)]
    torch.set_rng_state(state)
    again = [cheap_dropout(torch.ones(size), 0.3) for size in (5, 64, 3)]
    assert all(map(torch.equal, first, again))


def test_in_place_and_evaluation():
    values = torch.ones(1000)
    assert CheapDropout(0.5, inplace=True)(values) is values
    assert set(values.tolist()) == {0.0, 2.0}
    assert CheapDropout(0.5).eval()(values) is values
    with pytest.raises(ValueError, match="probability"):
        CheapDropout(1.5)


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_and_its_gradient_are_those_of_torch(kind, dtype):
    """With a dropout so small that nothing is dropped."""
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 4, 7, 8, dtype=dtype, requires_grad=True)
    seen = (torch.arange(7) < torch.tensor([7, 4])[:, None])[:, None, None, :]
    mask = {"none": None, "bool": seen, "added": torch.where(seen, 0.0, -1e4).to(dtype)}[kind]
    results = []
    for attend in (cheap_attention, functional.scaled_dot_product_attention):
        out = attend(*inputs, mask, *([1e-9] if attend is cheap_attention else []))
        (gradient,) = torch.autograd.grad(out.float().square().sum(), inputs)
        results.append((out, gradient))
    tolerance = {"atol": 0.03, "rtol": 0.03} if dtype == torch.bfloat16 else {}
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_a_row_that_sees_nothing_stays_finite():
    query = torch.randn(1, 2, 3, 4, requires_grad=True)
    out = cheap_attention(query, query, query, torch.zeros(1, 1, 1, 3, dtype=torch.bool), 0.1)
    out.sum().backward()
    assert out.isfinite().all()
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_computes_the_same_with_it(name, tmp_path):
    model = make_model(name)
    before = emissions(model, make_batch(model, SENTENCES, extra=2))
    keys = list(model.state_dict())
    assert use_cheap_dropout(model) > 0
    assert use_cheap_dropout(model) == 0
    assert list(model.state_dict()) == keys
    assert not any(type(module) is torch.nn.Dropout for module in model.modules())
    for one, other in zip(
        before, emissions(model, make_batch(model, SENTENCES, extra=2)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = NerCrfForTokenClassification.from_pretrained(tmp_path).eval()
    assert loaded.encoder.config._attn_implementation in ("sdpa", "eager")
    for one, other in zip(
        before, emissions(loaded, make_batch(model, SENTENCES, extra=2)), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["small", "bert", "roberta", "electra", "distilbert", "albert"])
def test_on_average_a_model_with_it_gives_what_a_model_with_dropout_gives(name):
    """Mean and spread of an emission over many draws, with torch's dropout and with ours."""
    draws, figures = 1500, []
    for cheap in (False, True):
        model = make_model(name)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        if cheap:
            use_cheap_dropout(model)
        model.train()
        batch = make_batch(model, [SENTENCES[1]] * draws)
        torch.manual_seed(0)
        with torch.no_grad():
            scores = model(**batch).logits[:, 0].double()
        figures.append((scores.mean(0), scores.std(0)))
    (mean, deviation), (cheap_mean, cheap_deviation) = figures
    error = deviation * math.sqrt(2 / draws)
    assert ((mean - cheap_mean).abs() < 5 * error).all()
    assert (deviation / cheap_deviation).log().abs().max() < 0.2


@pytest.mark.parametrize("name", ["bert", "small"])
def test_the_mask_is_never_looked_at(name, monkeypatch):
    """On a GPU a look at a number makes the host wait for everything that is under way."""
    model = make_model(name)
    use_cheap_dropout(model)
    batch = make_batch(model, SENTENCES)

    def forbidden(*args, **options):
        raise AssertionError("the host waits for the device")

    for method in ("__bool__", "item", "tolist", "cpu", "numpy", "__int__", "__float__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, method, forbidden)
    assert model(**batch).logits.shape == (3, 4, 5)


def text_configs():
    """The default configuration of every text encoder that can be built without weights."""
    for kind in CONFIG_MAPPING:
        try:
            config = CONFIG_MAPPING[kind]()
        except Exception:  # needs sizes, or packages that are not there
            continue
        parts = ("vision_config", "audio_config")
        text = hasattr(config, "vocab_size") and hasattr(config, "hidden_size")
        if type(config) in MODEL_MAPPING and text and not any(hasattr(config, x) for x in parts):
            yield kind, config


# fastspeech2_conformer computes speech, and 34 of its layers have a fixed 0.2.
@pytest.mark.slow
def test_no_dropout_of_any_text_encoder_is_left_as_it_was():
    seen, left = 0, {}
    for kind, config in text_configs():
        try:
            with torch.device("meta"):
                encoder = AutoModel.from_config(set_dropout(config, 0.0))
        except Exception:  # cannot be built on the meta device, or with default sizes
            continue
        seen += 1
        found = {m.p for m in encoder.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0}
        found |= {m.layerdrop for m in encoder.modules() if getattr(m, "layerdrop", 0)}
        if found:
            left[kind] = found
    assert seen > 100
    assert set(left) <= {"fastspeech2_conformer"}


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=40),
        OpenAIGPTConfig(n_layer=1, n_embd=8, n_head=2, vocab_size=40),
        BartConfig(
            d_model=16, vocab_size=40, encoder_layers=2, decoder_layers=2, encoder_layerdrop=0.5
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_set_dropout_knows_other_names(config):
    """A training pass is the same each time, and with 0.3 every dropout layer has 0.3."""
    ids = torch.randint(5, 40, (2, 9))
    encoder = AutoModel.from_config(set_dropout(config, 0.0)).train()
    one, other = (encoder(ids).last_hidden_state for _ in range(2))
    assert torch.equal(one, other)
    encoder = AutoModel.from_config(set_dropout(config, 0.3))
    assert {m.p for m in encoder.modules() if isinstance(m, torch.nn.Dropout)} <= {0.3}


def test_attention_that_only_the_encoder_can_do_stays_with_it():
    """Gemma 2 bounds its scores, which torch's attention cannot: the model around it changes
    nothing.
    """
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    encoder = AutoModel.from_config(Gemma2Config(**sizes, **heads))
    model = NerCrfForTokenClassification.from_encoder(encoder, ["O", "B-PER", "I-PER"])
    use_cheap_dropout(model)
    assert encoder.config._attn_implementation == "eager"
    assert model.train()(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
