"""Which layers each family of encoders has: what layer decay, frozen and new layers go by."""

import pytest
import torch
from encoders import make_family
from torch import nn

from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.training.optim import encoder_layers, layer_depths
from nercrf.training.recipes import freeze_encoder, reinitialize_layers
from nercrf.training.speed import use_gradient_checkpointing

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
# Of two layers each: the list, and what lies above it; all else is below.
LAYERS = {
    "bert": ("encoder.layer", ()),
    "roberta": ("encoder.layer", ()),
    "roberta-prelayernorm": ("encoder.layer", ("LayerNorm",)),
    "xlm-roberta-xl": ("encoder.layer", ("encoder.LayerNorm",)),
    "distilbert": ("transformer.layer", ()),
    "electra": ("encoder.layer", ()),
    "deberta-v2": ("encoder.layer", ("encoder.rel_embeddings", "encoder.LayerNorm")),
    "mpnet": ("encoder.layer", ("encoder.relative_attention_bias",)),
    "megatron-bert": ("encoder.layer", ("encoder.ln",)),
    "squeezebert": ("encoder.layers", ()),
    "fnet": ("encoder.layer", ()),
    "longformer": ("encoder.layer", ()),
    "led": ("layers", ()),
    "canine": ("encoder.layer", ("projection", "final_char_encoder")),
    "xlnet": ("layer", ()),
    "xlm": ("attentions", ()),
    "flaubert": ("attentions", ()),
    "markuplm": ("encoder.layer", ()),
    "gpt2": ("h", ("ln_f",)),
    "openai-gpt": ("h", ()),
    "gpt_neox": ("layers", ("final_layer_norm",)),
    "opt": ("decoder.layers", ("decoder.final_layer_norm",)),
    "bloom": ("h", ("ln_f",)),
    "mpt": ("blocks", ("norm_f",)),
    "llama": ("layers", ("norm",)),
    "qwen3": ("layers", ("norm",)),
    "t5": ("block", ("final_layer_norm",)),
    "bart": ("layers", ()),
    "mbart": ("layers", ("layer_norm",)),
    "pegasus": ("layers", ("layer_norm",)),
    "clip_text_model": ("encoder.layers", ("final_layer_norm",)),
    "modernbert": ("layers", ("final_norm",)),
    "eurobert": ("layers", ("norm",)),
    "nomic_bert": ("layers", ()),
}


def make_model(name, folder):
    torch.manual_seed(0)
    encoder = load_encoder(make_family(name, folder))
    return NerCrfForTokenClassification.from_encoder(encoder, ["O", "B-X", "I-X"])


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_lies_below_in_or_above_the_layers(name, tmp_path):
    model = make_model(name, tmp_path)
    expected, above = LAYERS[name]
    found, layers = encoder_layers(model)
    assert (found, len(layers)) == (f"encoder.{expected}", 2)
    depths = layer_depths(model)
    assert depths.keys() == {f"encoder.{each}" for each, _ in model.encoder.named_parameters()}
    numbers = {id(p): depth for depth, layer in enumerate(layers, 1) for p in layer.parameters()}
    for key, parameter in model.encoder.named_parameters():
        outside = 3 if key.startswith(tuple(f"{each}." for each in above)) else 0
        assert depths[f"encoder.{key}"] == numbers.get(id(parameter), outside), key
    table = model.encoder.get_input_embeddings().weight if name != "canine" else None
    assert table is None or id(table) not in numbers


def test_layers_in_blocks_are_counted_one_by_one():
    """Funnel has a list of blocks that are lists of layers, and some more layers above them."""
    from transformers import FunnelConfig, FunnelModel

    sizes = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "num_decoder_layers": 1}
    model = NerCrfForTokenClassification.from_encoder(
        FunnelModel(FunnelConfig(vocab_size=60, block_sizes=[2, 1], **sizes)), ["O", "B-X"]
    )
    name, layers = encoder_layers(model)
    blocks = model.encoder.encoder.blocks
    assert name == "encoder.encoder.blocks"
    assert layers == [blocks[0][0], blocks[0][1], blocks[1][0]]
    depths = layer_depths(model)
    assert depths["encoder.encoder.blocks.1.0.ffn.linear_1.weight"] == 3
    assert depths["encoder.decoder.layers.0.ffn.linear_1.weight"] == 4


@pytest.mark.parametrize("name", ["bert", "gpt2", "xlm", "bart", "markuplm", "modernbert"])
def test_the_lowest_layer_is_frozen_and_the_highest_drawn_anew(name, tmp_path):
    model = make_model(name, tmp_path)
    low, high = (list(layer.parameters()) for layer in encoder_layers(model)[1])
    old = {key: value.clone() for key, value in model.state_dict().items()}
    frozen = freeze_encoder(model, layers=1)
    assert [p.requires_grad for p in (*low, *high)] == [False] * len(low) + [True] * len(high)
    assert len(frozen) == len(low)
    reinitialize_layers(model, 1, seed=7)
    drawn = {id(p) for p in high if p.dim() > 1}
    assert drawn
    for key, parameter in model.named_parameters():
        if id(parameter) in drawn:
            assert not torch.equal(parameter, old[key]), key
        elif all(parameter is not each for each in high):
            assert torch.equal(parameter, old[key]), key


@pytest.mark.parametrize("name", ["gpt2", "distilbert", "t5", "bart", "modernbert", "llama"])
def test_activations_that_are_computed_again_give_the_same_gradients(name, tmp_path):
    model = make_model(name, tmp_path).train()
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    results = []
    for again in (False, True):
        if again:
            use_gradient_checkpointing(model)
        model.zero_grad()
        torch.manual_seed(0)  # for dropout
        model(ids, torch.ones_like(ids), labels=torch.zeros_like(ids)).loss.backward()
        results.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    for key, gradient in results[0].items():
        torch.testing.assert_close(results[1][key], gradient, msg=key)


@pytest.mark.parametrize("name", ["albert", "mpnet", "xlnet", "xlm", "openai-gpt", "ctrl"])
def test_an_encoder_that_cannot_compute_again_is_an_error_with_a_remedy(name, tmp_path):
    with pytest.raises(ValueError, match=r"cannot compute its layers again; lower --per_gpu_train"):
        use_gradient_checkpointing(make_model(name, tmp_path))


def test_an_encoder_without_layers_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match=r"got none; leave the flags of layers out"):
        encoder_layers(nn.Sequential(nn.Linear(2, 2)))
