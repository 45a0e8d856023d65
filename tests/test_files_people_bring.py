"""Files as people bring them: small ones of each kind, and what is right for them."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nercrf.data.convert import write_checked
from nercrf.data.corpus import read_corpus
from nercrf.data.examples import DataError, Example, span_order
from nercrf.data.formats import FORMATS, examine, read_examples, write_examples
from nercrf.data.reading import is_visible
from nercrf.data.records import Examined, Format, Reading, Survey
from nercrf.data.repair import fix_file
from nercrf.data.rows import from_dataset
from nercrf.data_commands import check_main
from nercrf.labels import Span


def save(folder, name, text):
    "A file with exactly this text."
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def found(path, **options):
    "Format, sentences, (type, surface) of each entity, and the kinds of problems."
    read = examine(path, **options)
    entities = [(span.label, each.surface(span)) for each in read.examples for span in each.spans]
    problems = [finding.kind for finding in read.findings if finding.severity == "problem"]
    return read.format.name, len(read.examples), entities, problems


def notes(path, **options):
    "What was understood otherwise than usual."
    return " ".join(map(str, examine(path, **options).findings))


GERMEVAL = (
    "#\thttp://de.example.org/wiki/Karl_Moor [2009-10-17]\n1\tAm\tO\tO\n2\tFC\tB-ORG\tO\n"
    "3\tKickers\tI-ORG\tO\n4\tBrackenau\tI-ORG\tB-LOC\n\n"
)
MULTICONER = (
    "# id 0a1b\tdomain=en\nhis _ _ O\nmara _ _ B-Artist\nwhitlow _ _ I-Artist\n\n"
    "# id 0000\tdomain=en\nthe _ _ O\nash _ _ B-Artist\n"
)
CONLLU = (
    "# sent_id = 1\n1-2\tMara's\t_\tO\n1\tMara\tPROPN\tB-PER\n2\t's\tAUX\tO\n"
    "2.1\tcome\tVERB\tO\n3\tfrom\tADP\tO\n4\tAsh\tPROPN\tB-LOC\n"
)
UNER = (
    "# sent_id = a-1\n# text = Marta Kolm lacht\n1\tMarta\tB-PER\t-\tann\n2\tKolm\tI-PER\t-\tann\n"
    "3\tlacht\tO\t-\tann\n\n"
)
CONLL_2012 = (
    "#begin document (bn/abc); part 000\n"
    "bn/abc  0  0  Mara  NNP  (TOP(S(NP*  -  -  -  -  (PERSON*  (ARG0*  (12\n"
    "bn/abc  0  1  Kolm  NNP  *)  -  -  -  -  *)  *)  12)\n"
    "bn/abc  0  2  left  VBD  *))  leave  01  1  -  *  (V*)  -\n\n"
    "bn/abc  0  0  Ash  NNP  (TOP(NP*))  -  -  -  -  (GPE)  -\n\n#end document\n"
)


@pytest.mark.parametrize(
    ("name", "text", "entities", "sentences"),
    [
        ("a.tsv", GERMEVAL, [("ORG", "FC Kickers Brackenau"), ("LOC", "Brackenau")], 1),
        ("a.conll", MULTICONER, [("Artist", "mara whitlow"), ("Artist", "ash")], 2),
        ("a.conllu", CONLLU, [("PER", "Mara"), ("LOC", "Ash")], 1),
        ("a.iob2", UNER, [("PER", "Marta Kolm")], 1),
        ("a.txt", CONLL_2012, [("PERSON", "Mara Kolm"), ("GPE", "Ash")], 2),
        (
            "layers.tsv",
            "Marta\tB-PER\tO\tO\nKolm\tI-PER\tB-LOC\tO\nlacht\tO\tO\tO\n\n",
            [("PER", "Marta Kolm"), ("LOC", "Kolm")],
            1,
        ),
        ("a.tsv", "word\ttag\nMarta\tB-PER\nKolm\tI-PER\n\n", [("PER", "Marta Kolm")], 1),
        ("a.txt", "Mara NNP x O\nAsh y B-LOC\n".replace("y ", "y z "), [("LOC", "Ash")], 1),
        ("a.txt", "Mara\u00a0B-PER\nleft\u00a0O\n", [("PER", "Mara")], 1),
        ("a.txt", "Mara B-PER\nleft\u00a0O\n", [("PER", "Mara")], 1),
        ("a.txt", "# O\nMara B-PER\n", [("PER", "Mara")], 1),
        (
            "a.txt",
            b"Mara\tB-PER\r\r\nleft\tO\r\r\n\r\r\nAsh\tB-LOC\r\r\n",
            [("PER", "Mara"), ("LOC", "Ash")],
            2,
        ),
        ("a.txt", "Mara B-PER\n\n\ufeffAsh B-LOC\n", [("PER", "Mara"), ("LOC", "Ash")], 2),
        (
            "a.txt",
            "Mara B-PER\n\u3000\nAsh B-LOC\n\x0c\nBay B-LOC\n",
            [("PER", "Mara"), ("LOC", "Ash"), ("LOC", "Bay")],
            3,
        ),
    ],
)
def test_columns_are_found(tmp_path, name, text, entities, sentences):
    path = save(tmp_path, name, text)
    assert found(path) == ("columns", sentences, entities, [])


def test_a_token_of_a_number_sign_stays_and_a_comment_may_begin_otherwise(tmp_path):
    path = save(tmp_path, "a.txt", "# a letter\n# O\nMara B-PER\n\n// x\nleft O\n")
    (one, *_) = examine(path, comment="//").examples
    assert one.tokens == ["#", "Mara"]
    assert found(path)[3] == ["unreadable"]
    inside = save(tmp_path, "b.txt", "Mara B-PER\n# page 2\nleft O\n")
    with pytest.raises(DataError, match=r"b\.txt:2: .*--comment '#'"):
        read_examples(inside)
    assert read_examples(inside, comment="#")[0].tokens == ["Mara", "left"]


def test_the_choice_of_a_layer_and_of_a_wrong_column(tmp_path):
    path = save(tmp_path, "a.tsv", GERMEVAL)
    assert found(path, tag_column=2)[2:] == ([("ORG", "FC Kickers Brackenau")], [])
    assert found(path, tag_column=3)[2:] == ([("LOC", "Brackenau")], [])
    assert "other-column" in found(path, token_column=0)[3]
    uner = save(tmp_path, "b.iob2", UNER)
    assert found(uner, tag_column=3)[3] == ["other-column"]
    predicted = save(tmp_path, "c.txt", "Mara B-PER B-PER\nKolm I-PER I-PER\nAsh B-LOC O\n")
    with pytest.raises(DataError, match="--tag_column 1"):
        read_examples(predicted)


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("sentence_id,words,labels\n0,Mara,B-PER\n0,left,O\n", [("PER", "Mara")]),
        ("Mara;B-PER\nleft;O\n", [("PER", "Mara")]),
        (
            "Sentence #,Word,POS,Tag\nSentence: 1,Marta,NNP,B-per\n,Kolm,NNP,I-per\n,lebt,VB,O\n"
            "Sentence: 2,Zarnau,NNP,B-geo\n",
            [("per", "Marta Kolm"), ("geo", "Zarnau")],
        ),
        ('word,tag\nMara,B-PER\n",",O\n"""",O\n', [("PER", "Mara")]),
        ('Mara\tB-PER\n""""\tO\n', [("PER", "Mara")]),
    ],
)
def test_tables_are_read(tmp_path, text, entities):
    for name in ("a.csv", "a.txt"):
        read = found(save(tmp_path, name, text))
        assert (read[0], read[2], read[3]) == ("csv", entities, [])
    assert not any(
        ";" in token for each in read_examples(tmp_path / "a.csv") for token in each.tokens
    )


