"""The pieces of words are those of the running text, whatever the tokenizer does with blanks."""

import json
import string
from collections import Counter
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from encoders import FAMILIES, SENTENCES, TEXT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nercrf.data.examples import Example
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.features.running_text import RunningText, _look_up_words, are_marks, tokenize_corpus
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfConfig, NerCrfForTokenClassification
from nercrf.model.small_encoder import SmallEncoderConfig
from nercrf.script import _warn_of_unknown_words

UNKNOWN = ["<unk>", "<s>", "</s>", "<pad>", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "<mask>", "[MASK]"]


def trained(model, pre_tokenizer, normalizer=None, decoder=None, trainer=None, **options):
    """A maker of a fast tokenizer that is trained on `TEXT`."""

    @cache
    def build():
        backend = Tokenizer(model())
        backend.pre_tokenizer = pre_tokenizer
        if normalizer is not None:
            backend.normalizer = normalizer
        teacher = (trainer or trainers.BpeTrainer)(
            vocab_size=500, special_tokens=UNKNOWN, show_progress=False, **options
        )
        backend.train_from_iterator(TEXT.splitlines(), teacher)
        if decoder is not None:
            backend.decoder = decoder
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", mask_token="<mask>", pad_token="<pad>"
        )

    return build


BYTES = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
UNIGRAM = {"trainer": trainers.UnigramTrainer, "unk_token": "<unk>"}
LLAMA = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
SPLIT_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(prefix, regex=None, normalizer=None):
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex is None)]
    if regex is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(regex), "isolated"))
    cut = pre_tokenizers.Sequence(steps)
    return trained(models.BPE, cut, normalizer, decoders.ByteLevel(), **BYTES)


def unigram(scheme, normalizer=None, split=True):
    cut = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    decoder = decoders.Metaspace(prepend_scheme=scheme)
    return trained(models.Unigram, cut, normalizer, decoder, **UNIGRAM)


def bpe():
    return models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)


def word_piece(lower, marks=None):
    normal = normalizers.BertNormalizer(lowercase=lower, strip_accents=marks)
    cut, piece = pre_tokenizers.BertPreTokenizer(), lambda: models.WordPiece(unk_token="[UNK]")
    return trained(piece, cut, normal, decoders.WordPiece(), trainers.WordPieceTrainer)


def suffixed(normalizer, cut):
    model = lambda: models.BPE(unk_token="<unk>", end_of_word_suffix="</w>")  # noqa: E731
    return trained(model, cut, normalizer, decoders.BPEDecoder("</w>"), end_of_word_suffix="</w>")


CLIP = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(
            Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", True
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
XLMR = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
OWN = {
    "byte-level": byte_level(False),
    "byte-level, blank first": byte_level(True),
    "byte-level, cl100k": byte_level(False, SPLIT_DIGITS),
    "byte-level, cl100k, blank first": byte_level(True, SPLIT_DIGITS),
    "byte-level, NFC": byte_level(False, None, normalizers.NFC()),
    "unigram always": unigram("always"),
    "unigram first": unigram("first"),
    "unigram never": unigram("never"),
    "unigram, NFKC, stripped": unigram("always", normalizers.Sequence([XLMR, normalizers.Strip()])),
    "unigram, pieces over words": unigram("always", None, split=False),
    "llama": trained(bpe, pre_tokenizers.Split("▁", "merged_with_next"), LLAMA),
    "pieces over words": trained(bpe, pre_tokenizers.Split("\n", "removed"), LLAMA),
    "cased": word_piece(False),
    "uncased": word_piece(True),
    "word level": trained(
        lambda: models.WordLevel(unk_token="<unk>"),
        pre_tokenizers.Whitespace(),
        normalizers.Lowercase(),
        trainer=trainers.WordLevelTrainer,
    ),
    "word level, nothing cut": trained(
        lambda: models.WordLevel(unk_token="<unk>"),
        pre_tokenizers.Split("\n", "removed"),
        trainer=trainers.WordLevelTrainer,
    ),
    "clip": suffixed(
        normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        ),
        CLIP,
    ),
    "gpt-1": suffixed(
        normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    ),
}
# the families' own tokenizers, each once
SEEN = {family.tokenizer: f"family {name}" for name, family in reversed(FAMILIES.items())}
MAKERS = OWN | {name: maker for maker, name in reversed(SEEN.items())}
SLOW = [name for name in MAKERS if not MAKERS[name]().is_fast]
# the vocabularies of these, as trained here, lack the pieces of bytes: characters vanish, and the
# offsets behind them are wrong
VANISHING = {"family llama", "family persimmon", "family ernie4_5"}
# no table of words holds for these, and for those whose pieces span words
WHOLE = {"unigram, pieces over words", "pieces over words", *VANISHING, *SLOW}

