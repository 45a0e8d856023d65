"""`torch.jit.trace` and what is built on it: emissions are right at any size, the CRF refuses."""

import io

import pytest
import torch
from encoders import make_family
from torch import nn

from nercrf.crf.layer import CRF
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.model.small_encoder import SmallEncoderConfig

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # of tracing, which is asked for
LABELS = ["O", "B-LOC", "I-LOC"]


class Emissions(nn.Module):
    """A model as a program for emissions is made of it: tensors in, a tensor out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, word_index):
        return self.model(input_ids, attention_mask, word_index=word_index).logits


class Labels(Emissions):
    """The same with the best labels."""

    def forward(self, input_ids, attention_mask, word_index):
        return self.model.crf.decode_tensor(super().forward(input_ids, attention_mask, word_index))


def make_model(name, folder):
    torch.manual_seed(0)
    source = SmallEncoderConfig(vocab_size=60)
    if name != "small":
        source = make_family(name, folder)
    return NerCrfForTokenClassification.from_encoder(load_encoder(source), LABELS).eval()


def make_batch(lengths):
    """Windows of these lengths, with padding; every second piece begins a word."""
    longest = max(lengths)
    places = torch.arange(longest)
    ids = torch.randint(5, 60, (len(lengths), longest), generator=torch.Generator().manual_seed(0))
    mask = (places < torch.tensor(lengths).unsqueeze(1)).long()
    words = places[::2] + longest * torch.arange(len(lengths)).unsqueeze(1)
    return ids, mask, words


@pytest.mark.parametrize("name", ["small", "bert", "roberta", "xlm-roberta", "distilbert"])
def test_traced_emissions_are_right_at_other_sizes(name, tmp_path):
    program = Emissions(make_model(name, tmp_path))
    traced = torch.jit.trace(program, make_batch([7, 4]))
    for lengths in ([7, 4], [8, 8, 8], [3], [40, 2]):
        batch = make_batch(lengths)
        torch.testing.assert_close(traced(*batch), program(*batch), rtol=0, atol=1e-6)


def test_traced_labels_are_refused(tmp_path):
    program = Labels(make_model("bert", tmp_path))
    with pytest.raises(
        RuntimeError, match=r"use torch\.export\.export, or trace the model without"
    ):
        torch.jit.trace(program, make_batch([7, 4]))


def test_the_old_exporter_to_onnx_is_refused_too():
    """It traces: the error is the same, before a file is written."""

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.crf = CRF.from_labels(LABELS, batch_first=True)

        def forward(self, emissions):
            return self.crf.decode_tensor(emissions)[0]

    file = io.BytesIO()
    with pytest.raises(RuntimeError, match=r"use torch\.export\.export"):
        torch.onnx.export(Decoder(), (torch.zeros(1, 4, 3),), file, dynamo=False)
    assert not file.getvalue()


def test_a_loss_is_refused_while_it_is_traced(tmp_path):
    model = make_model("small", tmp_path)

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, labels):
            return self.model(ids, labels=labels).loss

    with pytest.raises(RuntimeError, match="that is traced"):
        torch.jit.trace(Loss(), (torch.full((1, 3), 5), torch.zeros(1, 3, dtype=torch.long)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tags_that_are_no_whole_numbers_are_refused(tmp_path, dtype):
    """By the layer in every question about tags, and as the labels of a model."""
    crf, emissions = CRF(3, batch_first=True), torch.randn(2, 4, 3)
    tags = torch.tensor([[0.9, 1.2, 2.0, 0.0]] * 2, dtype=dtype)
    chain = crf.chain(emissions)
    for ask in (
        lambda: crf(emissions, tags),
        lambda: crf(emissions, tags, partial=True),
        lambda: chain.log_prob(tags),
        lambda: chain.score(tags),
    ):
        with pytest.raises(TypeError, match=rf"expected tags of an integer type.* got {dtype}"):
            ask()
    model = make_model("small", tmp_path)
    with pytest.raises(TypeError, match=f"got {dtype}"):
        model(torch.full((2, 4), 5), labels=tags)
    for whole in (torch.int32, torch.uint8):
        assert crf(emissions, tags.to(whole)) == crf(emissions, tags.long())
