"""`--type_map`, `--keep_types` and `--drop_types`: gold and predictions are chosen alike."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training import CORPUS, TOKENIZER, make_dataset, make_model

from nercrf.cli import main
from nercrf.data.conll import write_columns
from nercrf.data.corpus import read_corpus
from nercrf.data.examples import Example
from nercrf.data.formats import read_examples, write_examples
from nercrf.data.type_names import TypeChoice
from nercrf.data_commands import check_main
from nercrf.evaluation.evaluator import evaluate
from nercrf.evaluation.metrics import score_spans
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.labels import Span, label_list

CHOICES = [
    TypeChoice(keep=["PER"]),
    TypeChoice(drop=["PER", "LOC"]),
    TypeChoice({"PER": "X", "LOC": "X"}),
    TypeChoice({"PER": "X", "LOC": "X"}, keep=["X"]),
    TypeChoice({"LOC": "PER"}, drop=["ORG"]),
]


@pytest.fixture(scope="module")
def model():
    return make_model().eval()


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_scores_are_those_of_choosing_gold_and_predictions_before(model, choice):
    "The gold is chosen at reading, the predictions in the evaluation."
    whole = evaluate(model, make_dataset(CORPUS.dev))
    gold = [choice.choose(example.spans) for example in CORPUS.dev]
    expected = score_spans(gold, [choice.choose(spans) for spans in whole.predicted])
    assert sum(map(len, whole.predicted)) > expected.micro.predicted or choice.renamed
    chosen = [
        Example(each.id, each.tokens, spans) for each, spans in zip(CORPUS.dev, gold, strict=True)
    ]
    labels = label_list({"X", *CORPUS.types}, CORPUS.scheme)
    features = convert_examples_to_features(chosen, labels, 64, TOKENIZER, scheme=CORPUS.scheme)
    hidden = replace(features, labels=np.full_like(features.labels, -1))
    dataset = FeatureDataset(hidden, labels, CORPUS.scheme)
    result = evaluate(model, dataset, types=choice)
    assert result.scores == expected


def test_a_model_that_learned_the_new_names_is_not_renamed_again():
    chain = TypeChoice({"A": "B", "B": "C"})
    assert chain.for_model(["A", "B"]).choose([Span("B", 0, 1)]) == [Span("C", 0, 1)]
    assert chain.for_model(["B", "C"]).choose([Span("B", 0, 1)]) == [Span("B", 0, 1)]
    swap = TypeChoice({"A": "B", "B": "A"})
    assert swap.for_model(["A", "B"]).choose([Span("B", 0, 1)]) == [Span("B", 0, 1)]


def write_data(folder, choice=None):
    "Sentences of four types as files; chosen before, or as they are."
    for split in ("train", "dev", "test"):
        held = [
            Example(each.id, each.tokens, choice.choose(each.spans) if choice else each.spans)
            for each in CORPUS.splits[split][:30]
        ]
        folder.mkdir(exist_ok=True)
        write_columns(folder / f"{split}.txt", held)


FLAGS = ["--no_cuda", "--max_steps", "3", "--seed", "1", "--warmup_proportion", "0"]


def run(*words):
    assert main([str(word) for word in words]) in (0, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A model of all types."
    folder = tmp_path_factory.mktemp("types")
    write_data(folder / "data")
    flags = [*FLAGS, "--crf_learning_rate", "0.5"]
    run("train", "--data_dir", folder / "data", "--output_dir", folder / "run", *flags)
    return folder / "run"


def figures(model, data, output, *flags):
    """Of each split; unseen names are told only where the folder is the one of the training."""
    run("evaluate", model, data, "--output_dir", output, "--no_cuda", *flags)
    (path,) = Path(output, "evaluations").iterdir()
    found = json.loads(path.read_text(encoding="utf-8"))["results"]["model"]
    return {
        split: {name: x for name, x in each.items() if not name.startswith("unseen")}
        for split, each in found.items()
    }


@pytest.mark.parametrize("choice", CHOICES[:2], ids=["keep", "drop"])
def test_evaluate_leaves_out_what_reading_leaves_out(trained, tmp_path, choice):
    write_data(tmp_path / "all")
    write_data(tmp_path / "chosen", choice)
    flags = ["--keep_types", *choice.keep] if choice.keep else ["--drop_types", *choice.drop]
    found = figures(trained, tmp_path / "all", tmp_path / "a", *flags)
    plain = figures(trained, tmp_path / "all", tmp_path / "b")
    assert plain["dev"]["predicted"] > found["dev"]["predicted"]
    assert plain["dev"]["gold"] > found["dev"]["gold"]
    assert figures(trained, tmp_path / "chosen", tmp_path / "c", *flags) == found


def test_evaluate_maps_what_a_model_with_old_names_predicts(trained, tmp_path):
    choice = TypeChoice({"PER": "PERSON", "LOC": "PLACE", "ORG": "PLACE"})
    write_data(tmp_path / "old")
    write_data(tmp_path / "new", choice)
    flags = ["--type_map", *(f"{old}={new}" for old, new in choice.renamed.items())]
    found = figures(trained, tmp_path / "old", tmp_path / "a", *flags)
    plain = figures(trained, tmp_path / "old", tmp_path / "b")
    assert 0 < plain["dev"]["correct"] <= found["dev"]["correct"]
    assert found["dev"]["gold"] == plain["dev"]["gold"]
    # files that have the new names already, and a model with the old ones
    assert figures(trained, tmp_path / "new", tmp_path / "c", *flags) == found


def test_a_run_with_a_map_predicts_new_names(tmp_path):
    choice = TypeChoice({"PER": "PERSON", "LOC": "PERSON"}, drop=["ORG"])
    write_data(tmp_path / "old")
    write_data(tmp_path / "new", choice)
    words = ["--type_map", "PER=PERSON", "LOC=PERSON", "--drop_types", "ORG"]
    results = []
    for name, flags in (("old", words), ("new", [])):
        output = tmp_path / f"run-{name}"
        run("train", "--data_dir", tmp_path / name, "--output_dir", output, *FLAGS, *flags)
        results.append(json.loads((output / "eval_results.json").read_text(encoding="utf-8")))
    assert results[0] == results[1]


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES"])
def test_columns_and_tokens_in_json_are_renamed_alike(tmp_path, scheme):
    "Types are renamed before tags are joined: B-GPE I-LOC is one place, in either format."
    tags = {"BIO": ["B-GPE", "I-LOC", "O", "B-PER"], "IOB1": ["I-GPE", "I-LOC", "O", "I-PER"]}
    tags["BIOES"] = ["B-GPE", "E-LOC", "O", "S-PER"]
    words = ["New", "York", "met", "Ada"]
    rows = zip(words, tags[scheme], strict=True)
    (tmp_path / "a.txt").write_text("".join(f"{word} {tag}\n" for word, tag in rows))
    record = {"tokens": words, "ner_tags": tags[scheme]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    options = {"type_map": ["GPE=LOC"], "scheme": scheme, "on_bad": "warn"}
    spans = [read_examples(tmp_path / name, **options)[0].spans for name in ("a.txt", "a.jsonl")]
    assert spans[0] == spans[1] == [Span("LOC", 0, 2), Span("PER", 3, 4)]


def test_a_swap_is_made_once_in_every_format(tmp_path):
    "A=B and B=A exchange two types, whatever the format."
    spans = [Span("A", 0, 1), Span("B", 1, 2)]
    formats = ("columns", "csv", "tokens", "jsonl", "cluener", "doccano", "label_studio", "inline")
    for format in (*formats, "brat"):
        ending = {"brat": "ann"}.get(format, "txt")
        path = tmp_path / f"{format}.{ending}"
        write_examples([Example("1", ["Ada", "Bob"], spans)], path, format)
        back = read_examples(path, format, type_map=["A=B", "B=A"])[0]
        found = [(label, back.surface(Span(label, *place))) for label, *place in back.spans]
        assert found == [("B", "Ada"), ("A", "Bob")], format


def test_check_cuts_a_file_as_train_does(tmp_path, capsys):
    write_data(tmp_path)
    path = tmp_path / "train.txt"
    assert check_main([str(path), "--split", "0.6,0.2,0.2", "--json", "--fail_on", "never"]) == 0
    report = json.loads(capsys.readouterr().out)
    splits = {split["name"]: split["sentences"] for split in report["datasets"][0]["splits"]}
    corpus = read_corpus(path, split="0.6,0.2,0.2")
    assert splits == {name: len(held) for name, held in corpus.splits.items()}
    other = ["--split", "0.6,0.2,0.2", "--split_seed", "7", "--fix", "--output"]
    check_main([str(path), *other, str(tmp_path / "fixed"), "--fail_on", "never"])
    assert capsys.readouterr().out.count("changes, written to") == 1
