"""The tagger: offsets, order, batches, files, whatever the input looks like."""

import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training import CORPUS, TOKENIZER, make_model, train_in

from nercrf.data.conll import write_columns
from nercrf.data.examples import Example
from nercrf.data.formats import read_examples
from nercrf.evaluation.evaluator import evaluate
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.labels import Span
from nercrf.model import modeling
from nercrf.model.encoder_config import find_model
from nercrf.run_ner_crf import main
from nercrf.tagging import engine
from nercrf.tagging.output import tag_file
from nercrf.tagging.tagger import Tagger, tag_stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The output folder of a training that is long enough to find entities."""
    folder = tmp_path_factory.mktemp("run")
    train_in(
        folder, 0.0, num_train_epochs=15.0, learning_rate=4e-3, average_decay=0.0, eval_steps=0
    )
    return folder


@pytest.fixture(scope="module")
def tagger(folder):
    return Tagger.from_pretrained(folder, device="cpu", batch_size=4)


TEXTS = [example.text for example in CORPUS.train]


def test_it_has_learned_something(tagger):
    found = tagger.tag_examples(CORPUS.train)
    correct = sum(
        len(set(spans) & set(e.spans)) for spans, e in zip(found, CORPUS.train, strict=True)
    )
    assert correct > 0.5 * sum(len(example.spans) for example in CORPUS.train)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(alphabet="Aab 王芳林.，\t\u200b\u3000é", max_size=30) | st.sampled_from(TEXTS),
        max_size=6,
    )
)
def test_entities_are_pieces_of_their_text(texts):
    """Offsets in characters and in words, for any text, in the order of the input."""
    tagger = Tagger(make_model(0.0), TOKENIZER, batch_size=3, device="cpu")
    found = tagger(texts)
    assert len(found) == len(texts)
    for text, entities in zip(texts, found, strict=True):
        words = tagger.splitter(text)
        for entity in entities:
            assert text[entity.start : entity.end] == entity.text
            assert words[entity.word_start][1] == entity.start
            assert words[entity.word_end - 1][2] == entity.end
        assert [e.start for e in entities] == sorted(e.start for e in entities)
        assert all(one.end <= other.start for one, other in itertools.pairwise(entities))
        assert entities == tagger(text)


def test_batches_and_order_change_nothing(folder, tagger):
    expected = tagger(TEXTS)
    assert sum(map(len, expected)) > 10
    for size in (1, 7, 100):
        assert Tagger.from_pretrained(folder, device="cpu", batch_size=size)(TEXTS) == expected
    assert tagger(TEXTS[::-1]) == expected[::-1]
    assert [entities for _, entities in tag_stream(tagger, TEXTS, chunk=9)] == expected


def test_a_long_text_is_tagged_whole(tagger):
    """Longer than any window: entities up to the end, offsets right."""
    text = " ".join([*TEXTS] * 5)
    assert len(text.split()) > tagger.model.config.max_seq_length
    entities = tagger(text)
    assert all(text[e.start : e.end] == e.text for e in entities)
    assert max(e.start for e in entities) > 0.9 * len(text)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_the_windows_of_a_long_text_are_encoded_some_at_a_time(folder, monkeypatch, pooling):
    """No call of the encoder is larger than a pass, and every answer is that of one call."""
    long = Tagger.from_pretrained(folder, device="cpu", batch_size=4)
    long.model.config.subtoken_pooling = pooling
    texts = [" ".join([*TEXTS] * 5), TEXTS[0], " ".join(TEXTS)]
    sizes, run = [], modeling.run_encoder
    monkeypatch.setattr(
        modeling, "run_encoder", lambda *a, **k: sizes.append(a[2].numel()) or run(*a, **k)
    )
    in_one_call = long(texts)
    assert max(sizes) > 300
    monkeypatch.setattr(engine, "PASS_PIECES", 300)
    sizes.clear()
    assert long(texts) == in_one_call
    assert sum(len(entities) for entities in in_one_call) > 20
    assert len(sizes) > 5
    assert max(sizes) <= 300


def test_words_that_are_given_are_kept(tagger):
    tokens = [example.tokens for example in CORPUS.dev]
    spans = tagger.tag_examples(CORPUS.dev)
    found = tagger(tokens)
    assert [[(e.label, e.word_start, e.word_end) for e in entities] for entities in found] == spans
    text = " ".join(tokens[0])
    assert all(text[e.start : e.end] == e.text for e in found[0])


@pytest.mark.parametrize("name", ["model", "checkpoint-105", ""])
def test_every_folder_of_a_run_that_holds_a_model_loads(folder, name):
    assert find_model(folder / name).name in ("model", "checkpoint-105")
    assert Tagger.from_pretrained(folder / name, device="cpu")("") == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([3], "got int"),
        ([["a", 3]], "got list with 3 as word 1"),
        ([None], "got NoneType"),
        (["a", "b\ud800"], "element 1 of the input: expected Unicode text, got half of a surrog"),
        ([["a", "\udc00"]], "element 0 of the input: expected Unicode text, got half of a surrog"),
        ([["a", ""]], "expected words of at least one character, got '' as word 1; leave it out"),
    ],
)
def test_wrong_input_is_named(tagger, inputs, message):
    with pytest.raises(TypeError, match=message):
        tagger(inputs)


def test_column_files_come_back_with_their_tokens(tagger, tmp_path):
    source, target = tmp_path / "in.tsv", tmp_path / "out.tsv"
    source.write_text("".join("\n".join(e.tokens) + "\n\n" for e in CORPUS.test), encoding="utf-8")
    tagged = tag_file(tagger, source, target, "columns")
    back = read_examples(target, scheme=tagger.model.config.scheme)
    assert [e.tokens for e in back] == [e.tokens for e in CORPUS.test]
    assert [e.spans for e in back] == [s.spans for s in tagged] == tagger.tag_examples(CORPUS.test)


def test_nothing_is_written_when_the_input_is_bad(tagger, tmp_path):
    source, target = tmp_path / "in.json", tmp_path / "out.jsonl"
    source.write_text('{"text": "fine"}\n{"txt": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"in\.json:2"):
        tag_file(tagger, source, target, format="cluener", on_bad="error")
    assert not target.exists()


def test_lines_of_a_text_file_keep_their_spaces(tagger, tmp_path):
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_bytes(b"\xef\xbb\xbf  two  spaces \r\n\r\n\t\nlast")
    tag_file(tagger, source, target, format="text")
    lines = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [(line["id"], line["text"]) for line in lines] == [
        ("1", "  two  spaces "),
        ("2", ""),
        ("3", "\t"),
        ("4", "last"),
    ]


def cues_and_names(count, seed):
    """Sentences of one document: a name is a place or a person, and only the sentence before it
    says which.
    """
    chance, sentences = random.Random(seed), []
    for number in range(count):
        label = chance.choice(["LOC", "PER"])
        cue = ["we", "went", "to"] if label == "LOC" else ["we", "talked", "with"]
        sentences.append(Example(f"{number}a", cue, []))
        sentences.append(
            Example(f"{number}b", [chance.choice(["Alma", "Ross", "Lund"])], [Span(label, 0, 1)])
        )
    return sentences


@pytest.fixture(scope="module")
def contextual(tmp_path_factory):
    """The output folder of a training with a sentence on either side as context, and its development set."""
    folder = tmp_path_factory.mktemp("contextual")
    for split, count in (("train", 60), ("dev", 20)):
        write_columns(folder / f"{split}.bio", cues_and_names(count, split), "BIO")
    flags = {
        "data_dir": folder,
        "output_dir": folder / "out",
        "context": 1,
        "num_train_epochs": 6,
        "per_gpu_train_batch_size": 8,
        "eval_steps": 0,
        "save_steps": 0,
        "seed": 3,
    }
    words = itertools.chain.from_iterable(
        (f"--{name}", str(value)) for name, value in flags.items()
    )
    assert main([*words, "--no_cuda", "--do_train", "--do_eval", "--no_learning_curve"]) == 0
    return folder / "out", cues_and_names(20, "dev")


def test_a_label_that_only_the_neighbour_tells_takes_connected_sentences(contextual, tmp_path):
    """Of a call, a stream and a file; and they agree with the evaluation. Unconnected, the name
    says nothing.
    """
    folder, examples = contextual
    gold, texts = [example.spans for example in examples], [example.text for example in examples]
    tagger = Tagger.from_pretrained(folder, device="cpu", batch_size=4)

    def spans(results):
        return [[Span(e.label, e.word_start, e.word_end) for e in entities] for entities in results]

    assert spans(tagger(texts, connected=True)) == gold
    assert spans(tagger([example.tokens for example in examples], connected=True)) == gold
    assert tagger.tag_examples(examples) == gold
    for chunk in (1, 3, 1024):
        stream = list(tag_stream(tagger, iter(texts), chunk, connected=True))
        assert [text for text, _ in stream] == texts
        assert spans(entities for _, entities in stream) == gold
    (tmp_path / "in.txt").write_text("\n".join(texts), encoding="utf-8")
    assert [
        found.spans
        for found in tag_file(tagger, tmp_path / "in.txt", tmp_path / "out.jsonl", format="text")
    ] == gold
    figures = json.loads((folder / "eval_results.json").read_text())["model"]["dev"]
    assert (figures["gold"], figures["predicted"], figures["correct"]) == (20, 20, 20)

    alone = tagger(texts)
    assert (
        alone
        == [tagger(text) for text in texts]
        == [entities for _, entities in tag_stream(tagger, texts, chunk=3)]
    )
    answers = {}
    for text, entities in zip(texts, spans(alone), strict=True):
        assert (
            answers.setdefault(text, entities) == entities
        )  # the same name, the same answer: right at most by chance
    assert spans(alone) != gold


def test_evaluation_and_tagger_agree_with_and_without_context(contextual):
    folder, examples = contextual
    tagger = Tagger.from_pretrained(folder, device="cpu", batch_size=4)
    config = tagger.model.config
    for context in (0, 1):
        features = convert_examples_to_features(
            examples,
            config.labels,
            config.max_seq_length,
            tagger.tokenizer,
            scheme=config.scheme,
            context=context,
        )
        dataset = FeatureDataset(features, config.labels, config.scheme)
        found = tagger.tag_examples(examples, with_context=bool(context))
        assert evaluate(tagger.model, dataset, batch_size=4).predicted == found
