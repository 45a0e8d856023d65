"""nercrf score and compare: the tests behind their p, and what people give them."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys

import numpy as np
import pytest

from nercrf.cli import main
from nercrf.evaluation.compare import compare_counts
from nercrf.evaluation.intervals import count_units
from nercrf.evaluation.score_files import align_files
from nercrf.evaluation.spans import table_of_spans
from nercrf.labels import Span, spans_to_tags


def noisy_tables(seed: int, sentences: int):
    """Gold, and two systems that lose and invent entities, the second one less."""
    generator = random.Random(seed)
    sides = [[], [], []]
    for _ in range(sentences):
        gold = [Span(generator.choice("AB"), at, at + 1) for at in range(generator.randrange(4))]
        sides[0].append(gold)
        for side, loss in ((1, 0.5), (2, 0.3)):
            kept = [span for span in gold if generator.random() > loss]
            sides[side].append([*kept, Span("A", 9, 10)] if generator.random() < 0.2 else kept)
    return list(map(table_of_spans, sides))


def f1_of(gold, predicted) -> float:
    correct = sum(len(set(g) & set(p)) for g, p in zip(gold, predicted, strict=True))
    return 2 * correct / (sum(map(len, gold)) + sum(map(len, predicted)))


def test_randomisation_is_that_of_all_exchanges():
    """Ten sentences have 1,024 ways to exchange answers: the share that is as large is p."""
    tables = noisy_tables(2, 10)
    gold, first, second = (table.to_lists() for table in tables)
    truth = abs(f1_of(gold, second) - f1_of(gold, first))
    as_large = 0
    for swaps in itertools.product([False, True], repeat=10):
        pairs = [
            pair[::-1] if swap else pair for swap, *pair in zip(swaps, first, second, strict=True)
        ]
        sides = zip(*pairs, strict=True)
        left, right = (f1_of(gold, side) for side in sides)
        as_large += abs(right - left) >= truth - 1e-12
    found = compare_counts(count_units(*tables), resamples=20_000)["micro"]
    assert found.p_randomisation == pytest.approx(as_large / 1024, abs=0.015)
    assert 0.02 < found.p_randomisation < 0.98


def test_equal_systems_are_rarely_told_apart():
    """Two systems of one quality on 200 test sets: p below 0.1 in about a tenth of them."""
    low = 0
    for seed in range(200):
        gold = noisy_tables(seed, 40)[0]
        generator = np.random.default_rng(seed)
        first, second = (gold.select(generator.random(len(gold)) < 0.5) for _ in range(2))
        found = compare_counts(count_units(gold, first, second), resamples=200, seed=seed)
        low += found["micro"].p < 0.1
    assert 8 <= low <= 34, low


def test_a_system_is_as_good_as_itself_and_seeds_are_averaged():
    gold, first, second = noisy_tables(5, 60)
    same = compare_counts(count_units(gold, first, first))["micro"]
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    twice = compare_counts(count_units(gold, first, first, second, second), first=2)["micro"]
    once = compare_counts(count_units(gold, first, second))["micro"]
    assert twice == pytest.approx(once)
    assert compare_counts(count_units(gold, first, second))["micro"] == once  # the same seed


@pytest.fixture
def folder(tmp_path):
    gold, first, second = (table.to_lists() for table in noisy_tables(9, 30))
    for name, side in (("gold.txt", gold), ("a.txt", first)):
        sentences = [
            "\n".join(f"w{i} {tag}" for i, tag in enumerate(spans_to_tags(spans, 10)))
            for spans in side
        ]
        (tmp_path / name).write_text("\n\n".join(sentences) + "\n", encoding="utf-8")
    words = [f"w{i}" for i in range(10)]
    rows = [{"tokens": words, "ner_tags": spans_to_tags(spans, 10, "BIOES")} for spans in second]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return tmp_path


def test_files_of_other_formats_and_schemes_are_scored(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    tables = noisy_tables(9, 30)
    words = ["score", "gold.txt", "a.txt", "b.jsonl", "--json", "out.json", "--resamples", "100"]
    assert main(words) == 0
    record = json.loads((folder / "out.json").read_text())
    for found, table in zip(record["predictions"], tables[1:], strict=True):
        expected = f1_of(tables[0].to_lists(), table.to_lists())
        assert found["averages"]["micro"]["f"] == pytest.approx(expected)
        low, high = found["averages"]["micro"]["intervals"]["f1"]
        assert low <= expected <= high
    values = [found["averages"]["micro"]["f"] for found in record["predictions"]]
    assert record["spread"]["micro"]["mean"] == pytest.approx(sum(values) / 2)
    assert "F of 2 files" in capsys.readouterr().out
    assert main([*words[:4], "--fail_under", str(min(values) + 1e-6)]) == 1
    assert main([*words[:4], "--fail_under", str(min(values) - 1e-6)]) == 0


def test_files_that_do_not_fit_are_refused_with_both_places(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    lines = (folder / "a.txt").read_text().splitlines()
    changed = [*lines]
    changed[13] = "other O"
    (folder / "changed.txt").write_text("\n".join(changed) + "\n")
    (folder / "short.txt").write_text("\n".join(lines[:21]) + "\n")
    (folder / "odd.txt").write_text("\n".join(["w0 I-A", *lines[1:]]) + "\n")
    (folder / "bare.txt").write_text("\n".join(line.split(" ")[0] for line in lines) + "\n")
    for words, message in [
        (["gold.txt", "changed.txt"], "changed.txt:12: expected the words of gold.txt:12"),
        (["gold.txt", "short.txt"], "short.txt: expected 30 sentences as in gold.txt, got 2"),
        (["gold.txt", "odd.txt", "--repair", "none"], "odd.txt:1: 'I-A' between the start and"),
        (["gold.txt", "b.jsonl", "--by_document"], "expected several documents"),
        (["bare.txt", "a.txt"], "bare.txt"),
    ]:
        assert main(["score", *words]) == 2, words
        assert message in capsys.readouterr().err
    assert main(["score", "gold.txt", "odd.txt", "--repair", "discard", "--resamples", "0"]) == 0


def test_compare_tells_the_sides_apart_and_other_labels_beside(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    words = ["compare", "gold.txt", "a.txt", "b.jsonl", "--resamples", "300", "--json", "out.json"]
    assert main([*words, "--other_gold", "a.txt"]) == 0
    record = json.loads((folder / "out.json").read_text())
    assert record["gold"]["figures"]["micro"]["difference"] > 0
    assert record["other_gold"]["figures"]["micro"]["first"] == 1.0
    assert "the order of the systems is not the same" in capsys.readouterr().out


def test_scores_need_no_torch(folder):
    code = "import sys; from nercrf.score_commands import score_main; score_main(sys.argv[1:]); "
    code += "sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "gold.txt", "a.txt", "--resamples", "10"]
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def test_predictions_in_characters_are_cut_at_the_words_of_the_gold_file(tmp_path, monkeypatch):
    """As predict writes them: a text, no words. Every entity counts once, where it stands."""
    monkeypatch.chdir(tmp_path)
    gold = [
        ("At Acme Corp. , Bo (CEO) met", [("ORG", 1, 3), ("PER", 4, 5)]),
        ("U.S.-led talks", []),
        ("Ada saw Acme Corp.", [("PER", 0, 1), ("ORG", 2, 4)]),
    ]
    found = [[("ORG", 1, 3), ("PER", 4, 6)], [("LOC", 0, 1)], [("ORG", 2, 4), ("ORG", 3, 4)]]
    columns, predicted, rows, wide = [], [], [], []
    for number, ((text, spans), own) in enumerate(zip(gold, found, strict=True)):
        words = text.split()
        starts = [len(" ".join([*words[:at], ""])) for at in range(len(words))]
        for lines, each in ((columns, spans), (predicted, own[:1])):
            tags = spans_to_tags([Span(*x) for x in each], len(words))
            lines.append("\n".join(map(" ".join, zip(words, tags, strict=True))) + "\n")
        entities = [
            {"label": kind, "start": starts[i], "end": starts[j - 1] + len(words[j - 1])}
            for kind, i, j in own
        ]
        for each in entities:
            each["text"] = text[each["start"] : each["end"]]
        rows.append({"id": f"x-{number}", "text": text, "entities": entities})
        moved = [each | {"start": each["start"] + 2, "end": each["end"] + 2} for each in entities]
        wide.append({"text": f"  {text} ", "entities": moved})

    def write(name, lines):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    write("gold.txt", columns)
    write("few.txt", predicted)
    for name, records in (("found.jsonl", rows), ("wide.jsonl", wide)):
        write(name, map(json.dumps, records))
    few = [each | {"entities": each["entities"][:1]} for each in rows]
    write("few.jsonl", map(json.dumps, few))
    files = align_files("gold.txt", ["found.jsonl", "wide.jsonl", "few.jsonl", "few.txt"])
    tables = [table.to_lists() for table in files.predicted]
    assert tables[0] == [[Span(*x) for x in own] for own in found]
    assert tables[1] == tables[0]
    assert tables[2] == tables[3] == [[Span(*own[0])] for own in found]
    by_blanks = align_files("gold.txt", ["found.jsonl"], by="blanks")
    assert by_blanks.predicted[0].to_lists() == tables[0]
    # the other way round: a text is the gold, columns are scored
    other = align_files("few.jsonl", ["few.txt"], by="punctuation")
    assert other.predicted[0].to_lists() == other.gold.to_lists()
    assert main(["score", "gold.txt", "found.jsonl", "--resamples", "0"]) == 0
    assert main(["compare", "gold.txt", "few.jsonl", "few.txt", "--resamples", "9"]) == 0


def test_an_entity_that_ends_within_a_word_of_the_gold_file_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gold.txt").write_text("Acme B-ORG\nCorp. I-ORG\n\nU.S.-led O\ntalks O\n")
    rows = [
        {"text": "Acme Corp.", "entities": [[0, 10, "ORG"]]},
        {"text": "U.S.-led talks", "entities": [[0, 4, "LOC"]]},
    ]
    (tmp_path / "found.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["score", "gold.txt", "found.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "found.jsonl:2: expected entities of whole words of gold.txt:4" in said
    assert "got LOC 'U.S.' at [0, 4) within 'U.S.-led'" in said
