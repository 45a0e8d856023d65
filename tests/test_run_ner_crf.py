"""The script and the command line in one process, on files as users have them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from training import CORPUS, ROOT, TOKENIZER, write_corpus, write_encoder

from nercrf import cli
from nercrf.data.examples import Example
from nercrf.data.formats import read_examples
from nercrf.data.json_spans import write_cluener
from nercrf.flags import OLD_NAMES, ScriptConfig
from nercrf.labels import Span
from nercrf.model.encoder_config import find_model
from nercrf.run_ner_crf import main, parse_args
from nercrf.tagging.tagger import Tagger
from nercrf.training.trainer import check_config

REFERENCE = """--model_type bert --model_name_or_path {encoder} --task_name cner --do_train --do_eval --do_predict
--do_lower_case --data_dir {data} --train_max_seq_length 128 --eval_max_seq_length 512 --per_gpu_train_batch_size 24
--per_gpu_eval_batch_size 24 --learning_rate 3e-5 --crf_learning_rate 1e-3 --num_train_epochs 4.0 --logging_steps -1
--save_steps -1 --output_dir {output}/ --overwrite_output_dir --seed 42"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data folder and the output folder of a short run on it."""
    folder = tmp_path_factory.mktemp("run")
    data, encoder = write_corpus(folder / "data"), write_encoder(folder / "encoder")
    flags = [
        "--data_dir",
        data,
        "--model_name_or_path",
        encoder,
        "--output_dir",
        folder / "out",
        "--no_cuda",
        "--do_train",
        "--max_steps",
        6,
        "--save_steps",
        3,
        "--eval_max_seq_length",
        128,
        "--learning_rate",
        1e-3,
        "--crf_learning_rate",
        1e-2,
    ]
    assert main(list(map(str, flags))) == 0
    return data, folder / "out", encoder