MARTA = ["Marta", "Kolm", "lebt"]
KOLM = [("PER", "Marta Kolm")]


@pytest.mark.parametrize(
    ("record", "entities"),
    [
        ({"id": "0", "tokens": MARTA, "ner_tags": ["B-PER", "I-PER", "O"]}, KOLM),
        ({"words": MARTA, "labels": ["PER", "PER", "O"]}, KOLM),
        ({"tokens": MARTA, "tags": ["B-PER", "L-PER", "O"]}, KOLM),
        (
            {
                "tokens": MARTA,
                "entity_mentions": [
                    {"start": 0, "end": 2, "entity_type": "PER", "text": "Marta Kolm"}
                ],
            },
            KOLM,
        ),
        (
            {"tokens": MARTA, "entities": [{"type": "PER", "start": 0, "end": 2}], "orig_id": 1},
            KOLM,
        ),
        ({"tokenized_text": MARTA, "ner": [[0, 1, "PER"]]}, KOLM),
        ({"sentence": MARTA, "ner": [{"index": [0, 1], "type": "PER"}]}, KOLM),
        ({"doc_key": "d", "sentences": [["Es"], MARTA], "ner": [[], [[1, 2, "PER"]]]}, KOLM),
        (
            {
                "context": "Marta Kolm lebt",
                "entity_label": "PER",
                "start_position": [0],
                "end_position": [1],
            },
            KOLM,
        ),
    ],
)
def test_tokens_in_json_are_read(tmp_path, record, entities):
    for name in ("a.jsonl", "a.json", "a.jsonlines"):
        assert found(save(tmp_path, name, json.dumps(record)))[::2] == ("tokens", entities)
    assert found(save(tmp_path, "b.json", json.dumps([record], indent=1)))[::2] == (
        "tokens",
        entities,
    )


