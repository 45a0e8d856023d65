"""A report: its data follow the schema, its page shows them and nothing else, and no word acts."""

import copy
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from training import CORPUS

import nercrf
from nercrf.cli import main
from nercrf.data.conll import write_columns
from nercrf.data.examples import Example
from nercrf.data.formats import write_examples
from nercrf.evaluation.causes import CAUSES, KnownNames
from nercrf.evaluation.evaluator import EntityChances, Evaluation, result_record
from nercrf.evaluation.report_data import report_data, split_record
from nercrf.evaluation.report_page import read_report, write_report
from nercrf.evaluation.spans import align_tables, table_of_spans
from nercrf.flags import ScriptConfig, report_file
from nercrf.labels import Span
from nercrf.tagging.tagger import Tagger

ABOUT = {
    "date": "2026-01-01T00:00:00+00:00",
    "models": {"model": "a model"},
    "data": {"path": "a folder", "fingerprint": "0f", "files": {}, "sha256": {}, "read": {}},
    "settings": {},
    "versions": {"nercrf": "0"},
}
PACKAGE = Path(nercrf.__file__).parent
SCHEMA = json.loads((PACKAGE / "evaluation/report_schema.json").read_text())
TYPES = ["LOC", "ORG", "PER"]
NASTY = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
WORDS = [
    NASTY,
    "\u2028",
    "\u202egnp.exe",
    "\x1b[31m\x07",
    "--><!--",
    "`${1}`",
    "&lt;b&gt;",
    "\ud83d",
    "שלום",
    "東京",
]


def validate(data):
    jsonschema.validate(data, SCHEMA, cls=jsonschema.Draft202012Validator)


