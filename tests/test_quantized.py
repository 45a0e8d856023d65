"""A whole model in 8 bits, as `torch.ao.quantization.quantize_dynamic` makes it."""

import pytest
import torch
from encoders import make_family
from torch import nn

from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.model.small_encoder import SmallEncoderConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # that it is deprecated


@pytest.mark.parametrize("name", ["small", "bert", "roberta", "distilbert"])
def test_emissions_in_8_bits_are_near_those_of_the_model(tmp_path, name):
    """Encoder and classifier are quantised; what the CRF makes of it has a loss and labels."""
    torch.manual_seed(0)
    source = SmallEncoderConfig(vocab_size=60) if name == "small" else make_family(name, tmp_path)
    model = NerCrfForTokenClassification.from_encoder(load_encoder(source), ["O", "B-X", "I-X"])
    model.eval()
    ids, labels = torch.randint(5, 60, (3, 12)), torch.randint(0, 2, (3, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with torch.no_grad():
        nn.init.normal_(model.classifier.weight)
        expected = model(**batch)
        small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        found = small(**batch)
    assert not isinstance(small.classifier, nn.Linear)
    spread = expected.logits.std()
    assert 0 < (found.logits - expected.logits).abs().mean() < 0.05 * spread
    torch.testing.assert_close(found.loss, expected.loss, rtol=0.05, atol=0.0)
    same = [
        one == other
        for left, right in zip(
            small.decode(found.logits), model.decode(expected.logits), strict=True
        )
        for one, other in zip(left, right, strict=True)
    ]
    assert sum(same) >= 0.9 * len(same)