def excerpt(source, target, sentences):
    """The first sentences of a résumé file; the blank line between sentences is kept."""
    blocks = source.read_text(encoding="utf-8").split("\n\n")[:sentences]
    target.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def test_the_command_line_of_the_reference_works_unchanged(
    data_folder, tmp_path, monkeypatch, capsys
):
    """On the résumé files and a tiny lower-casing BERT with the Chinese vocabulary."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    data, encoder = tmp_path / "data", tmp_path / "encoder"
    data.mkdir()
    for name, count in (("train", 60), ("dev", 20), ("test", 20)):
        excerpt(data_folder / "resume" / f"{name}.char.bmes", data / f"{name}.char.bmes", count)
    vocabulary = data_folder / "vocab-bert-base-chinese.txt"
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), do_lower_case=True)
    tokenizer.save_pretrained(encoder)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(encoder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = REFERENCE.format(encoder=encoder, data=data, output=tmp_path / "out")
    for _ in range(2):  # --overwrite_output_dir: a second run is as good as the first
        assert main(command.split()) == 0
    output = capsys.readouterr().out
    assert "test: 20 sentences" in output
    history = [
        json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in history if "loss" in line] == [
        3,
        6,
        9,
        12,
    ]  # once an epoch, 60 / 24
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["scheme"] == "BMES"
    assert config["split_by"] == "characters"
    assert (
        len((tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 20
    )


REFUSED = [
    (["--loss_type", "lsr"], "trained by its likelihood"),
    (["--fp16", "--fp16_opt_level", "O2"], "apex is gone"),
    (["--fp16", "--fp16_opt_level", "O0"], "contradicts --fp16"),
    (["--fp16", "--bf16"], "choose one"),
    (["--server_ip", "127.0.0.1"], "debugpy"),
    (["--server_port", "5678"], "debugpy"),
    (["--do_adv", "--awp_gamma", "0.01"], "choose one"),
    (["--markup", "xyz"], "xyz"),
    (["--learning_rate", "0"], "greater than 0"),
    (["--no_such_flag"], "unknown: --no_such_flag"),
    (["--max_steps", "0"], "trains nothing"),
    (["--weight_decay", "-1"], "must not be negative"),
    (["--schedule", "step"], "linear, cosine, constant"),
]


@pytest.mark.parametrize(("argv", "message"), REFUSED, ids=[" ".join(argv) for argv, _ in REFUSED])
def test_what_cannot_be_honoured_is_refused(argv, message, capsys):
    with pytest.raises((SystemExit, ValueError)) as caught:
        parse_args(argv)
    assert message in capsys.readouterr().err + str(caught.value)


def test_every_flag_of_the_reference_is_known():
    """Names, and where the value matters, the meaning."""
    argv = """--task_name cner --data_dir d --model_type bert --model_name_or_path m --output_dir o --markup bios
    --config_name c --tokenizer_name t --cache_dir x --train_max_seq_length 64 --eval_max_seq_length 64 --do_train
    --do_eval --do_predict --evaluate_during_training --do_lower_case --per_gpu_train_batch_size 4
    --per_gpu_eval_batch_size 4 --gradient_accumulation_steps 2 --learning_rate 1e-5 --crf_learning_rate 1e-4
    --weight_decay 0.1 --adam_epsilon 1e-6 --max_grad_norm 2 --num_train_epochs 1 --max_steps 7 --warmup_proportion 0.2
    --logging_steps 5 --save_steps 6 --eval_all_checkpoints --predict_checkpoints 3 --no_cuda --overwrite_output_dir
    --overwrite_cache --seed 1 --fp16 --fp16_opt_level O1 --local_rank -1"""
    args = parse_args(argv.split())
    given = {word.removeprefix("--") for word in argv.split() if word.startswith("--")}
    given = {OLD_NAMES.get(name, name) for name in given}
    assert given <= set(vars(args))
    default = vars(ScriptConfig())
    unchanged = {name for name in given if vars(args)[name] == default[name]}
    assert unchanged == {"local_rank"}
    check_config(args)


def test_every_flag_has_a_help_text(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    text = capsys.readouterr().out
    flags = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert len(flags) > 50
    for name, default in vars(ScriptConfig()).items():
        assert f"  --no_{name} " in text if default is True else f"  --{name} " in text
    assert "left out" in text
    assert re.search(r"--no_cuda .*\n? +use the CPU", text)
    assert "let decoding give ill-formed" in text


def test_predictions_of_the_run_are_those_of_the_tagger(trained, tmp_path, capsys):
    """Through the test file, --input, JSON lines, columns, CLUENER's format: always the same entities."""
    data, output, _ = trained
    expected = Tagger.from_pretrained(output, device="cpu")(
        [example.tokens for example in CORPUS.test]
    )
    common = ["--output_dir", str(output), "--data_dir", str(data), "--no_cuda"]
    assert cli.main(["predict", *common, "--output", str(tmp_path / "out.jsonl")]) == 0
    lines = [
        json.loads(line)
        for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [len(line["entities"]) for line in lines] == list(map(len, expected))
    for line, entities in zip(lines, expected, strict=True):
        assert [(e["label"], e["start"], e["end"]) for e in line["entities"]] == [
            (e.label, e.start, e.end) for e in entities
        ]
        assert all(line["text"][e["start"] : e["end"]] == e["text"] for e in line["entities"])
    target = tmp_path / "out.tsv"
    flags = [
        "--input",
        str(data / "test.bio"),
        "--input_format",
        "columns",
        "--output_format",
        "columns",
    ]
    assert cli.main(["predict", *common, *flags, "--output", str(target)]) == 0
    spans = [
        [(s.label, s.start, s.end) for s in example.spans]
        for example in read_examples(target, scheme="BIO")
    ]
    assert spans == [
        [(e.label, e.word_start, e.word_end) for e in entities] for entities in expected
    ]
    capsys.readouterr()


def test_an_evaluation_without_anything_to_evaluate_on_is_an_error(trained, tmp_path, capsys):
    """A folder with a training file alone, and one whose test file has no labels."""
    data, output, _ = trained
    (tmp_path / "train.bio").write_bytes((data / "train.bio").read_bytes())
    assert cli.main(["evaluate", str(output), str(tmp_path)]) == 2
    assert "no labelled dev or test file" in capsys.readouterr().err
    (tmp_path / "test.jsonl").write_text('{"text": "Ada wrote ."}\n', encoding="utf-8")
    assert cli.main(["evaluate", str(output), str(tmp_path)]) == 2
    assert "no labelled dev or test file" in capsys.readouterr().err


@pytest.mark.parametrize("output_format", ["jsonl", "columns", "cluener"])
def test_several_inputs_stand_behind_each_other_in_one_output(trained, tmp_path, output_format):
    """The second file is added to the result of the first, which it does not replace."""
    _, output, _ = trained
    texts = [example.text for example in CORPUS.test[:3]]
    inputs = [tmp_path / f"{number}.txt" for number in range(3)]
    for path, text in zip(inputs, texts, strict=True):
        path.write_text(text + "\n", encoding="utf-8")
    whole = tmp_path / "whole.txt"
    whole.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    results = []
    for name, files in (("parts", inputs), ("whole", [whole])):
        target = tmp_path / f"{name}.out"
        flags = ["--output", str(target), "--output_format", output_format]
        assert cli.main(["predict", str(output), *map(str, files), *flags]) == 0
        written = target.read_text(encoding="utf-8")
        written = re.sub(r', "source": "[^"]*"', "", written)  # of several files each says which
        results.append(re.sub(r'"id": "?\d+"?', '"id": 0', written))
    assert results[0] == results[1]
    assert len(results[0].strip().splitlines()) >= 3


def test_the_submission_format_of_cluener(trained, tmp_path):
    """id and label, ends inclusive; reading it back gives the tagger's spans."""
    _, output, _ = trained
    source, target = tmp_path / "test.json", tmp_path / "submission.json"
    chinese = [example for example in CORPUS.test if example.sep == ""]
    source.write_text(
        "".join(
            json.dumps({"id": n, "text": e.text}, ensure_ascii=False) + "\n"
            for n, e in enumerate(chinese)
        ),
        encoding="utf-8",
    )
    flags = ["--input", str(source), "--input_format", "cluener", "--output_format", "cluener"]
    assert (
        cli.main(
            ["predict", "--output_dir", str(output), *flags, "--output", str(target), "--no_cuda"]
        )
        == 0
    )
    records = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [str(record["id"]) for record in records] == list(map(str, range(len(chinese))))
    for record, example in zip(records, chinese, strict=True):
        for surfaces in record["label"].values():
            for surface, places in surfaces.items():
                assert all(example.text[start : end + 1] == surface for start, end in places)


def test_a_text_from_standard_input(trained):
    _, output, _ = trained
    command = [
        sys.executable,
        "-m",
        "nercrf.run_ner_crf",
        "--do_predict",
        "--input",
        "-",
        "--output",
        "-",
    ]
    command += ["--output_dir", str(output), "--no_cuda"]
    text = "Hello world .\r\n\n  你好，世界。\n"
    finished = subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True
    )
    assert [json.loads(line)["text"] for line in finished.stdout.splitlines()] == [
        "Hello world .",
        "",
        "  你好，世界。",
    ]


