"""What the tagger answers: probabilities, decodings, operating points, streams, threads."""

import copy
import itertools
import json
import math
import os
import threading
from dataclasses import fields, replace

import pytest
import torch
from encoders import make_family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training import write_corpus

import nercrf
import nercrf.crf
import nercrf.tagging
from nercrf.crf.operating_points import OPERATING_POINTS, OperatingPoint, write_operating_points
from nercrf.data.sample import sample_corpus
from nercrf.evaluation.temperature import VectorScaling
from nercrf.labels import entity_types
from nercrf.model.calibration import keep_calibration
from nercrf.model.modeling import NerCrfConfig, NerCrfForTokenClassification
from nercrf.model.small_encoder import SmallEncoderConfig
from nercrf.model.vocabulary import build_tokenizer
from nercrf.tagging.answers import explain
from nercrf.tagging.decoder import Decoder
from nercrf.tagging.fitting import fit_probabilities, held_out, keep_fitting, predicted_outcomes
from nercrf.tagging.output import sentence_lines
from nercrf.tagging.tagger import Tagger, quantized_tagger, tag_stream

CORPUS = sample_corpus(sizes=(60, 2, 30))
TOKENIZER = build_tokenizer(CORPUS.train)
TEXTS = [example.text for example in CORPUS.test]
FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    encoder = SmallEncoderConfig(vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=1)
    labels = dict(enumerate(CORPUS.labels))
    return NerCrfForTokenClassification(NerCrfConfig(encoder, CORPUS.scheme, labels)).eval()


@pytest.fixture(scope="module")
def chains(model):
    "Chains that are of many minds: the emissions are drawn."
    generator = torch.Generator().manual_seed(0)
    emissions = 3 * torch.randn(3, 5, len(CORPUS.labels), generator=generator)
    return model.crf.chain(emissions)


@FEW
@given(st.lists(st.floats(0, 1), min_size=2, max_size=2), st.data())
def test_lower_thresholds_only_add_entities(model, chains, levels, data):
    types = entity_types(CORPUS.labels)
    low, high = min(levels), max(levels)
    moved = set(data.draw(st.lists(st.sampled_from(types), min_size=1)))
    thresholds = [dict.fromkeys(types, high) | dict.fromkeys(moved, low), high]
    more, fewer = (Decoder(model.config, "threshold", each)(chains) for each in thresholds)
    for one, other in zip(fewer, more, strict=True):
        assert set(one.spans) <= set(other.spans)
        assert all(
            chance >= (low if span.label in moved else high)
            for span, chance in zip(other.spans, other.probabilities, strict=True)
        )
        words = [word for span in other.spans for word in range(span.start, span.end)]
        assert words == sorted(set(words))


@pytest.mark.parametrize("decoding", ["viterbi", "expected", "threshold"])
def test_probabilities_are_those_of_the_chain_whatever_is_biased(model, chains, decoding):
    point = OperatingPoint(background_to_start=5.0, background_stay=-5.0)
    plain = Decoder(model.config, decoding)(chains)
    found = Decoder(model.config, decoding, operating_point=point)(chains)
    if decoding == "viterbi":
        assert [each.spans for each in found] != [each.spans for each in plain]
    spans = [each.spans for each in found]
    assert [each.probabilities for each in found] == chains.entity_probabilities(spans)


def test_a_calibration_is_saved_with_the_model(model, tmp_path):
    texts = TEXTS[:4]
    before = Tagger(model, TOKENIZER)(texts)
    try:
        keep_calibration(model.config, 3.0, {"PER": 0.2})
        model.save_pretrained(tmp_path)
        TOKENIZER.save_pretrained(tmp_path)
    finally:
        keep_calibration(model.config)
    tagger = Tagger.from_pretrained(tmp_path, decoding="threshold")
    assert tagger.decoder.thresholds[tagger.decoder.types.index("PER")] == 0.2
    milder = Tagger.from_pretrained(tmp_path)(texts)
    assert milder == before
    pairs = zip(itertools.chain(*milder), itertools.chain(*before), strict=True)
    assert all(one.probability != other.probability for one, other in pairs)
    write_operating_points(tmp_path, {"default": OperatingPoint()})
    assert Tagger.from_pretrained(tmp_path, operating_point="default")(texts) == before


