"""The tagger's engine gives what the features of a training and the model's own forward give."""

import random
from dataclasses import replace

import pytest
import torch
from encoders import SENTENCES, make_family

from nercrf.data.examples import Example
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.labels import label_list
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.pretrained import open_tokenizer
from nercrf.tagging import engine as engines
from nercrf.tagging import packed
from nercrf.tagging.engine import Engine
from nercrf.tagging.fused import FusedStack, fused_encoder

LABELS = label_list(["LOC", "PER"], "BIO")
# pieces by words, by bytes, with marks, on the left, one length at a time, in Python
FAMILIES = ["bert", "roberta", "electra", "t5", "xlnet", "funnel", "ctrl", "gpt2"]


def random_sentences(count: int) -> list[Example]:
    """Words of the families' sentences in any order, some sentences longer than a window, one
    without a word.
    """
    draw, words = random.Random(3), [word for sentence in SENTENCES for word in sentence]
    lengths = [0, 1, 70, *(draw.randint(1, 14) for _ in range(count - 3))]
    return [
        Example(str(row), draw.choices(words, k=length), source=f"{row // 6}:{row}")
        for row, length in enumerate(lengths)
    ]


def expected_scores(model, tokenizer, examples) -> list[torch.Tensor]:
    """The emissions of each sentence, one batch of all, as training and evaluation make them."""
    config = model.config
    features = convert_examples_to_features(
        [replace(example, spans=None) for example in examples],
        config.labels,
        config.max_seq_length,
        tokenizer,
        context=config.context,
        joined_by=config.joined_by,
        subtoken_pooling=config.subtoken_pooling,
    )
    batch = FeatureDataset(features, config.labels).collate(range(len(examples)))
    batch.pop("labels")
    with torch.no_grad():
        emissions = model(**batch).logits
    return [row[mask] for row, mask in zip(emissions, batch["word_mask"], strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_any_encoder_any_words_any_batch(name, tmp_path, monkeypatch):
    folder = make_family(name, tmp_path / name)
    tokenizer, examples = open_tokenizer(folder), random_sentences(20)
    model = NerCrfForTokenClassification.from_encoder(load_encoder(folder), LABELS).eval()
    model.config.max_seq_length = 40
    monkeypatch.setattr(packed, "SMALLEST", 1)  # small encoders are packed as large ones are
    fused = any(isinstance(each, FusedStack) for each in fused_encoder(model.encoder).modules())
    assert fused == (name in ("bert", "roberta", "electra") and packed.packing_works())
    asked = [(" ", "first", 0), (" ", "mean", 2), ("", "last", 1), (None, "first", 0)]
    for joined_by, pooling, context in asked:
        config = model.config
        config.joined_by, config.subtoken_pooling, config.context = joined_by, pooling, context
        expected = expected_scores(model, tokenizer, examples)
        for batch_size, budget, block in [(None, 8192, 16384), (3, 8192, 400), (None, 90, 16384)]:
            monkeypatch.setattr(engines, "piece_budget", lambda *_, budget=budget: budget)
            monkeypatch.setattr(engines, "BLOCK_PIECES", block)
            found = {
                row: chain.emissions[place][chain.mask[place]]
                for rows, chain in Engine(model, tokenizer, batch_size).chains(examples)
                for place, row in enumerate(rows)
            }
            assert sorted(found) == list(range(len(examples)))
            for row, scores in enumerate(expected):
                torch.testing.assert_close(found[row], scores, atol=2e-4, rtol=2e-4)
