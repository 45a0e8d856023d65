"""Evaluation counts every gold entity once, whatever the windows, the batches and the processes."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import CORPUS, DEV, NESTED, TOKENIZER, WordTagger, make_dataset, make_model
from workers import by_document, run_workers

from nercrf.cli import main
from nercrf.data.formats import write_examples
from nercrf.distributed.devices import BatchDataParallel
from nercrf.evaluation.evaluator import (
    UNLEARNABLE,
    AskedEntities,
    evaluate,
    evaluation_batches,
    result_record,
    unlearnable_table,
)
from nercrf.evaluation.metrics import score_tables
from nercrf.evaluation.spans import table_of_spans
from nercrf.labels import Span
from nercrf.model.calibration import keep_calibration
from nercrf.tagging.tagger import Tagger

GOLD = sum(len(example.spans) for example in CORPUS.dev)


@pytest.fixture(scope="module")
def model():
    return make_model().eval()


@pytest.mark.parametrize("max_seq_length", [6, 9, 17, 64])
def test_every_gold_entity_counts_whatever_the_window(model, max_seq_length):
    dataset = make_dataset(CORPUS.dev, max_seq_length)
    result = evaluate(model, dataset, batch_size=8)
    assert result.scores.micro.gold == GOLD
    assert result.sentences == len(result.predicted) == len(CORPUS.dev)
    assert result.scores.micro.predicted == sum(map(len, result.predicted))


def test_spans_lie_in_their_sentence(model):
    for example, spans in zip(
        CORPUS.dev, evaluate(model, DEV, batch_size=8).predicted, strict=True
    ):
        assert all(0 <= start < end <= len(example.tokens) for _, start, end in spans)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_the_batch_size_changes_nothing(model, size):
    expected, result = evaluate(model, DEV, batch_size=8), evaluate(model, DEV, batch_size=size)
    assert result.predicted == expected.predicted
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)


def test_data_parallel_gives_the_same(model):
    expected = evaluate(model, DEV, batch_size=8)
    result = evaluate(BatchDataParallel(model, ["cpu", "cpu"]), DEV, batch_size=8)
    assert result == expected
    assert not model.training


def test_the_loss_is_the_mean_negative_log_likelihood(model):
    with torch.no_grad():
        batch = DEV.collate(np.arange(len(DEV)))
        expected = float(model(**batch, reduction="mean").loss)
    assert evaluate(model, DEV, batch_size=8).loss == pytest.approx(expected, rel=1e-5)


def test_batches_of_all_processes_are_the_batches_of_one():
    alone = [batch.tolist() for batch in evaluation_batches(DEV, 3)]
    shares = [
        [batch.tolist() for batch in evaluation_batches(DEV, 3, rank, 4)] for rank in range(4)
    ]
    assert sorted(alone) == sorted(itertools.chain.from_iterable(shares))


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_give_the_bits_of_one(model, processes):
    """Loss, spans, figures, intervals and causes, compared as JSON numbers: equal to the last digit."""
    results, _ = run_workers("evaluation", processes=processes, arguments=["5"])
    alone = evaluate(model, DEV, batch_size=5)
    assert len(results) == processes
    documents = by_document(alone)
    assert documents["intervals_over"] == {"unit": "documents", "count": 10, "documents": 10}
    assert documents["intervals"]["f1"][0] < documents["f1"] < documents["intervals"]["f1"][1]
    for result in results:
        assert result["figures"] == json.loads(json.dumps(result_record(alone)))
        assert result["by_document"] == json.loads(json.dumps(documents))
        assert result["predicted"] == [[list(span) for span in spans] for spans in alone.predicted]


def test_the_mode_of_the_model_is_left_as_it_was():
    training = make_model().train()
    evaluate(training, DEV, batch_size=8)
    assert training.training


# Gold are 8 distinct entities, of which the labels hold 5: the places in the bank and in the
# minster, and the company that crosses the sea, are in none. Predicted are 6: England (a place in a
# bank, so in no label), Ada Lovelace, York Minster, Quilby (wrong), North Sea Ltd as one company
# (wrong: it only overlaps the crossing pair), and Oslo.
COUNTED = {
    "missed": {
        "gold": 8,
        "predicted": 6,
        "correct": 4,
        "precision": 4 / 6,
        "recall": 4 / 8,
        "f1": 8 / 14,
        "ignored_gold": 0,
        "ignored_predicted": 0,
    },
    "ignored": {
        "gold": 5,
        "predicted": 5,
        "correct": 3,
        "precision": 3 / 5,
        "recall": 3 / 5,
        "f1": 6 / 10,
        "ignored_gold": 3,
        "ignored_predicted": 1,
    },
}
COUNTED = {
    way: figures | {"unlearnable": 3, "sentences": 5, "unannotated": 0, "loss": 0.0}
    for way, figures in COUNTED.items()
}


def test_entities_that_no_tag_can_hold_count_as_asked():
    lost = [[("LOC", 2, 3)], [("LOC", 3, 4)], [], [("ORG", 1, 3)], []]
    assert unlearnable_table(NESTED).to_lists() == lost
    for way, figures in COUNTED.items():
        result = evaluate(WordTagger(), NESTED, unlearnable=way)
        assert result.to_dict() == figures
        assert result.left_out == (lost if way == "ignored" else [])
        assert sum(map(len, result.predicted)) == 6  # what was predicted is told whole
    assert evaluate(WordTagger(), NESTED).to_dict() == COUNTED["missed"]
    with pytest.raises(ValueError, match="expected missed or ignored, got 'dropped'"):
        evaluate(WordTagger(), NESTED, unlearnable="dropped")


def test_two_processes_count_them_alike():
    results, _ = run_workers("evaluation_of_nested", processes=2)
    assert results == [COUNTED, COUNTED]


def test_without_overlap_there_is_nothing_to_ignore(model):
    results = [evaluate(model, DEV, batch_size=8, unlearnable=way) for way in UNLEARNABLE]
    assert results[0].to_dict() == results[1].to_dict()
    assert results[1].unlearnable == results[1].ignored_predicted == 0


_SPANS = st.lists(
    st.builds(
        lambda label, start, size: Span(label, start, start + size),
        st.sampled_from("AB"),
        st.integers(0, 3),
        st.integers(1, 3),
    ),
    max_size=5,
)


@given(st.lists(st.tuples(_SPANS, _SPANS, st.integers(0, 5)), max_size=4))
def test_correct_missed_and_left_out_make_all_gold(sentences):
    """The same for predictions: correct, wrong and left out make all; the rest of the counts does
    not change.
    """
    gold, predicted = [g for g, _, _ in sentences], [p for _, p, _ in sentences]
    ignored = [g[:some] for g, _, some in sentences]
    out = table_of_spans(ignored)
    tables = (table_of_spans(side).without(out) for side in (gold, predicted))
    scores = score_tables(*tables).micro
    triples = [tuple(map(set, three)) for three in zip(gold, predicted, ignored, strict=True)]
    missed = sum(len(g - i - p) for g, p, i in triples)
    wrong = sum(len(p - g) for g, p, _ in triples)
    assert scores.correct + missed + sum(len(i) for *_, i in triples) == sum(
        len(g) for g, *_ in triples
    )
    assert scores.correct + wrong + sum(len(p & i) for _, p, i in triples) == sum(
        len(p) for _, p, _ in triples
    )
    assert (scores.gold, scores.predicted) == (scores.correct + missed, scores.correct + wrong)


def test_probabilities_of_entities_are_those_of_the_chain(model):
    """One pass gives gold and found entities the probability that the sentence's chain gives."""
    result = evaluate(model, DEV, batch_size=8, with_chances=True)
    assert result == evaluate(model, DEV, batch_size=8)
    for table in (result.gold, result.found):
        told = iter(result.chances.look_up(table).tolist())
        for index, spans in enumerate(table.to_lists()[:10]):
            batch = DEV.collate(np.array([index]))
            with torch.no_grad():
                output = model(**batch)
            chain = model.crf.chain(output.logits, batch["word_mask"])
            (expected,) = chain.entity_probabilities([spans])
            assert [next(told) for _ in spans] == pytest.approx(expected, abs=1e-5)