def test_a_kept_scaling_changes_probabilities_and_no_entity(model, tmp_path):
    """The tagger asks the scaled chain; a configuration of before, which has no word of it, loads."""
    texts, size = TEXTS[:8], len(CORPUS.labels)
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["probability_scaling"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    before = Tagger.from_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(4)
    parts = (torch.rand(size, generator=generator) + 0.5, torch.randn(size, generator=generator))
    scaling = VectorScaling(*(x.double() for x in parts), torch.tensor(0.7).double())
    fitting = fit_probabilities(before, CORPUS.train)
    fitting.scaling = scaling.to_dict(CORPUS.labels)
    keep_fitting(tmp_path, fitting, {"more": OperatingPoint.towards_entities(1.0)})
    after = Tagger.from_pretrained(tmp_path)
    assert after(texts) == before(texts)
    sentences = held_out(after, CORPUS.train)
    (batch, *_), (gold, *_) = sentences.batches, sentences.gold
    expected = scaling(batch.chain).entity_probabilities(gold)
    told = after.decoder.calibrated(batch.chain).entity_probabilities(gold)
    assert told == expected != before.decoder.calibrated(batch.chain).entity_probabilities(gold)
    assert Tagger.from_pretrained(tmp_path, operating_point="more")(texts) != []
    write = model.config.to_json_string()
    model.config.probability_scaling = {"factors": {"O": 1.0}}
    try:
        with pytest.raises(ValueError, match="expected factors of O, "):
            Decoder(model.config)
    finally:
        model.config.probability_scaling = None
    assert model.config.to_json_string() == write


@pytest.mark.parametrize(
    "thresholds",
    [-0.5, math.nan, "half", [0.5], True, 10**40, {"PER": 2.0}, {"PER": math.nan}, {"NONE": 0.5}],
)
def test_thresholds_that_are_none_are_told_whatever_is_decoded(model, thresholds):
    config = copy.deepcopy(model.config)
    config.thresholds = thresholds
    for decoding in ("viterbi", "expected", "threshold"):
        with pytest.raises(ValueError, match="threshold"):
            Decoder(config, decoding)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("conformal", {"floors": {"0.9": {"labelings": -1.0}}}),
        ("conformal", {"floors": {"0.9": -1.0}}),
        ("conformal", {"floors": {"high": {"labelings": -1.0, "entities": -1.0}}}),
        ("conformal", {"floors": [0.9]}),
        ("conformal", "0.9"),
        ("thresholds", {"STAR": 0.5}),
        ("probability_scaling", {"factors": {"O": 1.0}}),
    ],
)
def test_a_broken_calibration_is_told_where_the_model_is_opened(
    model, tmp_path, name, kept, capsys
):
    """Whether or not it would be used; the file and the remedy are named, and the remedy works."""
    from nercrf.cli import main

    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {name: kept}))
    with pytest.raises(
        ValueError, match=rf"config\.json: {name}: .* write null for '{name}' there"
    ):
        Tagger.from_pretrained(tmp_path)
    source = tmp_path / "texts.txt"
    source.write_text("Mara\n")
    assert main(["predict", str(tmp_path), str(source), "--output", str(tmp_path / "out")]) == 2
    assert f"{path}: {name}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    path.write_text(json.dumps(written | {name: None}))
    assert Tagger.from_pretrained(tmp_path)(TEXTS[:2]) == Tagger(model, TOKENIZER)(TEXTS[:2])


def test_a_threshold_of_a_type_that_the_model_does_not_know_is_told(model, tmp_path, capsys):
    from nercrf.cli import main

    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    source = tmp_path / "texts.txt"
    source.write_text("Mara\n")
    flags = ["--decoding", "threshold", "--threshold", "PER=0.3", "STAR=0.5"]
    assert main(["predict", str(tmp_path), str(source), *flags]) == 2
    said = capsys.readouterr().err
    known = ", ".join(entity_types(CORPUS.labels))
    assert f"--threshold): expected thresholds of {known}, got 'STAR'; give numbers" in said
    assert str(tmp_path) in said


def test_a_file_of_operating_points_that_is_none_is_told(model, tmp_path):
    path = tmp_path / OPERATING_POINTS
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="expected an object in JSON"):
        Decoder(model.config, operating_point="default", folder=tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="got a pipe or device"):
        Decoder(model.config, operating_point="default", folder=tmp_path)