def test_numbers_as_tags_need_names(tmp_path):
    path = save(tmp_path, "a.jsonl", json.dumps({"tokens": MARTA, "ner_tags": [1, 2, 0]}))
    with pytest.raises(DataError, match="--tag_names O B-PER"):
        read_examples(path)
    assert found(path, tag_names=["O", "B-PER", "I-PER"])[2] == KOLM


@pytest.mark.parametrize(
    ("name", "content", "entities"),
    [
        ("a.json", [{"id": 1, "text": "Mara left", "label": [[0, 4, "PER"]]}], [("PER", "Mara")]),
        (
            "a.json",
            [
                {
                    "curid": "1",
                    "text": "カオル社は",
                    "entities": [{"name": "カオル社", "span": [0, 4], "type": "法人名"}],
                }
            ],
            [("法人名", "カオル社")],
        ),
        ("a.json", [["Mara left", {"entities": [[0, 4, "PER"]]}]], [("PER", "Mara")]),
        (
            "a.json",
            {"classes": ["PER"], "annotations": [["Mara left", {"entities": [[0, 4, "PER"]]}]]},
            [("PER", "Mara")],
        ),
    ],
)
def test_arrays_and_objects_of_spans_are_read(tmp_path, name, content, entities):
    for indent in (None, 1):
        path = save(tmp_path, name, json.dumps(content, indent=indent, ensure_ascii=False))
        assert found(path)[2:] == (entities, [])


@pytest.mark.parametrize(
    ("text", "entities", "says"),
    [
        (
            "Mara PER\nWhitlow PER\nleft O\nPort LOC\n",
            [("PER", "Mara Whitlow"), ("LOC", "Port")],
            "IO",
        ),
        ("Marta B\nKolm I\nlebt O\n", [("ENTITY", "Marta Kolm")], "letters only"),
        ("Marta person-actor\nKolm person-actor\nlebt O\n", [("person-actor", "Marta Kolm")], "IO"),
        ("Marta PER-B\nKolm PER-I\nlebt O\n", KOLM, "behind the type"),
        ("Marta B_PER\nKolm I_PER\nlebt O\n", KOLM, "underscore"),
        ("Marta b-PER\nKolm i-PER\nlebt o\n", KOLM, "small"),
        ("Marta I-PER\nKolm E-PER\nlebt O\n", KOLM, "IOE"),
        (
            "Marta B-PER\nKolm E-PER\nlebt O\nAsh W-LOC\n",
            [*KOLM, ("LOC", "Ash")],
            "W was read as S",
        ),
        ("Marta B-PER\nKolm I-PER\nlebt -\n", KOLM, "- was read as O"),
    ],
)
def test_forms_of_tags_are_read_and_said(tmp_path, text, entities, says):
    path = save(tmp_path, "a.txt", text)
    assert found(path)[2:] == (entities, [])
    assert says in notes(path)


