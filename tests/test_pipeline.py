"""The pipeline of transformers finds what the tagger, the verb `predict` and the evaluation find."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from transformers import BertConfig, BertForTokenClassification, pipeline
from transformers.pipelines.token_classification import TokenClassificationPipeline

from nercrf.cli import main
from nercrf.data.sample import sample_corpus
from nercrf.evaluation.evaluator import evaluate
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.labels import label_list
from nercrf.model.modeling import NerCrfConfig, NerCrfForTokenClassification
from nercrf.model.small_encoder import SmallEncoderConfig
from nercrf.model.vocabulary import build_tokenizer
from nercrf.tagging.pipeline import TaggerPipeline
from nercrf.tagging.tagger import Tagger

TYPES = ["LOC", "ORG", "PER", "PRODUCT"]
STRATEGIES = ("simple", "first", "average", "max")


@pytest.fixture(scope="module")
def corpus():
    return sample_corpus(sizes=(60, 4, 24))


def random_model(tokenizer, scheme="BIO", **options):
    """A model whose random scores make short and long entities of all types."""
    torch.manual_seed(5)
    config = NerCrfConfig(
        SmallEncoderConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1),
        scheme=scheme,
        id2label=dict(enumerate(label_list(TYPES, scheme))),
        **options,
    )
    model = NerCrfForTokenClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    return model


def found_rows(rows):
    return [(row["entity_group"], row["start"], row["end"]) for row in rows]


MODELS = [
    ("IOB1", {}),
    ("BILOU", {}),
    ("BIO", {"max_seq_length": 12, "stride": 3}),
    ("BIOES", {"max_seq_length": 40, "context": 2}),
    ("BIO", {"constrain": False}),
    ("BIO", {"subtoken_pooling": "mean", "split_by": "characters"}),
]


@pytest.mark.parametrize(("scheme", "options"), MODELS)
def test_all_doors_find_the_same(scheme, options, corpus, tmp_path):
    tokenizer = build_tokenizer(corpus.train)
    model = random_model(tokenizer, scheme, **options)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = [example.text for example in corpus.test]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    output = str(tmp_path / "out.jsonl")
    arguments = [str(tmp_path / "texts.txt"), "--output", output, "--input_format", "text"]
    assert main(["predict", str(tmp_path), *arguments, "--no_cuda"]) in (0, None)
    with open(output, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    predicted = [[(e["label"], e["start"], e["end"]) for e in line["entities"]] for line in lines]
    assert sum(map(len, predicted)) > len(texts)

    tagger = Tagger.from_pretrained(tmp_path, device="cpu")
    tagged = [[(e.label, e.start, e.end) for e in each] for each in tagger(texts, connected=True)]
    assert tagged == predicted
    door = pipeline("ner", model=str(tmp_path / "model"), device="cpu", batch_size=7)
    for strategy in STRATEGIES:
        rows = door(texts, aggregation_strategy=strategy, connected=True)
        assert list(map(found_rows, rows)) == predicted

    # sentences of words: pipeline and evaluation
    words = [example.tokens for example in corpus.test]
    config = model.config
    features = convert_examples_to_features(
        corpus.test,
        config.labels,
        config.max_seq_length,
        tokenizer,
        scheme=scheme,
        stride=config.stride,
        joined_by=config.joined_by,
        subtoken_pooling=config.subtoken_pooling,
    )
    evaluated = evaluate(model, FeatureDataset(features, config.labels, scheme)).predicted
    rows = door(words, aggregation_strategy="simple", is_split_into_words=True)
    places = [[(e.label, e.start, e.end) for e in each] for each in tagger(words)]
    assert list(map(found_rows, rows)) == places
    spans = [[(e.label, e.word_start, e.word_end) for e in each] for each in tagger(words)]
    assert spans == [[tuple(span) for span in each] for each in evaluated]


def test_scores_are_the_probabilities_of_the_chain(corpus):
    """By enumeration of all label sequences."""
    tokenizer = build_tokenizer(corpus.train)
    model = random_model(tokenizer)
    words = corpus.test[0].tokens[:4]
    door = TaggerPipeline(model=model, tokenizer=tokenizer, device="cpu")
    pieces = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    first = [pieces.word_ids().index(word) for word in range(len(words))]
    with torch.no_grad():
        emissions = model(
            pieces["input_ids"], pieces["attention_mask"], word_index=torch.tensor([first])
        ).logits
    paths = torch.cartesian_prod(*[torch.arange(len(model.config.labels))] * len(words))
    start, steps, end = model.crf.chain(emissions).scores
    weights = start[paths[:, 0]] + end[paths[:, -1]]
    weights = weights + steps[paths[:, :-1], paths[:, 1:]].sum(1)
    weights = weights + emissions[0, torch.arange(len(words)), paths].sum(1)
    chances = weights.detach().double().softmax(0)
    (rows,) = door(words, is_split_into_words=True, ignore_labels=[])
    assert len(rows) == len(words)
    for row in rows:
        label = model.config.label2id[row["entity"]]
        wanted = chances[paths[:, row["index"]] == label].sum().item()
        assert row["score"] == pytest.approx(wanted, abs=1e-5)
        assert type(row["score"]) is float
    (entities,) = door(words, is_split_into_words=True, aggregation_strategy="max")
    assert entities
    for entity in entities:
        number = [row["start"] for row in rows].index(entity["start"])
        last = [row["end"] for row in rows].index(entity["end"])
        kind, label2id = entity["entity_group"], model.config.label2id
        fits = paths[:, number] == label2id[f"B-{kind}"]
        for place in range(number + 1, last + 1):
            fits &= paths[:, place] == label2id[f"I-{kind}"]
        if last + 1 < len(words):
            fits &= paths[:, last + 1] != label2id[f"I-{kind}"]
        assert entity["score"] == pytest.approx(chances[fits].sum().item(), abs=1e-5)


@pytest.mark.parametrize("chosen", [("expected", 0.3), ("threshold", 0.05)])
def test_words_and_entities_come_of_one_chain(chosen, corpus):
    """One pass of the encoder for each sentence, whatever decoding is asked for."""
    tokenizer = build_tokenizer(corpus.train)
    model = random_model(tokenizer)
    words = [example.tokens for example in corpus.test]
    options = dict(zip(("decoding", "threshold"), chosen, strict=True))
    door = TaggerPipeline(model=model, tokenizer=tokenizer, device="cpu", **options)
    encoded = []
    hook = model.encoder.register_forward_hook(
        lambda _module, _inputs, output: encoded.append(len(output[0]))
    )
    rows = door(words, is_split_into_words=True)
    hook.remove()
    assert sum(encoded) == len(words)
    found = Tagger(model, tokenizer, device="cpu", **options)(words)
    assert found != Tagger(model, tokenizer, device="cpu")(words)
    for each, entities in zip(rows, found, strict=True):
        inside = [place for e in entities for place in range(e.word_start, e.word_end)]
        assert [row["index"] for row in each] == inside


def test_scores_of_words_are_at_the_temperature_of_the_model(corpus):
    tokenizer = build_tokenizer(corpus.train)
    model = random_model(tokenizer, probability_temperature=2.0)
    door = TaggerPipeline(model=model, tokenizer=tokenizer, device="cpu")
    ((row,),) = door([["Ada"]], is_split_into_words=True, ignore_labels=[])
    ((_, chain),) = door.tagger.engine.chains([door.tagger.read(["Ada"]).example])
    start, _, end = chain.scores
    chances = ((chain.emissions[0, 0] + start + end) / 2).softmax(0)
    wanted = chances[model.config.label2id[row["entity"]]].item()
    assert row["score"] == pytest.approx(wanted, abs=1e-5)


def test_shapes_are_those_of_the_stock_pipeline(corpus):
    tokenizer = build_tokenizer(corpus.train)
    size = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    labels = {"id2label": dict(enumerate(label_list(TYPES, "BIO")))}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=8, **size, **labels)
    torch.manual_seed(1)
    options = {"tokenizer": tokenizer, "device": "cpu"}
    stock = pipeline("ner", model=BertForTokenClassification(config), **options)
    assert type(stock) is TokenClassificationPipeline
    door = pipeline("ner", model=random_model(tokenizer), **options)
    assert type(door) is TaggerPipeline
    text, words = "Ada Moor sings in Oslo", ["Ada", "Moor", "sings"]
    calls = [
        ((text,), {}),
        (([text],), {}),
        (([text, text],), {"batch_size": 2}),
        ((text,), {"aggregation_strategy": "simple"}),
        ((words,), {"is_split_into_words": True}),
        (([words, words],), {"is_split_into_words": True, "delimiter": "_"}),
        (([text] * 3,), {"aggregation_strategy": "average"}),
    ]

    def shape(answer):
        if isinstance(answer, list) and answer and isinstance(answer[0], list):
            return [shape(each) for each in answer]
        return sorted(answer[0]) if answer else None

    for inputs, asked in calls:
        ours, theirs = (each(*inputs, ignore_labels=[], **asked) for each in (door, stock))
        assert shape(ours) == shape(theirs), asked
    assert shape(list(door(x for x in [text]))) == shape(list(stock(x for x in [text])))
    (ours,), (theirs,) = (
        each(words, is_split_into_words=True, delimiter="_", ignore_labels=[])
        for each in (door, stock)
    )
    assert [(row["start"], row["end"]) for row in ours] == [(0, 3), (4, 8), (9, 14)]
    assert ours[0]["start"] == theirs[0]["start"]
    assert ours[-1]["end"] == theirs[-1]["end"]
    for each in (door, stock):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            each(text, ignored_labels=[])
        with pytest.raises(ValueError, match="t least one"):
            each([])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "expected a text or texts, got NoneType"),
        ({"text": "Ada Moor"}, "expected a text or texts, got dict; give a list"),
        (b"Ada Moor", "expected a text or texts, got bytes"),
        ([None], "element 0 of the input: expected a string or a list of strings, got NoneType"),
        (["Ada", "a\ud800"], "element 1 of the input: expected Unicode text"),
    ],
)
def test_what_is_no_text_is_refused_at_once(inputs, message, corpus):
    "The keys of an object were tagged."
    tokenizer = build_tokenizer(corpus.train)
    door = pipeline("ner", model=random_model(tokenizer), tokenizer=tokenizer, device="cpu")
    with pytest.raises(TypeError, match=message):
        door(inputs)


def test_importing_nercrf_is_enough_in_any_order(corpus, tmp_path):
    tokenizer = build_tokenizer(corpus.train)
    for folder in (tmp_path, tmp_path / "run" / "model"):  # a model's folder, and that of a run
        random_model(tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    code = """
