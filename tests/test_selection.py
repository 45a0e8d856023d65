"""What to label next: any order gives the same choice, memory is bounded, bad input is said."""

import itertools
import json
import random

import pytest
import torch

from nercrf.cli import main
from nercrf.data.examples import Example
from nercrf.data.sample import sample_corpus
from nercrf.evaluation.selection import best_candidates, candidate, choose_diverse
from nercrf.model.calibration import keep_calibration
from nercrf.model.modeling import NerCrfConfig, NerCrfForTokenClassification
from nercrf.model.small_encoder import SmallEncoderConfig
from nercrf.model.vocabulary import build_tokenizer
from nercrf.tagging.tagger import Tagger


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    "The folder of a tagger with random weights, and English sentences."
    corpus = sample_corpus(sizes=(80, 5, 5), language="english")
    tokenizer = build_tokenizer(corpus.train)
    torch.manual_seed(1)
    size = SmallEncoderConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1)
    labels = dict(enumerate(corpus.labels))
    folder = tmp_path_factory.mktemp("tagger")
    config = NerCrfConfig(size, scheme=corpus.scheme, id2label=labels)
    NerCrfForTokenClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, [each.text for each in corpus.train]


@pytest.mark.parametrize("by", ["entropy", "least_confident", "expected_entities"])
@pytest.mark.parametrize("diversity", ["0", "0.5"])
def test_any_order_of_any_files_gives_the_same_choice(tagger, tmp_path, by, diversity):
    folder, texts = tagger
    chosen = []
    for seed in (None, 1):
        lines = list(texts)
        if seed:
            random.Random(seed).shuffle(lines)
        parts = [tmp_path / f"{seed}{part}.txt" for part in "ab"]
        for path, held in zip(parts, (lines[:30], lines[30:]), strict=True):
            path.write_text("".join(f"{each}\n" for each in held))
        output = tmp_path / f"{seed}.jsonl"
        words = ["select", folder, *parts, "--by", by, "--number", 7, "--diversity", diversity]
        words += ["--output", output, "--output_format", "jsonl"]
        assert main(list(map(str, words))) == 0
        chosen.append([json.loads(line)["text"] for line in output.read_text().splitlines()])
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 7


def test_a_stream_without_end_is_read_with_a_bounded_number_of_candidates():
    alive = []

    def stream():
        for number in range(20_000):
            yield candidate((number * 7919) % 20_000, [str(number)], number)
            alive.append(number)

    best = best_candidates(stream(), 5)
    assert [each.worth for each in best] == [19_999, 19_998, 19_997, 19_996, 19_995]
    assert len(alive) == 20_000


def test_the_choice_is_the_greedy_one():
    """By its definition, written out: each step takes the largest worth less likeness."""
    draw = random.Random(3)
    words = ["a", "b", "c", "d", "e", "f"]
    pool = [candidate(draw.random(), draw.sample(words, 3), number) for number in range(30)]
    pool = sorted(pool, key=lambda each: -each.worth)
    chosen = choose_diverse(pool, 6, 0.7)

    def likeness(x, y):
        return len(x.words & y.words) / len(x.words | y.words)

    for number, taken in enumerate(chosen):
        rest = [each for each in pool if each not in chosen[:number]]
        values = {
            each.sentence: each.worth
            * (1 - 0.7 * max((likeness(each, x) for x in chosen[:number]), default=0.0))
            for each in rest
        }
        assert values[taken.sentence] == max(values.values())
    assert all(x.sentence != y.sentence for x, y in itertools.combinations(chosen, 2))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--by", "age"], "--by must be one of"),
        (["--number", "0"], "--number"),
        (["--diversity", "2"], "--diversity must be from 0 to 1"),
        (["--output_format", "brat"], "--output_format"),
    ],
)
def test_a_bad_flag_is_said(tagger, tmp_path, capsys, words, says):
    path = tmp_path / "a.txt"
    path.write_text("Ada\n")
    with pytest.raises(SystemExit) as end:
        main(["select", str(tagger[0]), str(path), *words])
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def test_files_without_a_word_are_an_error_and_nothing_is_written(tagger, tmp_path, capsys):
    path, output = tmp_path / "a.txt", tmp_path / "out.json"
    path.write_text("\n\n")
    assert main(["select", str(tagger[0]), str(path), "--output", str(output)]) == 2
    assert "error" in capsys.readouterr().err
    assert not output.exists()
    assert main(["select", str(tmp_path / "nowhere"), str(path)]) == 2


def test_probabilities_of_the_tasks_are_those_of_the_tagger(tagger, tmp_path):
    folder, texts = tagger
    hot = Tagger.from_pretrained(folder)
    keep_calibration(hot.model.config, 3.0)
    for part in (hot.model, hot.tokenizer):
        part.save_pretrained(tmp_path / "hot")
    source, output = tmp_path / "texts.txt", tmp_path / "tasks.jsonl"
    source.write_text("".join(f"{each}\n" for each in texts[:8]))
    words = ["select", tmp_path / "hot", source, "--number", 8, "--diversity", 0]
    words += ["--output", output, "--output_format", "doccano"]
    assert main(list(map(str, words))) == 0
    expected = {
        text: [round(each.probability, 4) for each in found]
        for text, found in zip(texts[:8], hot(texts[:8]), strict=True)
    }
    assert sum(map(len, expected.values()))
    for line in output.read_text().splitlines():
        row = json.loads(line)
        assert row["probabilities"] == expected[row["text"]]


@pytest.mark.parametrize("through", ["name", "link"])
def test_what_is_read_is_not_replaced(tagger, tmp_path, capsys, through):
    folder, texts = tagger
    source, output = tmp_path / "a.txt", tmp_path / "a.txt"
    source.write_text("\n".join(texts[:3]))
    if through == "link":
        output = tmp_path / "link.txt"
        output.symlink_to(source)
    assert main(["select", str(folder), str(source), "--output", str(output)]) == 2
    assert "is read: choose another file" in capsys.readouterr().err
    assert source.read_text() == "\n".join(texts[:3])


@pytest.mark.parametrize("kind", ["jsonl", "doccano", "label_studio"])
def test_scores_of_the_tasks_are_those_that_are_printed(tagger, tmp_path, capsys, kind):
    """The largest and the smallest one stand on the screen, and each is the chain's entropy a word."""
    folder, texts = tagger
    source, output = tmp_path / "texts.txt", tmp_path / "tasks.json"
    source.write_text("".join(f"{each}\n" for each in texts[:20]))
    words = ["select", folder, source, "--number", 5, "--diversity", 0]
    assert main(list(map(str, [*words, "--output", output, "--output_format", kind]))) == 0
    text = output.read_text()
    rows = json.loads(text) if kind == "label_studio" else map(json.loads, text.splitlines())
    fields = [row["data"] if kind == "label_studio" else row for row in rows]
    scores = [each["score"] for each in fields]
    assert scores == sorted(scores, reverse=True)
    assert f"5 sentences, entropy {scores[0]:.4f} to {scores[-1]:.4f}: " in capsys.readouterr().out
    found = Tagger.from_pretrained(folder)
    for each in fields:
        tokens = each["text"].split(" ")
        ((_, chain),) = found.engine.chains([Example("", tokens)])
        assert each["score"] == pytest.approx(float(chain.entropy()[0]) / len(tokens), abs=1e-4)