def test_all_lines_that_cannot_be_read_are_told_at_once(tmp_path):
    path = save(tmp_path, "a.txt", "a O\nb\nc O\nd O O O\ne O\nf G\n")
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert [f"a.txt:{line}: " in str(caught.value) for line in range(1, 7)] == [False, True] * 3
    many = save(tmp_path, "b.txt", "a O\n" * 100 + "b\n" * 50)
    with pytest.raises(DataError) as caught:
        read_examples(many)
    assert str(caught.value).count("expected 2 columns") == 50
    lines = [json.dumps({"text": "Mara", "spans": []}), '{"text": ', '{"text": 7}', "[]"]
    path = save(tmp_path, "c.jsonl", "\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert [f"c.jsonl:{line}: " in str(caught.value) for line in range(1, 5)] == [
        False,
        True,
        True,
        True,
    ]
    warnings = []
    assert len(read_examples(path, on_bad="warn", warnings=warnings)) == 1
    assert sum("expected" in warning for warning in warnings) == 3


BAD = {  # a good line, bad ones, and what stands around them
    "columns": ("Mara B-PER\n", ["Mara\n", "a b c d O\n"], ("left O\n" * 5, "")),
    "csv": ("Mara,B-PER\n", ["Mara\n", "a,b,c,d,O\n"], ("left,O\n" * 9, "")),
    "cluener": (
        '{"text": "Mara", "label": {"PER": {"Mara": [[0, 3]]}}}\n',
        ['{"text": \n', '{"text": 7}\n', '{"text": "Mara", "label": [1]}\n', "[]\n"],
        ("", ""),
    ),
    "jsonl": (
        '{"text": "Mara", "spans": [{"start": 0, "end": 4, "label": "PER", "text": "Mara"}]}\n',
        ['{"text": \n', '{"text": 7}\n', '{"text": "Mara", "spans": [[1]]}\n', "7\n"],
        ("", ""),
    ),
    "doccano": (
        '{"text": "Mara", "label": [[0, 4, "PER"]]}\n',
        ['{"text": \n', '{"text": 7}\n', '{"text": "Mara", "label": [[1]]}\n'],
        ("", ""),
    ),
    "tokens": (
        '{"tokens": ["Mara"], "ner_tags": ["B-PER"]}\n',
        ['{"tokens": \n', '{"tokens": 7}\n', '{"tokens": ["a"], "ner_tags": ["O", "O"]}\n'],
        ("", ""),
    ),
    "label_studio": (
        '{"data": {"text": "Mara"}, "annotations": [{"result": [{"type": "labels", '
        '"value": {"start": 0, "end": 4, "labels": ["PER"]}}]}]}\n',
        ['{"data": {"text": 7}}\n', '{"data": {"text": "a"}, "annotations": [{"result": [7]}]}\n'],
        ("", ""),
    ),
    "inline": ("{{PER:Mara}} left\n", ["{{PER:Mara\n", "left}} {{PER:\n"], ("", "")),
    "brat": ("T1\tPER 0 4\tMara\n", ["T2\tPER\n", "? what\n", "T3 PER 0 4\n"], ("", "")),
}


def test_every_format_of_text_is_among_those_with_bad_lines():
    read_by_place = {"text", "parquet", "datasets"}  # any line is text; rows are tested below
    assert {name for name, kind in FORMATS.items() if kind.readable} == {*BAD, *read_by_place}


@pytest.mark.parametrize("name", BAD)
def test_all_bad_lines_are_told_at_once_and_passed_if_asked(tmp_path, name):
    good, bad, (before, behind) = BAD[name]
    lines = before + good + "".join(bad) + good.replace("T1", "T9").replace("0 4", "5 9") + behind
    path = save(tmp_path, f"train{FORMATS[name].extensions[0]}", lines)
    if name == "brat":
        save(tmp_path, "train.txt", "Mara Mara\n")
    first = before.count("\n") + 2
    numbers = [f"{path}:{first + index}: " for index in range(len(bad))]
    with pytest.raises(DataError) as caught:
        read_examples(path, name)
    assert [number in str(caught.value) for number in numbers] == [True] * len(bad)
    warnings = []
    examples = read_examples(path, name, on_bad="warn", warnings=warnings)
    assert sum(len(example.spans) for example in examples) == 2
    for number in numbers:
        assert sum(warning.startswith(number) for warning in warnings) == 1
    assert warnings[-1] == f"{path}: {len(bad)} places could not be read"