def test_an_evaluation_tells_what_its_probabilities_are_worth(model, tmp_path, capsys):
    """One line on the screen, and numbers in the file: those that the tagger's entities give."""
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    write_examples(CORPUS.dev, tmp_path / "data" / "dev.jsonl", "jsonl")
    folders = [str(tmp_path / "model"), str(tmp_path / "data")]
    assert main(["evaluate", *folders, "--output_dir", str(tmp_path / "out"), "--no_cuda"]) == 0
    (path,) = (tmp_path / "out" / "evaluations").iterdir()
    told = json.loads(path.read_text())["results"]["model"]["dev"]["calibration"]
    found = Tagger.from_pretrained(tmp_path / "model").find(CORPUS.dev)
    pairs = [
        (chance, span in example.spans)
        for example, each in zip(CORPUS.dev, found, strict=True)
        for span, chance in zip(each.spans, each.probabilities, strict=True)
    ]
    figures = told["figures"]
    brier = sum((chance - right) ** 2 for chance, right in pairs) / len(pairs)
    assert (figures["entities"], told["temperature"]) == (len(pairs), 1.0)
    assert figures["brier"] == pytest.approx(brier, rel=1e-5)
    assert figures["accuracy"] == pytest.approx(sum(right for _, right in pairs) / len(pairs))
    low, high = told["intervals"]["brier"]
    assert low <= brier <= high
    said = capsys.readouterr().out
    assert said.count(f"probabilities of {len(pairs)} predicted entities: expected calibrat") == 1
    assert f"Brier score {brier:.4f}" in said