def test_all_checkpoints_can_be_evaluated_and_one_chosen(trained, tmp_path):
    data, output, _ = trained
    common = ["--output_dir", str(output), "--data_dir", str(data), "--no_cuda"]
    assert cli.main(["evaluate", *common, "--eval_all_checkpoints"]) == 0
    written = max((output / "evaluations").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    figures = json.loads(written.read_text())["results"]
    assert set(figures) == {"model", "checkpoint-3", "checkpoint-6"}
    gold = sum(len(example.spans) for example in CORPUS.test)
    assert all(splits["test"]["gold"] == gold for splits in figures.values())
    flags = ["--predict_checkpoints", "3", "--output", str(tmp_path / "three.jsonl")]
    assert cli.main(["predict", *common, *flags]) == 0
    assert cli.main(["predict", *common, "--predict_checkpoints", "4"]) == 2


def test_markup_chooses_the_scheme_of_the_model(trained, tmp_path):
    data, _, encoder = trained
    flags = [
        "--data_dir",
        data,
        "--model_name_or_path",
        encoder,
        "--output_dir",
        tmp_path,
        "--no_cuda",
        "--do_train",
        "--do_eval",
        "--max_steps",
        2,
        "--markup",
        "bios",
        "--eval_max_seq_length",
        128,
    ]
    assert main(list(map(str, flags))) == 0
    config = json.loads((find_model(tmp_path) / "config.json").read_text())
    assert config["scheme"] == "BIOS"
    assert {label[:2] for label in config["id2label"].values()} == {"O", "B-", "I-", "S-"}
    figures = json.loads((tmp_path / "eval_results.json").read_text())["model"]
    assert figures["dev"]["gold"] == sum(len(example.spans) for example in CORPUS.dev)


def test_training_goes_on_from_a_trained_tagger(trained, tmp_path):
    data, output, _ = trained
    flags = [
        "--data_dir",
        data,
        "--model_name_or_path",
        output / "model",
        "--output_dir",
        tmp_path,
        "--no_cuda",
        "--do_train",
        "--max_steps",
        1,
        "--eval_max_seq_length",
        128,
    ]
    assert main(list(map(str, flags))) == 0
    assert main([*map(str, flags), "--markup", "bioes", "--overwrite_output_dir"]) == 0
    config = json.loads((find_model(tmp_path) / "config.json").read_text())
    assert config["scheme"] == "BIOES"


MISTAKES = [
    (["--do_train", "--data_dir", "no-such-folder"], "no-such-folder"),
    (["--do_train", "--model_name_or_path", "no-such-model"], "no model at 'no-such-model'"),
    (["--do_predict"], "give --data_dir"),
    (["--do_train", "--task_name", "conll"], "expected one of cner, cluener, ner"),
    (["--do_train", "--local_rank", "1"], "torchrun"),
    ([], "nothing to do"),
]


@pytest.mark.parametrize(
    ("argv", "message"), MISTAKES, ids=[" ".join(argv) or "nothing" for argv, _ in MISTAKES]
)
def test_a_mistake_is_told_in_a_sentence(argv, message, tmp_path, capsys):
    assert main([*argv, "--output_dir", str(tmp_path), "--no_cuda"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("checkpoint-*"))


def test_an_encoder_that_takes_less_than_asked_is_refused(trained, tmp_path, capsys, caplog):
    from transformers import BertConfig, BertModel

    data, _, _ = trained
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    config = BertConfig(vocab_size=len(TOKENIZER), max_position_embeddings=64, **sizes)
    BertModel(config).save_pretrained(tmp_path / "short")
    TOKENIZER.save_pretrained(tmp_path / "short")
    flags = [
        "--do_train",
        "--data_dir",
        data,
        "--model_name_or_path",
        tmp_path / "short",
        "--output_dir",
        tmp_path,
    ]
    assert main([*map(str, flags), "--no_cuda", "--train_max_seq_length", "100"]) == 2
    told = capsys.readouterr().err
    assert "--train_max_seq_length 100, but the encoder takes 64 word pieces" in told
    # defaults give way, with a line
    assert main([*map(str, flags), "--no_cuda", "--max_steps", "2"]) == 0
    assert "windows of 64 word pieces in training and 64 in evaluation" in caplog.text
    assert Tagger.from_pretrained(tmp_path).model.config.max_seq_length == 64


def test_a_cased_tokenizer_does_not_pretend_to_lower_case(trained, tmp_path, capsys):
    data, _, encoder = trained
    flags = [
        "--do_train",
        "--data_dir",
        data,
        "--model_name_or_path",
        encoder,
        "--output_dir",
        tmp_path,
    ]
    more = ["--do_lower_case", "--no_cuda", "--eval_max_seq_length", "128", "--max_steps", "1"]
    assert main([*map(str, flags), *more]) == 2
    assert "--do_lower_case has no effect" in capsys.readouterr().err


def test_a_malformed_file_is_named_with_its_line(trained, tmp_path, capsys):
    data = write_corpus(tmp_path / "data")
    train = Path(data, "train.bio")
    train.write_text(train.read_text(encoding="utf-8") + "\nword\tI-PER\n", encoding="utf-8")
    line = len(train.read_text(encoding="utf-8").splitlines())
    flags = [
        "--do_train",
        "--data_dir",
        str(data),
        "--output_dir",
        str(tmp_path / "out"),
        "--no_cuda",
    ]
    assert main(flags) == 2
    message = capsys.readouterr().err
    assert f"{train}:{line}" in message
    assert "on_bad" in message
    assert main([*flags, "--on_bad", "warn", "--max_steps", "1", "--overwrite_output_dir"]) == 0


def test_a_folder_of_cluener_files(tmp_path):
    """JSON lines in, scores out; the test file has no labels and is predicted all the same."""
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev"):
        chinese = [example for example in CORPUS.splits[split] if example.sep == ""]
        write_cluener(data / f"{split}.json", chinese)
    (data / "test.json").write_text('{"id": 0, "text": "你好，世界。"}\n', encoding="utf-8")
    flags = [
        "--data_dir",
        str(data),
        "--task_name",
        "cluener",
        "--output_dir",
        str(tmp_path / "out"),
        "--no_cuda",
    ]
    more = [
        "--do_train",
        "--do_eval",
        "--do_predict",
        "--max_steps",
        "2",
        "--output_format",
        "cluener",
    ]
    assert main([*flags, *more]) == 0
    figures = json.loads((tmp_path / "out" / "eval_results.json").read_text())["model"]
    assert list(figures) == ["dev"]
    assert json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))[
        "id"
    ] in (0, "0")


