"""The pieces of words are those of the running text, whatever the tokenizer does with blanks."""

import string
from functools import cache

import numpy as np
import pytest
from encoders import FAMILIES, SENTENCES, TEXT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nercrf.data.examples import Example
from nercrf.features.running_text import (
    RunningText,
    _look_up_words,
    tokenize_corpus,
)

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
# no table of words holds where pieces span words, and where characters without a piece vanish
# and leave wrong offsets behind (the vocabulary that is trained here lacks the pieces of bytes)
WHOLE = ("unigram, pieces over words", "pieces over words", "family llama", *SLOW)

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