def made_split(
    sentences, seed=0, words=None, types=TYPES, length=25, ids=("id {}", ""), file="dev.txt"
):
    """A data set and its predictions, of which about a fifth are wrong."""
    generator = np.random.default_rng(seed)
    texts, gold, found = [], [], []
    for _ in range(sentences):
        text = [
            words[n % len(words)] if words else f"word{n}"
            for n in generator.integers(0, 9999, length)
        ]
        spans = [
            Span(
                types[generator.integers(len(types))], start, start + int(generator.integers(1, 4))
            )
            for start in range(0, length - 4, 8)
        ]
        guessed = []
        for span in spans:
            luck = generator.random()
            if luck < 0.06:
                continue
            if luck < 0.12:
                span = span._replace(label=types[generator.integers(len(types))])
            elif luck < 0.18:
                span = span._replace(end=span.end + 1)
            guessed.append(span)
        texts.append(text), gold.append(spans), found.append(guessed)
    tables = [table_of_spans(side) for side in (gold, found)]
    columns = [
        np.concatenate(pair)
        for pair in zip(*(x.columns for x in align_tables(*tables)), strict=True)
    ]
    rows = np.unique(np.stack(columns, 1), axis=0)
    rows = np.column_stack(
        [rows[:, 0], rows[:, 3], rows[:, 1], rows[:, 2], generator.random(len(rows))]
    )
    names = align_tables(*tables)[0].types
    result = Evaluation(*tables, 1.5, sentences, chances=EntityChances.of(rows, names, sentences))
    known = KnownNames.of([Example("1", texts[0], gold[0])])
    result = result.over_documents(np.arange(sentences) // 3)
    places = [
        (f"{file}:{26 * n + 1}", ids[n % len(ids)].replace("{}", str(n))) for n in range(sentences)
    ]
    record = result_record(result)
    return split_record(result, record, texts, known, joined_by=" ", places=places)


@pytest.fixture(scope="module")
def data():
    scores = {
        "labels": ["O", "B-LOC"],
        "start": [0.5, None],
        "transitions": [[1, -2.0], [None, 0]],
        "end": [0, 0],
    }
    history = [
        {"step": 10, "loss": 2.5},
        {"step": 10, "dev_f1": 0.5, "dev_loss": 1.0},
        {"step": 20, "loss": 1.5},
    ]
    splits = {"dev": made_split(30), "test": made_split(150, 1)}
    return report_data(splits, ABOUT, scores, history, "A title")


def test_the_data_follow_the_schema_and_every_number_is_one(data):
    validate(data)
    wrong = copy.deepcopy(data)
    wrong["splits"]["dev"]["f1"] = "0.5"
    with pytest.raises(jsonschema.ValidationError):
        validate(wrong)
    texts = {"cause", "gold", "found", "training", "unit", "where", "id", "scaling"}

    def walk(value, key=None):
        if isinstance(value, dict):
            for name, each in value.items():
                walk(each, name)
        elif isinstance(value, list):
            for each in value:
                walk(each, key)
        elif isinstance(value, str) and key not in texts | {
            "words",
            "types",
            "type_names",
            "joined_by",
        }:
            raise AssertionError((key, value))

    walk(data["splits"])


def test_all_counts_of_a_split_agree(data):
    for split in data["splits"].values():
        assert sum(each["errors"] for each in split["causes"].values()) == split["errors_in_all"]
        assert len(split["errors"]) == split["errors_in_all"]
        confusion = np.array(split["confusion"]["counts"])
        assert confusion[:-1].sum() == split["gold"]
        assert confusion[:, :-1].sum() == split["predicted"]
        counts = split["calibration"]["types"].values()
        assert sum(each["kept"][0] for each in counts) == split["predicted"]
        assert sum(each["right"][0] for each in counts) == split["correct"]
        surest = [each["confidence"] for each in split["errors"]]
        assert surest == sorted(surest, reverse=True)
        for error in split["errors"]:
            sentence = split["error_sentences"][error["sentence"]]
            for side in ("gold", "predicted"):
                assert all(each < len(sentence[side]) for each in error[side])


def test_the_figures_of_a_report_of_before_are_still_read(data, tmp_path):
    """Its intervals were over sentences, and its errors had neither place nor id."""
    before = copy.deepcopy(data) | {"schema_version": 1}
    for split in before["splits"].values():
        del split["intervals_over"]
        for each in split["error_sentences"]:
            del each["where"], each["id"]
    (tmp_path / "a.json").write_text(json.dumps(before))
    assert read_report(tmp_path / "a.json") == before
    with pytest.raises(jsonschema.ValidationError):
        validate(before)
    with pytest.raises(ValueError, match="got 3; write it again"):
        write_report(tmp_path / "a.html", before | {"schema_version": 3})


def test_the_page_holds_the_data_and_no_other(data, tmp_path):
    path, beside = write_report(tmp_path / "a.html", data)
    block = path.read_text().split('<script type="application/json" id="data">')[1]
    assert json.loads(block.split("</script>")[0]) == read_report(beside) == data


def test_words_do_not_act(tmp_path):
    """Markup, scripts and control characters in words, types, names of files and the title."""
    split = made_split(4, words=WORDS, types=["<b>PER</b>", NASTY, "x\u202ey"], ids=WORDS)
    about = ABOUT | {
        "models": {NASTY: NASTY},
        "data": ABOUT["data"] | {"path": NASTY, "files": {NASTY: NASTY}},
    }
    data = report_data({NASTY: split, "b": split}, about, title=NASTY)
    path, beside = write_report(tmp_path / "a.html", data)
    page = path.read_text()
    assert (page.count("<script"), page.count("</script")) == (2, 2)
    assert not {"\u202e", "\u2028", "\x1b"} & set(page)
    assert json.loads(beside.read_text())["title"] == NASTY
    validate(data)


def test_evaluate_writes_a_report(tmp_path, monkeypatch, capsys):
    """A training leaves a report; an evaluation writes one where it is told, of the same figures."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for split in ("train", "dev", "test"):
        write_columns(f"data/{split}.txt", getattr(CORPUS, split), CORPUS.scheme)
    machine = ["--no_cuda", "--no_learning_curve"]
    words = ["train", "--data_dir", "data", "--output_dir", "run", "--max_steps", "2", *machine]
    assert main([*words, "--logging_steps", "1"]) == 0
    kept = read_report("run/report.json")
    validate(kept)
    words = ["evaluate", "run", "data", "--no_cuda", "--report"]
    assert main([*words, "out.html"]) == 0
    found = read_report("out.json")
    validate(found)
    assert found["splits"] == kept["splits"]
    for split in kept["splits"].values():
        assert {"training", "frequency"} < split["properties"].keys()
        assert split["errors"]
        assert None not in [row["training"] for row in split["errors"]]
    assert found["transitions"] == kept["transitions"]
    assert [row["step"] for row in found["training"]["history"] if "loss" in row] == [1, 2]
    figures = json.loads((tmp_path / "run/eval_results.json").read_text())["model"]["test"]
    assert {name: found["splits"]["test"][name] for name in figures} == figures
    assert main([*words, "out.txt"]) == 2
    (tmp_path / "other.json").write_text("[1]")
    assert main([*words, "other.html"]) == 2
    assert "is no report of nercrf; choose another name" in capsys.readouterr().err
    assert (tmp_path / "other.json").read_text() == "[1]"


def test_who_wants_no_report_gets_none():
    usual = ScriptConfig(do_train=True, do_eval=True, output_dir="out")
    assert report_file(usual) == Path("out/report.html")
    assert report_file(replace(usual, report="no")) is None
    assert report_file(replace(usual, report="a.html")) == Path("a.html")
    assert report_file(replace(usual, do_train=False)) is None


def test_the_files_of_the_page_are_in_setup():
    root = Path(__file__).parent.parent
    names = {
        x.name
        for x in (root / "nercrf/evaluation").iterdir()
        if x.suffix in (".html", ".css", ".js", ".json")
    }
    setup = (root / "setup.py").read_text()
    assert len(names) == 4
    assert all(f'"{name}"' in setup for name in names)


@pytest.fixture(scope="module")
def shown(page, data, tmp_path_factory):
    path, _ = write_report(tmp_path_factory.mktemp("report") / "report.html", data)
    return path


def silent(page):
    assert page.complaints == []
    assert [each for each in page.requests if not each.startswith("file:")] == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows(page, shown, width, dark):
    page.open(shown, width, dark=dark)
    assert page.overflow() == []
    ground = page.ask("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark
    silent(page)


def test_filters_show_as_many_errors_as_python_counts(page, shown, data):
    page.open(shown)
    split = data["splits"]["test"]
    names, sentences = split["type_names"], split["error_sentences"]
    total = split["errors_in_all"]

    def status():
        return page.texts("#error-count")[0]

    assert status() == f"{total} of {total} errors"
    for cause in CAUSES:
        page.choose("filter-cause", cause)
        wanted = split["causes"][cause]["errors"]
        assert status() == f"{wanted} of {total} errors"
        assert len(page.texts(".error")) == min(wanted, 25)
    page.choose("filter-cause", "")
    for place, name in enumerate(names):
        page.choose("filter-type", place)
        wanted = sum(
            any(
                names[sentences[error["sentence"]][side][each][0]] == name
                for side in ("gold", "predicted")
                for each in error[side]
            )
            for error in split["errors"]
        )
        assert status() == f"{wanted} of {total} errors"
    page.choose("filter-type", "")
    for group in ("new", "seen"):
        page.choose("filter-training", group)
        wanted = sum(error["training"] == group for error in split["errors"])
        assert status() == f"{wanted} of {total} errors"
    silent(page)


def test_an_error_is_found_by_words_id_and_place(page, shown, data):
    page.open(shown)
    split = data["splits"]["test"]
    sentences, total = split["error_sentences"], split["errors_in_all"]
    owner = sentences[split["errors"][0]["sentence"]]
    assert page.texts(".error .where")[0] == owner["where"]
    shown_ids = [f"id {x['id']}" for x in (sentences[e["sentence"]] for e in split["errors"])]
    wanted = [each for each in shown_ids[:25] if each != "id None"]
    assert page.texts(".error .id") == wanted

    def counted(holds):
        return sum(holds(sentences[each["sentence"]]) for each in split["errors"])

    pair = " ".join(owner["words"][3:5])
    named = next(each for each in sentences if each["id"])
    for text, holds in {
        owner["where"]: lambda x: owner["where"] in x["where"],
        f"  {pair.upper()} ": lambda x: pair in " ".join(x["words"]),
        named["id"].upper(): lambda x: named["id"] in (x["id"] or ""),
        f"#{owner['number']}": lambda x: x is owner,
        "no such words": lambda x: False,
        "": lambda x: True,
    }.items():
        page.choose("search", text)
        assert page.texts("#error-count") == [f"{counted(holds)} of {total} errors"]
        assert len(page.texts(".error")) == min(counted(holds), 25)
    page.choose("search", owner["where"])
    page.choose("filter-cause", split["errors"][0]["cause"])
    cause = split["errors"][0]["cause"]
    many = sum(
        sentences[each["sentence"]]["where"].startswith(owner["where"]) and each["cause"] == cause
        for each in split["errors"]
    )
    assert page.texts("#error-count") == [f"{many} of {total} errors"]
    page.choose("filter-cause", "boundary")
    page.ask("document.querySelector('#confusion button.link').click()")
    number = page.ask("document.getElementById('search').value")
    assert number == f"#{split['commonest'][0]['sentences'][0]}"
    found = page.texts(".error .facts")
    assert len(found) == counted(lambda x: f"#{x['number']}" == number) > 0
    assert all(f"sentence {number[1:]}" in each for each in found)
    assert page.ask("document.activeElement.className") == "error"
    page.ask("document.getElementById('search').focus()")
    page.press("j")  # is a letter there
    assert page.ask("document.activeElement.id") == "search"
    silent(page)


def test_intervals_say_what_they_are_drawn_over(page, tmp_path):
    """Documents where there are enough; else sentences, and why."""
    splits = {"many": made_split(30), "few": made_split(9), "alone": made_split(9)}
    splits["alone"]["intervals_over"] = {"unit": "sentences", "count": 9, "documents": None}
    assert splits["many"]["intervals_over"] == {"unit": "documents", "count": 10, "documents": 10}
    assert splits["few"]["intervals_over"] == {"unit": "sentences", "count": 9, "documents": 3}
    path, _ = write_report(tmp_path / "a.html", report_data(splits, ABOUT))
    page.open(path)
    told = []
    for place in range(3):
        page.ask(f"document.querySelectorAll('#splits button')[{place}].click()")
        told.append(" ".join(page.texts("#headline p")))
    assert "bootstrap over the 10 documents." in told[0]
    assert ["bootstrap over the sentences." in each for each in told] == [False, True, True]
    assert ["documents are too few" in each for each in told] == [False, True, False]
    silent(page)


def test_the_slider_recomputes_precision_and_recall(page, shown, data):
    page.open(shown)
    split = data["splits"]["test"]
    known = split["calibration"]

    def stats():
        texts = zip(page.texts("#kept dt"), page.texts("#kept dd"), strict=True)
        return dict(texts)

    for place in (0, 30, 60, 99, len(known["thresholds"]) - 1):
        page.choose("threshold", place)
        for at, name in enumerate([None, *sorted(split["types"])]):
            page.choose("threshold-type", "" if name is None else at - 1)
            types = sorted(split["types"]) if name is None else [name]
            kept, right = (
                sum(known["types"][x][y][place] for x in types) for y in ("kept", "right")
            )
            gold = sum(split["types"][x]["gold"] for x in types)
            found = stats()
            assert (found["Kept"], found["Right"]) == (str(kept), str(right))
            if kept:
                assert float(found["Precision"]) == pytest.approx(right / kept, abs=5.1e-5)
            else:
                assert found["Precision"] == "–"
            assert float(found["Recall"]) == pytest.approx(right / gold, abs=5.1e-5)
    silent(page)


def test_keys_go_from_error_to_error(page, shown):
    page.open(shown)
    number = "[...document.querySelectorAll('.error')].indexOf(document.activeElement)"
    assert page.ask(number) == -1
    seen = []
    for key in ("j", "j", "k", "j", "ArrowDown"):
        page.press(key)
        seen.append(page.ask(number))
    assert seen == [0, 1, 0, 1, 2]
    page.ask("document.querySelectorAll('.error')[24].focus()")
    page.press("j")
    assert page.ask(number) == 25  # the next ones are loaded
    page.ask("document.getElementById('filter-cause').focus()")
    page.press("j")
    assert page.ask("document.activeElement.id") == "filter-cause"


def test_another_split_is_shown_whole(page, shown, data):
    page.open(shown)
    figure = f"{data['splits']['dev']['f1']:.4f}"
    assert page.texts(".stat.first .value") != [figure]
    page.ask("document.querySelector('#splits button').click()")
    assert page.texts(".stat.first .value") == [figure]
    assert page.texts("h2").count("Errors") == 1
    silent(page)


def test_what_is_saved_is_what_is_shown(page, shown, data):
    """The text behind a CSV button, read by Python: also words with quotes, and formulas."""
    page.open(shown)
    page.ask("URL.createObjectURL = (blob) => { window.saved = blob.text(); return '#'; }")
    page.ask("HTMLAnchorElement.prototype.click = () => {}")
    page.ask("document.querySelector('[aria-label=\"Download types as CSV\"]').click()")
    rows = list(csv.reader(io.StringIO(page.ask("window.saved").lstrip("\ufeff"))))
    found = {row[0]: row for row in rows[1:]}
    for name, each in data["splits"]["test"]["types"].items():
        assert float(found[name][2]) == each["f1"]
        assert [int(x) for x in found[name][-3:]] == [
            each["gold"],
            each["predicted"],
            each["correct"],
        ]
    page.ask("document.querySelector('[aria-label=\"Download errors as CSV\"]').click()")
    rows = list(csv.DictReader(io.StringIO(page.ask("window.saved").lstrip("\ufeff"))))
    split = data["splits"]["test"]
    owners = [split["error_sentences"][each["sentence"]] for each in split["errors"]]
    assert [row["file and line"] for row in rows] == [each["where"] for each in owners]
    assert [row["id"] for row in rows] == [each["id"] or "" for each in owners]


def test_hostile_words_are_shown_as_they_are(page, tmp_path):
    ids = (NASTY, "\u202egnp.exe")
    types = ["<b>PER</b>", NASTY, "x\u202ey"]
    split = made_split(6, words=WORDS, types=types, ids=ids, file=NASTY)
    about = ABOUT | {"models": {NASTY: NASTY}, "data": ABOUT["data"] | {"path": NASTY}}
    data = report_data({NASTY: split, "b": split}, about, title=NASTY)
    path, _ = write_report(tmp_path / "a.html", data)
    for width in (1280, 390):
        page.open(path, width)
        assert page.ask("document.title") == NASTY
        assert (
            page.ask("document.querySelectorAll('img, main script, #main b.x, iframe').length") == 0
        )
        assert NASTY in "".join(page.texts(".sentence"))
        assert set(page.texts(".id")) == {f"id {NASTY}", r"id \u202egnp.exe"}
        assert {each.rpartition(":")[0] for each in page.texts(".where")} == {NASTY}
        assert not {"\u202e", "\u2028", "\x1b"} & set(
            "".join(page.texts("body")[0].split('id="data"')[:1])
        )
        assert page.overflow() == []
        silent(page)


def test_nothing_to_show_is_said(page, tmp_path):
    """No entity, no error, no log; one sentence; sixty types with long names."""
    nothing = table_of_spans([[]])
    empty = Evaluation(nothing, nothing, float("nan"), 1)
    right = table_of_spans([[Span("PER", 0, 1)]])
    perfect = Evaluation(right, right, 0.1, 1)
    many = [f"A_TYPE_WITH_A_NAME_THAT_DOES_NOT_END_{number:02d}" for number in range(60)]
    splits = {
        "empty": split_record(empty, result_record(empty), [["word"]]),
        "perfect": split_record(perfect, result_record(perfect), [["Ada"]]),
        "types": made_split(50, types=many),
    }
    data = report_data(splits, ABOUT)
    validate(data)
    path, _ = write_report(tmp_path / "a.html", data)
    for width in (1280, 390):
        page.open(path, width)
        for place in range(3):
            page.ask(f"document.querySelectorAll('#splits button')[{place}].click()")
            assert page.overflow() == []
        silent(page)
    page.ask("document.querySelectorAll('#splits button')[0].click()")
    notes = " ".join(page.texts(".note"))
    for says in ("No entity is annotated", "No error", "no probability", "log of the training"):
        assert says in notes


def test_right_to_left_and_chinese_stand_right(page, tmp_path):
    hebrew, chinese = ["דויד", "גר", "בתל", "אביב"], list("王小明住在北京")
    gold = table_of_spans([[Span("PER", 0, 1)], [Span("PER", 0, 3)]])
    found = table_of_spans([[], []])
    result = Evaluation(gold, found, 0.0, 2)
    split = split_record(result, result_record(result), [hebrew, chinese])
    path, _ = write_report(tmp_path / "a.html", report_data({"test": split}, ABOUT))
    page.open(path, 390)
    texts = page.texts(".sentence")
    assert texts[0] == "דויד" + "PER" + " גר בתל אביב"
    assert texts[2] == "王小明" + "PER" + "住在北京"
    directions = page.ask(
        "[...document.querySelectorAll('.sentence')].map(x => getComputedStyle(x).direction)"
    )
    assert directions == ["rtl", "rtl", "ltr", "ltr"]


@pytest.mark.slow
def test_five_thousand_sentences_are_small_and_quick(page, tmp_path):
    split = made_split(5000)
    path, _ = write_report(tmp_path / "a.html", report_data({"test": split}, ABOUT))
    size = path.stat().st_size
    seconds = page.open(path)
    print(f"{size / 1e6:.2f} MB, {len(split['errors'])} errors, shown after {seconds:.2f} s")
    assert size < 3e6
    assert seconds < 5
    silent(page)


def test_an_evaluation_draws_the_documents_of_its_data(model, tmp_path, monkeypatch, capsys):
    """At the end of a training and in an evaluation, printed and in the files; errors have their
    lines and their ids; --intervals_over sentences gives what data without documents give.
    """
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir(), Path("bare").mkdir()
    found = Tagger.from_pretrained(model).find(CORPUS.dev)  # right in every third document
    bare = [
        each if n // 2 % 3 else replace(each, spans=tagged.spans)
        for n, (each, tagged) in enumerate(zip(CORPUS.dev, found, strict=True))
    ]
    dev = [
        replace(each, document=f"d.jsonl#{n // 2}", id=f"s-{n}", source=f"d.jsonl:{n + 1}")
        for n, each in enumerate(bare)
    ]
    for folder, held in (("data", dev), ("bare", bare)):
        write_examples(CORPUS.train, f"{folder}/train.jsonl", "jsonl")
        write_examples(held, f"{folder}/dev.jsonl", "jsonl")
    words = ["--model_name_or_path", str(model), "--no_cuda", "--no_learning_curve"]
    words += ["--max_steps", "1", "--learning_rate", "1e-9", "--crf_learning_rate", "1e-9"]
    assert main(["train", "--data_dir", "data", "--output_dir", "run", *words]) == 0
    assert "95 % intervals over 10 documents: F1" in capsys.readouterr().out
    kept = read_report("run/report.json")["splits"]["dev"]
    assert kept["intervals_over"] == {"unit": "documents", "count": 10, "documents": 10}
    lines = Path("data/dev.jsonl").read_text().splitlines()
    for each in kept["error_sentences"]:
        record = json.loads(lines[int(each["where"].removeprefix("dev.jsonl:")) - 1])
        assert each["id"] == record["id"] == f"s-{each['number'] - 1}"
        assert record["text"].startswith(each["words"][0])
    told = {}
    for name, flags in {
        "data": ["data"],
        "sentences": ["data", "--intervals_over", "sentences"],
        "bare": ["bare"],
    }.items():
        assert main(["evaluate", "run", *flags, "--no_cuda", "--report", f"{name}.html"]) == 0
        split = read_report(f"{name}.json")["splits"]["dev"]
        validate(read_report(f"{name}.json"))
        told[name] = [split["intervals"], split["types"], split["calibration"]]
    assert told["data"] == [kept["intervals"], kept["types"], kept["calibration"]]
    assert told["sentences"] == told["bare"]
    assert told["sentences"] != told["data"]
    assert capsys.readouterr().out.count("95 % intervals over sentences: F1") == 2
