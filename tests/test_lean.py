"""The lean last layer and the seen rows over the families of encoders: proved the same, or refused."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders import FAMILIES, SAMPLE, SENTENCES, make_family
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    LukeTokenizer,
    PreTrainedTokenizerFast,
)

from nercrf.data.examples import Example
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.labels import Span
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.training.lean import (
    LeanLastLayer,
    trial_batch,
    use_lean_last_layer,
    word_scores,
)
from nercrf.training.optim import encoder_layers
from nercrf.training.run import start_training
from nercrf.training.trainer import resolve_config
from nercrf.training.training_config import TrainingConfig

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
PIECES = torch.arange(5, 60)
# Built like BERT and nothing else: these must be lean, or training lost its speed.
LEAN = {
    "bert",
    "bert (uncased)",
    "bert-generation",
    "camembert",
    "data2vec-text",
    "deberta",
    "deberta-v2",
    "electra",
    "ernie",
    "megatron-bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "splinter",
    "xlm-roberta",
    "xlm-roberta-xl",
}
# What was wrong before: a crash, or other numbers in later batches.
REFUSED = {"mobilebert", "ibert", "xmod", "luke", "canine", "longformer", "funnel", "convbert"}
CHOSEN = sorted(LEAN | REFUSED | set(SAMPLE))
TABLE = json.loads((Path(__file__).parent / "encoder_table.json").read_text(encoding="utf-8"))[
    "families"
]
FAMILIES = [name for name in FAMILIES if "refused" not in TABLE[name]]  # by every tagger
EVERY = [pytest.param(name, marks=[] if name in CHOSEN else pytest.mark.slow) for name in FAMILIES]
# Their own code knows float32 alone, or their own gradients are nan in float64.
SINGLE = {
    *("mra", "xglm", "qwen2_moe", "qwen3_moe", "mixtral", "gpt_oss", "esm"),
    *("longformer", "canine", "led", "gemma2", "openai_privacy_filter"),
}


def make_model(name, folder):
    """A model with a CRF on an encoder of the family, in float64 where its code knows that."""
    torch.manual_seed(0)
    encoder = load_encoder(make_family(name, folder))
    model = NerCrfForTokenClassification.from_encoder(encoder, ["O", "B-X", "I-X"])
    nn.init.normal_(model.classifier.weight)
    return (model if name in SINGLE else model.double()).train()


def state(model):
    """What a trial must leave: modes, hooks, random numbers, weights."""
    hooks = [
        (name, len(m._forward_pre_hooks), len(m._forward_hooks), m.training, type(m))
        for name, m in model.named_modules()
    ]
    weights = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    draws = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    return hooks, weights, draws


def try_lean(model):
    """Use the lean layer as a training does."""
    batches = [trial_batch(PIECES, lengths) for lengths in ([24, 5], [11, 7, 2])]
    before = state(model)
    lean = use_lean_last_layer(model, batches)
    if lean is None:
        assert state(model) == before
    return lean


@pytest.mark.parametrize("name", EVERY)
def test_a_lean_layer_gives_the_same_scores_and_gradients_or_is_refused(name, tmp_path):
    """In float64, in batches of other lengths than those of the trial: longer, shorter, one piece."""
    model = make_model(name, tmp_path)
    lean = try_lean(model)
    assert (lean is not None) or name not in LEAN
    assert (lean is None) or name not in REFUSED
    if lean is None:
        return
    model.eval()
    parameters = [p for p in model.encoder.parameters() if p.requires_grad]
    same, close = {"rtol": 1e-9, "atol": 1e-11}, {"rtol": 1e-8, "atol": 1e-10}
    if name in SINGLE:
        same = close = {"rtol": 1e-4, "atol": 1e-5}
    for lengths in ([40, 33, 8], [9, 1, 3, 3], [16, 16], [1]):
        batch, passes = trial_batch(PIECES, lengths), lean.passes
        scores, slopes = word_scores(model, batch, parameters)
        assert lean.passes == passes + 1
        lean.remove()
        expected, whole = word_scores(model, batch, parameters)
        lean = LeanLastLayer(model, encoder_layers(model)[1][-1])
        torch.testing.assert_close(scores, expected, **same)
        for one, other in zip(slopes, whole, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, **close)


def test_a_layer_that_works_in_chunks_is_left_alone():
    """`chunk_size_feed_forward` cuts along the pieces, which rows by themselves do not have."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    encoder = BertModel(
        BertConfig(vocab_size=60, num_hidden_layers=2, chunk_size_feed_forward=1, **sizes)
    )
    model = NerCrfForTokenClassification.from_encoder(encoder, ["O", "B-X"])
    assert try_lean(model) is None