def test_predict_writes_the_sets_of_the_tagger(model, tmp_path, capsys):
    """Labelings and candidates of the JSON lines are those of `Tagger(..., coverage=0.95)`."""
    from nercrf.cli import main

    model, floors = copy.deepcopy(model), {"labelings": -300.0, "entities": math.log(0.01)}
    keep_calibration(
        model.config, conformal={"sentences": 99, "data": "", "floors": {"0.9": floors}}
    )
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    source, output = tmp_path / "texts.txt", tmp_path / "found.jsonl"
    source.write_text("\n".join(TEXTS[:4]) + "\n")
    flags = ["predict", str(tmp_path), str(source), "--output", str(output)]
    assert main([*flags, "--coverage", "0.9"]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    expected = Tagger.from_pretrained(tmp_path, coverage=0.9).tagged(TEXTS[:4])
    for line, sentence in zip(lines, expected, strict=True):
        wanted = sentence.to_dict()
        assert line["is_whole"] == wanted["is_whole"]
        assert len(line["labelings"]) == len(wanted["labelings"]) > 1
        sides = [(line["candidates"], wanted["candidates"])]
        for told, one in zip(line["labelings"], wanted["labelings"], strict=True):
            assert told["probability"] == pytest.approx(one["probability"], rel=1e-3)
            sides.append((told["entities"], one["entities"]))
        for told, entities in sides:
            for row, entity in zip(told, entities, strict=True):
                assert row["probability"] == pytest.approx(entity["probability"], rel=1e-3)
                assert all(row[name] == entity[name] for name in ("label", "text", "start", "end"))
    for name in ("columns", "brat", "label_studio"):
        with pytest.raises(SystemExit):
            main([*flags, "--coverage", "0.9", "--output_format", name])
        assert f"jsonl, which holds sets of labelings, got {name}" in capsys.readouterr().err
        with pytest.raises(ValueError, match=f"'{name}' cannot hold sets"):
            sentence_lines(expected, name)
    assert main([*flags, "--coverage", "0.5"]) == 2
    assert "expected a coverage of 0.9, which were fitted, got 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_public_architecture_is_tuned_and_decodes_as_its_file_says(tmp_path):
    """`openai_privacy_filter` with random weights; the file is laid out as the public one."""
    from nercrf.cli import main

    encoder, run = make_family("openai_privacy_filter", tmp_path / "encoder"), tmp_path / "run"
    zero = {f"transition_bias_{each.name}": 0.0 for each in fields(OperatingPoint)}
    points = {
        "default": {"biases": zero},
        "all": {"biases": {**zero, "transition_bias_background_stay": -99.0}},
        "none": {"biases": {**zero, "transition_bias_background_stay": 99.0}},
    }
    points["none"]["biases"]["transition_bias_background_to_start"] = -99.0
    written = json.dumps({"operating_points": points, "made_by": "somebody"})
    (encoder / OPERATING_POINTS).write_text(written)
    flags = ["--data_dir", write_corpus(tmp_path / "data"), "--model_name_or_path", encoder]
    flags += ["--output_dir", run, "--no_cuda", "--max_steps", "2", "--report", "none"]
    assert main(["train", *map(str, flags)]) == 0
    (run / "model" / OPERATING_POINTS).write_text(written)
    found = {
        name: Tagger.from_pretrained(run, device="cpu", operating_point=name).find(CORPUS.test[:9])
        for name in (None, *points)
    }
    assert found["default"] == found[None]
    assert not any(each.spans for each in found["none"])
    for example, each in zip(CORPUS.test, found["all"], strict=False):
        inside = {place for span in each.spans for place in range(span.start, span.end)}
        for place in range(1, len(example.tokens)):
            assert inside & {place - 1, place}  # no two words in a row are outside
    with pytest.raises(
        ValueError, match="of default, all, none, got 'some'; fit it: nercrf calibrate"
    ):
        Tagger.from_pretrained(run, operating_point="some")


def test_predict_decodes_as_its_flags_say(model, tmp_path, capsys):
    from nercrf.cli import main

    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    write_operating_points(tmp_path, {"all": OperatingPoint(background_stay=-50.0)})
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(TEXTS[:5]) + "\n")
    lines = {}
    for name, flags in {
        "viterbi": [],
        "all": ["--operating_point", "all"],
        "none": ["--decoding", "threshold", "--threshold", "1.0"],
        "some": ["--decoding", "threshold", "--threshold", "PER=0.0"],
    }.items():
        output = tmp_path / f"{name}.jsonl"
        main(["predict", str(tmp_path), str(source), "--output", str(output), *flags])
        lines[name] = [json.loads(line)["entities"] for line in output.read_text().splitlines()]
    assert all(0 <= each["probability"] <= 1 for row in lines["viterbi"] for each in row)
    assert all(each == round(each, 4) for row in lines["all"] for each in [row[0]["probability"]])
    assert sum(map(len, lines["none"])) == 0
    assert {each["label"] for row in lines["some"] for each in row} <= {"PER"}


TEXT = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from("Aab 王芳é.,\t\u200b\u200f\u3000\u0301\ufe0f\u2764\U0001f468\u200d\u2028"),
    ),
    max_size=40,
)


@FEW
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_entities_are_pieces_of_the_very_text(model, texts):
    for text, entities in zip(texts, Tagger(model, TOKENIZER)(texts), strict=True):
        for entity in entities:
            assert text[entity.start : entity.end] == entity.text
            assert 0 <= entity.probability <= 1 + 1e-9


def test_a_source_that_fails_gives_what_came_before(model):
    tagger = Tagger(model, TOKENIZER)

    def source():
        yield from itertools.islice(itertools.cycle(TEXTS), 800)
        raise OSError("the line is dead")

    stream, found = tag_stream(tagger, source()), []
    with pytest.raises(OSError, match="the line is dead"):
        found.extend(stream)
    assert [text for text, _ in found] == list(itertools.islice(itertools.cycle(TEXTS), 800))