def test_all_bad_rows_are_told_at_once():
    rows = [{"tokens": ["a"], "ner_tags": tags} for tags in (["O"], ["O"] * 2, ["O"] * 3, ["O"])]

    class Rows(list):
        column_names = ("tokens", "ner_tags")

    with pytest.raises(DataError) as caught:
        from_dataset(Rows(rows))
    assert "row 1: " in str(caught.value)
    assert "row 2: " in str(caught.value)
    assert len(from_dataset(Rows(rows), on_bad="warn")) == 2


def test_a_repair_leaves_lines_alone_that_cannot_be_read(tmp_path):
    bad = '{"text": \n'
    good = '{"text": "Mara left", "label": {"PER": {"Mara ": [[0, 4]]}}}\n'
    path = save(tmp_path, "a.json", good + bad + good)
    fixed = fix_file(path, tmp_path / "fixed", format="cluener").output
    lines = fixed.read_text(encoding="utf-8").splitlines(keepends=True)
    assert lines[1] == bad
    assert '"Mara": [[0, 3]]' in lines[0]


def test_a_whole_run_says_each_warning_once(tmp_path):
    "Reading, training, two evaluations and a prediction: no line of the log stands twice."
    words = [
        "Mara B-PER\nleft O\n\n",
        "Mara\n",
        "in O\nAsh I-LOC\n\n",
        "a b c d\n",
        "x\u200by O\n\n",
    ]
    for split in ("train", "dev", "test"):
        save(tmp_path, f"{split}.txt", "Mara B-PER\nleft O\nAsh B-LOC\n\n" * 4 + "".join(words))
    command = [sys.executable, "-c", "from nercrf.cli import main; main()", "train"]
    command += ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "run")]
    command += ["--on_bad", "warn", "--max_steps", "2"]
    command += ["--no_cuda", "--eval_steps", "1", "--save_steps", "1", "--eval_all_checkpoints"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = re.findall(r"^[-0-9]+ [0-9:,]+ (?:WARNING|ERROR) (.*)$", done.stderr, re.MULTILINE)
    assert len(told) > 9
    assert [line for line, many in Counter(told).items() if many > 1] == []


def test_what_an_annotator_turned_down_is_no_gold(tmp_path):
    lines = [
        {
            "text": "Mara left",
            "spans": [{"start": 0, "end": 4, "label": "PER"}],
            "answer": "accept",
        },
        {
            "text": "Bay is bad",
            "spans": [{"start": 0, "end": 3, "label": "PER"}],
            "answer": "reject",
        },
        {"text": "Skip me", "spans": [], "answer": "ignore"},
    ]
    path = save(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert found(path) == ("jsonl", 1, [("PER", "Mara")], [])
    for answer in ("reject", "ignore"):
        assert f"ignored records with the answer '{answer}' (1)" in notes(path)


def region(start, end, text):
    value = {"start": start, "end": end, "text": text, "labels": ["PER"]}
    return {"type": "labels", "value": value}


def test_label_studio_calls_text_and_regions_as_it_likes(tmp_path):
    task = {"id": 1, "data": {"Full_Text": "Mara left", "source": "a.txt"}}
    task["annotations"] = [{"result": [region(0, 4, "Mara")]}]
    flat = {
        "id": 1,
        "ner": "Mara left Ash",
        "label": [region(0, 4, "Mara")["value"]],
        "annotator": 1,
    }
    control = {"id": 2, "review": "Mara left", "who": [region(0, 4, "Mara")["value"]], "by": "x y"}
    for record in (task, flat, control):
        path = save(tmp_path, "a.json", json.dumps([record]))
        assert found(path) == ("label_studio", 1, [("PER", "Mara")], [])
    task["annotations"][0]["result"] = [region(0, 9, "Mara came")]
    path = save(tmp_path, "a.json", json.dumps([task]))
    with pytest.raises(DataError, match=r"a\.json:id 1: PER 'Mara came'"):
        read_examples(path)


def test_each_text_shows_its_own_units(tmp_path):
    tasks = [
        {"id": 1, "data": {"text": "😀 Mara"}, "annotations": [{"result": [region(3, 7, "Mara")]}]},
        {"id": 2, "data": {"text": "😀 Mara"}, "annotations": [{"result": [region(2, 6, "Mara")]}]},
    ]
    path = save(tmp_path, "a.json", json.dumps(tasks))
    assert found(path)[2:] == ([("PER", "Mara")] * 2, [])


@pytest.mark.parametrize(
    ("text", "annotations", "entities"),
    [
        (
            "Mara loves Ash.\r\nHe married her.\r\n",
            "T1\tPER 0 4\tMara\nT2\tPER 16 18\tHe\nT3\tPER 27 30\ther\n",
            ["Mara", "He", "her"],
        ),
        ("Mara.\r\nHe left.\r\n", "T1\tPER 0 4\tMara\nT2\tPER 7 9\tHe\n", ["Mara", "He"]),
        (
            "Mara\nKolm left.\nAsh\n",
            "T1\tPER 0 4;5 9\tMara Kolm\nT2\tPER 16 19\tAsh\n",
            ["Mara\nKolm", "Ash"],
        ),
    ],
)
def test_the_surfaces_of_brat_decide_how_line_ends_count(tmp_path, text, annotations, entities):
    save(tmp_path, "a.txt", text)
    path = save(tmp_path, "a.ann", annotations)
    assert found(path)[2:] == ([("PER", surface) for surface in entities], [])


def test_types_are_renamed_and_chosen(tmp_path):
    path = save(tmp_path, "a.txt", "Mara B-PERSON\nKolm I-Per\nsaw O\nAsh B-LOC\ntoday B-DATE\n")
    options = {"type_map": ["PERSON=PER", "Per=PER"], "drop_types": ["DATE"]}
    assert found(path, **options)[2:] == ([("PER", "Mara Kolm"), ("LOC", "Ash")], [])
    assert "ignored spans of the type 'DATE' (1)" in notes(path, **options)
    assert found(path, keep_types=["LOC"])[2] == [("LOC", "Ash")]
    with pytest.raises(ValueError, match="--type_map: expected words like PERSON=PER"):
        found(path, type_map=["PERSON"])


def test_types_that_are_probably_one_are_found_and_not_cut(tmp_path, capsys):
    path = save(
        tmp_path,
        "a.jsonl",
        '{"text":"Mara left","label":[[0,4,"PER "]]}\n{"text":"Mara came","label":[[0,4,"PER"]]}\n',
    )
    assert check_main([str(path)]) == 1
    assert "--type_map 'PER =PER'" in capsys.readouterr().out
    assert check_main([str(path), "--type_map", "PER =PER"]) == 0
    capsys.readouterr()
    path = save(tmp_path, "b.txt", "Kloof I-O\nGold I-O\nruns O\n\nMara I-PER\nWhitlow I-PER\n")
    assert check_main([str(path)]) == 1
    assert "--drop_types O" in capsys.readouterr().out
    text = "B-SALARY I-SALRY O\n" + "B-SALARY O O\n" * 33
    lines = "\n\n".join(
        "\n".join(f"w{n} {tag}" for n, tag in enumerate(line.split())) for line in text.splitlines()
    )
    path = save(tmp_path, "c.txt", lines + "\n")
    assert check_main([str(path), "--fix"]) == 1
    assert "'SALRY' (once) is probably 'SALARY' (34 times)" in capsys.readouterr().out
    assert not (tmp_path / "c.fixed.txt").exists()


def test_labelled_training_data_without_an_entity_are_a_problem(tmp_path):
    save(tmp_path, "train.txt", "Mara O\nleft O\n")
    with pytest.raises(
        DataError, match=r"train\.txt: its labelled sentences hold no entity; .*--tag_column"
    ):
        read_corpus(tmp_path)
    assert check_main([str(tmp_path)]) == 1


# Conservation: what goes in comes out, or it is said.

NASTY = st.text(
    st.sampled_from(
        "ab1林é,;\"'#-_O{}:\\.| "  # what formats use
        "\u00a0\u3000\u2028\x85\x1c\t\r\x0b"  # blanks and ends of lines
        "\u200b\ufeff\u00ad\u200d\u200e\u202e"  # what nobody sees
        "\u0301\u0e31\u064b\u05b8\U0001e8d0"  # marks
        "אب\u1112\u1161\u11ab😀🏽\U00020000ß\u0130"  # right to left, jamo, beyond UTF-16, case
    ),
    min_size=1,
    max_size=5,
)
TYPES = st.sampled_from(["PER", "creative-work", "x.y", "B", "per"])


@st.composite
def sentences(draw):
    "A labelled sentence of any tokens, with spans that may lie within each other."
    tokens = draw(st.lists(NASTY, min_size=1, max_size=6))
    places = st.tuples(st.integers(0, len(tokens)), st.integers(0, len(tokens)))
    spans = {
        Span(draw(TYPES), *sorted(place))
        for place in draw(st.lists(places, max_size=3))
        if place[0] != place[1]
    }
    return Example(draw(st.sampled_from(["x", "7", "a b"])), tokens, sorted(spans, key=span_order))


WRITTEN = [
    name for name, kind in FORMATS.items() if kind.readable and type(kind).write is not Format.write
]
WRITTEN += [
    name for name, kind in FORMATS.items() if kind.readable and type(kind).line is not Format.line
]
NEEDS = {"parquet": "pyarrow", "datasets": "datasets"}  # what a format is read with
HARD = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_every_format_that_can_be_read_is_written_here():
    assert sorted(WRITTEN) == sorted(name for name, kind in FORMATS.items() if kind.readable)


def entities(examples):
    "Type and text of each entity without what nobody sees, and how often each is there."
    return Counter(
        (span.label, "".join(filter(is_visible, example.surface(span))))
        for example in examples
        for span in example.spans or ()
    )


def place_for(folder, name):
    "An empty place for a file of a format."
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    for old in folder.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    return folder / f"a{FORMATS[name].extensions[0]}"


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "text"])
@HARD
@given(examples=st.lists(sentences(), min_size=1, max_size=3))
def test_entities_come_out_or_are_reported(tmp_path, name, examples):
    path, before = place_for(tmp_path, name), entities(examples)
    try:
        losses = write_examples(examples, path, name, on_bad="warn")
        back = examine(path, name)
    except (DataError, ValueError):
        return  # refused, with the reason
    after = entities(back.examples)
    told = sum(finding.count for finding in back.findings if finding.severity == "problem")
    assert after - before == Counter()
    assert (before - after).total() <= len(losses) + told, (back.findings, path)