import sys, nercrf.tagging
assert "torch" not in sys.modules and "transformers" not in sys.modules
from transformers import pipeline
import transformers.pipelines as pipelines
print(type(pipeline("token-classification", model=sys.argv[1], device="cpu")).__name__)
print(type(pipeline("ner-crf", model=sys.argv[1], device="cpu")).__name__)
print(type(pipeline("token-classification", sys.argv[1] + "/run", device="cpu")).__name__)
# and where transformers was first
stock = "transformers.pipelines.token_classification.TokenClassificationPipeline"
pipelines.SUPPORTED_TASKS["token-classification"]["impl"] = stock
for name in [name for name in sys.modules if name.startswith("nercrf")]:
    del sys.modules[name]
import nercrf
print(type(pipeline("token-classification", model=sys.argv[1], device="cpu")).__name__)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.stdout.split() == ["TaggerPipeline"] * 4, finished.stderr
    assert "not supported" not in finished.stderr


def test_a_pipeline_is_saved_as_model_and_tokenizer(corpus, tmp_path):
    tokenizer = build_tokenizer(corpus.train)
    door = TaggerPipeline(model=random_model(tokenizer), tokenizer=tokenizer, device="cpu")
    door.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    text = corpus.test[0].text
    again = pipeline("ner-crf", model=str(tmp_path), device="cpu")
    assert again(text) == door(text)