@pytest.mark.parametrize("connected", [False, True])
def test_a_bad_element_costs_itself_only(model, connected):
    tagger = Tagger(model, TOKENIZER)
    elements = [*TEXTS[:5], None, *TEXTS[5:9], 3.5, "", "half \ud83d of a pair"]
    bad = [5, 10, 12]
    kept = list(tag_stream(tagger, elements, 4, connected, on_error="keep"))
    assert [text for text, _ in kept] == elements
    assert [place for place, (_, each) in enumerate(kept) if isinstance(each, TypeError)] == bad
    assert "element 5 of the input" in str(kept[5][1])
    wanted = tagger(TEXTS[:9], connected=connected)
    assert [each for _, each in kept[:5] + kept[6:10]] == wanted
    stream, found = tag_stream(tagger, elements, 4, connected), []
    with pytest.raises(TypeError, match="element 5 of the input"):
        found.extend(stream)
    assert [text for text, _ in found] == TEXTS[:5]
    with pytest.raises(ValueError, match="on_error: expected 'raise' or 'keep', got 'skip'"):
        next(tag_stream(tagger, [], on_error="skip"))


def by_place(found):
    return [[(each.label, each.start, each.end) for each in entities] for entities in found]


def chances(found):
    return torch.tensor([each.probability for entities in found for each in entities])


def test_neither_order_nor_batch_size_nor_threads_change_an_answer(model):
    """The entities are the same; their probabilities to rounding, since the shape of a batch decides
    in which order a matrix product adds up. The same call gives the same bits, in any thread."""
    tagger = Tagger(model, TOKENIZER)
    found = tagger(TEXTS)
    for other in (
        tagger(TEXTS[::-1])[::-1],
        [tagger(text) for text in TEXTS],
        Tagger(model, TOKENIZER, batch_size=3)(TEXTS),
        tagger(text for text in TEXTS),
    ):
        assert by_place(other) == by_place(found)
        torch.testing.assert_close(chances(other), chances(found), rtol=1e-4, atol=1e-6)
    results = [None] * 8

    def work(place):
        results[place] = tagger(TEXTS)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in results:
        assert by_place(other) == by_place(found)
        assert torch.equal(chances(other), chances(found))


def test_columns_of_tables(model):
    pandas = pytest.importorskip("pandas")
    tagger, frame = Tagger(model, TOKENIZER), pandas.DataFrame({"text": TEXTS[:3]})
    frame["entities"] = tagger(frame["text"])
    assert list(frame["entities"]) == tagger(TEXTS[:3])
    with pytest.raises(TypeError, match="got DataFrame; give a list, or one column"):
        tagger(frame)


def test_columns_of_polars(model):
    polars = pytest.importorskip("polars", reason="pip install polars: the extra dev lacks it")
    tagger, frame = Tagger(model, TOKENIZER), polars.DataFrame({"text": TEXTS[:3]})
    frame = frame.with_columns(entities=polars.Series(tagger(frame["text"]), dtype=polars.Object))
    assert frame["entities"].to_list() == tagger(TEXTS[:3])


def test_what_users_need_is_at_hand():
    """Found in the packages, and only then imported."""
    assert nercrf.explain is nercrf.tagging.explain is explain
    assert nercrf.OperatingPoint is nercrf.crf.OperatingPoint is OperatingPoint
    assert nercrf.tagging.quantized_tagger is quantized_tagger
    for package in (nercrf, nercrf.crf, nercrf.tagging):
        assert all(getattr(package, name) is not None for name in package.__dir__())


def test_figures_of_a_type_are_those_of_its_own_entities(model):
    """At one threshold for all types as well as at one for each."""
    tagger = Tagger(model, TOKENIZER)
    found = tagger.tag_examples(CORPUS.test)
    examples = [
        replace(each, spans=spans) if row % 2 else each
        for row, (each, spans) in enumerate(zip(CORPUS.test, found, strict=True))
    ]
    fitted = fit_probabilities(tagger, examples, recall=0.2)
    found = predicted_outcomes(
        held_out(tagger, examples),
        Decoder(_at(model.config, fitted.temperature.value), "threshold", 0.0),
    )
    assert len({each.value for each in fitted.thresholds.values()}) == 1
    for name, threshold in fitted.thresholds.items():
        own = found.of_type(name)
        kept = own.outcomes.probabilities >= threshold.value
        assert threshold.kept == kept.sum()
        assert threshold.recall == pytest.approx(own.outcomes.right[kept].sum() / own.gold[name])
    assert len({each.kept for each in fitted.thresholds.values()}) > 1


def _at(config, temperature):
    config = copy.copy(config)
    config.probability_temperature = temperature
    return config