NASTY = [
    *("Anna", "can't", "'s", "n't", "l'été", "1842", "3.14", "#tag", "...", "O'Neill", "e-mail"),
    *("北京", "高", "タワー", "मुंबई", "🙂", "👍🏽", "👩\u200d🚀", "🏽", "ﬁ", "Ⅷ", "ＡＢＣ", "İ"),
    *("e\u0301", "\u0301e", "\u0308", "a\u200bb", "\u200d", "\ufeffAnna", "\u00ad", "\ufffd"),
    *("x y", " Anna", "Anna ", " ", "\u00a0", "a\u00a0b", "\u3000", "\u2028", "\t", "\n", "\x00"),
    *("", "▁", "▁Anna", "Anna▁", "Ġ", "##na", "</w>", *UNKNOWN, "x<mask>", "<s>y", "\u0085"),
]
words = st.one_of(
    st.sampled_from(NASTY),
    st.sampled_from(sorted(set(TEXT.split()))),
    st.text(st.sampled_from(sorted(set(TEXT + string.ascii_letters))), min_size=1, max_size=6),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4),
)
corpora = st.lists(st.lists(words, min_size=1, max_size=8), min_size=1, max_size=5)


def pieces_of(found, index):
    """The pieces of a sentence, but for the unknown ones of words that have none."""
    rows = found.rows[found.offsets[index] : found.offsets[index + 1]]
    rows = rows[~found.table.missing[rows]]
    table = found.table
    parts = [table.ids[table.starts[row] :][: table.counts[row]] for row in rows]
    return np.concatenate([np.zeros(0, int), *parts]).tolist()


def text_pieces(tokenizer, sentence):
    ids = tokenizer(" ".join(sentence), add_special_tokens=False, verbose=False)["input_ids"]
    return list(ids)


@pytest.mark.parametrize("name", MAKERS)
def test_sentences_of_the_families_are_cut_as_text(name):
    tokenizer = MAKERS[name]()
    examples = [Example(str(at), words) for at, words in enumerate(SENTENCES)]
    found = tokenize_corpus(examples, tokenizer)
    for index, sentence in enumerate(SENTENCES):
        assert pieces_of(found, index) == text_pieces(tokenizer, sentence)


def check_corpus(name, sentences):
    """Of most tokenizers without the comparison that the library makes: the table is right."""
    tokenizer = MAKERS[name]()
    examples = [Example(str(at), words) for at, words in enumerate(sentences)]
    try:
        if name in WHOLE:
            found = tokenize_corpus(examples, tokenizer)
        else:
            found = _look_up_words(examples, RunningText(tokenizer)).pieces()
    except ValueError as error:
        if "no unknown token" not in str(error):
            raise
        return
    for index, sentence in enumerate(sentences):
        assert pieces_of(found, index) == text_pieces(tokenizer, sentence), sentence


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in SLOW])
@settings(max_examples=25, deadline=None)
@given(sentences=corpora)
def test_pieces_of_words_are_those_of_the_text(name, sentences):
    check_corpus(name, sentences)


@pytest.mark.parametrize("name", SLOW)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(sentences=corpora)
def test_pieces_of_words_are_those_of_the_text_in_python(name, sentences):
    check_corpus(name, sentences)


# Characters.

CHINESE = ["高勇：男，中国国籍。", "１９７１年出生于北京市，a b C 9", "汉族\u3000中 国\u200b公司"]


EACH_CUT = "byte-level, cl100k, blank first"  # puts a blank before whatever it cuts


@pytest.mark.parametrize("name", sorted(set(MAKERS) - VANISHING - {EACH_CUT}))
def test_characters_have_no_blank_before_them_and_are_read_at_their_text(name):
    tokenizer = MAKERS[name]()
    examples = [Example(str(at), list(text)) for at, text in enumerate(CHINESE)]
    try:
        features = convert_examples_to_features(examples, ["O"], 512, tokenizer, joined_by="")
    except ValueError as error:
        if "no unknown token" not in str(error):
            raise
        return
    found = tokenize_corpus(examples, tokenizer, "")
    for index, text in enumerate(CHINESE):
        rows = found.rows[found.offsets[index] : found.offsets[index + 1]]
        for place, (character, row) in enumerate(zip(text, rows, strict=True)):
            ids = found.table.ids[found.table.starts[row] :][: found.table.counts[row]]
            marks = are_marks(ids, tokenizer)
            if place and character.isprintable() and character != " ":
                assert not marks.any() or marks.all()
                tokens = tokenizer.convert_ids_to_tokens(ids)
                if "".join(tokens) != tokenizer.unk_token:
                    assert not set("".join(tokens)) & {"▁", "Ġ"}, (character, tokens)
    read = features.input_ids[
        np.repeat(features.window_offsets[:-1], features.word_lengths) + features.word_pieces
    ]
    usual = [each.isprintable() and each.strip() != "" for each in "".join(CHINESE)]
    assert not are_marks(read, tokenizer)[usual].any()