def test_importing_the_package_takes_no_torch():
    code = "import sys, nercrf; sys.exit('torch' in sys.modules or not nercrf.__version__)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_evaluation_takes_the_finished_model_and_not_the_encoder(trained, capsys):
    """The reference's command line names the encoder even where it only evaluates."""
    data, output, encoder = trained
    flags = ["--data_dir", data, "--model_name_or_path", encoder, "--no_cuda", "--do_eval"]
    assert main([*map(str, flags), "--output_dir", str(output)]) == 0
    assert "unseen surfaces" in capsys.readouterr().out
    assert main([*map(str, flags), "--output_dir", str(output.parent / "none")]) == 2
    assert "holds a bert model, not a trained tagger" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("way", "gold", "remark"),
    [
        ("missed", 3, "they count as missed unless the model predicts them"),
        ("ignored", 2, "they are left out"),
    ],
)
def test_nested_entities_count_as_asked_and_the_report_says_so(
    trained, tmp_path, capsys, way, gold, remark
):
    """Of `Bank of England` and `England` the labels hold the first; neither name is known from training."""
    _, output, _ = trained
    spans = [Span("ORG", 0, 3), Span("LOC", 2, 3)]
    sentences = [
        Example("1", ["Bank", "of", "England"], spans),
        Example("2", ["Oslo"], [Span("LOC", 0, 1)]),
    ]
    write_cluener(tmp_path / "dev.json", sentences)
    flags = [
        "--data_dir",
        tmp_path,
        "--model_name_or_path",
        output,
        "--output_dir",
        tmp_path / "out",
        "--no_cuda",
    ]
    assert cli.main(["evaluate", *map(str, flags), "--unlearnable", way]) == 0
    (written,) = (tmp_path / "out" / "evaluations").iterdir()
    figures = json.loads(written.read_text())["results"]["model"]["dev"]
    assert figures["gold"] == gold
    assert "unseen_gold" not in figures  # without a training file nothing says what is unseen
    assert (figures["unlearnable"], figures["ignored_gold"]) == (1, 3 - gold)
    printed = capsys.readouterr().out
    assert "1 gold entities overlap others: one tag a word cannot hold them" in printed
    assert remark in printed
    assert "unseen" not in printed