@pytest.mark.parametrize("name", WRITTEN)
@HARD
@given(examples=st.lists(sentences(), min_size=1, max_size=3))
def test_a_conversion_that_says_nothing_has_lost_nothing(tmp_path, name, examples):
    path = place_for(tmp_path, name)
    read = Examined(FORMATS["jsonl"], Reading("a.jsonl"), Survey(), examples, [])
    try:
        report = write_checked(read, path, name, on_bad="warn")
    except (DataError, ValueError):
        return
    back = examine(path, name).examples
    kinds = {loss.kind for loss in report.losses}
    if not kinds & {"examples", "spans", "overlapping"}:
        assert entities(back) == entities(examples)
    if not kinds & {"examples", "texts"}:
        assert [each.text for each in back] == [each.text for each in examples]
    if not kinds & {"examples", "tokens"}:
        assert [list(each.tokens) for each in back] == [each.tokens for each in examples]


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in NEEDS])
@HARD
@given(lines=st.lists(st.text(max_size=12), max_size=6))
def test_any_text_is_read_or_refused_with_a_sentence(tmp_path, name, lines):
    text = "\n".join(lines).encode("utf-8", "replace")
    path = save(tmp_path, f"a{FORMATS[name].extensions[0]}", text)
    if name == "brat":
        save(tmp_path, "a.txt", text)
    for format in (name, "auto"):
        with contextlib.suppress(DataError, ValueError):
            back = examine(path, format)
            assert all(example.tokens for example in back.examples)