def test_the_share_of_characters_that_are_read_as_a_mark_falls_from_all_to_none():
    tokenizer = OWN["unigram always"]()
    examples = [Example("1", list("高勇国籍汉族工程师石油公司"))]
    shares = []
    for joined_by in (None, ""):
        features = convert_examples_to_features(
            examples, ["O"], 128, tokenizer, joined_by=joined_by
        )
        shares.append(are_marks(features.input_ids[features.word_pieces], tokenizer).mean())
    assert shares[0] > 0.9
    assert shares[1] == 0


# First, last, mean.


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
@pytest.mark.parametrize("name", ["byte-level", "unigram always", "cased", "clip"])
def test_the_pieces_that_are_read_by_the_characters_they_cover(name, pooling):
    tokenizer = MAKERS[name]()
    sentences = SENTENCES[:4]
    examples = [Example(str(at), words) for at, words in enumerate(sentences)]
    features = convert_examples_to_features(
        examples, ["O"], 24, tokenizer, stride=6, context=1, subtoken_pooling=pooling
    )
    dataset = FeatureDataset(features, ["O"])
    batch = dataset.collate(range(len(examples)))
    assert ("word_sizes" in batch) == (pooling == "mean")
    flat = batch["input_ids"].flatten()
    for row, words in enumerate(sentences):
        text = " ".join(words)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begin = 0
        for place, word in enumerate(words):
            own = [
                number
                for number, (start, end) in zip(
                    encoded["input_ids"], encoded["offset_mapping"], strict=True
                )
                if max(start, begin) < min(end, begin + len(word))
                and not are_marks([number], tokenizer)[0]
            ]
            at = int(batch["word_index"][row, place])
            size = int(batch["word_sizes"][row, place]) if pooling == "mean" else 1
            expected = {"first": own[:1], "last": own[-1:], "mean": own}[pooling]
            assert flat[at : at + size].tolist() == expected, (word, pooling)
            begin += len(word) + 1


def test_the_mean_is_that_of_the_pieces_in_any_window_and_padding():
    tokenizer = OWN["byte-level"]()
    torch.manual_seed(0)
    config = SmallEncoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        embedding_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    encoder = load_encoder(config)
    model = NerCrfForTokenClassification.from_encoder(
        encoder, ["O", "B-X", "I-X"], subtoken_pooling="mean"
    ).eval()
    assert model.config.joined_by == " "
    examples = [Example(str(at), words) for at, words in enumerate(SENTENCES[:4])]
    options = {"subtoken_pooling": "mean"}
    rows = []
    for left in (False, True):
        features = convert_examples_to_features(
            examples, model.config.labels, 128, tokenizer, pad_on_left=left, **options
        )
        batch = FeatureDataset(features, model.config.labels).collate(range(4))
        batch["labels"].clamp_(min=0)
        output = model(**batch)
        output.loss.backward()
        assert torch.isfinite(model.classifier.weight.grad).all()
        rows.append(output.logits.detach()[batch["word_mask"]])
        if not left:
            hidden = model.encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
            flat = hidden.flatten(0, 1)
            pairs = zip(
                batch["word_index"][batch["word_mask"]].tolist(),
                batch["word_sizes"][batch["word_mask"]].tolist(),
                strict=True,
            )
            means = torch.stack([flat[at : at + size].mean(0) for at, size in pairs])
            torch.testing.assert_close(rows[0], model.classifier(means))
    torch.testing.assert_close(rows[0], rows[1])
    with pytest.raises(ValueError, match="without word_sizes"):
        model(**{name: each for name, each in batch.items() if name != "word_sizes"})


# Models of before, and what is told.


def test_a_configuration_of_before_cuts_words_as_before(tmp_path):
    config = NerCrfConfig(SmallEncoderConfig(), id2label={0: "O"}, joined_by="")
    config.save_pretrained(tmp_path)
    assert NerCrfConfig.from_pretrained(tmp_path).joined_by == ""
    path = tmp_path / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("joined_by", "subtoken_pooling"):
        content.pop(name, None)
    path.write_text(json.dumps(content), encoding="utf-8")
    before = NerCrfConfig.from_pretrained(tmp_path)
    assert (before.joined_by, before.subtoken_pooling) == (None, "first")


def test_too_many_unknown_words_are_told_with_examples(caplog):
    tokenizer = OWN["word level"]()
    loaded = SimpleNamespace(tokenizer=tokenizer, model=SimpleNamespace(config=NerCrfConfig()))
    for words, told in [
        (["anna", "went"] * 50 + ["Ouagadougou"], False),
        (["anna", "went", "Ouagadougou", "Qwxz", "Ouagadougou"], True),
    ]:
        caplog.clear()
        features = convert_examples_to_features([Example("1", words)], ["O"], 256, tokenizer)
        summary = SimpleNamespace(word_counts=lambda words=words: Counter(words))
        _warn_of_unknown_words(FeatureDataset(features, ["O"]), loaded, summary)
        assert ("does not know 60.0 % of the training words" in caplog.text) == told
        assert ("'Ouagadougou', 'Qwxz': is it" in caplog.text) == told