def test_columns_of_the_input_are_chosen_by_flags(trained, tmp_path, capsys):
    _, output, _ = trained
    source = tmp_path / "in.tsv"
    source.write_text("1\tO\tHugo\n2\tO\tsings\n", encoding="utf-8")
    flags = [
        "--output_dir",
        str(output),
        "--input",
        str(source),
        "--input_format",
        "columns",
        "--no_cuda",
    ]
    flags += ["--token_column", "2", "--tag_column", "1"]
    assert cli.main(["predict", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "Hugo sings"
    assert cli.main(["predict", *flags, "--output_format", "columns"]) == 2
    assert "cannot go to standard output" in capsys.readouterr().err
    assert not Path("-").exists()
    assert (
        cli.main(["predict", "--output_dir", str(output), "--input", "-", "--input_format", "brat"])
        == 2
    )
    assert "standard input is text of one file" in capsys.readouterr().err


def test_without_data_only_the_sample_that_was_trained_on_is_evaluated(trained, capsys):
    _, output, _ = trained
    assert cli.main(["evaluate", "--output_dir", str(output), "--no_cuda"]) == 2
    assert "give --data_dir" in capsys.readouterr().err


def test_a_folder_without_a_test_file(trained, tmp_path, capsys):
    """A training is complete without; a prediction is not."""
    data = write_corpus(tmp_path / "data")
    Path(data, "test.bio").unlink()
    flags = ["--data_dir", str(data), "--output_dir", str(tmp_path / "out"), "--no_cuda"]
    assert cli.main(["train", *flags, "--max_steps", "1"]) == 0
    assert list(json.loads((tmp_path / "out" / "eval_results.json").read_text())["model"]) == [
        "dev"
    ]
    assert cli.main(["predict", *flags]) == 2
    assert "no test file" in capsys.readouterr().err


def test_flags_hold_for_a_tagger_that_is_trained_on(trained, tmp_path):
    data, output, _ = trained
    flags = [
        "--data_dir",
        data,
        "--model_name_or_path",
        output / "model",
        "--output_dir",
        tmp_path,
        "--no_cuda",
        "--do_train",
        "--max_steps",
        1,
        "--eval_max_seq_length",
        64,
        "--dropout",
        0.25,
        "--encoder_dropout",
        0.05,
        "--no_constrain",
    ]
    assert main(list(map(str, flags))) == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["max_seq_length"], config["classifier_dropout"], config["constrain"]) == (
        64,
        0.25,
        False,
    )
    assert config["encoder"]["hidden_dropout_prob"] == 0.05


def splitter_of(folder):
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    return config["split_by"], config["split_version"]


def test_raw_text_is_cut_as_the_training_file_was(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    sentence = "Kestrel B-ORG\nMarine I-ORG\n's O\nLeeds-based O\ndepot O\n. O\n\n"
    (data / "train.txt").write_text(sentence * 8, encoding="utf-8")
    argv = ["--do_train", "--data_dir", str(data), "--max_steps", "2", "--no_cuda"]
    assert main([*argv, "--output_dir", str(tmp_path / "found")]) == 0
    assert splitter_of(tmp_path / "found") == ("penn", 3)
    assert main([*argv, "--output_dir", str(tmp_path / "asked"), "--by", "words"]) == 0
    assert splitter_of(tmp_path / "asked") == ("words", 3)
    words = "Kestrel Marine's Leeds-based depot."
    tagger = Tagger.from_pretrained(tmp_path / "found")
    found = " ".join(tagger.read(words).example.tokens)
    assert found == "Kestrel Marine 's Leeds-based depot ."
    config = tmp_path / "asked" / "model" / "config.json"
    before = json.loads(config.read_text(encoding="utf-8"))
    del before["split_version"]  # as models before there were names have it
    config.write_text(json.dumps(before), encoding="utf-8")
    (config.parent / "manifest.json").unlink()  # it tells that somebody changed the file
    tagger = Tagger.from_pretrained(tmp_path / "asked")
    found = " ".join(tagger.read(words).example.tokens)
    assert found == "Kestrel Marine's Leeds-based depot ."


def test_a_model_of_texts_reads_texts_with_its_splitter(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    record = {"text": "A Leeds-based depot", "label": [[2, 13, "LOC"]]}
    for split in ("train", "dev"):
        (data / f"{split}.jsonl").write_text((json.dumps(record) + "\n") * 4, encoding="utf-8")
    argv = ["--data_dir", str(data), "--output_dir", str(tmp_path / "out"), "--no_cuda"]
    assert main([*argv, "--do_train", "--max_steps", "2", "--by", "penn"]) == 0
    assert splitter_of(tmp_path / "out") == ("penn", 3)
    assert main([*argv, "--do_eval"]) == 0
    caches = sorted(data.rglob("*.safetensors"))
    assert main([*argv, "--do_eval", "--by", "penn"]) == 0
    assert sorted(data.rglob("*.safetensors")) == caches  # nothing is cut and cached another way
