"""Every family of encoders that users bring is read as it was made."""

import pytest
import torch
from encoders import FAMILIES, SAMPLE, SENTENCES, make_family
from transformers import AutoModel, AutoTokenizer

torch.set_num_threads(1)
OTHERS = [name for name in FAMILIES if name not in SAMPLE]
EVERY = [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


@pytest.mark.parametrize("name", EVERY)
def test_a_family_is_a_folder_with_an_encoder_and_its_tokenizer(name, tmp_path):
    folder = make_family(name, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder)
    assert encoder.config.model_type == (FAMILIES[name].model_type or name)
    text = " ".join(SENTENCES[0])
    assert tokenizer(text)["input_ids"] == FAMILIES[name].tokenizer()(text)["input_ids"]
    assert sum(p.numel() for p in encoder.parameters()) < 500_000
