"""Sentences that nobody annotated are no sentences without an entity: left out, and counted aloud."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from training import CORPUS, TOKENIZER, make_args, make_dataset, make_model

from nercrf.cli import main
from nercrf.data.formats import read_examples
from nercrf.evaluation.evaluator import evaluate
from nercrf.training.trainer import train

HALF = [replace(x, spans=x.spans if place % 2 else None) for place, x in enumerate(CORPUS.dev)]
ANN, NOTHING, WAITING = "Ann left", "she left", "it rains"
REGION = {"type": "labels", "value": {"start": 0, "end": 3, "labels": ["PER"], "text": "Ann"}}


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def three(found, nothing, *waiting):
    """Records with one entity, with none, and some that nobody annotated."""
    return lines(*({"text": ANN, **found}, {"text": NOTHING, **nothing}), *waiting)


WORDS = {"text": WAITING}
FILES = {  # an entity, no entity, then sentences that nobody annotated
    "studio.json": json.dumps(
        [
            {"data": {"text": ANN}, "annotations": [{"result": [REGION]}]},
            {"data": {"text": NOTHING}, "annotations": [{"result": []}]},
            {"data": WORDS},
            {"data": WORDS, "annotations": []},
            {"data": WORDS, "annotations": [{"was_cancelled": True, "result": [REGION]}]},
            {"data": WORDS, "predictions": [{"result": [REGION]}]},
        ]
    ),
    "minimal.json": json.dumps(
        [
            {"text": ANN, "label": [REGION["value"]], "annotation_id": 1},
            {"text": NOTHING, "annotation_id": 2},
            WORDS,
        ]
    ),
    "doccano.jsonl": three(
        {"label": [[0, 3, "PER"]]}, {"label": []}, WORDS, {**WORDS, "label": None}
    ),
    "entities.jsonl": three(
        {"entities": [{"start_offset": 0, "end_offset": 3, "label": "PER"}]},
        {"entities": []},
        WORDS,
        {**WORDS, "entities": None},
    ),
    "prodigy.jsonl": three(
        {"spans": [{"start": 0, "end": 3, "label": "PER"}], "answer": "accept"},
        {"spans": [], "answer": "accept"},
        {**WORDS, "spans": [{"start": 0, "end": 2, "label": "PER"}]},
        {**WORDS, "spans": [], "_task_hash": 7},
        {**WORDS, "answer": None},
    ),
    "tokens.jsonl": lines(
        {"tokens": ANN.split(), "ner_tags": ["B-PER", "O"]},
        {"tokens": NOTHING.split(), "ner_tags": ["O", "O"]},
        {"tokens": WAITING.split()},
        {"tokens": WAITING.split(), "ner_tags": None},
        {"tokens": WAITING.split(), "ner_tags": []},
        {"tokens": WAITING.split(), "ner_tags": ["-", "-"]},
        {"tokens": WAITING.split(), "ner_tags": [-100, -100]},
    ),
    "documents.jsonl": lines(
        {"sentences": [ANN.split(), NOTHING.split(), ["it"]], "ner": [[[0, 0, "PER"]], [], None]},
        {"sentences": [WAITING.split()]},
        {"sentences": [WAITING.split()], "ner": []},
    ),
    "cluener.json": three(
        {"label": {"PER": {"Ann": [[0, 2]]}}},
        {"label": {}},
        WORDS,
    ),
    "columns.txt": "Ann B-PER\nleft O\n\nshe O\nleft O\n\nit\nrains\n\nit -\nrains -\n\nit _\nrains _\n",
    "mostly.txt": "it\nrains\n\nit\nrains\n\nit\nrains\n\nAnn B-PER\nleft O\n\nshe O\nleft O\n",
    "layers.txt": "Ann NNP B-PER\nleft V O\n\nshe P O\nleft V O\n\nit\nrains\n",
    "table.csv": "word,tag\nAnn,B-PER\nleft,O\n,\nshe,O\nleft,O\n,\nit,\nrains,\n,\nit,-\nrains,-\n",
    "pairs.json": json.dumps(
        [[ANN, {"entities": [[0, 3, "PER"]]}], [NOTHING, {"entities": []}], [WAITING, {}]]
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_annotated_and_empty_is_not_the_same_as_not_annotated(name, tmp_path):
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    found = read_examples(path)
    waiting = [x for x in found if "".join(x.tokens) in ("itrains", "it rains", "it")]
    others = [x for x in found if x not in waiting]
    assert len(waiting) == len(found) - 2
    assert [x.spans for x in waiting] == [None] * len(waiting)
    surfaces = [[(s.label, x.surface(s)) for s in x.spans] for x in others]
    assert surfaces == [[("PER", "Ann")], []]


def test_brat_knows_by_its_file(tmp_path):
    for name in ("with", "without"):
        tmp_path.joinpath(f"{name}.txt").write_text("she left\n")
    tmp_path.joinpath("with.ann").write_text("")
    spans = [read_examples(tmp_path / f"{x}.txt", "brat")[0].spans for x in ("with", "without")]
    assert spans == [[], None]


def test_a_half_annotated_export_scores_as_its_annotated_half():
    model = make_model()
    torch.nn.init.normal_(model.classifier.weight, std=2.0)  # an untrained model that guesses
    mixed, half = make_dataset(HALF), make_dataset(HALF[1::2])
    found, alone = evaluate(model, mixed, batch_size=4), evaluate(model, half, batch_size=4)
    assert alone.scores.micro.predicted > 0
    assert alone.scores.micro.gold > 0
    assert found.to_dict() | {"unannotated": 0} == alone.to_dict()
    assert (found.sentences, found.unannotated) == (10, 10)


def test_a_training_sees_the_annotated_sentences_only(tmp_path, caplog):
    mixed = [
        replace(x, spans=x.spans if place % 2 else None) for place, x in enumerate(CORPUS.train)
    ]
    weights = []
    for name, examples in {"mixed": mixed, "alone": mixed[1::2]}.items():
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            args, model = make_args(tmp_path / name, seen_embedding=False), make_model()
            train(args, make_dataset(examples), model, TOKENIZER, make_dataset(HALF))
        said = "train: 25 of 50 sentences (50.0%) are not annotated: left out"
        assert (said in caplog.text) == (name == "mixed")
        assert "dev: 10 of 20 sentences (50.0%) are not annotated: left out" in caplog.text
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_check_tells_the_share(tmp_path, capsys):
    path = tmp_path / "train.jsonl"
    path.write_text(FILES["doccano.jsonl"], encoding="utf-8")
    assert main(["check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "  not annotated" in said
    assert "2 (50%)" in said
    assert "2 of 4 sentences of train (50.0%) are not annotated, this one first" in said