def test_an_evaluation_says_what_its_probabilities_were_computed_with(model, tmp_path):
    """With a vector scaling no temperature has a part in them, whatever is kept beside it."""
    ones = dict.fromkeys(model.config.labels, 1.5)
    try:
        scaling = {"factors": ones, "shifts": ones, "tables": 1.5}
        keep_calibration(model.config, 3.0, scaling=scaling)
        model.save_pretrained(tmp_path / "model")
    finally:
        keep_calibration(model.config)
    TOKENIZER.save_pretrained(tmp_path / "model")
    write_examples(CORPUS.dev[:9], tmp_path / "data" / "dev.jsonl", "jsonl")
    flags = [str(tmp_path / "model"), str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    page = tmp_path / "page.html"
    assert main(["evaluate", *flags, "--no_cuda", "--report", str(page)]) == 0
    (path,) = (tmp_path / "out" / "evaluations").iterdir()
    told = json.loads(path.read_text())["results"]["model"]["dev"]["calibration"]
    assert (told["scaling"], told["temperature"]) == ("vector", None)
    assert '"scaling":"vector","temperature":null' in page.read_text()


def test_types_that_become_one_add_their_probabilities(model):
    names = {"PER": "NAME", "ORG": "NAME", "LOC": "LOC"}
    plain = AskedEntities(DEV, model.config)
    joint = AskedEntities(DEV, model.config, names.get)
    batch = DEV.collate(np.array([0]))
    chain = model.crf.chain(model(**batch).logits, batch["word_mask"])
    tags = model.decode(chain.emissions, chain.mask)
    spans = DEV.gold_spans(0)
    tags = [[model.config.label2id["O"]] * len(tags[0])]
    tags[0][spans[0].start] = model.config.label2id["B-PER"]
    known = {(plain.types[x.type_id], x.start, x.end) for x in plain(chain, [0], tags)[0]}
    start = spans[0].start
    assert ("PER", start, start + 1) in known
    found = {(joint.types[x.type_id], x.start, x.end): x.value for x in joint(chain, [0], tags)[0]}
    parts = [Span(name, start, start + 1) for name in ("PER", "ORG")]
    expected = sum(chain.entity_probabilities([parts])[0])
    assert found["NAME", start, start + 1] == pytest.approx(expected, abs=1e-6)