class ZeroConvolution(nn.Module):
    """Mixes neighbours once it has learned to; as it is initialised, it adds nothing."""

    def __init__(self, size):
        super().__init__()
        self.convolution = nn.Conv1d(size, size, 3, padding=1)
        nn.init.zeros_(self.convolution.weight)
        nn.init.zeros_(self.convolution.bias)

    def forward(self, hidden):
        return hidden + self.convolution(hidden.transpose(1, 2)).transpose(1, 2)


def test_what_will_look_at_neighbours_is_seen_before_it_does(tmp_path):
    """A convolution of zeros behind the last layer changes no number today."""
    model = make_model("bert", tmp_path)
    after = ZeroConvolution(model.config.encoder.hidden_size).double()
    plain = model.encoder.encoder.forward

    def forward(*args, **options):
        output = plain(*args, **options)
        output.last_hidden_state = after(output.last_hidden_state)
        return output

    model.encoder.encoder.forward = forward
    model.encoder.encoder.after = after
    assert try_lean(model) is None


def test_windows_that_are_padded_inside_are_left_whole(tmp_path):
    """Where the encoder pads a later batch by itself, the layer is whole for that batch."""
    model = make_model("bert", tmp_path).eval()
    lean = try_lean(model)
    model.eval()
    plain = model.encoder.forward

    def forward(input_ids, attention_mask, **options):
        extra = -input_ids.shape[1] % 8
        padded = nn.functional.pad(input_ids, (0, extra))
        output = plain(padded, nn.functional.pad(attention_mask, (0, extra)))
        output.last_hidden_state = output.last_hidden_state[:, : input_ids.shape[1]]
        return output

    model.encoder.forward = forward
    for lengths, used in (([16, 8], 1), ([13, 8], 0)):
        batch, passes = trial_batch(PIECES, lengths), lean.passes
        scores, _ = word_scores(model, batch, [model.classifier.weight])
        assert lean.passes == passes + used
        lean.remove()
        expected, _ = word_scores(model, batch, [model.classifier.weight])
        lean = LeanLastLayer(model, encoder_layers(model)[1][-1])
        torch.testing.assert_close(scores, expected)


EXAMPLES = [
    Example(str(number), words, [Span("X", 0, 1)]) for number, words in enumerate(SENTENCES[:4])
]
TRAINED = ["mobilebert", "ibert", "xmod", "luke", "longformer", "chunked", "roberta"]
TRAINED += ["openai_privacy_filter"]  # names parameters of its own that stay in float32
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in TRAINED]


def train_some(folder, output, single, **flags):
    """Losses of three updates of different lengths, and the weights after them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if isinstance(tokenizer, LukeTokenizer):  # its own class takes lists of words for entities
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    labels = ["O", "B-X", "I-X"]
    features = convert_examples_to_features(EXAMPLES, labels, 24, tokenizer, scheme="BIO")
    torch.manual_seed(0)
    model = NerCrfForTokenClassification.from_encoder(load_encoder(folder, dropout=0.0), labels)
    if not single:
        model = model.double()
    args = TrainingConfig(
        output_dir=str(output), no_cuda=True, per_gpu_train_batch_size=1, dropout=0.0, **flags
    )
    args = resolve_config(args, pretrained=True)
    run = start_training(args, FeatureDataset(features, labels), model, tokenizer)
    losses = []
    for update in run.plan.epoch(0)[:3]:
        run.update(update)
        losses.append(run.log()["loss"])
    return losses, run.model.state_dict(), run.embedding is not None


@pytest.mark.parametrize("name", [*TRAINED, *OTHERS])
def test_a_training_by_default_flags_is_that_without_them(name, tmp_path):
    """Rows that were seen and the lean layer, or neither: losses and weights of three updates."""
    family = "bert" if name == "chunked" else name
    folder = make_family(family, tmp_path / "encoder")
    if name == "chunked":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "chunk_size_feed_forward": 1}))
    single = name in SINGLE
    off = {"lean_last_layer": False, "seen_embedding": False}
    losses, weights, _ = train_some(folder, tmp_path, single, **off)
    found, new_weights, parted = train_some(folder, tmp_path, single)
    assert parted or name not in ("roberta", "longformer", "chunked")
    assert found == pytest.approx(losses, rel=1e-5 if single else 1e-7)
    for key, weight in weights.items():
        torch.testing.assert_close(
            new_weights[key], weight, rtol=1e-6, atol=1e-4 if single else 1e-8
        )
